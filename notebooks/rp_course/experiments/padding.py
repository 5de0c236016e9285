"""Why does the best padding differ between low- and high-resolution data? Padding against native resolution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch.nn.functional as F

from rp_course.experiments.base import FAILS, HOLDS, UNDECIDED, Drawing, Experiment, Verdict, pick, row
from rp_course.experiments.figures import percent, tidy
from rp_course.experiments.grid import Condition, Entry, ranked_draws, run_grid
from rp_course.experiments.world import World
from rp_lib.benchmark import Benchmark, ImageSet
from rp_lib.comparison import AXES
from rp_lib.evaluation import ALL_SHIFTS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTHS, SIDES = (1, 2, 4, 8, 12), (64, 32, 16)  # pixels of a 64-pixel input; pixels of the images themselves
SURE = 0.95  # of how probable a direction must be
WIDER = "wider at the lowest resolution"


def taken_at(images: ImageSet, side: int) -> ImageSet:
    """The images as if they had been taken at ``side`` pixels (area-averaged)."""
    small = F.interpolate(images.images.float(), (side, side), mode="area").round().byte()
    derived = images.derived_from and f"{images.derived_from} at {side} px"
    return replace(images, images=small, derived_from=derived)


def at_resolution(benchmark: Benchmark, side: int) -> Benchmark:
    """The benchmark with all of its images :func:`taken_at` ``side`` pixels."""
    if benchmark.test.images.shape[-1] == side:
        return benchmark
    return replace(
        benchmark,
        train=taken_at(benchmark.train, side),
        val=taken_at(benchmark.val, side),
        test=taken_at(benchmark.test, side),
        shifts={name: taken_at(s, side) for name, s in benchmark.shifts.items()},
        ood={name: taken_at(s, side) for name, s in benchmark.ood.items()},
        controls={},
    )


def measure(world: World, parts: Path) -> pd.DataFrame:
    """RP with every padding at every resolution, ranked among each other; zero-shot as reference.

    All else is as tuned for the native resolution, so what varies is the padding alone.
    """
    tuned = world.placed("pad")["config"]
    widths = (2, 8) if world.quick else WIDTHS
    padded = {label(w): Entry("rp", {"config": tuned.changed(padding=w / 64)}) for w in widths}
    entries = {"zero-shot": Entry("zero-shot"), **padded}
    pairs = [(name, "zero-shot") for name in padded]
    conditions = [
        Condition({"resolution": side}, at_resolution(world.judged, side), entries, pairs, ranked=tuple(padded))
        for side in (SIDES[::2] if world.quick else SIDES)
    ]
    records = run_grid(world, conditions, parts)
    high, low = (ranked_draws(world, condition, parts) for condition in (conditions[0], conditions[-1]))
    return pd.concat([records, wider_rows(records, [width_of(m) for m in padded], low, high)], ignore_index=True)


def wider_rows(records: pd.DataFrame, widths: Sequence[int], low: np.ndarray, high: np.ndarray) -> pd.DataFrame:
    """Records of the share of resamples in which the best border is wider at the lowest resolution than at the highest.

    Both are judged on the same resamples of the same pictures and seeds, so a resample has one best width at each.
    Widths that tie for the best share the resample.

    Args:
        records: of both resolutions. widths: k of them. low, high: float64 (r, k, axes) of :func:`ranked_draws`.
    """
    wider = np.greater.outer(widths, widths).astype(float)
    rows = []
    for axis, name in enumerate(AXES[:2]):
        best = [d[..., axis] == d[..., axis].max(1, keepdims=True) for d in (low, high)]
        at_low, at_high = (b / b.sum(1, keepdims=True) for b in best)
        like = pick(records, resolution=records["resolution"].min(), metric="first", set=name).iloc[0]
        share = np.einsum("rw,wv,rv->r", at_low, wider, at_high).mean()
        rows.append({**like, "method": "rp", "metric": WIDER, "value": share})
    return pd.DataFrame(rows)


def label(width: int) -> str:
    """What RP with a border of ``width`` of 64 pixels is called."""
    return f"rp {width}/64"


def width_of(name: str) -> int:
    """Inverse of :func:`label`."""
    return int(name.removeprefix("rp ").removesuffix("/64"))


def chances(records: pd.DataFrame, resolution: int, axis: str) -> pd.Series:
    """By width: how likely it is the best of those tried at a resolution, over pictures and seeds; sums to 1.

    The share of paired resamples in which no other width is better; widths that tie share it.
    """
    rows = pick(records, resolution=resolution, metric="first", set=axis)
    share = pd.Series(rows["value"].to_numpy(float), [width_of(m) for m in rows["method"]]).sort_index()
    return share / share.sum()


def judge(records: pd.DataFrame) -> list[Verdict]:
    """Whether the best border is wider on images of low resolution, as the paper's best paddings suggest."""
    low, high = int(records["resolution"].min()), int(records["resolution"].max())
    verdicts = []
    for axis, name in (("id accuracy", "ID accuracy"), ("shift accuracy", "accuracy under shift")):
        at = {side: chances(records, side, axis) for side in (low, high)}
        wider = float(row(records, metric=WIDER, set=axis)["value"])
        outcome = HOLDS if wider >= SURE else FAILS if wider <= 1 - SURE else UNDECIDED
        parts = []
        for side in (high, low):
            shares = ", ".join(f"{w}: {100 * p:.0f}" for w, p in at[side].items())
            parts.append(f"at {side} px {_best(records, side, axis)} of 64 (in % of resamples, by width, {shares})")
        size = pick(records, resolution=low, metric="first", set=axis).iloc[0]
        verdicts.append(Verdict(
            f"the best border for {name} is wider on images of low resolution", outcome,
            f"best width {' and '.join(parts)}; wider at {low} px in {100 * wider:.0f} % of "
            f"resamples of the same pictures and seeds, "
            f"{int(size['seeds'])} seeds, n = {int(size['n'])}",
        ))  # fmt: skip
    return verdicts


def _best(records: pd.DataFrame, resolution: int, axis: str) -> int:
    rows = pick(records, resolution=resolution, metric="rank", set=axis)
    return width_of(rows.loc[rows["value"].idxmin(), "method"])


ID, SHIFT = ("test", "accuracy"), (ALL_SHIFTS, "accuracy")


def draw_padding(records: pd.DataFrame) -> Figure:
    """RP over the width of the border, a line for each resolution, zero-shot dashed; and which width is best."""
    from matplotlib.figure import Figure

    plain = pick(records, versus=None)
    sides = sorted(plain["resolution"].unique(), reverse=True)
    colours = dict(zip(sides, ("#0072B2", "#E69F00", "#CC79A7"), strict=False))
    markers = dict(zip(sides, "osD", strict=False))
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    panels = figure.subplots(1, 4)
    for panel, axis, title in ((panels[0], ID, "ID accuracy"), (panels[2], SHIFT, "accuracy under shift")):
        for k, side in enumerate(sides):
            rows = pick(plain, resolution=side, set=axis[0], metric=axis[1])
            padded = rows[rows["method"] != "zero-shot"]
            padded = padded.assign(width=padded["method"].map(width_of)).sort_values("width")
            value, bars = percent(padded)
            x = np.arange(len(padded)) + 0.08 * (k - (len(sides) - 1) / 2)
            panel.errorbar(x, value, bars, color=colours[side], marker=markers[side], lw=1.5, capsize=2,
                           label=f"RP, images of {side} px")  # fmt: skip
            level = 100 * float(pick(rows, method="zero-shot")["value"].iloc[0])
            panel.axhline(level, color=colours[side], ls="--", lw=1, label=f"zero-shot, {side} px")
        panel.set_xticks(range(len(padded)), padded["width"])
        panel.set_title(title, fontsize=10)
        panel.set_ylabel("%")
    for panel, axis, title in ((panels[1], "id accuracy", "ID accuracy"), (panels[3], "shift accuracy", "under shift")):
        for k, side in enumerate(sides):
            share = chances(records, side, axis)
            x = np.arange(len(share)) + 0.27 * (k - (len(sides) - 1) / 2)
            panel.bar(x, 100 * share, 0.25, color=colours[side])
        panel.set_xticks(range(len(share)), share.index)
        panel.set_title(f"best width, {title}", fontsize=10)
        panel.set_ylabel("% of resamples")
    for panel in panels:
        panel.set_xlabel("border, pixels of 64")
        tidy(panel)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=6, frameon=False, fontsize=9)
    seeds, n = int(plain["seeds"].max()), int(pick(plain, set="test")["n"].max())
    size = f"{seeds} seed{'s' * (seeds > 1)}, {n} test pictures, bars: 95 % intervals"
    figure.suptitle(f"Padding against the images' resolution ({size})", fontsize=11)
    return figure


def describe_padding(records: pd.DataFrame) -> str:
    """The likeliest best width at each resolution."""
    plain = pick(records, versus=None)
    told = []
    for side in sorted(plain["resolution"].unique(), reverse=True):
        share = [chances(records, side, axis) for axis in ("id accuracy", "shift accuracy")]
        told.append(
            f"at {side} px width {share[0].idxmax()} is best on ID in {100 * share[0].max():.0f} % of resamples and "
            f"{share[1].idxmax()} under shift in {100 * share[1].max():.0f} %"
        )
    widths = [width_of(m) for m in pick(plain, metric="first")["method"].unique()]
    return (
        f"ID accuracy and accuracy under shift of RP over border widths from {min(widths)} to {max(widths)} of 64 "
        f"pixels, a line for each resolution, and how often each width is best: {'; '.join(told)}."
    )


DRAWINGS = {"": Drawing(draw_padding, describe_padding)}


EXPERIMENT = Experiment(
    "padding", "Why does the best padding differ between low- and high-resolution data?", ("resolution",), measure,
    judge, 9,
    figures=lambda: DRAWINGS,
)  # fmt: skip
