"""Shifts of small drawings that recolouring, noise, turning and resizing do not contain.

Pre-training of the mini CLIP draws icons in other colours, turned, moved, larger, smaller and with noise; what it has
seen is no shift for it. These change what it has not: what stands behind or before a drawing, and its form. Pure torch,
seeded, on the CPU.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rp_lib.utils.errors import RPLibError, UnknownName

# Raise it when a strength below changes: it stands for the pixels in fingerprints of shifted sets.
RECIPE_VERSION = 1
_BEHIND = 0.35  # ink of the other drawing
_HIDDEN = 0.4  # side of the square before the drawing, of the picture's side: it hides a sixth
_TILT = 0.25  # largest move of a corner, of the picture's side
_WOBBLE, _WAVES = 0.18, 4  # largest move of a point, of half the picture's side; control points a side


def shift(images: Tensor, name: str, seed: int = 0) -> Tensor:
    """Shift a batch of dark drawings on white paper.

    Args:
        images: uint8, shape (n, 3, s, s), 0 to 255.
        name: One of :data:`SHIFTS`.
        seed: The same seed gives the same pictures.

    Returns:
        A new uint8 tensor of the same shape; ``images`` stays as it is.

    Raises:
        UnknownName: No such shift.
        RPLibError: A shape or dtype that does not fit.

    Example:
        >>> shift(torch.zeros(2, 3, 16, 16, dtype=torch.uint8), "hidden").shape
        torch.Size([2, 3, 16, 16])
    """
    if name not in SHIFTS:
        raise UnknownName("shift", name, SHIFTS)
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3 or images.shape[2] != images.shape[3]:
        raise RPLibError(
            "shifts take uint8 images of shape (n, 3, s, s), got "
            f"{str(images.dtype).removeprefix('torch.')} {tuple(images.shape)}"
        )
    if not len(images):
        return images.clone()
    pixels = SHIFTS[name](images.float() / 255, torch.Generator().manual_seed(seed))
    return pixels.clamp(0, 1).mul(255).round().to(torch.uint8)


def cluttered(pixels: Tensor, draw: torch.Generator) -> Tensor:
    """Draw another picture of the batch, in paler ink, behind each picture."""
    other = pixels.roll(int(torch.randint(1, max(len(pixels), 2), (), generator=draw)), 0)
    return torch.minimum(pixels, 1 - _BEHIND * (1 - other))


def hidden(pixels: Tensor, draw: torch.Generator) -> Tensor:
    """Hide a sixth of each picture behind a grey square at a random place."""
    side = pixels.shape[-1]
    edge = round(_HIDDEN * side)
    corner = torch.randint(0, side - edge + 1, (len(pixels), 2), generator=draw)
    at = torch.arange(side)
    rows, columns = ((at >= c[:, None]) & (at < c[:, None] + edge) for c in corner.T)
    return torch.where((rows[:, :, None] & columns[:, None, :])[:, None], 0.5, pixels)


def tilted(pixels: Tensor, draw: torch.Generator) -> Tensor:
    """Look at each picture from an angle: its four corners move inwards by random amounts."""
    n = len(pixels)
    square = torch.tensor([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]]).expand(n, 4, 2)
    moved = square * (1 - 2 * _TILT * torch.rand(n, 4, 2, generator=draw))
    # The homography that takes the moved corners back to the square: eight linear equations each.
    x, y = moved[..., 0], moved[..., 1]
    u, v = square[..., 0], square[..., 1]
    one, zero = torch.ones_like(x), torch.zeros_like(x)
    left = torch.cat(
        [
            torch.stack([x, y, one, zero, zero, zero, -u * x, -u * y], 2),
            torch.stack([zero, zero, zero, x, y, one, -v * x, -v * y], 2),
        ],
        1,
    )
    h = torch.linalg.solve(left, torch.cat([u, v], 1))
    matrix = torch.cat([h, torch.ones(n, 1)], 1).reshape(n, 3, 3)
    seen = _places(pixels) @ matrix.mT  # (s * s, 3) @ (n, 3, 3): homogeneous
    return _sample(pixels, seen[..., :2] / seen[..., 2:])


def wobbly(pixels: Tensor, draw: torch.Generator) -> Tensor:
    """Bend each picture smoothly, as a hand that trembles would draw it."""
    waves = 2 * torch.rand(len(pixels), 2, _WAVES, _WAVES, generator=draw) - 1
    moved = F.interpolate(waves, size=pixels.shape[-2:], mode="bicubic", align_corners=True)
    return _sample(pixels, _places(pixels)[:, :2] + _WOBBLE * moved.flatten(2).mT)


def _places(pixels: Tensor) -> Tensor:
    """Float32 (s * s, 3): homogeneous (x, y, 1) of every pixel's centre, in [-1, 1], row by row."""
    side = pixels.shape[-1]
    at = (2 * torch.arange(side) + 1) / side - 1
    y, x = torch.meshgrid(at, at, indexing="ij")
    return torch.stack([x, y, torch.ones_like(x)], -1).reshape(-1, 3)


def _sample(pixels: Tensor, places: Tensor) -> Tensor:
    """Pictures read at places, (n, s * s, 2) in [-1, 1]; beyond the edge there is white paper."""
    grid = places.reshape(len(pixels), *pixels.shape[-2:], 2)
    return 1 - F.grid_sample(1 - pixels, grid, align_corners=False)


# Each takes float pixels in [0, 1], (n, 3, s, s), and a generator; :func:`shift` checks them.
SHIFTS = {"cluttered": cluttered, "hidden": hidden, "tilted": tilted, "wobbly": wobbly}
