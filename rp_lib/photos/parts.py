"""What the published benchmarks are put together from: folders that were downloaded, draws, image sets."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rp_lib.benchmark import ImageSet
from rp_lib.data import DataStore, NotThere, default_root, load_sources
from rp_lib.errors import RPLibError, UnknownName
from rp_lib.photos.cache import load_images

log = logging.getLogger(__name__)
MISSING = ("error", "skip")


def located(needed: Sequence[str], optional: Sequence[str], root: Path | None, missing: str) -> dict[str, Path]:
    """Folders of data sets by name.

    Args:
        needed, optional: names as in ``rp-lib data --list``. root: folder of the data sets.
        missing: what an optional one that is not there is: an ``"error"``, or ``"skip"``, left out with a warning.

    Raises:
        NotThere: some are not there; the message lists all of them and how to get them.
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
    """int64 positions, ascending, of ``wanted`` of ``n`` images at random; all if there are no more.

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
    """int64 positions, ascending, of the images to train on and of those kept aside, drawn for each class.

    Args:
        labels: int64 (n,). train: images of each class; None takes all that are not kept aside.
        val: images of each class kept aside; they do not depend on ``train``.

    Raises:
        RPLibError: a class has too few images, or a number below 1.
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
    """int64 positions, ascending, of at most ``most`` images of each class at random; None takes all."""
    if most is None:
        return torch.arange(len(labels))
    chance = torch.from_numpy(np.random.default_rng(seed).random(len(labels)))
    order = chance.argsort(stable=True)
    chosen = [order[labels[order] == label][:most] for label in labels.unique().tolist()]
    return torch.cat(chosen).sort().values


def split_classes(
    labels: Tensor, identities: Sequence[bytes], fractions: Mapping[str, float], names: Sequence[str], seed: int
) -> dict[str, list[int]]:
    """Positions of ``train`` and of each part kept aside: the given fraction of every class, at least one picture.

    Args:
        labels: int64 (n,). identities: n, images with equal ones stay together. fractions: 0 makes no part.

    Raises:
        RPLibError: a class with fewer pictures than there are parts.
    """
    wanted = {part: fraction for part, fraction in fractions.items() if fraction}
    parts: dict[str, list[int]] = {"train": [], **{part: [] for part in wanted}}
    generator = torch.Generator().manual_seed(seed)
    members: list[dict[bytes, list[int]]] = [defaultdict(list) for _ in names]
    for i, (label, identity) in enumerate(zip(labels.tolist(), identities, strict=True)):
        members[label][identity].append(i)
    for name, pictures in zip(names, members, strict=True):
        if len(pictures) <= len(wanted):
            raise RPLibError(
                f"class {name!r} has {len(pictures)} different images, too few to keep {' and '.join(wanted)} aside; "
                "add images, or give folders for these sets"
            )
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
    """Makes image sets of one side, drawn with one seed.

    Attributes:
        size: pixels. cache, workers, progress: see :func:`rp_lib.photos.load_images`.
    """

    size: int
    cache: Path | None
    workers: int | None
    progress: bool
    seed: int

    def of_files(
        self,
        name: str,
        role: str,
        paths: Sequence[Path],
        labels: Tensor | None = None,
        *,
        subset: int | None = None,
        among: tuple[int, ...] | None = None,
    ) -> ImageSet:
        """At most ``subset`` of these files, decoded once into the cache and mapped into memory."""
        index = draw(labels, len(paths), subset, self.seed)
        cached = load_images(
            [paths[i] for i in index.tolist()], self.size, cache=self.cache, workers=self.workers,
            progress=name if self.progress else None,
        )  # fmt: skip
        labels = None if labels is None else labels[index]
        return ImageSet(name, role, cached.images, labels, content=cached.content, among=among)

    def of_pixels(
        self, name: str, role: str, pixels: np.ndarray, labels: Tensor | None = None, *, subset: int | None = None
    ) -> ImageSet:
        """At most ``subset`` of uint8 (n, h, h, 3) images; another side is resized as that of files is, antialiased."""
        index = draw(labels, len(pixels), subset, self.seed)
        chosen = pixels[index.numpy()]
        if chosen.shape[1] != self.size:
            side = (self.size, self.size)
            chosen = np.stack([np.asarray(Image.fromarray(x).resize(side, Image.Resampling.BICUBIC)) for x in chosen])
        images = torch.from_numpy(np.ascontiguousarray(chosen.transpose(0, 3, 1, 2)))
        return ImageSet(name, role, images, None if labels is None else labels[index])
