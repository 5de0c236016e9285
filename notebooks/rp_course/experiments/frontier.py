"""RRP mixes features, WiSE-FT weights, the ensemble outputs: their frontiers over alpha on common axes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from rp_course.experiments.base import FAILS, HOLDS, UNDECIDED, Drawing, Experiment, Verdict, difference, direction, row
from rp_course.experiments.grid import judge_outputs
from rp_course.experiments.world import World
from rp_lib.methods import BASES, METHODS, Method
from rp_lib.outputs import MethodOutputs
from rp_lib.utils.errors import RPLibError

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
            mixed = METHODS[name].of(bases[base])
            for alpha in sorted({*alphas, picked[name]}):
                at = mixed.at(alpha)
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


def _figures() -> Mapping[str, Drawing]:
    from rp_course.experiments.drawings import frontier

    return frontier.DRAWINGS


EXPERIMENT = Experiment(
    "frontier", "Where do mixing features, weights and outputs lead, on common axes?", ("rule", "alpha"), measure,
    judge, 5,
    figures=_figures,
)  # fmt: skip
