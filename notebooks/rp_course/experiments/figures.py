"""Figures of experiments and what they show in words.

Most experiments share one figure: every method on the three axes, as lines over a factor or as dots beside each other.
Alternative texts are made from the records that the figure draws, so they say what these records say.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from rp_course.experiments.base import Drawing, Experiment, pick
from rp_lib.figures import AXES, STYLE
from rp_lib.utils.errors import UnknownName

if TYPE_CHECKING:  # drawn by few, imported by all
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# What the panels of :data:`rp_lib.figures.AXES` are called in a sentence.
SHORT = {a[:2]: n for a, n in zip(AXES, ("ID accuracy", "accuracy under shift", "AUROC", "FPR95"), strict=True)}
# What factors are called on an axis.
FACTORS = {
    "fraction": "fraction of pre-training", "shots": "images a class, at most",
    "classes": "classes of the task", "million_weights": "million weights of the image tower",
}  # fmt: skip
# For labels that are no method's name: Okabe and Ito's palette, and a marker each.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "h", "d")


def figures(experiment: Experiment, records: pd.DataFrame) -> dict[str, Figure]:
    """The figures of an experiment's records, by suffix of their files' names (``""``, ``"-fpr"`` ...)."""
    return {suffix: drawing.draw(records) for suffix, drawing in drawings(experiment).items()}


def alt(experiment: Experiment, records: pd.DataFrame, suffix: str = "") -> str:
    """What a figure of the experiment shows, in one sentence with the numbers that stand out, for who cannot see it.

    Args:
        experiment: whose. records: of the figure. suffix: which of :func:`figures`.

    Raises:
        UnknownName: there is no such figure.
    """
    known = drawings(experiment)
    if suffix not in known:
        raise UnknownName(f"figure of the experiment {experiment.name!r}", suffix, known)
    return known[suffix].alt(records)


def drawings(experiment: Experiment) -> dict[str, Drawing]:
    """An experiment's own drawings, by suffix of their files' names, or the one that all others share."""
    if experiment.figures is not None:
        return dict(experiment.figures())
    return {"": Drawing(lambda r: draw(experiment, r), lambda r: describe(experiment, r))}


def _plain(records: pd.DataFrame) -> pd.DataFrame:
    plain = pick(records, versus=None)
    return plain[plain["detector"].isna() | plain["detector"].isin(["", "msp"])]


def _axes(plain: pd.DataFrame) -> list[tuple[str, str, str, str]]:
    return [a for a in AXES if len(pick(plain, set=a[0], metric=a[1]))]


def _factor(experiment: Experiment, plain: pd.DataFrame) -> str | None:
    return next((f for f in experiment.factors if _is_numeric(plain[f])), None)


def draw(experiment: Experiment, records: pd.DataFrame) -> Figure | None:
    """The shared figure of an experiment's records, or None if they hold none of the four axes.

    With a numeric factor of several levels it shows lines over that factor, else one row of dots per method.
    """
    from matplotlib.figure import Figure

    plain = _plain(records)
    axes = _axes(plain)
    if not axes:
        return None
    factor = _factor(experiment, plain)
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
        tidy(panel)
    if factor:
        handles, names = panels[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=min(6, len(names)), frameon=False)
    seeds, n = int(plain["seeds"].max()), int(pick(plain, set="test")["n"].max())
    choice = f"{plain['choice'].iloc[0]} settings, " if "choice" in plain and plain["choice"].nunique() == 1 else ""
    size = f"{seeds} seed{'s' * (seeds > 1)}, {n} test pictures"
    figure.suptitle(f"{experiment.question} ({choice}{size}, bars: 95 % intervals)", fontsize=11)
    return figure


def describe(experiment: Experiment, records: pd.DataFrame) -> str:
    """The alternative text of :func:`draw`: the best of every axis, at both ends of the factor if there is one."""
    plain = _plain(records)
    factor = _factor(experiment, plain)
    panels = _axes(plain)
    what = f"{listed([SHORT[a[:2]] for a in panels])} of {plain['method'].nunique()} methods with 95 % intervals"
    if factor is None:
        return f"Dot plots of {what}: {'; '.join(best(plain, a) for a in panels)}."
    ends = sorted(plain[factor].dropna().unique())[:: plain[factor].nunique() - 1]
    factor_name = FACTORS.get(factor, factor)
    told = [f"At {end:g}, {'; '.join(best(pick(plain, **{factor: end}), a) for a in panels)}" for end in ends]
    return f"Lines of {what} over {factor_name} from {ends[0]:g} to {ends[-1]:g}. {'. '.join(told)}."


def best(plain: pd.DataFrame, axis: tuple[str, str, str, str]) -> str:
    """Say which method has the best estimate on an axis of :data:`rp_lib.figures.AXES`, and which the worst."""
    rows = pick(plain, set=axis[0], metric=axis[1]).drop_duplicates("method").set_index("method")["value"]
    ends = (rows.idxmin(), rows.idxmax())
    first, last = ends if axis[3].startswith("lower") else ends[::-1]
    numbers = [f"{named(m)} ({100 * rows[m]:.1f} %)" for m in (first, last)]
    return f"{SHORT[axis[:2]]} is best for {numbers[0]} and worst for {numbers[1]}"


def named(method: str) -> str:
    """What a method is called in figures; a label that is no method's name stays as it is."""
    return STYLE[method][2] if method in STYLE else method


def listed(names: Sequence[str]) -> str:
    """The names with commas and an "and"."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def heatmap(records: pd.DataFrame, metric: str = "fpr") -> Figure:
    """Methods x detectors: the mean over OOD sets of ``auroc`` or ``fpr``, in percent.

    Cells are hatched in grey where a detector does not apply to a method.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    rows = pick(records, set="mean of OOD sets", metric=metric, versus=None)
    table = 100 * rows.pivot_table(index="method", columns="detector", values="value", sort=False)
    figure = Figure(figsize=(0.75 * table.shape[1] + 3, 0.38 * table.shape[0] + 1.8), layout="constrained")
    panel = figure.subplots()
    image = panel.imshow(table, cmap="cividis" if metric == "auroc" else "cividis_r", aspect="auto")
    middle = np.nanmean(image.get_clim())
    for (y, x), value in np.ndenumerate(table.to_numpy()):
        if np.isnan(value):
            look = {"hatch": "////", "facecolor": "white", "edgecolor": "#999999", "linewidth": 0}
            panel.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, **look))
        else:
            light = (value < middle) == (metric == "auroc")
            panel.text(x, y, f"{value:.0f}", ha="center", va="center", color="white" if light else "black", fontsize=9)
    names = [named(m) for m in table.index]
    panel.set_yticks(range(len(names)), names)
    panel.set_xticks(range(table.shape[1]), table.columns, rotation=40, ha="right")
    better = "higher" if metric == "auroc" else "lower"
    hatched = "; hatched: does not apply" if table.isna().any(axis=None) else ""
    panel.set_title(f"{metric.upper()} in %, mean over OOD sets ({better} is better{hatched})", fontsize=11)
    return figure


def describe_heatmap(records: pd.DataFrame, metric: str = "fpr") -> str:
    """The alternative text of :func:`heatmap`."""
    rows = pick(records, set="mean of OOD sets", metric=metric, versus=None)
    by = rows.groupby("detector")["value"].mean()
    low, high = rows.loc[rows["value"].idxmin()], rows.loc[rows["value"].idxmax()]
    name = "FPR95" if metric == "fpr" else "AUROC"
    cells = [f"{100 * r['value']:.0f} % ({named(r['method'])} by {r['detector']})" for r in (low, high)]
    return (
        f"Heat map of {name}, {rows['method'].nunique()} methods by {rows['detector'].nunique()} detectors, from "
        f"{cells[0]} to {cells[1]}; its mean over methods is lowest for {by.idxmin()} ({100 * by.min():.0f} %) and "
        f"highest for {by.idxmax()} ({100 * by.max():.0f} %)."
    )


def tidy(panel: Axes) -> None:
    """No box, a faint grid behind the data."""
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(color="#e5e5e5", linewidth=0.8)
    panel.set_axisbelow(True)


def percent(rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Values (n,) and the lengths of their error bars (2, n), in percent."""
    value, low, high = (100 * rows[c].to_numpy(float) for c in ("value", "low", "high"))
    return value, np.stack([value - low, high - value]).clip(0)


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
        value, bars = percent(mine)
        colour, marker, name = style[label]
        panel.errorbar(x, value, bars, color=colour, marker=marker, label=name, lw=1.5, capsize=2)
    panel.set_xticks(range(len(levels)), [f"{v:g}" for v in levels])
    panel.set_xlabel(FACTORS.get(factor, factor))
    panel.set_ylabel("%")


def _dots(
    panel: Axes, rows: pd.DataFrame, labels: Sequence[str], style: dict[str, tuple[str, str, str]], named: bool
) -> None:
    for y, label in enumerate(reversed(labels)):
        for _, row in rows[rows["method"] == label].iterrows():
            colour, marker, _ = style[label]
            value, low, high = (100 * row[c] for c in ("value", "low", "high"))
            panel.errorbar(value, y, xerr=[[value - low], [high - value]], color=colour, marker=marker, capsize=2,
                           ms=10 if marker == "*" else 6)  # fmt: skip
    panel.set_ylim(-0.6, len(labels) - 0.4)
    panel.set_yticks(range(len(labels)), [style[m][2] for m in reversed(labels)] if named else [""] * len(labels))
    panel.set_xlabel("%")
