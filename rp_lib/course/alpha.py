"""The share of zero-shot, along recorded frontiers."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from rp_lib.course.slides import Facts, Slides
from rp_lib.course.stage import Stage
from rp_lib.errors import RPLibError
from rp_lib.figures import AXES, STYLE

PANELS = ((0, 1), (3, 1))  # numbers in AXES of the horizontal and the vertical axis


def alpha_widget(records: pd.DataFrame) -> Slides:
    """Slider over alpha: where each mixture stands on its frontier, ID accuracy and FPR95 against accuracy under shift.

    ``.at(alpha)`` gives, by method, the fractions of :data:`rp_lib.figures.AXES` by their labels.

    Args:
        records: of the experiment ``frontier``, or any with the columns alpha, method, set, metric, value.

    Raises:
        RPLibError: no method has two values of alpha, or an axis is missing.
    """
    sweep = _sweep(records)
    stops = sorted(float(a) for a in sweep.index.get_level_values("alpha").unique())
    methods = list(dict.fromkeys(sweep.index.get_level_values("method")))
    if len(stops) < 2:
        raise RPLibError("the records hold no sweep: at least two values of alpha are needed")

    figure = Figure(figsize=(8, 3.8))
    markers = {}
    for i, (across, up) in enumerate(PANELS):
        panel = figure.add_axes((0.08 + 0.5 * i, 0.21, 0.4, 0.69))
        for method in methods:
            colour, marker, name = STYLE.get(method, ("#444444", "o", method))
            line = 100 * sweep.xs(method, level="method")[[across, up]]
            panel.plot(line[across], line[up], color=colour, marker=marker, markersize=4, linewidth=1, label=name)
            (markers[i, method],) = panel.plot([], [], color=colour, marker=marker, markersize=13, markeredgecolor="k")
        if (1.0, methods[0]) in sweep.index:  # where all curves end
            end = 100 * sweep.loc[(1.0, methods[0]), [across, up]]
            panel.annotate("alpha = 1: zero-shot", tuple(end), (-14, 20), textcoords="offset points", ha="center",
                           fontsize=8, arrowprops={"arrowstyle": "-", "color": "#555555"})  # fmt: skip
        panel.set_xlabel(AXES[across][2], fontsize=9)
        panel.set_ylabel(AXES[up][2], fontsize=9)
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(color="#e5e5e5", linewidth=0.8)
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="lower center", ncols=len(names), fontsize=8, frameon=False, markerscale=2)
    figure.axes[1].invert_xaxis()  # better is to the right in both

    title = figure.text(0.5, 0.96, "", ha="center", va="center", fontsize=10)
    stage = Stage(figure, [*markers.values(), title])

    def frame(alpha: float) -> bytes:
        for (i, method), marker in markers.items():
            row = 100 * sweep.loc[(alpha, method)] if (alpha, method) in sweep.index else None
            marker.set_data(*([[], []] if row is None else [[row[PANELS[i][0]]], [row[PANELS[i][1]]]]))
        title.set_text(f"alpha = {alpha:g}: {alpha:.0%} of the features, weights or logits are zero-shot's")
        return stage.png()

    def facts(alpha: float) -> Facts:
        rows = sweep.xs(alpha, level="alpha")
        found = {m: {AXES[i][2].removesuffix(" (%)"): float(v) for i, v in rows.loc[m].items()} for m in rows.index}
        return {"alpha": alpha, **found}

    def words(facts: Facts) -> Facts:
        rows = {STYLE[m][2] if m in STYLE else m: row for m, row in facts.items() if m != "alpha"}
        return {
            name: ", ".join(f"{axis} {100 * value:.1f} %" for axis, value in row.items()) for name, row in rows.items()
        }

    alt = f"Two plots with a curve over alpha for each of {', '.join(methods)}: accuracy under shift against "
    return Slides(
        "alpha, share of zero-shot", stops, frame, facts, alt + "ID accuracy and FPR95; large markers at one alpha",
        start=min(stops, key=lambda a: abs(a - 0.5)), say=words,
    )  # fmt: skip


def _sweep(records: pd.DataFrame) -> pd.DataFrame:
    """Fractions by (alpha, method), one column for each of AXES that the panels show."""
    missing = [c for c in ("alpha", "method", "set", "metric", "value") if c not in records.columns]
    if missing:
        raise RPLibError(f"the records have no column {', '.join(missing)}")
    rows = records[records["alpha"].notna()]
    for column, keep in (
        ("versus", rows.get("versus", pd.Series(dtype=object)).isna()),
        ("rule", rows.get("rule") == "grid"),
    ):
        rows = rows[keep.reindex(rows.index, fill_value=True)] if column in rows else rows
    columns = {}
    for i in sorted({i for pair in PANELS for i in pair}):
        data, metric = AXES[i][:2]
        found = rows[(rows["set"] == data) & (rows["metric"] == metric)]
        if found.empty:
            raise RPLibError(f"the records hold no {metric} of {data!r}")
        columns[i] = found.groupby(["alpha", "method"], sort=False)["value"].mean()
    return pd.DataFrame(columns).dropna().sort_index(level="alpha", sort_remaining=False)
