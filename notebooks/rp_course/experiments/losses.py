"""Cross-entropy against the focal loss, under each objective, and each program alone."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from rp_course.experiments.base import Experiment, Verdict, difference
from rp_course.experiments.grid import Condition, Entry, methods, run_grid
from rp_course.experiments.world import World
from rp_lib.losses import LOSSES

PAPER = "contrastive, cross-entropy"
OBJECTIVES = ("class", "contrastive", "contrastive-identity")  # the sigmoid needs a logit bias, which this CLIP has not


def measure_losses(world: World, parts: Path) -> pd.DataFrame:
    """RP with every objective and loss; all else as tuned with the paper's."""
    tuned = world.tuned("rp")["config"]
    entries = {
        f"{objective}, {loss}": Entry("rp", {"config": tuned.changed(objective=objective, loss=loss)})
        for objective in OBJECTIVES
        for loss in LOSSES
    }
    if world.quick:
        entries = {k: e for k, e in entries.items() if k.startswith("contrastive,") or k == "class, cross-entropy"}
    pairs = [(label, PAPER) for label in entries if label != PAPER]
    return run_grid(world, [Condition({"method_trained": "rp"}, world.judged, entries, pairs)], parts)


def judge_losses(records: pd.DataFrame) -> list[Verdict]:
    """What the focal loss and the objective are worth."""
    focal = "contrastive, focal"
    return [
        difference("the focal loss costs ID accuracy", records, focal, PAPER, "id accuracy", "lower"),
        difference("the focal loss costs detection", records, focal, PAPER, "auroc", "lower"),
        difference("the contrastive objective beats class cross-entropy on ID", records, PAPER, "class, cross-entropy",
                   "id accuracy", "higher"),
    ]  # fmt: skip


def measure_programs(world: World, parts: Path) -> pd.DataFrame:
    """The image program alone, the text program alone, both, each with its own tuned settings; both by placement."""
    entries = methods("zero-shot", "rp-image", "rp-text", "rp", "rrp")
    entries |= {f"rp, {placement}": Entry("rp", world.placed(placement)) for placement in ("pad", "overlay")}
    return run_grid(world, [Condition({"settings": "of each method"}, world.judged, entries)], parts)


def judge_programs(records: pd.DataFrame) -> list[Verdict]:
    """What each program contributes alone."""
    return [
        difference("the image program alone beats zero-shot on ID", records, "rp-image", "zero-shot", "id accuracy",
                   "higher"),
        difference("the text program alone beats zero-shot on ID", records, "rp-text", "zero-shot", "id accuracy",
                   "higher"),
        difference("both programs beat the text program alone on ID", records, "rp", "rp-text", "id accuracy",
                   "higher"),
        difference("the image program, not the text program, costs accuracy under shift", records, "rp-image",
                   "rp-text", "shift accuracy", "lower"),
        difference("a border over the picture keeps more accuracy under shift than one around it", records,
                   "rp, overlay", "rp, pad", "shift accuracy", "higher"),
    ]  # fmt: skip


LOSSES_EXPERIMENT = Experiment(
    "losses", "Does the focal loss, or the objective, matter?", ("method_trained",), measure_losses, judge_losses, 4
)
PROGRAMS_EXPERIMENT = Experiment(
    "programs", "What do the image and the text program contribute alone?", ("settings",), measure_programs,
    judge_programs, 3,
)  # fmt: skip
