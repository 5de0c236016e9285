"""Numbers from scores: accuracy, OOD detection, calibration, and their confidence intervals.

Every score is a confidence: higher means more in-distribution (ID). Every rate is a fraction in [0, 1], not a
percentage. Inputs are numpy arrays, torch tensors (any device and dtype) or plain sequences; all is computed in
float64, because float32 merges nearly saturated confidences into ties, which moves the threshold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np

from rp_lib.errors import UnknownName

CONVENTIONS: dict[str, str] = {
    "id-positive": "ID positive; largest threshold with TPR >= tpr on the full curve, accept score >= threshold; AP",
    "authors": "ID positive; threshold sorted(ID)[round((1 - tpr) n)], accept score > threshold; pooled error",
    "mcm": "ID positive; threshold whose recall is nearest tpr, above or below it; AP (MCM, LoCoOp, NegLabel)",
    "clipn": "ID positive; FPR interpolated linearly on the ROC curve; AP",
    "openood": "OOD positive; first TPR >= tpr on a curve with collinear points dropped; trapezoid (OpenOOD 1.5)",
    "pytorch-ood": "OOD positive; first TPR >= tpr on the full curve; trapezoid (pytorch-ood 0.4)",
}
OOD_METRICS = ("auroc", "fpr", "aupr_in", "aupr_out", "detection_error", "threshold")

_Array = np.ndarray
_CHUNK = 500_000  # elements per block of resamples: fits the cache, and bounds memory for any number of resamples


class Interval(NamedTuple):
    """An estimate ``value`` with its confidence interval from ``low`` to ``high``, in the unit of the value."""

    value: float
    low: float
    high: float


def accuracy(logits_or_predictions: Any, labels: Any) -> float:
    """Fraction of samples whose predicted class is the label.

    Args:
        logits_or_predictions: shape (n, classes), any monotone class scores (the first of tied maxima wins), or
            shape (n,), predicted class indices.
        labels: shape (n,), class indices; with logits in 0 ... classes - 1.

    Raises:
        ValueError: empty input, NaN, shapes that do not fit, or a label that is no column of the logits.
    """
    predictions = _floats(logits_or_predictions, "logits_or_predictions", ndim=(1, 2))
    labels = _floats(labels, "labels")
    _same_length(predictions, labels)
    if predictions.ndim == 2:
        _labels_in_range(labels, predictions.shape[1])
        predictions = predictions.argmax(axis=1)
    return float((predictions == labels).mean())


def ood_metrics(
    id_scores: Any, ood_scores: Any, *, tpr: float = 0.95, convention: str = "id-positive"
) -> dict[str, float]:
    """How well a score separates ID from OOD samples. Ties are handled exactly; +-inf is allowed, NaN is not.

    Args:
        id_scores: shape (n,), scores of ID samples, higher = more ID.
        ood_scores: shape (m,), scores of OOD samples.
        tpr: true-positive rate at which ``fpr`` is read, in (0, 1].
        convention: a key of :data:`CONVENTIONS`. Published FPR95 values differ because of it, so name it with
            every figure. With "openood" and "pytorch-ood" OOD is the positive class.

    Returns:
        Fractions under exactly these keys (and ``threshold`` in the unit of the scores):
        ``auroc`` (probability that an ID score is above an OOD score, ties count half; the same everywhere),
        ``fpr`` (share of the negative class that passes as positive at ``tpr``: of OOD samples accepted, or, where
        OOD is positive, of ID samples rejected),
        ``aupr_in`` and ``aupr_out`` (ID, or OOD with negated scores, as positive class: average precision; the
        trapezoid from (recall 0, precision 1) for "openood" and "pytorch-ood"; the trapezoid from (0, 0) for
        "authors", as in the ``cal_metric`` that descends from ODIN through DICE and ASH),
        ``detection_error`` (minimum over all thresholds of (FNR + FPR) / 2; for "authors" the pooled
        (FN + FP) / (n + m)),
        ``threshold`` (accept as ID if score >= threshold; for "authors" if score > threshold; where OOD is
        positive, reject if score <= threshold; "clipn" interpolates between thresholds, so that no threshold
        yields its ``fpr``, and reports the one of "id-positive").

    Raises:
        ValueError: empty or NaN scores, a wrong shape, or ``tpr`` outside (0, 1].
        UnknownName: the convention is not known.
    """
    _check_ood_options(tpr, convention)
    return _ood_metrics(_floats(id_scores, "id_scores"), _floats(ood_scores, "ood_scores"), tpr, convention)


def expected_calibration_error(probabilities: Any, labels: Any, *, bins: int = 15) -> float:
    """Expected calibration error (Guo et al. 2017, arXiv 1706.04599, eq. 3), a fraction in [0, 1].

    Samples fall into equal-width bins (a, b] of their largest probability; the result is the mean over samples of
    their bin's |accuracy - mean confidence|.

    Args:
        probabilities: shape (n, classes), rows in [0, 1] that sum to one (after the softmax).
        labels: shape (n,), class indices in 0 ... classes - 1.
        bins: number of bins, at least one.

    Raises:
        ValueError: empty input, NaN, logits instead of probabilities, a wrong shape or label, or ``bins`` < 1.
    """
    probabilities = _floats(probabilities, "probabilities", ndim=(2,))
    labels = _floats(labels, "labels")
    _same_length(probabilities, labels)
    _labels_in_range(labels, probabilities.shape[1])
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    # The tolerance admits rows that were rounded to bfloat16.
    if probabilities.min() < 0 or probabilities.max() > 1.01 or np.abs(probabilities.sum(axis=1) - 1).max() > 0.02:
        raise ValueError("probabilities must be in [0, 1] with rows that sum to 1: apply softmax to logits first")
    confidence = probabilities.max(axis=1)
    gap = (probabilities.argmax(axis=1) == labels) - confidence
    # side="left" puts a confidence on an edge into the lower bin, as the paper's intervals (a, b] do.
    index = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], confidence, side="left")
    # |sum of gaps| = bin size * |accuracy - mean confidence|, so empty bins need no special case.
    return float(np.abs(np.bincount(index, weights=gap, minlength=bins)).sum() / len(labels))


def bootstrap_ci(
    values_or_arrays: Any,
    statistic: Callable[..., float] | None = None,
    *,
    n_resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    clusters: Any = None,
) -> Interval:
    """Percentile bootstrap interval (Efron and Tibshirani 1993, ch. 13) of a statistic of samples.

    Args:
        values_or_arrays: shape (n, ...), or a tuple of such arrays with the same n, which are resampled together.
        statistic: function of the resampled arrays that returns a number; ``None`` is the mean of one 1-D array
            (say of 0/1 for correct), which takes no Python loop.
        n_resamples: number of resamples, at least one.
        confidence: coverage aimed at, in (0, 1).
        seed: same seed, same interval.
        clusters: shape (n,), integer group of each sample. Whole groups are then drawn, because samples of one
            group (pictures by one designer) are not independent and an interval that ignores it is too narrow.

    Returns:
        The statistic of the data as given, and the interval. It has no width if all values are equal: use
        :func:`wilson_interval` for an accuracy near 0 or 1.

    Raises:
        ValueError: empty or NaN input, lengths that differ, fewer than two clusters, an option out of its range,
            several arrays without a statistic, or a statistic that is NaN on a resample.
    """
    quantiles = _quantiles(n_resamples, confidence)
    several = isinstance(values_or_arrays, tuple) and len(values_or_arrays) > 0 and np.ndim(values_or_arrays[0]) > 0
    arrays = [_numbers(a, "values_or_arrays") for a in (values_or_arrays if several else (values_or_arrays,))]
    for array in arrays[1:]:
        _same_length(arrays[0], array)
    n, rng = len(arrays[0]), np.random.default_rng(seed)
    if statistic is None and (len(arrays) > 1 or arrays[0].ndim != 1):
        raise ValueError("give a statistic: without one, the mean of a single 1-D array is taken")
    group = None if clusters is None else _groups(clusters, n)

    if statistic is None:
        sums, sizes = arrays[0].astype(np.float64), np.ones(n)
        value = float(sums.mean())
        if group is not None:
            sums, sizes = np.bincount(group, weights=sums), np.bincount(group).astype(np.float64)
        if group is None and np.isin(sums, (0.0, 1.0)).all():
            # Drawing n of n zeros and ones with replacement is a binomial draw: the same distribution, n times faster.
            resampled = rng.binomial(n, value, n_resamples) / n
        else:
            draws = _draws(rng, len(sums), n_resamples)
            resampled = np.concatenate([sums[d].sum(axis=1) / sizes[d].sum(axis=1) for d in draws])
    else:
        value = float(statistic(*arrays))
        members = None if group is None else [np.flatnonzero(group == g) for g in range(group.max() + 1)]
        rows = (row for d in _draws(rng, n if members is None else len(members), n_resamples) for row in d)
        picks = (row if members is None else np.concatenate([members[g] for g in row]) for row in rows)
        resampled = np.array([float(statistic(*(a[pick] for a in arrays))) for pick in picks])
        if np.isnan(resampled).any():
            raise ValueError("the statistic is NaN on a resample: define it for every sample drawn with replacement")
    return Interval(value, *(float(q) for q in np.quantile(resampled, quantiles)))


def bootstrap_ood_ci(
    id_scores: Any,
    ood_scores: Any,
    metric: str | Sequence[str] = "auroc",
    *,
    tpr: float = 0.95,
    convention: str = "id-positive",
    n_resamples: int = 200,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Interval]:
    """Percentile bootstrap intervals of :func:`ood_metrics`; both classes are resampled, each on its own.

    Args:
        id_scores: shape (n,), higher = more ID.
        ood_scores: shape (m,).
        metric: a key of :func:`ood_metrics`, or several.
        tpr: as in :func:`ood_metrics`; the threshold is chosen anew in each resample.
        convention: as in :func:`ood_metrics`. The default is fast; the others take a Python loop.
        n_resamples: number of resamples, at least one.
        confidence: coverage aimed at, in (0, 1).
        seed: same seed, same intervals. All metrics and conventions see the same resamples.

    Returns:
        One :class:`Interval` for each metric asked for.

    Raises:
        ValueError: as :func:`ood_metrics`, or an option out of its range.
        UnknownName: the convention or the metric is not known.
    """
    _check_ood_options(tpr, convention)
    quantiles = _quantiles(n_resamples, confidence)
    names = (metric,) if isinstance(metric, str) else tuple(metric)
    for name in names:
        if name not in OOD_METRICS:
            raise UnknownName("metric", str(name), OOD_METRICS)
    id_scores, ood_scores = _floats(id_scores, "id_scores"), _floats(ood_scores, "ood_scores")
    value = _ood_metrics(id_scores, ood_scores, tpr, convention)
    n, levels = len(id_scores), len(id_scores) + len(ood_scores)
    id_rng, ood_rng = np.random.default_rng(seed).spawn(2)
    blocks = zip(_draws(id_rng, n, n_resamples, levels), _draws(ood_rng, levels - n, n_resamples, levels), strict=True)
    thresholds, rank = _rank(id_scores, ood_scores)
    resampled: dict[str, list[Any]] = {name: [] for name in names}
    for id_draw, ood_draw in blocks:
        if convention == "id-positive":
            # The scores are sorted once; a resample only changes how often each distinct score counts.
            tp, fp = (_accepted(r[d], len(thresholds)) for r, d in ((rank[:n], id_draw), (rank[n:], ood_draw)))
            block = _areas(tp, fp, convention)
            block["fpr"], block["threshold"] = _first_reaching(tp, fp, thresholds, tpr)
            for name in names:
                resampled[name].extend(block[name])
        else:
            for i, o in zip(id_draw, ood_draw, strict=True):
                row = _ood_metrics(id_scores[i], ood_scores[o], tpr, convention)
                for name in names:
                    resampled[name].append(row[name])
    return {k: Interval(value[k], *(float(q) for q in np.quantile(resampled[k], quantiles))) for k in names}


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Wilson score interval of a proportion (Wilson 1927), say the accuracy of one run; sound near 0 and 1 too.

    Args:
        successes: number of successes, 0 ... n.
        n: number of independent trials, at least one.
        confidence: coverage aimed at, in (0, 1).

    Raises:
        ValueError: an argument out of its range.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"need n >= 1 and 0 <= successes <= n, got successes={successes}, n={n}")
    z = NormalDist().inv_cdf(_quantiles(1, confidence)[1])
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    # Rounding must not push the value, which lies on the bound at 0 and n successes, out of its interval.
    return Interval(p, min(p, max(0.0, centre - half)), max(p, min(1.0, centre + half)))


# Curves. `tp` and `fp` are the numbers of ID and OOD samples with score >= each distinct score, highest first; leading
# axes are resamples. Working on counts of distinct scores makes every result independent of the order of ties.


def _rank(id_scores: _Array, ood_scores: _Array) -> tuple[_Array, _Array]:
    """Distinct scores from high to low, and the index among them of each ID score, then of each OOD score."""
    ascending, inverse = np.unique(np.concatenate([id_scores, ood_scores]), return_inverse=True)
    return ascending[::-1], len(ascending) - 1 - inverse.reshape(-1)


def _accepted(ranks: _Array, levels: int) -> _Array:
    """Samples with score >= each distinct score: (..., samples) ranks to (..., levels) counts."""
    rows = ranks.reshape(-1, ranks.shape[-1])
    offset = rows + levels * np.arange(len(rows))[:, None]
    counts = np.bincount(offset.reshape(-1), minlength=levels * len(rows)).reshape(*ranks.shape[:-1], levels)
    return counts.cumsum(axis=-1)


def _rejected(counts: _Array) -> _Array:
    """Samples with score <= each distinct score, lowest first: the curve's counts when OOD is the positive class."""
    before = np.concatenate([np.zeros_like(counts[..., :1]), counts[..., :-1]], axis=-1)
    return (counts[..., -1:] - before)[..., ::-1]


def _first_reaching(tp: _Array, fp: _Array, thresholds: _Array, tpr: float) -> tuple[_Array, _Array]:
    """FPR and threshold of the first (strictest) point whose TPR is at least ``tpr``."""
    # Compared as quotients, not as counts with tpr * n: 19 / 20 >= 0.95 holds in floats, 0.07 * 100 is above 7.
    first = np.argmax(tp / tp[..., -1:] >= tpr, axis=-1)
    return np.take_along_axis(fp / fp[..., -1:], first[..., None], axis=-1)[..., 0], thresholds[first]


def _areas(tp: _Array, fp: _Array, convention: str) -> dict[str, _Array]:
    """The metrics that need no operating point."""
    n, m = tp[..., -1], fp[..., -1]
    gain = np.diff(tp, axis=-1, prepend=0)
    auroc = (np.diff(fp, axis=-1, prepend=0) * (tp - gain / 2)).sum(axis=-1) / (n * m)
    # Accepting nothing is a threshold as well, hence the minimum with its error.
    if convention == "authors":
        error = np.minimum((n[..., None] - tp + fp).min(axis=-1), n) / (n + m)
    else:
        error = np.minimum(0.5 * (1 - tp / n[..., None] + fp / m[..., None]).min(axis=-1), 0.5)
    start = {"authors": 0.0, "openood": 1.0, "pytorch-ood": 1.0}.get(convention)
    aupr_in, aupr_out = _aupr(tp, fp, start), _aupr(_rejected(fp), _rejected(tp), start)
    return {"auroc": auroc, "aupr_in": aupr_in, "aupr_out": aupr_out, "detection_error": error}


def _aupr(tp: _Array, fp: _Array, start: float | None) -> _Array:
    """Average precision, or, with ``start``, the trapezoid from (recall 0, precision ``start``)."""
    gain = np.diff(tp, axis=-1, prepend=0)
    precision = np.where(tp + fp > 0, tp / np.maximum(tp + fp, 1), start or 0.0)
    if start is not None:
        first = np.full_like(precision[..., :1], start)
        precision = (precision + np.concatenate([first, precision[..., :-1]], axis=-1)) / 2
    return (gain * precision).sum(axis=-1) / tp[..., -1]


def _ood_metrics(id_scores: _Array, ood_scores: _Array, tpr: float, convention: str) -> dict[str, float]:
    thresholds, rank = _rank(id_scores, ood_scores)
    tp, fp = (_accepted(r, len(thresholds)) for r in (rank[: len(id_scores)], rank[len(id_scores) :]))
    metrics = _areas(tp, fp, convention)
    fpr, threshold = _operating_point(id_scores, ood_scores, thresholds, tp, fp, tpr, convention)
    metrics |= {"fpr": fpr, "threshold": threshold}
    return {name: float(metrics[name]) for name in OOD_METRICS}


def _operating_point(
    id_scores: _Array,
    ood_scores: _Array,
    thresholds: _Array,
    tp: _Array,
    fp: _Array,
    tpr: float,
    convention: str,
) -> tuple[Any, Any]:
    """FPR and threshold as the named code computes them, its quirks included."""
    n, m = tp[-1], fp[-1]
    if convention == "authors":
        # The code writes 0.05 * n; 1 - 0.95 is a bit more than 0.05 in floats, which would flip round() at halves.
        index = min(round(round(1 - tpr, 12) * int(n)), int(n) - 1)
        threshold = np.sort(id_scores)[index]
        return (ood_scores > threshold).mean(), threshold
    if convention == "mcm":
        # From full recall downwards; argmin takes the first of equals, so the higher recall, or the larger FPR.
        down = slice(int(tp.searchsorted(n)), None, -1)
        nearest = np.argmin(np.abs(tp[down] / n - tpr))
        return fp[down][nearest] / m, thresholds[down][nearest]
    if convention == "clipn":
        # As scipy's interp1d: where the curve is flat at tpr, the smallest FPR. (Dropped points lie on its lines.)
        x, y = np.r_[0, tp] / n, np.r_[0, fp] / m
        k = max(int(np.searchsorted(x, tpr)), 1)
        fpr = y[k - 1] + (y[k] - y[k - 1]) * (tpr - x[k - 1]) / (x[k] - x[k - 1])
        return fpr, _first_reaching(tp, fp, thresholds, tpr)[1]
    if convention in ("openood", "pytorch-ood"):
        tp, fp, thresholds = _rejected(fp), _rejected(tp), thresholds[::-1]
        if convention == "openood" and len(tp) > 2:
            # scikit-learn's drop_intermediate=True, OpenOOD's default: this may skip the first TPR >= tpr.
            keep = np.r_[True, (np.diff(tp, 2) != 0) | (np.diff(fp, 2) != 0), True]
            tp, fp, thresholds = tp[keep], fp[keep], thresholds[keep]
    return _first_reaching(tp, fp, thresholds, tpr)


# Input checks and resampling.


def _check_ood_options(tpr: float, convention: str) -> None:
    if convention not in CONVENTIONS:
        raise UnknownName("convention", str(convention), CONVENTIONS)
    if not 0 < tpr <= 1:
        raise ValueError(f"tpr must be a fraction in (0, 1], got {tpr}: write 0.95 for 95 %")


def _numbers(values: Any, name: str) -> _Array:
    """As a numpy array of float64, integers or booleans without NaN; at least one element."""
    # float64 only after the move: some devices have none; and numpy knows no bfloat16, so not after the conversion.
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = (values.double() if values.is_floating_point() else values).numpy()
    array = np.asarray(values)
    if array.dtype.kind not in "fiub" and array.size:
        raise ValueError(f"{name} must be numbers, got dtype {array.dtype}")
    array = array.astype(np.float64) if array.dtype.kind == "f" else array
    if array.ndim == 0:
        raise ValueError(f"{name} must be an array, got a single number: pass one number per sample")
    if array.size == 0:
        raise ValueError(f"{name} is empty: pass at least one sample")
    if array.dtype.kind == "f" and (nan := int(np.isnan(array).sum())):
        raise ValueError(f"{name} has {nan} NaN of {array.size} values: find out which input produced them")
    return array


def _floats(values: Any, name: str, ndim: tuple[int, ...] = (1,)) -> _Array:
    array = _numbers(values, name).astype(np.float64)
    if array.ndim not in ndim:
        wanted = " or ".join(f"{d}-D" for d in ndim)
        raise ValueError(f"{name} must be {wanted}, got shape {array.shape}: pass one row per sample")
    return array


def _same_length(a: _Array, b: _Array) -> None:
    if len(a) != len(b):
        raise ValueError(f"lengths differ ({len(a)} and {len(b)}): pass one entry per sample in both")


def _labels_in_range(labels: _Array, classes: int) -> None:
    if labels.min() < 0 or labels.max() >= classes or (labels % 1).any():
        raise ValueError(f"labels must be integers in 0 ... {classes - 1}: drop samples of other classes (OOD) first")


def _groups(clusters: Any, n: int) -> _Array:
    ids = _floats(clusters, "clusters")
    _same_length(np.empty(n), ids)
    distinct, group = np.unique(ids, return_inverse=True)
    if len(distinct) < 2:
        raise ValueError("all samples are in one cluster: the spread between clusters needs at least two")
    return group.reshape(-1)


def _quantiles(n_resamples: int, confidence: float) -> tuple[float, float]:
    if n_resamples < 1:
        raise ValueError(f"n_resamples must be at least 1, got {n_resamples}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be a fraction in (0, 1), got {confidence}: write 0.95 for 95 %")
    return (1 - confidence) / 2, (1 + confidence) / 2


def _draws(rng: np.random.Generator, n: int, n_resamples: int, width: int | None = None) -> Iterator[_Array]:
    """Blocks of shape (rows, n) with indices drawn with replacement; blocks of equal ``width`` have equal rows."""
    rows = max(1, _CHUNK // (width or n))
    for start in range(0, n_resamples, rows):
        yield rng.integers(0, n, (min(rows, n_resamples - start), n))
