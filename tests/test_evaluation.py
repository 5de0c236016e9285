import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch

from rp_lib.benchmark import Benchmark
from rp_lib.config import AS_RELEASED, PAPER
from rp_lib.detectors import DETECTORS, build_detector, detection_scores, maximum_softmax_probability
from rp_lib.evaluation import (
    ALL_OOD,
    ALL_SHIFTS,
    COLUMNS,
    RECORDED,
    Run,
    accuracy_by_class,
    accuracy_interval,
    accuracy_rows,
    answers,
    detection_rows,
    evaluate,
    evaluate_outputs,
    mean_accuracy_interval,
    summarize,
)
from rp_lib.features import FeatureStore
from rp_lib.methods import LinearProbe, Reprogrammer, ResidualReprogrammer, ZeroShot
from rp_lib.metrics import calibration_gaps, ood_metrics
from rp_lib.negative_labels import mine_negative_words
from rp_lib.outputs import Head, MethodOutputs, Outputs, compute_outputs
from rp_lib.stats import Resamples, as_percent, auroc_and_fpr, bootstrap_ood, calibration_error, wilson_interval
from rp_lib.utils.errors import RPLibError, UnknownName


class CountingEncoder:
    """Counts how many images an encoder was asked for."""

    def __init__(self, clip):
        self.clip, self.seen = clip, 0

    def __call__(self, images):
        self.seen += len(images)
        return type(self.clip).encode(self.clip, images)


@pytest.fixture
def runs(tiny_clip, tiny_benchmark):
    names, templates = tiny_benchmark.class_names, tiny_benchmark.templates
    rp = Reprogrammer(tiny_clip, names, templates, PAPER.changed(epochs=1, batch_size=8), precision="float32")
    rp.fit(tiny_benchmark.train)
    return [Run(ZeroShot(tiny_clip, names, templates), 1), Run(rp, 1), Run(ResidualReprogrammer(rp, 0.5), 1)]


def test_records_are_tidy_and_right(runs, tiny_benchmark: Benchmark):
    records = evaluate(runs, tiny_benchmark, n_resamples=20)
    assert tuple(records.columns) == COLUMNS
    assert not records.duplicated(["method", "seed", "set", "metric"]).any()
    for run in runs:
        mine = records[records.method == run.method.name].set_index(["set", "metric"])
        logits = run.method.logits(tiny_benchmark.test.images)
        expected = float((logits.argmax(1) == tiny_benchmark.test.labels).float().mean())
        assert mine.loc[("test", "accuracy"), "value"] == pytest.approx(expected)
        ood = next(iter(tiny_benchmark.ood.values()))
        direct = ood_metrics(
            maximum_softmax_probability(logits), maximum_softmax_probability(run.method.logits(ood.images))
        )
        for metric in ("auroc", "fpr", "aupr_in", "aupr_out", "detection_error"):
            assert mine.loc[(ood.name, metric), "value"] == pytest.approx(direct[metric], abs=1e-9)
        shifts = [mine.loc[(name, "accuracy"), "value"] for name in tiny_benchmark.shifts]
        assert mine.loc[(ALL_SHIFTS, "accuracy"), "value"] == pytest.approx(np.mean(shifts))
        assert (mine.n > 0).all() and mine.loc[(ALL_OOD, "auroc"), "n_ood"] == sum(
            map(len, tiny_benchmark.ood.values())
        )
        # On a few images the bootstrap of a minimum is biased down and that of absolute gaps up: not these two.
        known = mine.drop(["detection_error", "ece"], level="metric")
        assert ((known.low <= known.value + 1e-9) & (known.value <= known.high + 1e-9)).all()


def test_every_encoder_sees_every_image_once(runs, tiny_benchmark, tiny_clip, monkeypatch):
    counting = CountingEncoder(tiny_clip)
    monkeypatch.setattr(tiny_clip, "encode", counting, raising=False)
    store = FeatureStore()
    evaluate(runs, tiny_benchmark, store=store, n_resamples=5)
    sets = [tiny_benchmark.test, *tiny_benchmark.shifts.values(), *tiny_benchmark.ood.values()]
    assert counting.seen == sum(map(len, sets))
    sweep = [Run(runs[2].method.with_alpha(a), 1) for a in (0.1, 0.2, 0.3)]
    evaluate(sweep, tiny_benchmark, store=store, n_resamples=5)
    assert counting.seen == sum(map(len, sets))


def test_summary_keeps_image_uncertainty_and_adds_seeds():
    base = {"method": "m", "alpha": np.nan, "set": "test", "role": "test", "metric": "accuracy", "n": 100, "n_ood": np.nan,
            "detector": None, "convention": None}  # fmt: skip
    one = [{**base, "seed": s, "value": v, "low": v - 0.1, "high": v + 0.1} for s, v in ((1, 0.5), (2, 0.5), (3, 0.5))]
    same = summarize(pd.DataFrame(one)).iloc[0]
    assert same["high"] - same["low"] == pytest.approx(0.2)  # three seeds on the same images: not narrower
    other = [{**row, "value": v, "low": v - 0.1, "high": v + 0.1} for row, v in zip(one, (0.4, 0.5, 0.6), strict=True)]
    wider = summarize(pd.DataFrame(other)).iloc[0]
    expected = 1.96 * np.sqrt((0.1 / 1.96) ** 2 + 0.01 / 3)
    assert wider["value"] == pytest.approx(0.5) and wider["high"] - 0.5 == pytest.approx(expected)
    perfect = pd.DataFrame([{**row, "value": 1.0, "low": 0.7, "high": 1.0} for row in one])
    assert summarize(perfect)[["value", "low", "high"]].iloc[0].tolist() == pytest.approx([1, 0.7, 1])
    luck = pd.DataFrame(
        [{**row, "value": v, "low": v - 0.1, "high": v} for row, v in zip(one, (1, 1, 0.9), strict=True)]
    )
    assert summarize(luck)["high"].item() == 1
    mirrored = luck.assign(value=1 - luck["value"], low=1 - luck["high"], high=1 - luck["low"])
    assert summarize(mirrored)["low"].item() == 0


def test_nan_logits_are_refused():
    with pytest.raises(Exception, match="NaN"):
        maximum_softmax_probability(torch.tensor([[1.0, float("nan")]]))


def test_released_switches_reach_the_records(tiny_clip, tiny_benchmark):
    names, templates = tiny_benchmark.class_names, tiny_benchmark.templates
    rp = Reprogrammer(tiny_clip, names, templates, AS_RELEASED.changed(epochs=1, batch_size=8), precision="float32")
    rp.fit(tiny_benchmark.train)
    rrp = ResidualReprogrammer(rp, 0.9)
    records = evaluate([Run(rp, 1), Run(rrp, 1)], tiny_benchmark, n_resamples=5).set_index(["method", "set", "metric"])
    assert records.loc[("rp", ALL_OOD, "fpr"), "convention"] == "authors"
    honest = rrp.accuracy(tiny_benchmark.test)
    assert records.loc[("rrp", "test", "accuracy"), "value"] == pytest.approx(honest)


def test_two_alphas_are_two_rows_not_two_seeds(runs, tiny_benchmark):
    sweep = [Run(runs[2].method.with_alpha(a), 1) for a in (0.1, 0.9)]
    summary = summarize(evaluate(sweep, tiny_benchmark, n_resamples=5))
    assert sorted(summary["alpha"].unique()) == [0.1, 0.9] and (summary["seeds"] == 1).all()
    assert len(summarize(evaluate(runs[:1], tiny_benchmark, n_resamples=5)))  # no alpha: still there


def test_repeated_pictures_do_not_narrow_the_interval():
    g = torch.Generator().manual_seed(0)
    correct = (torch.rand(200, generator=g) < 0.7).numpy()

    def shift(times: int, derived: bool) -> Outputs:
        sources = torch.arange(200).repeat(times)
        nothing = torch.zeros(200 * times, 1)
        head = Head(None, None, logit_scale=1.0)
        return Outputs("s", "shift", nothing, nothing, torch.zeros_like(sources), sources, sources, head, derived)

    width = lambda i: i[2] - i[1]  # noqa: E731
    once, four = shift(1, False), shift(4, True)
    single, repeated = accuracy_interval(correct, once, 0), accuracy_interval(np.tile(correct, 4), four, 0)
    assert width(repeated) == pytest.approx(width(single), rel=0.15)
    alone = mean_accuracy_interval([(correct, once)], 0)
    shared = mean_accuracy_interval([(np.tile(correct, 4), four)] * 3, 0)
    assert width(shared) == pytest.approx(width(alone), rel=0.15)


def eight(name, role, right=True, copies=1, high=9.0) -> Outputs:
    """Eight pictures, each ``copies`` times, all right or all wrong, with a confidence of ``high`` for two classes."""
    sources = torch.arange(8).repeat(copies)
    logits = torch.tensor([[high, 0.0]]).repeat(len(sources), 1)
    labels = None if role.endswith("ood") else torch.full((len(sources),), 1 - int(right))
    return Outputs(name, role, logits, logits, labels, sources, sources, Head(None, None, 1.0), derived=copies > 1)


@pytest.mark.parametrize("copies", [1, 4])
def test_perfect_results_of_eight_pictures_are_not_certain(copies):
    """Neither "100.0 ± 0.0" nor "100.0 ± 20.0": an interval has a width, and stays within 0 to 100 %."""
    about = {"method": "m", "seed": 1, "alpha": None, "convention": "id-positive", "benchmark_sha256": "b"}
    outputs = MethodOutputs(about, {
        s.name: s for s in (eight("test", "test"), eight("dark", "shift", copies=copies), eight("other", "shift"),
                            eight("far", "far-ood", copies=copies, high=0.5), eight("near", "near-ood", high=0.1))
    })  # fmt: skip
    found = summarize(evaluate_outputs([outputs])).set_index(["set", "metric"])
    low, high = wilson_interval(8, 8)[1:]
    for name, metric in (("test", "accuracy"), ("dark", "accuracy"), (ALL_SHIFTS, "accuracy"), ("far", "auroc"),
                         (ALL_OOD, "auroc")):  # fmt: skip
        assert tuple(found.loc[(name, metric), ["value", "low", "high"]]) == pytest.approx((1, low, high)), name
    assert tuple(found.loc[("near", "fpr"), ["value", "low", "high"]]) == pytest.approx((0, 0, 1 - low))
    assert as_percent(*found.loc[("test", "accuracy"), ["value", "low", "high"]]) == "100.0 [67.6, 100.0]"


def test_copies_of_ood_pictures_do_not_narrow_detection():
    rng = np.random.default_rng(0)
    inside, outside = rng.normal(1, 1, 90), rng.normal(0, 1, 40)
    once = bootstrap_ood(inside, {"o": outside}, seed=3)
    ids = [np.arange(90), np.arange(40).repeat(5)]
    assert bootstrap_ood(inside, {"o": outside.repeat(5)}, seed=3, sources=ids) == once
    narrow = bootstrap_ood(inside, {"o": outside.repeat(5)}, seed=3)
    assert narrow["o"]["auroc"].high - narrow["o"]["auroc"].low < once["o"]["auroc"].high - once["o"]["auroc"].low


@pytest.fixture
def probed(runs, tiny_clip, tiny_benchmark):
    """Zero-shot, RRP and a probe: what each detector can and cannot be asked of."""
    probe = LinearProbe(tiny_clip, tiny_benchmark.class_names, tiny_benchmark.templates, epochs=3)
    return [runs[0], runs[2], Run(probe.fit(tiny_benchmark.train), 1)]


def test_every_detector_has_its_rows(probed, tiny_benchmark, monkeypatch):
    few = lambda clip, names, templates: mine_negative_words(clip, names, templates, ["river", "tree", "stone"])  # noqa: E731
    monkeypatch.setattr("rp_lib.evaluation.mine_negative_words", few)
    records = evaluate(probed, tiny_benchmark, detectors=tuple(DETECTORS), n_resamples=5)
    assert tuple(records.columns) == COLUMNS
    assert not records.duplicated(["method", "seed", "set", "metric", "detector"]).any()
    detected = records[records.metric == "auroc"]
    for method, missing in (("zero-shot", set()), ("rrp", set()), ("linear-probe", {"mcm", "neg-label"})):
        found = detected[(detected.method == method) & (detected.set == ALL_OOD)]
        assert set(found.detector) == set(DETECTORS) - missing
    assert detected.value.between(0, 1).all()
    # Accuracy does not depend on the detector, and MSP is what it is when asked alone.
    alone = evaluate(probed, tiny_benchmark, n_resamples=5)
    rest = records[records.detector.isna() | (records.detector == "msp")].reset_index(drop=True)
    pd.testing.assert_frame_equal(rest, alone)
    summary = summarize(records)
    assert (summary["seeds"] == 1).all() and len(summary) == len(records)


def test_cooked_takes_the_probe_of_the_same_seed(probed, tiny_benchmark):
    zero_shot, _, probe = probed
    worse = LinearProbe(zero_shot.method.clip, tiny_benchmark.class_names, tiny_benchmark.templates)
    runs = [zero_shot, Run(zero_shot.method, 2), probe, Run(worse, 2)]
    records = evaluate(runs, tiny_benchmark, detectors=("cooked",), n_resamples=2)
    value = records[(records.method == "zero-shot") & (records.set == ALL_OOD) & (records.metric == "auroc")]

    def entropy(data, second):
        p = sum(m.logits(data.images).double().softmax(1) for m in (zero_shot.method, zero_shot.method, second)) / 3
        return (p * p.log()).sum(1)

    for seed, second in ((1, probe.method), (2, worse)):
        direct = [
            ood_metrics(entropy(tiny_benchmark.test, second), entropy(d, second))["auroc"]
            for d in tiny_benchmark.ood.values()
        ]
        assert value[value.seed == seed].value.item() == pytest.approx(np.mean(direct))
    with pytest.raises(RPLibError, match="linear-probe"):
        evaluate([zero_shot], tiny_benchmark, detectors=("cooked",))


def test_fast_intervals_agree_with_resampling_one_by_one(runs, tiny_benchmark):
    outputs = [compute_outputs(run.method, tiny_benchmark, seed=run.seed) for run in runs]
    fast, slow = evaluate_outputs(outputs), evaluate_outputs(outputs, metrics=RECORDED)
    slow = slow[slow.metric.isin(set(fast.metric))].reset_index(drop=True)
    numbers = ["value", "low", "high"]
    pd.testing.assert_frame_equal(fast.drop(columns=numbers), slow.drop(columns=numbers))
    np.testing.assert_allclose(fast.value, slow.value, atol=1e-12)
    np.testing.assert_allclose(fast[["low", "high"]], slow[["low", "high"]], atol=1e-12)  # the same resamples


def test_outputs_of_two_benchmarks_do_not_mix(runs, tiny_benchmark):
    from dataclasses import replace

    other = replace(tiny_benchmark, templates=("{}",))
    both = [compute_outputs(runs[0].method, b, seed=1, roles=("test",)) for b in (tiny_benchmark, other)]
    with pytest.raises(RPLibError, match="different benchmarks"):
        evaluate_outputs(both)


def test_unknown_detectors_are_named_before_anything_runs(runs, tiny_benchmark):
    with pytest.raises(UnknownName, match="energy"):
        evaluate(runs, tiny_benchmark, detectors=("enrgy",))


def written_out(seed: int, n: int, n_resamples: int) -> np.ndarray:
    """(n_resamples, n): the units that each resample draws."""
    return np.random.default_rng(seed).integers(0, n, (n_resamples, n))


def test_intervals_are_those_of_the_samples_written_out(runs, tiny_benchmark):
    outputs = compute_outputs(runs[1].method, tiny_benchmark, seed=3)
    rng = np.random.default_rng(0)
    data = next(iter(outputs.shifts.values()))
    correct = (data.reported.argmax(1) == data.labels).numpy()
    gaps = calibration_gaps(data.reported.double().softmax(1).numpy(), data.labels.numpy())
    error, floor = calibration_error(*gaps, Resamples.draw(len(data), 150, 3))
    rows = {(r["set"], r["metric"]): r for r in accuracy_rows(outputs, 150)}
    found = rows[data.name, "ece"]
    assert (found["value"], found["low"], found["high"]) == error and rows[data.name, "ece floor"]["value"] == floor
    repeated = dataclasses.replace(data, sources=torch.from_numpy(rng.integers(0, 5, len(data))))
    members = [np.flatnonzero(repeated.sources == k) for k in repeated.sources.unique()]
    means = [
        correct[np.concatenate([members[k] for k in drawn])].mean() for drawn in written_out(3, len(members), 1000)
    ]
    expected = (correct.mean(), *np.quantile(means, (0.025, 0.975)))
    assert accuracy_interval(correct, repeated, 3) == pytest.approx(expected)
    with pytest.raises(RPLibError, match="one picture"):
        accuracy_interval(correct, dataclasses.replace(data, sources=torch.zeros(len(data), dtype=torch.int64)), 3)


def test_detection_intervals_are_quantiles_of_the_resamples_alone(runs, tiny_benchmark):
    outputs = compute_outputs(runs[1].method, tiny_benchmark, seed=3)
    rows = {
        (r["set"], r["metric"]): r
        for r in detection_rows(outputs, build_detector("max-logit"), metrics=("fpr", "auroc"), n_resamples=7)
    }
    id_scores, sets = detection_scores(build_detector("max-logit"), outputs)
    draws = [Resamples.draw(len(s), 7, 3, (k,)) for k, s in enumerate((id_scores, *sets.values()))]
    found = list(auroc_and_fpr(id_scores, sets, draws[0], dict(zip(sets, draws[1:], strict=True))).values())
    for which, metric in enumerate(("auroc", "fpr")):
        for name, numbers in [(n, f[which]) for n, f in zip(sets, found, strict=True)] + [
            (ALL_OOD, np.mean([f[which] for f in found], axis=0))
        ]:
            told = rows[name, metric]
            expected = [numbers[0], *np.quantile(numbers[1:], (0.025, 0.975))]
            assert [told["value"], told["low"], told["high"]] == pytest.approx(expected, rel=1e-12)


def test_answers_name_each_picture_and_sum_up_to_the_accuracy(runs, tiny_benchmark):
    outputs = compute_outputs(runs[0].method, tiny_benchmark, seed=1)
    table = answers(outputs, tiny_benchmark)
    assert len(table) == len(tiny_benchmark.test) + sum(map(len, tiny_benchmark.shifts.values()))
    test = table[table["set"] == tiny_benchmark.test.name]
    logits = runs[0].method.logits(tiny_benchmark.test.images)
    assert test["answer"].tolist() == [tiny_benchmark.class_names[c] for c in logits.argmax(1).tolist()]
    assert test["correct"].mean() == pytest.approx(runs[0].method.accuracy(tiny_benchmark.test))
    assert test["picture"].tolist() == [str(i) for i in range(len(test))]
    by_class = accuracy_by_class(test)
    assert by_class["n"].sum() == len(test) and by_class["accuracy"].is_monotonic_increasing
    assert (by_class["accuracy"] * by_class["n"]).sum() == pytest.approx(test["correct"].sum())
    worst = test[test["label"] == by_class["class"][0]]
    counts = worst.loc[~worst["correct"], "answer"].value_counts()
    assert (by_class["mistaken_for"][0] == "") == counts.empty
    assert counts.empty or counts[by_class["mistaken_for"][0]] == counts.max()
    with pytest.raises(RPLibError, match="another version of the benchmark"):
        answers(outputs, tiny_benchmark.subsample(4, 4))


def test_answers_name_files_by_their_paths(runs, tiny_benchmark):
    test = dataclasses.replace(tiny_benchmark.test, paths=[f"photos/{i}.jpg" for i in range(len(tiny_benchmark.test))])
    named = dataclasses.replace(tiny_benchmark, test=test)
    table = answers(compute_outputs(runs[0].method, named, seed=1), named)
    assert table["picture"][3] == "photos/3.jpg" and named.test.subset([5, 2]).paths == ["photos/5.jpg", "photos/2.jpg"]
    with pytest.raises(RPLibError, match="images but 1 paths"):
        dataclasses.replace(tiny_benchmark.test, paths=["a.jpg"])
