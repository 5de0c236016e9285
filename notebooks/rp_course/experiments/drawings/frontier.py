"""The frontier of the mixtures over alpha, with the points that their own rules pick."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from rp_course.experiments.base import Drawing, pick
from rp_course.experiments.figures import named, percent, tidy
from rp_lib.evaluation import ALL_OOD, ALL_SHIFTS
from rp_lib.figures import STYLE, halo

ID, SHIFT, FPR = ("test", "accuracy"), (ALL_SHIFTS, "accuracy"), (ALL_OOD, "fpr")
NAMES = {ID: "ID accuracy (%)", SHIFT: "Accuracy under shift (%)", FPR: "FPR95 (%), lower is better"}
# x and y of each panel.
PANELS = ((SHIFT, FPR), (ID, FPR), (ID, SHIFT))


def draw_frontier(records: pd.DataFrame) -> Figure:
    """The curve of each mixture over alpha, and the point that its own rule picked, with intervals."""
    figure = Figure(figsize=(13, 4.6), layout="constrained")
    plain = pick(records, versus=None)
    methods = [m for m in STYLE if m in set(pick(plain, rule="grid")["method"])]
    for panel, (x, y) in zip(figure.subplots(1, len(PANELS)), PANELS, strict=True):
        for method in methods:
            colour, marker, name = STYLE[method]
            curve, curve_y = (_over_alpha(plain, method, axis) for axis in (x, y))
            panel.plot(100 * curve["value"], 100 * curve_y["value"], color=colour, lw=1.5, marker=".", zorder=2)
            at_x, at_y = (pick(plain, rule="picked", method=method, set=a[0], metric=a[1]).iloc[[0]] for a in (x, y))
            (px, ex), (py, ey) = percent(at_x), percent(at_y)
            label = f"{name}, picked alpha {at_x['alpha'].iloc[0]:g}"
            size = 13 if marker == "*" else 9
            drawn = panel.errorbar(px, py, ey, ex, color=colour, marker=marker, ms=size, mec="white", lw=1, capsize=2,
                                   zorder=3, label=label)  # fmt: skip
            for part in (*drawn[1], *drawn[2]):  # wide intervals would hide the curves
                part.set_alpha(0.45)
            start = (100 * curve["value"].iloc[0], 100 * curve_y["value"].iloc[0])
            panel.annotate("0", start, (5, 4), textcoords="offset points", color=colour, path_effects=halo(), zorder=4)
        end = (100 * curve["value"].iloc[-1], 100 * curve_y["value"].iloc[-1])
        panel.plot(
            *end, color=STYLE["zero-shot"][0], marker=STYLE["zero-shot"][1], ms=7, ls="", label="Zero-shot", zorder=4
        )
        panel.set_xlabel(NAMES[x])
        panel.set_ylabel(NAMES[y])
        if y == FPR:
            panel.invert_yaxis()  # better is up and to the right in every panel
        tidy(panel)
    handles, names = panel.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4, frameon=False)
    levels = _over_alpha(plain, methods[0], ID)["alpha"]
    seeds = int(plain["seeds"].max())
    figure.suptitle(
        f"Mixing features, weights or outputs with zero-shot: {len(levels)} alphas from 0 (marked) to 1 (zero-shot)\n"
        f"large markers: the alpha that each method's own rule picked, 95 % intervals, {seeds} seeds; better is up and "
        "to the right", fontsize=11,
    )  # fmt: skip
    return figure


def _over_alpha(plain: pd.DataFrame, method: str, axis: tuple[str, str]) -> pd.DataFrame:
    return pick(plain, rule="grid", method=method, set=axis[0], metric=axis[1]).sort_values("alpha")


def describe_frontier(records: pd.DataFrame) -> str:
    """The picked points, and what the best of each curve would have been."""
    plain = pick(records, versus=None)
    told = []
    for method in [m for m in STYLE if m in set(pick(plain, rule="grid")["method"])]:
        at = [pick(plain, rule="picked", method=method, set=a[0], metric=a[1]).iloc[0] for a in (SHIFT, FPR)]
        curves = [_over_alpha(plain, method, axis)["value"] for axis in (SHIFT, FPR)]
        told.append(
            f"{named(method)} picks alpha {at[0]['alpha']:g} with {100 * at[0]['value']:.1f} % under shift and FPR95 "
            f"{100 * at[1]['value']:.1f} %, where its curve reaches {100 * curves[0].max():.1f} % and "
            f"{100 * curves[1].min():.1f} %"
        )
    return (
        "Curves of mixtures with zero-shot over alpha, FPR95 against accuracy under shift and against ID accuracy, and "
        f"accuracy under shift against ID accuracy: {'; '.join(told)}."
    )


DRAWINGS = {"": Drawing(draw_frontier, describe_frontier)}
