"""Records with their provenance, so that a number can be traced to the run that made it; and tables of them."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from rp_lib._version import __version__
from rp_lib.benchmark import Benchmark
from rp_lib.evaluation import ALL_OOD, ALL_SHIFTS, accuracy_by_class, answers
from rp_lib.figures import STYLE
from rp_lib.outputs import MethodOutputs
from rp_lib.stats import as_percent
from rp_lib.utils.distributed import on_main
from rp_lib.utils.io import StorageError, file_sha256, load_table, save_table, write_atomically

PACKAGES = ("torch", "torchvision", "open_clip_torch", "numpy", "pandas", "scikit-learn", "pytorch-ood", "safetensors")


def environment() -> dict[str, Any]:
    """Versions, hardware and the commit, as far as they are known."""
    found = {package: importlib.metadata.distributions(name=package) for package in PACKAGES}
    return {
        "rp_lib": __version__,
        "commit": commit(),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "packages": {package: next((d.version for d in ds), None) for package, ds in found.items()},
    }


def commit() -> str | None:
    """The git commit of the source tree, with ``+changes`` if it was edited; None for an installed package."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=root, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--", "rp_lib") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def save_records(records: pd.DataFrame, path: Path, provenance: dict[str, Any]) -> None:
    """Write ``path`` (CSV) and, beside it, ``path.json`` with environment, command, time and ``provenance``."""
    on_main(lambda: _save_records(records, path, provenance))


def _save_records(records: pd.DataFrame, path: Path, provenance: dict[str, Any]) -> None:
    save_table(path, records)
    about = {
        **provenance,
        "records_sha256": file_sha256(path),
        "environment": environment(),
        "command": " ".join(Path(a).name if i == 0 else a for i, a in enumerate(sys.argv)),
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "rows": len(records),
    }
    write_atomically(path.with_suffix(".json"), lambda p: p.write_text(json.dumps(about, indent=1, default=str) + "\n"))


def load_records(path: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Read records and their provenance.

    Raises:
        StorageError: one of the two files is missing or damaged.
    """
    try:
        about = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        if not isinstance(about, dict):
            raise ValueError("the provenance is no table")
        return load_table(path), about
    except (OSError, ValueError, StorageError) as error:
        raise StorageError(
            f"{path} or the JSON beside it is missing or damaged ({error}); run the command again"
        ) from error


def save_answers(folder: Path, outputs: MethodOutputs, benchmark: Benchmark) -> None:
    """Write what a fitted method answers to the pictures, as four tables.

    ``answers.csv`` has every picture of the test set and of the shifts (see :func:`rp_lib.answers`), ``mistakes.csv``
    the misclassified ones among them, the surest first; of the test set alone, ``classes.csv`` has the accuracy by
    class, the worst first, and ``confusion.csv`` the number of pictures by label (rows) and answer (columns).
    """
    every = answers(outputs, benchmark)
    test, names = every[every["set"] == benchmark.test.name], list(benchmark.class_names)
    counts = pd.crosstab(test["label"], test["answer"]).reindex(index=names, columns=names, fill_value=0)
    tables = {
        "answers": every,
        "mistakes": every[~every["correct"]].sort_values("probability", ascending=False, kind="stable"),
        "classes": accuracy_by_class(test),
        "confusion": counts.reset_index(names="label", allow_duplicates=True),
    }
    for name, made in tables.items():
        save_table(folder / f"{name}.csv", made)


# Tables of a summary.

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
    rows = [["method", *(head for head, _, _ in COLUMNS)], *([name, *cells] for name, cells in _cells(summary).items())]
    first, *others = [max(len(cell) for cell in column) + 2 for column in zip(*rows, strict=True)]
    widths = [max(13, width) for width in others]
    return "\n".join(
        "".join([name.ljust(max(14, first)), *(c.rjust(w) for c, w in zip(cells, widths, strict=True))])
        for name, *cells in rows
    )


def details(summary: pd.DataFrame) -> str:
    """Accuracy of every labelled set and AUROC of every OOD set, percent, means over seeds."""
    wanted = summary[summary["metric"].isin(["accuracy", "auroc"])]
    order = list(dict.fromkeys(wanted["set"]))
    pivot = (100 * wanted.pivot(index="set", columns="method", values="value")).loc[order]
    methods = [m for m in STYLE if m in pivot.columns]
    kind = wanted.drop_duplicates("set").set_index("set").loc[order, "metric"]
    return pivot[methods].assign(metric=kind).to_string(float_format=lambda v: f"{v:.1f}")
