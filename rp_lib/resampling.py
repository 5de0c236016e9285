"""Bootstrap by weights: how often each picture was drawn, for all resamples at once.

A resample is a row of counts. ID scores are sorted once, and every resample's AUROC and FPR follow from cumulative
counts, so that methods and detectors can be judged on the very same resamples, in milliseconds. Counts are float32,
column after column in memory: sums over pictures are then sums of long rows.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from rp_lib.arrays import Array

# Entries of one block of counts, 64 MB of float32: bounds memory for large image sets.
BLOCK = 2**24
# Up to here float32 holds every whole number.
EXACT = 2**24


def bootstrap_weights(rng: np.random.Generator, n: int, n_resamples: int) -> Array:
    """float32 (n_resamples, n), in Fortran order: how often each of ``n`` things is drawn in ``n`` draws."""
    drawn = rng.integers(0, n, (n_resamples, n)) * n_resamples + np.arange(n_resamples)[:, None]
    return np.bincount(drawn.ravel(), minlength=n * n_resamples).reshape(n, n_resamples).astype(np.float32).T


def with_the_data(weights: Array) -> Array:
    """float32 (1 + r, n), in Fortran order: a first row of ones, the data as they are, then the resamples (r, n)."""
    return np.concatenate([np.ones((weights.shape[1], 1), np.float32), weights.T], axis=1).T


@functools.lru_cache(maxsize=32)
def kept_weights(seed: int, n: int, n_resamples: int) -> Array:
    """float32 (1 + n_resamples, n): the data as they are, then the resamples that ``bootstrap_ci`` draws for a seed.

    Those of the last calls are kept, as all methods of a seed are judged on the same ones. Read only.
    """
    weights = with_the_data(bootstrap_weights(np.random.default_rng(seed), n, n_resamples))
    weights.flags.writeable = False
    return weights


def of_members(weights: Array, ids: Array) -> Array:
    """float32 (r, n), in Fortran order: the count of each of ``n`` pictures, from those of their clusters (r, k).

    Args:
        weights: (r, k). ids: int (n,), the cluster of each picture, 0 ... k - 1.
    """
    return np.take(np.asarray(weights, np.float32).T, ids, axis=0).T


def auroc_and_fpr(
    id_scores: Array, ood_scores: Array, id_weights: Array, ood_weights: Array, tpr: float
) -> tuple[Array, Array]:
    """AUROC and FPR at ``tpr`` of every resample, in the convention ``id-positive``.

    The same numbers as :func:`rp_lib.metrics.ood_metrics` of the samples written out.

    Args:
        id_scores: float64 (n,), higher = more ID. ood_scores: float64 (m,).
        id_weights: (r, n) and ood_weights: (r, m), how often each is drawn; no row all zero.
        tpr: in (0, 1].

    Returns:
        Two float64 (r,) arrays of fractions.
    """
    return auroc_and_fpr_of_sets(id_scores, {"": ood_scores}, id_weights, {"": ood_weights}, tpr)[""]


def auroc_and_fpr_of_sets(
    id_scores: Array, ood_scores: Mapping[str, Array], id_weights: Array, ood_weights: Mapping[str, Array], tpr: float
) -> dict[str, tuple[Array, Array]]:
    """:func:`auroc_and_fpr` of several OOD sets against the same resamples of the same ID scores, by name."""
    found = {name: (np.empty(len(id_weights)), np.empty(len(id_weights))) for name in ood_scores}
    descending = np.argsort(-id_scores, kind="stable")
    ranked = id_scores[descending]
    # How many ID scores are above each OOD score, and how many are not below it: ties count half.
    above = {name: len(ranked) - np.searchsorted(ranked[::-1], s, "right") for name, s in ood_scores.items()}
    least = {name: len(ranked) - np.searchsorted(ranked[::-1], s, "left") for name, s in ood_scores.items()}
    rows = max(1, BLOCK // max(len(id_scores), *(len(s) for s in ood_scores.values())))
    for start in range(0, len(id_weights), rows):
        block = slice(start, start + rows)
        counts = np.zeros((1 + len(ranked), len(id_weights[block])), np.float32)
        np.take(np.asarray(id_weights[block], np.float32).T, descending, axis=0, out=counts[1:])
        for before, row in itertools.pairwise(counts):  # np.cumsum runs down each column: far slower
            row += before
        n = counts[-1].astype(np.float64)
        # The strictest threshold that accepts enough is an ID score that was drawn; ties with it are accepted too.
        first = _first(counts[1:], n, tpr)
        for name in ood_scores:
            drawn = np.asarray(ood_weights[name][block], np.float32).T
            m = drawn.sum(0, dtype=np.float64)
            won = counts[above[name]]
            won += won if (above[name] == least[name]).all() else counts[least[name]]
            whole = np.float32 if 2 * n.max() * m.max() <= EXACT else np.float64
            auroc, fpr = found[name]
            auroc[block] = np.einsum("mr,mr->r", drawn, won, dtype=whole) / (2 * n * m)
            accepted = np.less_equal(above[name][:, None], first, out=won)
            fpr[block] = np.einsum("mr,mr->r", drawn, accepted, dtype=whole) / m
    return found


def _first(counts: Array, n: Array, tpr: float) -> Array:
    """The first row of running sums (k, r) that reaches the share ``tpr`` of ``n`` (r,), by column; by bisection."""
    columns = np.arange(counts.shape[1])
    low, high = np.zeros(len(columns), np.int64), np.full(len(columns), len(counts) - 1)
    while (low < high).any():
        middle = (low + high) // 2
        enough = counts[middle, columns] / n >= tpr
        low, high = np.where(enough, low, middle + 1), np.where(enough, middle, high)
    return low


Block = tuple[slice, np.ndarray, dict[int, np.ndarray]]


def shared_draws(seed: int, n_resamples: int, size: int, sizes: tuple[int | None, ...]) -> Iterable[Block]:
    """Counts of test pictures and of other sets: rows, float32 (rows, size), and float32 (rows, n) by position.

    Args:
        seed: of the draws; those of the last few calls are kept, as all methods of a seed are judged on the same ones.
        n_resamples: rows in all. size: number of test pictures. sizes: of each set; None for those derived from
            test pictures, whose counts are theirs.
    """
    entries = n_resamples * (size + sum(n or 0 for n in sizes))
    return (_kept_draws if entries <= BLOCK else _made_draws)(seed, n_resamples, size, sizes)


def _made_draws(seed: int, n_resamples: int, size: int, sizes: tuple[int | None, ...]) -> Iterator[Block]:
    rng = np.random.default_rng(seed)
    rows = max(1, BLOCK // (size + sum(n or 0 for n in sizes)))
    for start in range(0, n_resamples, rows):
        block = slice(start, min(start + rows, n_resamples))
        shared = np.empty((block.stop - start, size), np.float32)
        alone = {k: np.empty((len(shared), n), np.float32) for k, n in enumerate(sizes) if n is not None}
        for row in range(len(shared)):
            shared[row] = np.bincount(rng.integers(0, size, size), minlength=size)
            for counts in alone.values():
                n = counts.shape[1]
                counts[row] = np.bincount(rng.integers(0, n, n), minlength=n)
        yield block, shared, alone


@functools.lru_cache(maxsize=4)
def _kept_draws(seed: int, n_resamples: int, size: int, sizes: tuple[int | None, ...]) -> tuple[Block, ...]:
    return tuple(_made_draws(seed, n_resamples, size, sizes))
