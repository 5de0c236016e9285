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
from rp_lib.intervals import bootstrap_ood_sets_ci, wilson_interval
from rp_lib.methods import Method, ResidualReprogrammer
from rp_lib.metrics import expected_calibration_error
from rp_lib.scores import maximum_softmax_probability

COLUMNS = (
    "method", "seed", "alpha", "set", "role", "metric", "value", "low", "high", "n", "n_ood", "detector", "convention",
)  # fmt: skip
OOD_METRICS = ("auroc", "fpr", "aupr_in", "aupr_out", "detection_error")
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
        n_resamples: bootstrap resamples of the detection intervals (accuracy uses Wilson's interval).
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
    accuracies = []
    for data in (benchmark.test, *benchmark.shifts.values()):
        logits = _logits(judged, data, store, progress)
        correct = (logits.argmax(1) == data.labels).numpy()
        interval = tuple(wilson_interval(int(correct.sum()), len(correct)))
        add(data.name, data.role, "accuracy", interval, len(correct))
        error = expected_calibration_error(logits.double().softmax(1).numpy(), data.labels.numpy())
        add(data.name, data.role, "ece", (error, np.nan, np.nan), len(correct))
        if data.role == "shift":
            accuracies.append((interval, len(correct)))
    if accuracies:
        add(ALL_SHIFTS, "shift", "accuracy", _mean_interval([a for a, _ in accuracies]), sum(n for _, n in accuracies))

    detector = method.for_detection()
    half = bool(getattr(config, "half_precision_detection", False))
    score = lambda data: maximum_softmax_probability(_logits(detector, data, store, progress), half=half)  # noqa: E731
    if benchmark.ood:
        id_scores, sets = score(benchmark.test), {name: score(data) for name, data in benchmark.ood.items()}
        options = {"tpr": tpr, "convention": convention, "n_resamples": n_resamples, "seed": seed}
        found = bootstrap_ood_sets_ci(id_scores, sets, OOD_METRICS, mean=ALL_OOD, **options)
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


def _mean_interval(intervals: list[tuple[float, float, float]]) -> tuple[float, float, float]:
    """Mean of estimates, and its normal 95 % interval from theirs, taken as independent.

    Shifts that are derived from the same pictures (dark, corrupted) are not quite: theirs is slightly too narrow.
    """
    values = np.array(intervals)
    half = np.sqrt((((values[:, 2] - values[:, 1]) / 2) ** 2).sum()) / len(values)
    mean = float(values[:, 0].mean())
    return mean, mean - half, mean + half


def summarise(records: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds, with an interval for both sources of chance.

    The images are the same for every seed, so their uncertainty does not shrink with more seeds, while that of
    training does: variance = mean image variance + seed variance / number of seeds.

    Returns:
        One row per method, set and metric: ``value, low, high, seeds, n, n_ood``.
    """

    def one(group: pd.DataFrame) -> pd.Series:
        image = np.square((group["high"] - group["low"]) / (2 * 1.96)).mean()
        seeds = len(group)
        chance = group["value"].var(ddof=1) / seeds if seeds > 1 else 0.0
        half = 1.96 * np.sqrt(image + chance)
        mean = group["value"].mean()
        return pd.Series({"value": mean, "low": mean - half, "high": mean + half, "seeds": seeds,
                          "n": group["n"].iloc[0], "n_ood": group["n_ood"].iloc[0]})  # fmt: skip

    keys = ["method", "set", "role", "metric"]
    return records.groupby(keys, sort=False).apply(one, include_groups=False).reset_index()
