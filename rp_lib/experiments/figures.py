"""One figure per experiment: every method on the three axes, as lines over a factor or as dots beside each other."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rp_lib.experiments.base import Experiment, pick
from rp_lib.figures import AXES, STYLE

# For labels that are no method's name: Okabe and Ito's palette, and a marker each.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "h", "d")


def draw(experiment: Experiment, records: pd.DataFrame) -> Figure | None:
    """A figure of an experiment's records, or None if they hold none of the four axes.

    With a numeric factor of several levels it shows lines over that factor, else one row of dots per method.
    """
    plain = pick(records, versus=None)
    plain = plain[plain["detector"].isna() | plain["detector"].isin(["", "msp"])]
    axes = [a for a in AXES if len(pick(plain, set=a[0], metric=a[1]))]
    if not axes:
        return None
    factor = next((f for f in experiment.factors if _is_numeric(plain[f])), None)
    labels = list(dict.fromkeys(plain["method"]))
    style = _styles(labels)
    figure = Figure(figsize=(13, 3.8 if factor else 0.34 * len(labels) + 1.9), layout="constrained")
    panels = figure.subplots(1, len(axes), squeeze=False)[0]
    for panel, (data, metric, title, direction) in zip(panels, axes, strict=True):
        rows = pick(plain, set=data, metric=metric)
        if factor:
            _lines(panel, rows, factor, labels, style)
        else:
            _dots(panel, rows, labels, style, named=panel is panels[0])
        panel.set_title(f"{title}\n{direction}", fontsize=10)
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(color="#e5e5e5", linewidth=0.8)
        panel.set_axisbelow(True)
    if factor:
        handles, names = panels[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=min(6, len(names)), frameon=False)
    seeds, n = int(plain["seeds"].max()), int(pick(plain, set="test")["n"].max())
    figure.suptitle(
        f"{experiment.question} ({seeds} seed{'s' * (seeds > 1)}, {n} test pictures, bars: 95 % intervals)", fontsize=11
    )
    return figure


def heatmap(records: pd.DataFrame, metric: str = "fpr") -> Figure:
    """Methods x detectors: the mean over OOD sets of ``auroc`` or ``fpr``, in percent; blank where undefined."""
    rows = pick(records, set="mean of OOD sets", metric=metric, versus=None)
    table = 100 * rows.pivot_table(index="method", columns="detector", values="value", sort=False)
    figure = Figure(figsize=(0.75 * table.shape[1] + 3, 0.38 * table.shape[0] + 1.8), layout="constrained")
    panel = figure.subplots()
    image = panel.imshow(table, cmap="cividis" if metric == "auroc" else "cividis_r", aspect="auto")
    middle = np.nanmean(image.get_clim())
    for (y, x), value in np.ndenumerate(table.to_numpy()):
        if np.isfinite(value):
            light = (value < middle) == (metric == "auroc")
            panel.text(x, y, f"{value:.0f}", ha="center", va="center", color="white" if light else "black", fontsize=9)
    names = [STYLE[m][2] if m in STYLE else m for m in table.index]
    panel.set_yticks(range(len(names)), names)
    panel.set_xticks(range(table.shape[1]), table.columns, rotation=40, ha="right")
    better = "higher" if metric == "auroc" else "lower"
    panel.set_title(f"{metric.upper()} in %, mean over OOD sets ({better} is better)", fontsize=11)
    return figure


def _is_numeric(values: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(values) and values.nunique() > 1


def _styles(labels: Sequence[str]) -> dict[str, tuple[str, str, str]]:
    others = zip(itertools.cycle(_COLOURS), itertools.cycle(_MARKERS), strict=False)
    return {m: STYLE[m] if m in STYLE else (*next(others), m) for m in labels}


def _lines(
    panel: Axes, rows: pd.DataFrame, factor: str, labels: Sequence[str], style: dict[str, tuple[str, str, str]]
) -> None:
    levels = sorted(rows[factor].dropna().unique())
    for k, label in enumerate(labels):
        mine = rows[rows["method"] == label].dropna(subset=[factor]).drop_duplicates(factor).sort_values(factor)
        # Levels stand evenly spaced, as 1, 2, 4, 8 would crowd at the left; methods a little apart, to tell bars.
        x = np.array([levels.index(v) for v in mine[factor]]) + 0.04 * (k - len(labels) / 2)
        value, low, high = (100 * mine[c].to_numpy() for c in ("value", "low", "high"))
        colour, marker, name = style[label]
        panel.errorbar(
            x, value, [value - low, high - value], color=colour, marker=marker, label=name, lw=1.5, capsize=2
        )
    panel.set_xticks(range(len(levels)), [f"{v:g}" for v in levels])
    panel.set_xlabel(factor)
    panel.set_ylabel("%")


def _dots(
    panel: Axes, rows: pd.DataFrame, labels: Sequence[str], style: dict[str, tuple[str, str, str]], named: bool
) -> None:
    for y, label in enumerate(reversed(labels)):
        for _, row in rows[rows["method"] == label].iterrows():
            colour, marker, _ = style[label]
            value, low, high = (100 * row[c] for c in ("value", "low", "high"))
            panel.errorbar(value, y, xerr=[[value - low], [high - value]], color=colour, marker=marker, capsize=2)
    panel.set_ylim(-0.6, len(labels) - 0.4)
    panel.set_yticks(range(len(labels)), [style[m][2] for m in reversed(labels)] if named else [""] * len(labels))
    panel.set_xlabel("%")
