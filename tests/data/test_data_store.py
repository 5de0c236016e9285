"""A data set is whole and verified, or it is not there: whoever is killed, wherever it stops."""

import contextlib
import errno
import gzip
import hashlib
import io
import json
import os
import random
import shutil
import tarfile
import threading
import time
from pathlib import Path

import pytest
from data_server import Fault, Server, start_child

from rp_lib.data import DataStore
from rp_lib.data.download import Limits
from rp_lib.data.sources import (
    DataSet,
    DownloadError,
    Expected,
    NoSpace,
    NotThere,
    SourceFile,
    VerificationError,
    digest,
)
from rp_lib.utils.errors import RPLibError

QUICK = Limits(timeout=5, attempts=2, worthwhile=1000, backoff=0.01)
PICTURES = {f"set/c{i % 3}/{i}.jpg": random.Random(i).randbytes(3_000) for i in range(12)}


def pack(files: dict[str, bytes] = PICTURES) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, body in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))
    return gzip.compress(out.getvalue(), mtime=0)


ARCHIVE = pack()


def md5(body: bytes) -> dict[str, str]:
    return {"md5": hashlib.md5(body).hexdigest()}


def archive_file(url: str, body: bytes | None = ARCHIVE, **more) -> SourceFile:
    return SourceFile("set.tar.gz", (url,), hashes=md5(body) if body else {}, **{"unpack": ".", **more})


def make(*files: SourceFile, expected: Expected = Expected(), **more) -> DataSet:  # noqa: B008 - frozen
    return DataSet("pictures", "Pictures", "OOD", (), "http://127.0.0.1/about", files=files, expected=expected, **more)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    running = Server()
    yield running
    running.close()


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def store(tmp_path: Path, said: list[str]) -> DataStore:
    return DataStore(tmp_path / "data", limits=QUICK, say=said.append)


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def holds(store: DataStore, data: DataSet, files: dict[str, bytes] = PICTURES) -> bool:
    """Exactly ``files`` and the note are there, and nothing is left on the way."""
    found = tree(store.home(data))
    assert found.pop(".rp-data.json")
    work = store.root / ".rp-data"
    left = [p for p in work.rglob("*") if p.is_file() and p.parent.name not in ("locks", "seen")]
    return found == files and left == []


def untouched(store: DataStore, data: DataSet) -> bool:
    """Nothing of the data set is to be seen, and nothing half-unpacked lies about."""
    return not store.home(data).exists() and not (store.root / ".rp-data" / "unpacking" / data.name).exists()


def test_download_check_locate(server, store, said):
    data = make(archive_file(server.put("a", ARCHIVE)), expected=Expected(images=12, class_folders={".": 3, "set": 3}))
    assert store.state(data) == ("absent", "-")
    with pytest.raises(NotThere, match=r"rp-lib data --root .* pictures"):
        store.locate(data)
    assert store.download(data) == store.home(data) == store.locate(data)
    assert holds(store, data) and store.state(data) == ("there", "there, 36.0 kB")
    note = store.check(data)
    assert note.count == 12 and note.files["set/c0/0.jpg"][1] == hashlib.sha256(PICTURES["set/c0/0.jpg"]).hexdigest()
    assert note.sources[0]["sha256"] == hashlib.sha256(ARCHIVE).hexdigest()
    store.download(data)
    assert len(server.log) == 1 and any("fetching set.tar.gz" in text for text in said)


def test_plain_files_kept_archives_and_subfolders(server, store):
    plain, other = b"numbers", b"more numbers"
    data = make(
        SourceFile("x.npy", (server.put("x", plain),), len(plain), {"sha256": hashlib.sha256(plain).hexdigest()}),
        SourceFile("y.npz", (server.put("y", other),), None, {"git_blob": "0ab7ac3ea47f2ab3a0f0c7cbcc8c1cac9d6a23b3"}),
        archive_file(server.put("a", ARCHIVE), unpack="inner/most", keep=True),
    )
    blob = hashlib.sha1(b"blob 12\0more numbers").hexdigest()  # as `git hash-object` does
    with pytest.raises(VerificationError, match=f"git_blob is {blob}"):
        store.download(data)
    data = make(data.files[0], SourceFile("y.npz", data.files[1].urls, None, {"git_blob": blob}), data.files[2])
    store.download(data)
    inner = {f"inner/most/{name}": body for name, body in PICTURES.items()}
    assert holds(store, data, {"x.npy": plain, "y.npz": other, "set.tar.gz": ARCHIVE, **inner})
    assert server.sent("x") == len(plain)  # the failure of the second left the first where it was


def test_git_knows_the_same_blob_id(tmp_path):
    (tmp_path / "f").write_bytes(b"hello\n")
    assert digest(tmp_path / "f", "git_blob") == "ce013625030ba8dba906f756967f9e9ca394464a"


def test_without_hard_links_it_is_copied(server, store, monkeypatch):
    def no_links(*args):
        raise OSError(errno.EPERM, "not on this file system")

    monkeypatch.setattr(os, "link", no_links)
    data = make(archive_file(server.put("a", ARCHIVE), keep=True))
    store.download(data)
    assert holds(store, data, {**PICTURES, "set.tar.gz": ARCHIVE})


def test_mirror_of_the_user_comes_first(server, store, tmp_path):
    server.put("m/pictures/set.tar.gz", ARCHIVE)
    data = make(archive_file(f"{server.base}/gone"))
    with pytest.raises(DownloadError, match="404"):
        store.download(data)
    store = DataStore(store.root, mirrors=[f"{server.base}/m/"], limits=QUICK)
    store.download(data)
    assert holds(store, data) and [name for name, *_ in server.log] == ["gone", "m/pictures/set.tar.gz"]


def test_a_file_put_there_by_hand(server, store):
    data = make(archive_file(f"{server.base}/gone"))
    store.incoming(data).mkdir(parents=True)
    (store.incoming(data) / "set.tar.gz").write_bytes(ARCHIVE)
    assert store.state(data).kind == "begun"
    store.download(data)
    assert holds(store, data) and server.log == []


def test_unsafe_archives_never_get_a_name(server, store, tmp_path):
    body = pack({"set/a.jpg": b"a", "../../escaped.jpg": b"b"})
    data = make(archive_file(server.put("a", body), body))
    with pytest.raises(VerificationError, match="outside its folder"):
        store.download(data)
    assert untouched(store, data) and not list(tmp_path.rglob("escaped.jpg")) and not list(tmp_path.rglob("a.jpg"))


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), OSError(errno.ENOSPC, "full"), OSError(errno.EIO, "broken")])
def test_stopped_while_unpacking(server, store, monkeypatch, stop):
    data = make(archive_file(server.put("a", ARCHIVE)))
    true_extract, copied = tarfile.TarFile.extract, []

    def stops(tar, member, *args, **more):
        copied.append(member.name)
        if len(copied) == 7:
            raise stop
        return true_extract(tar, member, *args, **more)

    monkeypatch.setattr(tarfile.TarFile, "extract", stops)
    expected = NoSpace if getattr(stop, "errno", 0) == errno.ENOSPC else type(stop)
    with pytest.raises(expected):
        store.download(data)
    assert untouched(store, data) and len(copied) == 7
    monkeypatch.setattr(tarfile.TarFile, "extract", true_extract)
    store.download(data)
    assert holds(store, data) and len(server.log) == 1  # the archive was kept


def test_what_a_dead_process_left_half_unpacked_is_thrown_away(server, store):
    data = make(archive_file(server.put("a", ARCHIVE)))
    aside = store.root / ".rp-data" / "unpacking" / "pictures" / "set"
    aside.mkdir(parents=True)
    (aside / "stray.jpg").write_bytes(b"half")
    store.download(data)
    assert holds(store, data)


def test_an_empty_folder_is_no_obstacle_and_anything_else_is(server, store):
    data = make(archive_file(server.put("a", ARCHIVE)))
    store.home(data).mkdir(parents=True)
    store.download(data)
    assert holds(store, data)
    shutil.rmtree(store.home(data))
    store.home(data).mkdir()
    (store.home(data) / "mine.txt").write_text("precious")
    assert store.state(data).kind == "foreign"
    with pytest.raises(RPLibError, match="not downloaded by this command"):
        store.download(data)
    assert tree(store.home(data)) == {"mine.txt": b"precious"} and len(server.log) == 1


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        (Expected(images=13), "12 images instead of 13"),
        (Expected(class_folders={"set": 4}), "3 folders of images instead of 4"),
        (Expected(paths=("set/c9",)), "set/c9 is missing"),
        (Expected(md5={"set/c0/0.jpg": "0" * 32}), "md5 is"),
    ],
)
@pytest.mark.parametrize("published", [True, False])
def test_an_archive_of_something_else(server, store, expected, message, published):
    data = make(archive_file(server.put("a", ARCHIVE), ARCHIVE if published else None), expected=expected)
    for _ in range(2):
        with pytest.raises(VerificationError, match=message):
            store.download(data)
        assert untouched(store, data)
    # A published hash vouches for the download; without one it is fetched anew, and never trusted.
    assert len(server.log) == (1 if published else 2)
    assert not (store.root / ".rp-data" / "seen").exists()


def test_trust_on_first_use(server, store):
    data = make(archive_file(server.put("a", ARCHIVE), None))
    store.download(data)
    record = store.root / ".rp-data" / "seen" / "pictures.json"
    assert json.loads(record.read_text()) == {"set.tar.gz": hashlib.sha256(ARCHIVE).hexdigest()}
    shutil.rmtree(store.home(data))
    store.download(data)  # the same again
    shutil.rmtree(store.home(data))
    new = pack({**PICTURES, "set/c0/new.jpg": b"new"})
    server.put("a", new)
    with pytest.raises(VerificationError, match=r"not what it was at the first download[\s\S]*delete .*pictures\.json"):
        store.download(data)
    assert untouched(store, data) and store.state(data).kind == "absent"
    record.write_text("{ not JSON")
    with pytest.raises(VerificationError, match="cannot be read"):
        store.download(data)
    record.unlink()
    store.download(data)
    assert holds(store, data, {**PICTURES, "set/c0/new.jpg": b"new"})


def test_a_page_in_place_of_an_archive_is_never_trusted(server, store):
    page = server.put("a", b"<html>This file has moved</html>")
    mirror = server.put("b", ARCHIVE)
    data = make(SourceFile("set.tar.gz", (page, mirror), unpack="."))
    store.download(data)
    assert holds(store, data)


@pytest.mark.parametrize(
    ("spoil", "message", "sizes_tell"),
    [
        (lambda home: (home / "set/c0/0.jpg").unlink(), "c0/0.jpg is missing", True),
        (lambda home: (home / "set/c0/0.jpg").write_bytes(b""), "0.jpg has another size", True),
        (lambda home: (home / "set/c0/0.jpg").write_bytes(b"x" * 3000), "0.jpg has another content", False),
        (lambda home: (home / "set/c0/new.jpg").write_bytes(b"x"), "new.jpg was not there", True),
        (lambda home: (home / ".rp-data.json").write_text("{"), "cannot be read", True),
        (lambda home: [p.unlink() for p in home.rglob("*.jpg")], "and 9 more", True),
    ],
)
def test_check_finds_what_is_wrong(server, store, spoil, message, sizes_tell):
    data = make(archive_file(server.put("a", ARCHIVE)))
    home = store.download(data)
    (home / "set" / ".DS_Store").write_bytes(b"harmless")
    store.check(data)
    spoil(home)
    with pytest.raises(VerificationError, match=message):
        store.check(data)
    with contextlib.ExitStack() as stack:  # a second download looks at names and sizes only, which is quick
        if sizes_tell:
            stack.enter_context(pytest.raises(VerificationError, match=message))
        store.download(data)
    assert len(server.log) == 1


@pytest.fixture
def own(tmp_path: Path) -> Path:
    folder = tmp_path / "mine"
    for name, body in PICTURES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
    return folder


def test_a_folder_of_the_readers_own(store, own, tmp_path):
    data = make(by_hand="ask for it", expected=Expected(class_folders={"set": 3}))
    with pytest.raises(NotThere, match=r"no free download: ask for it, see .*--folder pictures=FOLDER"):
        store.download(data)
    assert store.adopt(data, own) == own.resolve() == store.locate(data) == store.download(data)
    assert tree(own) == PICTURES  # nothing is written there
    assert store.state(data) == ("there", f"there: {own.resolve()}") and store.check(data).count == 12
    (own / "set/c0/0.jpg").unlink()
    with pytest.raises(VerificationError, match=r"11 files .* instead of 12"):
        store.check(data)
    store.adopt(data, own)  # said to be right
    store.check(data)
    moved = tmp_path / "moved"
    own.rename(moved)
    with pytest.raises(VerificationError, match="is gone"):
        store.check(data)
    store.adopt(data, moved)
    assert store.locate(data) == moved.resolve()


def test_a_folder_that_is_where_it_would_be_downloaded_to(server, store, own):
    data = make(archive_file(server.put("a", ARCHIVE)))
    store.root.mkdir()
    own.rename(store.home(data))
    store.adopt(data, store.home(data))
    assert store.locate(data).resolve() == store.home(data).resolve() and store.check(data).count == 12
    renamed = store.root.rename(store.root.with_name("elsewhere"))  # it goes with the root
    assert DataStore(renamed).locate(data).resolve() == (renamed / "pictures").resolve()


def test_folders_that_are_not_that_data_set(server, store, own, tmp_path):
    data = make(by_hand="ask", expected=Expected(class_folders={"set": 4}))
    with pytest.raises(VerificationError, match="3 folders of images instead of 4"):
        store.adopt(data, own)
    with pytest.raises(RPLibError, match="is no folder"):
        store.adopt(data, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(VerificationError, match="does not hold a single file"):
        store.adopt(make(by_hand="ask"), tmp_path / "empty")
    numbers = make(SourceFile("x.npy", ("http://127.0.0.1/x",), None, md5(b"right")))
    with pytest.raises(VerificationError, match=r"does not hold x\.npy"):
        store.adopt(numbers, own)
    (own / "x.npy").write_bytes(b"wrong")
    with pytest.raises(VerificationError, match="md5 is"):
        store.adopt(numbers, own)
    (own / "x.npy").write_bytes(b"right")
    assert store.state(numbers).kind == "absent"
    store.adopt(numbers, own)
    downloaded = DataStore(tmp_path / "other", limits=QUICK)
    data = make(archive_file(server.put("a", ARCHIVE)))
    downloaded.download(data)
    with pytest.raises(RPLibError, match="holds data already"):
        downloaded.adopt(data, own)
    assert holds(downloaded, data)


def test_links_in_circles_end(store, own):
    (own / "set" / "round").symlink_to(own)
    assert store.adopt(make(by_hand="ask"), own) and store.check(make(by_hand="ask")).count == 12


def free(n: int):
    return lambda path: shutil._ntuple_diskusage(10**12, 10**12 - n, n)


def test_no_room_for_the_download(server, store, monkeypatch):
    data = make(archive_file(server.put("a", ARCHIVE), size=10**9))
    monkeypatch.setattr(shutil, "disk_usage", free(10**8))
    with pytest.raises(NoSpace, match=r"downloading pictures needs 2\.5 GB .*100\.0 MB are free"):
        store.download(data)
    assert server.log == []  # the size is known: nobody has to be asked


def test_torchvision_reads_what_we_unpacked(server, store, said):
    from torchvision.datasets import DTD

    textures = {"dtd/labels/test1.txt": b"dots/1.jpg\n", "dtd/images/dots/1.jpg": b"not looked into"}
    body = pack(textures)
    home = store.download(make(archive_file(server.put("a", body), body, unpack="dtd")))
    assert DTD(str(home), split="test").classes == ["dots"]


def test_pytorch_ood_reads_what_we_unpacked(server, store, monkeypatch):
    img = pytest.importorskip("pytorch_ood.dataset.img")
    body = pack({f"LSUN/test/{i}.jpg": b"x" for i in range(3)})
    data = make(SourceFile("LSUN.tar.gz", (server.put("a", body),), None, md5(body), ".", keep=True))
    monkeypatch.setattr(img.LSUNCrop, "tgz_md5", md5(body)["md5"])
    assert len(img.LSUNCrop(str(store.download(data)))) == 3


CHILD = """
from pathlib import Path
from rp_lib.data.sources import DataSet, SourceFile
from rp_lib.data.download import DataStore
from rp_lib.data.download import Limits
root, url, md5 = sys.argv[1:4]
data = DataSet("pictures", "Pictures", "OOD", (), "", files=(SourceFile("set.tar.gz", (url,), None, {"md5": md5}, "."),))
DataStore(Path(root), limits=Limits(timeout=10, backoff=0.01), say=lambda t: print(t, flush=True)).download(data)
"""


@pytest.mark.parametrize("moment", range(13))
def test_killed_between_any_two_steps(server, store, monkeypatch, moment):
    """Every rename, unlink and link is a moment to die at; what dies there leaves its files as they are."""
    data = make(archive_file(server.put("a", ARCHIVE), keep=True))

    class Killed(BaseException):
        pass

    steps = [0]

    def dies(true):
        def call(*args, **more):
            steps[0] += 1
            if steps[0] > moment:
                raise Killed
            return true(*args, **more)

        return call

    with monkeypatch.context() as patch:
        for owner, name in ((Path, "replace"), (Path, "rename"), (Path, "unlink"), (os, "link"), (shutil, "rmtree")):
            patch.setattr(owner, name, dies(getattr(owner, name)))
        with contextlib.suppress(Killed):
            store.download(data)
    home = store.home(data)
    assert not home.exists() or holds_ignoring_leftovers(home)
    store.download(data)
    assert holds(store, data, {**PICTURES, "set.tar.gz": ARCHIVE})


def holds_ignoring_leftovers(home: Path) -> bool:
    found = tree(home)
    return bool(found.pop(".rp-data.json")) and found == {**PICTURES, "set.tar.gz": ARCHIVE}


def test_two_processes_at_once(server, store):
    gate = threading.Event()
    data = make(archive_file(server.put("a", ARCHIVE, always=Fault(gate=gate))))
    arguments = (store.root, data.files[0].urls[0], data.files[0].hashes["md5"])
    first = start_child(CHILD, *arguments)
    assert "fetching" in first.stdout.readline()
    second = start_child(CHILD, *arguments)
    assert "another process is at work" in second.stdout.readline()
    gate.set()
    outputs = [child.communicate(timeout=60) for child in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], outputs
    assert server.ranges("a") == [None] and server.sent("a") == len(ARCHIVE)  # one of them did the work
    assert "fetching" not in outputs[1][0] and holds(store, data)


def test_many_processes_in_a_race(server, store):
    data = make(archive_file(server.put("a", ARCHIVE)))
    children = [start_child(CHILD, store.root, data.files[0].urls[0], data.files[0].hashes["md5"]) for _ in range(3)]
    outputs = [child.communicate(timeout=60) for child in children]
    assert [child.returncode for child in children] == [0, 0, 0], outputs
    assert len(server.log) == 1 and holds(store, data)


def test_the_lock_of_a_dead_process_holds_nobody_up(server, store, said):
    data = make(archive_file(server.put("a", ARCHIVE, Fault(stall=5_000))))
    child = start_child(CHILD, store.root, data.files[0].urls[0], data.files[0].hashes["md5"])
    while not server.log:  # until it holds the lock and waits for bytes
        assert child.poll() is None
        time.sleep(0.01)
    child.kill()
    child.communicate(timeout=30)
    assert (store.root / ".rp-data" / "locks" / "pictures").exists()
    store.download(data)  # and returns: a lock that stayed would be waited for without end
    assert holds(store, data) and not any("another process" in text for text in said)
