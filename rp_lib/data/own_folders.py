"""Make a benchmark of a reader's own folders: list, check, split, decode, check again."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from tqdm import tqdm

from rp_lib.benchmark import Benchmark, ImageSet
from rp_lib.data.image_folders import (
    FolderError,
    check_classes,
    class_folders,
    image_files,
    image_folder,
    listed,
    several,
)
from rp_lib.data.pixel_cache import BrokenImages, CachedImages, drop_covered, hash_files, load_images
from rp_lib.data.splits import (
    Loaded,
    check_greyscale,
    check_labels,
    check_ood_folders,
    check_prompts,
    check_sizes,
    copies,
    draw,
    match_classes,
    most_of_each,
    name_classes,
    refuse_copies,
    split_classes,
)
from rp_lib.utils.arguments import checked
from rp_lib.utils.errors import RPLibError, UnknownName
from rp_lib.utils.preparation import Preparation

Folder = Path | str


@checked
def from_folders(
    name: str = "own",
    *,
    train: Folder,
    test: Folder | None = None,
    val: Folder | None = None,
    shifts: Mapping[str, Folder] | None = None,
    ood: Mapping[str, Folder | Sequence[Folder]] | None = None,
    class_names: Mapping[str, str] | Sequence[str] | None = None,
    templates: str | Sequence[str] = ("a photo of a {}.",),
    size: int | Preparation = 224,
    cache: Path | None = None,
    near: Collection[str] = (),
    numeric: bool = False,
    missing: Literal["refuse", "among", "all"] = "refuse",
    duplicates: Literal["refuse", "drop"] = "refuse",
    greyscale: Literal["refuse", "convert"] = "refuse",
    val_fraction: float = 0.1,
    test_fraction: float = 0.2,
    subset: int | None = None,
    per_class: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Benchmark:
    """Make a benchmark of your own photographs: folders with one subfolder of images for each class.

    The images are decoded once into a cache on disk and mapped into memory, as squares of one side for every method:
    :mod:`rp_lib.data.pixel_cache`. Pictures count as the same when these pixels are: copies of a file are, and so are
    lossless conversions; near-duplicates are not found. Copies within one set share a group.

    Args:
        name: Of the benchmark.
        train: Its class folders are the classes, sorted by name.
        test: The same class folders; without it a part of every class of ``train`` is kept aside.
        val: Likewise.
        shifts: The same classes under covariate shift, by name; classes are matched by folder name.
        ood: Images that show none of the classes, straight in a folder (or several) or in subfolders, by name.
        class_names: Folder to name as it stands in prompts, or names in the order of the sorted folders; by default
            the folders' names with underscores as spaces.
        templates: Prompts with one ``{}`` for the class name.
        size: Side of the images, pixels, or all that a backbone wants: ``clip.preparation``. A backbone that takes
            another size resizes them.
        cache: Folder of the decoded images; by default ``$RP_CACHE``, else ``rp_lib`` in the user's cache folder.
        near: Names of the OOD sets that are near the classes (role ``near-ood``); what an image shows is taken from
            its subfolder. All others are ``far-ood``.
        numeric: Sort the class folders of ``train`` as numbers.
        missing: What a val, test or shifted set that lacks classes is: ``"refuse"``; ``"among"``, predictions are
            made among the classes that it shows; or ``"all"``, among all classes.
        duplicates: What a picture is that stands in two sets of train, val, test, shifts and OOD, in this order (two
            shifts, or two OOD sets, may share some): ``"refuse"``, or ``"drop"``, which leaves it out of the later one.
            A picture with two labels is refused in any case.
        greyscale: What a file with one channel is: ``"refuse"``, or ``"convert"`` to three equal ones.
        val_fraction: Part of every class of ``train``, at least one image, that is kept aside for a val set that is
            not given; copies of a picture stay together.
        test_fraction: Likewise for a test set.
        subset: At most so many images of each set but ``train``, drawn with ``seed``; classes keep their shares.
        per_class: At most so many training images of each class, drawn likewise. All images are decoded and checked,
            whatever is drawn, so a smaller draw is part of the same split.
        seed: Of all draws and splits.
        progress: Show bars, and say what was split or left out.

    Raises:
        FolderError: Folders that are missing, empty, or do not fit the classes.
        BrokenImages: Files that cannot be decoded, of all sets.
        SharedImages: A picture in two sets or two classes.
        RPLibError: Names, prompts, sizes or options that do not fit.
    """
    if not 0 < val_fraction < 1 or not 0 < test_fraction < 1 or val_fraction + test_fraction >= 1:
        raise RPLibError(
            f"val_fraction and test_fraction must be above 0 and leave something of 1, got {val_fraction} and "
            f"{test_fraction}"
        )
    check_sizes(subset=subset, per_class=per_class)
    say = tqdm.write if progress else lambda text: None
    shifts, ood = dict(shifts or {}), {key: several(folder) for key, folder in (ood or {}).items()}
    templates = (templates,) if isinstance(templates, str) else tuple(templates)
    _check_set_names(shifts, ood, near)
    _check_places({**{key: several(folder) for key, folder in shifts.items()}, **ood})

    source = image_folder(train, numeric=numeric)
    folders = source.classes
    if not isinstance(class_names, Mapping):
        check_classes(source)
    names = name_classes(folders, class_names)
    check_prompts(folders, names, templates)

    # What every set consists of, before a single image is decoded: role, paths, labels.
    wanted: dict[str, tuple[str, list[Path], Tensor | None]] = {"train": ("train", source.paths, source.labels)}
    given = {"val": ("val", val), "test": ("test", test)} | {n: ("shift", folder) for n, folder in shifts.items()}
    for key, (role, folder) in given.items():
        if folder is not None:
            found = image_folder(folder)
            wanted[key] = (role, found.paths, match_classes(key, found, folders, may_lack=missing != "refuse"))
    for key, roots in ood.items():
        for root in roots:
            check_ood_folders(key, class_folders(root), folders, names)
        files = [path for root in roots for path in image_files(root)]
        wanted[key] = ("near-ood" if key in near else "far-ood", files, None)

    load = _Loader(size, cache, progress)
    fractions = {"val": val_fraction if val is None else 0.0, "test": test_fraction if test is None else 0.0}
    split = [key for key, fraction in fractions.items() if fraction]

    def load_with(identities: Sequence[bytes] | None) -> list[Loaded]:
        if identities is not None:
            for key, index in split_classes(source.labels, identities, fractions, names, seed).items():
                wanted[key] = (key, [source.paths[i] for i in index], source.labels[index])
        return load.all([(key, *wanted[key]) for key in ["train", "val", "test", *shifts, *ood]])

    sets = load_with(load.digests(source.paths) if split else None)
    if greyscale == "refuse":
        check_greyscale(sets)
    check_labels(sets, names)
    parts = [s for s in sets if s.name in ("train", *split)]
    if split and any(copies(s, parts[:i]) for i, s in enumerate(parts)):  # of other bytes: only now they are known
        pixels = {path: identity for s in parts for path, identity in zip(s.paths, s.identities, strict=True)}
        sets = load_with([pixels[path] for path in source.paths])
    for key in split:
        say(f"{key}: {len(wanted[key][1]):,} images of {source.root}, {fractions[key]:g} of every class, seed {seed}")
    sets = _without_copies(sets, duplicates, load, say)
    for s in sets:
        lost = set(wanted[s.name][2].tolist()) - set(s.labels.tolist()) if s.labels is not None else set()
        if lost:
            raise FolderError(f"{s.name!r} has no image of {listed([names[c] for c in sorted(lost)])} but copies")
    made = {}
    for s in sets:
        # Of all images of the set, whatever is drawn of it.
        class_subset = _among(s, len(folders)) if missing == "among" else None
        drawn = _image_set(_drawn(s, subset, per_class, seed, load), ood.get(s.name, ()), class_subset)
        made[s.name] = replace(drawn, preparation=Preparation.of(size))
    drop_covered(load.loaded)
    for one, two in (pair for kind in (shifts, ood) for pair in itertools.combinations(kind, 2)):
        a, b = made[one].images, made[two].images
        if len(a) and torch.equal(a[:1], b[:1]) and torch.equal(a, b):
            raise FolderError(
                f"{one!r} and {two!r} hold the same images, which would count twice in a mean over sets: leave one out"
            )
    return Benchmark(
        name, names, templates, made["train"], made["val"], made["test"],
        {key: made[key] for key in shifts}, {key: made[key] for key in ood},
    )  # fmt: skip


class _Loader:
    """Loads sets with the same settings."""

    def __init__(self, size: int | Preparation, cache: Path | None, progress: bool) -> None:
        self._size, self._cache, self._progress = size, cache, progress
        self.loaded: list[CachedImages] = []

    def digests(self, paths: Sequence[Path]) -> list[bytes]:
        """SHA-256 of every file; unreadable ones count as different, and are named when they are loaded."""
        files, broken = hash_files(paths, cache=self._cache, progress="train" if self._progress else None)
        return [b"%d" % i if i in broken else row.tobytes() for i, row in enumerate(files)]

    def all(self, wanted: Sequence[tuple[str, str, list[Path], Tensor | None]]) -> list[Loaded]:
        """Load every set; all broken files are in one error."""
        loaded, broken, total = [], {}, sum(len(paths) for _, _, paths, _ in wanted)
        for key, role, paths, labels in wanted:
            try:
                loaded.append(self.one(key, role, paths, labels))
            except BrokenImages as error:
                broken |= error.broken
        if broken:
            raise BrokenImages(broken, total)
        return loaded

    def one(self, key: str, role: str, paths: list[Path], labels: Tensor | None) -> Loaded:
        """Load one set."""
        cached = load_images(paths, self._size, cache=self._cache, progress=key if self._progress else None)
        self.loaded.append(cached)
        return Loaded(key, role, paths, labels, cached)


def _without_copies(sets: Sequence[Loaded], duplicates: str, load: _Loader, say: Callable[[str], None]) -> list[Loaded]:
    """Refuse or leave out pictures that an earlier set shows."""
    kept: list[Loaded] = []
    for s in sets:
        earlier = [e for e in kept if e.role in ("train", "val", "test") or (e.role == "shift" and s.labels is None)]
        shared = copies(s, earlier)
        if shared and duplicates == "refuse":
            refuse_copies(s, shared)
        if shared:
            out = {i for i, *_ in shared}
            stay = [i for i in range(len(s.paths)) if i not in out]
            if not stay:
                raise FolderError(f"every image of {s.name!r} stands in {listed([e.name for e in earlier])} too")
            say(f"{s.name}: {len(shared):,} images left out that stand in {listed([e.name for e in earlier])} too")
            labels = None if s.labels is None else s.labels[stay]
            kept.append(load.one(s.name, s.role, [s.paths[i] for i in stay], labels))
        else:
            kept.append(s)
    return kept


def _drawn(s: Loaded, subset: int | None, per_class: int | None, seed: int, load: _Loader) -> Loaded:
    """At most ``subset`` images of the set; of ``train``, ``per_class`` of each class."""
    if s.role == "train" and s.labels is not None:
        index = most_of_each(s.labels, per_class, seed)
    else:
        index = draw(s.labels, len(s.paths), subset, seed)
    if len(index) == len(s.paths):
        return s
    return load.one(s.name, s.role, [s.paths[i] for i in index], None if s.labels is None else s.labels[index])


def _among(s: Loaded, classes: int) -> tuple[int, ...] | None:
    """The classes that a labelled set shows, if it lacks some."""
    present = () if s.labels is None else tuple(s.labels.unique().tolist())
    return present if 0 < len(present) < classes else None


def _image_set(s: Loaded, roots: Sequence[Path], class_subset: tuple[int, ...] | None) -> ImageSet:
    first: dict[bytes, int] = {}
    groups = torch.tensor([first.setdefault(identity, i) for i, identity in enumerate(s.identities)])
    made = ImageSet(
        s.name, s.role, s.cached.images, s.labels, groups, sources=groups, paths=[str(path) for path in s.paths],
        content=s.cached.content, class_subset=class_subset,
    )
    if s.role == "near-ood":
        bases = roots if len(roots) == 1 else [root.parent for root in roots]  # of several, each shows one thing
        below = [next(p.relative_to(b).parts for b in bases if p.is_relative_to(b)) for p in s.paths]
        if all(len(parts) > 1 for parts in below):
            made = replace(made, names=[parts[0].replace("_", " ") for parts in below])
    return made


def _check_places(sets: Mapping[str, Sequence[Path]]) -> None:
    seen: dict[Path, str] = {}
    for name, roots in sets.items():
        for root in roots:
            if (other := seen.setdefault(root.resolve(), name)) != name:
                raise FolderError(f"{root} is both {other!r} and {name!r}: its pictures would count twice in a mean")


def _check_set_names(shifts: Mapping[str, Folder], ood: Mapping[str, Folder], near: Collection[str]) -> None:
    both = [key for key in shifts if key in ood] + [key for key in (*shifts, *ood) if key in ("train", "val", "test")]
    if both:
        raise RPLibError(f"the name {both[0]!r} stands for two image sets; give each its own")
    for key in near:
        if key not in ood:
            raise UnknownName("OOD set in near", key, ood)
