"""Find pictures that are nearly the same, across designers.

Sets borrow from each other. Two pictures count as near-duplicates when their ink, cropped to its own
bounding box and reduced to 32 x 32 cells, correlates above :data:`THRESHOLD`; the crop makes the
measure blind to margins, the cells to a pixel of shift or stroke.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

CELLS = 32
THRESHOLD = 0.97


def coverage(pictures: np.ndarray) -> np.ndarray:
    """Ink of each picture: uint8 (n, 64, 64) as is; of RGBA (n, 4, 64, 64) the alpha times darkness."""
    if pictures.ndim == 3:
        return pictures
    rgb = pictures[:, :3].astype(np.float32)
    ink = 1.0 - 0.5 * rgb.mean(1) / 255.0  # light parts of an opaque picture still count as ink
    return (pictures[:, 3] * ink).astype(np.uint8)


def signature(pictures: np.ndarray, batch: int = 4096) -> torch.Tensor:
    """Unit-length float32 (n, 1024) signatures of uint8 (n, 64, 64) coverage; equal pictures give cosine 1."""
    out = []
    for start in range(0, len(pictures), batch):
        ink = torch.from_numpy(np.ascontiguousarray(pictures[start : start + batch])).float() / 255
        n, height, width = ink.shape
        lo_y, hi_y = _extent(ink.amax(2) > 0.25)
        lo_x, hi_x = _extent(ink.amax(1) > 0.25)
        # One square window per picture, centred on the ink, as wide as its longer side.
        side = torch.maximum(hi_y - lo_y, hi_x - lo_x).float() + 1
        theta = torch.zeros(n, 2, 3)
        theta[:, 0, 0] = side / width
        theta[:, 1, 1] = side / height
        theta[:, 0, 2] = (lo_x + hi_x + 1).float() / width - 1
        theta[:, 1, 2] = (lo_y + hi_y + 1).float() / height - 1
        grid = F.affine_grid(theta, [n, 1, 2 * CELLS, 2 * CELLS], align_corners=False)
        cells = F.avg_pool2d(F.grid_sample(ink[:, None], grid, align_corners=False), 2).flatten(1)
        out.append(F.normalize(cells - cells.mean(1, keepdim=True), dim=1))
    return torch.cat(out) if out else torch.zeros(0, CELLS * CELLS)


def _extent(mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """First and last true position in each row of a bool (n, length) tensor."""
    length = mask.shape[1]
    first = mask.int().argmax(1)
    last = length - 1 - mask.flip(1).int().argmax(1)
    return first, last


def nearest(queries: torch.Tensor, references: torch.Tensor, chunk: int = 8192) -> tuple[torch.Tensor, torch.Tensor]:
    """Highest cosine of each query with any reference, and which one: float32 (n,), int64 (n,)."""
    best = torch.full((len(queries),), -1.0)
    where = torch.zeros(len(queries), dtype=torch.int64)
    for start in range(0, len(references), chunk):
        value, index = (queries @ references[start : start + chunk].T).max(1)
        better = value > best
        best[better], where[better] = value[better], index[better] + start
    return best, where


def first_of_each(signatures: torch.Tensor, threshold: float = THRESHOLD) -> torch.Tensor:
    """Keep mask, bool (n,): False where an earlier kept picture is nearly the same."""
    keep = torch.ones(len(signatures), dtype=torch.bool)
    for start in range(0, len(signatures), 1024):
        block = signatures[start : start + 1024]
        close = block @ signatures[: start + len(block)].T > threshold
        for row in range(len(block)):
            i = start + row
            keep[i] = not bool((close[row, :i] & keep[:i]).any())
    return keep
