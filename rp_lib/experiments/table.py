"""The whole table: every method on every axis with every detector, several seeds, and which differences are real."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from rp_lib._version import __version__
from rp_lib.benchmark import Benchmark
from rp_lib.detectors import DETECTORS
from rp_lib.errors import RPLibError
from rp_lib.experiments.base import Drawing, Experiment, Verdict, difference
from rp_lib.experiments.grid import judge_outputs, paired_draws
from rp_lib.experiments.standings import on_the_aggregate, standings, text
from rp_lib.experiments.world import World
from rp_lib.methods import BASES, METHODS, Method
from rp_lib.negative_words import mine_negative_words
from rp_lib.outputs import MethodOutputs, load_outputs, save_outputs
from rp_lib.records import commit

QUICK = ("zero-shot", "linear-probe", "fine-tune", "rp", "rrp")
MEMBERS = ("zero-shot", "linear-probe")


def saved_outputs(world: World, folder: Path, names: Sequence[str] | None = None) -> dict[str, list[MethodOutputs]]:
    """Outputs of every method and seed from ``folder``; what is not there, or is of other settings, is made.

    Args:
        world: see :class:`World`. folder: one safetensors file per method and seed. names: of methods, default all.
    """
    names = tuple(names or (QUICK if world.quick else METHODS))
    clip, benchmark = world.backbone(), world.judged
    words = functools.cache(lambda: mine_negative_words(clip, benchmark.class_names, benchmark.templates))
    found: dict[str, list[MethodOutputs]] = {name: [] for name in names}
    for seed in world.seeds:
        fitted: dict[str, Method] = {}

        def method(name: str, seed: int = seed, fitted: dict[str, Method] = fitted) -> Method:
            if name in BASES:  # the mixtures take its training
                method(BASES[name], seed, fitted)
            if name not in fitted:
                fitted[name] = world.fit(name, seed, benchmark, clip, fitted=fitted.values())
            return fitted[name]

        for name in names:
            if name == "zero-shot" and found[name]:
                continue
            path = folder / f"{name}-seed{seed}.safetensors"
            used = [world.tuned(n) for n in (name, *MEMBERS)]
            wanted = json.dumps([__version__, used, seed, world.precision], sort_keys=True, default=str)
            made = _kept(path, benchmark, clip.fingerprint, wanted)
            world.parts.append({"reused": made is not None, "commit": made and made.about.get("commit")})
            if made is None:
                others = {m: method(m) for m in MEMBERS}
                options = {"roles": None, "others": others, "negatives": words(), "progress": world.progress}
                made = world.outputs(method(name), seed, benchmark, **options)
                made = MethodOutputs({**made.about, "wanted": wanted, "commit": commit()}, made.sets)
                save_outputs(path, made)
            found[name].append(made)
        world.forget(*fitted.values())
    return found


def _kept(path: Path, benchmark: Benchmark, backbone: str, wanted: str) -> MethodOutputs | None:
    """Saved outputs, if they are whole and of this benchmark, backbone and settings, which their header says."""
    try:
        kept = load_outputs(path, benchmark)
    except RPLibError:  # not there, cut short, of another benchmark: made anew
        return None
    return kept if (kept.about["backbone_sha256"], kept.about.get("wanted")) == (backbone, wanted) else None


# What is claimed, of whom against whom, on which axis, and in which direction.
CLAIMS = [
    ("linear probing costs accuracy under shift", "linear-probe", "zero-shot", "shift accuracy", "lower"),
    ("linear probing costs detection", "linear-probe", "zero-shot", "auroc", "lower"),
    ("full fine-tuning costs accuracy under shift", "fine-tune", "zero-shot", "shift accuracy", "lower"),
    ("full fine-tuning costs detection", "fine-tune", "zero-shot", "auroc", "lower"),
    ("full fine-tuning raises ID accuracy", "fine-tune", "zero-shot", "id accuracy", "higher"),
    ("RP raises ID accuracy", "rp", "zero-shot", "id accuracy", "higher"),
    ("RRP raises ID accuracy", "rrp", "zero-shot", "id accuracy", "higher"),
    ("RRP keeps more accuracy under shift than RP", "rrp", "rp", "shift accuracy", "higher"),
    ("RRP beats fine-tuning under shift", "rrp", "fine-tune", "shift accuracy", "higher"),
    ("RRP beats fine-tuning at detection (AUROC)", "rrp", "fine-tune", "auroc", "higher"),
    ("RRP beats fine-tuning at detection (FPR95)", "rrp", "fine-tune", "fpr", "lower"),
    ("RRP beats zero-shot at detection (FPR95)", "rrp", "zero-shot", "fpr", "lower"),
    ("RRP beats WiSE-FT under shift", "rrp", "wise-ft", "shift accuracy", "higher"),
    ("RRP beats WiSE-FT at detection (AUROC)", "rrp", "wise-ft", "auroc", "higher"),
    ("RRP beats CoOp under shift", "rrp", "coop", "shift accuracy", "higher"),
    ("RRP beats FLYP under shift", "rrp", "flyp", "shift accuracy", "higher"),
]


def measure(world: World, parts: Path) -> pd.DataFrame:
    """All methods x axes x detectors, and the aggregate of three axes; from saved outputs it takes seconds."""
    outputs = saved_outputs(world, parts / "outputs")
    pairs = list(dict.fromkeys((a, b) for _, a, b, _, _ in CLAIMS if {a, b} <= outputs.keys()))
    detectors = ("msp", *(d for d in DETECTORS if d != "msp"))
    draws = paired_draws(outputs, detectors[0])
    records = judge_outputs(outputs, pairs, detectors, draws)
    return pd.concat([records, standings(outputs, draws, detectors[0])], ignore_index=True).assign(scale="all")


def judge(records: pd.DataFrame) -> list[Verdict]:
    """The paper's claims, the reader's questions, and whether RRP is first when the axes are added up."""
    there = set(records["method"])
    verdicts = [
        difference(claim, records, first, second, axis, want)
        for claim, first, second, axis, want in CLAIMS
        if {first, second} <= there
    ]
    return verdicts + on_the_aggregate(records)


def _figures() -> Mapping[str, Drawing]:
    from rp_lib.experiments.drawings import table

    return table.DRAWINGS


EXPERIMENT = Experiment(
    "table", "Who wins on three axes at once, and which differences are real?", ("scale",), measure, judge, 7,
    text=text,
    figures=_figures,
)  # fmt: skip
