"""A threshold to deploy: fitted on ID validation scores, judged by what it does on test data."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np

from rp_lib.arrays import Array, floats
from rp_lib.errors import RPLibError
from rp_lib.intervals import Interval, wilson_interval

CONVENTION = "id-positive"


@dataclass(frozen=True)
class ThresholdReport:
    """What a threshold does on data it was not fitted on; fractions, with 95 % Wilson intervals.

    ``tpr`` is the share of ID test images accepted (``aimed`` is what was aimed at), ``fpr`` that of OOD images.
    Wilson's interval takes images as independent; where several show one picture, expect more spread.
    """

    aimed: float
    tpr: Interval
    fpr: Interval
    n_test: int
    n_ood: int
    convention: str = CONVENTION

    def __str__(self) -> str:
        def percent(i: Interval) -> str:
            return f"{100 * i.value:.1f} % [{100 * i.low:.1f}, {100 * i.high:.1f}]"

        return (
            f"aimed at TPR {100 * self.aimed:g} %, reached {percent(self.tpr)} on {self.n_test} ID test images; FPR "
            f"{percent(self.fpr)} on {self.n_ood} OOD images ({self.convention}, 95 % intervals)"
        )


@dataclass(frozen=True)
class Threshold:
    """Accept an image as ID if its score is at least ``value``.

    The TPR on new data is not the one aimed at. If validation and new scores are exchangeable and have no ties, the
    TPR of a threshold at the k-th smallest of n validation scores is Beta(n + 1 - k, k) distributed over validation
    sets: its mean is (n + 1 - k) / (n + 1), with n = 200 and 95 % its standard deviation is 1.5 points. If the images
    of validation and use differ (other designers, another camera), nothing is promised: see :meth:`report`.

    Attributes:
        value: the threshold, in the unit of the scores.
        tpr: what was aimed at. n: number of validation scores. convention: ID positive, accept score >= value.
    """

    value: float
    tpr: float
    n: int
    convention: str = CONVENTION

    def __post_init__(self) -> None:
        if not np.isfinite(self.value) or not 0 < self.tpr <= 1 or self.n < 1 or self.convention != CONVENTION:
            raise RPLibError(
                f"a threshold is finite, with 0 < tpr <= 1, n >= 1 and the convention {CONVENTION!r}; got {self}"
            )

    @classmethod
    def fit(cls, id_validation_scores: Any, tpr: float = 0.95) -> Self:
        """The largest threshold that accepts at least ``tpr`` of the ID validation scores (n,), higher = more ID.

        Raises:
            ValueError: no scores, or NaN. RPLibError: ``tpr`` outside (0, 1], or the threshold would be infinite.
        """
        scores = floats(id_validation_scores, "id_validation_scores")
        if not 0 < tpr <= 1:
            raise RPLibError(f"tpr must be a fraction in (0, 1], got {tpr}: write 0.95 for 95 %")
        descending, n = np.sort(scores)[::-1], len(scores)
        # Ties with the threshold are accepted too, so the share at this score is at least that of its rank.
        reached = np.arange(1, n + 1) / n >= tpr
        return cls(float(descending[np.argmax(reached)]), tpr, n)

    def accept(self, scores: Any) -> Array:
        """Bool (n,): which scores count as ID; NaN raises ``ValueError``."""
        return floats(scores, "scores") >= self.value

    def report(self, test_scores: Any, ood_scores: Any) -> ThresholdReport:
        """TPR reached on ID test scores (n,) and FPR on OOD scores (m,), with intervals."""
        tests, oods = self.accept(test_scores), self.accept(ood_scores)
        intervals = (wilson_interval(int(a.sum()), len(a)) for a in (tests, oods))
        return ThresholdReport(self.tpr, *intervals, n_test=len(tests), n_ood=len(oods))

    def to_json(self) -> str:
        """One line; :meth:`from_json` gives back an equal threshold."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Inverse of :meth:`to_json`.

        Raises:
            RPLibError: the text is no threshold.
        """
        try:
            fields = json.loads(text)
            return cls(float(fields["value"]), float(fields["tpr"]), int(fields["n"]), fields["convention"])
        except (ValueError, KeyError, TypeError) as error:
            raise RPLibError(f"this is no saved threshold ({error!r}): fit one again") from error
