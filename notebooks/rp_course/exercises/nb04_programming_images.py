"""Exercises of notebook 04: geometry, formula and gradient of the image program."""

from __future__ import annotations

import torch
from torch import Tensor

from rp_course.exercise import Case, Exercise, Mistake


def border_mask(image_size: int, padding: int) -> Tensor:
    """Mask, float (image_size, image_size): 1 on a border of `padding` pixels on each side, 0 inside."""
    M = torch.ones(image_size, image_size)
    M[padding : image_size - padding, padding : image_size - padding] = 0
    return M


def _mask_of_the_inside(image_size: int, padding: int) -> Tensor:
    return 1 - border_mask(image_size, padding)


def _padding_shared_by_two_sides(image_size: int, padding: int) -> Tensor:
    start = padding // 2
    M = torch.ones(image_size, image_size)
    M[start : start + image_size - padding, start : start + image_size - padding] = 0
    return M


def _two_sides_only(image_size: int, padding: int) -> Tensor:
    M = torch.ones(image_size, image_size)
    M[padding:, padding:] = 0
    return M


def _end_counted_from_behind(image_size: int, padding: int) -> Tensor:
    M = torch.ones(image_size, image_size)
    M[padding:-padding, padding:-padding] = 0
    return M


def _mask_cases() -> tuple[Case, ...]:
    return (
        Case("8 pixels, padding 2", (8, 2)),
        Case("64 pixels, padding 3", (64, 3)),
        Case("224 pixels, padding 16", (224, 16)),
        Case("no padding", (8, 0)),
    )


def program_image(placed: Tensor, W: Tensor, M: Tensor) -> Tensor:
    """psi: float (n, 3, H, H) in [0, 1] of placed pictures (n, 3, H, H), W (3, H, H) and M (H, H)."""
    return (placed + torch.tanh(W * M)).clamp(0, 1)


def _no_clamp(placed: Tensor, W: Tensor, M: Tensor) -> Tensor:
    return placed + torch.tanh(W * M)


def _no_tanh(placed: Tensor, W: Tensor, M: Tensor) -> Tensor:
    return (placed + W * M).clamp(0, 1)


def _no_mask(placed: Tensor, W: Tensor, M: Tensor) -> Tensor:
    return (placed + torch.tanh(W)).clamp(0, 1)


def _replaced(placed: Tensor, W: Tensor, M: Tensor) -> Tensor:
    return (placed * (1 - M) + torch.tanh(W * M)).clamp(0, 1)


def _border_clamped_alone(placed: Tensor, W: Tensor, M: Tensor) -> Tensor:
    return placed + torch.tanh(W * M).clamp(0, 1)


def _program_cases() -> tuple[Case, ...]:
    g = torch.Generator().manual_seed(4)
    M = border_mask(16, 3)
    W = 2 * torch.randn(3, 16, 16, generator=g)
    padded = torch.rand(2, 3, 16, 16, generator=g) * (1 - M)
    return (
        Case("a picture with black around it (pad)", (padded, W, M)),
        Case("a picture of full size (overlay)", (torch.rand(2, 3, 16, 16, generator=g), W, M)),
        Case("no border", (torch.rand(1, 3, 16, 16, generator=g), W, torch.zeros(16, 16))),
    )


def dead_share(placed: Tensor, W: Tensor, M: Tensor) -> float:
    """Share of the border's values that get no gradient from any of the pictures (n, 3, H, H)."""
    shown = placed + torch.tanh(W * M)
    dead = ((shown < 0) | (shown > 1)).all(dim=0)
    return float(dead[:, M.bool()].float().mean())


def _dead_for_some_image(placed: Tensor, W: Tensor, M: Tensor) -> float:
    shown = placed + torch.tanh(W * M)
    return float(((shown < 0) | (shown > 1)).any(dim=0)[:, M.bool()].float().mean())


def _share_of_all_pixels(placed: Tensor, W: Tensor, M: Tensor) -> float:
    shown = placed + torch.tanh(W * M)
    return float((((shown < 0) | (shown > 1)).all(dim=0) & M.bool()).float().mean())


def _background_forgotten(placed: Tensor, W: Tensor, M: Tensor) -> float:
    return float((W[:, M.bool()] < 0).float().mean())


def _dead_cases() -> tuple[Case, ...]:
    g = torch.Generator().manual_seed(5)
    M, W = border_mask(16, 3), torch.randn(3, 16, 16, generator=g)
    white = torch.ones(2, 3, 16, 16)
    white[1, :, :, :8] = 0.5
    return (
        Case("black behind the border", (torch.zeros(2, 3, 16, 16), W, M)),
        Case("white and half grey behind the border", (white, W, M)),
        Case("pictures of noise behind the border", (torch.rand(3, 3, 16, 16, generator=g), W, M)),
    )


EXERCISES = (
    Exercise(
        border_mask,
        5,
        _mask_cases,
        (
            "Begin with ones everywhere: torch.ones(image_size, image_size).",
            "The inner square starts `padding` pixels from the edge on every one of the four sides.",
            "M[padding : image_size - padding, padding : image_size - padding] = 0",
        ),
        (
            Mistake(_mask_of_the_inside, "it is the other way round: M is 1 on the border and 0 on the inner square"),
            Mistake(
                _padding_shared_by_two_sides,
                "the padding counts on each side: the inner square has image_size - 2 * padding pixels a side",
            ),
            Mistake(_two_sides_only, "the border has four sides, this mask has only the top and the left one"),
            Mistake(
                _end_counted_from_behind,
                "right but for padding 0, where M[0:-0] is an empty slice: count the end from the start, "
                "image_size - padding",
            ),
        ),
    ),
    Exercise(
        program_image,
        5,
        _program_cases,
        (
            "From the inside out: W times M, then tanh, then the sum with the picture, then the clamp.",
            "torch.tanh squashes to -1 ... 1; tensor.clamp(0, 1) cuts off what no pixel can show.",
            "Add torch.tanh(W * M) to placed, and clamp the sum, not the border alone.",
        ),
        (
            Mistake(_no_clamp, "pixels must stay in [0, 1]: clamp the sum"),
            Mistake(
                _border_clamped_alone, "the sum can leave [0, 1] on a light picture: clamp it, not the border alone"
            ),
            Mistake(_no_tanh, "W itself is unbounded: the border is tanh(W * M), not W * M"),
            Mistake(_no_mask, "the inner square changed too: multiply W by the mask M inside the tanh"),
            Mistake(
                _replaced,
                "the border is added to what is behind it, it does not replace it; on black that is the same, on a "
                "picture of full size (overlay) it is not",
            ),
        ),
        tolerance=1e-6,
    ),
    Exercise(
        dead_share,
        8,
        _dead_cases,
        (
            "Compute placed + tanh(W * M), before the clamp, (n, 3, H, H). Where does a clamp pass no gradient?",
            "One value of W serves all n pictures; it is dead if it is outside [0, 1] in all of them: .all(dim=0).",
            "Then average over the border alone: dead[:, M.bool()].float().mean()",
        ),
        (
            Mistake(
                _dead_for_some_image,
                "one picture that lets a gradient through is enough for a value to learn: `all` pictures, not `any`",
            ),
            Mistake(
                _share_of_all_pixels, "the share is of the border's values, this one is of all pixels of the picture"
            ),
            Mistake(
                _background_forgotten,
                "a negative W is cut off only on black; what counts is the sum with the picture behind the border",
            ),
        ),
    ),
)
