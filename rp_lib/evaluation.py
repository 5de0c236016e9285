"""Judge fitted methods on three axes at once: ID accuracy, accuracy under covariate shift, OOD detection.

Every encoder sees every image once; all metrics, alphas and intervals come from the stored features. The
result is tidy: one row per method, seed, image set and metric, with its interval and sample size.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from rp_lib.benchmark import Benchmark, ImageSet
from rp_lib.features import FeatureStore
from rp_lib.intervals import bootstrap_ci, bootstrap_ood_sets_ci, wilson_interval
from rp_lib.methods import Method, ResidualReprogrammer
from rp_lib.metrics import calibration_gaps
from rp_lib.scores import maximum_softmax_probability

COLUMNS = (
    "method", "seed", "alpha", "set", "role", "metric", "value", "low", "high", "n", "n_ood", "detector", "convention",
)  # fmt: skip
RECORDED = ("auroc", "fpr", "aupr_in", "aupr_out", "detection_error")
ALL_SHIFTS, ALL_OOD = "mean of shifts", "mean of OOD sets"


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
    tpr: float = 0.95,
    convention: str | None = None,
    n_resamples: int = 200,
    progress: bool = False,
) -> pd.DataFrame:
    """Evaluate fitted methods on a benchmark.

    Args:
        runs: fitted methods with their seeds. benchmark: what to judge them on.
        store: features that are there already; what is computed here is added.
        tpr: the true positive rate at which FPR is read. convention: of the OOD metrics, see
            :data:`rp_lib.metrics.CONVENTIONS`; None takes what a method's configuration says.
        n_resamples: bootstrap resamples of the detection and calibration intervals. Intervals are over pictures;
            pictures of one designer are alike, so for other designers expect more spread.
        progress: show bars.

    Returns:
        One row per method, seed, set and metric with the columns :data:`COLUMNS`; values are fractions.
        ``mean of shifts`` and ``mean of OOD sets`` weigh every set the same.
    """
    store = store or FeatureStore()
    rows: list[dict[str, object]] = []
    for run in runs:
        rows += _evaluate_one(run, benchmark, store, tpr, convention, n_resamples, progress)
    return pd.DataFrame(rows, columns=list(COLUMNS))


@torch.inference_mode()
def _logits(method: Method, data: ImageSet, store: FeatureStore, progress: bool) -> torch.Tensor:
    label = f"{method.name}: {data.name}" if progress else None
    return method.logits_from(method.combine(*(store.get(e, data, label) for e in method.encoders)))


def _evaluate_one(
    run: Run,
    benchmark: Benchmark,
    store: FeatureStore,
    tpr: float,
    convention: str | None,
    n_resamples: int,
    progress: bool,
) -> list[dict[str, object]]:
    method, seed = run.method, run.seed
    config = getattr(getattr(method, "rp", method), "config", None)
    convention = convention or getattr(config, "convention", "id-positive")
    base = {"method": method.name, "seed": seed, "alpha": getattr(method, "alpha", np.nan)}
    rows: list[dict[str, object]] = []

    def add(data: str, role: str, metric: str, interval: tuple[float, float, float], n: int, **more: object) -> None:
        value, low, high = interval
        rows.append(
            {
                **base,
                "set": data,
                "role": role,
                "metric": metric,
                "value": value,
                "low": low,
                "high": high,
                "n": n,
                **more,
            }
        )

    # Row 6 of the ledger: the released script prints RP's accuracy in RRP's column.
    judged = method.rp if isinstance(method, ResidualReprogrammer) and config.report_rp_as_rrp else method
    shifted = []
    for data in (benchmark.test, *benchmark.shifts.values()):
        logits = _logits(judged, data, store, progress)
        correct = (logits.argmax(1) == data.labels).numpy()
        add(data.name, data.role, "accuracy", _accuracy_interval(correct, data, seed), len(correct))
        gaps = calibration_gaps(logits.double().softmax(1).numpy(), data.labels.numpy())
        error = bootstrap_ci(gaps, _calibration_error, n_resamples=n_resamples, seed=seed)
        add(data.name, data.role, "ece", tuple(error), len(correct))
        if data.role == "shift":
            shifted.append((correct, data))
    if shifted:
        n = sum(len(correct) for correct, _ in shifted)
        add(ALL_SHIFTS, "shift", "accuracy", _mean_accuracy_interval(shifted, seed), n)

    detector = method.for_detection()
    half = bool(getattr(config, "half_precision_detection", False))
    score = lambda data: maximum_softmax_probability(_logits(detector, data, store, progress), half=half)  # noqa: E731
    if benchmark.ood:
        id_scores, sets = score(benchmark.test), {name: score(data) for name, data in benchmark.ood.items()}
        options = {"tpr": tpr, "convention": convention, "n_resamples": n_resamples, "seed": seed}
        found = bootstrap_ood_sets_ci(id_scores, sets, RECORDED, mean=ALL_OOD, **options)
        roles = {name: data.role for name, data in benchmark.ood.items()} | {ALL_OOD: "ood"}
        sizes = {name: len(scores) for name, scores in sets.items()}
        sizes[ALL_OOD] = sum(sizes.values())
        for name, metrics in found.items():
            for metric, interval in metrics.items():
                more = {"n_ood": sizes[name], "detector": "msp", "convention": convention}
                add(name, roles[name], metric, interval, len(id_scores), **more)
    if detector is not method:
        for encoder in detector.encoders:
            if encoder is not method.clip:
                store.forget(encoder)
    return rows


def _calibration_error(index: np.ndarray, gap: np.ndarray) -> float:
    return float(np.abs(np.bincount(index, weights=gap)).sum() / len(gap))


def _accuracy_interval(correct: np.ndarray, data: ImageSet, seed: int) -> tuple[float, float, float]:
    """Wilson's interval; where pictures repeat (one picture under four corruptions), a bootstrap of pictures."""
    sources = data.sources.numpy()
    if len(np.unique(sources)) == len(sources):
        return tuple(wilson_interval(int(correct.sum()), len(correct)))
    return tuple(bootstrap_ci(correct.astype(float), clusters=sources, seed=seed))


def _mean_accuracy_interval(
    shifted: list[tuple[np.ndarray, ImageSet]], seed: int, n_resamples: int = 1000
) -> tuple[float, float, float]:
    """Mean accuracy over sets, each weighing the same, and its percentile bootstrap interval.

    Sets derived from the test pictures share each resample of them: their errors do not average out.
    """
    rng = np.random.default_rng(seed)
    size = 1 + max(int(data.sources.max()) for _, data in shifted)
    resampled = np.empty((n_resamples, len(shifted)))
    for row in range(n_resamples):
        shared = np.bincount(rng.integers(0, size, size), minlength=size)
        for column, (correct, data) in enumerate(shifted):
            if data.derived_from:
                weight = shared[data.sources.numpy()]
                resampled[row, column] = (weight * correct).sum() / max(1, weight.sum())
            else:
                resampled[row, column] = correct[rng.integers(0, len(correct), len(correct))].mean()
    low, high = np.quantile(resampled.mean(1), (0.025, 0.975))
    return float(np.mean([correct.mean() for correct, _ in shifted])), float(low), float(high)


def summarise(records: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds, with an interval for both sources of chance.

    The images are the same for every seed, so their uncertainty does not shrink with more seeds, while that of
    training does: variance = mean image variance + seed variance / number of seeds.

    Returns:
        One row per method, alpha, set and metric: ``value, low, high, seeds, n, n_ood``. The interval is a normal
        approximation; with two or three seeds their part of it is rough.
    """

    def one(group: pd.DataFrame) -> pd.Series:
        image = np.square((group["high"] - group["low"]) / (2 * 1.96)).mean()
        seeds = len(group)
        chance = group["value"].var(ddof=1) / seeds if seeds > 1 else 0.0
        half = 1.96 * np.sqrt(image + chance)
        mean = group["value"].mean()
        return pd.Series({"value": mean, "low": mean - half, "high": mean + half, "seeds": seeds,
                          "n": group["n"].iloc[0], "n_ood": group["n_ood"].iloc[0]})  # fmt: skip

    keys = ["method", "alpha", "set", "role", "metric"]  # one method at two alphas is two rows, not two seeds
    return records.groupby(keys, sort=False, dropna=False).apply(one, include_groups=False).reset_index()
