"""Download data sets: fetch, verify, unpack next to the target, and only then give the folder its name.

``ROOT/NAME`` is complete and verified, or is not there. All that is on its way is in ``ROOT/.rp-data``, on the same
disk, so that a rename finishes it::

    ROOT/NAME/                   a finished data set, with its note .rp-data.json
    ROOT/.rp-data/incoming/NAME  downloads; FILE.partial until they are complete and verified
    ROOT/.rp-data/unpacking/NAME what is being unpacked; the next run removes what a dead one left
    ROOT/.rp-data/seen/NAME.json SHA-256 of files without a published hash, as they were the first time
    ROOT/.rp-data/locks/NAME     held by the process at work on NAME; the system frees it when that ends, however
"""

from __future__ import annotations

import contextlib
import errno
import json
import lzma
import math
import os
import random
import re
import shutil
import subprocess
import tarfile
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

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
    digest,
    verify_file,
)
from rp_lib.utils.errors import MissingDependency, RPLibError

RESERVE = 64 << 20  # bytes left free: a system whose disk is full to the last byte cannot even log it
NOTE = ".rp-data.json"
IMAGES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # of torchvision's ImageFolder
_BLOCK = 1 << 20
_PASSING = {408, 425, 429, 500, 502, 503, 504}  # worth another try: timeouts, too many requests, a server's troubles
_FINAL = {1, 3, 35, 47, 51, 58, 60, 77, 83, 90, 91}  # curl's codes for addresses and certificates that stay wrong
_NO_RANGES = 33  # curl's code for a server that cannot go on in the middle
_UNPACKED = 1.5  # unpacked over packed bytes: images hardly compress
_RATIO, _HARMLESS = 100, 64 << 20  # beyond that it is a decompression bomb
_DAMAGE = (tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, ValueError)


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
    return shutil.disk_usage(next(path for path in (folder, *folder.absolute().parents) if path.exists())).free


def require_space(folder: Path, needed: float, what_needs: str, remedy: str) -> None:
    """Raise :class:`NoSpace` unless ``needed`` bytes fit on the disk of ``folder`` and :data:`RESERVE` stays free."""
    if needed + RESERVE > (free := free_bytes(folder)):
        raise NoSpace(
            f"{what_needs} {human(int(needed))} (and {human(RESERVE)} to spare) in {folder}, where {human(free)} are "
            f"free; make room there, or {remedy}"
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


@contextlib.contextmanager
def locked(path: Path, say_wait: Callable[[], object]) -> Iterator[None]:
    """Hold a lock file; ``say_wait`` is called if another process holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say_wait()
        lock.acquire(poll_interval=0.1)
    try:
        yield
    finally:
        lock.release()


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


# --- Transfer ---


@dataclass(frozen=True)
class Limits:
    """Patience with a server.

    Attributes:
        timeout: Seconds to wait for a connection, and seconds below ``min_rate`` after which a try is given up.
        min_rate: Bytes a second.
        attempts: Tries in a row that may fail per address; one that brings ``worthwhile`` bytes does not count.
        backoff: Seconds before the second try, doubled for each further one, at most ``max_backoff``.
    """

    timeout: float = 30.0
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


@dataclass
class Transfer:
    """One file on its way: ``TARGET.partial``.

    curl carries the bytes, and sees whether a server goes on where the last try stopped. They come through a pipe, so
    that curl ends when this process is killed.

    Attributes:
        urls: Addresses of the file, tried in order.
        target: Where it goes once it is complete and verified.
        verify: Raises :class:`VerificationError` for wrong bytes.
        size: Its published size in bytes, if any.
        about: Its size for the bar, if ``size`` is not known.
        joins: Whether wrongly joined parts would be noticed, by ``verify`` or by a checksum within the file; if not,
            nothing is continued.
        progress: Show a bar, if standard error is a terminal.
    """

    urls: Sequence[str]
    target: Path
    verify: Callable[[Path], object]
    size: int | None = None
    about: int | None = None
    joins: bool = True
    limits: Limits = Limits()
    say: Callable[[str], None] = lambda text: None
    progress: bool = False

    def __post_init__(self) -> None:
        self.partial = self.target.with_name(self.target.name + ".partial")

    @property
    def have(self) -> int:
        """The number of bytes so far."""
        return self.partial.stat().st_size if self.partial.is_file() else 0

    def run(self) -> str:
        """Fetch the file unless it is there; returns the address it came from ("" if it was there).

        A stop at any moment (Ctrl-C, kill, a full disk) leaves a beginning that the next call goes on with.

        Raises:
            DownloadError: No address gave the complete file.
            VerificationError: An address gave other bytes than published, and no other helped.
            NoSpace: The disk is full or would be.
        """
        if self.target.is_file():
            try:
                self.verify(self.target)
                return ""
            except VerificationError as error:
                self.say(f"{self.target} is refused and fetched again: {error}")
                self.target.unlink()
        if not shutil.which("curl"):
            raise MissingDependency("curl", f"install it, or put the file there yourself: {self.target}")
        self.target.parent.mkdir(parents=True, exist_ok=True)
        failure: type[RPLibError] = DownloadError
        reasons = []
        for url in self.urls:
            try:
                self._fetch(url)
                return url
            except _GiveUp as error:
                reasons.append(f"{url}: {error}")
            except VerificationError as error:
                failure = VerificationError
                reasons.append(f"{url}: refused, {error}")
            self.say(reasons[-1])
        if not self.have:
            self.partial.unlink(missing_ok=True)
        raise failure(
            f"{self.target.name} could not be fetched:\n  " + "\n  ".join(reasons) + "\nTry again later, name another "
            f"server with --mirror, or put the file there yourself: {self.target}"
        )

    def _fetch(self, url: str) -> None:
        """Receive and verify; parts that do not belong together (an earlier crash, say) once more in one go."""
        for last in (False, True):
            joined = self._receive_all(url)
            try:
                self.verify(self.partial)
                break
            except VerificationError:
                self.partial.unlink()
                if not joined or last:
                    raise
                self.say(f"{self.target.name}: the joined parts are not the published file; fetching it in one go")
        self.partial.replace(self.target)

    def _receive_all(self, url: str) -> bool:
        """Receive in as many tries as ``limits`` grant; returns whether the bytes came in more than one part."""
        failed, joined, limits = 0, self.have > 0, self.limits
        while True:
            before = self.have
            try:
                self._receive(url)
                return joined
            except _Retry as error:
                failed = 0 if self.have - before >= limits.worthwhile else failed + 1
                joined = self.have > 0
                if failed >= limits.attempts:
                    raise _GiveUp(f"{error} (in {limits.attempts} tries)") from error
                # Spread out, so that many clients that one failure threw off do not come back all at once.
                pause = min(limits.backoff * 2 ** max(failed - 1, 0), limits.max_backoff) * random.uniform(0.75, 1.25)
                pause = pause if error.wait is None else min(error.wait, limits.max_backoff)
                self.say(f"{self.target.name}: {error}; going on in {pause:.0f} s")
                time.sleep(pause)

    def _receive(self, url: str) -> None:
        """One call of curl, whose bytes are appended to what is there."""
        from tqdm import tqdm

        if not self.joins:
            self.partial.unlink(missing_ok=True)
        done, limits = self.have, self.limits
        if done and done == self.size:
            return
        command = ["curl", "--disable", "--silent", "--show-error", "--fail", "--location", "--globoff"]
        command += ["--proto", "=http,https", "--user-agent", f"rp_lib/{__version__}", "--continue-at", f"{done}"]
        command += ["--connect-timeout", f"{limits.timeout}", "--speed-time", f"{math.ceil(limits.timeout)}"]
        command += ["--speed-limit", f"{limits.min_rate}", "--url", url]
        command += ["--write-out", "%{stderr}\n%{http_code} %header{retry-after}"]
        bar = tqdm(
            total=self.size or self.about, initial=done, unit="B", unit_scale=True, desc=self.target.name,
            disable=None if self.progress else True,
        )  # fmt: skip
        with (
            reports_full_disk(f"saving {self.target.name}"),
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as curl,
            self.partial.open("ab") as file,
            bar,
        ):
            try:
                while chunk := curl.stdout.read1(_BLOCK):  # type: ignore[union-attr]
                    file.write(chunk)
                    done += len(chunk)
                    bar.update(len(chunk))
                    if self.size is not None and done > self.size:
                        curl.kill()
                        break
                said = curl.stderr.read().decode(errors="replace").splitlines()  # type: ignore[union-attr]
            except BaseException:
                curl.kill()
                raise
        if self.size is not None and done > self.size:
            self.partial.unlink()
            raise VerificationError(f"the server sends more than the published {self.size:,} bytes")
        if curl.returncode == 0:
            return
        code, _, wait = (said or [""])[-1].partition(" ")
        status = int(code) if code.isdecimal() else 0
        reason = next((re.sub(r"^curl: \(\d+\) ", "", line) for line in said if line.startswith("curl: ")), "no answer")
        if status == 416 or curl.returncode == _NO_RANGES:
            self.partial.unlink()
            raise _Retry("the server does not go on where the last try stopped; starting afresh", wait=0)
        if status >= 400:
            if status not in _PASSING:
                raise _GiveUp(f"HTTP {status}")
            raise _Retry(f"HTTP {status}", float(wait) if wait.isdecimal() else None)
        if curl.returncode in _FINAL:
            raise _GiveUp(reason)
        raise _Retry(f"the server cut off after {human(done)} ({reason})" if status else f"no connection ({reason})")


# --- Archives that nobody has to trust ---


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a tar archive (plain, gz, bz2 or xz) into ``folder``, with the standard library's ``data`` filter.

    What that filter would mend or let pass is refused here: names that lead elsewhere, links, decompression bombs.

    Raises:
        UnsafeArchive: A member is absolute, has ``..``, is no plain file or folder; or there is too much.
        VerificationError: It is damaged, or no such archive.
        NoSpace: The disk is full.
    """
    packed, total = archive.stat().st_size, 0
    try:
        with reports_full_disk(f"unpacking {archive.name}"), tarfile.open(archive) as tar:
            for member in tar:
                name, path = member.name, PurePosixPath(member.name)
                strange = re.search(r"[\x00-\x1f\x7f\\]|^[A-Za-z]:|^$", name)  # Windows: backslashes and drives
                if strange or path.is_absolute() or ".." in path.parts:
                    raise UnsafeArchive(f"{archive.name}: {name!r} would land outside its folder or has no plain name")
                if not (member.isreg() or member.isdir()):
                    raise UnsafeArchive(f"{archive.name}: {name} is a link or a device; only files are unpacked")
                total += member.size
                if total > max(_HARMLESS, _RATIO * packed):
                    raise UnsafeArchive(
                        f"{archive.name} ({human(packed)}) unpacks to {human(total)} or more: a decompression bomb, or "
                        "no data set that this table knows"
                    )
                tar.extract(member, folder, set_attrs=False, filter="data")
            while tar.fileobj.read(_BLOCK):  # type: ignore[union-attr]
                pass  # only at its end is a compressed stream's sum compared
    except (*_DAMAGE, OSError) as error:
        if getattr(error, "errno", None) is not None:  # the disk's; gzip and bz2 raise OSErrors of their own
            raise
        raise VerificationError(f"{archive.name} is damaged or no archive ({error})") from error


# --- Finished folders ---


@dataclass(frozen=True)
class Note:
    """What ``.rp-data.json`` in ``ROOT/NAME`` says. It comes with the folder's rename, so it means: complete.

    Attributes:
        count: Number of all files.
        bytes: Of all files.
        folder: Where a folder of the reader's own is, seen from ``ROOT/NAME``; None for a downloaded one.
        sources: Of every downloaded file its name, address, size and SHA-256.
        files: Size and SHA-256 of every file by path (downloaded data only).
    """

    name: str
    count: int
    bytes: int
    made: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    folder: str | None = None
    sources: Sequence[Mapping[str, Any]] = ()
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
        VerificationError: There is one that cannot be read.
    """
    try:
        raw = json.loads((home / NOTE).read_text(encoding="utf-8"))
        return Note(**{**raw, "files": {path: (size, sha) for path, (size, sha) in raw["files"].items()}})
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise VerificationError(f"{home / NOTE} cannot be read ({error}); delete {home} and download again") from error


def walk(folder: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """``os.walk`` that follows links, but enters no folder twice: a link to a folder above would never end."""
    seen: set[tuple[int, int]] = set()
    for at, folders, files in os.walk(folder, followlinks=True):
        identity = os.stat(at)  # noqa: PTH116
        if (identity.st_dev, identity.st_ino) in seen:
            folders.clear()
            continue
        seen.add((identity.st_dev, identity.st_ino))
        yield Path(at), folders, files


def list_files(folder: Path) -> dict[str, int]:
    """Sizes of all files below ``folder`` by POSIX path, without the note."""
    paths = [at / name for at, _, files in walk(folder) for name in files if at != folder or name != NOTE]
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths if path.is_file()}


def is_image(path: str) -> bool:
    """Whether a file's name is an image's, and not hidden."""
    name = PurePosixPath(path).name
    return name.lower().endswith(IMAGES) and not name.startswith(".")


def check_expected(folder: Path, expected: Expected, files: Mapping[str, int]) -> None:
    """Raise :class:`VerificationError` if a folder with these ``files`` is not what the table says of it."""
    for path in expected.paths:
        if not (folder / path).exists():
            raise VerificationError(f"{path} is missing in {folder}")
    images = [PurePosixPath(p) for p in files if is_image(p)]
    if expected.images not in (None, len(images)):
        raise VerificationError(f"{folder} holds {len(images):,} images instead of {expected.images:,}")
    for top, number in expected.class_folders.items():
        if (found := len({p.parent for p in images if p.is_relative_to(top)})) != number:
            raise VerificationError(
                f"{folder / top} holds {found:,} folders of images instead of {number:,} (one for each class)"
            )
    for path, md5 in expected.md5.items():
        if (folder / path).is_file() and (value := digest(folder / path, "md5")) != md5:
            raise VerificationError(f"{folder / path}: md5 is {value} instead of {md5}")


def check_note(home: Path, note: Note, *, contents: bool) -> None:
    """Compare a folder with its note: names and sizes, and with ``contents`` the hash of every file as well.

    Raises:
        VerificationError: The message names the first files that differ.
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
    wrong += [f"{p} was not there" for p in found if p not in note.files and is_image(p)]
    wrong += [f"{p} has another size" for p, (size, _) in note.files.items() if found.get(p, size) != size]
    if contents and not wrong:
        wrong = [f"{p} has another content" for p, (_, sha) in note.files.items() if digest(home / p, "sha256") != sha]
    if wrong:
        more = f" and {len(wrong) - 3:,} more" if len(wrong) > 3 else ""
        raise VerificationError(f"{home} is not as it was: {'; '.join(wrong[:3])}{more}; delete it and download again")


class State(NamedTuple):
    """``kind`` is there, damaged (its note), foreign (not from here), begun or absent; ``text`` is for people."""

    kind: str
    text: str


class DataStore:
    """Download, check and find data sets below ``root``.

    Args:
        root: The folder; made when something is downloaded.
        mirrors: Addresses of servers that hold ``NAME/FILE``, tried before the table's own and verified the same.
        limits: Patience with servers.
        say: Receives one line for each step.
        progress: Show a bar for each file, if standard error is a terminal.

    Example:
        >>> DataStore(Path("data")).state(load_sources()["svhn"]).kind  # doctest: +SKIP
        'absent'
    """

    def __init__(
        self,
        root: Path,
        *,
        mirrors: Sequence[str] = (),
        limits: Limits = Limits(),
        say: Callable[[str], None] = lambda text: None,
        progress: bool = False,
    ) -> None:
        self.root, self.limits, self.say, self.progress = root, limits, say, progress
        self.mirrors = tuple(mirror.rstrip("/") for mirror in mirrors)

    def home(self, data: DataSet) -> Path:
        """``ROOT/NAME``."""
        return self.root / data.name

    def incoming(self, data: DataSet) -> Path:
        """Where its downloads are until they are put in place; a file from elsewhere may be put there."""
        return self._work("incoming", data.name)

    def urls(self, data: DataSet, file: SourceFile) -> list[str]:
        """Every address of a file, in the order they are tried."""
        return [f"{mirror}/{data.name}/{file.name}" for mirror in self.mirrors] + list(file.urls)

    def remedy(self, data: DataSet) -> str:
        """How to get it."""
        command = f"rp-lib data --root {self.root}"
        if data.by_hand:
            return f"{data.by_hand}, see {data.homepage}; then {command} --folder {data.name}=FOLDER"
        return f"{command} {data.name}"

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
        """The folder of a finished data set; raises :class:`NotThere`, which says how to get it."""
        return self._note(data).place(self.home(data))

    def check(self, data: DataSet) -> Note:
        """Verify a finished data set down to the bytes (a reader's own folder: numbers of files and classes).

        Raises:
            NotThere: It is not there.
            VerificationError: It is not what it was.
        """
        note, home = self._note(data), self.home(data)
        check_note(home, note, contents=True)
        check_expected(note.place(home), data.expected, list_files(note.place(home)))
        return note

    def adopt(self, data: DataSet, folder: Path) -> Path:
        """Use a folder that is there already: see whether it is that data set, and note where it is.

        Raises:
            VerificationError: It does not look like that data set.
            RPLibError: It is no folder, or ``ROOT/NAME`` holds something else.
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
                self._verify(data, file, folder / file.name)
            check_expected(folder, data.expected, files)
            home.mkdir(parents=True, exist_ok=True)
            Note(data.name, len(files), sum(files.values()), folder="." if same else str(folder)).write(home)
        return folder

    def download(self, data: DataSet) -> Path:
        """Make ``ROOT/NAME`` complete, going on with what an earlier call began; returns the folder.

        Raises:
            NotThere: It can only be fetched by hand.
            DownloadError, VerificationError, NoSpace: What was downloaded before is kept, unless it is wrong.
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
            sizes = [(f.size or f.about or 0) * (1 if f.unpack is None else 1 + _UNPACKED) for f in data.files]
            needed, remedy = sum(sizes) - self._begun(data), "choose another disk with --root"
            require_space(self.root, needed, f"downloading {data.name} needs", remedy)
            try:
                self._assemble(data, [self._fetch(data, file) for file in data.files])
            except VerificationError:
                for file in data.files:
                    if not file.hashes:  # nothing but the failed look vouched for it
                        (self.incoming(data) / file.name).unlink(missing_ok=True)
                raise
            shutil.rmtree(self.incoming(data), ignore_errors=True)
        return home

    def _fetch(self, data: DataSet, file: SourceFile) -> str:
        """Fetch one file into ``incoming``, verified; returns its address."""
        target = self.incoming(data) / file.name
        if not target.is_file():
            self.say(f"{data.name}: fetching {file.name}, {human(file.size)}")
        transfer = Transfer(
            self.urls(data, file), target, lambda path: self._verify(data, file, path), file.size, file.about,
            bool(file.hashes or file.unpack is not None or self._seen(data).get(file.name)), self.limits,
            lambda text: self.say(f"{data.name}: {text}"), self.progress,
        )  # fmt: skip
        return transfer.run()

    def _assemble(self, data: DataSet, urls: Sequence[str]) -> None:
        """Build the data set next to its place and rename it."""
        aside, home = self._work("unpacking", data.name), self.home(data)
        paths = [self.incoming(data) / file.name for file in data.files]
        shutil.rmtree(aside, ignore_errors=True)  # of a process that died
        try:
            with reports_full_disk(f"unpacking {data.name}"):
                aside.mkdir(parents=True)
                for file, path in zip(data.files, paths, strict=True):
                    if file.unpack is not None:
                        self.say(f"{data.name}: unpacking {file.name}")
                        unpack(path, aside / file.unpack)
                    if file.keep or file.unpack is None:
                        try:  # a second name, not a move: should the rest fail, the download is still where it was
                            os.link(path, aside / file.name)
                        except OSError:
                            shutil.copyfile(path, aside / file.name)
                sizes = list_files(aside)
                check_expected(aside, data.expected, sizes)
                sha256 = {path: digest(path, "sha256") for path in paths}
                sources = [
                    {"file": p.name, "url": url, "size": p.stat().st_size, "sha256": sha256[p]}
                    for p, url in zip(paths, urls, strict=True)
                ]
                files = {path: (size, digest(aside / path, "sha256")) for path, size in sizes.items()}
                Note(data.name, len(files), sum(sizes.values()), sources=sources, files=files).write(aside)
                if first := {f.name: sha256[p] for f, p in zip(data.files, paths, strict=True) if not f.hashes}:
                    seen = self._seen(data)
                    self._work("seen").mkdir(parents=True, exist_ok=True)
                    write_json(self._work("seen", f"{data.name}.json"), {**seen, **first})
            if home.is_dir():
                home.rmdir()  # an empty one: the caller has looked
            aside.rename(home)
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def _seen(self, data: DataSet) -> dict[str, str]:
        """SHA-256 of files without a published hash as they were first seen; outlives the data."""
        path = self._work("seen", f"{data.name}.json")
        try:
            return dict(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return {}
        except (ValueError, TypeError) as error:
            raise VerificationError(f"{path} cannot be read ({error}); delete it to trust again") from error

    def _verify(self, data: DataSet, file: SourceFile, path: Path) -> None:
        """Compare a file with its published digests, else with what it was at the first download."""
        if file.unpack is not None and not file.hashes and not tarfile.is_tarfile(path):
            raise VerificationError(f"{path.name} is damaged or no archive")
        first = None if file.hashes else self._seen(data).get(file.name)
        try:
            verify_file(path, file.size, {"sha256": first} if first else file.hashes)
        except VerificationError as error:
            if not first:
                raise
            raise VerificationError(
                f"not what it was at the first download: {error}; if the source changed for good and you trust it, "
                f"delete {self._work('seen', f'{data.name}.json')}"
            ) from error

    def _note(self, data: DataSet) -> Note:
        if note := read_note(self.home(data)):
            return note
        raise NotThere(f"{data.name} is not in {self.root}: {self.remedy(data)}")

    def _work(self, *parts: str) -> Path:
        return self.root.joinpath(".rp-data", *parts)

    def _begun(self, data: DataSet) -> int:
        names = [name for f in data.files for name in (f.name, f"{f.name}.partial")]
        paths = [self.incoming(data) / name for name in names]
        return sum(path.stat().st_size for path in paths if path.is_file())

    def _lock(self, data: DataSet) -> contextlib.AbstractContextManager[None]:
        wait = f"{data.name}: another process is at work on it; waiting until it is done"
        return locked(self._work("locks", data.name), lambda: self.say(wait))


def _holds_anything(folder: Path) -> bool:
    return folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
