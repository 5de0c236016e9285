"""Exercises of notebook 11, scale."""

from __future__ import annotations

import torch
from torch import Tensor

from rp_course.exercise import Case, Exercise, Mistake


def expected_distinct(batch: int, classes: int) -> float:
    """Expected number of distinct classes among `batch` images, each of a class drawn evenly."""
    return classes * (1 - (1 - 1 / classes) ** batch)


def _at_most(batch, classes):
    return float(min(batch, classes))


def _probability(batch, classes):
    return expected_distinct(batch, classes) / classes


def _absent(batch, classes):
    return classes - expected_distinct(batch, classes)


def _exchanged(batch, classes):
    return batch * (1 - (1 - 1 / batch) ** classes)


def _distinct_cases() -> tuple[Case, ...]:
    return (
        Case("one image", (1, 10)),
        Case("two images, two classes", (2, 2)),
        Case("a batch of 128, 10 classes", (128, 10)),
        Case("a batch of 128, 1000 classes", (128, 1000)),
        Case("one class", (5, 1)),
    )


def whole_batch_gradient(gradients: list[Tensor], sizes: list[int]) -> Tensor:
    """Gradient of the mean loss of a whole batch, from those of the mean losses of its parts."""
    weighted = torch.stack([size * gradient for gradient, size in zip(gradients, sizes, strict=True)])
    return weighted.sum(0) / sum(sizes)


def _sum(gradients, sizes):
    return torch.stack(gradients).sum(0)


def _plain_mean(gradients, sizes):
    return torch.stack(gradients).mean(0)


def _weighted_sum(gradients, sizes):
    return torch.stack([n * g for g, n in zip(gradients, sizes, strict=True)]).sum(0)


def _weighted_and_averaged(gradients, sizes):
    return _weighted_sum(gradients, sizes) / len(sizes)


def _gradient_cases() -> tuple[Case, ...]:
    def parts(seed: int, n: int, *shape: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return [torch.randn(shape, generator=generator) for _ in range(n)]

    return (
        Case("two equal parts", (parts(0, 2, 4, 3), [64, 64])),
        Case("four parts, the last is smaller", (parts(1, 4, 5), [32, 32, 32, 4])),
        Case("one process", (parts(2, 1, 2, 2), [7])),
    )


EXERCISES = (
    Exercise(
        reference=expected_distinct,
        minutes=5,
        cases=_distinct_cases,
        hints=(
            "Expectations add up: the expected number of classes present is the sum of each class's probability to be.",
            "One image misses a class with probability 1 - 1 / classes; a whole batch misses it with that to the power "
            "of batch.",
            "A class is hit with probability 1 - (1 - 1 / classes) ** batch; add that up over the classes.",
        ),
        mistakes=(
            Mistake(_at_most, "that is the largest possible number; classes also come up twice by chance"),
            Mistake(_probability, "this is one class's probability to be present: multiply by the number of classes"),
            Mistake(_absent, "these are the classes that the batch lacks; the others are asked for"),
            Mistake(_exchanged, "batch and classes are exchanged: the images are drawn, the classes are what they hit"),
        ),
        tolerance=1e-9,
    ),
    Exercise(
        reference=whole_batch_gradient,
        minutes=5,
        cases=_gradient_cases,
        hints=(
            "The mean loss of the batch is the sum of all losses over the number of images; a gradient is linear.",
            "A part of n images with mean gradient g contributes n * g to the sum.",
            "sum(n * g for all parts) / sum(sizes); with equal sizes that is the plain mean.",
        ),
        mistakes=(
            Mistake(_sum, "a sum over processes makes every step as many times longer: average"),
            Mistake(_plain_mean, "parts of different sizes: weight each gradient by the images it stands for"),
            Mistake(_weighted_sum, "divide by the number of images of the whole batch"),
            Mistake(
                _weighted_and_averaged, "the weights are numbers of images, so divide by their sum, not by their number"
            ),
        ),
    ),
)
