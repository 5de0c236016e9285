"""RRP mixes features, WiSE-FT weights, the ensemble outputs: their frontiers over alpha on common axes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from rp_lib.errors import RPLibError
from rp_lib.experiments.base import UNDECIDED, Experiment, Verdict, difference, pick
from rp_lib.experiments.grid import judge_outputs
from rp_lib.experiments.world import World
from rp_lib.methods import BASES, METHODS, Method
from rp_lib.outputs import MethodOutputs

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
                    found.setdefault((rule, alpha if rule == "grid" else np.nan), {}).setdefault(name, []).append(
                        outputs
                    )
                if at in at.encoders:
                    world.forget(at)
        world.forget(*bases.values())
    frames = [judge_outputs(outputs).assign(rule=rule, alpha=alpha) for (rule, alpha), outputs in found.items()]
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
    """Whether some alpha between the ends has a higher shift accuracy than both ends, for RRP."""
    rows = pick(records, rule="grid", method="rrp", set="mean of shifts", metric="accuracy", versus=None)
    rows = rows.sort_values("alpha")
    ends, inner = rows.iloc[[0, -1]], rows.iloc[1:-1]
    best, end = inner.loc[inner["value"].idxmax()], ends.loc[ends["value"].idxmax()]
    outcome = "holds" if best["low"] > end["high"] else "fails" if best["high"] < end["low"] else UNDECIDED
    evidence = (
        f"best inside: alpha {best['alpha']:g} with {100 * best['value']:.1f} [{100 * best['low']:.1f}, "
        f"{100 * best['high']:.1f}]; better end: alpha {end['alpha']:g} with {100 * end['value']:.1f} "
        f"[{100 * end['low']:.1f}, {100 * end['high']:.1f}] % under shift (unpaired intervals)"
    )
    return Verdict("some mixture of RP and zero-shot is better under shift than both", outcome, evidence)


EXPERIMENT = Experiment(
    "frontier", "Where do mixing features, weights and outputs lead, on common axes?", ("rule", "alpha"), measure,
    judge, 5,
)  # fmt: skip
