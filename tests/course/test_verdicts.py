"""What experiments say of made-up records: verdicts that can come out either way, figures, alternative texts."""

import dataclasses
import itertools

import numpy as np
import pandas as pd
import pytest
from rp_course.experiments import EXPERIMENTS, experiment, rate, remedies
from rp_course.experiments.base import compare, difference, shrinks
from rp_course.experiments.figures import alt, figures
from rp_course.experiments.padding import WIDER, wider_rows
from rp_course.experiments.released_code import FULL_TRACK
from rp_course.experiments.single_designer import over_families

from rp_lib.config import PAPER
from rp_lib.utils.errors import RPLibError, UnknownName


def fake_row(value, low, high, **more):
    return {"method": "a", "versus": "b", "set": "", "metric": "fpr", "value": value, "low": low, "high": high,
            "p_holm": 0.001,
            "seeds": 3, "n": 10, "n_ood": 5, "detector": "msp", **more}  # fmt: skip


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


def both(records):
    """Records in which both settings give the same."""
    return pd.concat([records.assign(choice=choice) for choice in ("tuned", "published")], ignore_index=True)


def outcomes(name, records):
    if "choice" in EXPERIMENTS[name].factors:
        records = both(records)
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


def test_a_claim_holds_only_if_it_holds_with_both_settings():
    good = made_up().assign(choice="tuned")
    bad = made_up({m: -g for m, g in GOOD.items()}).assign(choice="published")
    verdicts = EXPERIMENTS["table"].judge(pd.concat([good, bad]))
    assert {v.outcome for v in verdicts} == {"depends on the setting"}
    assert all({p.outcome for p in v.parts.values()} == {"holds", "fails"} for v in verdicts)
    assert all(v.evidence.startswith("tuned settings: ") and "; published settings: " in v.evidence for v in verdicts)
    assert verdicts[0].as_dict()["parts"]["tuned"]["outcome"] == verdicts[0].parts["tuned"].outcome
    same = EXPERIMENTS["table"].judge(pd.concat([good, good.assign(choice="published")]))
    assert {v.outcome for v in same} <= {"holds", "fails"}


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
    assert "4 families" in str(experiment("narrowness").judge(both(families(bad, good)))[1])


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
    together = {k: v for label, turned in changed.items() if label != remedies.ALL for k, v in turned.items()}
    assert changed[remedies.ALL] == together and len(together) == 5
    assert changed[remedies.TRAINED_LONGER] == {"epochs": 12, "warmup_steps": 30}
    assert all(changed[label] == turned for label, turned in remedies.switches(config).items())


def standing(good, outputs_of=None):
    """Records of the aggregate of methods whose every axis is ``good``, from draws of a known spread."""
    from rp_course.experiments.table import standings

    from rp_lib.comparison import AXES, PairedDraws
    from rp_lib.stats import Design

    rng = np.random.default_rng(0)
    values = np.stack([np.array([g, g, g, 1 - g]) for g in good.values()])
    resampled = values + 0.001 * rng.standard_normal((2000, len(good), 4))
    numbers = np.concatenate([values[None], resampled]).transpose(1, 0, 2)[:, None]
    draws = PairedDraws(tuple(good), AXES, numbers, (Design(),) * len(AXES))
    said = type("Said", (), {"test": [0] * 9, "shifts": {"s": [0] * 5}, "ood": {"o": [0] * 7}})()
    return standings({m: [said] for m in good}, draws, "msp")


def test_the_best_aggregate_is_judged_against_every_other_method():
    from rp_course.experiments.table import on_the_aggregate

    first = on_the_aggregate(standing({"rrp": 0.9, "rp": 0.8, "zero-shot": 0.85}))
    assert [v.outcome for v in first] == ["holds", "holds"] and "rrp - zero-shot" in first[1].evidence
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
    assert [v.outcome for v in verdicts] == ["holds"] + ["undecided"] * len(FULL_TRACK)
    assert all("needs the full track" in v.evidence for v in verdicts[1:])


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


def rate_records(published, ten_times):
    """Fine-tuning's differences to zero-shot, and RRP's to it, at the published rate and at ten times it."""
    rows = []
    for rest, factor, value in (("tuned", 1.0, published), ("tuned", 10.0, ten_times), ("published", 1.0, published)):
        for axis in ("shift accuracy", "auroc"):
            for method, versus, gap in (("fine-tune", "zero-shot", value), ("rrp", "fine-tune", -value)):
                more = {"method": method, "versus": versus, "metric": axis, "rest": rest, "factor": factor}
                rows.append(fake_row(gap, gap - 0.01, gap + 0.01, **more))
        for k, method in enumerate(("zero-shot", *rate.RATES)):
            for data, metric, _ in rate.PANELS:
                more = {"method": method, "versus": None, "set": data, "rest": rest, "factor": factor}
                level = 0.8 + k / 100 + (value if method == "fine-tune" else 0)
                rows.append(fake_row(level, level - 0.01, level + 0.01, **more) | {"metric": metric})
    return pd.DataFrame(rows)


def test_what_fine_tuning_costs_is_told_for_the_published_settings_and_for_a_higher_rate():
    price_of_the_rate = [v.outcome for v in experiment("rate").judge(rate_records(0.02, -0.05))]
    assert price_of_the_rate == ["fails", "fails", "holds", "holds", "holds", "holds", "fails"]
    at_every_rate = [v.outcome for v in experiment("rate").judge(rate_records(-0.03, -0.03))]
    assert at_every_rate == ["holds"] * 4 + ["undecided"] * 2 + ["holds"]


def test_rates_are_drawn_over_their_multiple_with_the_published_settings_apart():
    records = rate_records(0.02, -0.05)
    panel = figures(EXPERIMENTS["rate"], records)[""].axes[1]
    assert panel.get_xscale() == "log"
    line = next(c for c in panel.containers if c.get_label() == "Full fine-tuning" or "ine-tun" in c.get_label())[0]
    assert line.get_xdata() == pytest.approx([1, 10]) and line.get_ydata() == pytest.approx([83, 76])
    stars = [x for x in panel.lines if x.get_marker() == "*" and len(x.get_xdata()) == 1]
    assert any(x.get_ydata() == pytest.approx([83]) for x in stars)
    assert "83.0 % at 1 and 76.0 % at 10" in alt(EXPERIMENTS["rate"], records)
