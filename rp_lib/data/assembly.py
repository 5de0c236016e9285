"""From verified files to a finished folder: unpack aside, look it over, and only then give it its name."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

from rp_lib.data.archives import ArchiveLimits, Contents, unpack
from rp_lib.data.folders import Note, check_expected
from rp_lib.data.library import confirm
from rp_lib.data.sources import DataSet, SourceFile
from rp_lib.data.space import reports_full_disk, require_space

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
