"""Why does the best padding differ between low- and high-resolution data? Padding against native resolution."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch.nn.functional as F

from rp_lib.benchmark import Benchmark, ImageSet
from rp_lib.experiments.base import Experiment, Verdict, row, shrinks
from rp_lib.experiments.grid import Condition, Entry, run_grid
from rp_lib.experiments.world import World

WIDTHS, SIDES = (1, 2, 4, 8, 12), (64, 32, 16)  # pixels of a 64-pixel input; pixels of the images themselves
NARROW, WIDE = "rp 2/64", "rp 8/64"


def at_resolution(benchmark: Benchmark, side: int) -> Benchmark:
    """The benchmark as if its images had been taken at ``side`` pixels (area-averaged)."""

    def shrink(images: ImageSet) -> ImageSet:
        small = F.interpolate(images.images.float(), (side, side), mode="area").round().byte()
        derived = images.derived_from and f"{images.derived_from} at {side} px"
        return replace(images, images=small, derived_from=derived)

    if benchmark.test.images.shape[-1] == side:
        return benchmark
    return replace(
        benchmark, train=shrink(benchmark.train), val=shrink(benchmark.val), test=shrink(benchmark.test),
        shifts={name: shrink(s) for name, s in benchmark.shifts.items()},
        ood={name: shrink(s) for name, s in benchmark.ood.items()},
    )  # fmt: skip


def measure(world: World, parts: Path) -> pd.DataFrame:
    """RP with every padding at every resolution; zero-shot as reference.

    All else is as tuned for the native resolution, so what varies is the padding alone.
    """
    tuned = world.tuned("rp")["config"]
    widths = (2, 8) if world.quick else WIDTHS
    entries = {"zero-shot": Entry("zero-shot")}
    entries |= {f"rp {w}/64": Entry("rp", {"config": tuned.changed(padding=w / 64)}) for w in widths}
    pairs = [*((label, "zero-shot") for label in entries if label != "zero-shot"), (NARROW, WIDE)]
    sides = SIDES[::2] if world.quick else SIDES
    conditions = [Condition({"resolution": s}, at_resolution(world.judged, s), entries, pairs) for s in sides]
    return run_grid(world, conditions, parts)


def judge(records: pd.DataFrame) -> list[Verdict]:
    """Whether a wide border costs less on images of low resolution, as the paper's best paddings suggest."""
    low, high = int(records["resolution"].min()), int(records["resolution"].max())
    verdicts = []
    for axis, name in (("id accuracy", "ID accuracy"), ("shift accuracy", "accuracy under shift")):
        gap = [row(records, resolution=r, method=NARROW, versus=WIDE, metric=axis) for r in (high, low)]
        claim, what = f"a wide border costs less {name} on images of low resolution", f"at {high} and at {low} px"
        verdicts.append(shrinks(claim, *gap, f"{NARROW} - {WIDE} {what}"))
    return verdicts


EXPERIMENT = Experiment(
    "padding", "Why does the best padding differ between low- and high-resolution data?", ("resolution",), measure,
    judge, 9,
)  # fmt: skip
