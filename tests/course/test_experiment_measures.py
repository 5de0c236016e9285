"""Experiments on measures beside the three axes: what is compared is compared on the same pictures and seeds."""

import numpy as np
import pandas as pd
import pytest
import torch
from rp_course.drift import class_spread, cosine_drift, linear_cka
from rp_course.experiments import experiment, feature_drift, neighbours
from rp_course.experiments.measures import Claim, claimed_differences, verdicts_of
from sklearn.metrics import roc_auc_score

from rp_lib.benchmark import ImageSet
from rp_lib.comparison import PairedDraws, draws_over_seeds
from rp_lib.stats import Design, Resamples, holm
from rp_lib.utils.errors import RPLibError

CLAIMS = (Claim("a beats b", "size", "a", "b", "higher"), Claim("b is rounder than c", "form", "b", "c", "higher"))


def draws(gap: float = 1.0, r: int = 400) -> PairedDraws:
    """Three methods on two measures, b and c ahead of each other by turns."""
    rng = np.random.default_rng(0)
    values = np.array([[gap, 0.0], [0.0, 0.0], [0.0, 0.0]])
    numbers = np.concatenate([values[None], values + 0.1 * rng.standard_normal((r, 3, 2))]).transpose(1, 0, 2)
    return PairedDraws(("a", "b", "c"), ("size", "form"), numbers[:, None], (Design(), Design()))


def test_only_what_is_claimed_is_compared_and_corrected():
    records = claimed_differences(draws(), CLAIMS, {"size": 7, "form": 9}, seeds=3)
    assert list(zip(records["method"], records["versus"], records["metric"], records["n"], strict=True)) == [
        ("a", "b", "size", 7), ("b", "c", "form", 9),
    ]  # fmt: skip
    table = draws().differences([("a", "b"), ("b", "c")]).set_index(["first", "second", "axis"])
    raw = [table.loc[("a", "b", "size"), "p"], table.loc[("b", "c", "form"), "p"]]
    assert list(records["p_holm"]) == list(holm(raw)) and raw[0] < 0.01
    told = verdicts_of(records, CLAIMS)
    assert [v.outcome for v in told] == ["holds", "undecided"]
    assert told[0].evidence.startswith("a - b = +1.000 [+0.") and "3 seeds, n = 7" in told[0].evidence
    assert (
        verdicts_of(claimed_differences(draws(-1.0), CLAIMS, {"size": 7, "form": 9}, 3), CLAIMS)[0].outcome == "fails"
    )


def test_records_that_compare_nothing_are_refused():
    records = claimed_differences(draws(), CLAIMS, {"size": 7, "form": 9}, seeds=3).assign(versus=None)
    with pytest.raises(RPLibError, match="run it again"):
        verdicts_of(records, CLAIMS)


@pytest.mark.parametrize("name", ["intrusion", "neighbours"])
def test_claims_point_the_right_way(name):
    claims = {"intrusion": feature_drift, "neighbours": neighbours}[name].CLAIMS
    for sign, outcome in ((1, "holds"), (-1, "fails")):
        rows = [
            {"method": c.first, "versus": c.second, "set": "", "metric": c.measure, "p_holm": 0.001, "seeds": 3, "n": 9,
             **dict(zip(("value", "low", "high"), np.sort(sign * side * np.array([0.1, 0.2, 0.3]))[[1, 0, 2]],
                        strict=True))}
            for c in claims
            for side in [1 if c.want == "higher" else -1]
        ]  # fmt: skip
        records = pd.DataFrame(rows)
        if "choice" in experiment(name).factors:
            records = pd.concat([records.assign(choice=choice) for choice in ("tuned", "published")])
        told = experiment(name).judge(records)
        assert [v.outcome for v in told] == [outcome] * len(claims) and "unpaired" not in str(told)


class Moved:
    """A stand-in for a fitted method: zero-shot features with noise added, and words that it knows by heart."""

    def __init__(self, clip, noise: float) -> None:
        self.clip, self.encoders, self.noise = clip, ("its own",), noise

    def mix_features(self, features: torch.Tensor) -> torch.Tensor:
        return features + self.noise * torch.randn(features.shape, generator=torch.Generator().manual_seed(1))


class Store:
    def __init__(self, features: torch.Tensor) -> None:
        self.features = features

    def get(self, encoder, images):
        return self.features


def test_measures_on_halves_are_those_of_all_pictures_and_spread_like_samples(monkeypatch):
    monkeypatch.setattr(feature_drift, "PAIRED_HALVES", 600)
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 6
    features = torch.nn.functional.normalize(3 * torch.eye(6, 8)[labels] + torch.randn(60, 8, generator=g), dim=1)
    test = ImageSet("test", "test", torch.zeros(60, 3, 2, 2, dtype=torch.uint8), labels, torch.arange(60))
    method, store = Moved("clip", 0.2), Store(features)
    found = feature_drift._on_halves(method, test, None, store)
    after = method.mix_features(features)
    drift = cosine_drift(after, features)
    assert found.shape == (601, 3)
    whole = [drift.mean(), linear_cka(after, features), class_spread(after, labels)[0]]
    np.testing.assert_allclose(found[0], whole)
    np.testing.assert_allclose(found[1:].mean(0), whole)  # no bias from halves being smaller
    assert found[1:, 0].std() == pytest.approx(drift.std(ddof=1) / 60**0.5, rel=0.1)
    # The same halves for every method: what differs between two of them is what the noise differs.
    again = feature_drift._on_halves(Moved("clip", 0.2), test, None, store)
    assert np.array_equal(again, found)
    near = feature_drift._on_halves(Moved("clip", 0.21), test, None, store)
    assert (near - found)[1:, 0].std() < 0.3 * found[1:, 0].std()


def test_neighbours_are_resampled_picture_by_picture():
    rng = np.random.default_rng(0)
    several = np.array([True] * 18 + [False] * 2)
    measured = {
        neighbours.SAME: rng.random(20), neighbours.ACROSS: rng.random(30), neighbours.SILHOUETTE: rng.random(18),
        "ID distance": rng.random(20), "OOD distance": rng.random(15) + 0.3,
    }  # fmt: skip
    draws = [Resamples.draw(n, 40, n) for n in (20, 30, 15)]
    found = neighbours._resampled(measured, draws, several)
    for row, test, shift, ood in zip(found, *(d.weights.astype(int) for d in draws), strict=True):
        inside, outside = (np.repeat(measured[f"{k} distance"], w) for k, w in (("ID", test), ("OOD", ood)))
        truth = np.r_[np.ones(len(inside)), np.zeros(len(outside))]
        np.testing.assert_allclose(row, [
            np.repeat(measured[neighbours.ACROSS], shift).mean(),
            np.repeat(measured[neighbours.SILHOUETTE], test[several]).mean(),
            roc_auc_score(truth, -np.r_[inside, outside]),
        ])  # fmt: skip


def test_means_over_seeds_draw_the_same_seeds_for_all():
    seeds = [np.full((201, 1), float(k)) for k in range(3)]  # training varies, pictures do not
    runs = {"x": seeds, "y": [s + 1 for s in seeds], "fixed": [np.full((201, 1), 5.0)]}
    both = draws_over_seeds(runs, ["m"], [Design()])
    assert both.values[:, 0].tolist() == [1, 2, 5] and both.resampled[:, 0].std() > 0.2
    np.testing.assert_allclose(both.resampled[:, 1] - both.resampled[:, 0], 1)
    assert (both.resampled[:, 2] == 5).all()
    for bad in ({"x": seeds, "y": seeds[:2]}, {"x": seeds, "y": []}, {"x": seeds, "y": [np.zeros((9, 1))] * 3}):
        with pytest.raises(RPLibError, match="the same seeds"):
            draws_over_seeds(bad, ["m"], [Design()])
