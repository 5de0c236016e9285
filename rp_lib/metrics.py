"""Metrics: accuracy, OOD detection in six conventions, and calibration.

Every score is a confidence: higher means more in-distribution (ID). Every rate is a fraction in [0, 1], not a
percentage. Inputs are numpy arrays, torch tensors (any device and dtype) or plain sequences; all is computed in
float64, because float32 merges nearly saturated confidences into ties, which moves the threshold.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rp_lib.utils.arguments import checked
from rp_lib.utils.arrays import Array, check_array, labels_in_range, same_length
from rp_lib.utils.errors import UnknownName

CONVENTIONS: dict[str, str] = {
    "id-positive": "ID positive; largest threshold with TPR >= tpr on the full curve, accept score >= threshold; AP",
    "authors": "ID positive; threshold sorted(ID)[round((1 - tpr) n)], accept score > threshold; pooled error",
    "mcm": "ID positive; threshold whose recall is nearest tpr, above or below it; AP (MCM, LoCoOp, NegLabel)",
    "clipn": "ID positive; FPR interpolated linearly on the ROC curve; AP",
    "openood": "OOD positive; first TPR >= tpr on a curve with collinear points dropped; trapezoid (OpenOOD 1.5)",
    "pytorch-ood": "OOD positive; first TPR >= tpr on the full curve; trapezoid (pytorch-ood 0.4)",
}
TPR = 0.95  # at which the library reads FPR
OOD_METRICS = ("auroc", "fpr", "aupr_in", "aupr_out", "detection_error", "threshold")


def accuracy(logits_or_predictions: Any, labels: Any) -> float:
    """Compute the fraction of samples whose predicted class is the label.

    Args:
        logits_or_predictions: Shape (n, C), any monotone class scores (the first of tied maxima wins), or shape (n,),
            predicted class indices.
        labels: Shape (n,), class indices; with logits in 0 ... C - 1.

    Example:
        >>> accuracy([[2.0, 1.0], [0.0, 3.0]], [0, 0])
        0.5

    Raises:
        ValueError: Empty input, NaN, shapes that do not fit, or a label that is no column of the logits.
    """
    predictions = check_array(logits_or_predictions, "logits_or_predictions", ndim=(1, 2))
    labels = check_array(labels, "labels")
    same_length(predictions, labels)
    if predictions.ndim == 2:
        labels_in_range(labels, predictions.shape[1])
        predictions = predictions.argmax(axis=1)
    elif (predictions % 1).any() or (labels % 1).any():
        raise ValueError("predictions and labels must be whole numbers of classes: pass scores with shape (n, C)")
    return float((predictions == labels).mean())


@checked
def ood_metrics(
    id_scores: Any, ood_scores: Any, *, tpr: float = TPR, convention: str = "id-positive"
) -> dict[str, float]:
    """Measure how well a score separates ID from OOD samples. Ties are handled exactly; +-inf is allowed, NaN is not.

    Args:
        id_scores: Shape (n,), scores of ID samples, higher = more ID.
        ood_scores: Shape (m,), scores of OOD samples.
        tpr: True-positive rate at which ``fpr`` is read, in (0, 1].
        convention: A key of :data:`CONVENTIONS`. Published FPR95 values differ because of it, so name it with
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

    Example:
        >>> ood_metrics([3.0, 2.0, 1.0], [2.5, 0.5], tpr=0.6)["fpr"]
        0.5

    Raises:
        ValueError: Empty or NaN scores, a wrong shape, or ``tpr`` outside (0, 1].
        UnknownName: The convention is not known.
    """
    check_convention(convention)
    return ood_metrics_of(check_array(id_scores, "id_scores"), check_array(ood_scores, "ood_scores"), tpr, convention)


@checked
def expected_calibration_error(probabilities: Any, labels: Any, *, bins: int = 15) -> float:
    """Compute the expected calibration error (Guo et al. 2017, arXiv 1706.04599, eq. 3), in [0, 1].

    Samples fall into equal-width bins (a, b] of their largest probability; the result is the mean over samples of
    their bin's |accuracy - mean confidence|.

    Args:
        probabilities: Shape (n, C), rows in [0, 1] that sum to one (after the softmax).
        labels: Shape (n,), class indices in 0 ... C - 1.
        bins: Number of bins, at least one.

    Example:
        >>> expected_calibration_error([[0.5, 0.5], [0.75, 0.25]], [1, 0], bins=2)
        0.375

    Raises:
        ValueError: Empty input, NaN, logits instead of probabilities, a wrong shape or label, or ``bins`` < 1.
    """
    index, gap = calibration_gaps(probabilities, labels, bins=bins)
    # |sum of gaps| = bin size * |accuracy - mean confidence|, so empty bins need no special case.
    return float(np.abs(np.bincount(index, weights=gap, minlength=bins)).sum() / len(gap))


def calibration_gaps(probabilities: Any, labels: Any, *, bins: int = 15) -> tuple[Array, Array]:
    """Return what the calibration error averages: int (n,) bins and float64 (n,) gaps correct - confidence.

    A resample of samples is a resample of these pairs, so bootstrapping needs the probabilities only once.
    """
    probabilities = check_array(probabilities, "probabilities", ndim=(2,))
    labels = check_array(labels, "labels")
    same_length(probabilities, labels)
    labels_in_range(labels, probabilities.shape[1])
    # The tolerance admits rows that were rounded to bfloat16.
    if probabilities.min() < 0 or probabilities.max() > 1.01 or np.abs(probabilities.sum(axis=1) - 1).max() > 0.02:
        raise ValueError("probabilities must be in [0, 1] with rows that sum to 1: apply softmax to logits first")
    confidence = probabilities.max(axis=1)
    gap = (probabilities.argmax(axis=1) == labels) - confidence
    # side="left" puts a confidence on an edge into the lower bin, as the paper's intervals (a, b] do.
    index = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], confidence, side="left")
    return index, gap


# Curves: `tp` and `fp` are the numbers of ID and OOD samples with score >= each distinct score, highest first. Counting
# at distinct scores makes every result independent of the order in which ties come.


def _curve(id_scores: Array, ood_scores: Array) -> tuple[Array, Array, Array]:
    """Sort distinct scores from high to low, with the ID and OOD samples accepted at each."""
    ascending, inverse = np.unique(np.concatenate([id_scores, ood_scores]), return_inverse=True)
    rank, levels = len(ascending) - 1 - inverse.reshape(-1), len(ascending)
    tp, fp = (np.bincount(r, minlength=levels).cumsum() for r in (rank[: len(id_scores)], rank[len(id_scores) :]))
    return ascending[::-1], tp, fp


def _rejected(counts: Array) -> Array:
    """Samples with score <= each distinct score, lowest first: the curve's counts when OOD is the positive class."""
    return (counts[-1] - np.r_[0, counts[:-1]])[::-1]


def _first_reaching(tp: Array, fp: Array, thresholds: Array, tpr: float) -> tuple[float, float]:
    """FPR and threshold of the first (strictest) point whose TPR is at least ``tpr``."""
    # Compared as quotients, not as counts with tpr * n: 7 / 100 >= 0.07 holds in floats, 7 >= 0.07 * 100 does not.
    first = np.argmax(tp / tp[-1] >= tpr)
    return fp[first] / fp[-1], thresholds[first]


def _aupr(tp: Array, fp: Array, start: float | None) -> float:
    """Average precision, or, with ``start``, the trapezoid from (recall 0, precision ``start``)."""
    precision = tp / (tp + fp)  # each distinct score accepts at least one sample
    if start is not None:
        precision = (precision + np.r_[start, precision[:-1]]) / 2
    return (np.diff(tp, prepend=0) * precision).sum() / tp[-1]


def ood_metrics_of(id_scores: Array, ood_scores: Array, tpr: float, convention: str) -> dict[str, float]:
    """:func:`ood_metrics` of float64 arrays and options that were checked before."""
    thresholds, tp, fp = _curve(id_scores, ood_scores)
    n, m = int(tp[-1]), int(fp[-1])
    # AUROC: for each OOD score, the ID scores above it, plus half of those tied with it.
    auroc = (np.diff(fp, prepend=0) * (tp - np.diff(tp, prepend=0) / 2)).sum() / (n * m)
    fpr, threshold = _operating_point(id_scores, ood_scores, thresholds, tp, fp, tpr, convention)
    start = {"authors": 0.0, "openood": 1.0, "pytorch-ood": 1.0}.get(convention)
    aupr_in, aupr_out = _aupr(tp, fp, start), _aupr(_rejected(fp), _rejected(tp), start)
    # Detection error: the smallest mean of both error rates over all thresholds.
    error = 0.5 * (1 - tp / n + fp / m).min()
    if convention == "authors":
        error = min((n - tp + fp).min(), n) / (n + m)  # accepting nothing, no point of the curve, has n errors
    return {k: float(v) for k, v in zip(OOD_METRICS, (auroc, fpr, aupr_in, aupr_out, error, threshold), strict=True)}


def _operating_point(
    id_scores: Array, ood_scores: Array, thresholds: Array, tp: Array, fp: Array, tpr: float, convention: str
) -> tuple[float, float]:
    """FPR and threshold as the named code computes them, its quirks included."""
    n, m = int(tp[-1]), int(fp[-1])
    if convention == "authors":
        # The code writes 0.05 * n; 1 - 0.95 is a bit more than 0.05 in floats, which would flip round() at halves.
        index = min(round(round(1 - tpr, 12) * n), n - 1)
        threshold = np.sort(id_scores)[index]
        return (ood_scores > threshold).mean(), threshold
    if convention == "mcm":
        # From full recall downwards; argmin takes the first of equals, so the higher recall, or the larger FPR.
        down = slice(int(tp.searchsorted(n)), None, -1)
        nearest = np.argmin(np.abs(tp[down] / n - tpr))
        return fp[down][nearest] / m, thresholds[down][nearest]
    if convention == "clipn":
        # As scipy's interp1d: where the curve is flat at tpr, the largest FPR. (Dropped points lie on its lines.)
        fpr = np.interp(tpr, np.r_[0, tp] / n, np.r_[0, fp] / m)
        return fpr, _first_reaching(tp, fp, thresholds, tpr)[1]
    if convention in ("openood", "pytorch-ood"):
        tp, fp, thresholds = _rejected(fp), _rejected(tp), thresholds[::-1]
        if convention == "openood" and len(tp) > 2:
            # scikit-learn's drop_intermediate=True, OpenOOD's default: this may skip the first TPR >= tpr.
            keep = np.r_[True, (np.diff(tp, 2) != 0) | (np.diff(fp, 2) != 0), True]
            tp, fp, thresholds = tp[keep], fp[keep], thresholds[keep]
    return _first_reaching(tp, fp, thresholds, tpr)


def check_convention(convention: str) -> None:
    """Raise unless a convention is known."""
    if convention not in CONVENTIONS:
        raise UnknownName("convention", str(convention), CONVENTIONS)
