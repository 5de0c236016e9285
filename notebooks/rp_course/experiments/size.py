"""Does the ranking depend on the size of the backbone, where its zero-shot accuracy does not?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from rp_course.experiments.base import Experiment, Verdict, difference, row, shrinks
from rp_course.experiments.grid import Condition, methods, run_grid
from rp_course.experiments.world import World
from rp_lib.run import CORE
from rp_lib.utils.errors import RPLibError

# After as many pictures, and of about the same zero-shot accuracy. Their pre-training is not quite the same, see the
# card: the narrow tower's rate had decayed, and it saw pictures drawn again in other manners.
SMALL, LARGE = "half-width", "at-19-percent"
# The narrow one does not ship.
FILE = Path("results/half-width/half-width.safetensors")
MAKE = (
    "python -m rp_course mini pretrain --recipe small --out results/small && "
    "python -m rp_course mini release --run results/small --size {} --out {}"
)


def _backbones() -> dict[str, str]:
    """Name to checkpoint."""
    return {SMALL: str(FILE), LARGE: LARGE}


def million_weights(world: World, checkpoint: str) -> float:
    """Weights of the image tower, in millions."""
    return round(sum(p.numel() for p in world.backbone(checkpoint).model.visual.parameters()) / 1e6, 2)


def measure(world: World, parts: Path) -> pd.DataFrame:
    """The core methods on a tower of half the width, and on the full one after as many pictures.

    Hyper-parameters are those of the whole pre-training.

    Raises:
        RPLibError: the world has a backbone of its own, or the narrow one is not there.
    """
    if world.clip is not None:
        raise RPLibError(
            f"`size` compares shipped backbones; this world has the backbone {world.clip.name!r}: leave `clip` out"
        )
    if not FILE.is_file():
        raise RPLibError(
            f"{FILE} is not there, and its weights do not ship; make it: {MAKE.format(SMALL, FILE.parent)}"
        )
    conditions = [
        Condition(
            {"checkpoint": n, "million_weights": million_weights(world, c)}, world.judged, methods(*CORE), checkpoint=c
        )
        for n, c in _backbones().items()
    ]
    return run_grid(world, conditions, parts)


def about(world: World) -> dict[str, Any]:
    """Fingerprint of each backbone."""
    return {"checkpoints": {n: {"sha256": world.backbone(c).fingerprint} for n, c in _backbones().items()}}


def judge(records: pd.DataFrame) -> list[Verdict]:
    """The paper's claims on the smaller backbone, and what a larger one of the same strength changes."""
    small = {"checkpoint": SMALL}

    def gap(checkpoint: str, first: str, second: str, axis: str) -> pd.Series:
        return row(records, checkpoint=checkpoint, method=first, versus=second, metric=axis)

    both = f"with {SMALL} and with {LARGE}"
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
            f"fine-tuning adds less to accuracy under shift on {SMALL} than on {LARGE}",
            *(gap(c, "zero-shot", "fine-tune", "shift accuracy") for c in (LARGE, SMALL)),
            f"fine-tune - zero-shot with {LARGE} and with {SMALL}", sign=-1,
        ),
        shrinks(
            f"RRP gains more over fine-tuning under shift on {SMALL} than on {LARGE}",
            *(gap(c, "fine-tune", "rrp", "shift accuracy") for c in (SMALL, LARGE)), f"RRP - fine-tune {both}", sign=-1,
        ),
    ]  # fmt: skip


EXPERIMENT = Experiment(
    "size", "Does the ranking depend on the size of the backbone, where its zero-shot accuracy does not?",
    ("checkpoint", "million_weights"), measure, judge, 6, about=about,
)  # fmt: skip
