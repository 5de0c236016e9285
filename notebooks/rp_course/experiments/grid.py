"""Experiments that train methods under a grid of conditions and judge them on all axes.

All methods of a condition see the same pictures and the same seeds, so their differences are paired. What a condition
gave is kept as soon as it is whole; an interrupted experiment goes on with the next one.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from rp_course.experiments.base import COLUMNS
from rp_course.experiments.world import World
from rp_lib._version import __version__
from rp_lib.benchmark import Benchmark, ImageSet
from rp_lib.clip import FrozenCLIP
from rp_lib.comparison import PairedDraws, paired_bootstrap
from rp_lib.detectors import build_detector
from rp_lib.evaluation import accuracy_rows, detection_rows, summarize
from rp_lib.methods import Method, build_method
from rp_lib.outputs import MethodOutputs
from rp_lib.run.report import commit
from rp_lib.stats import in_threads
from rp_lib.utils.io import load_table, load_tensors, save_table, save_tensors, write_atomically

# Of the paired differences and ranks: enough that noise of the resamples moves no digit that is printed.
RESAMPLES = 5000
# Parts of another format or version are measured again. Raise it with every change to what a part holds. The code is
# not part of the key: a digest of all modules that make a part would throw away minutes for each mended docstring.
# Provenance says which commit measured a part instead, and `--fresh` measures all anew.
FORMAT = 3


@dataclass(frozen=True)
class Entry:
    """A method under a label of its own.

    Attributes:
        method: its name. settings: None for the tuned ones.
        shares: label of an entry whose training it takes, since its settings differ in what follows training alone.
        outputs: what is evaluated of the fitted method, see
            :class:`~rp_course.experiments.released_script.DetectionScript`.
        data: what to train on, instead of the condition's benchmark; the classes are the same.
        kind: class of the method, if it is not the library's own of that name.
    """

    method: str
    settings: Mapping[str, Any] | None = None
    shares: str | None = None
    outputs: Callable[[World, Method, int, Benchmark], MethodOutputs] = World.outputs
    data: Benchmark | None = None
    kind: type[Method] | None = None


@dataclass(frozen=True)
class Condition:
    """One cell of a grid.

    Attributes:
        levels: value of each factor. benchmark: what to train and to judge on.
        train: by seed, the images to learn from, instead of the benchmark's.
        entries: methods by label; the label is what the records call them.
        pairs: labels to compare; None for all pairs.
        checkpoint: of the backbone.
        seeds: of training, instead of the world's. ranked: labels whose ranks are recorded too, see
            :func:`rank_rows`.
    """

    levels: Mapping[str, Any]
    benchmark: Benchmark
    entries: Mapping[str, Entry] = field(default_factory=dict)
    pairs: Sequence[tuple[str, str]] | None = None
    checkpoint: str = "final"
    train: Mapping[int, ImageSet] | None = None
    seeds: tuple[int, ...] | None = None
    ranked: Sequence[str] | None = None


def methods(*names: str) -> dict[str, Entry]:
    """Entries of the tuned methods of these names."""
    return {name: Entry(name) for name in names}


def run_grid(world: World, conditions: Sequence[Condition], parts: Path) -> pd.DataFrame:
    """Measure every condition; finished ones are read from ``parts``.

    A part is a CSV file, and a JSON beside it that names the commit of the code that measured it.
    """
    frames = []
    earlier = set(parts.glob("*.csv"))
    for number, condition in enumerate(conditions, 1):
        path = parts / f"{_key(world, condition)}.csv"
        if not path.is_file():
            if world.progress:
                print(f"condition {number} of {len(conditions)}: {dict(condition.levels)}", flush=True)
            rows, draws = run_condition(world, condition)
            if condition.ranked is not None:
                save_tensors(_draws_path(path), {"resampled": torch.from_numpy(draws.resampled)}, {})
            about = json.dumps({"commit": commit(), "rp_lib": __version__, "levels": dict(condition.levels)})
            write_atomically(path.with_suffix(".json"), lambda p, a=about: p.write_text(a + "\n"))
            save_table(path, rows)
        world.parts.append({"reused": path in earlier, "commit": _measured_by(path)})
        frames.append(load_table(path).assign(**condition.levels))
    return pd.concat(frames, ignore_index=True)


def ranked_draws(world: World, condition: Condition, parts: Path) -> np.ndarray:
    """float64 (r, k, axes) of a condition that :func:`run_grid` measured: its ranked entries on every resample.

    Conditions of the same pictures and seeds are judged on the same resamples, so row r of one belongs to row r of the
    other. Axes as in :data:`rp_lib.comparison.AXES`.
    """
    return load_tensors(_draws_path(parts / f"{_key(world, condition)}.csv"))[0]["resampled"].numpy()


def _draws_path(part: Path) -> Path:
    return part.with_suffix(".draws.safetensors")


def _measured_by(path: Path) -> str | None:
    """The commit that measured a part; None for parts of before it was noted, and of an installed package."""
    try:
        return json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["commit"]
    except (OSError, ValueError, KeyError):
        return None


def _key(world: World, condition: Condition) -> str:
    clip = world.backbone(condition.checkpoint)
    entries = {
        label: [e.method, dict(world.tuned(e.method) if e.settings is None else e.settings), e.shares]
        + ([] if e.outputs is World.outputs else [repr(e.outputs)])
        + ([] if e.data is None else [e.data.fingerprint])
        + ([] if e.kind is None else [e.kind.__name__])
        for label, e in condition.entries.items()
    }
    trains = None if condition.train is None else {seed: s.fingerprint for seed, s in condition.train.items()}
    parts = [
        FORMAT,
        __version__,
        trains,
        clip.fingerprint,
        condition.benchmark.fingerprint,
        condition.seeds or world.seeds,
        world.precision,
        entries,
        condition.pairs,
    ]
    if condition.ranked is not None:  # not part of other keys
        parts += [condition.ranked, "with draws"]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:20]


def run_condition(world: World, condition: Condition) -> tuple[pd.DataFrame, PairedDraws | None]:
    """Fit every entry with every seed and judge them.

    Returns:
        The records without the levels, and the paired draws of the ranked entries, None if there are none.
    """
    clip = world.backbone(condition.checkpoint)
    outputs: dict[str, list[MethodOutputs]] = {label: [] for label in condition.entries}
    for seed in condition.seeds or world.seeds:
        fitted: dict[str, Method] = {}
        for label, entry in condition.entries.items():
            if entry.method == "zero-shot" and outputs[label]:
                continue  # nothing is drawn in it
            fitted[label] = _fit(world, condition, entry, seed, clip, fitted)
            outputs[label].append(entry.outputs(world, fitted[label], seed, condition.benchmark))
        world.forget(*fitted.values())
    if condition.benchmark is not world.judged:
        world.forget_images(clip)
    draws = paired_draws(outputs) if len(outputs) > 1 else None
    records = judge_outputs(outputs, condition.pairs, draws=draws)
    if condition.ranked is None:
        return records, None
    ranked = draws.select(condition.ranked)
    return pd.concat([records, rank_rows(outputs, ranked, "msp")], ignore_index=True), ranked


def rank_rows(outputs: Mapping[str, Sequence[MethodOutputs]], draws: PairedDraws, detector: str) -> pd.DataFrame:
    """Records of ranks: ``metric`` is ``rank``, or ``first``, the share of resamples in which no method is better.

    Their ``set`` is the axis.
    """
    ranks = draws.ranks()
    rank = ranks.rename(columns={"rank": "value"}).assign(metric="rank")
    first = ranks.assign(value=ranks["best"], low=float("nan"), high=float("nan"), metric="first")
    found = pd.concat([rank, first], ignore_index=True)
    return paired_rows(outputs, found, detector).assign(set=found["axis"], metric=found["metric"])


def _fit(
    world: World, condition: Condition, entry: Entry, seed: int, clip: FrozenCLIP, fitted: Mapping[str, Method]
) -> Method:
    if entry.shares is not None:
        base = fitted[entry.shares]
        settings = {**(world.tuned(entry.method) if entry.settings is None else entry.settings), "seed": seed}
        method = build_method(entry.method, clip, base.class_names, base.templates, settings)
        method.load_state_dict(base.state_dict())
        method.trained_on, method.preparation = base.trained_on, base.preparation
        return method
    data = condition.benchmark if entry.data is None else entry.data
    train = None if condition.train is None else condition.train[seed]
    if entry.kind is not None:
        settings = {**(world.tuned(entry.method) if entry.settings is None else entry.settings), "seed": seed}
        own = entry.kind(clip, data.class_names, data.templates, precision=world.precision, **settings)
        return own.fit(data.train if train is None else train, store=world.store(clip))
    return world.fit(entry.method, seed, data, clip, settings=entry.settings, train=train, fitted=fitted.values())


def judge_outputs(
    outputs: Mapping[str, Sequence[MethodOutputs]],
    pairs: Sequence[tuple[str, str]] | None = None,
    detectors: Sequence[str] = ("msp",),
    draws: PairedDraws | None = None,
) -> pd.DataFrame:
    """Records (:data:`rp_course.experiments.base.COLUMNS`) of methods by label, and of their paired differences.

    Args:
        outputs: by label, one per seed. pairs: to compare, None for all. detectors: the first one judges the pairs.
        draws: of :func:`paired_draws`, if they are there already.
    """

    def rows(labelled: tuple[str, MethodOutputs]) -> list[dict[str, Any]]:
        label, o = labelled
        found = accuracy_rows(o)
        for name in detectors:
            found += detection_rows(o, build_detector(name), ("auroc", "fpr"))
        return [{**row, "method": label} for row in found]

    everyone = [(label, o) for label, runs in outputs.items() for o in runs]
    frame = pd.DataFrame(itertools.chain.from_iterable(in_threads(rows, everyone)))
    frame["detector"] = frame["detector"].fillna("") if "detector" in frame else ""
    if "n_ood" not in frame:
        frame["n_ood"] = float("nan")
    summary = summarize(frame).assign(versus=None, p_holm=float("nan"))
    if len(outputs) > 1:
        draws = draws or paired_draws(outputs, detectors[0])
        pairs = list(itertools.combinations(outputs, 2)) if pairs is None else list(pairs)
        found = draws.differences(pairs).rename(columns={"first": "method", "second": "versus", "difference": "value"})
        summary = pd.concat([summary, paired_rows(outputs, found, detectors[0])], ignore_index=True)
    return summary[list(COLUMNS)]


def paired_draws(outputs: Mapping[str, Sequence[MethodOutputs]], detector: str = "msp") -> PairedDraws:
    """Resamples of pictures and seeds on which all of these methods, by label, are judged."""
    return paired_bootstrap(outputs, detector=detector, n_resamples=RESAMPLES)


def paired_rows(
    outputs: Mapping[str, Sequence[MethodOutputs]], found: pd.DataFrame, detector: str, data: str = ""
) -> pd.DataFrame:
    """Records from what was read off paired draws.

    Args:
        outputs: by label. found: ``method, axis, value, low, high``, and ``versus`` and ``p_holm`` of differences.
        detector: that judged. data: what stands for the image set.
    """
    found = pd.DataFrame({"versus": None, "p_holm": float("nan")}, found.index).assign(**found)
    one = next(iter(outputs.values()))[0]
    test, shifted = len(one.test), sum(len(s) for s in one.shifts.values())
    outside = sum(len(s) for s in one.ood.values())
    seeds = {label: len(runs) for label, runs in outputs.items()}
    accuracy = found["axis"].isin(["id accuracy", "shift accuracy"])
    return pd.DataFrame(
        {
            "method": found["method"], "versus": found["versus"], "set": data, "metric": found["axis"],
            "value": found["value"], "low": found["low"], "high": found["high"], "p_holm": found["p_holm"],
            "seeds": [max(seeds[a], seeds.get(b, 0)) for a, b in zip(found["method"], found["versus"], strict=True)],
            "n": [shifted if axis == "shift accuracy" else test for axis in found["axis"]],
            "n_ood": [None if plain else outside for plain in accuracy],
            "detector": ["" if plain else detector for plain in accuracy],
        }
    )[list(COLUMNS)]  # fmt: skip
