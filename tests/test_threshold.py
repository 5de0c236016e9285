import json

import numpy as np
import pytest

from rp_lib.detectors import Threshold
from rp_lib.metrics import ood_metrics
from rp_lib.stats import wilson_interval
from rp_lib.utils.errors import RPLibError


def test_largest_threshold_that_accepts_enough():
    scores = np.arange(100) / 100
    threshold = Threshold.fit(scores[::-1], tpr=0.95)
    assert threshold.value == 0.05 and threshold.accept(scores).mean() == 0.95
    assert Threshold.fit(scores, tpr=1.0).value == 0 and Threshold.fit(scores, tpr=0.951).value == 0.04
    tied = Threshold.fit([0.9, 0.5, 0.5, 0.5, 0.1], tpr=0.4)
    assert tied.value == 0.5 and tied.accept([0.5, 0.49]).tolist() == [True, False]


def test_it_is_the_threshold_of_the_named_convention():
    rng = np.random.default_rng(0)
    for tpr in (0.5, 0.8, 0.95):
        scores = rng.normal(size=57).round(1)
        found = ood_metrics(scores, rng.normal(size=30), tpr=tpr, convention=Threshold.fit(scores, tpr).convention)
        assert Threshold.fit(scores, tpr).value == found["threshold"]


def test_report_says_what_is_reached_not_what_was_aimed_at():
    threshold = Threshold.fit(np.arange(1, 101), tpr=0.95)
    report = threshold.report(test_scores=np.r_[np.full(80, 50), np.full(20, 1)], ood_scores=[6, 5.9, 7, 100])
    assert report.tpr == wilson_interval(80, 100) and report.fpr == wilson_interval(3, 4)
    assert (report.aimed, report.n_test, report.n_ood) == (0.95, 100, 4)
    assert "reached 80.0 % [" in str(report) and "id-positive" in str(report) and "75.0 %" in str(report)


def test_coverage_on_new_data_is_what_the_docstring_says():
    rng = np.random.default_rng(1)
    n, k = 200, 11  # 190 of 200 are accepted from the 11th smallest on
    # For uniform scores the TPR on new data is one minus the threshold itself.
    reached = np.array([1 - Threshold.fit(rng.uniform(size=n)).value for _ in range(2000)])
    assert reached.mean() == pytest.approx((n + 1 - k) / (n + 1), abs=0.002)
    assert reached.std() == pytest.approx(0.015, abs=0.002)


def test_json_round_trip():
    threshold = Threshold.fit(np.random.default_rng(0).normal(size=33), tpr=0.9)
    assert Threshold.from_json(threshold.to_json()) == threshold and json.loads(threshold.to_json())["n"] == 33
    for text in ("", "[]", "{}", '{"value": "x", "tpr": 1, "n": 1, "convention": "id-positive"}'):
        with pytest.raises(RPLibError, match="no saved threshold"):
            Threshold.from_json(text)
    with pytest.raises(RPLibError, match="convention"):
        Threshold.from_json(threshold.to_json().replace("id-positive", "authors"))


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="NaN"):
        Threshold.fit([0.1, np.nan])
    with pytest.raises(ValueError, match="empty"):
        Threshold.fit([])
    with pytest.raises(ValueError, match="NaN"):
        Threshold.fit([0.1]).accept([np.nan])
    for tpr in (0, 95):
        with pytest.raises(RPLibError, match=r"tpr of Threshold\.fit must be"):
            Threshold.fit([0.1], tpr)
    with pytest.raises(RPLibError, match="finite"):
        Threshold.fit([-np.inf])
