"""One number a method: the mean of the three axes, or of the ranks on them."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from rp_lib.comparison import PairedDraws
from rp_lib.stats import TAILS, Design
from rp_lib.utils.arrays import Array
from rp_lib.utils.errors import RPLibError

PARTS = ("id accuracy", "shift accuracy", "auroc")
NAME = "aggregate"


def aggregate(draws: PairedDraws) -> PairedDraws:
    """Reduce the axes to one number a method, for the data and for each of the same resamples.

    The aggregate is (ID accuracy + accuracy under shift + AUROC) / 3: each axis weighs the same, because the paper
    names three and weighs none. AUROC stands for detection; FPR95 reads the same scores, so that it would count twice.

    It hides much. A point of accuracy is not a point of AUROC, and chance is 50 % for AUROC but 1 / classes for
    accuracy; a method may buy one axis with another; one set may move a mean over sets; another detector may order
    methods otherwise. :func:`mean_ranks` needs no common unit, but ignores how wide gaps are, and depends on which
    methods take part. Read the aggregate last, and next to the axes.

    Returns:
        Draws with the one axis ``aggregate``.

    Raises:
        RPLibError: an axis that it needs was not measured.
    """
    design = min(_parts(draws, np.array(draws.designs).T).T.tolist(), key=lambda d: d[1])  # the least well known
    numbers = _parts(draws, draws.numbers).mean(-1, keepdims=True)
    return PairedDraws(draws.methods, (NAME,), numbers, (Design(*design),))


def mean_ranks(draws: PairedDraws) -> pd.DataFrame:
    """Average each method's ranks on the three axes (1 is best, ties share theirs), with its percentile interval.

    Returns:
        One row per method: ``method, rank, low, high, best``; ``best`` as in ``PairedDraws.ranks``.
    """
    rank = rankdata(-_parts(draws, draws.values), axis=0).mean(1)
    drawn = rankdata(-_parts(draws, draws.resampled), axis=1).mean(2)
    low, high = np.quantile(drawn, TAILS, axis=0)
    best = (drawn == drawn.min(1, keepdims=True)).mean(0)
    return pd.DataFrame({"method": draws.methods, "rank": rank, "low": low, "high": high, "best": best})


def _parts(draws: PairedDraws, numbers: Array) -> Array:
    missing = [axis for axis in PARTS if axis not in draws.axes]
    if missing:
        raise RPLibError(
            f"the aggregate needs {', '.join(PARTS)}; {', '.join(missing)} was not measured: compute outputs for "
            "test, shifted and OOD sets"
        )
    return numbers[..., [draws.axes.index(axis) for axis in PARTS]]
