import errno
import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rp_lib.utils.errors import MissingDependency, RPLibError, UnknownName
from rp_lib.utils.io import (
    StorageError,
    file_sha256,
    load_tensors,
    save_tensors,
    tensors_sha256,
    write_atomically,
    write_synced,
)

TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor([1, 2])}


def test_round_trip(tmp_path: Path):
    path = tmp_path / "new" / "folder" / "x.safetensors"
    save_tensors(path, {**TENSORS, "t": TENSORS["a"].T}, {"n": 3, "names": ["x", "é"], "none": None})
    tensors, meta = load_tensors(path)
    assert meta == {"n": 3, "names": ["x", "é"], "none": None}
    assert torch.equal(tensors["a"], TENSORS["a"]) and torch.equal(tensors["b"], TENSORS["b"])
    assert torch.equal(tensors["t"], TENSORS["a"].T)
    assert [p.name for p in path.parent.iterdir()] == ["x.safetensors"]


def test_no_tensors_at_all(tmp_path: Path):
    save_tensors(tmp_path / "x", {}, {"k": 1})
    assert load_tensors(tmp_path / "x") == ({}, {"k": 1})


@pytest.mark.parametrize(
    "failure", [OSError(errno.ENOSPC, "No space left"), OSError(errno.EDQUOT, "Quota"), KeyboardInterrupt()]
)
def test_failure_leaves_the_previous_file(tmp_path: Path, failure: BaseException):
    path = tmp_path / "x"
    path.write_text("before")

    def write(partial: Path) -> None:
        partial.write_text("half")
        raise failure

    expected = KeyboardInterrupt if isinstance(failure, KeyboardInterrupt) else StorageError
    with pytest.raises(expected) as caught:
        write_atomically(path, write)
    if expected is StorageError:
        assert "disk is full" in str(caught.value) and "intact" in str(caught.value)
    assert path.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_the_target_appears_only_when_whole(tmp_path: Path):
    path = tmp_path / "x"

    def write(partial: Path) -> None:
        partial.write_text("whole")
        assert not path.exists() and partial.parent == path.parent

    write_atomically(path, write)
    assert path.read_text() == "whole"
    with (
        path.open() as before
    ):  # whoever reads the old file meanwhile goes on reading it: it is renamed over, not rewritten
        write_atomically(path, lambda partial: partial.write_text("new") and None)
        assert before.read() == "whole" and path.read_text() == "new"


def test_a_disk_that_is_really_full(tmp_path: Path):
    if not os.path.exists("/dev/full"):  # noqa: PTH110
        pytest.skip("no /dev/full")
    with pytest.raises(StorageError, match="disk is full"):
        write_atomically(tmp_path / "x", lambda _: write_synced(Path("/dev/full"), b"x" * 10_000))
    assert not list(tmp_path.iterdir())


def test_a_tiny_disk_fills_up(tmp_path: Path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if (
        os.geteuid()
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True).returncode
    ):
        pytest.skip("may not mount")
    try:
        path = disk / "x.safetensors"
        save_tensors(path, TENSORS, {})
        with pytest.raises(StorageError, match="disk is full"):
            save_tensors(path, {"big": torch.zeros(100_000)}, {})
        assert torch.equal(load_tensors(path)[0]["a"], TENSORS["a"])
        assert [p.name for p in disk.iterdir()] == ["x.safetensors"]
    finally:
        subprocess.run(["umount", disk], check=True)


def test_folder_that_cannot_be_one(tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match=r"cannot write .*choose another output folder"):
        save_tensors(tmp_path / "file" / "x", TENSORS, {})
    with pytest.raises(StorageError, match="cannot write"):  # the target is a folder
        (tmp_path / "dir").mkdir()
        save_tensors(tmp_path / "dir", TENSORS, {})
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["dir", "file"]


@pytest.mark.parametrize("keep", [0, 4, 60, -1])
def test_truncated_file(tmp_path: Path, keep: int):
    path = tmp_path / "x"
    save_tensors(path, TENSORS, {"k": 1})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(StorageError, match="damaged or no rp_lib file"):
        load_tensors(path)


def test_missing_and_foreign_files(tmp_path: Path):
    with pytest.raises(StorageError, match="does not exist"):
        load_tensors(tmp_path / "nothing")
    save_file(TENSORS, tmp_path / "foreign", {"format": "not JSON"})
    with pytest.raises(StorageError, match="no rp_lib file"):
        load_tensors(tmp_path / "foreign")


def test_file_hash(tmp_path: Path):
    (tmp_path / "x").write_bytes(b"abc")
    assert file_sha256(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_tensor_hash_sees_values_names_and_shapes_only():
    base = tensors_sha256(TENSORS)
    assert base == tensors_sha256(dict(reversed(TENSORS.items())))
    assert base == tensors_sha256({**TENSORS, "a": TENSORS["a"].T.contiguous().T})
    assert base == tensors_sha256({**TENSORS, "a": TENSORS["a"].double()})
    changed = TENSORS["a"].clone()
    changed[1, 2] = torch.nextafter(changed[1, 2], torch.tensor(9.0))
    for other in (
        {**TENSORS, "a": changed},
        {**TENSORS, "a": TENSORS["a"].view(3, 2)},
        {"c": TENSORS["a"], "b": TENSORS["b"]},
        {"a": TENSORS["a"]},
    ):
        assert tensors_sha256(other) != base


def test_errors_say_what_to_do():
    assert "did you mean paper?" in str(UnknownName("preset", "papper", ["paper", "as_released"]))
    assert "known: as_released, paper" in str(UnknownName("preset", "zzzzzz", ["paper", "as_released"]))
    assert "node is needed" in str(MissingDependency("node", "install it"))
    assert RPLibError.exit_code != 0 and issubclass(StorageError, RPLibError)
    json.dumps(str(UnknownName("x", "y", [])))
