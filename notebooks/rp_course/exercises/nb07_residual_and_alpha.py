"""Exercises of notebook 07: the residual, its length, and the choice of alpha."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rp_course.exercise import Case, Exercise, Mistake


def mix_features(programmed: Tensor, zero_shot: Tensor, alpha: float) -> Tensor:
    """Unit float (n, d): the share alpha of zero-shot, the rest programmed, of unit float (n, d) each."""
    mixed = (1 - alpha) * programmed + alpha * zero_shot
    return F.normalize(mixed, dim=1)


def _not_renormalised(programmed: Tensor, zero_shot: Tensor, alpha: float) -> Tensor:
    return (1 - alpha) * programmed + alpha * zero_shot


def _other_way_round(programmed: Tensor, zero_shot: Tensor, alpha: float) -> Tensor:
    return mix_features(zero_shot, programmed, alpha)


def _along_the_images(programmed: Tensor, zero_shot: Tensor, alpha: float) -> Tensor:
    return F.normalize((1 - alpha) * programmed + alpha * zero_shot, dim=0)


def _plain_sum(programmed: Tensor, zero_shot: Tensor, alpha: float) -> Tensor:
    return F.normalize(programmed + alpha * zero_shot, dim=1)


def _one_length_for_all(programmed: Tensor, zero_shot: Tensor, alpha: float) -> Tensor:
    mixed = (1 - alpha) * programmed + alpha * zero_shot
    return mixed / mixed.norm()


def _mix_cases() -> tuple[Case, ...]:
    g = torch.Generator().manual_seed(7)
    a, b = (F.normalize(torch.randn(6, 8, generator=g), dim=1) for _ in range(2))
    return (
        Case("alpha 0.4", (a, b, 0.4)),
        Case("alpha 0, all RP", (a, b, 0.0)),
        Case("alpha 1, all zero-shot", (a, b, 1.0)),
        Case("features that nearly agree", (a, F.normalize(a + 0.1 * b, dim=1), 0.75)),
    )


def mixed_length(cosine: Tensor, alpha: float) -> Tensor:
    """Length of the mix of two unit vectors before it is normalised, float (n,) of their cosines (n,)."""
    squared = (1 - alpha) ** 2 + alpha**2 + 2 * alpha * (1 - alpha) * cosine
    return squared**0.5


def _no_root(cosine: Tensor, alpha: float) -> Tensor:
    return mixed_length(cosine, alpha) ** 2


def _no_two(cosine: Tensor, alpha: float) -> Tensor:
    return ((1 - alpha) ** 2 + alpha**2 + alpha * (1 - alpha) * cosine) ** 0.5


def _no_cross_term(cosine: Tensor, alpha: float) -> Tensor:
    return ((1 - alpha) ** 2 + alpha**2 + 0 * cosine) ** 0.5


def _part_along_the_first(cosine: Tensor, alpha: float) -> Tensor:
    return (1 - alpha) + alpha * cosine


def _length_cases() -> tuple[Case, ...]:
    g = torch.Generator().manual_seed(8)
    return (
        Case("some cosines, alpha 0.5", (torch.rand(5, generator=g), 0.5)),
        Case("equal, orthogonal, opposite features", (torch.tensor([1.0, 0.0, -1.0]), 0.3)),
        Case("alpha 0.75", (torch.rand(5, generator=g), 0.75)),
    )


def one_standard_error(alphas: list[float], accuracies: list[float], n: int) -> float:
    """The largest alpha whose accuracy on n images is within one standard error of the best."""
    best = max(accuracies)
    error = (best * (1 - best) / n) ** 0.5
    return max(a for a, accuracy in zip(alphas, accuracies, strict=True) if accuracy >= best - error)


def _best_alpha(alphas: list[float], accuracies: list[float], n: int) -> float:
    return alphas[int(np.argmax(accuracies))]


def _smallest_alpha(alphas: list[float], accuracies: list[float], n: int) -> float:
    best = max(accuracies)
    error = (best * (1 - best) / n) ** 0.5
    return min(a for a, accuracy in zip(alphas, accuracies, strict=True) if accuracy >= best - error)


def _not_divided_by_n(alphas: list[float], accuracies: list[float], n: int) -> float:
    best = max(accuracies)
    error = (best * (1 - best)) ** 0.5
    return max(a for a, accuracy in zip(alphas, accuracies, strict=True) if accuracy >= best - error)


def _variance(alphas: list[float], accuracies: list[float], n: int) -> float:
    best = max(accuracies)
    return max(a for a, accuracy in zip(alphas, accuracies, strict=True) if accuracy >= best - best * (1 - best) / n)


def _last_of_the_list(alphas: list[float], accuracies: list[float], n: int) -> float:
    best = max(accuracies)
    error = (best * (1 - best) / n) ** 0.5
    return [a for a, accuracy in zip(alphas, accuracies, strict=True) if accuracy >= best - error][-1]


def _alpha_cases() -> tuple[Case, ...]:
    alphas = [0.0, 0.25, 0.5, 0.75, 1.0]
    return (
        Case("208 images", (alphas, [0.955, 0.96, 0.955, 0.95, 0.93], 208)),
        Case("20000 images", (alphas, [0.955, 0.96, 0.9593, 0.95, 0.93], 20000)),
        Case("50 images", (alphas, [0.7, 0.74, 0.72, 0.69, 0.6], 50)),
        Case("nothing to lose", (alphas, [0.9, 0.9, 0.9, 0.9, 0.9], 100)),
        Case("alphas from 1 down to 0", (alphas[::-1], [0.93, 0.95, 0.955, 0.96, 0.955], 208)),
    )


EXERCISES = (
    Exercise(
        mix_features,
        4,
        _mix_cases,
        (
            "alpha is the share of zero-shot, 1 - alpha that of the programmed features.",
            "Features are rows: F.normalize(..., dim=1) gives each row the length 1 again.",
            "F.normalize((1 - alpha) * programmed + alpha * zero_shot, dim=1)",
        ),
        (
            Mistake(_not_renormalised, "the mix of two unit vectors is shorter than 1: normalise each row again"),
            Mistake(_other_way_round, "alpha is the share of zero-shot: at alpha = 0 nothing of it is left"),
            Mistake(_along_the_images, "each image's feature is a row: normalise along dim=1"),
            Mistake(
                _one_length_for_all,
                "mixed.norm() is one number for the whole table: each row has its own, so dim=1, keepdim=True",
            ),
            Mistake(
                _plain_sum, "the programmed features have the share 1 - alpha, so that alpha = 1 is zero-shot alone"
            ),
        ),
    ),
    Exercise(
        mixed_length,
        6,
        _length_cases,
        (
            "The squared length of a sum: |x + y|^2 = |x|^2 + |y|^2 + 2 x.y, with x = (1 - alpha) f and y = alpha g.",
            "f and g have length 1, so f.g is their cosine.",
            "((1 - alpha)**2 + alpha**2 + 2 * alpha * (1 - alpha) * cosine) ** 0.5",
        ),
        (
            Mistake(_no_root, "that is the squared length: take the root"),
            Mistake(_no_two, "the cross term counts twice: 2 * alpha * (1 - alpha) * cosine"),
            Mistake(_part_along_the_first, "that is the part along f alone; g also points away from f"),
            Mistake(_no_cross_term, "that holds for orthogonal features alone; the cosine must enter"),
        ),
    ),
    Exercise(
        one_standard_error,
        7,
        _alpha_cases,
        (
            "The standard error of a share p of n images is the root of p (1 - p) / n; take p = the best accuracy.",
            "Keep every alpha whose accuracy is at least the best minus that error.",
            "Of those that are kept, return the largest: the one nearest to zero-shot.",
        ),
        (
            Mistake(_best_alpha, "that is the best alpha on these images; within the error, the largest one is taken"),
            Mistake(
                _smallest_alpha, "of the alphas within the error the largest is taken, the one nearest to zero-shot"
            ),
            Mistake(_last_of_the_list, "the last of the list is the largest only if the alphas rise: take the maximum"),
            Mistake(_not_divided_by_n, "divide by n: more images make the error smaller"),
            Mistake(_variance, "that is the variance: the standard error is its root"),
        ),
    ),
)
