"""How long a method trains, at which rate, and in which order it sees its examples."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from rp_lib.errors import RPLibError, UnknownName

SCHEDULES = ("constant", "cosine", "steps")


@dataclass(frozen=True)
class Schedule:
    """How long, in which order and at which rate.

    ``cosine`` falls to zero after a linear warm-up; ``steps`` multiplies the rate by .5, .2, .1 (of the start)
    at 40, 70 and 80 % of the run, as the released code does. ``batch_size`` counts all processes of a run together.
    """

    epochs: int
    batch_size: int = 128
    kind: str = "cosine"
    warmup_steps: int = 0
    seed: int = 1
    precision: str = "auto"
    validate_every: int = 1

    def __post_init__(self) -> None:
        if self.kind not in SCHEDULES:
            raise UnknownName("schedule", self.kind, SCHEDULES)
        if self.epochs < 0 or self.batch_size < 1:
            raise RPLibError("epochs must be >= 0 and batch_size >= 1")

    def factor(self, step: int, total: int) -> float:
        """Multiplier of the base rate at a step; the warm-up takes at most a fifth of a short run."""
        warmup = min(self.warmup_steps, total // 5)
        if step < warmup:
            return (step + 1) / warmup
        done = (step - warmup) / max(1, total - warmup)
        if self.kind == "cosine":
            return 0.5 * (1 + math.cos(math.pi * done))
        if self.kind == "steps":
            return next((f for at, f in ((0.8, 0.1), (0.7, 0.2), (0.4, 0.5)) if done >= at), 1.0)
        return 1.0


def batches(n: int, size: int, seed: int, epoch: int) -> list[Tensor]:
    """The epoch's batches of indices; the order depends on (seed, epoch) alone, so that a resumed run repeats it.

    A last batch smaller than half is joined to the one before: a contrastive loss on three images is noise.
    """
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed * 100_003 + epoch))
    parts = list(order.split(size))
    if len(parts) > 1 and len(parts[-1]) < size / 2:
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts


def ahead(indices: Sequence[Tensor], take: Callable[[Tensor], tuple[Tensor, ...]]) -> Iterator[tuple[Tensor, ...]]:
    """``take(index)`` of each index, in order; a thread works on the next one while the caller uses this one.

    What ``take`` raises is raised here. At most one result waits, so memory holds two batches.
    """
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(take, indices[0]) if indices else None
        for index in indices[1:]:
            taken = waiting.result()
            waiting = pool.submit(take, index)
            yield taken
        if waiting is not None:
            yield waiting.result()
