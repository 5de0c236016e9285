"""Finished folders: the note in each that says what it holds, and whether it still does."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from rp_lib.data.errors import VerificationError
from rp_lib.data.hashes import digests
from rp_lib.data.partial import write_json
from rp_lib.data.sources import Expected

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
