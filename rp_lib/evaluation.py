"""Judge fitted methods on three axes at once: ID accuracy, accuracy under covariate shift, OOD detection.

Every encoder sees every image once; all metrics, detectors, alphas and intervals come from the outputs, fresh or
saved. The result is tidy: one row per method, seed, image set, metric and detector, with its interval and sample size.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from rp_lib.benchmark import OOD_ROLES, Benchmark
from rp_lib.detectors import Detector, build_detector
from rp_lib.detectors.ensemble import MEMBERS
from rp_lib.features import FeatureStore
from rp_lib.inference import compute_outputs
from rp_lib.judging import ALL_OOD, ALL_SHIFTS, COLUMNS, RECORDED, accuracy_rows, detection_rows
from rp_lib.methods import Method
from rp_lib.negative_words import NegativeWords, mine_negative_words
from rp_lib.outputs import MethodOutputs, check_comparable

__all__ = ["ALL_OOD", "ALL_SHIFTS", "COLUMNS", "RECORDED", "Run", "evaluate", "evaluate_outputs", "summarise"]


@dataclass(frozen=True)
class Run:
    """A fitted method and the seed it was fitted with."""

    method: Method
    seed: int


def evaluate(
    runs: Iterable[Run],
    benchmark: Benchmark,
    *,
    store: FeatureStore | None = None,
    detectors: Sequence[str] = ("msp",),
    tpr: float = 0.95,
    convention: str | None = None,
    n_resamples: int = 200,
    progress: bool = False,
) -> pd.DataFrame:
    """Evaluate fitted methods on a benchmark.

    Args:
        runs: fitted methods with their seeds. benchmark: what to judge them on.
        store: features that are there already; what is computed here is added.
        detectors: names, see :data:`rp_lib.detectors.DETECTORS`. Those that learn encode the training images too;
            ``cooked`` needs zero-shot and a linear probe among the runs.
        tpr: the true positive rate at which FPR is read. convention: of the OOD metrics, see
            :data:`rp_lib.metrics.CONVENTIONS`; None takes what a method's configuration says.
        n_resamples: bootstrap resamples of the detection and calibration intervals. Intervals are over pictures;
            pictures of one designer are alike, so for other designers expect more spread.
        progress: show bars.

    Returns:
        One row per method, seed, set, metric and detector with the columns :data:`COLUMNS`; values are fractions.
        ``mean of shifts`` and ``mean of OOD sets`` weigh every set the same. A detector that is not defined for a
        method (say one by class similarity, for a linear probe) has no rows.
    """
    runs, store = list(runs), store or FeatureStore()
    judges = [build_detector(name) for name in detectors]
    needs = frozenset().union(*(judge.needs for judge in judges))
    roles = ("test", "shift", *OOD_ROLES, *(("train", "val") if "train" in needs else ()))
    words: dict[tuple[object, ...], NegativeWords] = {}
    rows: list[dict[str, object]] = []
    for run in runs:
        negatives, task = None, (run.method.class_names, run.method.templates)
        if "negatives" in needs:
            key = (run.method.clip.fingerprint, *task)
            negatives = words[key] = words.get(key) or mine_negative_words(run.method.clip, *task)
        others = _members(run, runs) if "others" in needs else None
        outputs = compute_outputs(
            run.method, benchmark, seed=run.seed, store=store, roles=roles, others=others, negatives=negatives,
            progress=progress,
        )  # fmt: skip
        rows += _judge(outputs, judges, RECORDED, tpr, convention, n_resamples)
    return pd.DataFrame(rows, columns=list(COLUMNS))


def evaluate_outputs(
    outputs: Sequence[MethodOutputs],
    *,
    detectors: Sequence[str] = ("msp",),
    metrics: Sequence[str] = ("auroc", "fpr"),
    tpr: float = 0.95,
    convention: str | None = None,
    n_resamples: int = 200,
) -> pd.DataFrame:
    """The records of :func:`evaluate` from outputs that are there already; no model is needed.

    Args:
        outputs: as :func:`rp_lib.outputs.load_outputs` reads them, of one benchmark.
        metrics: of OOD detection; with the default two, intervals take milliseconds per method and detector.
        detectors, tpr, convention, n_resamples: as in :func:`evaluate`.

    Raises:
        RPLibError: outputs of different benchmarks, or outputs that lack what a detector needs.
    """
    check_comparable(outputs)
    judges = [build_detector(name) for name in detectors]
    rows = [row for o in outputs for row in _judge(o, judges, metrics, tpr, convention, n_resamples)]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _judge(
    outputs: MethodOutputs,
    judges: Sequence[Detector],
    metrics: Sequence[str],
    tpr: float,
    convention: str | None,
    n_resamples: int,
) -> list[dict[str, object]]:
    rows = accuracy_rows(outputs, n_resamples)
    options = {"metrics": metrics, "tpr": tpr, "convention": convention, "n_resamples": n_resamples}
    return rows + [row for judge in judges for row in detection_rows(outputs, judge, **options)]


def _members(run: Run, runs: Sequence[Run]) -> dict[str, Method]:
    """The ensemble's other classifiers: of the same seed, or else the only one of that name."""
    found: dict[str, Method] = {}
    for name in MEMBERS:
        named = [r for r in runs if r.method.name == name and r.method.clip is run.method.clip]
        same = [r for r in named if r.seed == run.seed] or (named if len(named) == 1 else [])
        if same:
            found[name] = same[0].method
    return found


def summarise(records: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds, with an interval for both sources of chance.

    The images are the same for every seed, so their uncertainty does not shrink with more seeds, while that of
    training does: variance = mean image variance + seed variance / number of seeds.

    Returns:
        One row per method, alpha, set, metric and detector: ``value, low, high, seeds, n, n_ood``. The interval is a
        normal approximation; with two or three seeds their part of it is rough.
    """
    # One method at two alphas, or with two detectors, is two rows, not two seeds.
    keys = ["method", "alpha", "set", "role", "metric", "detector"]
    image = np.square((records["high"] - records["low"]) / (2 * 1.96))
    groups = records.assign(image=image).groupby(keys, sort=False, dropna=False)
    seeds, value = groups.size(), groups["value"].mean()
    chance = (groups["value"].var(ddof=1) / seeds).where(seeds > 1, 0.0)
    half = 1.96 * np.sqrt(groups["image"].mean() + chance)
    first = groups[["n", "n_ood"]].nth(0)
    summary = {"value": value, "low": value - half, "high": value + half, "seeds": seeds.astype(float)}
    sizes = {name: first[name].to_numpy(float) for name in ("n", "n_ood")}
    return pd.DataFrame(summary).assign(**sizes).reset_index()
