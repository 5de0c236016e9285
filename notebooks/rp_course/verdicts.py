"""Verdicts of experiments as a forest plot and a table of one line each."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from matplotlib.figure import Figure

from rp_course.show import WIDTH, show

if TYPE_CHECKING:
    import pandas as pd

    from rp_course.experiments.base import Verdict

OUTCOMES = {"holds": ("#009E73", "o"), "fails": ("#D55E00", "s"), "undecided": ("#777777", "D")}
BESIDE = 0.2  # how far the published settings are drawn below the tuned ones, rows
NUMBER = r"([+-]\d+(?:\.\d+)?)"
# As rp_course.experiments.base writes them: a difference with its interval, or the change of a difference.
DIFFERENCE = re.compile(rf"= {NUMBER}( points)? \[{NUMBER}, {NUMBER}\]")
CHANGE = re.compile(rf"change {NUMBER} ± (\d+(?:\.\d+)?)")


class Interval(NamedTuple):
    """A difference, its 95 % interval, and whether it is in percent points."""

    value: float
    low: float
    high: float
    points: bool


def interval(verdict: Verdict) -> Interval | None:
    """Read the difference that decides a verdict from its evidence; None if it has no single one."""
    if found := CHANGE.search(verdict.evidence):
        value, half = float(found[1]), float(found[2])
        return Interval(value, value - half, value + half, True)
    if found := DIFFERENCE.search(verdict.evidence):
        return Interval(float(found[1]), float(found[3]), float(found[4]), bool(found[2]))
    return None


def show_verdicts(verdicts: Sequence[Verdict], about: str) -> None:
    """Draw the differences behind verdicts, coloured by outcome, and print a line for each verdict.

    Args:
        verdicts: Of one or several experiments. Those without a single difference are printed only.
        about: What they are verdicts on, a noun phrase, for the text alternative.
    """
    drawn = [v for v in verdicts if interval(v) is not None]
    if drawn:
        show(forest(drawn), alt=f"Differences with 95 % intervals behind {len(drawn)} verdicts on {about}, by outcome")
    print("\n".join(line(verdict) for verdict in verdicts))


def line(verdict: Verdict) -> str:
    """Outcome, difference [interval] and claim of a verdict, in lines of at most 100 characters.

    A verdict on tuned and published settings has a line for each of them below the claim.
    """
    if not verdict.parts:
        head, numbers = f"{verdict.outcome:10}", _numbers(verdict)
        rest = f"{numbers:24}{verdict.claim}" if numbers else f"{verdict.claim}: {verdict.evidence}"
        indent = len(head) + 24 * bool(numbers)
        return textwrap.fill(head + rest, WIDTH, subsequent_indent=" " * indent, break_on_hyphens=False)
    told = [f"{verdict.outcome}: {verdict.claim}"]
    told += [f"    {choice:11}{p.outcome:11}{_numbers(p) or p.evidence}" for choice, p in verdict.parts.items()]
    return "\n".join(textwrap.fill(t, WIDTH, subsequent_indent=" " * 26, break_on_hyphens=False) for t in told)


def _numbers(verdict: Verdict) -> str:
    """The difference that decides a verdict, with its interval; nothing if it has no single one."""
    found = interval(verdict)
    if found is None:
        return ""
    digits = 1 if found.points else 3
    return f"{found.value:+.{digits}f} [{found.low:+.{digits}f}, {found.high:+.{digits}f}]"


def forest(verdicts: Sequence[Verdict]) -> Figure:
    """Draw a forest plot: one row a verdict, its difference with the 95 % interval; a panel for each unit.

    Of a verdict on tuned and published settings both are drawn, the published ones hollow.

    Args:
        verdicts: Each with a difference, see :func:`interval`.
    """
    units = [points for points in (True, False) if any(interval(v).points is points for v in verdicts)]
    parts = [[v for v in verdicts if interval(v).points is points] for points in units]
    labels = {v.claim: textwrap.fill(v.claim, 56, break_on_hyphens=False) for v in verdicts}
    row = 0.27 if all("\n" not in label for label in labels.values()) else 0.37  # inches
    heights = [len(part) + 0.8 for part in parts]
    figure = Figure(figsize=(8.8, row * sum(heights) + 0.7), layout="constrained")
    panels = figure.subplots(len(parts), 1, height_ratios=heights, squeeze=False)[:, 0]
    for panel, part, points in zip(panels, parts, units, strict=True):
        for y, verdict in enumerate(part):
            for number, told in enumerate(verdict.parts.values() or [verdict]):
                value, low, high, _ = interval(told)
                colour, marker = OUTCOMES[told.outcome]
                look = {"color": colour, "marker": marker, "markerfacecolor": "white" if number else colour}
                at = y + (BESIDE * (2 * number - 1) if verdict.parts else 0)
                panel.errorbar(value, at, xerr=[[value - low], [high - value]], capsize=3, **look)
        panel.axvline(0, color="black", linewidth=1)
        panel.set_yticks(range(len(part)), [labels[v.claim] for v in part], fontsize=9)
        panel.set_ylim(len(part) - 0.5, -0.5)
        panel.set_xlabel(
            "difference, percent points" if points else "difference, in the unit of the measure", fontsize=9
        )
        panel.spines[["top", "right", "left"]].set_visible(False)
        panel.tick_params(axis="y", length=0)
        panel.grid(axis="x", color="#dddddd", linewidth=0.6)
        panel.set_axisbelow(True)
    told = [part.outcome for v in verdicts for part in (v.parts.values() or [v])]
    shown = [name for name in OUTCOMES if name in told]
    marks = [panels[0].plot([], [], OUTCOMES[n][1], color=OUTCOMES[n][0], label=n)[0] for n in shown]
    if any(v.parts for v in verdicts):
        marks += panels[0].plot([], [], "ko", markerfacecolor="white", label="published settings")
    figure.legend(handles=marks, loc="outside upper right", ncols=len(marks), frameon=False, fontsize=9)
    return figure


def ledger(records: pd.DataFrame) -> Figure:
    """Draw what each row of the ledger changes of each method, on four axes, with 95 % intervals.

    Args:
        records: Of the experiment ``ledger``, with one choice of settings.
    """
    from rp_course.experiments.base import AXIS_LABELS, UNDECIDED, direction, pick
    from rp_course.experiments.figures import named
    from rp_lib.figures import STYLE

    axes = [axis for axis in AXIS_LABELS if axis != "aggregate"]
    compared = records[records["versus"].notna()]
    labels = [m.split(", ", 1) for m in dict.fromkeys(compared["method"]) if ", row" in m]
    methods = list(dict.fromkeys(method for method, _ in labels))
    rows = sorted({row for _, row in labels}, key=lambda row: int(row.split()[1].rstrip(":")))
    figure = Figure(figsize=(9.4, 0.36 * len(rows) + 1.2), layout="constrained")
    panels = figure.subplots(1, len(axes), sharey=True)
    for panel, axis in zip(panels, axes, strict=True):
        for y, name in enumerate(rows):
            present = [m for m in methods if [m, name] in labels]
            for k, method in enumerate(present):
                (_, r), = pick(compared, method=f"{method}, {name}", metric=axis).iterrows()
                value, low, high = (100 * r[c] for c in ("value", "low", "high"))
                colour, marker, _ = STYLE[method]
                fill = "white" if direction(r) == UNDECIDED else colour
                look = {"color": colour, "marker": marker, "markersize": 5, "markerfacecolor": fill, "capsize": 2}
                at = y + 0.7 * ((k + 0.5) / len(present) - 0.5)
                panel.errorbar(value, at, xerr=[[value - low], [high - value]], linewidth=1, **look)
        panel.axvline(0, color="black", linewidth=0.8)
        panel.set_title(AXIS_LABELS[axis], fontsize=10)
        panel.tick_params(labelsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(range(len(rows)), [textwrap.fill(name, 27) for name in rows], fontsize=8)
    panels[0].set_ylim(len(rows) - 0.5, -0.5)
    figure.supxlabel("difference, percent points: as released minus as in the paper (filled: decided)", fontsize=9)
    marks = [panels[0].plot([], [], STYLE[m][1], color=STYLE[m][0], label=named(m))[0] for m in methods]
    figure.legend(handles=marks, loc="outside upper right", ncols=min(3, len(marks)), frameon=False, fontsize=9)
    return figure
