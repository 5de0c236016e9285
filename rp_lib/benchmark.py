"""Image sets and benchmarks: what methods are trained and evaluated on.

A benchmark has the three axes of the paper: ID classification (train, val, test), the same classes under covariate
shift (``shifts``), and out-of-distribution images that show none of the classes (``ood``).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import combinations
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rp_lib.utils.arguments import checked
from rp_lib.utils.errors import RPLibError, UnknownName
from rp_lib.utils.preparation import Preparation

if TYPE_CHECKING:
    import pandas as pd

ROLES = ("train", "val", "test", "shift", "control", "near-ood", "far-ood")
OOD_ROLES = ("near-ood", "far-ood")


def mask_logits(logits: Tensor, class_subset: tuple[int, ...] | None) -> Tensor:
    """Set the logits of classes outside a subset to minus infinity.

    Softmax over the result is softmax over the subset, and its largest logit is the largest of the subset.

    Args:
        logits: Float, shape (n, C).
        class_subset: Class numbers in ascending order; None returns ``logits`` unchanged.

    Raises:
        RPLibError: A class number without a logit.
    """
    if class_subset is None:
        return logits
    if class_subset[-1] >= logits.shape[1]:
        raise RPLibError(f"there are {logits.shape[1]} logits, none of class {class_subset[-1]} that is to be scored")
    kept = torch.full_like(logits, -torch.inf)
    kept[:, list(class_subset)] = logits[:, list(class_subset)]
    return kept


@checked
@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images of one role, with labels and with what intervals need to know about them.

    Args:
        name: What records and figures call the set.
        role: One of :data:`ROLES`.
        images: uint8, shape (n, 3, h, w), 0 to 255.
        labels: Class numbers, int64, shape (n,); None for OOD sets.
        groups: Which images are not independent (in the mini benchmark: the designers that drew them), int64, shape
            (n,). Clustered intervals resample groups. By default every image is a group of its own.
        styles: How each image is drawn, length n; None where that is not known.
        sources: Which images show the same picture, int64, shape (n,): an inverted or corrupted set says from which
            test image each of its images is made. Intervals resample sources. By default every image is its own.
        derived_from: How a derived set was computed. It stands for the pixels in the fingerprint, because the last
            bit of computed pixels differs between processors.
        names: What each image shows, in words, length n, where the classes do not say it (near OOD); or None.
        paths: The file of each image, length n; None where there are no files.
        preparation: How the pictures became these squares; None where that is not known.
        content: Hex digest of pixels that are too many to be hashed at each use (a memory-mapped cache, verified when
            it was made and opened). It stands for the pixels in the fingerprint.
        class_subset: Class numbers that predictions choose from, for a set that shows some of the classes only and
            is scored over these (200 of 1000 in ImageNet-A and -R). Kept sorted. None: all classes.
        class_names: What the labels mean, in their order. A benchmark notes its own; methods with other classes refuse
            the set, and those with the same ones in another order read its labels by name.

    Raises:
        RPLibError: A shape, dtype, role or length that does not fit.

    Example:
        >>> images = torch.zeros(4, 3, 32, 32, dtype=torch.uint8)
        >>> ImageSet("sketches", "shift", images, labels=torch.tensor([0, 1, 0, 1]))
        ImageSet('sketches', role='shift', 4 images of 32 x 32 pixels, 2 classes)
    """

    name: str
    role: str
    images: Tensor
    labels: Tensor | None
    groups: Tensor | None = None
    styles: list[str] | None = None
    sources: Tensor | None = None
    derived_from: str | None = None
    names: list[str] | None = None
    paths: list[str] | None = None
    preparation: Preparation | None = None
    content: str | None = None
    class_subset: tuple[int, ...] | None = None
    class_names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise UnknownName("role", self.role, ROLES)
        images, n = self.images, len(self.images)
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise RPLibError(
                f"the images of {self.name!r} must be uint8 of shape (n, 3, h, w), got "
                f"{str(images.dtype).removeprefix('torch.')} {tuple(images.shape)}"
            )
        for own in ("groups", "sources"):
            if getattr(self, own) is None:
                object.__setattr__(self, own, torch.arange(n))
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
        for what, words in (("styles", self.styles), ("names", self.names), ("paths", self.paths)):
            if words is not None and len(words) != n:
                raise RPLibError(f"{self.name!r} has {n} images but {len(words)} {what}")
        if self.labels is not None and n:
            low, high, total = int(self.labels.min()), int(self.labels.max()), len(self.class_names or ())
            if low < 0 or (total and high >= total):
                raise RPLibError(f"the labels of {self.name!r} are class numbers from 0, got {low} to {high}")
        if self.class_subset is not None:
            object.__setattr__(self, "class_subset", _check_class_subset(self.class_subset, self.labels, self.name))

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        height, width = self.images.shape[2:]
        classes = "" if self.labels is None else f", {len(self.labels.unique())} classes"
        return f"ImageSet({self.name!r}, role={self.role!r}, {len(self)} images of {height} x {width} pixels{classes})"

    @checked
    def subset(self, index: Tensor | Sequence[int] | Sequence[bool]) -> ImageSet:
        """Select images by position or by mask.

        Args:
            index: int64 positions, shape (m,), or a bool mask, shape (n,).
        """
        index = torch.as_tensor(index)
        if index.dtype == torch.bool:
            if index.shape != (len(self),):
                raise RPLibError(f"a mask for {self.name!r} must have shape ({len(self)},), got {tuple(index.shape)}")
            index = index.nonzero()[:, 0]
        index = index.long()
        if index.ndim != 1 or bool((index < -len(self)).any() | (index >= len(self)).any()):
            raise RPLibError(f"{self.name!r} has {len(self)} images: positions are 1-D, from 0 to {len(self) - 1}")
        positions = index.tolist()
        return replace(
            self,
            images=self.images[index],
            labels=None if self.labels is None else self.labels[index],
            groups=self.groups[index],
            styles=None if self.styles is None else [self.styles[i] for i in positions],
            sources=self.sources[index],
            derived_from=None if self.derived_from is None else f"{self.derived_from} at {positions}",
            names=None if self.names is None else [self.names[i] for i in positions],
            paths=None if self.paths is None else [self.paths[i] for i in positions],
            content=None if self.content is None else _content_at(self.content, index % max(len(self), 1)),
        )

    @checked
    def subsample(self, n: int) -> ImageSet:
        """Select ``n`` evenly spaced images; all of them if there are no more."""
        every = torch.arange(len(self)) if n >= len(self) else (torch.arange(n) * len(self)) // n
        return self.subset(every)

    def for_classes(self, class_names: Sequence[str]) -> ImageSet:
        """Return the set with labels that count in ``class_names``; itself if they do, or if nothing says otherwise.

        Raises:
            RPLibError: Its classes are not these; the message names the first difference.
        """
        mine, wanted = self.class_names, tuple(class_names)
        if mine is None or self.labels is None or mine == wanted:
            return self
        if sorted(mine) != sorted(wanted):
            here, there = (next((n for n in a if n not in b), None) for a, b in ((mine, wanted), (wanted, mine)))
            parts = [f"{here!r} is a class of the images alone"] * (here is not None)
            parts += [f"{there!r} one of the method alone"] * (there is not None)
            raise RPLibError(
                f"{self.name!r} has {len(mine)} classes and the method {len(wanted)}, and they are not the same: "
                f"{', '.join(parts)}; build the method with the class names of the images"
            )
        order = torch.tensor([wanted.index(name) for name in mine])
        subset = None if self.class_subset is None else tuple(order[list(self.class_subset)].tolist())
        return replace(self, labels=order[self.labels], class_subset=subset, class_names=wanted)

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
        if self.class_subset is not None:
            digest.update(f"among {self.class_subset}".encode())  # the word is part of saved fingerprints
        return digest.hexdigest()


@checked
@dataclass(frozen=True, eq=False)
class Benchmark:
    """Classes, their prompts, and the image sets of all three axes.

    Args:
        name: Such as ``"mini"``.
        class_names: As they stand in prompts; no two alike.
        templates: Prompts with one ``{}`` for the class name. The embeddings of several are averaged.
        train: ID images to learn from; every class has at least one.
        val: ID images to choose settings with.
        test: ID images to evaluate on.
        shifts: By name, image sets of the same classes, drawn, coloured or stored differently.
        ood: By name, image sets that show none of the classes.
        controls: By name, labelled sets beside the shifts that are no shift for the backbone at hand; no mean over
            shifts has them.

    Raises:
        RPLibError: A class twice or without training images, a label out of range, a set in the wrong place or twice.

    Example:
        >>> from rp_lib import mini
        >>> data = mini.load_benchmark()
        >>> data.subsample(test=100, other=50).shifts["emoji"]
        ImageSet('emoji', role='shift', 50 images of 64 x 64 pixels, 26 classes)
    """

    name: str
    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    train: ImageSet
    val: ImageSet
    test: ImageSet
    shifts: Mapping[str, ImageSet] = field(default_factory=dict)
    ood: Mapping[str, ImageSet] = field(default_factory=dict)
    controls: Mapping[str, ImageSet] = field(default_factory=dict)

    def __post_init__(self) -> None:
        twice = sorted({name for name in self.class_names if self.class_names.count(name) > 1})
        if twice:
            raise RPLibError(f"benchmark {self.name!r} has the class {twice[0]!r} twice")
        if not self.templates or any(template.count("{}") != 1 for template in self.templates):
            raise RPLibError(f"each prompt template needs one {{}} for the class name, got {list(self.templates)}")
        places = [("train", self.train, ("train",)), ("val", self.val, ("val",)), ("test", self.test, ("test",))]
        places += [(name, images, ("shift",)) for name, images in self.shifts.items()]
        places += [(name, images, OOD_ROLES) for name, images in self.ood.items()]
        places += [(name, images, ("control",)) for name, images in self.controls.items()]
        total = len(self.class_names)
        for place, images, roles in places:
            if images.role not in roles:
                raise RPLibError(
                    f"{place!r} of benchmark {self.name!r} must have the role {roles[0]!r}, not {images.role!r}"
                )
            if images.labels is not None and len(images):
                low, high = int(images.labels.min()), int(images.labels.max())
                if low < 0 or high >= total:
                    raise RPLibError(f"{images.name!r} has labels {low} to {high} but there are only {total} classes")
            if images.class_subset is not None and (highest := images.class_subset[-1]) >= total:
                raise RPLibError(f"{images.name!r} is scored among classes up to {highest} but there are only {total}")
        for part in ("train", "val", "test"):
            object.__setattr__(self, part, self._named(getattr(self, part)))
        for part in ("shifts", "controls"):
            object.__setattr__(self, part, {name: self._named(s) for name, s in getattr(self, part).items()})
        for parts in (self.shifts, self.ood):
            for (one, a), (two, b) in combinations(parts.items(), 2):
                if a.images is b.images and a.class_subset == b.class_subset:
                    raise RPLibError(
                        f"{one!r} and {two!r} of benchmark {self.name!r} are the same set, which would count twice "
                        "in a mean over sets: leave one out"
                    )
        counts = torch.bincount(self.train.labels, minlength=total)
        for name, count in zip(self.class_names, counts.tolist(), strict=True):
            if not count:
                raise RPLibError(f"class {name!r} of benchmark {self.name!r} has no training image")

    def _named(self, images: ImageSet) -> ImageSet:
        """Note the class names in a set; one that stands in a benchmark of other classes too is copied."""
        names = tuple(self.class_names)
        if images.class_names is None:
            object.__setattr__(images, "class_names", names)
        return images if images.class_names == names else replace(images, class_names=names)

    def __repr__(self) -> str:
        prompts = f"{self.templates[0]!r}" + (f" and {n} more" if (n := len(self.templates) - 1) else "")
        width = max(len(images.name) for images in self.sets)
        rows = [f"  {images.role:8}  {images.name:{width}}  {len(images):>7,}" for images in self.sets]
        return "\n".join([f"Benchmark {self.name!r}: {len(self.class_names)} classes, prompts {prompts}", *rows])

    @property
    def sets(self) -> tuple[ImageSet, ...]:
        """Every image set: train, val, test, shifts, OOD, controls."""
        return (
            self.train, self.val, self.test, *self.shifts.values(), *self.ood.values(), *self.controls.values()
        )  # fmt: skip

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over classes, prompts and all data."""
        parts = [self.class_names, self.templates, [(s.name, s.role, s.fingerprint) for s in self.sets]]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def describe(self) -> pd.DataFrame:
        """One row an image set: set, role, n, classes (present; 0 for OOD), families (groups)."""
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

    def subsample(self, test: int, other: int) -> Benchmark:
        """Keep fewer images to evaluate on, evenly spaced; train and val stay.

        Sets derived from test images keep those whose source is kept, so that paired comparisons stay paired.

        Args:
            test: Test images to keep, at most.
            other: Images to keep of each shifted, OOD and control set, at most.
        """
        kept = self.test.subsample(test)

        def fewer(images: ImageSet) -> ImageSet:
            if images.derived_from:
                return images.subset(torch.isin(images.sources, kept.sources))
            return images.subsample(other)

        return replace(
            self,
            test=kept,
            shifts={name: fewer(images) for name, images in self.shifts.items()},
            ood={name: fewer(images) for name, images in self.ood.items()},
            controls={name: fewer(images) for name, images in self.controls.items()},
        )


def _check_class_subset(subset: Sequence[int], labels: Tensor | None, name: str) -> tuple[int, ...]:
    """Class numbers in ascending order, for an image set ``name`` with int64 ``labels`` (n,)."""
    numbers = tuple(sorted(int(c) for c in subset))
    if labels is None:
        raise RPLibError(f"{name!r} has no labels, so no prediction is made among classes")
    if not numbers or numbers[0] < 0 or len(set(numbers)) != len(numbers):
        raise RPLibError(f"{name!r} must be scored among distinct class numbers from 0, at least one")
    outside = sorted(set(labels.unique().tolist()) - set(numbers))
    if outside:
        raise RPLibError(f"{name!r} has the label {outside[0]}, which is not among the classes it is scored over")
    return numbers


def _content_at(content: str, index: Tensor) -> str:
    """The digest of a subset, from the digest of all pixels and int64 positions (m,) from 0."""
    return hashlib.sha256(f"{content} at".encode() + index.contiguous().numpy().tobytes()).hexdigest()
