"""RRP mixes features, WiSE-FT weights, the ensemble outputs: their frontiers over alpha on common axes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from rp_course.experiments.base import (
    FAILS,
    HOLDS,
    UNDECIDED,
    Drawing,
    Experiment,
    Verdict,
    difference,
    direction,
    pick,
    row,
)
from rp_course.experiments.figures import named, percent, tidy
from rp_course.experiments.grid import judge_outputs
from rp_course.experiments.world import World
from rp_lib.evaluation import ALL_OOD, ALL_SHIFTS
from rp_lib.figures import STYLE, halo
from rp_lib.methods import BASES, METHODS, Method
from rp_lib.outputs import MethodOutputs
from rp_lib.utils.errors import RPLibError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICK = -1.0  # stands for "as each picked" until the records are made
PICKED, ENDS = "rrp as picked", {0.0: "rp", 1.0: "zero-shot"}
ALPHAS = tuple(round(0.1 * i, 1) for i in range(11))


def measure(world: World, parts: Path) -> pd.DataFrame:
    """Every mixture with zero-shot at every alpha, and at the alpha that its own rule picked on ID validation data."""
    clip, benchmark = world.backbone(), world.judged
    alphas = ALPHAS[::5] if world.quick else ALPHAS
    picked = {name: _picked(world, name) for name in BASES}
    found: dict[tuple[str, float], dict[str, list[MethodOutputs]]] = {}
    for seed in world.seeds:
        bases: dict[str, Method] = {}
        for name, base in BASES.items():
            if base not in bases:
                bases[base] = world.fit(base, seed, benchmark, clip)
            mixed = METHODS[name](bases[base])
            for alpha in sorted({*alphas, picked[name]}):
                at = mixed.with_alpha(alpha)
                for rule in ["grid"] * (alpha in alphas) + ["picked"] * (alpha == picked[name]):
                    outputs = world.outputs(at, seed, benchmark)
                    found.setdefault((rule, alpha if rule == "grid" else PICK), {}).setdefault(name, []).append(outputs)
                if at in at.encoders:
                    world.forget(at)
        world.forget(*bases.values())
    frames = [
        judge_outputs(outputs).assign(rule=rule, alpha=np.nan if alpha == PICK else alpha)
        for (rule, alpha), outputs in found.items()
    ]
    ends = {PICKED: found["picked", PICK]["rrp"]} | {label: found["grid", a]["rrp"] for a, label in ENDS.items()}
    frames.append(judge_outputs(ends, [(PICKED, end) for end in ENDS.values()]).assign(rule="ends", alpha=np.nan))
    table = pd.concat(frames, ignore_index=True)
    for name, alpha in picked.items():
        table.loc[(table["rule"] == "picked") & (table["method"] == name) & table["versus"].isna(), "alpha"] = alpha
    return table


def _picked(world: World, name: str) -> float:
    settings = world.tuned(name)
    alpha = settings.get("alpha", getattr(settings.get("config"), "alpha", None))
    if alpha is None:
        raise RPLibError(f"the settings of {name} have no alpha; run `rp-lib search` to choose one")
    return float(alpha)


def judge(records: pd.DataFrame) -> list[Verdict]:
    """Who is ahead at the points that the methods' own rules pick; and whether mixing beats both ends."""
    where = {"rule": "picked"}
    verdicts = [
        difference(f"at the picked points, RRP beats {other} ({text})", records, "rrp", name, axis, want, where)
        for name, other in (("wise-ft", "WiSE-FT"), ("logit-ensemble", "the logit ensemble"))
        for axis, text, want in (("shift accuracy", "under shift", "higher"), ("fpr", "FPR95", "lower"))
    ]
    return [*verdicts, _inner(records)]


def _inner(records: pd.DataFrame) -> Verdict:
    """Whether the mixture that RRP's rule picked is better under shift than RP and than zero-shot, paired."""
    both = [row(records, rule="ends", method=PICKED, versus=end, metric="shift accuracy") for end in ENDS.values()]
    outcomes = {direction(r) for r in both}
    outcome = FAILS if FAILS in outcomes else HOLDS if outcomes == {HOLDS} else UNDECIDED
    parts = [
        f"against {r['versus']} {100 * r['value']:+.1f} [{100 * r['low']:+.1f}, {100 * r['high']:+.1f}] points, "
        f"Holm p = {r['p_holm']:.3f}"
        for r in both
    ]
    return Verdict("RRP is better under shift than both that it mixes", outcome, "; ".join(parts))


ID, SHIFT, FPR = ("test", "accuracy"), (ALL_SHIFTS, "accuracy"), (ALL_OOD, "fpr")
NAMES = {ID: "ID accuracy (%)", SHIFT: "Accuracy under shift (%)", FPR: "FPR95 (%), lower is better"}
# x and y of each panel.
PANELS = ((SHIFT, FPR), (ID, FPR), (ID, SHIFT))


def draw_frontier(records: pd.DataFrame) -> Figure:
    """The curve of each mixture over alpha, and the point that its own rule picked, with intervals."""
    from matplotlib.figure import Figure

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


EXPERIMENT = Experiment(
    "frontier", "Where do mixing features, weights and outputs lead, on common axes?", ("rule", "alpha"), measure,
    judge, 5,
    figures=lambda: DRAWINGS,
)  # fmt: skip
