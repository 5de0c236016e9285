"""Experiments that train methods under a grid of conditions and judge them on all axes.

All methods of a condition see the same pictures and the same seeds, so their differences are paired. What a condition
gave is kept as soon as it is whole; an interrupted experiment goes on with the next one.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from rp_lib._version import __version__
from rp_lib.benchmark import Benchmark, ImageSet
from rp_lib.clip import FrozenCLIP
from rp_lib.detectors import build_detector
from rp_lib.evaluation import summarise
from rp_lib.experiments.base import COLUMNS
from rp_lib.experiments.world import World
from rp_lib.judging import accuracy_rows, detection_rows
from rp_lib.methods import Method, build_method
from rp_lib.outputs import MethodOutputs
from rp_lib.paired import paired_bootstrap
from rp_lib.storage import write_atomically

# Of the paired differences: p-values are at least 2 / (RESAMPLES + 1), and are corrected for up to a hundred of them.
RESAMPLES = 5000
# Parts of another format or version are measured again. Raise it with every change to what a part holds.
FORMAT = 2


@dataclass(frozen=True)
class Entry:
    """A method under a label of its own.

    Attributes:
        method: its name. settings: None for the tuned ones.
        shares: label of an entry whose training it takes, since its settings differ in what follows training alone.
    """

    method: str
    settings: Mapping[str, Any] | None = None
    shares: str | None = None


@dataclass(frozen=True)
class Condition:
    """One cell of a grid.

    Attributes:
        levels: value of each factor. benchmark: what to train and to judge on.
        train: by seed, the images to learn from, instead of the benchmark's.
        entries: methods by label; the label is what the records call them.
        pairs: labels to compare; None for all pairs.
        checkpoint: of the backbone.
    """

    levels: Mapping[str, Any]
    benchmark: Benchmark
    entries: Mapping[str, Entry] = field(default_factory=dict)
    pairs: Sequence[tuple[str, str]] | None = None
    checkpoint: str = "final"
    train: Mapping[int, ImageSet] | None = None


def methods(*names: str) -> dict[str, Entry]:
    """Entries of the tuned methods of these names."""
    return {name: Entry(name) for name in names}


def run_grid(world: World, conditions: Sequence[Condition], parts: Path) -> pd.DataFrame:
    """Measure every condition; finished ones are read from ``parts``."""
    frames = []
    for number, condition in enumerate(conditions, 1):
        path = parts / f"{_key(world, condition)}.csv"
        if not path.is_file():
            if world.progress:
                print(f"condition {number} of {len(conditions)}: {dict(condition.levels)}", flush=True)
            rows = run_condition(world, condition)
            write_atomically(path, lambda p, r=rows: r.to_csv(p, index=False, float_format="%.6g"))
        frames.append(pd.read_csv(path).assign(**condition.levels))
    return pd.concat(frames, ignore_index=True)


def _key(world: World, condition: Condition) -> str:
    clip = world.backbone(condition.checkpoint)
    entries = {
        label: [e.method, dict(world.tuned(e.method) if e.settings is None else e.settings), e.shares]
        for label, e in condition.entries.items()
    }
    trains = None if condition.train is None else {seed: s.fingerprint for seed, s in condition.train.items()}
    parts = [
        FORMAT,
        __version__,
        trains,
        clip.fingerprint,
        condition.benchmark.fingerprint,
        world.seeds,
        world.precision,
        entries,
        condition.pairs,
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:20]


def run_condition(world: World, condition: Condition) -> pd.DataFrame:
    """Fit every entry with every seed and judge them; the records without the levels."""
    clip = world.backbone(condition.checkpoint)
    outputs: dict[str, list[MethodOutputs]] = {label: [] for label in condition.entries}
    for seed in world.seeds:
        fitted: dict[str, Method] = {}
        for label, entry in condition.entries.items():
            if entry.method == "zero-shot" and outputs[label]:
                continue  # nothing is drawn in it
            fitted[label] = _fit(world, condition, entry, seed, clip, fitted)
            outputs[label].append(world.outputs(fitted[label], seed, condition.benchmark))
        world.forget(*fitted.values())
    if condition.benchmark is not world.judged:
        world.forget_images(clip)
    return judge_outputs(outputs, condition.pairs)


def _fit(
    world: World, condition: Condition, entry: Entry, seed: int, clip: FrozenCLIP, fitted: Mapping[str, Method]
) -> Method:
    if entry.shares is not None:
        base = fitted[entry.shares]
        settings = {**(world.tuned(entry.method) if entry.settings is None else entry.settings), "seed": seed}
        method = build_method(entry.method, clip, base.class_names, base.templates, settings)
        method.load_trained(base.trained())
        method.trained_on = base.trained_on
        return method
    train = None if condition.train is None else condition.train[seed]
    return world.fit(
        entry.method, seed, condition.benchmark, clip, settings=entry.settings, train=train, fitted=fitted.values()
    )


def judge_outputs(
    outputs: Mapping[str, Sequence[MethodOutputs]],
    pairs: Sequence[tuple[str, str]] | None = None,
    detectors: Sequence[str] = ("msp",),
) -> pd.DataFrame:
    """Records (:data:`rp_lib.experiments.base.COLUMNS`) of methods by label, and of their paired differences."""
    rows = []
    for label, runs in outputs.items():
        for o in runs:
            found = accuracy_rows(o, RESAMPLES // 25)
            for name in detectors:
                found += detection_rows(o, build_detector(name), metrics=("auroc", "fpr"), n_resamples=RESAMPLES // 25)
            rows += [{**row, "method": label} for row in found]
    frame = pd.DataFrame(rows)
    frame["detector"] = frame["detector"].fillna("") if "detector" in frame else ""
    if "n_ood" not in frame:
        frame["n_ood"] = float("nan")
    summary = summarise(frame).assign(versus=None, p_holm=float("nan"))
    if len(outputs) > 1:
        summary = pd.concat([summary, _differences(outputs, pairs, detectors[0])], ignore_index=True)
    return summary[list(COLUMNS)]


def _differences(
    outputs: Mapping[str, Sequence[MethodOutputs]], pairs: Sequence[tuple[str, str]] | None, detector: str
) -> pd.DataFrame:
    pairs = list(itertools.combinations(outputs, 2)) if pairs is None else list(pairs)
    found = paired_bootstrap(outputs, detector=detector, n_resamples=RESAMPLES).differences(pairs)
    one = next(iter(outputs.values()))[0]
    seeds = {label: len(runs) for label, runs in outputs.items()}
    sizes = {"id accuracy": len(one.test), "shift accuracy": sum(len(s) for s in one.shifts.values())}
    return pd.DataFrame(
        {
            "method": found["first"], "versus": found["second"], "set": "", "metric": found["axis"],
            "value": found["difference"], "low": found["low"], "high": found["high"],
            "seeds": [max(seeds[a], seeds[b]) for a, b in zip(found["first"], found["second"], strict=True)],
            "n": [sizes.get(axis, len(one.test)) for axis in found["axis"]],
            "p_holm": found["p_holm"],
            "n_ood": [sum(len(s) for s in one.ood.values()) if a in ("auroc", "fpr") else None for a in found["axis"]],
            "detector": [detector if a in ("auroc", "fpr") else "" for a in found["axis"]],
        }
    )  # fmt: skip
