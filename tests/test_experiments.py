"""The experiments' machinery on a tiny world; what the shipped records say is tested where they ship."""

import dataclasses
import itertools
import json

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import make_clip

from rp_lib.cli import main
from rp_lib.detectors import DETECTORS
from rp_lib.errors import RPLibError, UnknownName
from rp_lib.experiments import EXPERIMENTS, World, experiment, rejudge, remedies, run
from rp_lib.experiments.base import COLUMNS, Verdict, compare, difference, shrinks
from rp_lib.experiments.border import CHANGES, with_border
from rp_lib.experiments.figures import alt, figures
from rp_lib.experiments.grid import Condition, Entry, methods, run_grid
from rp_lib.experiments.ledger import ROWS, switched
from rp_lib.experiments.narrowness import of_families, over_families
from rp_lib.experiments.padding import WIDER, at_resolution, wider_rows
from rp_lib.experiments.training_data import of_classes, per_class
from rp_lib.methods import METHODS
from rp_lib.mini import weights
from rp_lib.negative_words import mine_negative_words
from rp_lib.presets import AS_RELEASED, PAPER
from rp_lib.storage import StorageError
from rp_lib.subsets import evenly, lighten

QUICK = PAPER.changed(epochs=1, border_init="white", padding=2 / 32)
SETTINGS = {
    "zero-shot": {}, "linear-probe": {"epochs": 2}, "fine-tune": {"epochs": 1}, "l2-sp": {"epochs": 1},
    "wise-ft": {"epochs": 1, "alpha": 0.5}, "logit-ensemble": {"epochs": 1, "alpha": 0.25},
    "rp": {"config": QUICK}, "rrp": {"config": QUICK.changed(alpha=0.5)},
    "rp-image": {"config": QUICK.changed(use_text_program=False)},
    "rp-text": {"config": QUICK.changed(use_image_program=False)}, "coop": {"epochs": 1},
}  # fmt: skip


@pytest.fixture
def world(tiny_clip, tiny_benchmark):
    return World(tiny_benchmark, SETTINGS, seeds=(1, 2), precision="float32", progress=False, clip=tiny_clip)


def fake_row(value, low, high, **more):
    return {"method": "a", "versus": "b", "set": "", "metric": "fpr", "value": value, "low": low, "high": high,
            "p_holm": 0.001,
            "seeds": 3, "n": 10, "n_ood": 5, "detector": "msp", **more}  # fmt: skip


# Verdicts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "want", "outcome"),
    [
        (0.01, 0.03, "higher", "holds"), (0.01, 0.03, "lower", "fails"), (-0.03, -0.01, "higher", "fails"),
        (-0.03, -0.01, "lower", "holds"), (-0.01, 0.03, "higher", "undecided"), (-0.01, 0.03, "lower", "undecided"),
    ],
)  # fmt: skip
def test_a_verdict_can_come_out_either_way(low, high, want, outcome):
    records = pd.DataFrame([fake_row((low + high) / 2, low, high)])
    verdict = difference("claim", records, "a", "b", "fpr", want)
    assert verdict.outcome == outcome and "3 seeds" in verdict.evidence and "n = 10" in verdict.evidence
    # The same records asked the other way round.
    turned = difference("claim", records, "b", "a", "fpr", {"higher": "lower", "lower": "higher"}[want])
    assert turned.outcome == outcome


def test_a_verdict_needs_one_condition():
    records = pd.DataFrame([fake_row(0.1, 0.0, 0.2, k=1), fake_row(0.1, 0.0, 0.2, k=2)])
    with pytest.raises(RPLibError, match="2 rows compare"):
        difference("claim", records, "a", "b", "fpr", "higher")
    assert difference("claim", records, "a", "b", "fpr", "higher", {"k": 2})
    with pytest.raises(RPLibError, match="0 rows compare"):
        difference("claim", records, "a", "c", "fpr", "higher", {"k": 2})


def test_a_change_between_conditions_is_decided_by_both_intervals():
    weak, strong = (pd.Series(fake_row(v, v - 0.01, v + 0.01)) for v in (0.10, 0.05))
    assert shrinks("c", weak, strong, "w").outcome == "holds"
    assert shrinks("c", strong, weak, "w").outcome == "fails"
    assert shrinks("c", weak, strong, "w", sign=-1).outcome == "fails"
    wide = pd.Series(fake_row(0.05, -0.05, 0.15))
    assert shrinks("c", weak, wide, "w").outcome == "undecided"


def test_a_rerun_is_compared_figure_by_figure():
    shipped = pd.DataFrame([fake_row(0.5, 0.4, 0.6, k=1), fake_row(0.5, 0.4, 0.6, k=2), fake_row(0.5, 0.5, 0.5, k=3)])
    again = pd.DataFrame([fake_row(0.59, 0.5, 0.7, k=1.0), fake_row(0.61, 0.5, 0.7, k=2), fake_row(0.1, 0, 1, k=3)])
    agreement = compare(again, shipped, ("k",))
    assert (agreement.inside, agreement.compared) == (1, 2) and list(agreement.outside["k"]) == [2]
    assert "1 of 2" in str(agreement)


def test_a_difference_that_correction_does_not_leave_is_undecided():
    records = pd.DataFrame([fake_row(0.02, 0.001, 0.04, p_holm=0.2)])
    assert difference("claim", records, "a", "b", "fpr", "higher").outcome == "undecided"


# How good each method is in a made-up world, in points on every axis; FPR the other way round.
GOOD = {
    "rrp": 6, "rp": 5, "zero-shot": 4, "wise-ft": 3, "coop": 2, "flyp": 1, "fine-tune": 0, "linear-probe": -1,
}  # fmt: skip


def made_up(better=GOOD, **levels):
    """Records of paired differences between all methods of a world in which ``better`` says who is how good."""
    rows = []
    for first, second in itertools.combinations(better, 2):
        gap = (better[first] - better[second]) / 100
        for axis in ("id accuracy", "shift accuracy", "auroc", "fpr"):
            d = -gap if axis == "fpr" else gap
            rows.append({**levels, **fake_row(d, d - 0.001, d + 0.001, method=first, versus=second, metric=axis)})
    return pd.DataFrame(rows)


def outcomes(name, records):
    return {v.claim: v.outcome for v in EXPERIMENTS[name].judge(records)}


def test_the_tables_claims_point_the_right_way():
    found = outcomes("table", made_up())
    false = {"full fine-tuning raises ID accuracy"}
    assert {c for c, o in found.items() if o == "fails"} == false
    assert {c for c, o in found.items() if o == "holds"} == set(found) - false
    turned = outcomes("table", made_up({m: -g for m, g in GOOD.items()}))
    assert turned["full fine-tuning raises ID accuracy"] == "holds"
    # RRP against RP and zero-shot, RP against zero-shot ... all turn round.
    assert {c for c, o in turned.items() if o == "holds"} == false


def test_strength_and_shots_point_the_right_way():
    core = ("zero-shot", "linear-probe", "fine-tune", "rp", "rrp")
    low = dict(zip(core, (0, 1, 9, 4, 5), strict=True))  # fine-tuning gains much
    high = dict(zip(core, (5, 4, 3, 5.5, 7), strict=True))  # and loses here
    told = outcomes("strength", pd.concat([
        made_up(low, checkpoint="weak", fraction=0.1), made_up(high, checkpoint="strong", fraction=1.0)
    ]))  # fmt: skip
    assert set(told.values()) == {"holds"} and len(told) == 5
    turned = outcomes("strength", pd.concat([
        made_up(high, checkpoint="weak", fraction=0.1), made_up(low, checkpoint="strong", fraction=1.0)
    ]))  # fmt: skip
    assert set(turned.values()) == {"fails"}
    shots = pd.concat([made_up(high, shots=1), made_up(low, shots=50)])
    assert list(outcomes("shots", shots).values()) == ["holds", "holds", "holds", "fails"]
    assert list(outcomes("shots", pd.concat([made_up(low, shots=1), made_up(high, shots=50)])).values()) == [
        "fails", "fails", "fails", "holds",
    ]  # fmt: skip


def families(one, all_, jitter=(0, 1, -1, 0)):
    """Records of ``narrowness``: per family and as means, with one hand and with all hands."""
    rows = []
    for k, off in enumerate(jitter):
        for hands, good in (("one", one), ("all", all_)):
            moved = {m: g + (off / 5 if m == "fine-tune" and hands == "one" else 0) for m, g in good.items()}
            rows.append(made_up(moved, family=str(k), hands=hands, images=9, classes=3))
    own = pd.concat(rows, ignore_index=True)
    return pd.concat([own, over_families(own)], ignore_index=True)


def test_narrowness_points_the_right_way():
    core = ("zero-shot", "fine-tune", "rp", "rrp")
    bad, good = dict(zip(core, (5, 0, 6, 7), strict=True)), dict(zip(core, (4, 7, 4, 4), strict=True))
    assert list(outcomes("narrowness", families(bad, good)).values()) == ["holds"] * 4
    assert list(outcomes("narrowness", families(good, bad)).values()) == ["fails"] * 4
    # Families that disagree decide nothing, however many pictures there are.
    apart = outcomes("narrowness", families(bad, {**bad, "fine-tune": 1}, jitter=(0, 60, -60, 10)))
    assert set(apart.values()) == {"undecided"}
    assert "4 families" in str(experiment("narrowness").judge(families(bad, good))[1])


def test_means_over_families_by_hand():
    from scipy import stats

    value = [0.10, 0.12, 0.05, 0.09]
    rows = [
        {"family": str(k), "hands": "one", "images": 9, "classes": 3, **fake_row(v, v - 0.01, v + 0.01)}
        for k, v in enumerate(value)
    ]
    mean = over_families(pd.DataFrame(rows)).iloc[0]
    between, own = np.var(value, ddof=1) / 4, (0.01 / 1.96) ** 2
    free = (between + own) ** 2 / (between**2 / 3)
    half = stats.t.ppf(0.975, free) * np.sqrt(between + own)
    assert mean["family"] == "mean" and mean["seeds"] == 4 and mean["value"] == pytest.approx(0.09)
    assert (mean["high"] - mean["low"]) / 2 == pytest.approx(half)
    assert mean["p_holm"] == pytest.approx(2 * stats.t.sf(0.09 / np.sqrt(between + own), free))


def test_means_over_families_without_chance_of_pictures_are_a_t_test():
    from scipy import stats

    value = [0.10, 0.12, 0.05, 0.09]
    rows = [
        {"family": str(k), "hands": "one", "images": 9, "classes": 3, **fake_row(v, v, v)} for k, v in enumerate(value)
    ]
    mean, test = over_families(pd.DataFrame(rows)).iloc[0], stats.ttest_1samp(value, 0)
    assert mean["p_holm"] == pytest.approx(test.pvalue)
    assert (mean["low"], mean["high"]) == pytest.approx(tuple(test.confidence_interval(0.95)))


def widths(shares, **levels):
    """Records of ``padding`` in which a width is first in these shares of resamples, the same on both axes."""
    rows = []
    for axis in ("id accuracy", "shift accuracy"):
        for w, share in shares.items():
            more = {"method": f"rp {w}/64", "versus": None, "set": axis, "p_holm": np.nan, **levels}
            rows.append(fake_row(share, np.nan, np.nan, **more) | {"metric": "first"})
            rows.append(fake_row(1 + (share < max(shares.values())), 1, 2, **more) | {"metric": "rank"})
    return pd.DataFrame(rows)


def paddings(low, high, wider):
    """Records of two resolutions, in which the best border is ``wider`` at the lowest in this share of resamples."""
    more = {"method": "rp", "versus": None, "metric": WIDER, "resolution": 16}
    shares = [fake_row(wider, np.nan, np.nan, **more) | {"set": axis} for axis in ("id accuracy", "shift accuracy")]
    return pd.concat([widths(low, resolution=16), widths(high, resolution=64), pd.DataFrame(shares)])


def test_padding_points_the_right_way():
    narrow, wide, unsure = {1: 0.98, 8: 0.02}, {1: 0.01, 8: 0.99}, {1: 0.6, 8: 0.6}
    cases = {"holds": (wide, narrow, 0.96), "fails": (narrow, wide, 0.04), "undecided": (unsure, narrow, 0.94)}
    for expected, records in cases.items():
        assert set(outcomes("padding", paddings(*records)).values()) == {expected}
    evidence = str(experiment("padding").judge(paddings(unsure, narrow, 0.49)))
    assert "1: 50, 8: 50" in evidence and "wider at 16 px in 49 % of resamples" in evidence  # ties are split


def test_best_widths_are_compared_resample_by_resample():
    records = pd.concat([widths({1: 0.5, 8: 0.5}, resolution=r) for r in (16, 64)])
    one, eight, tie = (1.0, 0.0), (0.0, 1.0), (0.5, 0.5)
    low, high = (
        np.repeat(np.array(best)[:, :, None], 2, 2) for best in ((eight, one, eight, tie), (one, one, tie, one))
    )
    low[..., 1] = high[..., 1] = 0.3  # under shift every width is as good as any other
    found = wider_rows(records, [1, 8], low, high).set_index("set")["value"]
    assert found["id accuracy"] == pytest.approx((1 + 0 + 0.5 + 0.5) / 4) and found["shift accuracy"] == 0.25
    # Each width is best in half of the resamples at either resolution: only together do they say which is wider.
    low, high = (np.repeat(np.array(best)[:, :, None], 2, 2) for best in ((eight, one), (eight, one)))
    assert (wider_rows(records, [1, 8], low, high)["value"] == 0).all()
    assert (wider_rows(records, [1, 8], low, high[::-1])["value"] == 0.5).all()


def test_classes_point_the_right_way():
    few, many = (
        dict(zip(("zero-shot", "fine-tune", "rp", "rrp"), g, strict=True)) for g in ((0, 9, 9, 9), (0, 9, 1, 2))
    )
    one = pd.concat([made_up(few, classes=5), made_up(many, classes=40)])
    assert set(outcomes("classes", one).values()) == {"holds"}
    two = pd.concat([made_up(many, classes=5), made_up(few, classes=40)])
    assert set(outcomes("classes", two).values()) == {"fails"}


def test_remedies_point_the_right_way():
    labels = [*remedies.remedies(PAPER)]
    few = dict(zip(("fine-tune", *labels, "rp", "zero-shot"), (9, *[8.5] * len(labels), 8, 0), strict=True))
    many = dict(zip(("fine-tune", *labels, "rp", "zero-shot"), (9, *[3] * len(labels), 2, 0), strict=True))
    told = outcomes("remedies", pd.concat([made_up(few, classes=5), made_up(many, classes=40)]))
    assert len(told) == 3 + 2 * len(labels) and set(told.values()) == {"holds"}
    worse = many | {"fine-tune": 1, "rp": 9.5, "zero-shot": 0}
    turned = outcomes("remedies", pd.concat([made_up(few, classes=5), made_up(worse, classes=40)]))
    assert set(turned.values()) == {"fails"} and list(turned) == list(told)


def test_remedies_turn_what_they_say():
    config = PAPER.changed(epochs=4, warmup_steps=10)
    changed = {
        label: {k: v for k, v in dataclasses.asdict(c).items() if v != getattr(config, k)}
        for label, c in remedies.remedies(config).items()
    }
    together = {k: v for label, switches in changed.items() if label != remedies.ALL for k, v in switches.items()}
    assert changed[remedies.ALL] == together and len(together) == 5
    assert changed[remedies.TRAINED_LONGER] == {"epochs": 12, "warmup_steps": 30}
    assert all(changed[label] == switches for label, switches in remedies.SWITCHES.items())


def standing(good, outputs_of=None):
    """Records of the aggregate of methods whose every axis is ``good``, from draws of a known spread."""
    from rp_lib.experiments.standings import standings
    from rp_lib.paired import AXES, PairedDraws

    rng = np.random.default_rng(0)
    values = np.stack([np.array([g, g, g, 1 - g]) for g in good.values()])
    draws = PairedDraws(tuple(good), AXES, values, values + 0.001 * rng.standard_normal((2000, len(good), 4)))
    said = type("Said", (), {"test": [0] * 9, "shifts": {"s": [0] * 5}, "ood": {"o": [0] * 7}})()
    return standings({m: [said] for m in good}, draws, "msp")


def test_the_best_aggregate_is_judged_against_every_other_method():
    from rp_lib.experiments.standings import on_the_aggregate

    first = on_the_aggregate(standing({"rrp": 0.9, "rp": 0.8, "zero-shot": 0.85}))
    assert [v.outcome for v in first] == ["holds", "holds"] and "than zero-shot" in first[1].claim
    assert "rank 1 [1, 1] of 3" in first[0].evidence and "+5.0 points" in first[1].evidence
    last = on_the_aggregate(standing({"rrp": 0.8, "rp": 0.7, "zero-shot": 0.85}))
    assert [v.outcome for v in last] == ["fails", "fails"] and "ahead for certain of rp, behind zero-shot" in str(
        last[0]
    )
    tied = on_the_aggregate(standing({"rrp": 0.85, "rp": 0.7, "zero-shot": 0.85}))
    assert [v.outcome for v in tied] == ["undecided", "undecided"]
    assert on_the_aggregate(made_up()) == []


def test_standings_hold_ranks_shares_and_the_aggregate_of_the_right_axes():
    records = standing({"rrp": 0.9, "rp": 0.8, "zero-shot": 0.85})
    rank = records[records["metric"] == "rank"].pivot(index="method", columns="set", values="value")
    assert (rank.loc["rrp"] == 1).all() and (rank.loc["rp"] == 3).all()  # a low FPR ranks first too
    total = records[(records["metric"] == "aggregate") & records["versus"].isna()].set_index("method")
    assert (
        total.loc["rp", "value"] == pytest.approx(0.8) and 0 < total.loc["rp", "high"] - total.loc["rp", "low"] < 0.003
    )
    first = records[records["metric"] == "first"].groupby("set")["value"].sum()
    assert np.allclose(first, 1) and len(first) == 5


def test_ledger_lists_what_it_cannot_measure():
    rows = made_up({"rrp, row 5: residual not renormalised": 1, "rrp": 2}, preset="paper, tuned")
    verdicts = EXPERIMENTS["ledger"].judge(rows)
    assert [v.outcome for v in verdicts] == ["holds", "undecided", "undecided", "undecided"]
    assert all("needs the full track" in v.evidence for v in verdicts[1:])


def test_a_whole_rerun_reproduces_itself_and_other_weights_are_not_compared(world, tmp_path):
    e = experiment("programs")
    first = run(e, world, tmp_path / "one", shipped=tmp_path / "nowhere")
    assert first.agreement is None
    again = run(e, world, tmp_path / "two", shipped=tmp_path / "one").agreement
    assert again.compared > 50 and again.inside == again.compared
    world.clip = make_clip(7)
    assert run(e, world, tmp_path / "three", shipped=tmp_path / "one").agreement is None


# Worlds and data ------------------------------------------------------------------------------------


def test_lighter_benchmark_keeps_pairs_together(tiny_benchmark):
    light = lighten(tiny_benchmark, 5, 4)
    assert len(light.test) == min(5, len(tiny_benchmark.test))
    for images in light.shifts.values():
        if images.derived_from:
            assert set(images.sources.tolist()) <= set(light.test.sources.tolist()) and len(images)
        else:
            assert len(images) <= 4
    assert evenly(10, 5).tolist() == [0, 2, 4, 6, 8] and evenly(3, 5).tolist() == [0, 1, 2]


def test_shots_are_nested_and_seeded(tiny_benchmark):
    train = tiny_benchmark.train
    one, two, other = per_class(train, 1, 0), per_class(train, 2, 0), per_class(train, 1, 1)
    assert one.labels.bincount().max() == 1 and len(one) == len(train.labels.unique())
    assert {i.numpy().tobytes() for i in one.images} <= {i.numpy().tobytes() for i in two.images}
    assert one.fingerprint != other.fingerprint and one.fingerprint == per_class(train, 1, 0).fingerprint


def test_families_take_turns_up_to_the_counts(tiny_benchmark):
    from dataclasses import replace

    n = len(tiny_benchmark.train)
    train = replace(tiny_benchmark.train, groups=torch.arange(n) // 8)
    counts = train.labels[train.groups == 0].bincount(minlength=len(tiny_benchmark.class_names))
    one, all_ = of_families(train, [0], counts), of_families(train, [0, 1, 2], counts)
    assert set(one.groups.tolist()) == {0} and len(one) == int((train.groups == 0).sum())
    assert len(all_.groups.unique()) > 1 and (all_.labels.bincount(minlength=len(counts)) <= counts).all()


def test_fewer_classes_are_relabelled(tiny_benchmark):
    small = of_classes(tiny_benchmark, [2, 0])
    assert small.class_names == (tiny_benchmark.class_names[2], tiny_benchmark.class_names[0])
    old = tiny_benchmark.test
    assert len(small.test) == int(((old.labels == 2) | (old.labels == 0)).sum())
    first = int((old.labels == 2).nonzero()[0])
    where = small.test.sources.tolist().index(int(old.sources[first]))
    assert small.test.labels[where] == 0 and small.test.fingerprint != old.fingerprint


def test_lower_resolution_is_another_benchmark(tiny_benchmark):
    side = tiny_benchmark.test.images.shape[-1]
    assert at_resolution(tiny_benchmark, side) is tiny_benchmark
    low = at_resolution(tiny_benchmark, side // 2)
    assert low.test.images.shape[-1] == side // 2 and low.fingerprint != tiny_benchmark.fingerprint
    assert all(low.shifts[k].fingerprint != s.fingerprint for k, s in tiny_benchmark.shifts.items())


def test_each_ledger_row_changes_its_switches_alone():
    from dataclasses import asdict

    paper, released = asdict(PAPER), asdict(AS_RELEASED)
    for number, (_, names, _) in ROWS.items():
        changed = asdict(switched(PAPER, number))
        assert all(changed[n] == released[n] for n in names)
        assert {k for k in paper if changed[k] != paper[k]} <= set(names)
    named = {n for _, names, _ in ROWS.values() for n in names}
    # border_init is N(0, 1) in both presets; the convention of row 14 is compared in rp_lib.metrics.
    assert {k for k in paper if paper[k] != released[k]} - {"convention"} <= named


def test_changed_borders_differ_from_the_trained_one_in_the_border_alone(tiny_clip, tiny_benchmark, world):
    rp = world.fit("rp", 1, tiny_benchmark, tiny_clip)
    torch.nn.init.uniform_(rp.image_program.W, 0.1, 2.0)  # an epoch hardly moves it
    image = tiny_benchmark.test.images[:1]
    trained, mask = rp.program_images(image)[0].detach(), rp.image_program.M.bool()
    for change in CHANGES:
        shown = with_border(rp, change).program_images(image)[0].detach()
        torch.testing.assert_close(shown[:, ~mask], trained[:, ~mask])
        assert not torch.allclose(shown[:, mask], trained[:, mask], atol=1e-3), change
    shuffled = with_border(rp, "its pixels shuffled").program_images(image)[0].detach()
    torch.testing.assert_close(shuffled[:, mask].sort(1).values, trained[:, mask].sort(1).values, atol=1e-5, rtol=0)
    assert with_border(rp, "white").program_images(image)[0, :, mask].min() > 0.999


# Running --------------------------------------------------------------------------------------------


def test_grid_is_kept_condition_by_condition(world, tiny_benchmark, tmp_path, monkeypatch):
    conditions = [
        Condition({"level": k}, tiny_benchmark, methods("zero-shot", "linear-probe") | {"lp": Entry("linear-probe", {"epochs": k})})
        for k in (1, 3)
    ]  # fmt: skip
    records = run_grid(world, conditions, tmp_path)
    assert set(records["level"]) == {1, 3} and set(COLUMNS) <= set(records.columns)
    plain = records[records["versus"].isna() & (records["set"] == "test") & (records["metric"] == "accuracy")]
    assert len(plain) == 6 and (plain["low"] <= plain["value"]).all() and (plain["value"] <= plain["high"]).all()
    assert dict(zip(plain["method"], plain["seeds"], strict=False)) == {"zero-shot": 1, "linear-probe": 2, "lp": 2}
    gaps = records[records["versus"].notna()]
    assert len(gaps) == 2 * 3 * 4
    one = gaps[(gaps["level"] == 1) & (gaps["method"] == "zero-shot") & (gaps["versus"] == "linear-probe")]
    by = plain[plain["level"] == 1].set_index("method")["value"]
    paired = one.set_index("metric")["value"]["id accuracy"]
    assert paired == pytest.approx(by["zero-shot"] - by["linear-probe"], abs=1e-4)
    monkeypatch.setattr(World, "fit", lambda *a, **k: pytest.fail("measured again"))
    pd.testing.assert_frame_equal(run_grid(world, conditions, tmp_path), records)


def test_entries_that_share_training_are_evaluated_under_their_own_switches(world, tiny_benchmark, tmp_path):
    entries = {
        "rp": Entry("rp", {"config": QUICK}),
        "same": Entry("rp", {"config": QUICK}, shares="rp"),
        "wrapped": Entry("rp", {"config": QUICK.changed(wrap_around_detection=True)}, shares="rp"),
    }
    records = run_grid(world, [Condition({"k": 0}, tiny_benchmark, entries)], tmp_path)
    value = records[records["versus"].isna()].set_index(["method", "set", "metric"])["value"]
    same = records[(records["method"] == "rp") & (records["versus"] == "same")]
    assert (same["value"].abs() < 1e-9).all() and (same["high"].abs() < 1e-9).all()
    assert value["rp", "test", "accuracy"] == value["wrapped", "test", "accuracy"]
    assert value["rp", "mean of OOD sets", "auroc"] != value["wrapped", "mean of OOD sets", "auroc"]


@pytest.mark.parametrize("name", list(EXPERIMENTS))
def test_every_experiment_runs_and_judges(name, world, tiny_clip, tiny_benchmark, tmp_path, monkeypatch):
    from rp_lib.experiments import neighbours, size, table

    # UMAP compiles itself for a quarter of a minute; test_umap_is_repeatable runs it.
    monkeypatch.setattr(neighbours, "umap", lambda features, seed: features[:, :2])
    world.quick, world.seeds = True, (1,)
    if name in ("strength", "size"):  # which want shipped backbones, and not one of the world's own
        with pytest.raises(RPLibError, match="leave `clip` out"):
            run(experiment(name), world, tmp_path)
        monkeypatch.setattr(size, "FILE", tmp_path / "narrow.safetensors")
        size.FILE.write_bytes(b"")
        kept = {n: make_clip(seed) for seed, n in enumerate((*weights.names(), str(size.FILE)))}
        monkeypatch.setattr(World, "backbone", lambda self, checkpoint="final": kept[checkpoint])
        world = dataclasses.replace(world, clip=None)
    words = mine_negative_words(
        tiny_clip, world.benchmark.class_names, world.benchmark.templates, ["sea", "sky", "sand"]
    )
    monkeypatch.setattr(table, "mine_negative_words", lambda *a: words)  # the whole vocabulary takes a minute
    if name == "intrusion":
        ood = {
            k: dataclasses.replace(s, names=["cat", "tree"] * (len(s) // 2) + ["cat"] * (len(s) % 2))
            for k, s in tiny_benchmark.ood.items()
        }
        world.benchmark = dataclasses.replace(tiny_benchmark, ood=ood)
    e = experiment(name)
    finding = run(e, world, tmp_path)
    assert len(finding.records) and finding.verdicts and finding.agreement is None
    assert {v.outcome for v in finding.verdicts} <= {"holds", "fails", "undecided"}
    assert all(isinstance(v, Verdict) and v.evidence for v in finding.verdicts)
    kept = pd.read_csv(tmp_path / f"{name}.csv")
    assert list(kept.columns) == [*e.factors, *COLUMNS] and np.isfinite(kept["value"]).all()
    # Verdicts follow from the file alone.
    assert [v.outcome for v in e.judge(kept)] == [v.outcome for v in finding.verdicts]
    drawn = figures(e, kept)
    assert drawn
    for suffix in drawn:
        told = alt(e, kept, suffix)
        assert told.endswith(".") and "nan" not in told and len(told) < 1200, told
    about = json.loads((tmp_path / f"{name}.json").read_text())
    assert ("checkpoints" in about) == (name in ("strength", "size", "remedies"))
    assert set(about["parts"]) == {"measured", "reused"} and not about["parts"]["reused"]


def test_records_can_be_judged_again_without_measuring(world, tmp_path, monkeypatch):
    e = experiment("programs")
    finding = run(e, world, tmp_path)
    before = (tmp_path / "programs.json").read_text()
    # Word for word, though the file's numbers are rounded; and the file stays as it is.
    assert rejudge(e, tmp_path).verdicts == finding.verdicts and (tmp_path / "programs.json").read_text() == before
    new = dataclasses.replace(e, judge=lambda records: [Verdict("c", "holds", "so")])
    rejudge(new, tmp_path)
    about = json.loads((tmp_path / "programs.json").read_text())
    assert about["verdicts"] == [{"claim": "c", "outcome": "holds", "evidence": "so"}] and "judged_by" in about
    assert about["records_sha256"] == json.loads(before)["records_sha256"]
    (tmp_path / "programs.csv").write_text((tmp_path / "programs.csv").read_text().replace("rp-text", "rp-test"))
    with pytest.raises(StorageError, match="altered"):
        rejudge(e, tmp_path)


def test_reused_parts_are_told_with_the_commit_that_measured_them(world, tmp_path, monkeypatch):
    from rp_lib.experiments import grid

    monkeypatch.setattr(grid, "commit", lambda: "abc123")
    e = experiment("programs")
    told = lambda: json.loads((tmp_path / "programs.json").read_text())["parts"]  # noqa: E731
    run(e, world, tmp_path)
    assert told() == {"measured": 1, "reused": {}}
    monkeypatch.setattr(grid, "commit", lambda: "def456")
    run(e, world, tmp_path)
    assert told() == {"measured": 0, "reused": {"abc123": 1}}
    for path in (tmp_path / "parts" / "programs").glob("*.json"):  # as parts of before this was noted
        path.unlink()
    run(e, world, tmp_path)
    assert told() == {"measured": 0, "reused": {"unknown": 1}}


def test_alternative_texts_say_what_the_records_say():
    rows = []
    for shots, good in ((1, {"rp": 0.9, "zero-shot": 0.8}), (4, {"rp": 0.5, "zero-shot": 0.95})):
        for method, value in good.items():
            for data, metric in (("test", "accuracy"), ("mean of OOD sets", "fpr")):
                more = {"method": method, "versus": None, "set": data, "shots": shots, "detector": "msp"}
                rows.append(fake_row(value, value - 0.1, value, **more) | {"metric": metric})
    records = pd.DataFrame(rows)
    told = alt(EXPERIMENTS["shots"], records)
    assert "At 1, ID accuracy is best for Reprogrammer (RP) (90.0 %) and worst for Zero-shot (80.0 %)" in told
    assert "At 4, ID accuracy is best for Zero-shot (95.0 %)" in told
    assert "At 1, " in told and "FPR95 is best for Zero-shot (80.0 %) and worst for Reprogrammer (RP) (90.0 %)" in told
    with pytest.raises(UnknownName, match="figure"):
        alt(EXPERIMENTS["shots"], records, "-ranks")


def test_the_frontier_marks_the_picked_points():
    rows = []
    for method in ("rrp", "wise-ft"):
        for rule, alpha in (*(("grid", a) for a in (0.0, 0.5, 1.0)), ("picked", 0.25)):
            for data, metric in (("test", "accuracy"), ("mean of shifts", "accuracy"), ("mean of OOD sets", "fpr")):
                value = 0.6 + 0.1 * alpha + (0.05 if rule == "picked" and method == "rrp" else 0)
                more = {"method": method, "versus": None, "set": data, "rule": rule, "alpha": alpha}
                rows.append(fake_row(value, value - 0.1, value + 0.1, **more) | {"metric": metric})
    records = pd.DataFrame(rows)
    figure = figures(EXPERIMENTS["frontier"], records)[""]
    for panel in figure.axes:
        labels = {t for t in panel.get_legend_handles_labels()[1]}
        assert labels == {"Residual Reprogrammer (RRP), picked alpha 0.25", "WiSE-FT, picked alpha 0.25", "Zero-shot"}
        picked = next(c for c in panel.containers if c.get_label().startswith("Residual"))[0]
        assert picked.get_xdata() == pytest.approx([67.5]) and picked.get_ydata() == pytest.approx([67.5])
        curve = next(line for line in panel.lines if len(line.get_xdata()) == 3)
        assert curve.get_xdata() == pytest.approx([60, 65, 70])
    assert figure.axes[0].yaxis_inverted() and not figure.axes[2].yaxis_inverted()
    told = alt(EXPERIMENTS["frontier"], records)
    assert (
        "(RRP) picks alpha 0.25 with 67.5 % under shift and FPR95 67.5 %, where its curve reaches 70.0 % and 60.0 %"
        in told
    )


def test_the_command_prints_the_whole_table_and_draws_again_without_measuring(world, tmp_path, capsys, monkeypatch):
    from rp_lib.experiments import table

    words = mine_negative_words(
        world.clip, world.benchmark.class_names, world.benchmark.templates, ["sea", "sky", "sand"]
    )
    monkeypatch.setattr(table, "mine_negative_words", lambda *a: words)
    world.quick, world.seeds = True, (1,)
    run(experiment("table"), world, tmp_path)
    monkeypatch.setattr(World, "__post_init__", lambda self: pytest.fail("a world was made"))
    assert main(["experiment", "table", "--rejudge", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert all(f"\n{m} " in said for m in table.QUICK) and all(d in said for d in DETECTORS)
    for head in ("ID acc", "shift acc", "mean of three", "its rank", "AUROC by detector", "FPR95 by detector"):
        assert head in said
    assert {p.name for p in tmp_path.glob("*.png")} == {f"table{s}.png" for s in ("", "-ranks", "-auroc", "-fpr")}
    assert "RRP has the best mean of the three axes" in said


def test_table_is_made_from_saved_outputs_of_these_settings_alone(world, tmp_path, monkeypatch):
    from rp_lib.experiments import table

    words = mine_negative_words(
        world.clip, world.benchmark.class_names, world.benchmark.templates, ["sea", "sky", "sand"]
    )
    monkeypatch.setattr(table, "mine_negative_words", lambda *a: words)
    names = ("zero-shot", "linear-probe")
    first = table.saved_outputs(world, tmp_path, names)
    assert [len(first[n]) for n in names] == [1, 2]
    counted = []
    fit = World.fit
    monkeypatch.setattr(World, "fit", lambda self, name, *a, **k: (counted.append(name), fit(self, name, *a, **k))[1])
    again = table.saved_outputs(world, tmp_path, names)
    assert not counted and torch.equal(again["zero-shot"][0].test.logits, first["zero-shot"][0].test.logits)
    world.settings = {**world.settings, "linear-probe": {"epochs": 3}}
    table.saved_outputs(world, tmp_path, names)
    assert counted.count("linear-probe") == 2


def test_every_detector_says_of_every_method_a_number_or_that_it_does_not_apply(world, tmp_path, monkeypatch):
    from rp_lib.experiments import table
    from rp_lib.experiments.grid import judge_outputs

    words = mine_negative_words(
        world.clip, world.benchmark.class_names, world.benchmark.templates, ["sea", "sky", "sand"]
    )
    monkeypatch.setattr(table, "mine_negative_words", lambda *a: words)
    quick = {
        "l2-sp": {"epochs": 1},
        "lp-ft": {"epochs": 1},
        "flyp": {"epochs": 1},
        "maple": {"epochs": 1, "n_prompts": 1},
    }
    world.settings, world.seeds = {**SETTINGS, **quick}, (1,)
    outputs = table.saved_outputs(world, tmp_path, tuple(METHODS))
    records = judge_outputs(outputs, [("rrp", "rp")], tuple(DETECTORS))
    rows = records[(records["set"] == "mean of OOD sets") & (records["metric"] == "auroc")]
    missing = {(m, d) for m in METHODS for d in DETECTORS} - set(zip(rows["method"], rows["detector"], strict=True))
    biased = {"linear-probe", "lp-ft"}  # their classes are no directions in feature space
    assert missing == {(m, d) for m in biased for d in ("mcm", "neg-label")} | {("logit-ensemble", "neg-label")}


def test_shipped_checkpoints_are_loaded_once(tiny_benchmark):
    world = World(tiny_benchmark, SETTINGS, progress=False)
    assert world.backbone("final") is world.backbone() and world.backbone("final").name == "mini:final"
    with pytest.raises(UnknownName):
        world.backbone("finale")


def test_umap_is_repeatable_and_keeps_neighbours():
    from sklearn.manifold import trustworthiness

    from rp_lib.experiments.neighbours import umap

    rng = np.random.default_rng(0)
    features = (np.eye(4)[np.arange(40) % 4] + 0.05 * rng.standard_normal((40, 4))).astype(np.float32)
    one, two = umap(features, 3), umap(features, 3)
    assert one.shape == (40, 2) and np.array_equal(one, two)
    assert trustworthiness(features, one, n_neighbors=5, metric="cosine") > 0.8


def test_unknown_experiments_and_bad_options_are_refused(capsys):
    with pytest.raises(UnknownName, match="did you mean ledger"):
        experiment("leger")
    assert main(["experiment"]) == 2 and "--list" in capsys.readouterr().err
    assert main(["experiment", "ledger", "--seeds", "0"]) == 2
    assert main(["experiment", "--list"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in EXPERIMENTS)
