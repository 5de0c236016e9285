"""What can go wrong between a server and a verified folder; each kind has an exit code of its own."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rp_lib.utils.errors import RPLibError, UnknownName


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


# Digests of files, as publishers give them: SHA-256, MD5, or the id that git gives a file's content.

# Kind -> bytes of the digest. MD5 and SHA-1 tell damage and mix-ups, not a determined forger.
KINDS = {"sha256": 32, "md5": 16, "git_blob": 20}
_CHUNK = 1 << 20


def digests(path: Path, kinds: Iterable[str]) -> dict[str, str]:
    """Hex digests of one file, in one pass; ``git_blob`` is SHA-1 over ``blob <size>``, a zero byte and the content."""
    hashers = {}
    for kind in kinds:
        hashers[kind] = hashlib.new("sha1" if kind == "git_blob" else kind, usedforsecurity=False)
        if kind == "git_blob":
            hashers[kind].update(b"blob %d\0" % path.stat().st_size)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            for hasher in hashers.values():
                hasher.update(chunk)
    return {kind: hasher.hexdigest() for kind, hasher in hashers.items()}


def verify_file(path: Path, size: int | None, hashes: Mapping[str, str]) -> str:
    """Compare a file with its known size and digests; returns its SHA-256.

    Raises:
        VerificationError: it differs; the message says in what.
    """
    got = path.stat().st_size
    if size is not None and got != size:
        raise VerificationError(f"{got:,} bytes instead of {size:,}")
    found = digests(path, {"sha256", *hashes})
    for kind, value in hashes.items():
        if found[kind] != value:
            raise VerificationError(f"{kind} is {found[kind]} instead of {value}")
    return found["sha256"]


# The table of real data sets, ``sources.json``: where each comes from and how it is verified.
#
# The table is the one place to review and to edit. A URL, size, hash or licence that is not known is
# left out there, never guessed.

TABLE = Path(__file__).with_name("sources.json")
ROLES = ("ID", "shift", "OOD")


@dataclass(frozen=True)
class SourceFile:
    """One file to download.

    Attributes:
        urls: http(s) addresses of the same bytes, tried in order.
        size: bytes, None if not known.
        hashes: published hex digests by kind (``sha256``, ``md5``, ``git_blob``); empty: trusted on first use.
        unpack: folder inside the data set's that the archive is unpacked into; None: not an archive.
        keep: whether the archive stays beside what was unpacked (pytorch-ood's classes look for it).
    """

    name: str
    urls: tuple[str, ...]
    size: int | None = None
    hashes: Mapping[str, str] = field(default_factory=dict)
    unpack: str | None = None
    keep: bool = False


@dataclass(frozen=True)
class Expected:
    """What the finished folder must look like.

    Attributes:
        paths: files or folders that must be there.
        images: number of image files, hidden ones aside.
        class_folders: for a folder, the number of folders in or below it that hold images directly.
        md5: published digests of files inside, checked where the file is there.
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
        licence: licence or terms, None if not known.
        by_hand: how to get it where there is no download; None if there is one.
        library, options: the torchvision or pytorch-ood class that reads the finished folder, and its arguments.
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
    library: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> int | None:
        """Bytes to download, None if any file's size is not known."""
        sizes = [f.size for f in self.files]
        return sum(sizes) if sizes and None not in sizes else None  # type: ignore[arg-type]


@dataclass(frozen=True)
class Sources:
    """The whole table: data sets and groups by name."""

    data: Mapping[str, DataSet]
    groups: Mapping[str, str]

    def __getitem__(self, name: str) -> DataSet:
        if name not in self.data:
            raise UnknownName("data set", name, self.data)
        return self.data[name]

    def select(self, names: Iterable[str]) -> list[DataSet]:
        """Data sets by names, groups or ``all``, each once, in the order of the table.

        Raises:
            UnknownName: neither a data set nor a group.
        """
        wanted: set[str] = set()
        for name in names:
            members = {n for n, d in self.data.items() if name in ("all", n) or name in d.groups}
            if not members:
                raise UnknownName("data set or group", name, [*self.data, *self.groups, "all"])
            wanted |= members
        return [d for n, d in self.data.items() if n in wanted]


def load_sources(path: Path = TABLE) -> Sources:
    """Read and validate a table.

    Raises:
        RPLibError: an entry that this code cannot honour; the message names it.
    """
    raw = json.loads(path.read_text(encoding="utf-8"))
    data = {}
    for name, row in raw["data"].items():
        try:
            data[name] = _data_set(name, row, raw["groups"])
        except (KeyError, TypeError, ValueError) as error:
            raise RPLibError(f"{path}: the entry {name!r} is not valid: {error}") from error
    return Sources(data, raw["groups"])


def check_url(url: str) -> str:
    """Return ``url`` if it is an http(s) address without white space, else raise ValueError."""
    if not url.startswith(("http://", "https://")) or any(c.isspace() for c in url):
        raise ValueError(f"{url!r} is no http(s) address")
    return url


def _data_set(name: str, row: Mapping[str, Any], groups: Mapping[str, str]) -> DataSet:
    expected = row.get("expected", {})
    made = DataSet(
        **{
            **row,
            "name": name,
            "groups": tuple(row["groups"]),
            "files": tuple(_source_file(f) for f in row.get("files", ())),
            "expected": Expected(**{**expected, "paths": tuple(expected.get("paths", ()))}),
        }
    )
    if made.role not in ROLES:
        raise ValueError(f"the role {made.role!r} is none of {', '.join(ROLES)}")
    if unknown := set(made.groups) - groups.keys():
        raise ValueError(f"unknown groups {sorted(unknown)}")
    if name in groups or name == "all" or name != Path(name).name or name.startswith("."):
        raise ValueError("the name is a group's, or no name for a folder")
    if bool(made.files) == bool(made.by_hand):
        raise ValueError("needs either files or by_hand")
    return made


def _source_file(row: Mapping[str, Any]) -> SourceFile:
    hashes = {kind: row[kind].lower() for kind in KINDS if row.get(kind)}
    for kind, value in hashes.items():
        if len(bytes.fromhex(value)) != KINDS[kind]:
            raise ValueError(f"{row['name']}: {value!r} is no {kind} digest")
    if row["name"] != Path(row["name"]).name or row["name"].startswith("."):
        raise ValueError(f"{row['name']!r} is no plain file name")
    rest = {k: v for k, v in row.items() if k not in KINDS}
    made = SourceFile(**{**rest, "urls": tuple(check_url(u) for u in row["urls"]), "hashes": hashes})
    if not made.urls:
        raise ValueError(f"{made.name} has no URL")
    return made


def default_root() -> Path:
    """The folder of data sets: ``$RP_DATA``, else ``data`` in the working directory."""
    return Path(os.environ.get("RP_DATA") or "data")
