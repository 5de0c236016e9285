"""The whole story in one command: every core method, several seeds, one table, one figure."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from rp_lib.benchmark import Benchmark
from rp_lib.clip import FrozenCLIP
from rp_lib.errors import RPLibError
from rp_lib.evaluation import ALL_OOD, ALL_SHIFTS, Run, evaluate, summarise
from rp_lib.features import FeatureStore
from rp_lib.figures import STYLE, save_figure, three_axes
from rp_lib.methods import Method, build_method, load_method, made_of
from rp_lib.records import load_records, save_records
from rp_lib.search import read_trials, settings_of, winners
from rp_lib.storage import StorageError, check_writable, file_sha256

log = logging.getLogger(__name__)
SEARCH = Path(__file__).resolve().parent / "assets" / "mini" / "search.csv"
CORE = ("zero-shot", "linear-probe", "fine-tune", "rp", "rrp")


def tuned_settings(path: Path = SEARCH) -> dict[str, dict[str, Any]]:
    """Hyper-parameters that the recorded search chose, by method, as :func:`build_method` takes them."""
    if not path.is_file():
        raise StorageError(f"{path} is missing; install rp_lib again or run `rp-lib search`")
    found = winners(pd.DataFrame(read_trials(path)))
    return {name: settings_of(name, trial) for name, trial in found.items()} | {"zero-shot": {}}


@dataclass(frozen=True)
class Story:
    """What the demo found: tidy records, their summary, where they are, and whether they were reused."""

    records: pd.DataFrame
    summary: pd.DataFrame
    figure: Path
    reused: bool


def run_demo(
    clip: FrozenCLIP,
    benchmark: Benchmark,
    out: Path,
    *,
    seeds: int = 3,
    methods: tuple[str, ...] = CORE,
    settings: dict[str, dict[str, Any]] | None = None,
    precision: str = "auto",
    fresh: bool = False,
    progress: bool = True,
) -> Story:
    """Fit, evaluate, record and draw.

    Trained methods are kept in ``out/trained`` and reused when backbone, data and settings are the same; a run
    that was interrupted goes on where it stopped.

    Args:
        clip: backbone. benchmark: data. out: folder for records, figure and trained methods.
        seeds: how many seeds per trained method. methods: names, see ``METHODS``.
        settings: per method, default the recorded search's winners. precision: of training.
        fresh: train and evaluate anew whatever is there. progress: show bars.

    Raises:
        StorageError: ``out`` cannot be written. RPLibError: bad settings.
    """
    if seeds < 1:
        raise RPLibError("at least one seed is needed")
    settings = tuned_settings() if settings is None else settings
    check_writable(out)  # now, not after minutes of training
    store, runs, seconds = FeatureStore(), [], {}
    for name in methods:
        for seed in range(1, 2 if name == "zero-shot" else seeds + 1):
            started = time.monotonic()
            method = _fitted(name, seed, runs, clip, benchmark, settings, out, store, precision, fresh, progress)
            shared = any(r.method.history is method.history for r in runs)
            trained = bool(method.history.losses) and not shared
            seconds[f"{name} {seed}"] = round(time.monotonic() - started, 1) if trained else None
            runs.append(Run(method, seed))
    identity = hashlib.sha256(
        json.dumps([benchmark.fingerprint, [r.method.metadata() for r in runs]], sort_keys=True, default=str).encode()
    ).hexdigest()
    title = (
        f"{benchmark.name} benchmark, backbone {clip.name}: mean of {seeds} seeds, bars are 95 % intervals over "
        "images and seeds; dashed: zero-shot"
    )
    path, figure_path = out / "records.csv", out / "three_axes.png"
    if not fresh and path.is_file() and path.with_suffix(".json").is_file():
        records, about = load_records(path)
        if about.get("identity") == identity and about.get("records_sha256") == file_sha256(path):
            summary = summarise(records)
            save_figure(three_axes(summary, title), figure_path)
            return Story(records, summary, figure_path, True)
    started = time.monotonic()
    records = evaluate(runs, benchmark, store=store, progress=progress)
    provenance = {
        "identity": identity, "benchmark": benchmark.name, "benchmark_sha256": benchmark.fingerprint,
        "backbone": clip.name, "backbone_sha256": clip.fingerprint,
        "device": str(clip.device), "precision": precision, "seeds": seeds,
        "settings": {r.method.name: {k: v for k, v in r.method.settings().items() if k != "seed"} for r in runs},
        "seconds_to_fit": seconds, "seconds_to_evaluate": round(time.monotonic() - started, 1),
    }  # fmt: skip
    save_records(records, path, provenance)
    summary = summarise(records)
    save_figure(three_axes(summary, title), figure_path)
    return Story(records, summary, figure_path, False)


def _fitted(
    name: str, seed: int, runs: list[Run], clip: FrozenCLIP, benchmark: Benchmark, settings: dict[str, dict[str, Any]],
    out: Path, store: FeatureStore, precision: str, fresh: bool, progress: bool,
) -> Method:  # fmt: skip
    """A fitted method: of its base with the same seed if it has one, else from disk, else trained and saved."""
    options = dict(settings.get(name, {}))
    if name == "zero-shot":
        return build_method(name, clip, benchmark.class_names, benchmark.templates)
    options["seed"] = seed
    if name != "linear-probe":
        options["precision"] = precision
    method = build_method(name, clip, benchmark.class_names, benchmark.templates, options)
    shared = made_of(method, (r.method for r in runs), benchmark.train.fingerprint)  # settings name the seed
    if shared is not None:
        return shared
    method.trained_on = benchmark.train.fingerprint
    path = out / "trained" / f"{name}-seed{seed}.safetensors"
    checkpoint = path.with_suffix(".checkpoint")
    if fresh:
        checkpoint.unlink(missing_ok=True)
    elif path.is_file():
        try:
            kept = load_method(path, clip)
        except RPLibError as error:  # of another backbone or version, or damaged: train it again
            log.warning("%s; training again", error)
        else:
            if kept.metadata() == method.metadata():
                return kept
    method.fit(
        benchmark.train,
        benchmark.val,
        store=store,
        checkpoint=checkpoint,
        progress=f"{name}, seed {seed}" if progress else None,
    )
    method.save(path)
    return method


COLUMNS = (
    ("ID acc", "test", "accuracy"),
    ("shift acc", ALL_SHIFTS, "accuracy"),
    ("AUROC", ALL_OOD, "auroc"),
    ("FPR95", ALL_OOD, "fpr"),
    ("ECE", "test", "ece"),
)


def _cells(summary: pd.DataFrame) -> dict[str, list[str]]:
    """Per method, the columns as text: percent, with the half-width of the 95 % interval where there is one."""
    methods = [m for m in STYLE if m in set(summary["method"])] + sorted(set(summary["method"]) - set(STYLE))
    indexed = summary.set_index(["method", "set", "metric"])
    rows = {}
    for method in methods:
        cells = []
        for _, data, metric in COLUMNS:
            if (method, data, metric) not in indexed.index:
                cells.append("-")
                continue
            row = indexed.loc[(method, data, metric)]
            half = 100 * (row["high"] - row["low"]) / 2
            cells.append(f"{100 * row['value']:.1f}" + (f" ± {half:.1f}" if half == half else ""))
        rows[method] = cells
    return rows


def table(summary: pd.DataFrame) -> str:
    """The summary as text for a terminal: methods x axes."""
    lines = ["".join(["method".ljust(14), *(head.rjust(13) for head, _, _ in COLUMNS)])]
    lines += ["".join([method.ljust(14), *(c.rjust(13) for c in cells)]) for method, cells in _cells(summary).items()]
    return "\n".join(lines)


def markdown(summary: pd.DataFrame) -> str:
    """The same table for the README."""
    lines = ["| method | " + " | ".join(head for head, _, _ in COLUMNS) + " |", "|---|" + "---|" * len(COLUMNS)]
    lines += [f"| {STYLE[m][2] if m in STYLE else m} | " + " | ".join(c) + " |" for m, c in _cells(summary).items()]
    return "\n".join(lines)


def details(summary: pd.DataFrame) -> str:
    """Accuracy of every labelled set and AUROC of every OOD set, percent, means over seeds."""
    wanted = summary[summary["metric"].isin(["accuracy", "auroc"])]
    order = list(dict.fromkeys(wanted["set"]))
    pivot = (100 * wanted.pivot(index="set", columns="method", values="value")).loc[order]
    methods = [m for m in STYLE if m in pivot.columns]
    kind = wanted.drop_duplicates("set").set_index("set").loc[order, "metric"]
    return pivot[methods].assign(metric=kind).to_string(float_format=lambda v: f"{v:.1f}")
