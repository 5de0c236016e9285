"""Every claim twice: with the settings that the search chose, and with those that were published.

What holds with one set of hyper-parameters only is no property of a method. The records have a column ``choice``, and a
claim holds (or fails) if it does so with both; else it depends on the setting.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pandas as pd

from rp_course.experiments.base import DEPENDS, PUBLISHED, TUNED, Drawing, Experiment, Verdict, pick
from rp_course.experiments.figures import drawings
from rp_course.experiments.world import World
from rp_lib.utils.errors import RPLibError


def on_both_settings(experiment: Experiment) -> Experiment:
    """The experiment measured, judged and drawn with both settings; figures of the published ones end ``-published``.

    A claim that names a condition of its own keeps its name; both halves must claim the same.
    """
    halves = {TUNED: "", PUBLISHED: f"-{PUBLISHED}"}

    def both_drawings() -> Mapping[str, Drawing]:
        return {
            f"{suffix}{end}": of_half(choice, drawing)
            for choice, end in halves.items()
            for suffix, drawing in drawings(experiment).items()
        }

    return replace(
        experiment, factors=("choice", *experiment.factors), measure=with_both_settings(experiment.measure),
        judge=at_both_settings(experiment.judge), figures=both_drawings,
    )  # fmt: skip


def of_half(choice: str, drawing: Drawing) -> Drawing:
    """A drawing of the records with one choice of settings."""
    return Drawing(lambda r: drawing.draw(_half(r, choice)), lambda r: drawing.alt(_half(r, choice)))


def _half(records: pd.DataFrame, choice: str) -> pd.DataFrame:
    """The records with one choice of settings; all of them, if they were measured with one choice alone."""
    return pick(records, choice=choice) if "choice" in records else records


def with_both_settings(measure: Callable[[World, Path], pd.DataFrame]) -> Callable[[World, Path], pd.DataFrame]:
    """Measure with the tuned settings, then with the published ones; the column ``choice`` says which."""

    def measured(world: World, parts: Path) -> pd.DataFrame:
        halves = [(TUNED, measure(world, parts)), (PUBLISHED, measure(world.as_published(), parts / PUBLISHED))]
        return pd.concat([half.assign(choice=choice) for choice, half in halves], ignore_index=True)

    return measured


def at_both_settings(judge: Callable[[pd.DataFrame], list[Verdict]]) -> Callable[[pd.DataFrame], list[Verdict]]:
    """Judge each half of the records on its own; where the halves disagree, a claim depends on the setting."""

    def judged(records: pd.DataFrame) -> list[Verdict]:
        if "choice" not in records:  # measured with the tuned settings alone
            return judge(records)
        halves = {choice: judge(pick(records, choice=choice)) for choice in (TUNED, PUBLISHED)}
        return [_together(dict(zip(halves, verdicts, strict=True))) for verdicts in zip(*halves.values(), strict=True)]

    return judged


def _together(parts: dict[str, Verdict]) -> Verdict:
    claims, outcomes = {v.claim for v in parts.values()}, {v.outcome for v in parts.values()}
    if len(set(map(str, parts.values()))) == 1:  # nothing of it was measured, or the method has no settings
        return next(iter(parts.values()))
    if len(claims) != 1:
        raise RPLibError(f"halves of the records judge different claims: {', '.join(sorted(claims))}")
    evidence = "; ".join(f"{choice} settings: {v.evidence}" for choice, v in parts.items())
    return Verdict(claims.pop(), outcomes.pop() if len(outcomes) == 1 else DEPENDS, evidence, parts)
