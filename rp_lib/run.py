"""Fit, evaluate, record and draw: the one path of ``rp-lib demo``, ``rp-lib run`` and every benchmark.

Every fitted method is kept as soon as it is fitted, so that a run that was interrupted goes on where it stopped;
a method is judged when it is fitted, and dropped when nothing that follows is made of it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from rp_lib import distributed
from rp_lib.benchmark import OOD_ROLES, Benchmark
from rp_lib.checkpoints import Checkpoint
from rp_lib.clip import FrozenCLIP
from rp_lib.detectors import build_detector
from rp_lib.errors import RPLibError, UnknownName
from rp_lib.evaluation import evaluate_outputs, summarise
from rp_lib.features import FeatureStore
from rp_lib.figures import save_figure, three_axes
from rp_lib.inference import compute_outputs
from rp_lib.judging import COLUMNS, RECORDED
from rp_lib.methods import BASES, METHODS, Method, build_method, load_method, made_of
from rp_lib.outputs import MethodOutputs, load_outputs, save_outputs
from rp_lib.records import load_records, save_records
from rp_lib.storage import StorageError, check_writable, file_sha256

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Story:
    """What a run found: tidy records, their summary, where they are, and whether they were reused."""

    records: pd.DataFrame
    summary: pd.DataFrame
    figure: Path
    reused: bool


@dataclass(frozen=True)
class _Fitting:
    """What fitting one method needs beside its name and seed."""

    clip: FrozenCLIP
    benchmark: Benchmark
    settings: Mapping[str, Mapping[str, Any]]
    out: Path
    store: FeatureStore
    precision: str
    fresh: bool
    progress: bool


def run_benchmark(
    clip: FrozenCLIP,
    benchmark: Benchmark,
    out: Path,
    *,
    seeds: Sequence[int],
    methods: Sequence[str],
    settings: Mapping[str, Mapping[str, Any]],
    precision: str = "auto",
    detectors: Sequence[str] = ("msp",),
    keep_outputs: bool = False,
    fresh: bool = False,
    progress: bool = True,
    about: Mapping[str, Any] | None = None,
) -> Story:
    """Fit every method with every seed on a benchmark and judge it on the three axes.

    ``out`` then holds ``records.csv`` with its provenance beside it, ``three_axes.png``, and in ``trained`` the
    trained part of every method; they are reused when backbone, data and settings are the same.

    Args:
        clip: backbone. benchmark: data. out: folder, made if needed.
        seeds: of every trained method; zero-shot has none and runs once. methods: names, see ``METHODS``.
        settings: keyword arguments by method, as :func:`rp_lib.build_method` takes them. precision: of training.
        detectors: names of OOD detectors that read outputs of the test and OOD images alone.
        keep_outputs: also write features and logits to ``outputs``, see :func:`rp_lib.load_outputs`, and reuse them.
        fresh: train and evaluate anew whatever is there. progress: show bars.
        about: more for the provenance.

    Raises:
        StorageError: ``out`` cannot be written. UnknownName: no such method or detector. RPLibError: bad settings.
    """
    if not seeds:
        raise RPLibError("at least one seed is needed")
    if not methods:
        raise RPLibError(f"no method is named; known: {', '.join(METHODS)}")
    for name in methods:
        if name not in METHODS:
            raise UnknownName("method", name, METHODS)
    for name in detectors:
        if needs := build_detector(name).needs:
            raise RPLibError(f"the detector {name!r} also needs {', '.join(sorted(needs))}: use rp_lib.evaluate for it")
    distributed.on_main(lambda: check_writable(out))  # now, not after hours of training
    fitting = _Fitting(clip, benchmark, settings, out, FeatureStore(), precision, fresh, progress)
    order = sorted(dict.fromkeys(methods), key=lambda name: name in BASES)  # what others are made of comes first
    wanted = [(name, seed) for name in order for seed in (seeds[:1] if name == "zero-shot" else seeds)]
    identity = _identity(fitting, wanted, detectors)
    path, figure = out / "records.csv", out / "three_axes.png"
    records, reused = None if fresh else _recorded(path, identity), True
    incomplete = keep_outputs and not all(_outputs_path(out, *w).is_file() for w in wanted)
    if distributed.any_process(records is None or incomplete):  # whatever one finds, all do the same
        started, reused = time.monotonic(), False
        records, found = _measured(fitting, wanted, detectors, keep_outputs)
        provenance = {
            **(about or {}), "identity": identity, "benchmark": benchmark.name,
            "benchmark_sha256": benchmark.fingerprint, "backbone": clip.name, "backbone_sha256": clip.fingerprint,
            "device": str(clip.device), "precision": precision, "seeds": len(seeds), "seed_numbers": list(seeds),
            **found, "seconds": round(time.monotonic() - started, 1),
        }  # fmt: skip
        save_records(records, path, provenance)
    summary = summarise(records)
    title = (
        f"{benchmark.name} benchmark, backbone {clip.name}: mean of {len(seeds)} seeds, bars are 95 % intervals over "
        "images and seeds; dashed: zero-shot"
    )
    save_figure(three_axes(of_detector(summary, detectors[0]), title), figure)
    return Story(records, summary, figure, reused)


def of_detector(summary: pd.DataFrame, name: str) -> pd.DataFrame:
    """The rows of a summary that a table or figure of one detector shows: accuracy, calibration, and its own."""
    return summary[summary["detector"].isna() | (summary["detector"] == name)]


def _identity(fitting: _Fitting, wanted: Sequence[tuple[str, int]], detectors: Sequence[str]) -> str:
    """SHA-256 (hex) over all that the records depend on."""
    described = [_built(fitting, name, seed).metadata() for name, seed in wanted]
    parts = [fitting.benchmark.fingerprint, described, list(detectors)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _recorded(path: Path, identity: str) -> pd.DataFrame | None:
    """The records that are there, if they are whole and of this very run."""
    if not (path.is_file() and path.with_suffix(".json").is_file()):
        return None
    try:
        records, about = load_records(path)
    except StorageError as error:
        log.warning("%s; evaluating again", error)
        return None
    same = about.get("identity") == identity and about.get("records_sha256") == file_sha256(path)
    return records if same else None


def _measured(
    fitting: _Fitting, wanted: Sequence[tuple[str, int]], detectors: Sequence[str], keep_outputs: bool
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Records of every method and seed; and settings and times, for the provenance."""
    rows: list[dict[str, Any]] = []
    fitted: list[Method] = []
    settings, seconds, judging = {}, {}, 0.0
    for position, (name, seed) in enumerate(wanted):
        started = time.monotonic()
        method = _fitted(fitting, name, seed, fitted)
        shared = any(other.history is method.history for other in fitted)
        trained = bool(method.history.losses) and not shared
        seconds[f"{name} {seed}"] = round(time.monotonic() - started, 1) if trained else None
        settings[name] = {k: v for k, v in method.settings().items() if k != "seed"}
        started = time.monotonic()
        outputs = _outputs(fitting, method, seed, keep_outputs)
        rows += evaluate_outputs([outputs], detectors=detectors, metrics=RECORDED).to_dict("records")
        judging += time.monotonic() - started
        # A fine-tuned tower and its features of every image are large: only what something is made of stays.
        needed = {BASES.get(later) for later, _ in wanted[position + 1 :]}
        fitted.append(method)
        fitted = _released(fitting, fitted, needed)
        del method, outputs
    times = {"seconds_to_fit": seconds, "seconds_to_evaluate": round(judging, 1)}
    return pd.DataFrame(rows, columns=list(COLUMNS)), {"settings": settings, **times}


def _released(fitting: _Fitting, fitted: Sequence[Method], needed: set[str | None]) -> list[Method]:
    """The methods of needed names; the features of the others' own encoders are forgotten."""
    left = [method for method in fitted if method.name in needed]
    shared = {id(encoder) for method in left for encoder in method.encoders} | {id(fitting.clip)}
    for method in fitted:
        for encoder in method.encoders:
            if id(encoder) not in shared:
                fitting.store.forget(encoder)
    return left


def _built(fitting: _Fitting, name: str, seed: int) -> Method:
    """A method that is about to be fitted on the benchmark's training images."""
    options = dict(fitting.settings.get(name, {}))
    if name != "zero-shot":
        options["seed"] = seed
    if name not in ("zero-shot", "linear-probe"):
        options["precision"] = fitting.precision
    benchmark = fitting.benchmark
    method = build_method(name, fitting.clip, benchmark.class_names, benchmark.templates, options)
    if name != "zero-shot":
        method.trained_on = benchmark.train.fingerprint
    return method


def _fitted(fitting: _Fitting, name: str, seed: int, fitted: Sequence[Method]) -> Method:
    """A fitted method: of its base with the same seed if it has one, else from disk, else trained and saved."""
    method, train_set = _built(fitting, name, seed), fitting.benchmark.train
    if name == "zero-shot":
        return method
    shared = made_of(method, fitted, train_set.fingerprint)  # settings name the seed
    if shared is not None:
        return shared
    path = fitting.out / "trained" / f"{name}-seed{seed}.safetensors"
    checkpoint = Checkpoint(path.with_suffix(".checkpoint"), keep=True)

    def forget() -> None:
        distributed.on_main(lambda: checkpoint.path.unlink(missing_ok=True))

    if fitting.fresh:
        forget()
    else:
        kept = _kept(path, method)
        if not distributed.any_process(kept is None):
            forget()  # of a run that died when it had saved the method
            return kept
    label = f"{name}, seed {seed}" if fitting.progress else None
    method.fit(train_set, fitting.benchmark.val, store=fitting.store, checkpoint=checkpoint, progress=label)
    method.save(path)
    forget()  # only now: a disk that is full until here costs no training
    return method


def _kept(path: Path, method: Method) -> Method | None:
    """What an earlier run saved, if it is the same method."""
    if not path.is_file():
        return None
    try:
        kept = load_method(path, method.clip)
    except RPLibError as error:  # of another backbone or version, or damaged: train it again
        log.warning("%s; training again", error)
        return None
    return kept if kept.metadata() == method.metadata() else None


def _outputs_path(out: Path, name: str, seed: int) -> Path:
    return out / "outputs" / f"{name}-seed{seed}.safetensors"


def _outputs(fitting: _Fitting, method: Method, seed: int, keep: bool) -> MethodOutputs:
    """What the method says about all images that methods are judged on; from disk if it is the same there."""
    path = _outputs_path(fitting.out, method.name, seed)
    there = _computed(path, fitting.benchmark, method) if keep and not fitting.fresh else None
    if not distributed.any_process(there is None):
        return there
    roles = ("test", "shift", *OOD_ROLES)
    outputs = compute_outputs(
        method, fitting.benchmark, seed=seed, store=fitting.store, roles=roles, progress=fitting.progress
    )
    if keep:
        save_outputs(path, outputs)
    return outputs


def _computed(path: Path, benchmark: Benchmark, method: Method) -> MethodOutputs | None:
    """Outputs that an earlier run saved, if they are of the same method and data."""
    if not path.is_file():
        return None
    try:
        there = load_outputs(path, benchmark)
    except RPLibError as error:
        log.warning("%s; computing again", error)
        return None
    expected = json.loads(json.dumps({k: v for k, v in method.metadata().items() if k != "format"}))
    return there if all(there.about.get(key) == value for key, value in expected.items()) else None
