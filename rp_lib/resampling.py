"""Bootstrap by weights: how often each picture was drawn, for all resamples at once.

A resample is a row of counts. Scores are sorted once, and every resample's AUROC and FPR follow from cumulative counts,
so that methods and detectors can be judged on the very same resamples, in milliseconds.
"""

from __future__ import annotations

import numpy as np

from rp_lib.arrays import Array


def bootstrap_weights(rng: np.random.Generator, n: int, n_resamples: int) -> Array:
    """int32 (n_resamples, n): how often each of ``n`` things is drawn in ``n`` draws with replacement."""
    drawn = rng.integers(0, n, (n_resamples, n)) + n * np.arange(n_resamples)[:, None]
    return np.bincount(drawn.ravel(), minlength=n * n_resamples).reshape(n_resamples, n).astype(np.int32)


def auroc_and_fpr(
    id_scores: Array, ood_scores: Array, id_weights: Array, ood_weights: Array, tpr: float
) -> tuple[Array, Array]:
    """AUROC and FPR at ``tpr`` of every resample, in the convention ``id-positive``.

    The same numbers as :func:`rp_lib.metrics.ood_metrics` of the samples written out.

    Args:
        id_scores: float64 (n,), higher = more ID. ood_scores: float64 (m,).
        id_weights: int (r, n) and ood_weights: int (r, m), how often each is drawn; no row all zero.
        tpr: in (0, 1].

    Returns:
        Two float64 (r,) arrays of fractions.
    """
    descending, ascending = np.argsort(-id_scores, kind="stable"), np.argsort(ood_scores, kind="stable")
    drawn_id, ranked = id_weights[:, descending], id_scores[descending]
    below = np.zeros((len(ood_weights), len(ood_scores) + 1), np.int64)
    np.cumsum(ood_weights[:, ascending], axis=1, out=below[:, 1:])
    n, m = drawn_id.sum(1), below[:, -1]
    lower, upper = (np.searchsorted(ood_scores[ascending], ranked, side) for side in ("left", "right"))
    auroc = (drawn_id * (below[:, lower] + below[:, upper])).sum(1) / (2 * n * m)
    # The strictest threshold that accepts enough is an ID score that was drawn; ties with it are accepted too.
    first = np.argmax(drawn_id.cumsum(1) / n[:, None] >= tpr, axis=1)
    accepted = m - below[np.arange(len(m)), lower[first]]
    return auroc, accepted / m
