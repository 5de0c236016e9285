"""Forest plots and lines of verdicts show the numbers of the evidence."""

import pytest
from rp_course.experiments import EXPERIMENTS, experiment, shipped_records
from rp_course.experiments.base import Verdict
from rp_course.show import WIDTH
from rp_course.verdicts import OUTCOMES, forest, interval, ledger, line, show_verdicts

UP = Verdict("a beats b", "holds", "a - b = +10.7 points [+9.3, +12.1] AUROC, Holm p = 0.014, 3 seeds, n = 9")
OWN = Verdict("a moves less", "undecided", "a - b = -0.106 [-0.209, +0.003] cosine drift on test, Holm p = 0.2")
CHANGE = Verdict("it shrinks", "fails", "a - b with 5 and 40: +0.0 [-1.0, +1.0] against +4.0 [+3.0, +5.0] points, change -4.0 ± 1.5")
NONE = Verdict("every word stays", "holds", "47 of 47 words, in all of 3 seeds")


def test_interval_is_the_difference_of_the_evidence():
    assert interval(UP) == (10.7, 9.3, 12.1, True)
    assert interval(OWN) == (-0.106, -0.209, 0.003, False)
    assert interval(CHANGE) == (-4.0, -5.5, -2.5, True)
    assert interval(NONE) is None


def test_lines_hold_outcome_numbers_and_claim_and_fit_a_page():
    assert line(UP) == "holds     +10.7 [+9.3, +12.1]     a beats b"
    assert line(OWN).endswith("-0.106 [-0.209, +0.003] a moves less")
    assert line(NONE) == "holds     every word stays: 47 of 47 words, in all of 3 seeds"
    for name in EXPERIMENTS:
        for verdict in experiment(name).judge(shipped_records(name)):
            assert max(map(len, line(verdict).splitlines())) <= WIDTH


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_decided_differences_leave_out_zero(name):
    judged = experiment(name).judge(shipped_records(name))
    for verdict in (part for v in judged for part in (v.parts.values() or [v])):
        found = interval(verdict)
        if found is not None:
            assert found.low <= found.value <= found.high
            assert verdict.outcome == "undecided" or found.low >= 0 or found.high <= 0


BOTH = Verdict("a beats b", "depends on the setting", "tuned settings: a - b = +10.7", {"tuned": UP, "published": OWN})


def test_both_settings_have_a_line_and_a_mark_each_the_published_one_hollow():
    assert line(BOTH).splitlines() == [
        "depends on the setting: a beats b",
        "    tuned      holds      +10.7 [+9.3, +12.1]",
        "    published  undecided  -0.106 [-0.209, +0.003]",
    ]
    both = Verdict("a beats b", "depends on the setting", UP.evidence, {"tuned": UP, "published": CHANGE})
    (panel,) = forest([both]).axes
    tuned, published = (container.lines[0] for container in panel.containers)
    assert tuned.get_xdata()[0] == 10.7 and published.get_xdata()[0] == -4.0
    assert tuned.get_ydata()[0] < published.get_ydata()[0]  # the axis points down
    assert tuned.get_markerfacecolor() == OUTCOMES["holds"][0] and published.get_markerfacecolor() == "white"
    assert published.get_color() == OUTCOMES["fails"][0]


def test_forest_has_a_mark_in_the_colour_of_the_outcome_at_each_difference():
    figure = forest([UP, CHANGE, OWN])
    points, own = figure.axes
    assert [t.get_text() for t in points.get_yticklabels()] == ["a beats b", "it shrinks"]
    assert [t.get_text() for t in own.get_yticklabels()] == ["a moves less"]
    for container, verdict in zip(points.containers, (UP, CHANGE), strict=True):
        mark = container.lines[0]
        assert mark.get_xdata()[0] == interval(verdict).value and mark.get_color() == OUTCOMES[verdict.outcome][0]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_labels_of_a_forest_hold_the_complete_claims(name):
    drawn = [v for v in experiment(name).judge(shipped_records(name)) if interval(v) is not None]
    if drawn:
        labels = [t.get_text().replace("\n", " ") for panel in forest(drawn).axes for t in panel.get_yticklabels()]
        assert sorted(labels) == sorted(v.claim for v in drawn)


def test_show_prints_all_and_draws_those_with_a_difference(capsys):
    show_verdicts([UP, NONE], "a test")
    out = capsys.readouterr().out
    assert "behind 1 verdicts on a test" in out and line(UP) in out and line(NONE) in out


def test_ledger_fills_what_is_decided():
    figure = ledger(shipped_records("ledger"))
    panels = {panel.get_title(): panel for panel in figure.axes}
    names = [t.get_text().replace("\n", " ") for t in figure.axes[0].get_yticklabels()]
    ten = next(y for y, name in enumerate(names) if name.startswith("row 10"))
    for title, decided in {"ID accuracy": 0, "accuracy under shift": 1, "AUROC": 0, "FPR95": 0}.items():
        near = [c.lines[0] for c in panels[title].containers if abs(c.lines[0].get_ydata()[0] - ten) < 0.4]
        filled = {mark.get_color() for mark in near if mark.get_markerfacecolor() == mark.get_color()}
        assert filled == {"#0072B2"} if decided else not filled  # hidden by the residual for RRP
