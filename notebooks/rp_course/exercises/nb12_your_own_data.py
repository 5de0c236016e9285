"""Exercises of notebook 12, your own data."""

from __future__ import annotations

import hashlib
import math
from statistics import NormalDist

import torch
from torch import Tensor

from rp_course.exercise import Case, Exercise, Mistake


def leaked(train: Tensor, test: Tensor) -> list[int]:
    """Positions in test of the images that stand in train too, pixel for pixel."""
    known = {hashlib.sha256(image.numpy().tobytes()).digest() for image in train}
    return [i for i, image in enumerate(test) if hashlib.sha256(image.numpy().tobytes()).digest() in known]


def _same_place(train, test):
    return [i for i, (a, b) in enumerate(zip(train, test, strict=False)) if torch.equal(a, b)]


def _same_sum(train, test):
    known = {int(image.long().sum()) for image in train}
    return [i for i, image in enumerate(test) if int(image.long().sum()) in known]


def _places_in_train(train, test):
    return leaked(test, train)


def _how_many(train, test):
    return len(leaked(train, test))


def _leak_cases() -> tuple[Case, ...]:
    def pictures(seed: int, n: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(0, 256, (n, 3, 6, 6), dtype=torch.uint8, generator=generator)

    train, fresh = pictures(0, 8), pictures(1, 6)
    mixed = fresh.clone()
    mixed[1], mixed[4] = train[6], train[0]
    in_place = fresh.clone()
    in_place[2] = train[2]
    return (
        Case("two test images from elsewhere in train", (train, mixed)),
        Case("nothing shared", (train, fresh)),
        Case("mirrored images: the same sum, other pictures", (train, train.flip(-1)[:4])),
        Case("one shared, at the same place", (train, in_place)),
    )


def pictures_needed(half_width: float, accuracy: float) -> int:
    """Test pictures for a 95 % interval of accuracy ± half_width (both fractions), by the normal approximation."""
    z = NormalDist().inv_cdf(0.975)
    return math.ceil(z**2 * accuracy * (1 - accuracy) / half_width**2)


def _whole_width(half_width, accuracy):
    return pictures_needed(half_width / 2, accuracy)


def _not_squared(half_width, accuracy):
    z = NormalDist().inv_cdf(0.975)
    return math.ceil(z * math.sqrt(accuracy * (1 - accuracy)) / half_width)


def _worst_case(half_width, accuracy):
    return pictures_needed(half_width, 0.5)


def _one_standard_error(half_width, accuracy):
    return math.ceil(accuracy * (1 - accuracy) / half_width**2)


def _rounded_down(half_width, accuracy):
    z = NormalDist().inv_cdf(0.975)
    return math.floor(z**2 * accuracy * (1 - accuracy) / half_width**2)


def _needed_cases() -> tuple[Case, ...]:
    return (
        Case("90 % plus or minus 1 point", (0.01, 0.9)),
        Case("90 % plus or minus 2 points", (0.02, 0.9)),
        Case("a coin, plus or minus 5 points", (0.05, 0.5)),
        Case("99 % plus or minus half a point", (0.005, 0.99)),
    )


EXERCISES = (
    Exercise(
        reference=leaked,
        minutes=6,
        cases=_leak_cases,
        hints=(
            "Two images are the same if their bytes are; where they stand in their sets does not matter.",
            "hashlib.sha256(image.numpy().tobytes()).digest() is a fingerprint; put those of train into a set.",
            "[i for i, image in enumerate(test) if fingerprint(image) in known]",
        ),
        mistakes=(
            Mistake(_same_place, "a copy may stand at any place: compare each test image with all of train"),
            Mistake(_same_sum, "different pictures can have the same sum: hash the bytes, which keeps their order"),
            Mistake(_places_in_train, "these are positions in train; the test images are the ones to take out"),
            Mistake(_how_many, "return the positions, a list: whoever mends the data must know which ones"),
        ),
    ),
    Exercise(
        reference=pictures_needed,
        minutes=6,
        cases=_needed_cases,
        hints=(
            "One picture is right with probability p: its variance is p (1 - p), that of a mean of n is p (1 - p) / n.",
            "The half width is z * sqrt(p (1 - p) / n) with z = NormalDist().inv_cdf(0.975); solve for n.",
            "math.ceil(z**2 * accuracy * (1 - accuracy) / half_width**2)",
        ),
        mistakes=(
            Mistake(_whole_width, "half_width is the distance from the estimate to one end; do not halve it again"),
            Mistake(_not_squared, "the half width falls with the square root of n, so n grows with its square"),
            Mistake(
                _worst_case, "0.25 is the variance of a coin; with an accuracy at hand take accuracy * (1 - accuracy)"
            ),
            Mistake(
                _one_standard_error,
                "one standard error covers only two thirds of all samples: multiply by z of 97.5 %, squared",
            ),
            Mistake(_rounded_down, "round up: one picture fewer does not reach the half width"),
        ),
    ),
)
