"""Rows of the tidy records, from one fitted method's outputs: accuracy and calibration, and OOD detection."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rp_lib.detectors import Detector, NotApplicable, detection_scores
from rp_lib.errors import RPLibError
from rp_lib.intervals import Interval, bootstrap_ood_sets_ci, wilson_interval
from rp_lib.metrics import calibration_gaps, check_ood_options
from rp_lib.outputs import MethodOutputs, Outputs
from rp_lib.resampling import auroc_and_fpr_of_sets, bootstrap_weights, kept_weights, shared_draws, with_the_data

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
        rows.append(
            _row(outputs, data.name, data.role, "ece", _calibration_interval(data, n_resamples, seed), len(data))
        )
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
    drawn, *others = _weights(seed, n, (len(id_scores), *map(len, sets.values())))
    pairs = auroc_and_fpr_of_sets(id_scores, sets, drawn, dict(zip(sets, others, strict=True)), tpr)
    numbers = np.array([dict(zip(("auroc", "fpr"), pair, strict=True))[m] for pair in pairs.values() for m in metrics])
    numbers = numbers.reshape(len(pairs), len(metrics), 1 + n)
    numbers = np.concatenate([numbers, numbers.mean(0, keepdims=True)])
    low, high = np.quantile(numbers[..., 1:], (0.025, 0.975), axis=-1)
    return {
        name: {m: Interval(*map(float, (numbers[i, j, 0], low[i, j], high[i, j]))) for j, m in enumerate(metrics)}
        for i, name in enumerate((*pairs, ALL_OOD))
    }


@functools.lru_cache(maxsize=4)
def _weights(seed: int, n_resamples: int, sizes: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    """Counts of each set of these sizes, (1 + n_resamples, size); the first row is the data as they are.

    Every method of a seed and every detector is judged on the same ones.
    """
    rngs = np.random.default_rng(seed).spawn(len(sizes))
    return tuple(with_the_data(bootstrap_weights(rng, n, n_resamples)) for rng, n in zip(rngs, sizes, strict=True))


def _calibration_interval(data: Outputs, n_resamples: int, seed: int) -> Interval:
    """As ``bootstrap_ci`` of the expected calibration error: each bin's gaps are summed for all resamples at once."""
    index, gap = calibration_gaps(data.reported.double().softmax(1).numpy(), data.labels.numpy())
    by_bin = np.zeros((len(gap), index.max() + 1))
    by_bin[np.arange(len(gap)), index] = gap
    errors = np.abs(kept_weights(seed, len(gap), n_resamples) @ by_bin).sum(1) / len(gap)
    return _interval(errors)


def _interval(numbers: np.ndarray) -> Interval:
    """The number of the data, which stands first, with the percentile interval of the resamples behind it."""
    return Interval(*map(float, (numbers[0], *np.quantile(numbers[1:], (0.025, 0.975)))))


def accuracy_interval(correct: np.ndarray, data: Outputs, seed: int, n_resamples: int = 1000) -> Interval:
    """Wilson's interval; where pictures repeat (one picture under four corruptions), a bootstrap of pictures.

    Raises:
        RPLibError: every image is made of the same picture.
    """
    known, ids = np.unique(data.sources.numpy(), return_inverse=True)
    if len(known) == len(ids):
        return wilson_interval(int(correct.sum()), len(correct))
    if len(known) < 2:
        raise RPLibError(f"all images of {data.name!r} are made of one picture: nothing can be resampled")
    drawn = kept_weights(seed, len(known), n_resamples)
    right, there = (np.bincount(ids, weights).astype(np.float32) for weights in (correct, None))
    return _interval((drawn @ right).astype(np.float64) / (drawn @ there).astype(np.float64))


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
