"""Exercises of notebook 09: details of the released code that change a number."""

from __future__ import annotations

import torch
from torch import Tensor

from rp_course.exercise import Case, Exercise, Mistake


def wrapped(normalised: Tensor) -> Tensor:
    """What a cast to 8 bits makes of normalised pixels, float in, float in [0, 1] out.

    The released detection script multiplies normalised pixels by 255 and stores them as unsigned bytes: the whole part
    stays, modulo 256.
    """
    return (normalised * 255).trunc().remainder(256) / 255


def _clipped(normalised: Tensor) -> Tensor:
    return (normalised * 255).trunc().clamp(0, 255) / 255


def _not_scaled_back(normalised: Tensor) -> Tensor:
    return (normalised * 255).trunc().remainder(256)


def _modulo_255(normalised: Tensor) -> Tensor:
    return (normalised * 255).trunc().remainder(255) / 255


def _sign_kept(normalised: Tensor) -> Tensor:
    return (normalised * 255).trunc().fmod(256) / 255


def _wrap_cases() -> tuple[Case, ...]:
    g = torch.Generator().manual_seed(9)
    return (
        Case("pixels on both sides of zero", (torch.randn(3, 4, 4, generator=g),)),
        Case("pixels that need no wrapping", (torch.rand(3, 4, 4, generator=g) * 0.9,)),
        Case("one bright and one dark pixel", (torch.tensor([2.1, -1.7]),)),
    )


def map_labels(labels: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
    """Labels in another order of classes, and which pictures stay.

    labels int (n,), old numbers; new int (C,), the new number of every old class, -1 if there is none. Returns new
    labels int (m,) of the pictures that stay, and bool (n,), which these are.
    """
    moved = new[labels]
    kept = moved >= 0
    return moved[kept], kept


def _not_dropped(labels: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
    return new[labels], torch.ones(len(labels), dtype=torch.bool)


def _inverse(labels: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
    back = torch.full((int(max(new.max(), labels.max())) + 1,), -1)
    back[new[new >= 0]] = torch.arange(len(new))[new >= 0]
    moved = back[labels]
    return moved[moved >= 0], moved >= 0


def _left_alone(labels: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
    kept = new[labels] >= 0
    return labels[kept], kept


def _map_cases() -> tuple[Case, ...]:
    stl10 = torch.tensor([0, 2, 1, 3, 4, 5, 7, -1, 8, 9])
    g = torch.Generator().manual_seed(3)
    return (
        Case("STL-10 to CIFAR-10", (torch.randint(10, (40,), generator=g), stl10)),
        Case("three classes in a circle", (torch.tensor([0, 1, 2, 2, 1]), torch.tensor([1, 2, 0]))),
        Case("a class that is gone", (torch.tensor([0, 1, 1, 2]), torch.tensor([1, -1, 0]))),
    )


EXERCISES = (
    Exercise(
        reference=wrapped,
        minutes=5,
        cases=_wrap_cases,
        hints=(
            "An unsigned byte holds 0 to 255. What does not fit starts again at 0: 256 becomes 0, -1 becomes 255.",
            "(normalised * 255).trunc() drops the fraction; .remainder(256) wraps, also below zero.",
            "Divide by 255 at the end, to be back in [0, 1].",
        ),
        mistakes=(
            Mistake(_clipped, "this saturates, as a careful cast would; the script's values wrap around instead"),
            Mistake(_not_scaled_back, "divide by 255 at the end: pixels belong in [0, 1]"),
            Mistake(_modulo_255, "a byte has 256 values: the remainder is modulo 256"),
            Mistake(_sign_kept, "an unsigned byte has no sign: -1 becomes 255; use remainder, not fmod"),
        ),
    ),
    Exercise(
        reference=map_labels,
        minutes=5,
        cases=_map_cases,
        hints=(
            "new[labels] looks up the new number of every picture's class.",
            "Where it is -1, the picture has no class any more: kept = new[labels] >= 0.",
            "Return new[labels][kept] and kept.",
        ),
        mistakes=(
            Mistake(_not_dropped, "a class without a new number is marked -1: its pictures must be left out"),
            Mistake(_inverse, "new[old] is the new number; this looks the map up the other way round"),
            Mistake(_left_alone, "the pictures are right, but their labels are still the old numbers"),
        ),
    ),
)
