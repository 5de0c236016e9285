"""Which differences between methods are real: all evaluated on the same resamples of the same pictures.

Two methods see the same pictures and tend to fail on the same ones, so intervals of each alone say little about their
difference. Here a resample draws pictures (or designers) once, and every method is evaluated on that draw.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rp_lib.detectors import build_detector, detection_scores
from rp_lib.outputs import MethodOutputs, check_comparable
from rp_lib.stats import (
    TAILS,
    Design,
    Resamples,
    auroc_and_fpr,
    crossed_interval,
    holm,
    in_threads,
    resample_blocks,
)
from rp_lib.utils.arrays import Array
from rp_lib.utils.errors import RPLibError, UnknownName

if TYPE_CHECKING:
    import pandas as pd

AXES = ("id accuracy", "shift accuracy", "auroc", "fpr")
LOWER_IS_BETTER = frozenset({"fpr"})
CLUSTERS = ("sources", "groups")
BLOCK = 2**23  # counts of drawn images that are there at once, 32 MB: bounds memory


@dataclass(frozen=True, eq=False)
class PairedDraws:
    """Hold every method's number on every axis by seed, for the pictures as they are and for each resample of them.

    Attributes:
        methods: k names.
        axes: a names, in the order of :data:`AXES`.
        numbers: float64 (k, s, 1 + r, a) of s seeds, fractions: of the data, then of each resample of pictures. A
            method in which nothing is drawn has the same numbers for every seed.
        designs: Of each axis, see :class:`rp_lib.stats.Design`.

    Example:
        >>> numbers = np.array([[0.8, 0.9, 0.7], [0.7, 0.7, 0.8]])[:, None, :, None]  # 2 methods, 1 seed, 2 resamples
        >>> draws = PairedDraws(("a", "b"), ("id accuracy",), numbers, (Design(),))
        >>> draws.differences()["difference"].round(6).tolist()
        [0.1]
    """

    methods: tuple[str, ...]
    axes: tuple[str, ...]
    numbers: Array
    designs: tuple[Design, ...]

    @property
    def values(self) -> Array:
        """float64 (k, a), means over seeds."""
        return self.numbers[:, :, 0].mean(1)

    @functools.cached_property
    def resampled(self) -> Array:
        """float64 (r, k, a): each resample of pictures as the mean over as many seeds, drawn with replacement."""
        _, seeds, rows, _ = self.numbers.shape
        share = Resamples.draw(seeds, rows - 1, (0, 1)).weights[1:].astype(float) / seeds  # (r, s), the same for all
        return np.einsum("rs,ksra->rka", share, self.numbers[:, :, 1:])

    def differences(self, pairs: Iterable[tuple[str, str]] | None = None) -> pd.DataFrame:
        """Subtract the second from the first of each pair, with interval and p-value over pictures and seeds.

        Both are those of :func:`rp_lib.stats.crossed_interval`. ``p_holm`` corrects p for all rows of this table.

        Args:
            pairs: Of names; None takes all.

        Returns:
            One row per pair and axis: ``first, second, axis, difference, low, high, p, p_holm``.
        """
        import pandas as pd

        rows = []
        for first, second in itertools.combinations(self.methods, 2) if pairs is None else pairs:
            numbers = self.numbers[self._index(first)] - self.numbers[self._index(second)]
            columns = zip(self.axes, *crossed_interval(numbers, self.designs), strict=True)
            rows += [(first, second, *row) for row in columns]
        table = pd.DataFrame(rows, columns=["first", "second", "axis", "difference", "low", "high", "p"])
        return table.assign(p_holm=holm(table["p"]) if len(table) else [])

    def estimates(self) -> pd.DataFrame:
        """List each method's number on each axis with its interval in [0, 1]: ``method, axis, value, low, high``."""
        import pandas as pd

        rows = []
        for method, numbers in zip(self.methods, self.numbers, strict=True):
            value, low, high, _ = crossed_interval(numbers, self.designs)
            columns = zip(self.axes, value, low.clip(0, 1), high.clip(0, 1), strict=True)
            rows += [(method, *row) for row in columns]
        return pd.DataFrame(rows, columns=["method", "axis", "value", "low", "high"])

    def ranks(self) -> pd.DataFrame:
        """Rank the methods on each axis (1 is best, ties share their mean rank), with the spread over resamples.

        Returns:
            One row per method and axis: ``method, axis, rank, mean_rank, low, high, best``; ``best`` is the share of
            resamples in which no method is better, so shares sum to more than one where methods tie.
        """
        import pandas as pd
        from scipy.stats import rankdata

        sign = np.array([-1.0 if axis in LOWER_IS_BETTER else 1.0 for axis in self.axes])
        rows = []
        for axis, name in enumerate(self.axes):
            values, drawn = self.values[:, axis] * sign[axis], self.resampled[:, :, axis] * sign[axis]
            rank, ranks = rankdata(-values), rankdata(-drawn, axis=1)
            low, high = np.quantile(ranks, TAILS, axis=0)
            best = (drawn == drawn.max(1, keepdims=True)).mean(0)
            columns = zip(self.methods, rank, ranks.mean(0), low, high, best, strict=True)
            rows += [(method, name, *numbers) for method, *numbers in columns]
        return pd.DataFrame(rows, columns=["method", "axis", "rank", "mean_rank", "low", "high", "best"])

    def select(self, methods: Sequence[str]) -> PairedDraws:
        """Keep the same draws of some of the methods, in the order given; ranks are then among these alone."""
        kept = [self._index(m) for m in methods]
        return PairedDraws(tuple(methods), self.axes, self.numbers[kept], self.designs)

    def _index(self, method: str) -> int:
        if method not in self.methods:
            raise UnknownName("method in this comparison", method, self.methods)
        return self.methods.index(method)


def paired_bootstrap(
    contestants: Mapping[str, Sequence[MethodOutputs]],
    *,
    detector: str | Mapping[str, str] = "msp",
    n_resamples: int = 2000,
    clusters: str = "groups",
) -> PairedDraws:
    """Evaluate methods on the same resamples.

    Axes: accuracy on the test set, its mean over shifts, and AUROC and FPR95 (convention ``id-positive``) as means
    over OOD sets, each set weighing the same; axes without image sets are left out. The test pictures are drawn once
    for accuracy, for the sets derived from them and for the ID side of detection. Differences count
    only if they hold over training runs, too; methods in which nothing is drawn (zero-shot) have one.

    Args:
        contestants: By name, the outputs of one method, one per seed; numbers are means over seeds.
        detector: Name, or names by contestant.
        n_resamples: Number of resamples.
        clusters: What is drawn as one: ``"groups"`` (designers) or ``"sources"`` (pictures). Pictures of one designer
            are alike, so claims about other designers need ``"groups"``.

    Raises:
        RPLibError: no or one contestant, other benchmarks, other seeds, other images, or a set with one cluster.
    """
    named = [(name, o) for name, outputs in contestants.items() for o in outputs]
    everyone = [o for _, o in named]
    check_comparable(everyone)
    if len(contestants) < 2 or not all(contestants.values()) or n_resamples < 1:
        raise RPLibError("a comparison needs two methods, outputs of each, and at least one resample")
    if clusters not in CLUSTERS:
        raise UnknownName("kind of cluster", clusters, CLUSTERS)
    seeds = sorted({tuple(sorted(o.seed for o in outputs)) for outputs in contestants.values() if len(outputs) > 1})
    if len(seeds) > 1 or any(len(set(s)) != len(s) for s in seeds):
        raise RPLibError(f"all methods with several seeds need the same ones, each once; these have {seeds}")
    kinds = {o: [(s.name, s.role, len(s)) for s in (o.test, *o.shifts.values(), *o.ood.values())] for o in everyone}
    if any(kind != kinds[everyone[0]] for kind in kinds.values()):
        raise RPLibError("these outputs hold different image sets; compute all of them for the same sets")

    units, derived, designs = _units(everyone[0], clusters)
    axes = AXES[:1] + AXES[1:2] * bool(everyone[0].shifts) + AXES[2:] * bool(everyone[0].ood)
    by = {name: detector if isinstance(detector, str) else detector[name] for name in contestants}
    correct = _correct(everyone)
    detectors = [build_detector(by[name]) if o.ood else None for name, o in named]
    scores = in_threads(lambda job: job[0] and detection_scores(*job), zip(detectors, everyone, strict=True))
    # Some resamples at a time, of all methods: memory holds one block of draws.
    rows, blocks = max(1, BLOCK // sum(map(len, units.values()))), []
    for draws in resample_blocks(rows, units, derived, n_resamples, (0, 0)):
        accuracies = _accuracies(everyone[0], correct, draws)
        detection = in_threads(lambda found, drawn=draws: _detection(found, everyone[0].test.name, drawn), scores)
        blocks.append([
            np.stack([*(axis[:, everyone.index(job[1])] for axis in accuracies), *outside], 1)
            for job, outside in zip(named, detection, strict=True)
        ])  # fmt: skip
    found = dict(zip(named, map(np.concatenate, zip(*blocks, strict=True)), strict=True))
    by_seed = {name: [found[name, o] for o in sorted(runs, key=lambda o: o.seed)] for name, runs in contestants.items()}
    return draws_over_seeds(by_seed, axes, [designs[axis] for axis in axes])


def draws_over_seeds(
    numbers: Mapping[str, Sequence[Array]], axes: Sequence[str], designs: Sequence[Design]
) -> PairedDraws:
    """Collect what the training of each seed measured on the same resamples of pictures.

    Args:
        numbers: By method, for every seed in the same order float64 (1 + r, a): the numbers of the data as they are,
            then of each resample. A method in which nothing is drawn may have one seed where others have several.
        axes: Names of the a columns.
        designs: Of the a columns.

    Raises:
        RPLibError: methods with other numbers of seeds or of resamples.
    """
    shapes = {np.shape(n) for runs in numbers.values() for n in runs}
    counts = {len(runs) for runs in numbers.values()} - {1}
    if len(shapes) != 1 or len(counts) > 1 or 0 in counts:
        raise RPLibError("a comparison needs the same seeds, resamples and axes of every method")
    seeds = max(counts, default=1)
    stacked = np.stack([np.stack(runs * seeds if len(runs) == 1 else runs) for runs in map(list, numbers.values())])
    return PairedDraws(tuple(numbers), tuple(axes), stacked, tuple(designs))


def _units(outputs: MethodOutputs, clusters: str) -> tuple[dict[str, Array], set[str], dict[str, Design]]:
    """By image set, what is drawn; the sets whose draws are those of test pictures; and designs by axis."""
    sets = {data.name: data for data in (outputs.test, *outputs.shifts.values(), *outputs.ood.values())}
    units = {name: getattr(data, clusters).numpy() for name, data in sets.items()}
    derived = [name for name, data in sets.items() if data.derived]
    for name in derived:
        if not np.isin(sets[name].sources, outputs.test.sources).all():
            raise RPLibError(f"{name!r} is derived from test images that the test set does not hold")
    test, alone = units[outputs.test.name], [name for name in outputs.shifts if name not in derived]
    shifted = [(1.0, units[name]) for name in alone] + [(float(len(derived)), test)] * bool(derived)
    outside = [(float(len(outputs.ood)), test), *((1.0, units[name]) for name in outputs.ood)] * bool(outputs.ood)
    pools = dict(zip(AXES, ([(1.0, test)], shifted, outside, outside), strict=True))
    designs = {axis: Design.of(found) for axis, found in pools.items() if found}
    return units, {outputs.test.name, *derived}, designs


def _correct(everyone: Sequence[MethodOutputs]) -> dict[str, Array]:
    """By labelled image set, bool (n, methods)."""
    first = everyone[0]
    return {
        name: np.stack([o.sets[name].correct for o in everyone], 1)
        for name in (first.test.name, *first.shifts)
    }


def _accuracies(first: MethodOutputs, correct: Mapping[str, Array], draws: Mapping[str, Resamples]) -> list[Array]:
    """float64 (1 + r, methods) accuracies on the test set and, if there are shifts, their mean over these.

    All methods at once: one product for each image set.
    """
    found = {name: draws[name].mean(right) for name, right in correct.items()}
    test = found.pop(first.test.name)
    return [test, *([np.mean(list(found.values()), axis=0)] if found else [])]


def _detection(scores: Any, test: str, draws: Mapping[str, Resamples]) -> list[Array]:
    """float64 (1 + r,) AUROC and FPR95 of one fitted method as means over OOD sets; nothing if there are none."""
    return [] if scores is None else list(np.mean(list(auroc_and_fpr(*scores, draws[test], draws).values()), axis=0))
