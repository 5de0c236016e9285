"""Archives that nobody has to trust."""

import bz2
import errno
import gzip
import io
import lzma
import stat
import tarfile
from pathlib import Path

import pytest

from rp_lib.data import download as archives
from rp_lib.data.download import unpack
from rp_lib.data.sources import NoSpace, UnsafeArchive, VerificationError

FILES = {"set/a.txt": b"first", "set/deep/b.bin": bytes(range(256)) * 20, "set/empty": b""}


def tar_bytes(*members, files=FILES, format=tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as tar:
        for name, body in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(body), 0o4777
            tar.addfile(info, io.BytesIO(body))
        for info, body in members:
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))
    return out.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", body: bytes = b"x"):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info, body if kind == tarfile.REGTYPE else b""


def save(tmp_path: Path, body: bytes, name: str = "a.bin") -> Path:
    path = tmp_path / name
    path.write_bytes(body)
    return path


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    "body",
    [
        tar_bytes(),
        tar_bytes(format=tarfile.GNU_FORMAT),
        gzip.compress(tar_bytes()),
        bz2.compress(tar_bytes()),
        lzma.compress(tar_bytes()),
    ],
    ids=["tar", "gnu", "gz", "bz2", "xz"],
)
def test_every_kind_whatever_its_name(tmp_path, body):
    archive = save(tmp_path, body)
    unpack(archive, tmp_path / "out")
    assert tree(tmp_path / "out") == FILES
    for path in (tmp_path / "out").rglob("*"):
        assert not path.stat().st_mode & (stat.S_ISUID | stat.S_IWOTH)
        assert path.is_dir() or not path.stat().st_mode & stat.S_IXUSR


def test_long_and_foreign_names(tmp_path):
    files = {"d" * 90 + "/" + "n" * 200: b"long", "ünï/コード.jpg": b"names", "./dot/x": b"dot"}
    for i, body in enumerate((tar_bytes(files=files), tar_bytes(files=files, format=tarfile.GNU_FORMAT))):
        unpack(save(tmp_path, body), tmp_path / str(i))
        assert tree(tmp_path / str(i)) == {name.removeprefix("./"): body for name, body in files.items()}


UNSAFE_NAMES = ["../out", "set/../../out", "/etc/out", "..", "set\\..\\..\\out", "C:out", "a\nb", "C:\\out"]


@pytest.mark.parametrize("name", UNSAFE_NAMES)
def test_a_member_outside_its_folder(tmp_path, name):
    refused(tmp_path, tar_bytes(member(name)), "outside its folder")


@pytest.mark.parametrize(
    ("info", "message"),
    [
        (member("link", tarfile.SYMTYPE, "/etc/passwd"), "is a link"),
        (member("link", tarfile.SYMTYPE, "../../secret"), "is a link"),
        (member("link", tarfile.SYMTYPE, "set"), "is a link"),  # what comes next could be written through it
        (member("set/soft", tarfile.SYMTYPE, "a.txt"), "is a link"),
        (member("set/hard", tarfile.LNKTYPE, "set/a.txt"), "is a link"),
        (member("link", tarfile.LNKTYPE, "../../secret"), "is a link"),
        (member("pipe", tarfile.FIFOTYPE), "device"),
        (member("null", tarfile.CHRTYPE), "device"),
        (member("disk", tarfile.BLKTYPE), "device"),
    ],
)
def test_members_that_are_no_plain_file(tmp_path, info, message):
    refused(tmp_path, tar_bytes(info), message)


def refused(tmp_path: Path, body: bytes, message: str, error=UnsafeArchive) -> None:
    inner = tmp_path / "one" / "two"
    inner.mkdir(parents=True)
    archive = save(tmp_path, body)
    with pytest.raises(error, match=message):
        unpack(archive, inner / "out")
    outside = [p for p in tmp_path.rglob("*") if p.is_file() and not p.is_relative_to(inner / "out")]
    assert outside == [archive]


def test_a_sparse_file(tmp_path):
    info = tarfile.TarInfo("hole")
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(10**12)}
    refused(tmp_path, tar_bytes((info, b"0\n" + b"\0" * 510)), "decompression bomb")


ZEROS = {"zeros": b"\0" * 3_000_000}


@pytest.fixture
def tight(monkeypatch):
    for name, value in {"_RATIO": 20, "_HARMLESS": 1_000_000}.items():
        monkeypatch.setattr(archives, name, value)


def test_a_bomb(tmp_path, tight):
    refused(tmp_path, gzip.compress(tar_bytes(files=ZEROS)), r"unpacks to 3\.0 MB or more: a decompression bomb")
    unpack(save(tmp_path, tar_bytes(files=ZEROS), "plain.tar"), tmp_path / "plain")  # as large as it says


def test_a_size_that_is_only_claimed(tmp_path):
    """A header may promise a petabyte in a file of a kilobyte; nothing is read before the promise is judged."""
    info = tarfile.TarInfo("huge")
    info.size = 10**15
    refused(tmp_path, info.tobuf(tarfile.GNU_FORMAT) + b"\0" * 1024, "decompression bomb")


@pytest.mark.parametrize("body", [b"<html>Not here</html>" * 100, b"", b"\x1f\x8b\x08\x00no gzip", b"PK\x03\x04 a zip"])
def test_what_is_no_archive(tmp_path, body):
    refused(tmp_path, body, "damaged or no archive", VerificationError)


@pytest.mark.parametrize("keep", [0.2, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_cut_short(tmp_path, keep, pack):
    body = pack(tar_bytes())
    refused(tmp_path, body[: int(len(body) * keep)], "damaged or no archive", VerificationError)


def test_cut_short_within_a_member_of_a_plain_tar(tmp_path):
    refused(tmp_path, tar_bytes()[:4000], "damaged or no archive", VerificationError)


def test_a_checksum_behind_the_last_member(tmp_path):
    body = bytearray(gzip.compress(tar_bytes()))
    body[-6] ^= 1  # of the CRC
    refused(tmp_path, bytes(body), "damaged or no archive", VerificationError)


def test_a_full_disk(tmp_path, monkeypatch):
    def full(*args, **more):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tarfile.TarFile, "extract", full)
    with pytest.raises(NoSpace, match=r"disk is full while unpacking a\.bin"):
        unpack(save(tmp_path, tar_bytes()), tmp_path / "out")
