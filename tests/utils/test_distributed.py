"""Two processes started by accelerate's launcher train what one process trains; this file is also their script."""

import contextlib
import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys
import unittest.mock
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import CLASSES, TEMPLATES, make_clip, make_set

from rp_lib.benchmark import ImageSet
from rp_lib.clip import FrozenCLIP
from rp_lib.config import PAPER
from rp_lib.features import encode_all
from rp_lib.methods import FLYP, L2SP, CoOp, DeepPrompts, FineTune, LinearProbe, Method, Reprogrammer, load_method
from rp_lib.trainer import Checkpoint
from rp_lib.utils import distributed
from rp_lib.utils.errors import RPLibError
from rp_lib.utils.io import StorageError, load_tensors, save_tensors

# 24 images in batches of 7, 7, 10: shares of 3 and 4, and of 5 and 5.
PLAN = {"epochs": 3, "batch_size": 7, "precision": "float32"}
RP = PAPER.changed(epochs=3, batch_size=7)


def methods(clip: FrozenCLIP) -> dict[str, Callable[[], Method]]:
    task = (clip, CLASSES, TEMPLATES)

    def rp(**changes: object) -> Method:
        return Reprogrammer(*task, RP.changed(**changes), precision="float32")

    return {
        "rp": rp,
        "rp-class-focal": lambda: rp(objective="class", loss="focal"),
        "rp-identity": lambda: rp(objective="contrastive-identity", loss="focal"),
        "rp-image": lambda: rp(use_text_program=False),
        "rp-text": lambda: rp(use_image_program=False),
        "rp-half": lambda: Reprogrammer(*task, RP, precision="float16"),
        "fine-tune": lambda: FineTune(*task, **PLAN),
        "l2-sp": lambda: L2SP(*task, tower_penalty=1.0, **PLAN),
        "linear-probe": lambda: LinearProbe(*task, epochs=3, batch_size=7),
        "flyp": lambda: FLYP(*task, **PLAN),
        "coop": lambda: CoOp(*task, n_context=2, **PLAN),
        "maple": lambda: DeepPrompts(*task, **PLAN),
        # More processes than images in a batch: each takes them all.
        "batches-of-one": lambda: FineTune(*task, epochs=1, batch_size=1, precision="float32"),
    }


def sets() -> tuple[ImageSet, ImageSet]:
    return make_set(24, name="train"), make_set(9, seed=1, name="val", role="val")


# What each of the two processes does ---------------------------------------------------------------------


def worker(out: Path) -> None:
    torch.set_num_threads(1)
    rank, said = distributed.rank(), {}
    own = out / f"rank{rank}"
    own.mkdir()
    said |= {"world_size": distributed.world_size(), "rank": rank, "device": str(distributed.local_device())}
    clip, (train_set, val_set) = make_clip(), sets()
    for name, make in methods(clip).items():
        method = make().fit(train_set, val_set)
        tensors = {f"trained.{k}": v for k, v in method.state_dict().items()} | {"logits": method.logits(val_set.images)}
        save_tensors(own / f"{name}.safetensors", tensors, {"losses": method.history.losses})
        said[f"{name} accuracies"] = method.history.accuracies
    many = make_set(23, seed=5).images
    save_tensors(own / "features.safetensors", {"features": encode_all(clip, many, batch_size=4)}, {})
    # Files: the main process writes, the other finds them there. Each has a folder of its own to show who wrote.
    method.save(own / "method.safetensors")
    method.save(out / "together.safetensors")
    load_method(out / "together.safetensors", clip)
    said["wrote"] = (own / "method.safetensors").exists()
    said |= _stop_and_resume(clip, train_set, val_set, out, rank)
    said["one row too many"] = _raised(lambda: distributed.gather(torch.zeros(6, 2), 8))
    said["sent"] = distributed.on_main(lambda: f"from {rank}")
    said["none sent"] = distributed.on_main(lambda: None)
    said["any"] = [distributed.any_process(f) for f in (rank == 1, False, True)]
    seen: list[tuple[int, int]] = []
    distributed.on_main(lambda: distributed.on_main(lambda: seen.append((distributed.world_size(), distributed.rank()))))
    said["inside"] = seen
    method.save(out / "outside.safetensors")
    if rank == 1:  # work of its own, with nobody to wait for
        with distributed.alone():
            said["own"] = len(encode_all(clip, many, batch_size=4)) == 23 and distributed.world_size() == 1
            make_alone = methods(clip)["coop"]().fit(train_set)
            make_alone.save(own / "own.safetensors")
    said["failure"] = _raised(lambda: distributed.on_main(_fail))
    resnet = make_clip(vision={"image_size": 32, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None})
    said["batch norm"] = _raised(lambda: FineTune(resnet, CLASSES, TEMPLATES, **PLAN).fit(train_set))
    frozen = Reprogrammer(resnet, CLASSES, TEMPLATES, RP.changed(epochs=1))  # in eval() nothing is shared wrongly
    said["frozen batch norm"] = len(frozen.fit(train_set).history.losses)
    (own / "said.json").write_text(json.dumps(said))


def _stop_and_resume(clip: FrozenCLIP, train_set: ImageSet, val_set: ImageSet, out: Path, rank: int) -> dict:
    """Ctrl-C reaches one process only, in the middle of an epoch; then both go on."""
    said: dict[str, object] = {}
    method, real, path = methods(clip)["rp"](), clip.encode_pixels, out / "run.checkpoint"
    steps = 0

    def pressed(pixels: torch.Tensor) -> torch.Tensor:
        nonlocal steps
        steps += torch.is_grad_enabled()
        if rank == 1 and steps == 5:
            steps += 100
            signal.raise_signal(signal.SIGINT)
        return real(pixels)

    clip.encode_pixels = pressed
    try:
        method.fit(train_set, val_set, checkpoint=path)
    except KeyboardInterrupt:
        said["stopped after"] = steps % 100
    clip.encode_pixels = real
    said["checkpoint"] = path.is_file()
    # The other process need not see the file.
    seen = path if rank == 0 else out / "elsewhere" / path.name
    again = methods(clip)["rp"]().fit(train_set, val_set, checkpoint=Checkpoint(seen, minutes=0))
    said["left"] = path.is_file() or seen.parent.joinpath("x").exists()
    save_tensors(out / f"rank{rank}" / "resumed.safetensors", again.state_dict(), {"losses": again.history.losses})
    (out / f"rank{rank}" / "broken").write_text("x")
    said["broken"] = _raised(lambda: methods(clip)["rp"]().fit(train_set, checkpoint=out / "rank0" / "broken"))

    def fit(path: Path) -> None:
        methods(clip)["rp"]().fit(train_set, checkpoint=Checkpoint(path, minutes=0))

    # What goes wrong in one process alone must not leave the other waiting.
    with unittest.mock.patch.object(Path, "read_bytes", _denied):  # the main process is the one that reads
        said["unreadable"] = _raised(lambda: fit(out / "rank0" / "broken"))
    with unittest.mock.patch("rp_lib.trainer.write_atomically", _full):  # and writes
        said["full"] = _raised(lambda: fit(out / "full"))
    real, torch.load = torch.load, _denied if rank == 1 else torch.load
    _interrupted(clip, lambda: fit(out / "good"))
    said["one cannot take it over"] = _raised(lambda: fit(out / "good"))
    torch.load = real
    said["kept"] = (out / "good").is_file()
    return said


def _denied(*args: object, **options: object) -> bytes:
    raise PermissionError(errno.EACCES, "Permission denied")


def _full(path: Path, write: object) -> None:
    raise StorageError(f"the disk is full while writing {path.name}")


def _interrupted(clip: FrozenCLIP, work: Callable[[], object]) -> None:
    """Do ``work``, interrupted after two batches in every process."""
    real, calls = clip.encode_pixels, 0

    def pressed(pixels: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 2:
            signal.raise_signal(signal.SIGINT)
        return real(pixels)

    with unittest.mock.patch.object(clip, "encode_pixels", pressed), contextlib.suppress(KeyboardInterrupt):
        work()


def _fail() -> None:
    raise StorageError("the disk is full")


def _raised(work: Callable[[], object]) -> str:
    try:
        work()
    except RPLibError as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


# What the tests say about it -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The folders of both processes, when they are done."""
    out = tmp_path_factory.mktemp("pair")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
              "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", str(port)]  # fmt: skip
    child = subprocess.Popen(
        [*launch, __file__, str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])},
    )  # fmt: skip
    try:
        errors = child.communicate(timeout=240)[1]
    except subprocess.TimeoutExpired:  # one waits for the other: asked kindly, the launcher ends both
        child.terminate()
        pytest.fail(f"the processes wait for each other: {child.communicate(timeout=60)[1][-3000:]}")
    assert child.returncode == 0, errors[-3000:]
    return [out / "rank0", out / "rank1"]


@pytest.fixture(scope="module")
def said(pair: list[Path]) -> list[dict]:
    return [json.loads((own / "said.json").read_text()) for own in pair]


def test_they_know_each_other(said: list[dict]):
    assert [(s["world_size"], s["rank"], s["device"]) for s in said] == [(2, 0, "cpu"), (2, 1, "cpu")]


@pytest.mark.parametrize("name", methods(None))  # type: ignore[arg-type]
def test_trains_what_one_process_trains(pair: list[Path], said: list[dict], clip: FrozenCLIP, name: str):
    (first, about), (second, _) = (load_tensors(own / f"{name}.safetensors") for own in pair)
    assert first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)
    train_set, val_set = sets()
    start = methods(clip)[name]()
    method = methods(clip)[name]().fit(train_set, val_set)
    assert about["losses"] == pytest.approx(method.history.losses, abs=1e-4)
    assert said[0][f"{name} accuracies"] == method.history.accuracies == said[1][f"{name} accuracies"]
    assert (first.pop("logits") - method.logits(val_set.images)).abs().max() < 2e-3
    moved = distance = 0.0
    for key, value in method.state_dict().items():
        distance += float((first[f"trained.{key}"] - value).float().square().sum())
        moved += float((value - start.state_dict()[key]).float().square().sum())
    assert moved > 0 and (distance / moved) ** 0.5 < 0.01


def test_features_are_those_of_one_process_to_the_bit(pair: list[Path], clip: FrozenCLIP):
    expected = encode_all(clip, make_set(23, seed=5).images, batch_size=4)
    for own in pair:
        assert torch.equal(load_tensors(own / "features.safetensors")[0]["features"], expected)


def test_the_main_process_writes_and_the_other_waits(pair: list[Path], said: list[dict]):
    assert [s["wrote"] for s in said] == [True, False]
    assert (pair[0].parent / "together.safetensors").is_file()
    assert [s["inside"] for s in said] == [[[1, 0]], []]  # what waits inside waits for nobody
    assert said[1]["own"] and (pair[1] / "own.safetensors").is_file()


def test_interrupt_in_one_process_stops_both_and_the_run_goes_on(pair: list[Path], said: list[dict]):
    assert [s["stopped after"] for s in said] == [5, 5]
    assert [s["checkpoint"] for s in said] == [True, True] and [s["left"] for s in said] == [False, False]
    whole, about = load_tensors(pair[0] / "rp.safetensors")
    for own in pair:
        resumed, resumed_about = load_tensors(own / "resumed.safetensors")
        assert resumed_about == about and all(torch.equal(resumed[k], whole[f"trained.{k}"]) for k in resumed)
    assert not (pair[0].parent / "elsewhere").exists()


def test_they_agree(said: list[dict]):
    assert [s["any"] for s in said] == [[True, False, True]] * 2
    assert [s["sent"] for s in said] == ["from 0"] * 2
    assert [s["none sent"] for s in said] == [None] * 2


def test_what_goes_wrong_is_said_in_both(said: list[dict]):
    assert all("damaged or no rp_lib checkpoint" in s["broken"] for s in said)
    unreadable = r"Error: .*the checkpoint \S+ is there but cannot be read \(Permission denied\); mend its perm"
    assert all(re.search(unreadable, s["unreadable"]) for s in said)
    assert said[0]["full"] == "StorageError: the disk is full while writing full"
    assert said[1]["full"] == "RPLibError: the main process could not finish: the disk is full while writing full"
    taken = [s["one cannot take it over"] for s in said]
    assert "another process could not take over" in taken[0] and "damaged or no rp_lib checkpoint" in taken[1]
    assert [s["kept"] for s in said] == [True, True]
    assert said[0]["failure"] == "StorageError: the disk is full" and "main process could not" in said[1]["failure"]
    for s in said:
        assert s["one row too many"] == "RPLibError: this process takes 4 of 8 rows, got 6"
        assert "batch normalisation" in s["batch norm"] and "one process" in s["batch norm"]
        assert s["frozen batch norm"] == 3


# Alone ---------------------------------------------------------------------------------------------------


def test_alone_nothing_changes():
    rows = torch.rand(5, 3, requires_grad=True)
    assert distributed.gather(rows, 5) is rows and distributed.gather_parts(rows, [5]) is rows
    assert (distributed.world_size(), distributed.rank(), distributed.is_main()) == (1, 0, True)
    assert distributed.share(5) == slice(0, 5) and distributed.local_device() is None
    assert torch.equal(distributed.shared(lambda r: 2 * r, rows), 2 * rows)
    assert distributed.any_process(True) and not distributed.any_process(False)
    assert distributed.on_main(lambda: b"x") == b"x"
    with pytest.raises(StorageError, match="disk is full"):
        distributed.on_main(_fail)


def test_shares_are_exact(monkeypatch: pytest.MonkeyPatch):
    for size in (1, 2, 3, 8):
        monkeypatch.setattr(distributed, "world_size", lambda size=size: size)
        for n in (0, 1, 2, 7, 8, 9, 128):
            parts = [range(n)[distributed.share(n, r)] for r in range(size)]
            if n < size:
                assert all(list(p) == list(range(n)) for p in parts)
            else:
                assert [i for p in parts for i in p] == list(range(n))
                assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize(
    ("environment", "launched"),
    [
        ({}, False),
        ({"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "x"}, False),
        ({"WORLD_SIZE": "2"}, False),  # a scheduler's variable alone starts nothing
        ({"WORLD_SIZE": "two", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "x"}, False),
        ({"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "x"}, True),
    ],
)
def test_launchers_are_recognised(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], launched: bool):
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert distributed.launched() is launched


if __name__ == "__main__":
    worker(Path(sys.argv[1]))
