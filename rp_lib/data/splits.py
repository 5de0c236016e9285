"""What benchmarks of image files are put together from: names, checks, draws and splits, image sets.

Each check names the folders, files or classes that it is about.
"""

from __future__ import annotations

import difflib
import logging
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rp_lib.benchmark import ImageSet
from rp_lib.data.class_names import prompt_templates
from rp_lib.data.download import DataStore
from rp_lib.data.image_folders import ClassFolder, FolderError, listed
from rp_lib.data.pixel_cache import CachedImages, load_images
from rp_lib.data.sources import NotThere, default_root, load_sources
from rp_lib.utils.errors import RPLibError, UnknownName
from rp_lib.utils.preparation import Preparation
from rp_lib.utils.prompts import check_distinct, fill_prompts, plain


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


def name_classes(folders: Sequence[str], given: Mapping[str, str] | Sequence[str] | None) -> tuple[str, ...]:
    """List class names in the order of their folders.

    Args:
        folders: Names of the class folders, sorted.
        given: Folder to name, or names in the order of the sorted folders; None: the folders' own names, underscores
            as spaces.

    Raises:
        RPLibError: A folder without a name, another number of names than of folders, or names in another order.
    """
    if given is None:
        if all(re.fullmatch(r"n?[0-9]+", folder) for folder in folders):
            log.warning(
                "the class folders are numbers (%s), and so prompts say these: pass class_names={folder: name} if they "
                "stand for words", listed(folders),
            )  # fmt: skip
        return tuple(folder.replace("_", " ").strip() for folder in folders)
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
    by_number = sorted(folders, key=_by_numbers)
    if by_number != list(folders) and not all(plain(name) in places for name in names):
        raise RPLibError(
            f"a list of class_names is ambiguous here: the folders' order as text ({listed(folders)}) is not their "
            f"order by number ({listed(by_number)}). Pass a mapping from folder to name, or numeric=True if the "
            "folders are plain numbers and the names stand in that order"
        )
    for i, name in enumerate(names):
        if places.get(plain(name), i) != i:
            raise RPLibError(
                f"class_names gives {name!r} to the folder {folders[i]!r}, but there is a folder "
                f"{folders[places[plain(name)]]!r}: the names must stand in the order of the sorted folders "
                f"({listed(folders)}), or come as a mapping from folder to name"
            )
    return names


def _by_numbers(name: str) -> list[tuple[int, int, str]]:
    """Sort key: numbers within names count as numbers."""
    return [(0, int(p), "") if p.isdecimal() else (1, 0, p) for p in re.split(r"([0-9]+)", name)]


def check_prompts(folders: Sequence[str], names: Sequence[str], templates: Sequence[str]) -> None:
    """Refuse classes that no prompt tells apart or that have no name, and templates without a place or there twice."""
    fill_prompts(names, templates)
    check_distinct(names, templates[0], folders)
    twice = [t for i, t in enumerate(templates) if t.casefold() in {u.casefold() for u in templates[:i]}]
    if twice:
        raise RPLibError(f"the prompt template {twice[0]!r} stands twice")


def match_classes(name: str, found: ClassFolder, folders: Sequence[str], *, may_lack: bool) -> Tensor:
    """Labels of ``found`` as positions in the ID ``folders``: by folder name, whatever the order.

    Raises:
        FolderError: A class folder that the ID data does not have, or one that is missing and may not be.
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
            "pass greyscale='convert' (in a configuration, [data] greyscale) to give them three equal channels"
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


log = logging.getLogger(__name__)
MISSING = ("error", "skip")


def located(needed: Sequence[str], optional: Sequence[str], root: Path | None, missing: str) -> dict[str, Path]:
    """Find the folders of data sets by name.

    Args:
        needed: Names as in ``rp-lib data --list``.
        optional: Likewise.
        root: Folder of the data sets.
        missing: What an optional one that is not there is: an ``"error"``, or ``"skip"``, left out with a warning.

    Raises:
        NotThere: Some are not there; the message lists all of them and how to get them.
    """
    if missing not in MISSING:
        raise UnknownName("value of missing", missing, MISSING)
    root = default_root() if root is None else Path(root)
    store, sources = DataStore(root), load_sources()
    found, lacking = {}, []
    for name in (*needed, *optional):
        try:
            found[name] = store.locate(sources[name])
        except NotThere:
            lacking.append(name)
    wanted = [name for name in lacking if missing == "error" or name in needed]
    downloads = [name for name in lacking if not sources[name].by_hand]
    by_hand = [name for name in lacking if sources[name].by_hand]
    ways = [f"./data_download.sh --root {root} {' '.join(downloads)}"] if downloads else []
    ways += [f"{name}: {store.remedy(sources[name])}" for name in by_hand]
    text = f"{', '.join(lacking)} {'is' if len(lacking) == 1 else 'are'} not in {root}; {'; '.join(ways)}"
    if wanted:
        others = "" if set(wanted) & set(needed) else "; or go on without them: missing='skip'"
        raise NotThere(text + others)
    if lacking:
        log.warning("left out: %s", text)
    return found


def draw(labels: Tensor | None, n: int, wanted: int | None, seed: int) -> Tensor:
    """Draw ``wanted`` of ``n`` images: int64 positions, ascending; all if there are no more.

    With int64 ``labels`` (n,) the classes keep their shares, to within one image each.
    """
    if wanted is None or wanted >= n:
        return torch.arange(n)
    rng = np.random.default_rng(seed)
    chance = rng.random(n)
    if labels is None:
        return torch.from_numpy(np.sort(np.argsort(chance, kind="stable")[:wanted]))
    classes, sizes = np.unique(labels.numpy(), return_counts=True)
    place = np.empty(n)  # how far along its class, 0 to 1, each image stands in the random order
    for label, size in zip(classes, sizes, strict=True):
        members = np.flatnonzero(labels.numpy() == label)
        place[members[np.argsort(chance[members], kind="stable")]] = (np.arange(size) + rng.random()) / size
    return torch.from_numpy(np.sort(np.argsort(place, kind="stable")[:wanted]))


def shots(labels: Tensor, train: int | None, val: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw the images to train on and those kept aside, for each class: int64 positions, ascending.

    Args:
        labels: int64 (n,).
        train: Images of each class; None takes all that are not kept aside.
        val: Images of each class kept aside; they do not depend on ``train``.
        seed: Of the draw.

    Raises:
        RPLibError: A class has too few images, or a number below 1.
    """
    if val < 1 or (train is not None and train < 1):
        raise RPLibError(f"at least one image of each class is needed to train and to validate, got {train} and {val}")
    order = np.argsort(labels.numpy(), kind="stable")
    classes, starts = np.unique(labels.numpy()[order], return_index=True)
    chosen: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for label, members in zip(classes.tolist(), np.split(order, starts[1:]), strict=True):
        if len(members) < val + (train or 1):
            raise RPLibError(
                f"class {label} has {len(members)} training images, too few for {train or 1} to train and {val} to "
                "validate on"
            )
        mixed = np.random.default_rng((seed, label)).permutation(members)
        chosen[0].append(mixed[val : None if train is None else val + train])
        chosen[1].append(mixed[:val])
    first, second = (torch.from_numpy(np.sort(np.concatenate(part))) for part in chosen)
    return first, second


def most_of_each(labels: Tensor, most: int | None, seed: int) -> Tensor:
    """Draw at most ``most`` images of each class: int64 positions, ascending; None takes all."""
    if most is None:
        return torch.arange(len(labels))
    chance = torch.from_numpy(np.random.default_rng(seed).random(len(labels)))
    order = chance.argsort(stable=True)
    chosen = [order[labels[order] == label][:most] for label in labels.unique().tolist()]
    return torch.cat(chosen).sort().values


def split_classes(
    labels: Tensor, identities: Sequence[bytes], fractions: Mapping[str, float], names: Sequence[str], seed: int
) -> dict[str, list[int]]:
    """Split into ``train`` and parts kept aside, the given fraction of every class, at least one picture: positions.

    Args:
        labels: int64 (n,).
        identities: n, images with equal ones stay together.
        fractions: By part; 0 makes none.
        names: Of the classes, for messages.
        seed: Of the draw.

    Raises:
        RPLibError: A class with fewer pictures than there are parts.
    """
    wanted = {part: fraction for part, fraction in fractions.items() if fraction}
    parts: dict[str, list[int]] = {"train": [], **{part: [] for part in wanted}}
    generator = torch.Generator().manual_seed(seed)
    members: list[dict[bytes, list[int]]] = [defaultdict(list) for _ in names]
    for i, (label, identity) in enumerate(zip(labels.tolist(), identities, strict=True)):
        members[label][identity].append(i)
    if few := [f"{n!r} has {len(m)}" for n, m in zip(names, members, strict=True) if len(m) <= len(wanted)]:
        raise RPLibError(
            f"too few different images to keep {' and '.join(wanted)} aside: {listed(few, 10)}; add images, leave "
            "these classes out, or give folders for these sets"
        )
    for name, pictures in zip(names, members, strict=True):
        groups = list(pictures.values())
        rest = torch.randperm(len(groups), generator=generator).tolist()
        for part, fraction in wanted.items():
            number = max(1, round(fraction * len(groups)))
            parts[part] += [i for g in rest[:number] for i in groups[g]]
            rest = rest[number:]
        if not rest:
            raise RPLibError(f"class {name!r} has {len(groups)} different images: nothing is left to train on")
        parts["train"] += [i for g in rest for i in groups[g]]
    return {part: sorted(index) for part, index in parts.items()}


def check_sizes(**numbers: int | None) -> None:
    """Raise ``RPLibError`` unless each is None or a whole number of at least 1."""
    for name, value in numbers.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise RPLibError(f"{name} must be a whole number of at least 1, got {value!r}")


@dataclass(frozen=True)
class Maker:
    """Makes the image sets of a benchmark: squares of one side, drawn with one seed.

    Args:
        size: Side of all images, pixels, or all that a backbone wants.
        subset: At most so many images of each set but ``train``, drawn with ``seed``; classes keep their shares.
        per_class: Training images of each class ("shots"), drawn likewise; by default all.
        val_per_class: Training images of each class that are kept aside for validation.
        templates: Prompts, or ``plain``, ``as_released`` or ``ensemble``, see
            :func:`rp_lib.data.class_names.prompt_templates`.
        cache: Folder of the decoded images, see :func:`rp_lib.data.load_images`.
        seed: Of all draws.
        progress: Show bars.

    Example:
        >>> Maker(32, subset=1000).of_files("scenes", "far-ood", image_files("scenes"))  # doctest: +SKIP
    """

    size: int | Preparation
    _: KW_ONLY
    subset: int | None = None
    per_class: int | None = None
    val_per_class: int = 10
    templates: str | Sequence[str] = "plain"
    cache: Path | None = None
    seed: int = 0
    progress: bool = False

    def __post_init__(self) -> None:
        side = None if isinstance(self.size, Preparation) else self.size
        check_sizes(size=side, subset=self.subset, per_class=self.per_class, val_per_class=self.val_per_class)

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompt templates."""
        return prompt_templates(self.templates)

    def shots(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Positions of the images to train on and of those kept aside, see :func:`shots`."""
        return shots(labels, self.per_class, self.val_per_class, self.seed)

    def train_and_val(self, found: ClassFolder, labels: Tensor) -> tuple[ImageSet, ImageSet]:
        """The images to train on and those kept aside, of a folder whose images have these labels, int64 (n,)."""
        train, val = (
            self.of_files(part, part, [found.paths[i] for i in index.tolist()], labels[index])
            for part, index in zip(("train", "val"), self.shots(labels), strict=True)
        )
        return train, val

    def of_files(
        self,
        name: str,
        role: str,
        paths: Sequence[Path],
        labels: Tensor | None = None,
        class_subset: tuple[int, ...] | None = None,
    ) -> ImageSet:
        """At most ``subset`` of these files, decoded once into the cache and mapped into memory."""
        index = self._drawn(role, len(paths), labels)
        bar = name if self.progress else None
        cached = load_images([paths[i] for i in index.tolist()], self.size, cache=self.cache, progress=bar)
        labels = None if labels is None else labels[index]
        return ImageSet(
            name, role, cached.images, labels, content=cached.content, class_subset=class_subset,
            preparation=Preparation.of(self.size),
        )  # fmt: skip

    def of_pixels(self, name: str, role: str, pixels: np.ndarray, labels: Tensor | None = None) -> ImageSet:
        """At most ``subset`` of uint8 (n, h, h, 3) images; another side is resized as that of files is, antialiased."""
        index = self._drawn(role, len(pixels), labels)
        chosen = pixels[index.numpy()]
        size = Preparation.of(self.size).size
        if chosen.shape[1] != size:
            side = (size, size)
            chosen = np.stack([np.asarray(Image.fromarray(x).resize(side, Image.Resampling.BICUBIC)) for x in chosen])
        images = torch.from_numpy(np.ascontiguousarray(chosen.transpose(0, 3, 1, 2)))
        return ImageSet(name, role, images, None if labels is None else labels[index])

    def _drawn(self, role: str, n: int, labels: Tensor | None) -> Tensor:
        return draw(labels, n, None if role == "train" else self.subset, self.seed)
