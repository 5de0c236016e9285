"""Exercises of notebook 03, what fine-tuning breaks."""

from __future__ import annotations

import torch
from torch import Tensor

from rp_course.exercise import Case, Exercise, Mistake


def l2_sp_penalty(weights: dict[str, Tensor], start: dict[str, Tensor], strength: float) -> Tensor:
    """Squared distance of all weights from where they started, times strength / 2."""
    squares = [(weights[name] - start[name]).square().sum() for name in weights]
    return strength / 2 * torch.stack(squares).sum()


def _towards_zero(weights, start, strength):
    return strength / 2 * torch.stack([w.square().sum() for w in weights.values()]).sum()


def _not_halved(weights, start, strength):
    return 2 * l2_sp_penalty(weights, start, strength)


def _not_squared(weights, start, strength):
    return strength / 2 * torch.stack([(weights[k] - start[k]).norm() for k in weights]).sum()


def _mean_squares(weights, start, strength):
    return strength / 2 * torch.stack([(weights[k] - start[k]).square().mean() for k in weights]).sum()


def _weights(seed: int, shift: float = 0.0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"block.weight": (4, 3), "block.bias": (4,), "head.weight": (2, 4)}
    return {name: torch.randn(shape, generator=generator) + shift for name, shape in shapes.items()}


def _penalty_cases() -> tuple[Case, ...]:
    return (
        Case("weights that moved", (_weights(0), _weights(1), 0.1)),
        Case("weights at their start", (_weights(2), _weights(2), 0.5)),
        Case("all weights moved by 1", (_weights(3, 1.0), _weights(3), 2.0)),
    )


def interpolate_weights(zero_shot: dict[str, Tensor], fine_tuned: dict[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """Weights between two models of one shape; alpha is the share of zero-shot."""
    return {name: (1 - alpha) * fine_tuned[name] + alpha * zero_shot[name] for name in fine_tuned}


def _other_way_round(zero_shot, fine_tuned, alpha):
    return interpolate_weights(zero_shot, fine_tuned, 1 - alpha)


def _no_share_taken_off(zero_shot, fine_tuned, alpha):
    return {k: fine_tuned[k] + alpha * zero_shot[k] for k in fine_tuned}


def _head_left_alone(zero_shot, fine_tuned, alpha):
    mixed = interpolate_weights(zero_shot, fine_tuned, alpha)
    return {k: fine_tuned[k] if k.startswith("head") else mixed[k] for k in mixed}


def _in_place(zero_shot, fine_tuned, alpha):
    for name in fine_tuned:
        fine_tuned[name].mul_(1 - alpha).add_(alpha * zero_shot[name])
    return fine_tuned


def _interpolation_cases() -> tuple[Case, ...]:
    return (
        Case("alpha 0.25", (_weights(0), _weights(1), 0.25)),
        Case("alpha 0, the fine-tuned model", (_weights(2), _weights(3), 0.0)),
        Case("alpha 1, the zero-shot model", (_weights(4), _weights(5), 1.0)),
    )


def verdict_of(low: float, high: float, p_holm: float) -> str:
    """What a paired difference says of the claim "the first is higher": "holds", "fails" or "undecided"."""
    if p_holm >= 0.05 or low <= 0 <= high:
        return "undecided"
    return "holds" if low > 0 else "fails"


def _interval_alone(low, high, p_holm):
    return "undecided" if low <= 0 <= high else "holds" if low > 0 else "fails"


def _p_alone(low, high, p_holm):
    return "undecided" if p_holm >= 0.05 else "holds"


def _zero_inside_fails(low, high, p_holm):
    return "undecided" if p_holm >= 0.05 else "holds" if low > 0 else "fails"


def _middle_alone(low, high, p_holm):
    return "holds" if low + high > 0 else "fails"


def _no_difference_fails(low, high, p_holm):
    return "holds" if p_holm < 0.05 and low > 0 else "fails"


def _verdict_cases() -> tuple[Case, ...]:
    return (
        Case("clearly higher", (0.01, 0.04, 0.01)),
        Case("clearly lower", (-0.04, -0.01, 0.02)),
        Case("zero inside the interval", (-0.01, 0.03, 1.0)),
        Case("zero outside, but the corrected p-value is large", (0.001, 0.02, 0.4)),
        Case("lower, but the corrected p-value is large", (-0.05, -0.01, 0.1)),
        Case("a small corrected p-value, and yet zero inside the interval", (-0.002, 0.03, 0.04)),
        Case("a corrected p-value of 0.05, which is not below 0.05", (0.01, 0.03, 0.05)),
    )


EXERCISES = (
    Exercise(
        reference=l2_sp_penalty,
        minutes=5,
        cases=_penalty_cases,
        hints=(
            "Weight decay pulls every weight towards 0; here every weight is pulled towards where it started.",
            "For every name: (weights[name] - start[name]).square().sum(); add these up over the names.",
            "Multiply the sum by strength / 2: its gradient is then strength * (weight - start).",
        ),
        mistakes=(
            Mistake(_towards_zero, "this is plain weight decay: take the distance from the start, not from zero"),
            Mistake(_not_halved, "a factor 1/2 is missing: strength / 2 times the squared distance"),
            Mistake(_not_squared, "square the distance: with the plain norm the pull does not grow as weights move on"),
            Mistake(_mean_squares, "sum the squares, do not average them: a large matrix has the more to remember"),
        ),
    ),
    Exercise(
        reference=interpolate_weights,
        minutes=5,
        cases=_interpolation_cases,
        hints=(
            "alpha is the share of zero-shot: alpha = 1 gives back the zero-shot weights.",
            "For every name: (1 - alpha) * fine_tuned[name] + alpha * zero_shot[name].",
            "Return a new dict: {name: ... for name in fine_tuned}; leave both arguments as they are.",
        ),
        mistakes=(
            Mistake(
                _other_way_round,
                "alpha is the share of zero-shot in this course (the WiSE-FT paper's alpha is 1 - alpha): swap the two",
            ),
            Mistake(_no_share_taken_off, "the shares must sum to one: the fine-tuned weights count 1 - alpha"),
            Mistake(_head_left_alone, "interpolate the head as well: all weights, head included"),
            Mistake(
                _in_place, "this changes the fine-tuned weights in place, so the next alpha would start from a mixture"
            ),
        ),
    ),
    Exercise(
        reference=verdict_of,
        minutes=4,
        cases=_verdict_cases,
        hints=(
            "Three answers: an undecided difference is no evidence that nothing changed.",
            "Undecided if the corrected p-value is at least 0.05, or if zero lies inside the interval.",
            "Otherwise the sign decides: low > 0 holds, high < 0 fails.",
        ),
        mistakes=(
            Mistake(
                _interval_alone,
                "look at p_holm too: of twenty true zeros one has an interval that misses zero by chance alone",
            ),
            Mistake(
                _p_alone, "a small p-value says that there is a difference, not in which direction: look at the sign"
            ),
            Mistake(_zero_inside_fails, "`fails` needs high < 0: with zero inside the interval nothing is decided"),
            Mistake(_middle_alone, "the point estimate alone decides nothing: where zero is possible, say undecided"),
            Mistake(_no_difference_fails, "not shown to be higher is not shown to be lower: say undecided"),
        ),
    ),
)
