"""Save records with their provenance, so that a number can be traced to the run that made it."""

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
from rp_lib.utils.distributed import on_main
from rp_lib.utils.io import StorageError, file_sha256, load_table, save_table, write_atomically

PACKAGES = ("torch", "torchvision", "open_clip_torch", "numpy", "pandas", "scikit-learn", "pytorch-ood", "safetensors")


def environment() -> dict[str, Any]:
    """Versions, hardware and the commit, as far as they are known."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "rp_lib": __version__,
        "commit": commit(),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "packages": versions,
    }


def commit() -> str | None:
    """The git commit of the source tree, with ``+changes`` if it was edited; None for an installed package."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        head = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True, timeout=10
        )
        dirty = subprocess.run(
            ["git", "status", "--porcelain", "--", "rp_lib"],
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return head.stdout.strip() + ("+changes" if dirty.stdout.strip() else "")


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
        return load_table(path), json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError, StorageError) as error:
        raise StorageError(
            f"{path} or the JSON beside it is missing or damaged ({error}); run the command again"
        ) from error
