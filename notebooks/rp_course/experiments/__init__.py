"""Named experiments: a question, a measurement, and verdicts that code reads off the records."""

from __future__ import annotations

from rp_course.experiments import (
    border,
    feature_drift,
    frontier,
    losses,
    neighbours,
    padding,
    rate,
    remedies,
    size,
    table,
    training_data,
)
from rp_course.experiments import pretraining as strength
from rp_course.experiments import released_code as ledger
from rp_course.experiments import single_designer as narrowness
from rp_course.experiments import token_drift as words
from rp_course.experiments.base import Drawing, Experiment, ExperimentResult, Verdict, rejudge, run, shipped_records
from rp_course.experiments.both_settings import on_both_settings
from rp_course.experiments.world import World
from rp_lib.utils.errors import UnknownName

# Measured, judged and drawn with tuned and with published settings, by `table` and `rate` in ways of their own.
_OWN_WAY = ("table", "rate")
_ALL = (
    table.EXPERIMENT,
    rate.EXPERIMENT,
    frontier.EXPERIMENT,
    losses.PROGRAMS_EXPERIMENT,
    feature_drift.EXPERIMENT,
    border.EXPERIMENT,
    words.EXPERIMENT,
    neighbours.EXPERIMENT,
    padding.EXPERIMENT,
    losses.LOSSES_EXPERIMENT,
    ledger.EXPERIMENT,
    strength.EXPERIMENT,
    size.EXPERIMENT,
    training_data.SHOTS_EXPERIMENT,
    narrowness.EXPERIMENT,
    training_data.CLASSES_EXPERIMENT,
    remedies.EXPERIMENT,
)
EXPERIMENTS: dict[str, Experiment] = {e.name: e if e.name in _OWN_WAY else on_both_settings(e) for e in _ALL}


def experiment(name: str) -> Experiment:
    """An experiment by name.

    Raises:
        UnknownName: there is none of that name.
    """
    if name not in EXPERIMENTS:
        raise UnknownName("experiment", name, EXPERIMENTS)
    return EXPERIMENTS[name]


__all__ = [
    "EXPERIMENTS",
    "Drawing",
    "Experiment",
    "ExperimentResult",
    "Verdict",
    "World",
    "experiment",
    "rejudge",
    "run",
    "shipped_records",
]
