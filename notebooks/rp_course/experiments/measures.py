"""Claims about measures that are not on the three axes: paired differences, and verdicts that are read off them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd

from rp_course.experiments.base import COLUMNS, Verdict, difference, pick
from rp_course.experiments.figures import named, tidy
from rp_lib.comparison import PairedDraws
from rp_lib.figures import STYLE
from rp_lib.stats import holm
from rp_lib.utils.errors import RPLibError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Claim(NamedTuple):
    """That ``first`` is ``want`` (higher or lower) than ``second`` on a measure."""

    text: str
    measure: str
    first: str
    second: str
    want: str


def claimed_differences(draws: PairedDraws, claims: Sequence[Claim], n: Mapping[str, int], seeds: int) -> pd.DataFrame:
    """Records of the paired differences that claims are about, corrected by Holm among themselves.

    Args:
        draws: of the methods; its axes are measures. claims: those of other measures are left out.
        n: number of pictures of each measure. seeds: of training.
    """
    asked = list(dict.fromkeys((c.first, c.second, c.measure) for c in claims if c.measure in draws.axes))
    table = draws.differences(list(dict.fromkeys(pair[:2] for pair in asked))).set_index(["first", "second", "axis"])
    table = table.loc[asked].reset_index()
    records = table.rename(columns={"first": "method", "second": "versus", "axis": "metric", "difference": "value"})
    records = records.assign(
        p_holm=holm(table["p"]), set="", seeds=seeds, n=records["metric"].map(n), n_ood=None, detector=""
    )
    return records[list(COLUMNS)]


def verdicts_of(records: pd.DataFrame, claims: Sequence[Claim]) -> list[Verdict]:
    """Verdicts on the claims whose measure was compared.

    Raises:
        RPLibError: none was: the records are of a version that compared nothing.
    """
    compared = records[records["versus"].notna()]
    told = [
        difference(c.text, compared, c.first, c.second, c.measure, c.want)
        for c in claims
        if c.measure in set(compared["metric"])
    ]
    if not told:
        raise RPLibError("these records hold no paired differences: an older version measured them; run it again")
    return told


@dataclass(frozen=True)
class Panel:
    """What a panel shows: a metric of an image set (None: of whichever has it), and in which direction it is better."""

    metric: str
    data: str | None
    title: str
    note: str


def draw_measures(records: pd.DataFrame, panels: Sequence[Panel], title: str) -> Figure:
    """A panel for each measure, a row of dots with 95 % intervals for each method."""
    from matplotlib.figure import Figure

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
    choice = f"{records['choice'].iloc[0]} settings, " if "choice" in records else ""
    figure.suptitle(f"{title} ({choice}{seeds} seed{'s' * (seeds > 1)}, bars: 95 % intervals)", fontsize=11)
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
