"""Named experiments: a question, a measurement, and verdicts that code reads off the records."""

from __future__ import annotations

from rp_lib.errors import UnknownName
from rp_lib.experiments import (
    border,
    frontier,
    intrusion,
    ledger,
    losses,
    narrowness,
    neighbours,
    padding,
    remedies,
    size,
    strength,
    table,
    training_data,
    words,
)
from rp_lib.experiments.base import Drawing, Experiment, Finding, Verdict, rejudge, run, shipped_records
from rp_lib.experiments.world import World

EXPERIMENTS: dict[str, Experiment] = {
    e.name: e
    for e in (
        table.EXPERIMENT,
        frontier.EXPERIMENT,
        losses.PROGRAMS_EXPERIMENT,
        intrusion.EXPERIMENT,
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
}


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
    "Finding",
    "Verdict",
    "World",
    "experiment",
    "rejudge",
    "run",
    "shipped_records",
]
