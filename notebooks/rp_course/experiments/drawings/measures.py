"""Figures of measures that are not on the three axes: of features, of neighbours, of words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from rp_course.experiments.base import Drawing, pick
from rp_course.experiments.figures import named, tidy
from rp_lib.figures import STYLE


@dataclass(frozen=True)
class Panel:
    """What a panel shows: a metric of an image set (None: of whichever has it), and in which direction it is better."""

    metric: str
    data: str | None
    title: str
    note: str


INTRUSION = (
    Panel("cosine drift", "test", "Cosine drift, ID test", "0: features unmoved"),
    Panel("linear CKA", "test", "Linear CKA, ID test", "1: same geometry"),
    Panel("open-vocabulary accuracy", "near", "Accuracy on classes\nthe task never named", "higher is better"),
    Panel("within-class spread", "test", "Spread within ID classes", "lower: tighter"),
)
NEIGHBOURS = (
    Panel("ID neighbours of the same class", None, "ID neighbours\nof the same class", "higher is tighter"),
    Panel("ID neighbours of a shifted picture that share its class", None,
          "ID neighbours of a shifted\npicture of its class", "higher is better"),
    Panel("silhouette of ID classes", None, "Silhouette of ID classes", "higher is tighter"),
    Panel("AUROC of the distance to ID", None, "AUROC of the\ndistance to ID", "higher is better"),
)  # fmt: skip


def draw_measures(records: pd.DataFrame, panels: Sequence[Panel], title: str) -> Figure:
    """A panel for each measure, a row of dots with 95 % intervals for each method."""
    shown = [p for p in panels if len(_rows(records, p))]
    methods = [m for m in STYLE if m in set(records["method"])][::-1]
    figure = Figure(figsize=(13, 0.36 * len(methods) + 2.0), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(shown), sharey=True, squeeze=False)[0], shown, strict=True):
        rows = _rows(records, panel)
        for y, method in enumerate(methods):
            colour, marker, _ = STYLE[method]
            for _, row in rows[rows["method"] == method].iterrows():
                axes.plot([row["low"], row["high"]], [y, y], color=colour, lw=2, solid_capstyle="round")
                axes.plot(row["value"], y, color=colour, marker=marker, ms=11 if marker == "*" else 7)
        axes.set_yticks(range(len(methods)), [STYLE[m][2] for m in methods])
        axes.set_ylim(-0.6, len(methods) - 0.4)
        axes.set_title(panel.title, fontsize=10)
        axes.set_xlabel(panel.note, fontsize=9, color="#555555")
        axes.margins(x=0.1)
        axes.locator_params(axis="x", nbins=5)
        tidy(axes)
    seeds = int(records["seeds"].max())
    figure.suptitle(f"{title} ({seeds} seed{'s' * (seeds > 1)}, bars: 95 % intervals)", fontsize=11)
    return figure


def describe_measures(records: pd.DataFrame, panels: Sequence[Panel]) -> str:
    """The lowest and the highest of each measure."""
    told = []
    for panel in panels:
        rows = _rows(records, panel)
        if len(rows):
            low, high = rows.loc[rows["value"].idxmin()], rows.loc[rows["value"].idxmax()]
            name = panel.metric if panel.data is None else f"{panel.metric} on {panel.data}"
            ends = [
                f"{round(r['value'], 3) + 0.0:.3f} ({named(r['method'])})" for r in (low, high)
            ]  # + 0.0: no "-0.000"
            told.append(f"{name} from {ends[0]} to {ends[1]}")
    return f"Dot plots of {records['method'].nunique()} methods with 95 % intervals: {'; '.join(told)}."


def _rows(records: pd.DataFrame, panel: Panel) -> pd.DataFrame:
    rows = pick(records, space="features", metric=panel.metric, versus=None)
    return rows if panel.data is None else pick(rows, set=panel.data)


def draw_words(records: pd.DataFrame) -> Figure:
    """How far each trained word moved, and its cosine to where it began, furthest first."""
    distance = pick(records, metric="relative distance").set_index("word")["value"].sort_values()
    cosine = pick(records, metric="cosine to the start").set_index("word")["value"].loc[distance.index]
    near = pick(records, metric="still nearest to itself").set_index("word")["value"].loc[distance.index]
    figure = Figure(figsize=(9, 0.19 * len(distance) + 1.6), layout="constrained")
    y = np.arange(len(distance))
    colours = np.where(near == 1, "#0072B2", "#D55E00")
    for panel, values, label in zip(
        figure.subplots(1, 2, sharey=True), (distance, cosine), ("distance / length of the row", "cosine to the start"),
        strict=True,
    ):  # fmt: skip
        panel.hlines(y, 0 if panel.get_subplotspec().is_first_col() else 1, values, color=colours, lw=1)
        panel.scatter(values, y, color=colours, s=22)
        panel.set_yticks(y, distance.index, fontsize=8)
        panel.set_ylim(-0.8, len(distance) - 0.2)
        panel.set_xlabel(label)
        tidy(panel)
    seeds = int(pick(records, metric="relative distance")["seeds"].max())
    lost = int((near < 1).sum())
    figure.suptitle(
        f"How far the text program moved each word (mean of {seeds} seeds)\n"
        f"orange: nearest to another word afterwards in at least one seed ({lost} of {len(near)})", fontsize=11,
    )  # fmt: skip
    return figure


def describe_words(records: pd.DataFrame) -> str:
    """Which words moved furthest and least, and how many are nearest to another one afterwards."""
    distance = pick(records, metric="relative distance").set_index("word")["value"].sort_values()
    near = pick(records, metric="still nearest to itself")["value"]
    return (
        f"How far {len(distance)} words moved, as a share of their length: from {distance.iloc[0]:.3f} "
        f"({distance.index[0]}) to {distance.iloc[-1]:.3f} ({distance.index[-1]}); {int((near == 1).sum())} of "
        f"{len(near)} stay nearest to themselves in all seeds."
    )


INTRUSION_DRAWINGS = {
    "": Drawing(
        lambda r: draw_measures(r, INTRUSION, "How far each adaptation moves CLIP's features and words"),
        lambda r: describe_measures(r, INTRUSION),
    )
}
NEIGHBOURS_DRAWINGS = {
    "": Drawing(
        lambda r: draw_measures(r, NEIGHBOURS, "Neighbours in the features themselves"),
        lambda r: describe_measures(r, NEIGHBOURS),
    )
}
WORDS_DRAWINGS = {"": Drawing(draw_words, describe_words)}
