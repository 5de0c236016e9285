"""Folders of image files: one subfolder for each class, or images of no class at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rp_lib.data.download import IMAGES, is_image, walk
from rp_lib.utils.errors import RPLibError

# Pictures all the same, but not of a kind that is read here: to ignore them would lose images silently.
UNREAD = frozenset(".avif .cr2 .dng .eps .gif .heic .heif .j2k .jfif .jp2 .jxl .nef .psd .svg .tga".split())


# How files of common kinds begin: JPEG, PNG, GIF, TIFF.
SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"II*\x00", b"MM\x00*")
# Names of the parts of a data set, which are no classes.
PARTS = frozenset("train training test testing val valid validation dev eval".split())


class FolderError(RPLibError):
    """A folder that does not hold what it should; the message names it."""


@dataclass(frozen=True, eq=False)
class ClassFolder:
    """A folder with one subfolder for each class.

    Attributes:
        root: The folder.
        paths: n image files, class by class, in the order of their sorted paths.
        labels: int64 (n,), positions in ``classes``.
        classes: Names of the subfolders, sorted.
    """

    root: Path
    paths: list[Path]
    labels: Tensor
    classes: tuple[str, ...]


def image_folder(root: Path | str, *, numeric: bool = False) -> ClassFolder:
    """List the images of a folder of class folders, in the order of torchvision's ``ImageFolder``.

    Extensions may be of any case; hidden files and folders and files that are no pictures are ignored. A class folder
    may have subfolders of its own.

    Args:
        numeric: Sort the class folders as numbers (0, 1, 2, ..., 10), as ImageNetV2 numbers its classes.

    Raises:
        FolderError: No such folder, no class folder, one without images, images beside the class folders, a name
            that is no number although ``numeric`` asks for one, or pictures of a kind that is not read.
    """
    root = _existing(root)
    files = [path for path in sorted(root.iterdir()) if path.is_file()]
    beside = [path for path in files if is_image(path.name) or path.suffix.lower() in UNREAD]
    if beside:
        raise FolderError(
            f"{listed(beside)} {'lies' if len(beside) == 1 else 'lie'} in {root} beside the class folders: move each "
            "image into the folder of its class"
        )
    folders = sorted(_subfolders(root), key=lambda path: path.name)
    if not folders:
        raise FolderError(f"{root} has no class folders: put the images of each class into a folder of its name")
    if numeric:
        folders = _by_number(root, folders)
    members = [_images_below(folder) for folder in folders]
    empty = [folder.name for folder, images in zip(folders, members, strict=True) if not images]
    if empty:
        raise FolderError(
            f"{root} has no image in the class {'folder' if len(empty) == 1 else 'folders'} {listed(empty)} (images "
            f"end in {', '.join(IMAGES)}): add some or remove the folder"
        )
    labels = torch.repeat_interleave(torch.arange(len(folders)), torch.tensor([len(m) for m in members]))
    return ClassFolder(root, [path for images in members for path in images], labels, tuple(f.name for f in folders))


def check_classes(found: ClassFolder) -> None:
    """Refuse folders that are probably no classes but a level above them.

    Raises:
        FolderError: A single class; folders called ``train`` and ``test``; or images only in folders below those.
    """
    root, classes = found.root, found.classes
    parts = [name for name in classes if name.lower() in PARTS]
    if len(parts) > 1:
        raise FolderError(
            f"{root} has folders called {listed(parts)}: that is a data set with its parts, not a folder of classes. "
            f"Pass its parts, such as train={root / parts[0]}"
        )
    below = {path.relative_to(root).parts[1] for path in found.paths if len(path.relative_to(root).parts) > 2}
    direct = any(len(path.relative_to(root).parts) == 2 for path in found.paths)
    deeper = f"; the images lie in folders below, such as {root / classes[0] / min(below)}" if below else ""
    if len(classes) < 2:
        raise FolderError(f"{root} has one class folder, {classes[0]!r}{deeper}: at least two classes are needed")
    if not direct:
        raise FolderError(
            f"no class folder of {root} ({listed(classes)}) holds an image itself{deeper}. Pass the folder whose "
            "subfolders are the classes; if these are the classes, say so with class_names={folder: name}"
        )


def image_files(root: Path | str, *, all_kinds: bool = False) -> list[Path]:
    """List all images of a folder, straight in it or in its subfolders, sorted.

    Args:
        root: The folder.
        all_kinds: List pictures of kinds that are not read as well, for whoever reports on each file.

    Raises:
        FolderError: No such folder, no image in it, or pictures of a kind that is not read.
    """
    root = _existing(root)
    images = _images_below(root, all_kinds)
    if not images:
        raise FolderError(f"{root} holds no image (images end in {', '.join(IMAGES)})")
    return images


def several(folders: Path | str | Sequence[Path | str]) -> list[Path]:
    """One folder, or some, as a list.

    Raises:
        FolderError: An empty list, or a folder that is named twice or lies in another one.
    """
    found = [folders] if isinstance(folders, str | Path) else list(folders)
    if not found:
        raise FolderError("an image set needs at least one folder, got an empty list")
    paths = [Path(folder).expanduser() for folder in found]
    places = [path.resolve() for path in paths]
    for i, place in enumerate(places):
        if place in places[:i]:
            raise FolderError(f"{paths[i]} is named twice in one image set: its pictures would count twice")
        if above := [path for path, other in zip(paths, places, strict=True) if other in place.parents]:
            raise FolderError(
                f"{paths[i]} lies in {above[0]}, which is named in the same image set: its pictures would count twice"
            )
    return paths


def class_folders(root: Path | str) -> tuple[str, ...]:
    """Names of the subfolders, sorted, hidden ones aside."""
    return tuple(sorted(path.name for path in _subfolders(_existing(root))))


def listed(items: Sequence[object], limit: int = 5) -> str:
    """The first few items, and how many more there are."""
    more = f" and {len(items) - limit:,} more" if len(items) > limit else ""
    return ", ".join(str(item) for item in items[:limit]) + more


def _existing(root: Path | str) -> Path:
    root = Path(root).expanduser()
    if not root.is_dir():
        raise FolderError(f"{root} is no folder" if root.exists() else f"the folder {root} does not exist")
    return root


def _subfolders(root: Path) -> list[Path]:
    return [path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")]


def _images_below(folder: Path, all_kinds: bool = False) -> list[Path]:
    images, unread = [], []
    for at, folders, names in walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        images += [(str(at), name) for name in names if is_image(name)]
        others = [at / name for name in names if not is_image(name) and not name.startswith(".")]
        unread += [path for path in others if path.suffix.lower() in UNREAD or _is_picture(path)]
    if all_kinds:
        images += [(str(path.parent), path.name) for path in unread]
    elif unread:
        raise FolderError(
            f"{listed(sorted(unread))}: pictures that would be left out, since images must end in {', '.join(IMAGES)}; "
            "convert them to PNG or JPEG, or give them the ending of their kind"
        )
    return [Path(at, name) for at, name in sorted(images)]


def _is_picture(path: Path) -> bool:
    """Whether a file begins as JPEG, PNG, GIF, BMP, TIFF, WebP or HEIF files do, whatever its name."""
    if not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            head = file.read(12)
    except OSError:
        return False
    return head.startswith(SIGNATURES) or (head[:4] == b"RIFF" and head[8:] == b"WEBP") or head[4:8] == b"ftyp"


def _by_number(root: Path, folders: Sequence[Path]) -> list[Path]:
    words = [folder.name for folder in folders if not (folder.name.isascii() and folder.name.isdigit())]
    if words:
        raise FolderError(f"the class folders of {root} should be numbers, but there is {listed(words)}")
    numbers = [int(folder.name) for folder in folders]
    twice = sorted({n for n in numbers if numbers.count(n) > 1}) if len(set(numbers)) < len(numbers) else []
    if twice:
        raise FolderError(f"{root} has more than one class folder for the number {twice[0]}")
    return sorted(folders, key=lambda folder: int(folder.name))
