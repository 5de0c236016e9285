"""What makes a reader's folders no benchmark: each check names the folders, files or classes that it is about."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from rp_lib.errors import RPLibError
from rp_lib.photos.folders import ClassFolder, FolderError, listed
from rp_lib.photos.mapped import CachedImages


class SharedImages(RPLibError):
    """The same picture stands where it may stand once only: in two sets, or in two classes."""


@dataclass(frozen=True, eq=False)
class Loaded:
    """One set on its way: n paths, int64 (n,) labels or None, and its images."""

    name: str
    role: str
    paths: list[Path]
    labels: Tensor | None
    cached: CachedImages

    @property
    def identities(self) -> list[bytes]:
        """One for each image: equal if the pixels that a model sees are. Equal files give equal pixels."""
        return [row.tobytes() for row in self.cached.pixels]


def plain(name: str) -> str:
    """A name without regard to case, underscores and repeated spaces."""
    return " ".join(name.replace("_", " ").casefold().split())


def name_classes(folders: Sequence[str], given: Mapping[str, str] | Sequence[str] | None) -> tuple[str, ...]:
    """Class names in the order of their folders.

    Args:
        given: folder to name, or names in the order of the sorted folders; None: the folders' own names, underscores
            as spaces.

    Raises:
        RPLibError: a folder without a name, another number of names than of folders, or names in another order.
    """
    if given is None:
        return tuple(folder.replace("_", " ").strip() for folder in folders)
    if isinstance(given, str):
        raise RPLibError("class_names is a mapping from folder to name, or a list of names, not one text")
    if isinstance(given, Mapping):
        without = [folder for folder in folders if folder not in given]
        if without:
            spare = [key for key in given if key not in folders]
            raise RPLibError(f"class_names has no name for {_with_nearest(without, spare)}")
        return tuple(given[folder] for folder in folders)
    names = tuple(given)
    if len(names) != len(folders):
        raise RPLibError(
            f"class_names has {len(names):,} names for {len(folders):,} class folders ({listed(folders)}); the names "
            "stand in the order of the sorted folders, or come as a mapping from folder to name"
        )
    places = {plain(folder): i for i, folder in enumerate(folders)}
    for i, name in enumerate(names):
        if places.get(plain(name), i) != i:
            raise RPLibError(
                f"class_names gives {name!r} to the folder {folders[i]!r}, but there is a folder "
                f"{folders[places[plain(name)]]!r}: the names must stand in the order of the sorted folders "
                f"({listed(folders)}), or come as a mapping from folder to name"
            )
    return names


def check_prompts(folders: Sequence[str], names: Sequence[str], templates: Sequence[str]) -> None:
    """Refuse classes that no prompt tells apart or that have no name, and templates without a place or there twice."""
    if not templates or any(template.count("{}") != 1 for template in templates):
        raise RPLibError(f"each prompt template needs one {{}} for the class name, got {list(templates)}")
    seen: dict[str, int] = {}
    for i, name in enumerate(names):
        if not isinstance(name, str) or not plain(name):
            raise RPLibError(f"the class folder {folders[i]!r} has no name that could stand in a prompt, got {name!r}")
        words = " ".join(name.casefold().split())
        if words in seen:
            prompt = templates[0].replace("{}", name)
            raise RPLibError(
                f"the class folders {folders[seen[words]]!r} and {folders[i]!r} give the same prompt {prompt!r} (case "
                "does not count): give them names that differ with class_names={folder: name}, or merge them"
            )
        seen[words] = i
    twice = [t for i, t in enumerate(templates) if t.casefold() in {u.casefold() for u in templates[:i]}]
    if twice:
        raise RPLibError(f"the prompt template {twice[0]!r} stands twice")


def match_classes(name: str, found: ClassFolder, folders: Sequence[str], *, may_lack: bool) -> Tensor:
    """Labels of ``found`` as positions in the ID ``folders``: by folder name, whatever the order.

    Raises:
        FolderError: a class folder that the ID data does not have, or one that is missing and may not be.
    """
    unknown = [folder for folder in found.classes if folder not in set(folders)]
    lacking = [folder for folder in folders if folder not in set(found.classes)]
    if unknown:
        raise FolderError(
            f"{name!r} ({found.root}) has class folders that the training data does not have: "
            f"{_with_nearest(unknown, lacking or folders)}. Its classes are {listed(folders, 10)}"
        )
    if lacking and not may_lack:
        raise FolderError(
            f"{name!r} ({found.root}) has no folder for {len(lacking):,} of {len(folders):,} classes: "
            f"{listed(lacking)}. If that is meant: missing='among' predicts among the classes that it shows, "
            "missing='all' among all of them"
        )
    places = {folder: i for i, folder in enumerate(folders)}
    return found.labels.new_tensor([places[folder] for folder in found.classes])[found.labels]


def check_ood_folders(name: str, subfolders: Sequence[str], folders: Sequence[str], names: Sequence[str]) -> None:
    """Refuse an OOD set with a subfolder that has the name of a class."""
    classes = {plain(word) for word in (*folders, *names)}
    if same := [folder for folder in subfolders if plain(folder) in classes]:
        raise FolderError(f"the OOD set {name!r} has subfolders named like classes: {listed(same)}; it may show none")


def check_greyscale(sets: Sequence[Loaded]) -> None:
    """Refuse files that store one channel: colour alone would tell them from the others."""
    grey = [(s.name, s.paths[i]) for s in sets for i in np.flatnonzero(s.cached.greyscale).tolist()]
    if grey:
        counts = {s.name: int(s.cached.greyscale.sum()) for s in sets if s.cached.greyscale.any()}
        where = ", ".join(f"{count:,} of {name!r}" for name, count in counts.items())
        raise RPLibError(
            f"{len(grey):,} images are greyscale ({where}): {listed([path for _, path in grey], 10)}. Remove them, or "
            "pass greyscale='convert' to give them three equal channels"
        )


def check_labels(sets: Sequence[Loaded], names: Sequence[str]) -> None:
    """Refuse a picture that has two different labels, in one set or in two."""
    seen: dict[bytes, tuple[int, Path]] = {}
    wrong = []
    for s in sets:
        if s.labels is not None:
            for identity, label, path in zip(s.identities, s.labels.tolist(), s.paths, strict=True):
                first, where = seen.setdefault(identity, (label, path))
                if first != label:
                    wrong.append(f"{where} ({names[first]!r}) and {path} ({names[label]!r})")
    if wrong:
        raise SharedImages(f"{len(wrong):,} pictures stand in two classes: {listed(wrong)}. Keep each in the right one")


def copies(later: Loaded, earlier: Sequence[Loaded]) -> list[tuple[int, Loaded, int]]:
    """Images of ``later`` that an earlier set shows too: position, that set, position there."""
    known: dict[bytes, tuple[Loaded, int]] = {}
    for s in earlier:
        for i, identity in enumerate(s.identities):
            known.setdefault(identity, (s, i))
    return [(i, *known[identity]) for i, identity in enumerate(later.identities) if identity in known]


def refuse_copies(later: Loaded, shared: Sequence[tuple[int, Loaded, int]]) -> None:
    """Raise :class:`SharedImages` with the names of the files."""
    pairs = []
    for i, s, j in shared[:5]:
        alike = "the same file" if (later.cached.files[i] == s.cached.files[j]).all() else "the same pixels"
        pairs.append(f"{later.paths[i]} = {s.paths[j]} ({s.name!r}, {alike})")
    more = f"; and {len(shared) - 5:,} more" if len(shared) > 5 else ""
    others = ", ".join(repr(name) for name in dict.fromkeys(s.name for _, s, _ in shared))
    kind = "the OOD set " if later.labels is None else ""
    raise SharedImages(
        f"{kind}{later.name!r} shares {len(shared):,} of its {len(later.paths):,} images with {others}: "
        f"{'; '.join(pairs)}{more}. Remove them from one side, or pass duplicates='drop' to leave them out of "
        f"{later.name!r}"
    )


def _with_nearest(items: Sequence[str], known: Sequence[str]) -> str:
    """The first few items, each with the known name that is nearest to it."""
    parts = []
    for item in items[:5]:
        near = difflib.get_close_matches(item, known, n=1, cutoff=0.5)
        near = near or [k for k in known if plain(k) == plain(item)]
        parts.append(f"{item!r} (did you mean {near[0]!r}?)" if near else repr(item))
    return ", ".join(parts) + (f" and {len(items) - 5:,} more" if len(items) > 5 else "")
