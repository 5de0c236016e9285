"""Exercises of notebook 08: differences on the same pictures, and many of them at once."""

from __future__ import annotations

import torch
from torch import Tensor

from rp_course.exercise import Case, Exercise, Mistake


def paired_interval(first: Tensor, second: Tensor, draws: Tensor) -> tuple[float, float, float]:
    """Mean of first - second, and the 2.5 % and 97.5 % quantiles of that mean over resamples.

    first, second: float (n,), 1 where a method is right about a picture, else 0. draws: int (r, n), the pictures of
    each resample.
    """
    gap = first - second
    low, high = gap[draws].mean(1).quantile(torch.tensor([0.025, 0.975]))
    return float(gap.mean()), float(low), float(high)


def _unpaired(first: Tensor, second: Tensor, draws: Tensor) -> tuple[float, float, float]:
    drawn = first[draws].mean(1) - second[draws.flip(0)].mean(1)
    low, high = drawn.quantile(torch.tensor([0.025, 0.975]))
    return float((first - second).mean()), float(low), float(high)


def _other_way_round(first: Tensor, second: Tensor, draws: Tensor) -> tuple[float, float, float]:
    return paired_interval(second, first, draws)


def _one_tail(first: Tensor, second: Tensor, draws: Tensor) -> tuple[float, float, float]:
    gap = first - second
    low, high = gap[draws].mean(1).quantile(torch.tensor([0.05, 0.95]))
    return float(gap.mean()), float(low), float(high)


def _spread_of_pictures(first: Tensor, second: Tensor, draws: Tensor) -> tuple[float, float, float]:
    gap = first - second
    low, high = gap.quantile(torch.tensor([0.025, 0.975]))
    return float(gap.mean()), float(low), float(high)


def _paired_cases() -> tuple[Case, ...]:
    g = torch.Generator().manual_seed(8)

    def right(share: float) -> Tensor:
        return (torch.rand(60, generator=g) < share).float()

    draws = torch.randint(60, (200, 60), generator=g)
    one = right(0.8)
    return (
        Case("two methods that fail on the same pictures", (one, one * right(0.9), draws)),
        Case("two methods that have nothing in common", (right(0.7), right(0.6), draws)),
        Case("the second is better", (right(0.5), right(0.8), draws)),
    )


def holm(p_values: Tensor) -> Tensor:
    """Holm's corrected p-values, float (m,), in the order given, at most 1.

    Sorted upwards, the k-th of m (counted from 0) is multiplied by m - k; none may be smaller than one before it.
    """
    order = p_values.argsort()
    factors = len(p_values) - torch.arange(len(p_values))
    corrected = (p_values[order] * factors).cummax(0).values.clamp(max=1)
    return torch.empty_like(p_values).index_copy(0, order, corrected)


def _bonferroni(p_values: Tensor) -> Tensor:
    return (p_values * len(p_values)).clamp(max=1)


def _not_monotone(p_values: Tensor) -> Tensor:
    order = p_values.argsort()
    factors = len(p_values) - torch.arange(len(p_values))
    return torch.empty_like(p_values).index_copy(0, order, (p_values[order] * factors).clamp(max=1))


def _left_sorted(p_values: Tensor) -> Tensor:
    return holm(p_values.sort().values)


def _above_one(p_values: Tensor) -> Tensor:
    order = p_values.argsort()
    factors = len(p_values) - torch.arange(len(p_values))
    corrected = (p_values[order] * factors).cummax(0).values
    return torch.empty_like(p_values).index_copy(0, order, corrected)


def _holm_cases() -> tuple[Case, ...]:
    return (
        Case("one small p-value among large ones", (torch.tensor([0.6, 0.001, 0.7, 0.4]),)),
        Case("p-values close together", (torch.tensor([0.03, 0.01, 0.031, 0.02]),)),
        Case("a single test", (torch.tensor([0.04]),)),
    )


EXERCISES = (
    Exercise(
        reference=paired_interval,
        minutes=7,
        cases=_paired_cases,
        hints=(
            "Subtract first: one gap per picture, 1, 0 or -1. Then it is the mean of one list of numbers.",
            "gap[draws] is (r, n): the gaps of each resample; .mean(1) gives r means.",
            "Take their quantiles 0.025 and 0.975, and the mean of gap itself in front; return three floats.",
        ),
        mistakes=(
            Mistake(_unpaired, "both methods must be judged on the same resample: do not draw pictures for each apart"),
            Mistake(_other_way_round, "the difference is first minus second"),
            Mistake(_one_tail, "95 % lie between the quantiles 0.025 and 0.975: 2.5 % are cut off on either side"),
            Mistake(_spread_of_pictures, "this is the spread of pictures; take the spread of the mean over resamples"),
        ),
    ),
    Exercise(
        reference=holm,
        minutes=8,
        cases=_holm_cases,
        hints=(
            "order = p_values.argsort(); the smallest is multiplied by m, the next by m - 1, ... the largest by 1.",
            "A corrected p-value may not fall below one that was smaller before: .cummax(0).values; then clamp to 1.",
            "Put them back: torch.empty_like(p_values).index_copy(0, order, corrected).",
        ),
        mistakes=(
            Mistake(_bonferroni, "this is Bonferroni: Holm multiplies only the smallest by m, the next by m - 1, ..."),
            Mistake(
                _not_monotone, "corrected p-values must not fall where the uncorrected rise: take the running maximum"
            ),
            Mistake(_left_sorted, "give them back in the order in which they came"),
            Mistake(_above_one, "a p-value is at most 1"),
        ),
    ),
)
