"""Rows of the tidy records, from one fitted method's outputs: accuracy and calibration, and OOD detection."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rp_lib.detectors import Detector, NotApplicable, detection_scores
from rp_lib.intervals import Interval, bootstrap_ci, bootstrap_ood_sets_ci, wilson_interval
from rp_lib.metrics import calibration_gaps, check_ood_options, ood_metrics
from rp_lib.outputs import MethodOutputs, Outputs
from rp_lib.resampling import auroc_and_fpr_of_sets, bootstrap_weights, shared_draws

log = logging.getLogger(__name__)
COLUMNS = (
    "method", "seed", "alpha", "set", "role", "metric", "value", "low", "high", "n", "n_ood", "detector", "convention",
)  # fmt: skip
RECORDED = ("auroc", "fpr", "aupr_in", "aupr_out", "detection_error")
ALL_SHIFTS, ALL_OOD = "mean of shifts", "mean of OOD sets"
Row = dict[str, Any]


def accuracy_rows(outputs: MethodOutputs, n_resamples: int) -> list[Row]:
    """Accuracy and calibration error of the test set and of every shift, and the mean accuracy over shifts."""
    rows: list[Row] = []
    seed, shifted = outputs.seed, []
    for data in (outputs.test, *outputs.shifts.values()):
        correct = (data.reported.argmax(1) == data.labels).numpy()
        rows.append(_row(outputs, data.name, data.role, "accuracy", accuracy_interval(correct, data, seed), len(data)))
        gaps = calibration_gaps(data.reported.double().softmax(1).numpy(), data.labels.numpy())
        error = bootstrap_ci(gaps, _calibration_error, n_resamples=n_resamples, seed=seed)
        rows.append(_row(outputs, data.name, data.role, "ece", error, len(data)))
        if data.role == "shift":
            shifted.append((correct, data))
    if shifted:
        n = sum(len(correct) for correct, _ in shifted)
        rows.append(_row(outputs, ALL_SHIFTS, "shift", "accuracy", mean_accuracy_interval(shifted, seed), n))
    return rows


def detection_rows(
    outputs: MethodOutputs,
    detector: Detector,
    *,
    metrics: Sequence[str] = RECORDED,
    tpr: float = 0.95,
    convention: str | None = None,
    n_resamples: int = 200,
) -> list[Row]:
    """How well one detector tells the test set from every OOD set, and the means over these.

    Intervals of AUROC and FPR alone, in the convention ``id-positive``, take milliseconds; all else resamples one by
    one. A detector that is not defined for the method gives no rows.
    """
    if not outputs.ood:
        return []
    convention = convention or outputs.about["convention"]
    try:
        id_scores, sets = detection_scores(detector, outputs)
    except NotApplicable as reason:
        log.info("no rows for %s of %s: %s", detector.name, outputs.method, reason)
        return []
    if convention == "id-positive" and set(metrics) <= {"auroc", "fpr"}:
        found = _fast_intervals(id_scores, sets, metrics, tpr, n_resamples, outputs.seed)
    else:
        options = {"tpr": tpr, "convention": convention, "n_resamples": n_resamples, "seed": outputs.seed}
        found = bootstrap_ood_sets_ci(id_scores, sets, metrics, mean=ALL_OOD, **options)
    roles = {name: data.role for name, data in outputs.ood.items()} | {ALL_OOD: "ood"}
    sizes = {name: len(scores) for name, scores in sets.items()}
    sizes[ALL_OOD] = sum(sizes.values())
    return [
        _row(outputs, name, roles[name], metric, interval, len(id_scores),
             n_ood=sizes[name], detector=detector.name, convention=convention)
        for name, measured in found.items()
        for metric, interval in measured.items()
    ]  # fmt: skip


def _row(
    outputs: MethodOutputs, data: str, role: str, metric: str, interval: Sequence[float], n: int, **more: object
) -> Row:
    value, low, high = interval
    alpha = outputs.about["alpha"]
    return {
        "method": outputs.method, "seed": outputs.seed, "alpha": np.nan if alpha is None else alpha, "set": data,
        "role": role, "metric": metric, "value": value, "low": low, "high": high, "n": n, **more,
    }  # fmt: skip


def _fast_intervals(
    id_scores: np.ndarray, sets: Mapping[str, np.ndarray], metrics: Sequence[str], tpr: float, n: int, seed: int
) -> dict[str, dict[str, Interval]]:
    """As :func:`bootstrap_ood_sets_ci` for AUROC and FPR, by weights."""
    check_ood_options(tpr, "id-positive")
    values = {name: ood_metrics(id_scores, scores, tpr=tpr) for name, scores in sets.items()}
    drawn, *others = _weights(seed, n, (len(id_scores), *map(len, sets.values())))
    pairs = auroc_and_fpr_of_sets(id_scores, sets, drawn, dict(zip(sets, others, strict=True)), tpr)
    resampled = {name: dict(zip(("auroc", "fpr"), pair, strict=True)) for name, pair in pairs.items()}
    values[ALL_OOD] = {m: float(np.mean([v[m] for v in values.values()])) for m in metrics}
    resampled[ALL_OOD] = {m: np.mean([r[m] for r in resampled.values()], axis=0) for m in metrics}
    return {
        name: {m: Interval(v[m], *map(float, np.quantile(resampled[name][m], (0.025, 0.975)))) for m in metrics}
        for name, v in values.items()
    }


@functools.lru_cache(maxsize=4)
def _weights(seed: int, n_resamples: int, sizes: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    """Counts of each set of these sizes; every method of a seed and every detector is judged on the same ones."""
    rngs = np.random.default_rng(seed).spawn(len(sizes))
    return tuple(bootstrap_weights(rng, n, n_resamples) for rng, n in zip(rngs, sizes, strict=True))


def _calibration_error(index: np.ndarray, gap: np.ndarray) -> float:
    return float(np.abs(np.bincount(index, weights=gap)).sum() / len(gap))


def accuracy_interval(correct: np.ndarray, data: Outputs, seed: int) -> Sequence[float]:
    """Wilson's interval; where pictures repeat (one picture under four corruptions), a bootstrap of pictures."""
    sources = data.sources.numpy()
    if len(np.unique(sources)) == len(sources):
        return wilson_interval(int(correct.sum()), len(correct))
    return bootstrap_ci(correct.astype(float), clusters=sources, seed=seed)


def mean_accuracy_interval(
    shifted: list[tuple[np.ndarray, Outputs]], seed: int, n_resamples: int = 1000
) -> tuple[float, float, float]:
    """Mean accuracy over sets, each weighing the same, and its percentile bootstrap interval.

    Sets derived from the test pictures share each resample of them: their errors do not average out.
    """
    size = 1 + max(int(data.sources.max()) for _, data in shifted)
    sizes = tuple(None if data.derived else len(data) for _, data in shifted)
    resampled = np.empty((n_resamples, len(shifted)))
    for block, shared, alone in shared_draws(seed, n_resamples, size, sizes):
        for column, (correct, data) in enumerate(shifted):
            if data.derived:
                sources = data.sources.numpy()
                right, there = (np.bincount(sources, weights, size) for weights in (correct, None))
                drawn = shared @ np.stack([right, there], 1).astype(np.float32)
                resampled[block, column] = drawn[:, 0] / np.maximum(1, drawn[:, 1]).astype(np.float64)
            else:
                resampled[block, column] = (alone[column] @ correct.astype(np.float32)).astype(np.float64) / len(data)
    low, high = np.quantile(resampled.mean(1), (0.025, 0.975))
    return float(np.mean([correct.mean() for correct, _ in shifted])), float(low), float(high)
