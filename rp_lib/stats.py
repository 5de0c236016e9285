"""Several independent computations of numbers at once, in threads of one process."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from statistics import NormalDist
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from rp_lib.metrics import OOD_METRICS, check_ood_options, ood_metrics_of
from rp_lib.utils.arrays import Array, check_array, same_length
from rp_lib.utils.errors import UnknownName

# Each worker holds some blocks of resamples (see :data:`rp_lib.stats.BLOCK`): more of them cost memory.
MOST = 4


T = TypeVar("T")
R = TypeVar("R")


def in_threads(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """``[function(item) for item in items]``, as many at once as there are cores, at most :data:`MOST`.

    Numpy and torch leave Python's lock while they compute. Their own kernels run on one thread each meanwhile: cores
    are then not shared twice, and sums come out the same on any number of cores.
    """
    items = list(items)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    before = torch.get_num_threads()
    with threadpool_limits(1), ThreadPoolExecutor(max(1, min(cores, MOST, len(items)))) as pool:
        torch.set_num_threads(1)
        try:
            return list(pool.map(function, items))
        finally:
            torch.set_num_threads(before)


# Confidence intervals: Wilson's for proportions, the bootstrap for everything else.

_CHUNK = 500_000  # elements per block of resamples: fits the cache, and bounds memory for any number of resamples


class Interval(NamedTuple):
    """An estimate ``value`` with its confidence interval from ``low`` to ``high``, in the unit of the value."""

    value: float
    low: float
    high: float


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
    given = values_or_arrays if several else (values_or_arrays,)
    arrays = [check_array(a, "values_or_arrays", ndim=None) for a in given]
    for array in arrays[1:]:
        same_length(arrays[0], array)
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
    """Percentile bootstrap intervals of :func:`rp_lib.metrics.ood_metrics`; each side is resampled on its own.

    Args:
        id_scores: shape (n,), higher = more ID.
        ood_scores: shape (m,).
        metric: a key of :func:`rp_lib.metrics.ood_metrics`, or several.
        tpr: as in :func:`rp_lib.metrics.ood_metrics`; the threshold is chosen anew in each resample.
        convention: as in :func:`rp_lib.metrics.ood_metrics`. Some 0.3 ms per resample of 1,600 + 1,000 scores.
        n_resamples: number of resamples, at least one.
        confidence: coverage aimed at, in (0, 1).
        seed: same seed, same intervals. All metrics and conventions see the same resamples.

    Returns:
        One :class:`Interval` for each metric asked for.

    Raises:
        ValueError: as :func:`rp_lib.metrics.ood_metrics`, or an option out of its range.
        UnknownName: the convention or the metric is not known.
    """
    options = {"tpr": tpr, "convention": convention, "n_resamples": n_resamples, "confidence": confidence, "seed": seed}
    return bootstrap_ood_sets_ci(id_scores, {"ood": ood_scores}, metric, **options)["ood"]


def bootstrap_ood_sets_ci(
    id_scores: Any,
    ood_sets: Mapping[str, Any],
    metric: str | Sequence[str] = "auroc",
    *,
    mean: str | None = None,
    tpr: float = 0.95,
    convention: str = "id-positive",
    n_resamples: int = 200,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, dict[str, Interval]]:
    """As :func:`bootstrap_ood_ci` for several OOD sets against the same ID scores.

    The sets share each resample of the ID scores, so that the interval of their mean is right: errors that come
    from the ID side do not average out.

    Args:
        id_scores: shape (n,). ood_sets: by name, each of shape (m,).
        mean: also return, under this name, the mean over the sets, each set weighing the same.
        metric, tpr, convention, n_resamples, confidence, seed: as in :func:`bootstrap_ood_ci`.

    Returns:
        Intervals by set and metric.
    """
    check_ood_options(tpr, convention)
    quantiles = _quantiles(n_resamples, confidence)
    names = (metric,) if isinstance(metric, str) else tuple(metric)
    for name in names:
        if name not in OOD_METRICS:
            raise UnknownName("metric", str(name), OOD_METRICS)
    if not ood_sets:
        raise ValueError("there is no OOD set: pass at least one")
    id_scores = check_array(id_scores, "id_scores")
    sets = {name: check_array(scores, f"ood_scores of {name}") for name, scores in ood_sets.items()}

    def measure(id_sample: Array, samples: Iterable[Array]) -> Array:
        rows = (ood_metrics_of(id_sample, sample, tpr, convention) for sample in samples)
        return np.array([[row[name] for name in names] for row in rows])

    value = measure(id_scores, sets.values())
    # A generator for each side, so that the resamples of one do not depend on the size of the other.
    id_rng, *ood_rngs = np.random.default_rng(seed).spawn(1 + len(sets))
    resampled = np.empty((n_resamples, *value.shape))
    for row in range(n_resamples):
        # Sorting anew each time is as fast as weighting one sorted curve: both are bound by passes over memory.
        id_sample = id_scores[id_rng.integers(0, len(id_scores), len(id_scores))]
        drawn = (s[rng.integers(0, len(s), len(s))] for s, rng in zip(sets.values(), ood_rngs, strict=True))
        resampled[row] = measure(id_sample, drawn)
    low, high = np.quantile(resampled, quantiles, axis=0)
    found = {s: _row(names, value[i], low[i], high[i]) for i, s in enumerate(sets)}
    if mean is not None:
        found[mean] = _row(names, value.mean(0), *np.quantile(resampled.mean(1), quantiles, axis=0))
    return found


def _row(names: Sequence[str], value: Array, low: Array, high: Array) -> dict[str, Interval]:
    return {n: Interval(*map(float, numbers)) for n, *numbers in zip(names, value, low, high, strict=True)}


def _groups(clusters: Any, n: int) -> Array:
    ids = check_array(clusters, "clusters")
    same_length(np.empty(n), ids)
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


def _draws(rng: np.random.Generator, n: int, n_resamples: int) -> Iterator[Array]:
    """Blocks of shape (rows, n) of indices drawn with replacement, ``n_resamples`` rows in all."""
    rows = max(1, _CHUNK // n)
    for start in range(0, n_resamples, rows):
        yield rng.integers(0, n, (min(rows, n_resamples - start), n))


# Bootstrap by weights: how often each picture was drawn, for all resamples at once.
#
# A resample is a row of counts. ID scores are sorted once, and every resample's AUROC and FPR follow from cumulative
# counts, so that methods and detectors can be judged on the very same resamples, in milliseconds. Counts are float32,
# column after column in memory: sums over pictures are then sums of long rows.

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
