"""Even subsets of image sets, for a shorter look at the same thing."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from rp_lib.benchmark import Benchmark, ImageSet


def evenly(n: int, wanted: int) -> Tensor:
    """int64 positions of ``wanted`` of ``n`` items, evenly spaced; all if there are no more."""
    return torch.arange(n) if wanted >= n else (torch.arange(wanted) * n) // wanted


def lighten(benchmark: Benchmark, test: int, other: int) -> Benchmark:
    """A benchmark with at most ``test`` test images and ``other`` of each shifted and OOD set, evenly spaced.

    Sets derived from test images keep those whose source is kept, so that paired comparisons stay paired.
    """
    kept = benchmark.test.subset(evenly(len(benchmark.test), test))

    def fewer(images: ImageSet) -> ImageSet:
        if images.derived_from:
            return images.subset(torch.isin(images.sources, kept.sources))
        return images.subset(evenly(len(images), other))

    return replace(
        benchmark,
        test=kept,
        shifts={name: fewer(images) for name, images in benchmark.shifts.items()},
        ood={name: fewer(images) for name, images in benchmark.ood.items()},
    )
