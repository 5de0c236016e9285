"""Graded corruptions of small images, after Hendrycks and Dietterich 2019 (arXiv 1903.12261).

Same idea and names as ImageNet-C, with strengths of our own: theirs are made for photos of 224 pixels,
these for pictures of about 64 pixels, where a blur of 2 pixels already hides a lot. Lengths scale
with the image, so severity 3 means about the same at 32 and at 96 pixels. Pure torch, seeded, on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from rp_lib.utils.errors import RPLibError, UnknownName

# Raise it when a strength below changes: it stands for the pixels in fingerprints of corrupted sets.
RECIPE_VERSION = 1
SEVERITIES = (1, 2, 3, 4, 5)
# One strength per severity; lengths are fractions of the image's side.
_NOISE = (0.08, 0.14, 0.20, 0.28, 0.38)  # standard deviation, of the range 0 to 1
_BLUR = (0.010, 0.016, 0.023, 0.031, 0.042)  # standard deviation of the kernel
_CONTRAST = (0.5, 0.35, 0.25, 0.16, 0.09)  # share of the contrast that is left
_PIXELATE = (0.62, 0.50, 0.38, 0.30, 0.24)  # resolution that is left


def corrupt(images: Tensor, name: str, severity: int, seed: int = 0) -> Tensor:
    """Corrupt a batch of images.

    Args:
        images: uint8, shape (n, 3, h, w), 0 to 255, at least 8 by 8 pixels.
        name: One of :data:`CORRUPTIONS`.
        severity: 1 (mild) to 5 (severe).
        seed: Of the noise; the same seed gives the same pictures.

    Returns:
        A new uint8 tensor, shape (n, 3, h, w); ``images`` stays as it is.

    Raises:
        UnknownName: No such corruption.
        RPLibError: A shape, dtype or severity that does not fit.

    Example:
        >>> corrupt(torch.zeros(2, 3, 16, 16, dtype=torch.uint8), "gaussian_noise", severity=3).shape
        torch.Size([2, 3, 16, 16])
    """
    if name not in CORRUPTIONS:
        raise UnknownName("corruption", name, CORRUPTIONS)
    if isinstance(severity, bool) or severity not in SEVERITIES:
        raise RPLibError(f"severity must be a whole number from 1 to 5, got {severity!r}")
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3 or min(images.shape[2:]) < 8:
        raise RPLibError(
            "corruptions take uint8 images of shape (n, 3, h, w) with at least 8 pixels a side, got "
            f"{str(images.dtype).removeprefix('torch.')} {tuple(images.shape)}"
        )
    if not len(images):
        return images.clone()
    generator = torch.Generator().manual_seed(seed)
    return CORRUPTIONS[name](images, int(severity) - 1, generator)


def _to_uint8(pixels: Tensor) -> Tensor:
    return pixels.clamp(0, 1).mul(255).round().to(torch.uint8)


def gaussian_noise(images: Tensor, level: int, generator: torch.Generator) -> Tensor:
    """Add independent normal noise to every value."""
    noise = torch.randn(images.shape, generator=generator)
    return _to_uint8(images.float() / 255 + _NOISE[level] * noise)


def gaussian_blur(images: Tensor, level: int, generator: torch.Generator) -> Tensor:
    """Blur with a normal kernel; the border is repeated outwards."""
    sigma = _BLUR[level] * max(images.shape[2:])
    rows, columns = (_blur_matrix(side, sigma) for side in images.shape[2:])
    # Two matrix products: convolving each channel by itself takes ten times as long on a CPU.
    return _to_uint8(rows @ (images.float() / 255) @ columns.T)


def _blur_matrix(side: int, sigma: float) -> Tensor:
    """Float32 (side, side): blurs a line of that length, its ends repeated outwards."""
    radius = max(1, round(3 * sigma))
    offset = torch.arange(-radius, radius + 1)
    weight = torch.exp(-0.5 * (offset / sigma) ** 2)
    source = (torch.arange(side)[:, None] + offset).clamp(0, side - 1)
    return torch.zeros(side, side).scatter_add_(1, source, (weight / weight.sum()).expand(side, -1))


def contrast(images: Tensor, level: int, generator: torch.Generator) -> Tensor:
    """Pull every value towards the picture's own mean colour."""
    pixels = images.float() / 255
    mean = pixels.mean((2, 3), keepdim=True)
    return _to_uint8(mean + _CONTRAST[level] * (pixels - mean))


def pixelate(images: Tensor, level: int, generator: torch.Generator) -> Tensor:
    """Reduce the resolution by area averaging and enlarge again without smoothing."""
    size = images.shape[2:]
    small = [max(2, round(side * _PIXELATE[level])) for side in size]
    pixels = F.interpolate(images.float() / 255, size=small, mode="area")
    return _to_uint8(F.interpolate(pixels, size=size, mode="nearest-exact"))


Corruption = Callable[[Tensor, int, torch.Generator], Tensor]
# Each takes uint8 (n, 3, h, w), the severity counted from 0, and a generator; :func:`corrupt` checks them.
CORRUPTIONS: dict[str, Corruption] = {
    "gaussian_noise": gaussian_noise,
    "gaussian_blur": gaussian_blur,
    "contrast": contrast,
    "pixelate": pixelate,
}
