"""Predictions among some of the classes: for image sets that show some only and are scored over these."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rp_lib.utils.errors import RPLibError, UnknownName

if TYPE_CHECKING:
    import pandas as pd
from dataclasses import replace


def among_only(logits: Tensor, among: tuple[int, ...] | None) -> Tensor:
    """Logits (n, C) with those outside the class numbers ``among`` at minus infinity; None changes nothing.

    Softmax over the result is softmax over these classes, and the largest logit is the largest of theirs.

    Raises:
        RPLibError: a class number without a logit.
    """
    if among is None:
        return logits
    if among[-1] >= logits.shape[1]:
        raise RPLibError(f"there are {logits.shape[1]} logits, none of class {among[-1]} that is to be scored")
    kept = torch.full_like(logits, -torch.inf)
    kept[:, list(among)] = logits[:, list(among)]
    return kept


def check_among(among: Sequence[int], labels: Tensor | None, name: str) -> tuple[int, ...]:
    """Class numbers in ascending order, for an image set ``name`` with int64 ``labels`` (n,).

    Raises:
        RPLibError: a set without labels, no numbers, one twice or below 0, or a label that is not among them.
    """
    numbers = tuple(sorted(int(c) for c in among))
    if labels is None:
        raise RPLibError(f"{name!r} has no labels, so no prediction is made among classes")
    if not numbers or numbers[0] < 0 or len(set(numbers)) != len(numbers):
        raise RPLibError(f"{name!r} must be scored among distinct class numbers from 0, at least one")
    outside = sorted(set(labels.unique().tolist()) - set(numbers))
    if outside:
        raise RPLibError(f"{name!r} has the label {outside[0]}, which is not among the classes it is scored over")
    return numbers


# What methods are trained and judged on: image sets with a role, and a benchmark made of them.
#
# A benchmark has the three axes of the paper: ID classification (train, val, test), the same classes under
# covariate shift (``shifts``), and semantic OOD pictures that show none of the classes (``ood``).

ROLES = ("train", "val", "test", "shift", "near-ood", "far-ood")
OOD_ROLES = ("near-ood", "far-ood")


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images of one role.

    Attributes:
        name: what records and figures call it.
        role: one of :data:`ROLES`.
        images: uint8 (n, 3, h, w), 0 to 255.
        labels: int64 (n,) class numbers; None for OOD sets.
        groups: int64 (n,), which images are not independent (here: the family of designers that drew them), for
            clustered intervals; by default every image is a group of its own.
        styles: how each image is drawn, length n, or None where that is not known.
        sources: int64 (n,), which images show the same picture: a set derived from another (inverted, corrupted)
            says from which of its images; by default every image is its own. Intervals resample sources.
        names: what each image shows in words, length n, where the task's classes do not say it (near OOD), or None.
        content: hex digest of pixels that are too many to be hashed at every use (a memory-mapped cache, verified
            when it was made and opened). It stands for them in the fingerprint.
        derived_from: recipe of a derived set. It stands for the pixels in the fingerprint, because the last bit of
            computed pixels differs between processors.
        among: class numbers among which a prediction is made, for a set that shows some of the classes only and is
            scored over these (200 of 1000 in ImageNet-A and -R); kept sorted. None: among all classes.

    Raises:
        RPLibError: a shape, dtype, role or length that does not fit.
    """

    name: str
    role: str
    images: Tensor
    labels: Tensor | None
    groups: Tensor = None  # type: ignore[assignment]
    styles: list[str] | None = None
    sources: Tensor = None  # type: ignore[assignment]
    derived_from: str | None = None
    names: list[str] | None = None
    content: str | None = None
    among: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise UnknownName("role", self.role, ROLES)
        images, n = self.images, len(self.images)
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise RPLibError(
                f"the images of {self.name!r} must be uint8 of shape (n, 3, h, w), got "
                f"{str(images.dtype).removeprefix('torch.')} {tuple(images.shape)}"
            )
        if self.groups is None:
            object.__setattr__(self, "groups", torch.arange(n))
        if self.sources is None:
            object.__setattr__(self, "sources", torch.arange(n))
        if self.labels is None and self.role not in OOD_ROLES:
            raise RPLibError(f"{self.name!r} has the role {self.role!r} and needs labels")
        if self.labels is not None and self.role in OOD_ROLES:
            raise RPLibError(f"{self.name!r} is OOD: its images show none of the classes, so they take no labels")
        for what, values in (("labels", self.labels), ("groups", self.groups), ("sources", self.sources)):
            if values is not None and (values.dtype != torch.int64 or values.shape != (n,)):
                raise RPLibError(
                    f"the {what} of {self.name!r} must be int64 of shape ({n},), got "
                    f"{str(values.dtype).removeprefix('torch.')} {tuple(values.shape)}"
                )
        for what, words in (("styles", self.styles), ("names", self.names)):
            if words is not None and len(words) != n:
                raise RPLibError(f"{self.name!r} has {n} images but {len(words)} {what}")
        if self.among is not None:
            object.__setattr__(self, "among", check_among(self.among, self.labels, self.name))

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, index: Tensor | Sequence[int], name: str | None = None) -> ImageSet:
        """The images at ``index``: int64 positions (m,) or a bool mask (n,)."""
        index = torch.as_tensor(index)
        if index.dtype == torch.bool:
            if index.shape != (len(self),):
                raise RPLibError(f"a mask for {self.name!r} must have shape ({len(self)},), got {tuple(index.shape)}")
            index = index.nonzero()[:, 0]
        index = index.long()
        return ImageSet(
            name=name or self.name,
            role=self.role,
            images=self.images[index],
            labels=None if self.labels is None else self.labels[index],
            groups=self.groups[index],
            styles=None if self.styles is None else [self.styles[i] for i in index.tolist()],
            sources=self.sources[index],
            derived_from=None if self.derived_from is None else f"{self.derived_from} at {index.tolist()}",
            names=None if self.names is None else [self.names[i] for i in index.tolist()],
            content=None if self.content is None else _content_at(self.content, index % max(len(self), 1)),
            among=self.among,
        )

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over images, labels and groups: the same data, the same fingerprint."""
        digest = hashlib.sha256()
        digest.update(f"{self.derived_from}".encode())
        named = self.derived_from or self.content
        if self.content is not None and self.derived_from is None:
            digest.update(f"content {self.content} {tuple(self.images.shape)}".encode())
        for values in (None if named else self.images, self.labels, self.groups):
            if values is None:
                digest.update(b"none")
                continue
            digest.update(f"{values.dtype} {tuple(values.shape)}".encode())
            digest.update(values.contiguous().numpy().data)
        if self.among is not None:
            digest.update(f"among {self.among}".encode())
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Benchmark:
    """Classes, their prompts, and the image sets of all three axes.

    Attributes:
        name: e.g. ``"mini"``.
        class_names: as they stand in prompts; no two alike.
        templates: prompts with one ``{}`` for the class name; several are averaged.
        train, val, test: ID image sets.
        shifts: the same classes, drawn, coloured or stored differently; by name.
        ood: images that show none of the classes; by name.

    Raises:
        RPLibError: a class twice or without training images, a label out of range, a set in the wrong place.
    """

    name: str
    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    train: ImageSet
    val: ImageSet
    test: ImageSet
    shifts: Mapping[str, ImageSet] = field(default_factory=dict)
    ood: Mapping[str, ImageSet] = field(default_factory=dict)

    def __post_init__(self) -> None:
        twice = sorted({name for name in self.class_names if self.class_names.count(name) > 1})
        if twice:
            raise RPLibError(f"benchmark {self.name!r} has the class {twice[0]!r} twice")
        if not self.templates or any(template.count("{}") != 1 for template in self.templates):
            raise RPLibError(f"each prompt template needs one {{}} for the class name, got {list(self.templates)}")
        places = [("train", self.train, ("train",)), ("val", self.val, ("val",)), ("test", self.test, ("test",))]
        places += [(name, images, ("shift",)) for name, images in self.shifts.items()]
        places += [(name, images, OOD_ROLES) for name, images in self.ood.items()]
        for place, images, roles in places:
            if images.role not in roles:
                raise RPLibError(
                    f"{place!r} of benchmark {self.name!r} must have the role {roles[0]!r}, not {images.role!r}"
                )
            if images.labels is not None and len(images):
                low, high = int(images.labels.min()), int(images.labels.max())
                if low < 0 or high >= len(self.class_names):
                    raise RPLibError(
                        f"{images.name!r} has labels {low} to {high} but there are only {len(self.class_names)} classes"
                    )
            if images.among is not None and images.among[-1] >= len(self.class_names):
                raise RPLibError(
                    f"{images.name!r} is scored among classes up to {images.among[-1]} but there are only "
                    f"{len(self.class_names)}"
                )
        counts = torch.bincount(self.train.labels, minlength=len(self.class_names))
        for name, count in zip(self.class_names, counts.tolist(), strict=True):
            if not count:
                raise RPLibError(f"class {name!r} of benchmark {self.name!r} has no training image")

    @property
    def sets(self) -> tuple[ImageSet, ...]:
        """Every image set: train, val, test, shifts, OOD."""
        return (self.train, self.val, self.test, *self.shifts.values(), *self.ood.values())

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over classes, prompts and all data."""
        parts = [self.class_names, self.templates, [(s.name, s.role, s.fingerprint) for s in self.sets]]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def describe(self) -> pd.DataFrame:
        """One row per image set: set, role, n, classes (present; 0 for OOD), families (groups)."""
        import pandas as pd

        return pd.DataFrame(
            [
                {
                    "set": images.name,
                    "role": images.role,
                    "n": len(images),
                    "classes": 0 if images.labels is None else len(images.labels.unique()),
                    "families": len(images.groups.unique()),
                }
                for images in self.sets
            ]
        )


def _content_at(content: str, index: Tensor) -> str:
    """The digest of a subset, from the digest of the whole and int64 positions (m,) from 0."""
    return hashlib.sha256(f"{content} at".encode() + index.contiguous().numpy().tobytes()).hexdigest()


# Even subsets of image sets, for a shorter look at the same thing.

def evenly(n: int, wanted: int) -> Tensor:
    """int64 positions of ``wanted`` of ``n`` items, evenly spaced; all if there are no more."""
    return torch.arange(n) if wanted >= n else (torch.arange(wanted) * n) // wanted


def lighten(benchmark: Benchmark, test: int, other: int) -> Benchmark:
    """A benchmark with at most ``test`` test images and ``other`` of each shifted and OOD set, evenly spaced.

    Sets derived from test images keep those whose source is kept, so that paired comparisons stay paired.
    """
    kept = benchmark.test.subset(evenly(len(benchmark.test), test))

    def fewer(images: ImageSet) -> ImageSet:
        if images.derived_from:
            return images.subset(torch.isin(images.sources, kept.sources))
        return images.subset(evenly(len(images), other))

    return replace(
        benchmark,
        test=kept,
        shifts={name: fewer(images) for name, images in benchmark.shifts.items()},
        ood={name: fewer(images) for name, images in benchmark.ood.items()},
    )
