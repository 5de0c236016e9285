import numpy as np
import pandas as pd
import pytest
import torch

from rp_lib.benchmark import Benchmark
from rp_lib.evaluation import ALL_OOD, ALL_SHIFTS, COLUMNS, Run, evaluate, summarise
from rp_lib.features import FeatureStore
from rp_lib.methods import Reprogrammer, ResidualReprogrammer, ZeroShot
from rp_lib.metrics import ood_metrics
from rp_lib.presets import AS_RELEASED, PAPER
from rp_lib.scores import maximum_softmax_probability


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
    return [Run(ZeroShot(tiny_clip, names, templates), 1), Run(rp, 1), Run(ResidualReprogrammer.of(rp, 0.5), 1)]


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
    sweep = [Run(runs[2].method.at(a), 1) for a in (0.1, 0.2, 0.3)]
    evaluate(sweep, tiny_benchmark, store=store, n_resamples=5)
    assert counting.seen == sum(map(len, sets))


def test_summary_keeps_image_uncertainty_and_adds_seeds():
    base = {"method": "m", "alpha": np.nan, "set": "test", "role": "test", "metric": "accuracy", "n": 100, "n_ood": np.nan,
            "detector": None, "convention": None}  # fmt: skip
    one = [{**base, "seed": s, "value": v, "low": v - 0.1, "high": v + 0.1} for s, v in ((1, 0.5), (2, 0.5), (3, 0.5))]
    same = summarise(pd.DataFrame(one)).iloc[0]
    assert same["high"] - same["low"] == pytest.approx(0.2)  # three seeds on the same images: not narrower
    other = [{**row, "value": v, "low": v - 0.1, "high": v + 0.1} for row, v in zip(one, (0.4, 0.5, 0.6), strict=True)]
    wider = summarise(pd.DataFrame(other)).iloc[0]
    expected = 1.96 * np.sqrt((0.1 / 1.96) ** 2 + 0.01 / 3)
    assert wider["value"] == pytest.approx(0.5) and wider["high"] - 0.5 == pytest.approx(expected)


def test_nan_logits_are_refused():
    with pytest.raises(Exception, match="NaN"):
        maximum_softmax_probability(torch.tensor([[1.0, float("nan")]]))


def test_half_precision_ties_scores_at_one():
    logits = torch.tensor([[20.0, 0.0], [30.0, 0.0], [1.0, 0.0]])
    assert len(set(maximum_softmax_probability(logits))) == 3
    assert (maximum_softmax_probability(logits, half=True) == 1).sum() == 2


def test_released_switches_reach_the_records(tiny_clip, tiny_benchmark):
    names, templates = tiny_benchmark.class_names, tiny_benchmark.templates
    rp = Reprogrammer(tiny_clip, names, templates, AS_RELEASED.changed(epochs=1, batch_size=8), precision="float32")
    rp.fit(tiny_benchmark.train)
    rrp = ResidualReprogrammer.of(rp, 0.9)
    records = evaluate([Run(rp, 1), Run(rrp, 1)], tiny_benchmark, n_resamples=5).set_index(["method", "set", "metric"])
    assert records.loc[("rrp", "test", "accuracy"), "value"] == records.loc[("rp", "test", "accuracy"), "value"]
    assert records.loc[("rp", ALL_OOD, "fpr"), "convention"] == "authors"
    honest = rrp.accuracy(tiny_benchmark.test)
    fixed = Reprogrammer(tiny_clip, names, templates, rp.config.changed(report_rp_as_rrp=False))
    fixed.load_trained(rp.trained())
    again = evaluate([Run(ResidualReprogrammer.of(fixed, 0.9), 1)], tiny_benchmark, n_resamples=5)
    assert again.set_index(["set", "metric"]).loc[("test", "accuracy"), "value"] == pytest.approx(honest)


def test_two_alphas_are_two_rows_not_two_seeds(runs, tiny_benchmark):
    sweep = [Run(runs[2].method.at(a), 1) for a in (0.1, 0.9)]
    summary = summarise(evaluate(sweep, tiny_benchmark, n_resamples=5))
    assert sorted(summary["alpha"].unique()) == [0.1, 0.9] and (summary["seeds"] == 1).all()
    assert len(summarise(evaluate(runs[:1], tiny_benchmark, n_resamples=5)))  # no alpha: still there


def test_repeated_pictures_do_not_narrow_the_interval():
    from rp_lib.benchmark import ImageSet
    from rp_lib.evaluation import _accuracy_interval, _mean_accuracy_interval

    g = torch.Generator().manual_seed(0)
    correct = (torch.rand(200, generator=g) < 0.7).numpy()
    image = torch.zeros(200, 3, 2, 2, dtype=torch.uint8)
    once = ImageSet("once", "shift", image, torch.zeros(200, dtype=torch.int64))
    sources = torch.arange(200).repeat(4)
    four = ImageSet("four", "shift", image.repeat(4, 1, 1, 1), torch.zeros(800, dtype=torch.int64), sources=sources,
                    derived_from="once")  # fmt: skip
    width = lambda i: i[2] - i[1]  # noqa: E731
    single, repeated = _accuracy_interval(correct, once, 0), _accuracy_interval(np.tile(correct, 4), four, 0)
    assert width(repeated) == pytest.approx(width(single), rel=0.15)
    alone = _mean_accuracy_interval([(correct, once)], 0)
    shared = _mean_accuracy_interval([(np.tile(correct, 4), four)] * 3, 0)
    assert width(shared) == pytest.approx(width(alone), rel=0.15)
