"""Is it the size of the backbone, or what it has learned, that turns the ranking?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from rp_lib.errors import RPLibError
from rp_lib.experiments.base import Experiment, Verdict, difference, row, shrinks
from rp_lib.experiments.grid import Condition, methods, run_grid
from rp_lib.experiments.strength import CORE
from rp_lib.experiments.world import World

# As many pictures seen by both; then the whole pre-training.
SMALL, AS_LONG, WHOLE = "half-width", "at-19-percent", "final"


def million_weights(world: World, checkpoint: str) -> float:
    """Weights of the image tower, in millions."""
    return round(sum(p.numel() for p in world.backbone(checkpoint).model.visual.parameters()) / 1e6, 2)


def measure(world: World, parts: Path) -> pd.DataFrame:
    """The core methods on a tower of half the width, and on the full one after as many pictures and after all.

    Hyper-parameters are those of the whole pre-training.

    Raises:
        RPLibError: the world has a backbone of its own.
    """
    if world.clip is not None:
        raise RPLibError(
            f"`size` compares shipped backbones; this world has the backbone {world.clip.name!r}: leave `clip` out"
        )
    names = (SMALL, WHOLE) if world.quick else (SMALL, AS_LONG, WHOLE)
    conditions = [
        Condition(
            {"checkpoint": n, "million_weights": million_weights(world, n)}, world.judged, methods(*CORE), checkpoint=n
        )
        for n in names
    ]
    return run_grid(world, conditions, parts)


def about(world: World) -> dict[str, Any]:
    """Fingerprint of each backbone."""
    return {"checkpoints": {n: {"sha256": world.backbone(n).fingerprint} for n in (SMALL, AS_LONG, WHOLE)}}


def judge(records: pd.DataFrame) -> list[Verdict]:
    """The paper's claims on the smaller backbone, and what a larger one changes."""
    large = AS_LONG if (records["checkpoint"] == AS_LONG).any() else WHOLE
    small = {"checkpoint": SMALL}

    def gap(checkpoint: str, first: str, second: str, axis: str) -> pd.Series:
        return row(records, checkpoint=checkpoint, method=first, versus=second, metric=axis)

    both = f"with {SMALL} and with {large}"
    return [
        difference(f"with {SMALL}, RRP beats fine-tuning under shift", records, "rrp", "fine-tune", "shift accuracy",
                   "higher", small),
        difference(f"with {SMALL}, RRP has a higher AUROC than fine-tuning", records, "rrp", "fine-tune", "auroc",
                   "higher", small),
        difference(f"with {SMALL}, fine-tuning costs accuracy under shift", records, "fine-tune", "zero-shot",
                   "shift accuracy", "lower", small),
        difference(f"with {SMALL}, fine-tuning costs AUROC", records, "fine-tune", "zero-shot", "auroc", "lower",
                   small),
        shrinks(
            f"fine-tuning adds less to accuracy under shift on {SMALL} than on {large}",
            *(gap(c, "zero-shot", "fine-tune", "shift accuracy") for c in (large, SMALL)),
            f"fine-tune - zero-shot with {large} and with {SMALL}", sign=-1,
        ),
        shrinks(
            f"RRP gains more over fine-tuning under shift on {SMALL} than on {large}",
            *(gap(c, "fine-tune", "rrp", "shift accuracy") for c in (SMALL, large)), f"RRP - fine-tune {both}", sign=-1,
        ),
    ]  # fmt: skip


EXPERIMENT = Experiment(
    "size", "Is it the size of the backbone, or what it has learned, that turns the ranking?",
    ("checkpoint", "million_weights"), measure, judge, 6, about=about,
)  # fmt: skip
