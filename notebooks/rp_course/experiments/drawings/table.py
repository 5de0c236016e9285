"""The table: methods on the axes, their ranks, and methods by detectors."""

from __future__ import annotations

from functools import partial

import pandas as pd
from matplotlib.figure import Figure

from rp_course.experiments.base import AXIS_LABELS, Drawing, pick
from rp_course.experiments.figures import describe, describe_heatmap, draw, heatmap, listed, named, tidy
from rp_course.experiments.table import EXPERIMENT
from rp_lib.comparison import NAME
from rp_lib.figures import STYLE
from rp_lib.utils.errors import RPLibError


def draw_ranks(records: pd.DataFrame) -> Figure:
    """Each method's rank on the axes and by the aggregate, with its 95 % interval over pictures and seeds."""
    rows = _ranks(records)
    axes = [a for a in AXIS_LABELS if a in set(rows["set"])]
    order = pick(rows, set=NAME).sort_values("value", ascending=False)["method"].tolist()
    figure = Figure(figsize=(13, 0.34 * len(order) + 1.9), layout="constrained")
    for panel, axis in zip(figure.subplots(1, len(axes), sharey=True, squeeze=False)[0], axes, strict=True):
        found = pick(rows, set=axis).set_index("method")
        chance = pick(records, metric="first", set=axis).set_index("method")["value"]
        for y, method in enumerate(order):
            colour, marker, _ = STYLE.get(method, ("#000000", "o", method))
            row = found.loc[method]
            panel.plot([row["low"], row["high"]], [y, y], color=colour, lw=2, solid_capstyle="round")
            panel.plot(row["value"], y, color=colour, marker=marker, ms=11 if marker == "*" else 7)
            panel.annotate(f"{100 * chance[method]:.0f} %", (1.02, y), xycoords=("axes fraction", "data"), va="center",
                           fontsize=8, color="#555555")  # fmt: skip
        panel.set_yticks(range(len(order)), [named(m) for m in order])
        panel.set_xlim(0.5, len(order) + 0.5)
        panel.set_xticks([1, *range(5, len(order) + 1, 5)])
        panel.set_title(AXIS_LABELS[axis], fontsize=10)
        panel.set_xlabel("rank, 1 is best")
        tidy(panel)
    figure.suptitle(
        f"Ranks with 95 % intervals over pictures and {int(rows['seeds'].max())} seeds (paired bootstrap, n = "
        f"{int(pick(rows, set=NAME)['n'].max())}); right: share of resamples in which none is better", fontsize=11,
    )  # fmt: skip
    return figure


def describe_ranks(records: pd.DataFrame) -> str:
    """Who is first by the aggregate, where RRP stands, and how wide ranks spread."""
    rows = _ranks(records)
    found = pick(rows, set=NAME).set_index("method").sort_values("value")
    spread = (found["high"] - found["low"]).median()
    told = [
        f"{named(m)} has rank {found.loc[m, 'value']:g} [{found.loc[m, 'low']:g}, {found.loc[m, 'high']:g}]"
        for m in dict.fromkeys([found.index[0], *(["rrp"] if "rrp" in found.index else []), found.index[-1]])
    ]
    return (
        f"Ranks of {len(found)} methods on {listed([AXIS_LABELS[a] for a in AXIS_LABELS if a in set(rows['set'])])} "
        f"with 95 % intervals: by the mean of three axes {listed(told)}, and half of the intervals span at least "
        f"{spread:g} ranks."
    )


def _ranks(records: pd.DataFrame) -> pd.DataFrame:
    rows = pick(records, metric="rank")
    if rows.empty:
        raise RPLibError("these records hold no ranks: an older version measured them; run `table` again")
    return rows


DRAWINGS = {
    "": Drawing(partial(draw, EXPERIMENT), partial(describe, EXPERIMENT)),
    "-ranks": Drawing(draw_ranks, describe_ranks),
    "-auroc": Drawing(partial(heatmap, metric="auroc"), partial(describe_heatmap, metric="auroc")),
    "-fpr": Drawing(partial(heatmap, metric="fpr"), partial(describe_heatmap, metric="fpr")),
}
