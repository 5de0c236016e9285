"""One folder of data sets: ``ROOT/NAME`` is whole and verified, or is not there.

Everything on its way is in ``ROOT/.rp-data``, on the same disk, so that a rename is all it takes to finish::

    ROOT/NAME/                   a finished data set, with its note .rp-data.json
    ROOT/.rp-data/incoming/NAME  downloads; FILE.partial until they are whole and verified
    ROOT/.rp-data/unpacking/NAME what is being unpacked; the next run throws it away if this one dies
    ROOT/.rp-data/seen/NAME.json SHA-256 of files without a published hash, as they were the first time
    ROOT/.rp-data/locks/NAME     held by the process at work on NAME; the system frees it when that ends, however
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout

from rp_lib.data.archives import ArchiveLimits, Contents, inspect
from rp_lib.data.assembly import Fetched, assemble, now
from rp_lib.data.errors import NotThere, VerificationError
from rp_lib.data.folders import Note, check_expected, check_note, list_files, read_note
from rp_lib.data.sources import DataSet, SourceFile
from rp_lib.data.space import human, require_space
from rp_lib.data.transport import Job, Limits, fetch
from rp_lib.data.trust import FirstUse
from rp_lib.errors import RPLibError

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
