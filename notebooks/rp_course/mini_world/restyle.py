"""Draw an icon again in another designer's manner.

What differs between two designers' houses is rarely the house: one fills the outline with colour, one draws it
bolder, one faces the other way, one draws on a grid of sixteen pixels. :func:`restyle` makes such changes at random, so
that pre-training sees more hands than the corpus has, coloured ones above all, which are few in it.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from rp_course.mini_world.corpus import SIZE

# How often each change is made, at full strength. Chosen once, by looking at contact sheets of what comes out.
FLIP, BOLDER, FINER, PIXELATE, COLOUR, RECOLOUR, GREY = 0.4, 0.15, 0.12, 0.08, 0.35, 0.3, 0.12
# A picture whose name has one of these words means something else, or nothing, when mirrored.
DIRECTED = frozenset(
    """left right forward forwards back backward backwards next previous prev first last start end east west
    undo redo reply letter number text font clockwise counterclockwise rtl ltr flag logo brand""".split()
)


def may_be_mirrored(concept: str, category: str | None) -> bool:
    """Whether a mirrored picture still shows the concept: no direction, no script, no logo, no flag."""
    words = concept.split()
    return category not in ("Logos", "Flags / Maps") and not any(w in DIRECTED or len(w) == 1 for w in words)


def restyle(
    rgba: torch.Tensor, is_mono: torch.Tensor, mirror: torch.Tensor, strength: float, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Change the manner of each picture at random.

    Args:
        rgba: uint8 (n, 4, 64, 64), straight alpha; of monochrome pictures only the alpha counts.
        is_mono: bool (n,), which are monochrome. mirror: bool (n,), which may be mirrored.
        strength: in [0, 1], multiplies how often each change is made. rng: where all chance comes from.

    Returns:
        The pictures, uint8 (n, 4, 64, 64), and which of them are still monochrome, bool (n,).
    """
    n, rgba, is_mono = len(rgba), rgba.clone(), is_mono.clone()
    draw = lambda p: torch.from_numpy(rng.random(n) < p * strength)  # noqa: E731
    flipped = draw(FLIP) & mirror
    rgba[flipped] = rgba[flipped].flip(-1)

    bolder, finer = draw(BOLDER) & is_mono, draw(FINER) & is_mono
    rgba[bolder, 3:] = _spread(rgba[bolder, 3:])
    thin = 255 - _spread(255 - rgba[finer, 3:])
    enough = thin.float().mean((1, 2, 3)) > 0.4 * rgba[finer, 3:].float().mean((1, 2, 3))  # or a thin line would vanish
    rgba[finer, 3:] = torch.where(enough[:, None, None, None], thin, rgba[finer, 3:])

    for cell in (2, 4):
        coarse = draw(PIXELATE / 2) & is_mono
        alpha = F.avg_pool2d(rgba[coarse, 3:].float(), cell)
        hard = ((alpha > 110) * 255).to(torch.uint8)
        rgba[coarse, 3:] = hard.repeat_interleave(cell, 2).repeat_interleave(cell, 3)

    for i in (draw(COLOUR) & is_mono).nonzero()[:, 0].tolist():
        rgba[i] = torch.from_numpy(colour_areas(rgba[i, 3].numpy(), rng))
        is_mono[i] = False

    coloured = ~is_mono
    for i in (draw(RECOLOUR) & coloured).nonzero()[:, 0].tolist():
        rgba[i, :3] = rgba[i, torch.from_numpy(rng.permutation(3))]
    grey = draw(GREY) & coloured
    rgba[grey, :3] = rgba[grey, :3].float().mean(1, keepdim=True).to(torch.uint8).expand(-1, 3, -1, -1)
    return rgba, is_mono


def colour_areas(coverage: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Colour the ink and the areas that it encloses, each with a colour of its own, lightly shaded.

    Args:
        coverage: uint8 (64, 64) of a monochrome picture.

    Returns:
        uint8 (4, 64, 64), straight alpha.
    """
    from scipy import ndimage

    ink = coverage.astype(np.float32) / 255
    areas, count = ndimage.label(ink < 0.5)
    outside = np.unique(np.concatenate([areas[0], areas[-1], areas[:, 0], areas[:, -1]]))
    palette = _colours(3, rng)
    colour = np.empty((3, SIZE, SIZE), np.float32)
    colour[:] = _colours(1, rng)[0][:, None, None] * (0.35 if rng.random() < 0.6 else 1.0)  # mostly a dark outline
    alpha = ink.copy()
    for area in range(1, count + 1):
        if area in outside or rng.random() < 0.12:
            continue
        # One pixel further than the area itself, or the paper would shine through at the soft edge of the line.
        inside = ndimage.binary_dilation(areas == area)
        fill = palette[int(rng.integers(3))][:, None]
        cover = ink[inside]
        colour[:, inside] = colour[:, inside] * cover + fill * (1 - cover)
        alpha[inside] = 1.0
    turn = rng.random() * 2 * np.pi
    y, x = np.mgrid[-0.5 : 0.5 : SIZE * 1j, -0.5 : 0.5 : SIZE * 1j]
    colour *= 1 - rng.random() * 0.35 * (0.5 + np.cos(turn) * x + np.sin(turn) * y).clip(0, 1)
    return (np.concatenate([colour, alpha[None]]) * 255).round().clip(0, 255).astype(np.uint8)


def _colours(n: int, rng: np.random.Generator) -> np.ndarray:
    """float32 (n, 3) colours of any hue, mostly strong and bright, as emoji have them."""
    from matplotlib.colors import hsv_to_rgb

    hue, saturation, value = rng.random(n), 1 - 0.9 * rng.random(n) ** 2, 1 - 0.6 * rng.random(n) ** 1.5
    return hsv_to_rgb(np.stack([hue, saturation, value], 1)).astype(np.float32)


def _spread(alpha: torch.Tensor) -> torch.Tensor:
    """Ink grown by one pixel: uint8 (n, 1, h, w)."""
    return F.max_pool2d(alpha.float(), 3, 1, 1).to(torch.uint8)
