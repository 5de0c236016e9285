"""One number for the three axes, and ranks: defined here once, with what they hide.

The aggregate of a method is the plain mean of its three axes in percent points,

    (ID accuracy + accuracy under shift + AUROC) / 3,

where accuracy under shift is the mean over shifted sets, AUROC the mean over OOD sets, and every part the mean over
seeds. Each axis weighs the same, because the paper names three and weighs none of them. AUROC stands for detection, and
FPR95 does not count beside it: both read the same scores, so detection would count twice, and AUROC rises with quality,
lies between 50 and 100 % for any detector worth its name, and rests on no threshold.

It hides much. A point of accuracy is not a point of AUROC, and chance is 50 % for AUROC but 1 / classes for accuracy.
A method may buy one axis with another, which is what the three axes are there to show. A single set may move a mean
over sets (dark pictures do, for RP), and another detector may order methods otherwise. The mean of a method's ranks on
the three axes (:func:`mean_ranks`) needs no common unit, but ignores how wide gaps are, and depends on which methods
take part. Read the aggregate last, and beside the axes.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from rp_lib.arrays import Array
from rp_lib.errors import RPLibError
from rp_lib.paired import PairedDraws

PARTS = ("id accuracy", "shift accuracy", "auroc")
NAME = "aggregate"


def aggregate(draws: PairedDraws) -> PairedDraws:
    """The aggregate of every method as the one axis ``aggregate``, for the data and for each of the same resamples.

    Raises:
        RPLibError: an axis that it needs was not measured.
    """
    return PairedDraws(
        draws.methods, (NAME,), _parts(draws, draws.values).mean(1, keepdims=True),
        _parts(draws, draws.resampled).mean(2, keepdims=True),
    )  # fmt: skip


def mean_ranks(draws: PairedDraws, *, confidence: float = 0.95) -> pd.DataFrame:
    """The mean of a method's ranks on the three axes (1 is best, ties share theirs), with its percentile interval.

    Returns:
        One row per method: ``method, rank, low, high, best``; ``best`` as in :meth:`PairedDraws.ranks`.
    """
    rank = rankdata(-_parts(draws, draws.values), axis=0).mean(1)
    drawn = rankdata(-_parts(draws, draws.resampled), axis=1).mean(2)
    low, high = np.quantile(drawn, ((1 - confidence) / 2, (1 + confidence) / 2), axis=0)
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
