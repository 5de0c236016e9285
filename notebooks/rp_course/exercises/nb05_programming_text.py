"""Exercises of notebook 05: the text program, the rows it trains, and what weight decay does to the others."""

from __future__ import annotations

import torch
from torch import Tensor

from rp_course.exercise import Case, Exercise, Mistake


def program_tokens(tokens: Tensor, Theta: Tensor, b: Tensor) -> Tensor:
    """Phi: float (n, length, width) of tokens int (n, length), Theta (V, width) and b (positions, width)."""
    length = tokens.shape[1]
    return Theta[tokens] + b[:length]


def _no_bias(tokens: Tensor, Theta: Tensor, b: Tensor) -> Tensor:
    return Theta[tokens]


def _last_positions(tokens: Tensor, Theta: Tensor, b: Tensor) -> Tensor:
    return Theta[tokens] + b[len(b) - tokens.shape[1] :]


def _first_position_for_all(tokens: Tensor, Theta: Tensor, b: Tensor) -> Tensor:
    return Theta[tokens] + b[0]


def _token_cases() -> tuple[Case, ...]:
    g = torch.Generator().manual_seed(5)
    Theta, b = torch.randn(20, 4, generator=g), torch.randn(6, 4, generator=g)
    return (
        Case("two prompts of six tokens", (torch.randint(20, (2, 6), generator=g), Theta, b)),
        Case("prompts shorter than the table of positions", (torch.randint(20, (3, 4), generator=g), Theta, b)),
        Case("the same token at every position", (torch.full((1, 5), 7), Theta, b)),
    )


def seen_tokens(tokens: Tensor, marks: Tensor) -> Tensor:
    """Rows to train, int (k,), sorted: the distinct ids in tokens int (n, length) that are not in marks int (m,)."""
    ids = tokens.unique()
    return ids[~torch.isin(ids, marks)]


def _marks_kept(tokens: Tensor, marks: Tensor) -> Tensor:
    return tokens.unique()


def _repeated(tokens: Tensor, marks: Tensor) -> Tensor:
    ids = tokens.flatten().sort().values
    return ids[~torch.isin(ids, marks)]


def _only_what_differs(tokens: Tensor, marks: Tensor) -> Tensor:
    ids = tokens.unique()
    shared = torch.stack([(tokens == i).any(dim=1).all() for i in ids])
    return ids[~shared]


def _seen_cases() -> tuple[Case, ...]:
    marks = torch.tensor([0, 98, 99])
    one = torch.tensor([[98, 5, 7, 11, 99, 0, 0], [98, 5, 7, 3, 12, 99, 0]])
    g = torch.Generator().manual_seed(6)
    many = torch.cat([torch.full((4, 1), 98), torch.randint(1, 30, (4, 5), generator=g), torch.full((4, 1), 99)], 1)
    return (
        Case("two prompts that share words", (one, marks)),
        Case("random prompts", (many, marks)),
        Case("other marks", (torch.tensor([[1, 4, 4, 2], [1, 6, 4, 2]]), torch.tensor([1, 2]))),
    )


def shrink_factor(rates: list[float], decay: float) -> float:
    """What decoupled decay leaves of a weight that never gets a gradient."""
    factor = 1.0
    for rate in rates:
        factor = factor * (1 - rate * decay)
    return factor


def _one_subtraction(rates: list[float], decay: float) -> float:
    return 1 - decay * sum(rates)


def _rate_forgotten(rates: list[float], decay: float) -> float:
    return (1 - decay) ** len(rates)


def _schedule_forgotten(rates: list[float], decay: float) -> float:
    return (1 - max(rates) * decay) ** len(rates)


def _first_step_alone(rates: list[float], decay: float) -> float:
    return 1 - rates[0] * decay


def _shrink_cases() -> tuple[Case, ...]:
    return (
        Case("two steps", ([0.5, 0.25], 0.1)),
        Case("a rate that rises and falls", ([0.1, 0.2, 0.3, 0.2, 0.1, 0.05], 0.3)),
        Case("many steps", ([1e-3 * (1 - i / 2000) for i in range(2000)], 0.1)),
        Case("no decay", ([0.1, 0.1], 0.0)),
    )


EXERCISES = (
    Exercise(
        program_tokens,
        5,
        _token_cases,
        (
            "A table indexed with a tensor of row numbers gives a row for each: Theta[tokens] is (n, length, width).",
            "b has a row for every possible position, and these prompts use the first `length` of them.",
            "Theta[tokens] + b[: tokens.shape[1]]",
        ),
        (
            Mistake(_no_bias, "the position bias b is missing: without it word order is lost"),
            Mistake(_last_positions, "a prompt begins at position 0: take the first rows of b, not the last"),
            Mistake(
                _first_position_for_all, "every position has its own row of b; b[0] is that of the first one alone"
            ),
        ),
        tolerance=1e-6,
    ),
    Exercise(
        seen_tokens,
        5,
        _seen_cases,
        (
            "tensor.unique() gives the distinct values, sorted.",
            "torch.isin(ids, marks) says which of them are marks.",
            "Keep those that are no marks: ids[~torch.isin(ids, marks)]",
        ),
        (
            Mistake(_marks_kept, "start, end and padding marks stand in every text of the world: leave them out"),
            Mistake(_repeated, "a word that stands in many prompts has one row: give each id once"),
            Mistake(
                _only_what_differs,
                "the words of the template that all prompts share are trained too; only the marks are left out",
            ),
        ),
    ),
    Exercise(
        shrink_factor,
        6,
        _shrink_cases,
        (
            "What is left of a number that is multiplied by (1 - rate * decay) at every step?",
            "The rate changes from step to step, so multiply the factors one by one.",
            "factor = 1.0; then for each rate: factor = factor * (1 - rate * decay)",
        ),
        (
            Mistake(
                _one_subtraction,
                "each step shrinks what the step before has left: multiply the factors; the sum is right only while it "
                "is small",
            ),
            Mistake(_first_step_alone, "that is the first step alone; is the `return` inside the loop?"),
            Mistake(_rate_forgotten, "decoupled decay is scaled by the learning rate: 1 - rate * decay"),
            Mistake(_schedule_forgotten, "the schedule changes the rate: use each step's own, not the largest"),
        ),
        tolerance=1e-6,
    ),
)
