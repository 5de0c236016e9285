import numpy as np
import pytest
import torch
from scipy import integrate, stats

from rp_lib.comparison import AXES, PairedDraws, paired_bootstrap
from rp_lib.evaluation import mean_accuracy_interval
from rp_lib.metrics import ood_metrics
from rp_lib.outputs import Head, MethodOutputs, Outputs
from rp_lib.stats import Design, resample_sets
from rp_lib.utils.errors import RPLibError, UnknownName


def said(name, role, correct=None, scores=None, groups=None, sources=None, derived=False) -> Outputs:
    """Two classes, label 0: right where ``correct``, with the maximum logit as the score."""
    n = len(correct if correct is not None else scores)
    correct = np.ones(n, bool) if correct is None else np.asarray(correct, bool)
    scores = np.ones(n) if scores is None else scores
    high = torch.as_tensor(scores, dtype=torch.float32)
    logits = torch.stack([high, high - 1], 1)
    logits[~torch.from_numpy(correct)] = logits[~torch.from_numpy(correct)].flip(1)
    ids = torch.arange(n)
    labels = None if role.endswith("ood") else torch.zeros(n, dtype=torch.int64)
    return Outputs(
        name, role, torch.ones(n, 1), logits, labels, ids if sources is None else torch.as_tensor(sources),
        ids if groups is None else torch.as_tensor(groups), Head(None, None, 1.0), derived,
    )  # fmt: skip


def run(*sets, seed=1, benchmark="b") -> MethodOutputs:
    return MethodOutputs({"method": "m", "seed": seed, "benchmark_sha256": benchmark}, {s.name: s for s in sets})


def world(accuracy, gap, seed, n=300) -> MethodOutputs:
    """A test set, an independent and a derived shift, and two OOD sets ``gap`` away."""
    rng = np.random.default_rng(seed)
    return run(
        said("test", "test", rng.random(n) < accuracy, rng.normal(gap, 1, n)),
        said("far", "shift", rng.random(n) < accuracy),
        said("dark", "shift", rng.random(n) < accuracy, derived=True),
        said("a", "near-ood", scores=rng.normal(0, 1, n)),
        said("b", "far-ood", scores=rng.normal(0, 1, n // 2)),
    )


def drawn(methods, axes, values, resampled) -> PairedDraws:
    """Of one seed and many pictures: values (k, a) of the data, (r, k, a) of resamples."""
    numbers = np.concatenate([values[None], resampled]).transpose(1, 0, 2)[:, None]
    return PairedDraws(methods, axes, numbers, (Design(),) * len(axes))


def test_identical_methods_do_not_differ():
    one = [world(0.8, 1, seed=0), world(0.7, 1, seed=1)]
    one = [MethodOutputs({**o.about, "seed": i}, o.sets) for i, o in enumerate(one)]
    draws = paired_bootstrap({"x": one, "y": list(one)}, detector="max-logit", n_resamples=50)
    table = draws.differences()
    assert list(table["axis"]) == list(AXES)
    assert (table[["difference", "low", "high"]] == 0).all(axis=None) and (table[["p", "p_holm"]] == 1).all(axis=None)
    ranks = draws.ranks()
    assert (ranks["rank"] == 1.5).all() and (ranks["mean_rank"] == 1.5).all() and (ranks["best"] == 1).all()


def test_blocks_of_resamples_change_no_digit(monkeypatch):
    """A block of some resamples and all methods at a time gives what all resamples at once give."""
    contestants = {"x": [world(0.8, 1, seed=0)], "y": [world(0.7, 1, seed=1)]}
    monkeypatch.setattr("rp_lib.stats.KEPT", 0)
    numbers = []
    for block in (1, 7 * 1350, 2**23):  # 1 and 7 resamples at a time, and all
        monkeypatch.setattr("rp_lib.comparison.BLOCK", block)
        numbers.append(paired_bootstrap(contestants, detector="max-logit", n_resamples=30).numbers)
    assert numbers[0].shape == (2, 1, 31, 4) and len(np.unique(numbers[0][0, 0, :, 2])) > 20
    assert np.array_equal(numbers[0], numbers[2]) and np.array_equal(numbers[1], numbers[2])


def test_values_are_those_of_the_metrics():
    weak, strong = world(0.6, 0.5, seed=0), world(0.9, 2, seed=1)
    draws = paired_bootstrap({"weak": [weak], "strong": [strong]}, detector="max-logit", n_resamples=20)
    for row, outputs in zip(draws.values, (weak, strong), strict=True):
        right = {
            n: (s.logits.argmax(1) == 0).double().mean().item() for n, s in outputs.sets.items() if s.labels is not None
        }
        scores = {n: s.logits.amax(1).double().numpy() for n, s in outputs.sets.items()}
        ood = [ood_metrics(scores["test"], scores[n]) for n in ("a", "b")]
        expected = [
            right["test"],
            (right["far"] + right["dark"]) / 2,
            *(np.mean([o[m] for o in ood]) for m in ("auroc", "fpr")),
        ]
        np.testing.assert_allclose(row, expected)
    assert draws.resampled.shape == (20, 2, 4)


def test_a_planted_difference_is_found_and_ranked():
    # A gap that both share would drown it: the strong one is right wherever the weak one is, and on 8 more of 200.
    rng = np.random.default_rng(0)
    weak = rng.random(200) < 0.6
    strong = weak.copy()
    strong[np.flatnonzero(~weak)[:8]] = True
    draws = paired_bootstrap(
        {"weak": [run(said("test", "test", weak))], "strong": [run(said("test", "test", strong))]}, n_resamples=2000
    )
    (row,) = draws.differences([("strong", "weak")]).to_dict("records")
    assert row["difference"] == pytest.approx(0.04) and 0 < row["low"] < 0.04 < row["high"] and row["p"] < 0.01
    alone = np.quantile(draws.resampled[:, 0, 0], (0.025, 0.975))
    assert row["high"] - row["low"] < np.diff(alone)[0] / 2  # what pairing is for
    ranks = draws.ranks().set_index("method")
    assert ranks.loc["strong", "rank"] == 1 and ranks.loc["strong", "best"] > 0.99 and ranks.loc["weak", "low"] >= 1.5


def test_lower_fpr_ranks_first():
    draws = drawn(("x", "y"), AXES, np.array([[0.5, 0.5, 0.5, 0.2], [0.6, 0.6, 0.6, 0.3]]), np.zeros((3, 2, 4)))
    ranks = draws.ranks().pivot(index="method", columns="axis", values="rank")
    assert ranks.loc["x"].to_dict() == {"fpr": 1, "auroc": 2, "id accuracy": 2, "shift accuracy": 2}


def test_interval_and_p_value_by_hand():
    resampled = np.random.default_rng(0).normal(size=(99, 2, 1))
    draws = drawn(("x", "y"), ("id accuracy",), np.array([[2.0], [0.0]]), resampled)
    (row,) = draws.differences().to_dict("records")
    error = (resampled[:, 0] - resampled[:, 1]).std(ddof=1)
    assert (row["high"] - row["low"]) / 2 == pytest.approx(1.959964 * error, rel=1e-5)
    assert row["p"] == pytest.approx(2 * stats.norm.sf(2 / error), rel=1e-4) and row["difference"] == 2
    with pytest.raises(UnknownName):
        draws.differences([("x", "z")])


def test_derived_sets_follow_the_test_pictures():
    rng = np.random.default_rng(0)
    right, other = rng.random(100) < 0.5, rng.random(100) < 0.5
    twice = np.tile(np.arange(100), 2)
    repeated = said("dark", "shift", np.tile(right, 2), groups=twice, sources=twice, derived=True)
    outputs = run(said("test", "test", right), repeated)
    draws = paired_bootstrap({"x": [outputs], "y": [run(said("test", "test", other), repeated)]}, n_resamples=100)
    np.testing.assert_allclose(draws.resampled[:, 0, 0], draws.resampled[:, 0, 1])
    stray = said("dark", "shift", right, sources=np.arange(100) + 1, derived=True)
    with pytest.raises(RPLibError, match="derived"):
        paired_bootstrap(
            {"x": [run(said("test", "test", right), stray)]} | {"y": [run(said("test", "test", right), stray)]}
        )


def test_clusters_widen_intervals():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(20), 25)
    a, b = (np.repeat(rng.random(20) < 0.6, 25) for _ in range(2))  # a designer is recognised or not
    contest = {k: [run(said("test", "test", v, groups=groups))] for k, v in (("a", a), ("b", b))}
    width = {}
    for kind in ("sources", "groups"):
        table = paired_bootstrap(contest, clusters=kind, n_resamples=400).differences()
        width[kind] = (table["high"] - table["low"]).item()
    assert width["groups"] > 3 * width["sources"]
    by_default = paired_bootstrap(contest, n_resamples=400).differences()
    assert (by_default["high"] - by_default["low"]).item() == width["groups"]
    with pytest.raises(RPLibError, match=r"clusters=.sources"):
        paired_bootstrap({k: [run(said("test", "test", a, groups=groups * 0))] for k in "ab"}, clusters="groups")


def test_the_spread_over_seeds_counts():
    fixed = run(said("test", "test", np.ones(50)), seed=9)
    lucky = [run(said("test", "test", np.full(50, good)), seed=i) for i, good in enumerate((1, 1, 0))]
    draws = paired_bootstrap({"one": [fixed], "three": lucky}, n_resamples=500)
    (row,) = draws.differences().to_dict("records")
    # No picture differs: a t test of three numbers.
    theirs = stats.ttest_1samp([0, 0, 1], 0).confidence_interval()
    assert row["difference"] == pytest.approx(1 / 3) and (row["low"], row["high"]) == pytest.approx(tuple(theirs))
    assert row["p"] == pytest.approx(stats.ttest_1samp([0, 0, 1], 0).pvalue)
    assert set(draws.resampled[:, 1, 0].round(6)) == {0, round(1 / 3, 6), round(2 / 3, 6), 1}
    np.testing.assert_allclose(draws.resampled[:, 0], 1)
    with pytest.raises(RPLibError, match="same ones"):
        paired_bootstrap({"x": lucky, "y": lucky[:2]})


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    chance = lambda t: integrate.quad(lambda u: stats.norm.cdf((t - u) / 0.1), 0, 1)[0]  # noqa: E731
    rng, hits, sims, gap = np.random.default_rng(0), 0, 200, chance(0.8) - chance(0.7)
    for _ in range(sims):
        easy = rng.random(150)  # both methods find the same pictures easy
        a, b = easy + 0.1 * rng.normal(size=150) < 0.8, easy + 0.1 * rng.normal(size=150) < 0.7
        contest = {"a": [run(said("test", "test", a))], "b": [run(said("test", "test", b))]}
        row = paired_bootstrap(contest, n_resamples=200).differences().iloc[0]
        hits += row["low"] <= gap <= row["high"]
    assert 0.9 <= hits / sims <= 0.99


def test_what_cannot_be_compared_is_refused():
    one = run(said("test", "test", np.ones(10)))
    for contest in ({"x": [one]}, {"x": [one], "y": []}):
        with pytest.raises(RPLibError, match="two methods"):
            paired_bootstrap(contest)
    with pytest.raises(RPLibError, match="different benchmarks"):
        paired_bootstrap({"x": [one], "y": [run(*one.sets.values(), benchmark="c")]})
    with pytest.raises(RPLibError, match="different image sets"):
        paired_bootstrap({"x": [one], "y": [run(said("test", "test", np.ones(9)))]})
    with pytest.raises(UnknownName):
        paired_bootstrap({"x": [one], "y": [one]}, clusters="styles")


def test_the_mean_over_shifts_is_resampled_picture_by_picture(monkeypatch):
    monkeypatch.setattr("rp_lib.evaluation.MEAN_RESAMPLES", 200)
    rng = np.random.default_rng(0)
    sources = np.r_[np.arange(3, 40), np.arange(3, 20)]  # not of all pictures, and of some twice
    derived = said("dark", "shift", rng.random(len(sources)) < 0.5, sources=sources, derived=True)
    alone = said("far", "shift", rng.random(30) < 0.7)
    shifted = [((s.logits.argmax(1) == s.labels).numpy(), s) for s in (derived, alone)]
    value, low, high = mean_accuracy_interval(shifted, seed=5)
    draws = resample_sets({"dark": sources, "far": np.arange(30)}, {"dark"}, 200, (5,))
    means = []
    for one, other in zip(draws["dark"].weights[1:], draws["far"].weights[1:], strict=True):
        means.append(((one * shifted[0][0]).sum() / one.sum() + (other * shifted[1][0]).sum() / 30) / 2)
    assert value == pytest.approx(np.mean([shifted[0][0].mean(), shifted[1][0].mean()]))
    np.testing.assert_allclose((low, high), np.quantile(means, (0.025, 0.975)))


def test_estimates_and_some_of_the_methods():
    rng = np.random.default_rng(0)
    draws = drawn(("x", "y", "z"), AXES[:2], rng.random((3, 2)), 0.01 * rng.random((99, 3, 2)))
    found = draws.estimates().set_index(["method", "axis"])
    assert found.loc[("z", "shift accuracy"), "value"] == draws.values[2, 1] and len(found) == 6
    low = draws.values[1, 0] - 1.959964 * draws.resampled[:, 1, 0].std(ddof=1)
    assert found.loc[("y", "id accuracy"), "low"] == pytest.approx(low, rel=1e-5)
    sure = drawn(("x", "y"), AXES[:1], np.array([[1.0], [0.0]]), rng.random((99, 2, 1))).estimates()
    assert sure["low"].min() >= 0 and sure["high"].max() <= 1
    some = draws.select(("z", "x"))
    assert some.methods == ("z", "x") and np.array_equal(some.resampled, draws.resampled[:, [2, 0]])
    assert some.ranks()["rank"].max() == 2
    with pytest.raises(UnknownName):
        draws.select(("w",))


def test_one_methods_outputs_may_stand_under_two_names():
    one = world(0.8, 1, seed=0)
    named = {"msp": [one], "logit": [one]}
    draws = paired_bootstrap(named, detector={"msp": "msp", "logit": "max-logit"}, n_resamples=20)
    assert draws.values[0, 0] == draws.values[1, 0] and draws.values[0, 2] != draws.values[1, 2]
