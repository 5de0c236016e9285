"""Changes of small drawings: shifts that pre-training has not seen, and graded corruptions.

Pre-training of the mini CLIP draws icons in other colours, turned, moved, larger, smaller and with noise; what it has
seen is no shift for it. The shifts change what it has not: what stands behind or before a drawing, and its form. The
corruptions have the idea and names of Hendrycks and Dietterich 2019 (arXiv 1903.12261), with strengths for pictures of
about 64 pixels; lengths scale with the image. Pure torch, seeded, on the CPU.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rp_lib.utils.errors import RPLibError, UnknownName

# Raise them when a strength below changes: they stand for the pixels in fingerprints of changed sets.
SHIFT_RECIPE = CORRUPTION_RECIPE = 1
_BEHIND = 0.35  # ink of the other drawing
_HIDDEN = 0.4  # side of the square before the drawing, of the picture's side: it hides a sixth
_TILT = 0.25  # largest move of a corner, of the picture's side
_WOBBLE, _WAVES = 0.18, 4  # largest move of a point, of half the picture's side; control points a side
# Strengths of each corruption by severity; lengths are fractions of the image's side.
CORRUPTIONS: dict[str, dict[int, float]] = {
    "gaussian_noise": {1: 0.08, 3: 0.20, 5: 0.38},  # standard deviation, of the range 0 to 1
    "gaussian_blur": {1: 0.010, 3: 0.023, 5: 0.042},  # standard deviation of the kernel
    "contrast": {1: 0.5, 3: 0.25, 5: 0.09},  # share of the contrast that is left
    "pixelate": {1: 0.62, 3: 0.38, 5: 0.24},  # resolution that is left
}


def shift(images: Tensor, name: str, severity: int | None = None, seed: int = 0) -> Tensor:
    """Change a batch of dark drawings on white paper.

    Args:
        images: uint8, shape (n, 3, s, s), 0 to 255.
        name: One of :data:`SHIFTS`, or of :data:`CORRUPTIONS` with a severity.
        severity: Of a corruption: 1 (mild), 3 or 5 (severe).
        seed: The same seed gives the same pictures.

    Returns:
        A new uint8 tensor of the same shape; ``images`` stays as it is.

    Raises:
        UnknownName: No such shift, or no corruption of such a severity.
        RPLibError: A shape or dtype that does not fit.

    Example:
        >>> pictures = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
        >>> shift(pictures, "hidden").shape, shift(pictures, "gaussian_noise", severity=3).shape
        (torch.Size([2, 3, 16, 16]), torch.Size([2, 3, 16, 16]))
    """
    known = SHIFTS if severity is None else [n for n, strengths in CORRUPTIONS.items() if severity in strengths]
    if name not in known:
        raise UnknownName("shift" if severity is None else f"corruption of severity {severity}", name, known)
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3 or images.shape[2] != images.shape[3]:
        raise RPLibError(
            "shifts take uint8 images of shape (n, 3, s, s), got "
            f"{str(images.dtype).removeprefix('torch.')} {tuple(images.shape)}"
        )
    if not len(images):
        return images.clone()
    pixels, draw = images.float() / 255, torch.Generator().manual_seed(seed)
    if severity is None:
        pixels = SHIFTS[name](pixels, draw)
    else:
        pixels = _corrupted(pixels, name, CORRUPTIONS[name][severity], draw)
    return pixels.clamp(0, 1).mul(255).round().to(torch.uint8)


def _corrupted(pixels: Tensor, name: str, strength: float, draw: torch.Generator) -> Tensor:
    side = pixels.shape[-1]
    if name == "gaussian_noise":
        return pixels + strength * torch.randn(pixels.shape, generator=draw)
    if name == "gaussian_blur":  # as two matrix products: to convolve each channel takes ten times as long on a CPU
        blur = _blur_matrix(side, strength * side)
        return blur @ pixels @ blur.T
    if name == "contrast":  # every value moves towards the picture's own mean colour
        mean = pixels.mean((2, 3), keepdim=True)
        return mean + strength * (pixels - mean)
    small = F.interpolate(pixels, size=max(2, round(side * strength)), mode="area")
    return F.interpolate(small, size=side, mode="nearest-exact")


def _blur_matrix(side: int, sigma: float) -> Tensor:
    """Float32 (side, side): blurs a line of that length, its ends repeated outwards."""
    radius = max(1, round(3 * sigma))
    offset = torch.arange(-radius, radius + 1)
    weight = torch.exp(-0.5 * (offset / sigma) ** 2)
    source = (torch.arange(side)[:, None] + offset).clamp(0, side - 1)
    return torch.zeros(side, side).scatter_add_(1, source, (weight / weight.sum()).expand(side, -1))


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
