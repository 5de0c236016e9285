"""The whole story in one command: every core method, several seeds, one table, one figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from rp_lib.benchmark import Benchmark
from rp_lib.clip import FrozenCLIP
from rp_lib.evaluation import ALL_OOD, ALL_SHIFTS
from rp_lib.figures import STYLE
from rp_lib.run import CORE
from rp_lib.run.search import tuned_settings
from rp_lib.run.session import Story, run_benchmark
from rp_lib.stats import as_percent


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
    """Fit, evaluate, record and draw; see :func:`rp_lib.run.session.run_benchmark`.

    Args:
        clip: backbone. benchmark: data. out: folder for records, figure and trained methods.
        seeds: how many seeds per trained method. methods: names, see ``METHODS``.
        settings: per method, default the recorded search's winners. precision: of training.
        fresh: train and evaluate anew whatever is there. progress: show bars.

    Raises:
        StorageError: ``out`` cannot be written. RPLibError: bad settings.
    """
    return run_benchmark(
        clip, benchmark, out, seeds=range(1, seeds + 1), methods=methods,
        settings=tuned_settings() if settings is None else settings,
        precision=precision, fresh=fresh, progress=progress,
    )  # fmt: skip


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
            cells.append(as_percent(*indexed.loc[(method, data, metric), ["value", "low", "high"]]))
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
