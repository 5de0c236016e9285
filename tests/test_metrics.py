"""Metrics against the worked cases of metrics.md, scikit-learn, pytorch-ood, scipy and plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import interp1d
from sklearn import metrics as sk

from rp_lib.metrics import CONVENTIONS, OOD_METRICS, accuracy, expected_calibration_error, ood_metrics
from rp_lib.utils.errors import UnknownName

ORDER = ("authors", "mcm", "clipn", "id-positive", "openood", "pytorch-ood")
A = ([0.9, 0.8, 0.7, 0.6, 0.3], [0.5, 0.4, 0.2, 0.1])
B = ([1, 1, 1, 1], [1, 1, 1, 1])
C = (list(range(1, 12)), [1])

# Few distinct values make ties the rule; wide floats cover the rest; 19 and 20 of 20 are where TPR is exactly 0.95.
tied = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=45)
wide = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=45)
pairs = st.one_of(st.tuples(tied, tied), st.tuples(wide, wide))
levels = st.sampled_from([0.05, 0.5, 0.8, 0.9, 0.95, 0.99, 1.0])
quick = settings(max_examples=60, deadline=None, derandomize=True)


def pooled(ood_positive: bool, i, o):
    y = np.r_[np.ones(len(i)), np.zeros(len(o))]
    s = np.r_[np.asarray(i, float), np.asarray(o, float)]
    return (1 - y, -s) if ood_positive else (y, s)


# --- worked cases ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "auroc", "fprs"),
    [
        (A, 0.9, [0.5, 0.5, 0.5, 0.5, 0.2, 0.2]),
        (B, 0.5, [0, 1, 0.95, 1, 1, 1]),
        (C, 0.9545, [0, 0, 0.45, 1, 0.0909, 0.0909]),
    ],
    ids="ABC",
)
def test_worked_cases(case, auroc, fprs):
    assert set(ORDER) == set(CONVENTIONS)
    for convention, fpr in zip(ORDER, fprs, strict=True):
        result = ood_metrics(*case, convention=convention)
        assert tuple(result) == OOD_METRICS
        assert result["fpr"] == pytest.approx(fpr, abs=5e-5), convention
        assert result["auroc"] == pytest.approx(auroc, abs=5e-5), convention


def test_values_by_hand():
    a = ood_metrics(*A)
    assert (a["threshold"], a["fpr"]) == (0.3, 0.5)
    assert a["aupr_in"] == pytest.approx((1 + 1 + 1 + 1 + 5 / 7) / 5)
    assert a["aupr_out"] == pytest.approx((1 + 1 + 3 / 4 + 4 / 5) / 4)
    assert a["detection_error"] == pytest.approx(0.1)  # at 0.6: one ID of five below, no OOD above
    assert ood_metrics(*A, convention="authors")["detection_error"] == pytest.approx(1 / 9)
    # Trapezoids: precision 1 up to recall .8, where it falls to 4/6, then 5/7; the authors' curve starts at 0, not 1.
    assert ood_metrics(*A, convention="pytorch-ood")["aupr_in"] == pytest.approx(0.8 + 0.2 * (4 / 6 + 5 / 7) / 2)
    assert ood_metrics(*A, convention="authors")["aupr_in"] == pytest.approx(0.7 + 0.2 * (4 / 6 + 5 / 7) / 2)
    assert ood_metrics(*A, convention="pytorch-ood")["threshold"] == 0.5


def test_authors_rounds_half_to_even_and_is_strict():
    ten, thirty = list(range(10)), list(range(30))
    assert ood_metrics(ten, [0, 0.5], convention="authors")["threshold"] == 0  # round(0.5) == 0
    assert ood_metrics(ten, [0, 0.5], convention="authors")["fpr"] == 0.5
    assert ood_metrics(thirty, [0], convention="authors")["threshold"] == 2  # round(1.5) == 2


def test_mcm_and_clipn_where_the_curve_is_flat_at_the_tpr():
    id_ = [0.0] + [2.0] * 19  # TPR is 0.95 for any threshold in (0, 2], FPR 0 to 1
    assert ood_metrics(id_, [1.0, 3.0])["fpr"] == 0.5
    assert ood_metrics(id_, [1.0, 3.0], convention="mcm")["fpr"] == 1
    assert ood_metrics(id_, [1.0, 3.0], convention="clipn")["fpr"] == 1


def test_openood_drops_the_point_that_is_needed():
    # The OOD-positive curve is straight from 5 % on, so the point at 95 % is dropped and the next one, 100 %, is used.
    ood, id_ = np.arange(20.0), np.repeat(np.arange(20.0), 2)
    assert ood_metrics(id_, ood, convention="pytorch-ood")["fpr"] == pytest.approx(0.95)
    assert ood_metrics(id_, ood, convention="openood")["fpr"] == 1


# --- against other implementations ----------------------------------------------------------------------------------


@quick
@given(pairs, levels)
def test_default_equals_scikit_learn(pair, tpr):
    i, o = pair
    y, s = pooled(False, i, o)
    fpr, rate, threshold = sk.roc_curve(y, s, drop_intermediate=False)
    first = np.argmax(rate >= tpr)
    result = ood_metrics(i, o, tpr=tpr)
    assert result["auroc"] == pytest.approx(sk.roc_auc_score(y, s), abs=1e-12)
    assert result["fpr"] == pytest.approx(fpr[first], abs=1e-12)
    assert result["threshold"] == threshold[first]
    assert result["aupr_in"] == pytest.approx(sk.average_precision_score(y, s), abs=1e-12)
    assert result["aupr_out"] == pytest.approx(sk.average_precision_score(1 - y, -s), abs=1e-12)
    assert result["detection_error"] == pytest.approx((0.5 * (1 - rate + fpr)).min(), abs=1e-12)


@quick
@given(pairs, levels)
def test_openood_and_clipn_equal_their_recipes(pair, tpr):
    i, o = pair
    y, s = pooled(True, i, o)
    fpr, rate, _ = sk.roc_curve(y, s)
    precision, recall, _ = sk.precision_recall_curve(y, s)
    result = ood_metrics(i, o, tpr=tpr, convention="openood")
    assert result["fpr"] == pytest.approx(fpr[np.argmax(rate >= tpr)], abs=1e-12)
    assert result["aupr_out"] == pytest.approx(sk.auc(recall, precision), abs=1e-12)
    y, s = pooled(False, i, o)
    precision, recall, _ = sk.precision_recall_curve(y, s)
    assert result["aupr_in"] == pytest.approx(sk.auc(recall, precision), abs=1e-12)
    fpr, rate, _ = sk.roc_curve(y, s)
    assert ood_metrics(i, o, tpr=tpr, convention="clipn")["fpr"] == pytest.approx(interp1d(rate, fpr)(tpr), abs=1e-9)


@quick
@given(pairs, levels)
def test_mcm_equals_a_plain_loop(pair, tpr):
    i, o = np.array(pair[0]), np.array(pair[1])
    points = [((i >= t).sum(), (o >= t).sum(), t) for t in sorted({*i, *o}, reverse=True)]
    # Up to full recall; the nearest recall, and of equal distances the laxest threshold.
    points = points[: 1 + next(k for k, p in enumerate(points) if p[0] == len(i))]
    _, fp, threshold = min(reversed(points), key=lambda p: abs(p[0] / len(i) - tpr))
    result = ood_metrics(i, o, tpr=tpr, convention="mcm")
    assert (result["fpr"], result["threshold"]) == (fp / len(o), threshold)


@quick
@given(pairs)
def test_authors_equals_plain_loops(pair):
    i, o = np.sort(pair[0]), np.sort(pair[1])
    result = ood_metrics(i, o, convention="authors")
    threshold = i[round(0.05 * len(i))]
    assert result["threshold"] == threshold
    assert result["fpr"] == sum(x > threshold for x in o) / len(o)
    cuts = [-np.inf, *sorted({*i, *o})]  # accept score > cut
    tp, fp = (np.array([(x > c).sum() for c in cuts]) for x in (i, o))
    assert result["detection_error"] == pytest.approx((len(i) - tp + fp).min() / (len(i) + len(o)))
    for key, p, q, n in (
        ("aupr_in", tp[::-1], fp[::-1], len(i)),
        ("aupr_out", len(o) - fp, len(i) - tp, len(o)),
    ):
        curve = [(0.0, 0.0)] + [(a / n, a / (a + b)) for a, b in zip(p, q, strict=True) if a + b]
        recall, precision = np.array(curve).T
        assert result[key] == pytest.approx(sk.auc(recall, precision), abs=1e-12)


@quick
@given(pairs, levels)
def test_pytorch_ood_equals_the_package(pair, tpr):
    # The only test that needs the package pytorch-ood; it is skipped where that is not installed.
    functional = pytest.importorskip("pytorch_ood.metrics.functional")
    scores = -torch.tensor([*pair[0], *pair[1]], dtype=torch.float64)
    labels = torch.tensor([0] * len(pair[0]) + [-1] * len(pair[1]))
    result = ood_metrics(*pair, tpr=tpr, convention="pytorch-ood")
    assert result["auroc"] == pytest.approx(float(functional.auroc(scores, labels)), abs=1e-12)
    assert result["fpr"] == pytest.approx(float(functional.fpr_at_tpr(scores, labels, tpr)), abs=1e-12)
    assert result["aupr_out"] == pytest.approx(float(functional.aupr(scores, labels, "ood")), abs=1e-12)
    assert result["aupr_in"] == pytest.approx(float(functional.aupr(scores, labels, "id")), abs=1e-12)


# --- properties and inputs ------------------------------------------------------------------------------------------


@quick
@given(pairs, levels, st.sampled_from(ORDER), st.integers(0, 99))
def test_order_type_and_scale_do_not_matter(pair, tpr, convention, seed):
    i, o = np.array(pair[0]), np.array(pair[1])
    result, rng = ood_metrics(i, o, tpr=tpr, convention=convention), np.random.default_rng(seed)
    again = ood_metrics(torch.tensor(rng.permutation(i)), list(rng.permutation(o)), tpr=tpr, convention=convention)
    assert again == result
    scaled = ood_metrics(4 * i, 4 * o, tpr=tpr, convention=convention)  # a power of two keeps floats exact
    assert scaled == result | {"threshold": 4 * result["threshold"]}
    assert all(0 <= result[k] <= 1 for k in OOD_METRICS[:-1])


def test_threshold_keeps_the_tpr_it_promises():
    rng = np.random.default_rng(0)
    for n in (20, 33, 100, 1601):
        i = rng.normal(1, 1, n)
        t = ood_metrics(i, rng.normal(size=50))["threshold"]
        assert (i >= t).mean() >= 0.95 > (i > t).mean()


def test_float64_and_small_dtypes():
    saturated, above = 1 - 1e-12, 1.0  # one tie in float32
    assert ood_metrics([above], [saturated])["auroc"] == 1
    half = torch.tensor([0.5, 0.75], dtype=torch.bfloat16, requires_grad=True)
    assert ood_metrics(half, torch.tensor([0, 0], dtype=torch.uint8))["auroc"] == 1
    assert ood_metrics(np.array([200], np.uint8), np.array([100], np.uint8), convention="openood")["fpr"] == 0
    assert ood_metrics([np.inf, 0], [-np.inf, 0])["auroc"] == pytest.approx(0.875)


@pytest.mark.parametrize("convention", ORDER)
@pytest.mark.parametrize(
    ("i", "o", "message"),
    [
        ([], [1.0], "id_scores is empty"),
        ([1.0], [], "ood_scores is empty"),
        ([1.0, np.nan], [1.0], "id_scores has 1 NaN of 2"),
        ([1.0], torch.tensor([np.nan]), "ood_scores has 1 NaN"),
        (np.ones((3, 1)), [1.0], "1-D"),
        (3.0, [1.0], "single number"),
        (["a"], [1.0], "must be numbers"),
    ],
)
def test_bad_scores(i, o, message, convention):
    with pytest.raises(ValueError, match=message):
        ood_metrics(i, o, convention=convention)


def test_bad_options():
    for tpr in (0, -0.1, 1.01, 95, float("nan")):
        with pytest.raises(ValueError, match=r"tpr of ood_metrics must be (above 0|at most 1) and finite"):
            ood_metrics(*A, tpr=tpr)
    with pytest.raises(UnknownName, match="did you mean openood"):
        ood_metrics(*A, convention="open-ood")


# --- accuracy and calibration ---------------------------------------------------------------------------------------


def test_accuracy():
    logits = torch.tensor([[2.0, 1.0], [0.0, 3.0], [1.0, 1.0], [0.0, 9.0]])
    assert accuracy(logits, [0, 1, 1, 1]) == 0.75  # the tie goes to the first class
    assert accuracy([0, 1, 0, 1], torch.tensor([0, 1, 1, 1])) == 0.75
    for values, labels, message in (
        ([], [], "empty"),
        ([[np.nan, 1.0]], [0], "NaN"),
        ([0, 1], [0], "lengths differ"),
        ([[0.0, 1.0]], [2], r"0 \.\.\. 1"),
        ([[0.0, 1.0]], [-1], "OOD"),
        (np.ones((1, 2, 2)), [0], "1-D or 2-D"),
    ):
        with pytest.raises(ValueError, match=message):
            accuracy(values, labels)


@quick
@given(st.integers(0, 10_000), st.integers(1, 20), st.integers(1, 60), st.integers(2, 5))
def test_ece_equals_a_plain_loop(seed, bins, n, classes):
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.full(classes, 0.5), n)
    y = rng.integers(0, classes, n)
    total = 0.0
    for b in range(bins):
        members = [k for k in range(n) if b / bins < max(p[k]) <= (b + 1) / bins]
        if members:
            correct = sum(int(np.argmax(p[k])) == y[k] for k in members) / len(members)
            total += len(members) / n * abs(correct - sum(max(p[k]) for k in members) / len(members))
    assert expected_calibration_error(p, y, bins=bins) == pytest.approx(total, abs=1e-12)


def test_ece_edges_and_errors():
    # 0.5 belongs to the bin (0, 0.5]: alone there its gap is 0.5; in one bin with 0.75 the gaps would cancel partly.
    assert expected_calibration_error([[0.5, 0.5], [0.75, 0.25]], [1, 0], bins=2) == pytest.approx((0.5 + 0.25) / 2)
    assert expected_calibration_error(torch.eye(3), [0, 1, 2]) == 0
    assert expected_calibration_error(torch.eye(3), [1, 2, 0]) == 1
    soft = torch.rand(50, 40, generator=torch.Generator().manual_seed(0)).softmax(1)
    assert 0 < expected_calibration_error(soft.bfloat16(), [0] * 50) < 1
    for p, y, options, message in (
        ([[3.0, -1.0]], [0], {}, "softmax"),
        ([[0.5, 0.2]], [0], {}, "sum to 1"),
        ([[0.5, 0.5]], [0], {"bins": 0}, "bins"),
        ([[np.nan, 0.5]], [0], {}, "NaN"),
        ([[0.5, 0.5]], [2], {}, "labels"),
        ([0.5], [0], {}, "2-D"),
        ([[0.5, 0.5]], [0, 1], {}, "lengths differ"),
    ):
        with pytest.raises(ValueError, match=message):
            expected_calibration_error(p, y, **options)
