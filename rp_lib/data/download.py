"""Is there room on the disk? Asked before bytes are written, and reported as what it is if it runs out all the same."""

from __future__ import annotations

import bz2
import contextlib
import errno
import gzip
import hashlib
import http.client
import importlib
import io
import json
import lzma
import os
import posixpath
import random
import re
import shutil
import ssl
import stat
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple

from filelock import FileLock, Timeout

from rp_lib._version import __version__
from rp_lib.data.sources import (
    DataSet,
    DownloadError,
    Expected,
    NoSpace,
    NotThere,
    SourceFile,
    UnsafeArchive,
    VerificationError,
    default_root,
    digests,
    load_sources,
    verify_file,
)
from rp_lib.utils.errors import RPLibError

# Left free whatever is downloaded: a system whose disk is full to the last byte cannot even log it.
RESERVE = 64 << 20


def human(n: int | None) -> str:
    """A number of bytes for people, powers of 1000: ``6.1 MB``; None is ``unknown``."""
    if n is None:
        return "unknown"
    value, units = float(n), ["bytes", "kB", "MB", "GB"]
    while value >= 999.95 and len(units) > 1:
        value /= 1000
        units.pop(0)
    return f"{value:.0f} {units[0]}" if units[0] == "bytes" else f"{value:.1f} {units[0]}"


def free_bytes(folder: Path) -> int:
    """Free bytes of the disk that holds ``folder``, which need not exist yet."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def require_space(folder: Path, needed: int, purpose: str) -> None:
    """Raise :class:`NoSpace` unless ``needed`` bytes fit on the disk of ``folder`` and :data:`RESERVE` stays free."""
    free = free_bytes(folder)
    if needed + RESERVE > free:
        raise NoSpace(
            f"{purpose} needs {human(needed)} (and {human(RESERVE)} to spare) in {folder}, where {human(free)} are "
            "free; make room there, or choose another disk with --root"
        )


@contextlib.contextmanager
def reports_full_disk(purpose: str) -> Iterator[None]:
    """Turn a write that found the disk or the quota full into :class:`NoSpace`; other errors pass."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise NoSpace(
            f"the disk is full while {purpose}; make room and run the same command again: it goes on from what is there"
        ) from error


# A file on its way: the bytes so far, and which version of which address they are the beginning of.

@dataclass(frozen=True)
class Entity:
    """One version of a resource (RFC 9110, section 8.8): what must not change between two parts of a download."""

    url: str
    total: int | None
    etag: str | None
    modified: str | None

    @property
    def validator(self) -> str | None:
        """What may stand in ``If-Range``: a strong ETag, else Last-Modified; a weak ETag may not."""
        if self.etag and not self.etag.startswith("W/"):
            return self.etag
        return self.modified

    def continues(self, earlier: Entity) -> bool:
        """Whether this answer may go on with the bytes of ``earlier``: no fact that both know differs."""
        pairs = [(self.total, earlier.total)]
        if self.url == earlier.url:  # mirrors have validators of their own
            pairs += [(self.etag, earlier.etag), (self.modified, earlier.modified)]
        return all(a == b for a, b in pairs if a is not None and b is not None)


class Partial:
    """``FILE.partial`` and ``FILE.partial.json``, beside the target ``FILE``.

    The description is written before the first byte and removed before bytes of another version are, so
    at whatever moment the process dies, what is there is a true beginning or is seen not to be one.
    """

    def __init__(self, target: Path) -> None:
        self.path = target.with_name(target.name + ".partial")
        self._about = target.with_name(target.name + ".partial.json")

    @property
    def size(self) -> int:
        """Bytes so far."""
        return self.path.stat().st_size if self.path.is_file() else 0

    def entity(self) -> Entity | None:
        """What the bytes are a part of; None if that is not known."""
        try:
            return Entity(**json.loads(self._about.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def begin(self, entity: Entity) -> None:
        """Forget what there was and start an empty file for ``entity``."""
        self.discard()
        write_json(self._about, asdict(entity))
        self.path.touch()

    def discard(self) -> None:
        """Remove both files."""
        self._about.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)

    def finish(self, target: Path) -> None:
        """Give the whole and verified file its name."""
        self.path.replace(target)
        self._about.unlink(missing_ok=True)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write JSON under a temporary name and rename it when the disk has it."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with partial.open("w", encoding="utf-8") as file:
            json.dump(value, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


# Fetch one file over http(s), from whichever of its addresses works, and go on where an earlier try stopped.
#
# Python's own ``urllib`` carries it: it honours the proxies and certificates of the environment and is
# there on every machine. What it lacks is here: going on (RFC 9110, section 14), trying again, and giving
# up on a server that answers but does not deliver.

_TRANSFER = 256 << 10
# Worth another try: request timeout, too early, too many requests, and a server's own troubles.
_PASSING = {408, 425, 429, 500, 502, 503, 504}


@dataclass(frozen=True)
class Limits:
    """Patience with a server.

    Attributes:
        timeout: seconds without a connection or a byte after which a try is given up.
        window, min_rate: a try is given up if over ``window`` seconds fewer bytes a second than ``min_rate`` come.
        attempts: tries in a row that may fail per address; one that brought ``worthwhile`` bytes does not count.
        backoff: seconds before the second try; doubled for each further one, at most ``max_backoff``.
    """

    timeout: float = 30.0
    window: float = 60.0
    min_rate: int = 1024
    attempts: int = 5
    worthwhile: int = 1 << 20
    backoff: float = 1.0
    max_backoff: float = 60.0


class _Retry(Exception):
    """This try failed, another may succeed; ``wait`` is the server's wish in seconds."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


class _GiveUp(Exception):
    """This address will not do."""


@dataclass(frozen=True)
class Job:
    """One file to fetch.

    Attributes:
        target: where it goes once it is whole and verified.
        size: its published size in bytes, if any.
        hashed: whether ``verify`` compares with a hash known beforehand, so that parts of two mirrors may be joined.
        verify: raises :class:`VerificationError` for wrong bytes.
        reserve: called with the bytes still to come before they do; raises ``NoSpace``.
        on_bytes: called with the bytes so far and in all (None: not known).
    """

    urls: Sequence[str]
    target: Path
    size: int | None
    hashed: bool
    verify: Callable[[Path], object]
    reserve: Callable[[int], None]
    say: Callable[[str], None] = lambda text: None
    on_bytes: Callable[[int, int | None], None] = lambda done, total: None


def fetch(job: Job, limits: Limits | None = None) -> str:
    """Fetch ``job.target`` unless it is there; returns the address it came from ("" if it was there).

    A stop at any moment (Ctrl-C, kill, a full disk) leaves a beginning that the next call goes on with.

    Raises:
        DownloadError: no address gave the whole file.
        VerificationError: an address gave other bytes than published, and no other helped.
        NoSpace: the disk is full or would be.
    """
    limits = limits or Limits()
    if job.target.is_file():
        try:
            job.verify(job.target)
            return ""
        except VerificationError as error:
            job.say(f"{job.target} is refused and fetched anew: {error}")
            job.target.unlink()
    job.target.parent.mkdir(parents=True, exist_ok=True)
    failure: type[DownloadError | VerificationError] = DownloadError
    reasons = []
    for url in job.urls:
        try:
            _fetch_from(url, job, limits)
            return url
        except _GiveUp as error:
            reasons.append(f"{url}: {error}")
        except VerificationError as error:
            failure = VerificationError
            reasons.append(f"{url}: refused, {error}")
        job.say(reasons[-1])
    raise failure(
        f"{job.target.name} could not be fetched:\n  " + "\n  ".join(reasons) + "\nTry again later, name another "
        f"server with --mirror, or put the file there yourself: {job.target}"
    )


def _fetch_from(url: str, job: Job, limits: Limits) -> None:
    """All of the file from one address, in as many tries as it takes and ``limits`` grant."""
    partial = Partial(job.target)
    anew = False
    while True:
        joined = _receive_whole(url, job, partial, limits)
        try:
            job.verify(partial.path)
        except VerificationError:
            partial.discard()
            if not joined or anew:
                raise
            # The parts may not belong together (a mirror of another version, an earlier crash): once more in one go.
            job.say(f"{job.target.name}: the joined parts are not the published file; fetching it in one go")
            anew = True
            continue
        partial.finish(job.target)
        return


def _receive_whole(url: str, job: Job, partial: Partial, limits: Limits) -> bool:
    """Receive until all bytes are there; returns whether they came in more than one part."""
    failed, joined = 0, partial.size > 0
    while True:
        before = partial.size
        try:
            _receive(url, job, partial, limits)
            return joined
        except _Retry as error:
            gained = partial.size - before
            failed = 0 if gained >= limits.worthwhile else failed + 1
            joined = partial.size > 0
            if failed >= limits.attempts:
                raise _GiveUp(f"{error} (in {limits.attempts} tries)") from error
            pause = min(limits.backoff * 2 ** max(failed - 1, 0), limits.max_backoff)
            # Spread out, so that many clients that one failure threw off do not come back all at once.
            pause *= random.uniform(0.75, 1.25)
            if error.wait is not None:
                pause = min(error.wait, limits.max_backoff)
            job.say(f"{job.target.name}: {error}; going on in {pause:.0f} s")
            time.sleep(pause)


def _receive(url: str, job: Job, partial: Partial, limits: Limits) -> None:
    """One request, and its answer appended to ``partial``."""
    known = partial.entity()
    have = partial.size if known and _may_go_on(known, url, job.hashed) else 0
    if known and have and have == known.total:
        return
    headers = {"User-Agent": f"rp_lib/{__version__}", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if known and known.url == url and known.validator:
            headers["If-Range"] = known.validator  # another version is sent whole instead of its second half
    with _open(urllib.request.Request(url, headers=headers), partial, limits) as response:
        start, entity = _answer(url, response)
        if start and not (known and start == have and entity.continues(known)):
            partial.discard()
            raise _Retry("the file changed on the server; starting afresh", wait=0)
        if job.size is not None and entity.total not in (None, job.size):
            raise VerificationError(f"the server offers {entity.total:,} bytes instead of {job.size:,}")
        have = start
        total = entity.total if entity.total is not None else job.size
        job.reserve(max((total or 0) - have, 0))
        with reports_full_disk(f"saving {job.target.name}"):
            if not start:
                partial.begin(entity)
            with partial.path.open("ab") as file:
                have = _append(response, file, have, total, job, limits)
        if job.size is not None and have > job.size:
            partial.discard()
            raise VerificationError(f"the server sends more than the published {job.size:,} bytes")
    if total is not None and have != total:
        raise _Retry(f"the server cut off after {human(have)} of {human(total)}")


def _may_go_on(known: Entity, url: str, hashed: bool) -> bool:
    # Without a validator or a hash, nothing would tell that the second half is of another version.
    return hashed or (known.url == url and known.validator is not None)


def _open(request: urllib.request.Request, partial: Partial, limits: Limits) -> http.client.HTTPResponse:
    try:
        return urllib.request.urlopen(request, timeout=limits.timeout)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:
            partial.discard()
            raise _Retry("the server has no more bytes than we; starting afresh", wait=0) from error
        if error.code not in _PASSING:
            raise _GiveUp(f"HTTP {error.code} {error.reason}") from error
        wait = error.headers.get("Retry-After", "")
        raise _Retry(f"HTTP {error.code} {error.reason}", float(wait) if wait.isdecimal() else None) from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise _GiveUp(f"its certificate is not valid here ({reason.verify_message})") from error
        raise _Retry(f"no connection ({str(reason) or type(reason).__name__})") from error


def _answer(url: str, response: http.client.HTTPResponse) -> tuple[int, Entity]:
    """Offset of the first byte that is sent, and what it is a part of."""
    etag, modified = response.headers.get("ETag"), response.headers.get("Last-Modified")
    if response.status == 200:
        length = response.headers.get("Content-Length", "")
        return 0, Entity(url, int(length) if length.isdecimal() else None, etag, modified)
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", "").strip())
    if response.status != 206 or not match:
        raise _Retry(f"an answer that makes no sense (HTTP {response.status})")
    total = None if match[2] == "*" else int(match[2])
    return int(match[1]), Entity(url, total, etag, modified)


def _append(
    response: http.client.HTTPResponse, file: BinaryIO, have: int, total: int | None, job: Job, limits: Limits
) -> int:
    """Copy the body to ``file``; returns the bytes there are then, whether or not the body came to its end."""
    since, lately = time.monotonic(), 0
    unasked = 0
    while True:
        try:
            # read1 returns what has come; read would wait for a full chunk, however slow the server is.
            chunk = response.read1(_TRANSFER)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise _Retry(f"the connection broke after {human(have)} ({str(error) or type(error).__name__})") from error
        if not chunk:
            return have
        file.write(chunk)
        have += len(chunk)
        if job.size is not None and have > job.size:
            return have
        if total is None and (unasked := unasked + len(chunk)) >= 64 << 20:
            job.reserve(0)  # nobody said how much is to come
            unasked = 0
        job.on_bytes(have, total)
        lately += len(chunk)
        if (elapsed := time.monotonic() - since) >= limits.window:
            if lately < limits.min_rate * elapsed:
                raise _Retry(f"the server sends only {human(int(lately / elapsed))} a second")
            since, lately = time.monotonic(), 0


# Unpack zip and tar archives that nobody has to trust.
#
# An archive is walked through once before a byte of it is written, so that what is wrong with it, and how
# much room it takes, is known beforehand. Only plain files and folders are made, with the names checked
# here. A link is never made: one that names an earlier file of the same archive becomes a copy of it, every
# other one is refused (``tarfile``'s own filters make links, and could be led astray by chains of them before
# Python 3.11.13: CVE-2025-4517).

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
        with _open_archive(archive) as members:
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
def _open_archive(archive: Path) -> Iterator[Iterator[_Member]]:
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


# Finished folders: the note in each that says what it holds, and whether it still does.

NOTE = ".rp-data.json"
IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".webp", ".tif", ".tiff")


@dataclass(frozen=True)
class Note:
    """What ``.rp-data.json`` in ``ROOT/NAME`` says. It comes with the folder's rename, so it means: whole.

    Attributes:
        folder: where a folder of the reader's own is, seen from ``ROOT/NAME``; None for a downloaded one.
        sources: of every downloaded file its name, address, size and SHA-256.
        files: size and SHA-256 of every file by path (downloaded data only).
        count, bytes: of all files.
    """

    name: str
    count: int
    bytes: int
    made: str
    folder: str | None = None
    sources: tuple[Mapping[str, Any], ...] = ()
    files: Mapping[str, tuple[int, str]] = field(default_factory=dict)

    def place(self, home: Path) -> Path:
        """Where the data is, given the folder that this note is in."""
        return home / self.folder if self.folder else home  # an absolute folder stays what it is

    def write(self, home: Path) -> None:
        """Write it into ``home``, atomically."""
        write_json(home / NOTE, asdict(self))


def read_note(home: Path) -> Note | None:
    """The note in a folder, None if there is none.

    Raises:
        VerificationError: there is one that cannot be read.
    """
    try:
        raw = json.loads((home / NOTE).read_text(encoding="utf-8"))
        return Note(
            **{**raw, "sources": tuple(raw["sources"]), "files": {k: (n, sha) for k, (n, sha) in raw["files"].items()}}
        )
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise VerificationError(f"{home / NOTE} cannot be read ({error}); delete {home} and download again") from error


def list_files(folder: Path) -> dict[str, int]:
    """Sizes of all files below ``folder`` by POSIX path, the note aside; folders behind links are followed once."""
    sizes: dict[str, int] = {}
    seen: set[tuple[int, int]] = set()
    for at, folders, files in os.walk(folder, followlinks=True):
        here = Path(at)
        identity = here.stat()
        if (identity.st_dev, identity.st_ino) in seen:
            folders.clear()
            continue
        seen.add((identity.st_dev, identity.st_ino))
        folders.sort()
        for name in files:
            path = here / name
            if path.is_file():
                sizes[path.relative_to(folder).as_posix()] = path.stat().st_size
    sizes.pop(NOTE, None)
    return sizes


def check_expected(folder: Path, expected: Expected, files: Mapping[str, int]) -> None:
    """Compare a folder with what the table says of it.

    Raises:
        VerificationError: something is missing, of another number, or of another content.
    """
    for path in expected.paths:
        if not (folder / path).exists():
            raise VerificationError(f"{path} is missing in {folder}")
    images = [PurePosixPath(p) for p in files if _is_image(p)]
    if expected.images is not None and len(images) != expected.images:
        raise VerificationError(f"{folder} holds {len(images):,} images instead of {expected.images:,}")
    for top, number in expected.class_folders.items():
        classes = {p.parent for p in images if p.is_relative_to(top)}
        if len(classes) != number:
            raise VerificationError(
                f"{folder / top} holds {len(classes):,} folders of images instead of {number:,} (one for each class)"
            )
    for path, md5 in expected.md5.items():
        if (folder / path).is_file() and (found := digests(folder / path, ["md5"])["md5"]) != md5:
            raise VerificationError(f"{folder / path}: md5 is {found} instead of {md5}")


def check_note(home: Path, note: Note, *, contents: bool) -> None:
    """Compare a folder with its note: names and sizes, and with ``contents`` the hash of every file as well.

    Raises:
        VerificationError: the message names the first files that differ.
    """
    folder = note.place(home)
    if not folder.is_dir():
        raise VerificationError(f"{folder} is gone; point to where it is now: --folder {note.name}=FOLDER")
    found = list_files(folder)
    if note.folder:
        if (len(found), sum(found.values())) != (note.count, note.bytes):
            raise VerificationError(
                f"{folder} holds {len(found):,} files of {sum(found.values()):,} bytes instead of {note.count:,} of "
                f"{note.bytes:,}; if that is meant: --folder {note.name}={folder}"
            )
        return
    wrong = [f"{p} is missing" for p in note.files if p not in found]
    wrong += [f"{p} was not there" for p in found if p not in note.files and _is_image(p)]
    wrong += [f"{p} has another size" for p, (size, _) in note.files.items() if found.get(p, size) != size]
    if contents and not wrong:
        for path, (_, sha256) in note.files.items():
            if digests(home / path, ["sha256"])["sha256"] != sha256:
                wrong.append(f"{path} has another content")
    if wrong:
        more = f" and {len(wrong) - 3:,} more" if len(wrong) > 3 else ""
        raise VerificationError(f"{home} is not as it was: {'; '.join(wrong[:3])}{more}; delete it and download again")


def _is_image(path: str) -> bool:
    name = PurePosixPath(path).name
    return name.lower().endswith(IMAGES) and not name.startswith(".")


# Ask torchvision or pytorch-ood whether they find a data set where we have put it.
#
# Their classes know the file's address, its MD5 and the layout on disk (a test compares ``sources.json`` with
# them), but their downloaders neither go on after a break nor time out, and unpack whatever an archive holds. So
# the bytes come by way of ``transport`` and ``archives``, and the class then has the last word.

def confirm(folder: Path, library: str, options: Mapping[str, Any]) -> bool:
    """Open ``folder`` with a data set class, offline; False if the library (or what it reads with) is not installed.

    Args:
        library: dotted name, such as ``torchvision.datasets.CIFAR10``. Imported here and not before.

    Raises:
        VerificationError: the class does not find its data, or not the data it knows.
    """
    module, _, name = library.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module), name)
        cls(str(folder), download=False, **options)
    except ImportError:
        return False
    except Exception as error:  # each class has its own ways to say that files are missing or damaged
        raise VerificationError(f"{library} does not accept what was downloaded: {error}") from error
    return True


# Files whose publisher gives no hash: trusted the first time, compared with that ever after.

class FirstUse:
    """The SHA-256 digests of one data set's files as they were first seen, in a small JSON file.

    It outlives the data: who deletes a folder and downloads it again gets the same bytes or is told.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def hashes(self, file: SourceFile) -> Mapping[str, str]:
        """What the file must have: the published digests, else the one that was seen; empty at the first download.

        Raises:
            VerificationError: the record cannot be read.
        """
        if file.hashes:
            return file.hashes
        try:
            sha256 = json.loads(self.path.read_text(encoding="utf-8")).get(file.name)
        except FileNotFoundError:
            return {}
        except (ValueError, AttributeError) as error:
            raise VerificationError(f"{self.path} cannot be read ({error}); delete it to trust anew") from error
        return {"sha256": sha256} if sha256 else {}

    def verify(self, path: Path, file: SourceFile) -> str:
        """Compare ``path`` with what is known of ``file``; returns its SHA-256.

        Raises:
            VerificationError: it differs.
        """
        hashes = self.hashes(file)
        try:
            return verify_file(path, file.size, hashes)
        except VerificationError as error:
            if file.hashes or not hashes:
                raise
            raise VerificationError(
                f"not what it was at the first download: {error}; if the source changed for good and you trust it, "
                f"delete {self.path}"
            ) from error

    def record(self, seen: Mapping[str, str]) -> None:
        """Remember SHA-256 digests by file name, beside those there are."""
        if seen:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            before = json.loads(self.path.read_text(encoding="utf-8")) if self.path.is_file() else {}
            write_json(self.path, {**before, **seen})


# From verified files to a finished folder: unpack aside, look it over, and only then give it its name.

_CLUSTER = 4096  # what even the smallest file takes on most disks


@dataclass(frozen=True)
class Fetched:
    """A file that was downloaded and verified; ``contents`` is None unless it is an archive."""

    file: SourceFile
    path: Path
    url: str
    sha256: str
    contents: Contents | None


def assemble(
    data: DataSet,
    fetched: Sequence[Fetched],
    aside: Path,
    home: Path,
    limits: ArchiveLimits,
    say: Callable[[str], None],
    accepted: Callable[[], None],
) -> None:
    """Build the data set in ``aside`` and rename that to ``home``; on any failure ``aside`` is removed.

    Args:
        accepted: called when everything is in order, right before the rename.

    Raises:
        VerificationError, UnsafeArchive: an archive is damaged or does not hold that data set.
        NoSpace: there is no room to unpack.
    """
    needed = sum(f.contents.bytes + f.contents.files * _CLUSTER for f in fetched if f.contents)
    require_space(aside.parent, needed, f"unpacking {data.name}")
    shutil.rmtree(aside, ignore_errors=True)  # of a process that died
    try:
        with reports_full_disk(f"unpacking {data.name}"):
            aside.mkdir(parents=True)
            files = {}
            for item in fetched:
                files.update(_place(item, aside, limits, say))
            check_expected(aside, data.expected, {path: size for path, (size, _) in files.items()})
            if data.library and not confirm(aside, data.library, data.options):
                say(f"{data.library} or what it reads with is not installed here: not asked")
            sources = tuple(
                {"file": f.file.name, "url": f.url, "size": f.path.stat().st_size, "sha256": f.sha256} for f in fetched
            )
            total = sum(size for size, _ in files.values())
            Note(data.name, len(files), total, now(), None, sources, files).write(aside)
            accepted()
        if home.is_dir():
            home.rmdir()  # an empty one: the caller has looked
        aside.rename(home)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def now() -> str:
    """The time, as a note gives it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _place(item: Fetched, aside: Path, limits: ArchiveLimits, say: Callable[[str], None]) -> dict:
    """Unpack or put one file into the folder; returns size and SHA-256 of what that added, by path."""
    placed = {}
    if item.contents and item.file.unpack is not None:
        say(f"unpacking {item.file.name} ({item.contents.files:,} files)")
        within = PurePosixPath(item.file.unpack)
        unpacked = unpack(item.path, aside / within, limits)
        placed = {str(within / path): record for path, record in unpacked.items()}
    if item.file.keep or item.file.unpack is None:
        # A second name, not a move: should the rest fail, the download is still where it was.
        try:
            os.link(item.path, aside / item.file.name)
        except OSError:
            shutil.copyfile(item.path, aside / item.file.name)
        placed[item.file.name] = (item.path.stat().st_size, item.sha256)
    return placed


# One folder of data sets: ``ROOT/NAME`` is whole and verified, or is not there.
#
# Everything on its way is in ``ROOT/.rp-data``, on the same disk, so that a rename is all it takes to finish::
#
#     ROOT/NAME/                   a finished data set, with its note .rp-data.json
#     ROOT/.rp-data/incoming/NAME  downloads; FILE.partial until they are whole and verified
#     ROOT/.rp-data/unpacking/NAME what is being unpacked; the next run throws it away if this one dies
#     ROOT/.rp-data/seen/NAME.json SHA-256 of files without a published hash, as they were the first time
#     ROOT/.rp-data/locks/NAME     held by the process at work on NAME; the system frees it when that ends, however

# Unpacked over packed bytes, as long as the archive cannot be asked: images hardly compress.
_UNPACKED = 1.5


class State(NamedTuple):
    """``kind`` is there, damaged (its note), foreign (not from here), begun or absent; ``text`` is for people."""

    kind: str
    text: str


class DataStore:
    """Download, check and find data sets below ``root``.

    Args:
        root: the folder; made when something is downloaded.
        mirrors: addresses of servers that hold ``NAME/FILE``, tried before the table's own and verified the same.
        limits, archive_limits: patience with servers, and what is still no decompression bomb.
        say: receives one line for each step.
        on_bytes: receives file name, bytes so far and in all (None: not known), for a progress bar.
    """

    def __init__(
        self,
        root: Path,
        *,
        mirrors: Sequence[str] = (),
        limits: Limits | None = None,
        archive_limits: ArchiveLimits | None = None,
        say: Callable[[str], None] = lambda text: None,
        on_bytes: Callable[[str, int, int | None], None] = lambda name, done, total: None,
    ) -> None:
        self.root = root
        self.mirrors = tuple(mirror.rstrip("/") for mirror in mirrors)
        self.limits = limits or Limits()
        self.archive_limits = archive_limits or ArchiveLimits()
        self.say = say
        self.on_bytes = on_bytes

    def home(self, data: DataSet) -> Path:
        """``ROOT/NAME``."""
        return self.root / data.name

    def incoming(self, data: DataSet) -> Path:
        """Where its downloads are until they are put in place; a file got by other means may be put there."""
        return self._work("incoming", data.name)

    def urls(self, data: DataSet, file: SourceFile) -> list[str]:
        """Every address of a file, in the order they are tried."""
        return [f"{mirror}/{data.name}/{file.name}" for mirror in self.mirrors] + list(file.urls)

    def remedy(self, data: DataSet) -> str:
        """How to get it."""
        if data.by_hand:
            return (
                f"{data.by_hand}, see {data.homepage}; then rp-lib data --root {self.root} --folder {data.name}=FOLDER"
            )
        return f"rp-lib data --root {self.root} {data.name}"

    def state(self, data: DataSet) -> State:
        """What is there, without looking at contents."""
        home = self.home(data)
        try:
            note = read_note(home)
        except VerificationError:
            return State("damaged", "damaged")
        if note:
            return State("there", f"there: {note.place(home)}" if note.folder else f"there, {human(note.bytes)}")
        if _holds_anything(home):
            return State("foreign", "a folder that was not downloaded")
        begun = self._begun(data)
        return State("begun", f"begun, {human(begun)}") if begun else State("absent", "-")

    def locate(self, data: DataSet) -> Path:
        """The folder of a finished data set.

        Raises:
            NotThere: it has not been downloaded; the message says how to get it.
        """
        return self._note(data).place(self.home(data))

    def check(self, data: DataSet) -> Note:
        """Verify a finished data set down to the bytes (a reader's own folder: numbers of files and classes).

        Raises:
            NotThere: it is not there.
            VerificationError: it is not what it was.
        """
        note, home = self._note(data), self.home(data)
        check_note(home, note, contents=True)
        check_expected(note.place(home), data.expected, list_files(note.place(home)))
        return note

    def adopt(self, data: DataSet, folder: Path) -> Path:
        """Use a folder that is there already: see whether it is that data set, and note where it is.

        Raises:
            VerificationError: it does not look like that data set.
            RPLibError: it is no folder, or ``ROOT/NAME`` holds something else.
        """
        folder, home = folder.expanduser().resolve(), self.home(data)
        if not folder.is_dir():
            raise RPLibError(f"{folder} is no folder; give the one that holds {data.title}")
        with self._lock(data):
            note, same = read_note(home), folder == home.resolve()
            if note and not note.folder and same:
                return folder
            if not same and (_holds_anything(home) if note is None else not note.folder):
                raise RPLibError(f"{home} holds data already; move it away to use {folder} instead")
            files = list_files(folder)
            plain = [f for f in data.files if f.unpack is None]
            if not files or (missing := [f.name for f in plain if f.name not in files]):
                raise VerificationError(f"{folder} does not hold {', '.join(missing) if files else 'a single file'}")
            for file in plain:
                self._first_use(data).verify(folder / file.name, file)
            check_expected(folder, data.expected, files)
            home.mkdir(parents=True, exist_ok=True)
            Note(data.name, len(files), sum(files.values()), now(), "." if same else str(folder)).write(home)
        return folder

    def download(self, data: DataSet) -> Path:
        """Make ``ROOT/NAME`` whole, going on with what an earlier call began; returns the folder.

        Raises:
            NotThere: it can only be fetched by hand.
            DownloadError, VerificationError, NoSpace: what was downloaded before is kept, unless it is wrong.
            RPLibError: ``ROOT/NAME`` holds something that was not downloaded.
        """
        home = self.home(data)
        with self._lock(data):
            if note := read_note(home):
                check_note(home, note, contents=False)
                shutil.rmtree(self.incoming(data), ignore_errors=True)  # of a process that died just before this line
                return note.place(home)
            if _holds_anything(home):
                raise RPLibError(
                    f"{home} is there but was not downloaded by this command: use it as it is with "
                    f"--folder {data.name}={home}, or move it away"
                )
            if data.by_hand:
                raise NotThere(f"{data.name} has no free download: {self.remedy(data)}")
            require_space(self.root, (data.size or 0) - self._begun(data), f"downloading {data.name}")
            self._assemble(data, [self._fetch(data, file) for file in data.files])
            shutil.rmtree(self.incoming(data), ignore_errors=True)
        return home

    def _fetch(self, data: DataSet, file: SourceFile) -> Fetched:
        first_use, target = self._first_use(data), self.incoming(data) / file.name
        found: list[tuple[str, Contents | None]] = []

        def verify(path: Path) -> None:
            sha256 = first_use.verify(path, file)
            found.append((sha256, inspect(path, self.archive_limits) if file.unpack is not None else None))

        def reserve(coming: int) -> None:
            unpacked = coming * _UNPACKED if file.unpack is not None else 0
            require_space(target.parent, int(coming + unpacked), f"downloading and unpacking {file.name}")

        if not target.is_file():
            self.say(f"{data.name}: fetching {file.name}, {human(file.size)}")
        job = Job(
            urls=self.urls(data, file),
            target=target,
            size=file.size,
            hashed=bool(first_use.hashes(file)),
            verify=verify,
            reserve=reserve,
            say=lambda text: self.say(f"{data.name}: {text}"),
            on_bytes=lambda done, total: self.on_bytes(file.name, done, total),
        )
        url = fetch(job, self.limits)
        return Fetched(file, target, url, *found[-1])

    def _assemble(self, data: DataSet, fetched: Sequence[Fetched]) -> None:
        unpublished = [f for f in fetched if not f.file.hashes]

        def accepted() -> None:
            self._first_use(data).record({f.file.name: f.sha256 for f in unpublished})

        try:
            assemble(
                data, fetched, self._work("unpacking", data.name), self.home(data), self.archive_limits,
                lambda text: self.say(f"{data.name}: {text}"), accepted,
            )  # fmt: skip
        except VerificationError:
            for item in unpublished:  # nothing but the failed look vouched for them
                item.path.unlink(missing_ok=True)
            raise

    def _note(self, data: DataSet) -> Note:
        note = read_note(self.home(data))
        if note is None:
            raise NotThere(f"{data.name} is not in {self.root}: {self.remedy(data)}")
        return note

    def _work(self, *parts: str) -> Path:
        return self.root.joinpath(".rp-data", *parts)

    def _first_use(self, data: DataSet) -> FirstUse:
        return FirstUse(self._work("seen", f"{data.name}.json"))

    def _begun(self, data: DataSet) -> int:
        names = [name for f in data.files for name in (f.name, f"{f.name}.partial")]
        paths = [self.incoming(data) / name for name in names]
        return sum(path.stat().st_size for path in paths if path.is_file())

    @contextlib.contextmanager
    def _lock(self, data: DataSet) -> Iterator[None]:
        path = self._work("locks", data.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            self.say(f"{data.name}: another process is at work on it; waiting until it is done")
            lock.acquire(poll_interval=0.1)
        try:
            yield
        finally:
            lock.release()


def _holds_anything(folder: Path) -> bool:
    return folder.exists() and (not folder.is_dir() or any(folder.iterdir()))


def locate(name: str, root: Path | None = None) -> Path:
    """The folder of a data set that was downloaded or pointed to.

    Raises:
        UnknownName: no such data set.
        NotThere: it is not there yet; the message says how to get it.
    """
    return DataStore(root or default_root()).locate(load_sources()[name])
