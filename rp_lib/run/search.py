"""Choose hyper-parameters on ID validation data only, with the same number of trials for every method.

Each trial draws one value of every hyper-parameter from the method's grid (seeded), trains with one seed and
is judged by its accuracy on ID validation images. Shifted and OOD data are never touched. All trials
are recorded; :func:`tuned_settings` reads the winners.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rp_lib.benchmark import Benchmark
from rp_lib.clip import FrozenCLIP
from rp_lib.config import PAPER
from rp_lib.evaluation import choose_alpha
from rp_lib.features import FeatureStore
from rp_lib.methods import BASES, METHODS, Reprogrammer, ResidualReprogrammer, build_method
from rp_lib.utils.errors import RPLibError, UnknownName
from rp_lib.utils.io import StorageError, load_table, save_table

SEARCH = Path(__file__).resolve().parents[1] / "assets" / "mini" / "search.csv"  # the recorded search
# Grids: wide enough that the winner should not sit at an edge. Those of RP are switches of its configuration.
_TOWER = {"lr": (1e-5, 3e-5, 1e-4, 2e-4, 5e-4, 1e-3), "epochs": (4, 6, 8), "batch_size": (64, 128)}
_DECAY = {"weight_decay": (0.0, 0.1)}
_SCHEDULE = {"schedule": ("steps", "cosine")}
_IMAGE_LR = {"image_lr": (3e-3, 1e-2, 3e-2, 1e-1)}
_TEXT_LR = {"text_lr": (1e-4, 3e-4, 1e-3, 3e-3)}
_BORDER = {
    "epochs": (6, 9, 12), "batch_size": (64, 128), "padding": (1 / 64, 2 / 64, 4 / 64, 6 / 64),
    "border_init": ("normal", "zeros", "grey", "white"), "image_decay": (0.0, 0.1),
}  # fmt: skip
SPACES: dict[str, dict[str, tuple[Any, ...]]] = {  # the order of the keys is that of the draw
    "linear-probe": {
        "lr": (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1), "epochs": (25, 50, 100), "batch_size": (64, 128),
        "weight_decay": (0.0, 1e-5, 1e-4, 1e-3),
    },
    "zs-lp": {
        "lr": (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1), "epochs": (25, 50, 100), "batch_size": (64, 128),
        "weight_decay": (0.0, 1e-5, 1e-4, 1e-3),
    },
    "task-res": {
        "lr": (2e-5, 2e-4, 2e-3, 1e-2, 1e-1), "epochs": (50, 100, 200), "batch_size": (64, 256),
        "weight_decay": (0.0, 5e-4, 5e-3), "residual_scale": (0.25, 0.5, 1.0, 2.0),
    },
    "clap": {
        "lr": (1e-3, 1e-2, 1e-1), "epochs": (100, 300), "batch_size": (64, 256),
        "penalty": (3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0),
    },
    "tip-adapter": {"cache_weight": (0.3, 1.0, 3.0, 10.0, 30.0), "sharpness": (1.0, 3.0, 5.5, 10.0, 20.0, 40.0)},
    "tip-adapter-f": {
        "lr": (1e-4, 1e-3, 1e-2, 3e-2), "epochs": (20, 50), "cache_weight": (0.3, 1.0, 3.0, 10.0),
        "sharpness": (1.0, 3.0, 5.5, 10.0, 20.0),
    },
    "fine-tune": {**_TOWER, **_DECAY, **_SCHEDULE},
    "l2-sp": {
        **_TOWER, **_SCHEDULE, "tower_penalty": (1e-2, 1e-1, 1.0, 10.0), "head_penalty": (1e-2, 1e-1, 1.0),
    },
    "lp-ft": {
        **_TOWER, **_DECAY, **_SCHEDULE, "probe_lr": (1e-2, 3e-2, 1e-1, 3e-1), "probe_epochs": (25, 50, 100),
    },
    "flyp": {**_TOWER, **_DECAY, **_SCHEDULE},
    "coop": {
        "lr": (2e-3, 1e-2, 5e-2, 2e-1), "epochs": (25, 50, 100), "batch_size": (32, 64, 128), "n_context": (2, 4, 8),
        "start": ("random", "words"),
    },
    "maple": {
        "lr": (1e-3, 3.5e-3, 1e-2, 3e-2), "epochs": (4, 6, 8), "batch_size": (16, 32, 64), "n_prompts": (1, 2, 4),
        "start": ("random", "words"),
    },
    "rp-image": {**_IMAGE_LR, **_BORDER},
    "rp-text": {**_TEXT_LR, "epochs": (6, 9, 12, 25), "batch_size": (32, 64, 128)},
    "rp": {**_IMAGE_LR, **_TEXT_LR, **_BORDER},
}  # fmt: skip
OLD_COLUMNS = {"alpha": "alpha_rrp"}  # as tables called it when RRP was the only method with an alpha


def draw_trials(name: str, n: int, seed: int) -> list[dict[str, Any]]:
    """The first ``n`` distinct settings of a seeded draw from a method's grid."""
    if name not in SPACES:
        raise UnknownName("method to search for", name, SPACES)
    space = SPACES[name]
    if n < 1 or n > np.prod([len(v) for v in space.values()]):
        raise RPLibError(f"the number of trials for {name} must be between 1 and the size of its grid")
    rng = np.random.default_rng(seed)
    trials: list[dict[str, Any]] = []
    while len(trials) < n:
        trial = {key: values[int(rng.integers(len(values)))] for key, values in space.items()}
        if trial not in trials:
            trials.append(trial)
    return trials


def settings_of(name: str, trial: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments for :func:`rp_lib.methods.build_method` from a trial."""
    if issubclass(METHODS[name], (Reprogrammer, ResidualReprogrammer)):
        alpha = trial.get("alpha", PAPER.alpha)
        return {"config": PAPER.changed(**{k: v for k, v in trial.items() if k != "alpha"}, alpha=alpha)}
    return dict(trial)


def search(
    clip: FrozenCLIP,
    benchmark: Benchmark,
    out: Path,
    *,
    trials: int = 12,
    seed: int = 0,
    methods: tuple[str, ...] = tuple(SPACES),
    precision: str = "auto",
    progress: bool = True,
) -> pd.DataFrame:
    """Run (or go on with) the search; every finished trial is appended to ``out`` (CSV) at once.

    Returns:
        One row per trial: ``method, trial, val_accuracy, n_val, seconds``, the hyper-parameters, and an
        ``alpha_NAME`` for each method NAME that mixes this one with zero-shot, by :func:`choose_alpha`.
    """
    # A trial counts as done only if it is the same trial: same draw, backbone and data.
    key = {"search_seed": seed, "backbone": clip.fingerprint[:16], "data": benchmark.fingerprint[:16]}
    drawn = {name: draw_trials(name, trials, seed) for name in methods}
    rows = [row for row in read_trials(out) if _kept(row, key, drawn)] if out.is_file() else []
    done = {(row["method"], int(row["trial"])) for row in rows if row["method"] in drawn}
    store = FeatureStore()
    for name in methods:
        for number, trial in enumerate(drawn[name]):
            if (name, number) in done:
                continue
            started = time.monotonic()
            settings = settings_of(name, trial) | ({} if name == "linear-probe" else {"precision": precision})
            method = build_method(name, clip, benchmark.class_names, benchmark.templates, settings)
            label = f"{name} trial {number + 1}/{trials}" if progress else None
            method.fit(benchmark.train, None, store=store, progress=label)
            row = {
                "method": name, "trial": number, "val_accuracy": method.accuracy(benchmark.val, store),
                "n_val": len(benchmark.val), "seconds": round(time.monotonic() - started, 1), **trial,
            }  # fmt: skip
            for mixed in _mixtures(name):
                row[f"alpha_{mixed}"] = choose_alpha(method, benchmark, store, mixed)[0]
            rows.append({**row, **key})
            table = pd.DataFrame(rows)
            save_table(out, table, digits=None)
            for encoder in method.encoders:
                if encoder is not clip:
                    store.drop(encoder)
    return pd.DataFrame(rows)


def read_trials(path: Path) -> list[dict[str, Any]]:
    """Rows of a recorded search.

    Raises:
        StorageError: the table is empty, truncated or altered beyond reading.
    """
    try:
        table = load_table(path).astype({"trial": int, "val_accuracy": float}).rename(columns=OLD_COLUMNS)
    except (ValueError, KeyError, StorageError) as error:
        raise StorageError(f"{path} is no table of trials ({error}); remove it, or install rp_lib again") from error
    return table.to_dict("records")


def _kept(row: dict[str, Any], key: dict[str, Any], drawn: dict[str, list[dict[str, Any]]]) -> bool:
    """Whether a recorded trial still counts: of the same search, and if its method is searched now, of its draw.

    Trials of methods that are not searched now stay, and so do those beyond the number asked for now.
    """
    if any(str(row.get(name)) != str(value) for name, value in key.items()):
        return False
    trials = drawn.get(row["method"], [])
    if row["trial"] >= len(trials):
        return True
    if any(pd.isna(row.get(f"alpha_{mixed}")) for mixed in _mixtures(row["method"])):
        return False  # recorded before that mixture was there
    return all(_plain(row.get(name)) == value for name, value in trials[row["trial"]].items())


def winners(table: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """The best trial's hyper-parameters per method (the first of equals).

    A method that mixes another with zero-shot shares that one's and adds its own alpha, if the table has it.
    """
    chosen: dict[str, dict[str, Any]] = {}
    for name, group in table.rename(columns=OLD_COLUMNS).groupby("method", sort=False):
        ordered = group.sort_values("trial")
        row = ordered.loc[ordered["val_accuracy"].idxmax()]
        chosen[str(name)] = {key: _plain(row[key]) for key in SPACES[str(name)]}
        for mixed in _mixtures(str(name)):
            if pd.notna(alpha := row.get(f"alpha_{mixed}")):
                chosen[mixed] = {**chosen[str(name)], "alpha": float(alpha)}
    return chosen


def tuned_settings(path: Path = SEARCH) -> dict[str, dict[str, Any]]:
    """Read the hyper-parameters that a recorded search chose, by method, as :func:`build_method` takes them.

    Raises:
        StorageError: The table is missing or damaged.
    """
    if not path.is_file():
        raise StorageError(f"{path} is missing; install rp_lib again or run `rp-lib search`")
    found = winners(pd.DataFrame(read_trials(path)))
    return {name: settings_of(name, trial) for name, trial in found.items()} | {"zero-shot": {}}


def _mixtures(name: str) -> list[str]:
    """The methods that mix this one with zero-shot."""
    return [mixed for mixed, base in BASES.items() if base == name]


def _plain(value: Any) -> Any:
    """Numbers as CSV gives them back: whole floats of a column with gaps become ints again."""
    if isinstance(value, str):
        return value
    value = float(value)
    return int(value) if value.is_integer() and value >= 1 else value
