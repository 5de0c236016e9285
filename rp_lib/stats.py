"""Confidence intervals, the resamples behind them, and the correction of p-values.

Every bootstrap interval comes from :class:`Resamples`: counts of how often each picture, designer or seed is drawn.
Statistics are then weighted sums, so all methods, detectors and metrics share the same resamples, in milliseconds.

What intervals of differences do between methods that are equally good is simulated in ``tests/test_stats.py``.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from rp_lib.metrics import OOD_METRICS, TPR, check_convention, ood_metrics_of
from rp_lib.utils.arrays import Array, check_array, same_length
from rp_lib.utils.errors import RPLibError, UnknownName

CONFIDENCE = 0.95
TAILS = ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)  # the quantiles that enclose it
MEAN_RESAMPLES, OOD_RESAMPLES = 1000, 200  # of means, and of OOD metrics, where one may take 0.3 ms
BLOCK = 2**24  # entries of one block of counts, 64 MB of float32: bounds memory for large image sets
KEPT = 2**22  # resamples of at most this many entries are kept for the next method
EXACT = 2**24  # up to here float32 holds every whole number
WORKERS = 4  # each worker holds some blocks of counts: more of them cost memory

T = TypeVar("T")
R = TypeVar("R")


class Interval(NamedTuple):
    """An estimate ``value`` with its 95 % confidence interval from ``low`` to ``high``, in the unit of the value.

    Example:
        >>> Interval.of_resamples(np.array([0.5, 0.25, 0.25, 0.75, 0.75]))
        Interval(value=0.5, low=0.25, high=0.75)
    """

    value: float
    low: float
    high: float

    @classmethod
    def of_resamples(cls, numbers: Array, n: int | None = None) -> Interval:
        """Read the percentile interval (Efron and Tibshirani 1993, ch. 13) off resampled numbers.

        Args:
            numbers: Shape (1 + r,), the number of the data, then those of r resamples, as :class:`Resamples` has them.
            n: Of fractions, the number of pictures. All resamples of a perfect result are perfect, so an interval at 0
                or 1 that would have no width is Wilson's for n pictures.
        """
        value, low, high = map(float, (numbers[0], *np.quantile(numbers[1:], TAILS)))
        return wilson_interval(round(value) * n, n) if n and value == low == high in (0, 1) else cls(value, low, high)


def as_percent(value: float, low: float, high: float) -> str:
    """Write a fraction in percent with half of its interval, or with both ends where that would leave 0 to 100 %.

    Example:
        >>> as_percent(0.9, 0.88, 0.92), as_percent(1.0, 0.676, 1.0)
        ('90.0 ± 2.0', '100.0 [67.6, 100.0]')
    """
    half = (high - low) / 2
    if half != half:  # no interval
        return f"{100 * value:.1f}"
    if value - half < -5e-4 or value + half > 1 + 5e-4:
        return f"{100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
    return f"{100 * value:.1f} ± {100 * half:.1f}"


def wilson_interval(successes: int, n: int) -> Interval:
    """Return Wilson's (1927) 95 % interval of a proportion, such as the accuracy of one run; sound near 0 and 1 too.

    Args:
        successes: Number of successes, 0 ... n.
        n: Number of independent trials, at least one.

    Raises:
        ValueError: An argument is out of its range.

    Example:
        >>> [round(float(x), 3) for x in wilson_interval(90, 100)]
        [0.9, 0.826, 0.945]
    """
    from scipy.stats import binomtest

    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"need n >= 1 and 0 <= successes <= n, got successes={successes}, n={n}")
    low, high = binomtest(successes, n).proportion_ci(CONFIDENCE, method="wilson")
    return Interval(successes / n, float(low), float(high))


@dataclass(frozen=True, eq=False)
class Resamples:
    """How often each of n units is drawn, in the data as they are and in r bootstrap resamples.

    A unit is what is drawn as one: a picture, a cluster of pictures (those of one designer), or a training seed.

    Attributes:
        weights: float32 (1 + r, n) counts, in Fortran order and read-only. The first row is ones: the data as they are.

    Example:
        >>> draws = Resamples.draw(4, n_resamples=1000, seed=0)
        >>> draws.weights[:2].tolist()
        [[1.0, 1.0, 1.0, 1.0], [0.0, 1.0, 2.0, 1.0]]
        >>> Interval.of_resamples(draws.mean(np.array([1, 0, 1, 1])))
        Interval(value=0.75, low=0.25, high=1.0)
    """

    weights: Array

    @classmethod
    def draw(cls, n: int, n_resamples: int, seed: int | tuple[int, ...], stream: tuple[int, ...] = ()) -> Resamples:
        """Draw n of n units with replacement, ``n_resamples`` times.

        Args:
            n: Number of units, at least one.
            n_resamples: Number of resamples, at least one.
            seed: Same seed, same draws. Small ones are kept, because all methods of a seed are evaluated on them.
            stream: Separates several draws of one seed, as numpy's ``spawn_key`` does.
        """
        if n_resamples < 1:
            raise ValueError(f"n_resamples must be at least 1, got {n_resamples}")
        return next(cls.draw_in_blocks(1 + n_resamples, n, n_resamples, seed, stream))

    @classmethod
    def draw_in_blocks(
        cls, rows: int, n: int, n_resamples: int, seed: int | tuple[int, ...], stream: tuple[int, ...] = ()
    ) -> Iterator[Resamples]:
        """Yield what :meth:`draw` returns as blocks of ``rows`` rows, so that memory is bounded."""
        if n * (1 + n_resamples) > KEPT:
            yield from map(cls, _stream_weights(rows, n, n_resamples, seed, stream))
            return
        weights = _kept_weights(n, n_resamples, seed, stream)
        for start in range(0, len(weights), rows):
            yield cls(weights if rows >= len(weights) else weights[start : start + rows])

    @classmethod
    def halves(cls, n: int, n_resamples: int, seed: int) -> Resamples:
        """Draw n // 2 of n units without replacement, for a statistic that a picture drawn twice would bias.

        The delete-half jackknife (Efron and Tibshirani 1993, ch. 11): of a mean, the variance over such halves is
        (1 - 1/2) s^2 / (n / 2) = s^2 / n, the squared standard error of the mean of all n.
        """
        half = np.zeros((n_resamples, n), np.float32)
        half[:, : n // 2] = 1
        drawn = np.random.default_rng(seed).permuted(half, axis=1)
        return cls(np.concatenate([np.ones((1, n), np.float32), drawn]))

    def of_members(self, ids: Array) -> Resamples:
        """Count each picture as often as its cluster is drawn.

        Args:
            ids: int (n,), the cluster of each picture, a column of ``weights``.
        """
        return Resamples(np.take(self.weights.T, ids, axis=0).T)

    def mean(self, values: Array) -> Array:
        """Compute the mean of the drawn values; 0 in a resample that draws none of them.

        Args:
            values: Shape (n,) or (n, k), numbers or booleans of the n units.

        Returns:
            float64 (1 + r,) or (1 + r, k).
        """
        return self.ratio(values, np.ones(len(values)))

    def ratio(self, sums: Array, sizes: Array) -> Array:
        """Compute the mean over pictures, where unit i holds ``sizes[i]`` pictures with sum ``sums[i]``.

        Args:
            sums: Shape (n,) or (n, k).
            sizes: Shape (n,), whole numbers.

        Returns:
            float64 (1 + r,) or (1 + r, k); 0 in a resample that draws no picture.
        """
        # Float32 products of whole numbers are exact and take half the time of float64.
        whole = sums.dtype.kind in "biu" and self.weights.shape[1] * max(1, int(np.abs(sums).max())) <= EXACT
        total = (self.weights @ sums.astype(np.float32 if whole else np.float64)).astype(np.float64)
        drawn = np.maximum(1, (self.weights @ sizes.astype(np.float32)).astype(np.float64))
        return total / (drawn if sums.ndim == 1 else drawn[:, None])

    def apply(self, statistic: Callable[[Array], float]) -> Array:
        """Compute what is no mean, resample by resample: float64 (1 + r,).

        Args:
            statistic: Of int64 (m,), the positions of the drawn units, each as often as it is drawn.
        """
        units = np.arange(self.weights.shape[1])
        return np.array(in_threads(lambda counts: statistic(units.repeat(counts.astype(int))), self.weights))


def _stream_weights(
    rows: int, n: int, n_resamples: int, seed: int | tuple[int, ...], stream: tuple[int, ...]
) -> Iterator[Array]:
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=stream))
    for start in range(0, 1 + n_resamples, rows):
        # One row a unit: sums over units are then sums of long rows.
        counts = np.ones((n, min(rows, 1 + n_resamples - start)), np.float32)
        step = max(1, BLOCK // n)
        for first in range(int(start == 0), counts.shape[1], step):
            r = min(step, counts.shape[1] - first)
            drawn = rng.integers(0, n, (r, n)) * r + np.arange(r)[:, None]  # (r, n), cells of the block of counts
            counts[:, first : first + r] = np.bincount(drawn.ravel(), minlength=n * r).reshape(n, r)
        counts.flags.writeable = False
        yield counts.T


@functools.lru_cache(maxsize=16)
def _kept_weights(n: int, n_resamples: int, seed: int | tuple[int, ...], stream: tuple[int, ...]) -> Array:
    return next(_stream_weights(1 + n_resamples, n, n_resamples, seed, stream))


class Design(NamedTuple):
    """Say how well the spread between clusters is known for a number that is a mean over image sets.

    Attributes:
        inflation: What the variance of resamples is multiplied by: G clusters of one size spread G / (G - 1) times as
            much as their resamples do.
        df: Degrees of freedom of that variance, G - 1 for G clusters of one size.

    Example:
        >>> Design.of([(1.0, np.array([0, 0, 1, 1, 2, 2]))])
        Design(inflation=1.5, df=2.0)
    """

    inflation: float = 1.0
    df: float = np.inf

    @classmethod
    def of(cls, pools: Iterable[tuple[float, Array]]) -> Design:
        """Combine pools of clusters that are drawn independently, by Satterthwaite's (1946) formula.

        Clusters of unequal sizes count as fewer of one size (Kish 1965), and all pools as equally varied.

        Args:
            pools: Weight of the pool in the mean, and int (n,), the cluster of each of its images.
        """
        weights, sizes = zip(*((w, np.unique(ids, return_counts=True)[1]) for w, ids in pools), strict=True)
        clusters = np.array([n.sum() ** 2 / np.square(n).sum() for n in sizes])
        share = np.square(weights) / clusters
        share = share / share.sum()
        df = np.maximum(clusters - 1, 1e-9)
        return cls(float(1 + (share / df).sum()), float(1 / (np.square(share) / df).sum()))


def crossed_interval(numbers: Array, designs: Sequence[Design]) -> tuple[Array, Array, Array, Array]:
    """Compute means over seeds with 95 % intervals over clusters and training runs, and p-values for zero.

    The variance of a mean over crossed clusters and seeds is that between clusters plus that between seeds, less what
    both hold (Owen 2007; Cameron, Gelbach and Miller 2011). Each part has few degrees of freedom and its own t
    quantile, ``half^2 = t_clusters^2 V_clusters + t_seeds^2 V_seeds`` (Banerjee 1960), which errs on the safe side; one
    t of Satterthwaite's degrees of freedom does not. With one seed nothing is known of others.

    Args:
        numbers: float64 (s, 1 + r, ..., a), for s seeds: the number of the data, then those of r resamples of clusters,
            the same ones for every seed.
        designs: Of each of the a numbers.

    Returns:
        value, low, high, p: float64 (..., a).

    Example:
        >>> drawn = Resamples.draw(4, 1000, seed=0).mean(np.array([1, 2, 3, 4]))  # (1001,)
        >>> value, low, high, p = crossed_interval(drawn[None, :, None], [Design.of([(1.0, np.arange(4))])])
        >>> [round(float(x[0]), 2) for x in (value, low, high, p)]
        [2.5, 0.51, 4.49, 0.03]
    """
    from scipy.special import stdtrit

    inflation, df = np.array([(d.inflation, d.df) for d in designs]).T
    seeds, value, drawn = len(numbers), numbers[:, 0].mean(0), numbers[:, 1:]
    mean = drawn.mean(0)
    clusters, runs, both = inflation * mean.var(0, ddof=1), np.zeros_like(value), 0.0
    if seeds > 1:
        runs = numbers[:, 0].var(0, ddof=1) / seeds
        both = inflation * (drawn - mean).var(1, ddof=1).sum(0) / (seeds * (seeds - 1))
    clusters = np.maximum(clusters + runs - both, np.maximum(clusters, runs)) - runs

    def half(p: Any) -> Array:
        t_clusters, t_seeds = (stdtrit(np.minimum(d, 1e6), 1 - np.asarray(p) / 2) for d in (df, max(seeds - 1, 1)))
        return np.sqrt(t_clusters**2 * clusters + t_seeds**2 * runs)

    # The p-value is the error at which the interval ends at zero; by bisection.
    low, high = np.zeros_like(value), np.ones_like(value)
    for _ in range(40):
        middle = (low + high) / 2
        inside = half(middle) >= np.abs(value)
        low, high = np.where(inside, middle, low), np.where(inside, high, middle)
    margin = half(1 - CONFIDENCE)
    return value, value - margin, value + margin, high


def resample_sets(
    units: Mapping[str, Array], shared: Collection[str], n_resamples: int, seed: tuple[int, ...]
) -> dict[str, Resamples]:
    """Draw the units of several image sets; sets made of the same pictures share one draw.

    Args:
        units: By image set, int (n,), the picture or designer of each image.
        shared: Names of the sets that share their units: the test set and those derived from it.
        n_resamples: Number of resamples, at least one.
        seed: Same seed, same draws.

    Returns:
        By image set, how often each of its n images counts.

    Raises:
        RPLibError: All images of a set are one unit.
    """
    return next(resample_blocks(1 + n_resamples, units, shared, n_resamples, seed))


def resample_blocks(
    rows: int, units: Mapping[str, Array], shared: Collection[str], n_resamples: int, seed: tuple[int, ...]
) -> Iterator[dict[str, Resamples]]:
    """Yield what :func:`resample_sets` returns as blocks of ``rows`` rows, so that memory is bounded."""
    known = np.unique(np.concatenate([units[name] for name in shared])) if shared else np.empty(0, int)
    streams: list[Iterator[Resamples]] = []
    members: list[tuple[str, int, Array]] = []  # name of a set, which stream draws its units, and the units
    together = None
    for name, keys in units.items():
        own, ids = (known, np.searchsorted(known, keys)) if name in shared else np.unique(keys, return_inverse=True)
        if len(own) < 2:
            raise RPLibError(
                f"all images of {name!r} are one cluster, so nothing can be resampled: draw pictures, with "
                "clusters=\"sources\", or name their designers"
            )
        stream = together if name in shared else None
        if stream is None:
            stream = len(streams)
            streams.append(Resamples.draw_in_blocks(rows, len(own), n_resamples, (*seed, stream)))
        together = stream if name in shared else together
        members.append((name, stream, ids))
    for draws in zip(*streams, strict=True):
        yield {name: draws[stream].of_members(ids) for name, stream, ids in members}


def bootstrap_ci(values: Any, *, clusters: Any = None, seed: int = 0) -> Interval:
    """Compute a mean with its 95 % percentile bootstrap interval.

    Args:
        values: Shape (n,), numbers, say 0 and 1 for wrong and correct. It has no width if all are equal, unless they
            are 0 or 1: then it is Wilson's.
        clusters: Integers, shape (n,). Samples of one cluster (images made of one picture) are not independent, and
            an interval that ignores it is too narrow; so clusters are drawn.
        seed: Same seed, same interval.

    Raises:
        ValueError: Empty or NaN input, lengths that differ, or fewer than two clusters.

    Example:
        >>> bootstrap_ci([1, 2, 3, 4])
        Interval(value=2.5, low=1.5, high=3.5)
    """
    sums = check_array(values, "values")
    value, sizes = float(sums.mean()), np.ones(len(sums))
    if clusters is not None:
        ids = check_array(clusters, "clusters")
        same_length(sums, ids)
        known, group = np.unique(ids, return_inverse=True)
        if len(known) < 2:
            raise ValueError("all samples are in one cluster: the spread between clusters needs at least two")
        sums, sizes = np.bincount(group, sums), np.bincount(group)
    numbers = Resamples.draw(len(sums), MEAN_RESAMPLES, seed).ratio(sums, sizes)
    return Interval.of_resamples(numbers, len(sums))._replace(value=value)


def bootstrap_ood(
    id_scores: Any,
    ood_sets: Mapping[str, Any],
    metrics: Sequence[str] = ("auroc", "fpr"),
    *,
    mean: str = "mean",
    convention: str = "id-positive",
    n_resamples: int = OOD_RESAMPLES,
    seed: int = 0,
    sources: Sequence[Array] | None = None,
) -> dict[str, dict[str, Interval]]:
    """Compute OOD metrics of several sets and their mean, with 95 % percentile bootstrap intervals.

    All sets share each resample of the ID scores: errors that come from the ID side do not average out in the mean.

    Args:
        id_scores: Shape (n,), higher = more ID.
        ood_sets: By name, shape (m,).
        metrics: Keys of :func:`rp_lib.metrics.ood_metrics`.
        mean: Name of the mean over the sets, each set weighing the same.
        convention: As in :func:`rp_lib.metrics.ood_metrics`; each resample has its own threshold. AUROC and FPR alone,
            in the convention ``id-positive``, take milliseconds; all else some 0.3 ms per resample of 1,600 + 1,000
            scores.
        n_resamples: Number of resamples, at least one.
        seed: Same seed, same intervals. All metrics and conventions see the same resamples.
        sources: Which picture each score is of, int (n,), then int (m,) of each set; scores of one picture are drawn
            as one. None: each of its own.

    Returns:
        Intervals by set and metric.

    Raises:
        ValueError: As :func:`rp_lib.metrics.ood_metrics`, or an option out of its range.
        UnknownName: The convention or a metric is not known.
    """
    check_convention(convention)
    for name in metrics:
        if name not in OOD_METRICS:
            raise UnknownName("metric", str(name), OOD_METRICS)
    if not ood_sets:
        raise ValueError("there is no OOD set: pass at least one")
    sides = [check_array(id_scores, "id_scores")]
    sides += [check_array(scores, f"ood_scores of {name}") for name, scores in ood_sets.items()]
    ids = [np.unique(s, return_inverse=True)[1] for s in sources or [np.arange(len(scores)) for scores in sides]]
    pictures = [int(i.max()) + 1 for i in ids]
    draws = [Resamples.draw(n, n_resamples, seed, (k,)).of_members(ids[k]) for k, n in enumerate(pictures)]

    if convention == "id-positive" and set(metrics) <= {"auroc", "fpr"}:
        curves = auroc_and_fpr(sides[0], dict(enumerate(sides[1:])), draws[0], dict(enumerate(draws[1:])))
        numbers = np.stack([np.stack([pair[m == "fpr"] for m in metrics], 1) for pair in curves.values()], 1)
    else:
        numbers = np.empty((1 + n_resamples, len(ood_sets), len(metrics)))
        for row in range(1 + n_resamples):
            # The samples written out: sorting each is as fast as weighting one sorted curve.
            inside, *outside = (np.repeat(s, d.weights[row].astype(int)) for s, d in zip(sides, draws, strict=True))
            for k, sample in enumerate(outside):
                measured = ood_metrics_of(inside, sample, TPR, convention)
                numbers[row, k] = [measured[m] for m in metrics]
    numbers = np.concatenate([numbers, numbers.mean(1, keepdims=True)], 1)  # (1 + r, sets + 1, metrics)
    fewest = [min(pictures[0], n) for n in (*pictures[1:], min(pictures[1:]))]
    return {
        name: {
            m: Interval.of_resamples(numbers[:, k, j], None if m == "threshold" else fewest[k])
            for j, m in enumerate(metrics)
        }
        for k, name in enumerate((*ood_sets, mean))
    }


def calibration_error(index: Array, gap: Array, draws: Resamples) -> tuple[Interval, float]:
    """Compute the expected calibration error without its bias, and what a calibrated model would show.

    The plain error is a mean of absolute values, so that chance alone makes it positive: a perfectly calibrated model
    of this size shows the *floor*. With S_b the sum of gaps in bin b and e_b its chance error, as the resamples have
    it, the error that would be seen if all gaps were t times as large is ``sum_b |t S_b + e_b| / n``. The estimate is
    the one at the t whose expectation is the plain error, the interval's ends those whose 1 % and 99 % quantiles are;
    the interval holds 0 if a calibrated model could have shown as much. (Quantiles of 2.5 % would take the ratios of
    the gaps for known. These cover the truth in 93 to 98 % of simulations with 200 to 1,600 pictures.)

    Args:
        index: int (n,), the bin of each sample, of :func:`rp_lib.metrics.calibration_gaps`.
        gap: float64 (n,), whether it is correct minus its confidence.
        draws: Of the n samples; copies of one picture are drawn as one.

    Returns:
        The estimate with its 95 % interval, in [0, 1], and the floor.
    """
    by_bin = np.zeros((len(gap), index.max() + 1))
    by_bin[np.arange(len(gap)), index] = gap
    drawn = draws.ratio(by_bin, np.ones(len(gap)))  # (1 + r, bins), S_b / n
    gaps, chance = drawn[0], drawn[1:] - drawn[1:].mean(0)
    plain, floor = np.abs(gaps).sum(), np.abs(chance).sum(1).mean()
    if not plain:
        return wilson_interval(0, len(gap)), float(floor)
    factors = np.linspace(0, 2 + 4 * floor / plain, 201)
    shown = np.array([np.abs(t * gaps + chance).sum(1) for t in factors])  # (factors, r)
    curves = np.stack([shown.mean(1), *np.quantile(shown, (0.99, 0.01), axis=1)])
    found = [np.interp(plain, np.maximum.accumulate(curve), factors) * plain for curve in curves]
    return Interval(*(float(min(1, x)) for x in found)), float(floor)


def auroc_and_fpr(
    id_scores: Array,
    ood_scores: Mapping[Any, Array],
    id_draws: Resamples,
    ood_draws: Mapping[Any, Resamples],
) -> dict[Any, tuple[Array, Array]]:
    """Compute AUROC and FPR95 of the data and of every resample, in the convention ``id-positive``.

    The same numbers as :func:`rp_lib.metrics.ood_metrics` of the samples written out: ID scores are sorted once, and
    cumulative counts give every resample's curve.

    Args:
        id_scores: float64 (n,), higher = more ID.
        ood_scores: By set, float64 (m,).
        id_draws: Of the n ID scores; no row is all zero.
        ood_draws: By set, of its m scores.

    Returns:
        By set, two float64 (1 + r,) arrays of fractions.
    """
    rows = len(id_draws.weights)
    found = {name: (np.empty(rows), np.empty(rows)) for name in ood_scores}
    descending = np.argsort(-id_scores, kind="stable")
    ranked = id_scores[descending]
    # How many ID scores are above each OOD score, and how many are not below it: ties count half.
    above = {name: len(ranked) - np.searchsorted(ranked[::-1], s, "right") for name, s in ood_scores.items()}
    least = {name: len(ranked) - np.searchsorted(ranked[::-1], s, "left") for name, s in ood_scores.items()}
    step = max(1, BLOCK // max(len(id_scores), *(len(s) for s in ood_scores.values())))
    for start in range(0, rows, step):
        block = slice(start, start + step)
        # counts[k]: how many of the k highest ID scores each resample of the block drew.
        counts = np.zeros((1 + len(ranked), len(id_draws.weights[block])), np.float32)
        np.take(id_draws.weights[block].T, descending, axis=0, out=counts[1:])
        for before, row in itertools.pairwise(counts):  # np.cumsum runs down each column: far slower
            row += before
        n = counts[-1].astype(np.float64)
        # The strictest threshold that accepts enough is an ID score that was drawn; ties with it are accepted too.
        first = _first_row_reaching(counts[1:], n, TPR)
        for name in ood_scores:
            drawn = ood_draws[name].weights[block].T  # (m, rows)
            m = drawn.sum(0, dtype=np.float64)
            # AUROC: pairs in which the ID score is higher, plus half of the ties, as twice their number over 2 n m.
            won = counts[above[name]]
            won += won if (above[name] == least[name]).all() else counts[least[name]]
            exact = np.float32 if 2 * n.max() * m.max() <= EXACT else np.float64
            auroc, fpr = found[name]
            auroc[block] = np.einsum("mr,mr->r", drawn, won, dtype=exact) / (2 * n * m)
            # FPR: the drawn OOD scores that no more ID scores exceed than the threshold.
            accepted = np.less_equal(above[name][:, None], first, out=won)
            fpr[block] = np.einsum("mr,mr->r", drawn, accepted, dtype=exact) / m
    return found


def _first_row_reaching(counts: Array, n: Array, tpr: float) -> Array:
    """Find the first row of running sums (k, r) that reaches the share ``tpr`` of ``n`` (r,), by bisection."""
    columns = np.arange(counts.shape[1])
    low, high = np.zeros(len(columns), np.int64), np.full(len(columns), len(counts) - 1)
    while (low < high).any():
        middle = (low + high) // 2
        enough = counts[middle, columns] / n >= tpr
        low, high = np.where(enough, low, middle + 1), np.where(enough, middle, high)
    return low


def holm(p: Sequence[float] | Array) -> Array:
    """Correct a family of p-values, shape (m,), by Holm's (1979) step-down method, which controls the family's error.

    Raises:
        ValueError: No p-values, NaN, or one outside [0, 1].

    Example:
        >>> holm([0.01, 0.04, 0.03]).tolist()
        [0.03, 0.06, 0.06]
    """
    p = check_array(p, "p")
    if p.min() < 0 or p.max() > 1:
        raise ValueError("p-values must be in [0, 1]")
    order, m = np.argsort(p, kind="stable"), len(p)
    adjusted = np.empty(m)
    # The smallest counts m times, the next m - 1 times, ...; none falls below the one before it.
    adjusted[order] = np.minimum(1, np.maximum.accumulate((m - np.arange(m)) * p[order]))
    return adjusted


def in_threads(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """Compute ``[function(item) for item in items]``, as many at once as there are cores, at most :data:`WORKERS`.

    Numpy and torch leave Python's lock while they compute. Their own kernels run on one thread each meanwhile: cores
    are then not shared twice, and sums come out the same on any number of cores.
    """
    items = list(items)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    before = torch.get_num_threads()
    with threadpool_limits(1), ThreadPoolExecutor(max(1, min(cores, WORKERS, len(items)))) as pool:
        torch.set_num_threads(1)
        try:
            return list(pool.map(function, items))
        finally:
            torch.set_num_threads(before)
