"""The pre-training data: icons of the pre-training families as (picture, caption) pairs, drawn and augmented."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from rp_course.mini_world.corpus import SIZE, load_sets
from rp_course.mini_world.families import PRETRAINING
from rp_course.mini_world.restyle import may_be_mirrored, restyle
from rp_lib.utils.errors import RPLibError

# A name that this many families use is drawn as often as its pictures allow; see ``shared`` below.
SHARED_BY = 4


class IconPairs:
    """The pre-training families as (picture, caption) pairs, memory-mapped, sampled by weight.

    Args:
        corpus: folder of ``python -m rp_course mini corpus``.
        coloured: how much more often a picture of a coloured set is drawn.
        shared: a name that k < 4 families use is drawn (k / 4) ** shared as often: what one designer alone has
            drawn teaches little that holds for another's hand. 0 treats all names alike.
    """

    def __init__(self, corpus: Path, coloured: float = 1.0, shared: float = 0.0) -> None:
        self.arrays: list[np.ndarray] = []
        owner, row, weight, concept_id, mirror = [], [], [], [], []
        families: dict[int, set[str]] = {}
        self.rows: list[tuple[str, list[str], list[str], str | None]] = []
        concepts: dict[str, int] = {}
        self.sets: list[str] = []
        for prefix, meta in load_sets(corpus).items():
            if meta["family"] not in PRETRAINING or not meta["icons"]:
                continue
            array = np.load(corpus / f"{prefix}.npy", mmap_mode="r", allow_pickle=False)
            seen: dict[str, int] = {}
            for _, concept, _, _ in meta["icons"]:
                seen[concept] = seen.get(concept, 0) + 1
            for i, (name, concept, style, others) in enumerate(meta["icons"]):
                if "skin tone" in concept or "skin-tone" in name:
                    continue  # hundreds of repeats of a few people
                owner.append(len(self.arrays))
                row.append(i)
                # A set with six weights of each icon is not six sets.
                common = 0.4 if meta["category"] == "Logos" else coloured if meta["coloured"] else 1.0
                weight.append(seen[concept] ** -0.6 * common)
                concept_id.append(concepts.setdefault(concept, len(concepts)))
                families.setdefault(concept_id[-1], set()).add(meta["family"])
                mirror.append(may_be_mirrored(concept, meta["category"]))
                self.rows.append((concept, others, style, meta["category"]))
            self.arrays.append(array)
            self.sets.append(prefix)
        if not self.rows:
            raise RPLibError(f"the corpus in {corpus} holds none of the pre-training families: build it again")
        self.owner, self.row = np.array(owner), np.array(row)
        self.concept_id, self.mirror = torch.tensor(concept_id), torch.tensor(mirror)
        spread = np.array([len(families[c]) for c in concept_id])
        weights = np.array(weight) * np.minimum(1.0, spread / SHARED_BY) ** shared
        self._cumulative = np.cumsum(weights / weights.sum())

    def __len__(self) -> int:
        return len(self.rows)

    def draw(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """Indices, int64 (n,), with replacement, by weight."""
        return np.minimum(np.searchsorted(self._cumulative, rng.random(n)), len(self) - 1)

    def pictures(
        self, index: np.ndarray, strength: float, rng: np.random.Generator, manner: float = 0.0
    ) -> torch.Tensor:
        """float32 (n, 3, 64, 64) in [0, 1], composited on a background and augmented by ``strength`` in [0, 1].

        With ``manner`` above 0 they are first redrawn in another manner, see
        :func:`~rp_course.mini_world.restyle.restyle`.
        """
        rgba = np.zeros((len(index), 4, SIZE, SIZE), np.uint8)
        is_mono = np.zeros(len(index), bool)
        for k, i in enumerate(index):
            picture = self.arrays[self.owner[i]][self.row[i]]
            if picture.ndim == 2:
                rgba[k, 3] = picture
                is_mono[k] = True
            else:
                rgba[k] = picture
        pictures, mono = torch.from_numpy(rgba), torch.from_numpy(is_mono)
        if manner > 0:
            pictures, mono = restyle(pictures, mono, self.mirror[torch.from_numpy(index)], manner, rng)
        return augment(pictures, mono, strength, rng)


def augment(rgba: torch.Tensor, is_mono: torch.Tensor, strength: float, rng: np.random.Generator) -> torch.Tensor:
    """Composite uint8 (n, 4, 64, 64) onto a background, with random colours, place, size, turn and noise."""
    n = len(rgba)
    uniform = lambda *shape: torch.from_numpy(rng.random((n, *shape), dtype=np.float32))  # noqa: E731
    # Geometry first, on premultiplied colour, so that edges stay clean.
    x = rgba.float() / 255
    x[:, :3] *= x[:, 3:]
    angle = (uniform() * 2 - 1) * math.radians(12) * strength
    size = torch.exp((math.log(0.7) + uniform() * math.log(1.15 / 0.7)) * strength)
    shift = (uniform(2) * 2 - 1) * 0.12 * strength
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = torch.cos(angle) / size
    theta[:, 0, 1], theta[:, 1, 0] = -torch.sin(angle) / size, torch.sin(angle) / size
    theta[:, :, 2] = shift
    x = F.grid_sample(x, F.affine_grid(theta, list(x.shape), align_corners=False), align_corners=False)
    alpha = x[:, 3:]
    # Colours: black on white, sometimes (more and more often) anything on anything with contrast.
    ink, paper = torch.zeros(n, 3), torch.ones(n, 3)
    recolour = uniform() < 0.6 * strength
    dark = uniform() < 0.5
    a, b = uniform(3) * 0.55, 1 - uniform(3) * 0.45
    grey = (uniform() < 0.5)[:, None]
    a, b = torch.where(grey, a[:, :1], a), torch.where(grey, b[:, :1], b)
    ink = torch.where(recolour[:, None], torch.where(dark[:, None], b, a), ink)
    paper = torch.where(recolour[:, None], torch.where(dark[:, None], a, b), paper)
    colour = torch.where(is_mono[:, None, None, None], ink[:, :, None, None] * alpha, x[:, :3])
    out = colour + paper[:, :, None, None] * (1 - alpha)
    noisy = n // 8  # the batch is in random order, so any eighth will do
    if strength > 0:
        noise = torch.from_numpy(rng.standard_normal((noisy, 3, SIZE, SIZE), dtype=np.float32))
        out[:noisy] += noise * (0.15 * strength * uniform()[:noisy, None, None, None])
    return out.clamp_(0, 1)
