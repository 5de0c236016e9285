"""Padding: accuracy over the width of the border at each resolution, and which width is best."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from rp_course.experiments.base import Drawing, pick
from rp_course.experiments.figures import percent, tidy
from rp_course.experiments.padding import chances, width_of
from rp_lib.evaluation import ALL_SHIFTS

ID, SHIFT = ("test", "accuracy"), (ALL_SHIFTS, "accuracy")


def draw_padding(records: pd.DataFrame) -> Figure:
    """RP over the width of the border, a line for each resolution, zero-shot dashed; and which width is best."""
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
