"""The table of real data sets, ``sources.json``: where each comes from and how it is verified; and what can go wrong.

The table is the one place to review and to edit. A URL, size, hash or licence that is not known is left out there,
never guessed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rp_lib.utils.errors import RPLibError, UnknownName

TABLE = Path(__file__).with_name("sources.json")
KINDS = ("sha256", "md5", "git_blob")  # of digests; MD5 and SHA-1 (git's) tell damage, not a determined forger


class DownloadError(RPLibError):
    """No source of a file could be reached or gave all of it."""

    exit_code = 3


class VerificationError(RPLibError):
    """Bytes, files or folders are not what they should be."""

    exit_code = 4


class UnsafeArchive(VerificationError):
    """An archive holds a member that would leave its folder, that is no plain file, or far too much."""


class NoSpace(RPLibError):
    """The disk is full, or would be."""

    exit_code = 5


class NotThere(RPLibError):
    """A data set that was not downloaded yet, or that has to be fetched by hand."""

    exit_code = 6


@dataclass(frozen=True)
class SourceFile:
    """One file to download.

    Attributes:
        name: Plain file name.
        urls: http(s) addresses of the same bytes, tried in order.
        size: Bytes that the publisher names, None if it names none; a file of another size is refused.
        hashes: Published hex digests by kind (``sha256``, ``md5``, ``git_blob``); empty: trusted on first use.
        unpack: Folder inside the data set's that the archive is unpacked into; None: not an archive.
        keep: Whether the archive stays next to what was unpacked (pytorch-ood's classes look for it).
        about: Bytes that others have measured, see ``sizes_from`` of the data set; None if there are none.
    """

    name: str
    urls: tuple[str, ...]
    size: int | None = None
    hashes: Mapping[str, str] = field(default_factory=dict)
    unpack: str | None = None
    keep: bool = False
    about: int | None = None


@dataclass(frozen=True)
class Expected:
    """What the finished folder must look like.

    Attributes:
        paths: Files or folders that must be there.
        images: Number of image files, hidden ones aside.
        class_folders: For a folder, the number of folders in or below it that hold images directly.
        md5: Published digests of files inside, checked where the file is there.
    """

    paths: tuple[str, ...] = ()
    images: int | None = None
    class_folders: Mapping[str, int] = field(default_factory=dict)
    md5: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class DataSet:
    """One row of the table.

    Attributes:
        role: ``ID``, ``shift`` (covariate shift) or ``OOD``.
        licence: Licence or terms, and where they are stated; None if none were found.
        sizes_from: Who measured the sizes that the publisher does not name, or where nobody was found to state them.
        by_hand: How to get it where there is no download; None if there is one.
    """

    name: str
    title: str
    role: str
    groups: tuple[str, ...]
    homepage: str
    licence: str | None = None
    files: tuple[SourceFile, ...] = ()
    expected: Expected = Expected()
    by_hand: str | None = None
    sizes_from: str | None = None

    @property
    def size(self) -> int | None:
        """Bytes to download, published or measured by others; None if any file's size is not known."""
        sizes = [size for f in self.files if (size := f.size or f.about) is not None]
        return sum(sizes) if self.files and len(sizes) == len(self.files) else None


@dataclass(frozen=True)
class Sources:
    """The complete table: data sets and groups by name."""

    data: Mapping[str, DataSet]
    groups: Mapping[str, str]

    def __getitem__(self, name: str) -> DataSet:
        if name not in self.data:
            raise UnknownName("data set", name, self.data)
        return self.data[name]

    def select(self, names: Iterable[str]) -> list[DataSet]:
        """Data sets by names, groups or ``all``, each once, in the order of the table."""
        wanted: set[str] = set()
        for name in names:
            members = {n for n, d in self.data.items() if name in ("all", n) or name in d.groups}
            if not members:
                raise UnknownName("data set or group", name, [*self.data, *self.groups, "all"])
            wanted |= members
        return [d for n, d in self.data.items() if n in wanted]


def load_sources(path: Path = TABLE) -> Sources:
    """Read the table that ships, or another one of its form; the tests check what a row must hold."""
    raw = json.loads(path.read_text(encoding="utf-8"))
    return Sources({name: _data_set(name, row) for name, row in raw["data"].items()}, raw["groups"])


def check_url(url: str) -> str:
    """Return ``url`` if it is an http(s) address without white space, else raise ValueError."""
    if not url.startswith(("http://", "https://")) or any(c.isspace() for c in url):
        raise ValueError(f"{url!r} is no http(s) address")
    return url


def default_root() -> Path:
    """The folder of data sets: ``$RP_DATA``, else ``data`` in the working directory."""
    return Path(os.environ.get("RP_DATA") or "data")


def digest(path: Path, kind: str) -> str:
    """Hex digest of a file; ``git_blob`` is SHA-1 over ``blob <size>``, a zero byte and the content."""
    start = b"blob %d\0" % path.stat().st_size if kind == "git_blob" else b""
    hasher = hashlib.new("sha1" if kind == "git_blob" else kind, start, usedforsecurity=False)
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hasher).hexdigest()


def verify_file(path: Path, size: int | None, hashes: Mapping[str, str]) -> None:
    """Raise :class:`VerificationError` unless a file has its known size and digests."""
    if size is not None and (got := path.stat().st_size) != size:
        raise VerificationError(f"{got:,} bytes instead of {size:,}")
    for kind, value in hashes.items():
        if (found := digest(path, kind)) != value:
            raise VerificationError(f"{kind} is {found} instead of {value}")


def _data_set(name: str, row: Mapping[str, Any]) -> DataSet:
    expected = row.get("expected", {})
    expected = Expected(**{**expected, "paths": tuple(expected.get("paths", ()))})
    files = tuple(_source_file(f) for f in row.get("files", ()))
    return DataSet(**{**row, "name": name, "groups": tuple(row["groups"]), "files": files, "expected": expected})


def _source_file(row: Mapping[str, Any]) -> SourceFile:
    rest = {key: value for key, value in row.items() if key not in KINDS}
    hashes = {kind: row[kind].lower() for kind in KINDS if row.get(kind)}
    return SourceFile(**{**rest, "urls": tuple(row["urls"]), "hashes": hashes})
