"""Unpack zip and tar archives that nobody has to trust.

An archive is walked through once before a byte of it is written, so that what is wrong with it, and how
much room it takes, is known beforehand. Only plain files and folders are made, with the names checked
here. A link is never made: one that names an earlier file of the same archive becomes a copy of it, every
other one is refused (``tarfile``'s own filters make links, and could be led astray by chains of them before
Python 3.11.13: CVE-2025-4517).
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import hashlib
import io
import lzma
import posixpath
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

from rp_lib.data.errors import UnsafeArchive, VerificationError
from rp_lib.data.space import human, reports_full_disk

_CHUNK = 1 << 20
_BLOCK = 512  # of a tar file
# What the readers raise for bytes that are no archive of their kind, or one that is cut short.
_DAMAGE = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError)


@dataclass(frozen=True)
class ArchiveLimits:
    """What is still a data set and no decompression bomb.

    Attributes:
        members: files and folders.
        total: unpacked bytes.
        ratio: unpacked over packed bytes; asked only beyond ``harmless`` unpacked bytes.
    """

    members: int = 300_000
    total: int = 300 * 10**9
    ratio: float = 100.0
    harmless: int = 64 << 20


class Contents(NamedTuple):
    """What an archive unpacks to."""

    files: int
    bytes: int


class _Member(NamedTuple):
    name: str
    kind: str  # "file", "folder", "link" or what else it is
    size: int
    open: Callable[[], BinaryIO | None]
    target: str = ""


def inspect(archive: Path, limits: ArchiveLimits | None = None) -> Contents:
    """Walk through an archive without writing anything.

    Raises:
        UnsafeArchive: a member is absolute, has ``..``, is a device or a link to elsewhere; or there is too much.
        VerificationError: it is damaged, or no zip, tar, tar.gz, tar.bz2 or tar.xz.
    """
    return _walk(archive, limits or ArchiveLimits(), lambda path, member, copied: None)


def unpack(archive: Path, folder: Path, limits: ArchiveLimits | None = None) -> dict[str, tuple[int, str]]:
    """Unpack an archive into ``folder``; returns size and SHA-256 of every file by its path inside.

    Raises:
        UnsafeArchive, VerificationError: as :func:`inspect`.
        NoSpace: the disk is full.
    """
    written: dict[str, tuple[int, str]] = {}

    def write(path: PurePosixPath, member: _Member, copied: PurePosixPath | None) -> None:
        target = folder / path
        if member.kind == "folder":
            target.mkdir(parents=True, exist_ok=True)
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        source = (folder / copied).open("rb") if copied else member.open()
        if source is None:
            raise VerificationError(f"{archive.name}: {member.name} has no content")
        try:
            with source, target.open("xb") as file:
                written[str(path)] = _copy(source, file, member)
        except FileExistsError as error:
            raise UnsafeArchive(f"{archive.name}: {member.name} is there twice on this file system") from error

    with reports_full_disk(f"unpacking {archive.name}"):
        folder.mkdir(parents=True, exist_ok=True)
        _walk(archive, limits or ArchiveLimits(), write)
    return written


def _copy(source: BinaryIO, file: BinaryIO, member: _Member) -> tuple[int, str]:
    digest, size = hashlib.sha256(), 0
    while chunk := source.read(_CHUNK):
        file.write(chunk)
        digest.update(chunk)
        size += len(chunk)
    if size != member.size:
        raise VerificationError(f"{member.name} has {size:,} bytes instead of {member.size:,}")
    return size, digest.hexdigest()


def _walk(
    archive: Path, limits: ArchiveLimits, visit: Callable[[PurePosixPath, _Member, PurePosixPath | None], None]
) -> Contents:
    """Check every member and only then visit it; ``visit`` gets its path and, of a link, the path of its file."""
    sizes: dict[PurePosixPath, int] = {}
    folders: set[PurePosixPath] = set()
    packed, total, count = archive.stat().st_size, 0, 0
    try:
        with _open(archive) as members:
            for member in members:
                count += 1
                if count > limits.members:
                    raise UnsafeArchive(f"{archive.name} has more than {limits.members:,} members")
                path = _safe_path(archive, member.name)
                linked = None
                if member.kind == "link":
                    linked = _linked(archive, member, sizes)
                    member = member._replace(size=sizes[linked])
                elif member.kind not in ("file", "folder"):
                    raise UnsafeArchive(f"{archive.name}: {member.name} is a {member.kind}; only files are unpacked")
                if member.kind == "folder":
                    folders.add(path)
                else:
                    if path in sizes or path in folders or path == PurePosixPath():
                        raise UnsafeArchive(f"{archive.name}: {member.name} is there twice")
                    sizes[path] = member.size
                    total += member.size
                folders.update(path.parents)
                if (path in sizes and path in folders) or any(parent in sizes for parent in path.parents):
                    raise UnsafeArchive(f"{archive.name}: {member.name} is both a file and a folder")
                _check_total(archive, total, packed, limits)
                visit(path, member, linked)
    except (*_DAMAGE, ValueError) as error:
        raise VerificationError(f"{archive.name} is damaged or no archive ({error})") from error
    except OSError as error:
        if error.errno is not None:  # the disk's, not the archive's: gzip and bz2 raise OSErrors of their own
            raise
        raise VerificationError(f"{archive.name} is damaged or no archive ({error})") from error
    return Contents(len(sizes), total)


def _check_total(archive: Path, total: int, packed: int, limits: ArchiveLimits) -> None:
    if total > limits.total or (total > limits.harmless and total > limits.ratio * packed):
        raise UnsafeArchive(
            f"{archive.name} ({human(packed)}) unpacks to {human(total)} or more: a decompression bomb, or no data "
            "set that this table knows"
        )


def _safe_path(archive: Path, name: str) -> PurePosixPath:
    """The member's path inside the folder; refused if anything about it is unusual."""
    path = PurePosixPath(name)
    if (
        not name
        or path.is_absolute()
        or ".." in path.parts
        or re.search(r"[\x00-\x1f\x7f\\]", name)  # a backslash separates folders on Windows
        or re.match(r"[A-Za-z]:", name)
    ):
        raise UnsafeArchive(f"{archive.name}: the member {name!r} would land outside its folder or has no plain name")
    return path


def _linked(archive: Path, member: _Member, sizes: dict[PurePosixPath, int]) -> PurePosixPath:
    target = PurePosixPath(posixpath.normpath(member.target))
    if target not in sizes:
        raise UnsafeArchive(f"{archive.name}: {member.name} links to {member.target!r}, no earlier file of the archive")
    return target


@contextlib.contextmanager
def _open(archive: Path) -> Iterator[Iterator[_Member]]:
    """Members of a zip or tar archive, told apart by their first bytes, whatever the name says."""
    with archive.open("rb") as file:
        magic = file.read(6)
        file.seek(0)
        if magic[:2] == b"PK":
            with zipfile.ZipFile(file) as zipped:
                yield _zip_members(zipped)
            return
        if magic[:2] == b"\x1f\x8b":
            stream: BinaryIO = gzip.GzipFile(fileobj=file)  # type: ignore[assignment]
        elif magic[:3] == b"BZh":
            stream = bz2.BZ2File(file)
        elif magic == b"\xfd7zXZ\x00":
            stream = lzma.LZMAFile(file)  # noqa: SIM115 - closed below
        else:
            stream = file
        with stream:
            yield _tar_members(archive, _Watched(stream))


def _zip_members(zipped: zipfile.ZipFile) -> Iterator[_Member]:
    kinds = {0: "file", stat.S_IFREG: "file", stat.S_IFDIR: "folder", stat.S_IFLNK: "symbolic link"}
    for info in zipped.infolist():
        kind = "folder" if info.is_dir() else kinds.get(stat.S_IFMT(info.external_attr >> 16), "device")
        if info.flag_bits & 1:
            kind = "file behind a password"

        def opened(info: zipfile.ZipInfo = info) -> BinaryIO:
            return zipped.open(info)  # type: ignore[return-value]

        yield _Member(info.filename, kind, info.file_size, opened)


def _tar_members(archive: Path, stream: _Watched) -> Iterator[_Member]:
    with tarfile.open(fileobj=stream, mode="r:") as tar:  # type: ignore[call-overload]
        for info in tar:
            target = ""
            if info.issparse():
                kind = "sparse file"
            elif info.isdir():
                kind = "folder"
            elif info.isreg():
                kind = "file"
            elif info.islnk():
                kind, target = "link", info.linkname
            elif info.issym():
                kind, target = "link", posixpath.join(posixpath.dirname(info.name), info.linkname)
            else:
                kind = "device or of another special kind"

            def opened(info: tarfile.TarInfo = info) -> BinaryIO | None:
                return tar.extractfile(info)  # type: ignore[return-value]

            yield _Member(info.name, kind, info.size, opened, target)
    stream.check_end(archive)


class _Watched:
    """What ``tarfile`` reads from: refuses huge headers, and knows whether the archive came to a proper end."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self._last = b""

    def read(self, size: int = -1) -> bytes:
        # Contents are read by the chunk; only an extension header is read at once, however long it says it is.
        if not 0 <= size <= 4 * _CHUNK:
            raise UnsafeArchive(f"a header of the archive wants {human(size)} at once")
        data = self._raw.read(size)
        if size == _BLOCK:
            self._last = data
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._raw.seek(offset, whence)

    def tell(self) -> int:
        return self._raw.tell()

    def check_end(self, archive: Path) -> None:
        """``tarfile`` takes a damaged header for the end; and only at its end is a compressed stream's sum compared."""
        if self._last.strip(b"\0"):
            raise VerificationError(f"{archive.name} is damaged: a header in the middle of it cannot be read")
        rest = 0
        while chunk := self._raw.read(_CHUNK):
            rest += len(chunk)
            if rest > 64 * _CHUNK:
                raise UnsafeArchive(f"{archive.name} goes on and on behind its end")
