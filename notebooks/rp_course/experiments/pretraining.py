"""When does reprogramming win? The ranking against the strength of pre-training, from the kept checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from rp_course.experiments.base import Experiment, Verdict, difference, row, shrinks
from rp_course.experiments.grid import Condition, methods, run_grid
from rp_course.experiments.world import World
from rp_lib.mini import weights
from rp_lib.run import CORE
from rp_lib.utils.errors import RPLibError


def measure(world: World, parts: Path) -> pd.DataFrame:
    """The core methods on every kept checkpoint, with the settings that were tuned on the final one.

    Raises:
        RPLibError: the world has a backbone of its own, of which no checkpoints are kept.
    """
    if world.clip is not None:
        raise RPLibError(
            f"`strength` compares checkpoints of the shipped pre-training; this world has the backbone "
            f"{world.clip.name!r}, of which there is one: leave `clip` out"
        )
    found = weights.index()
    names = weights.names()
    names = (names[0], names[-1]) if world.quick else names
    conditions = [
        Condition(
            {"checkpoint": n, "fraction": round(found[n]["fraction"], 4)}, world.judged, methods(*CORE), checkpoint=n
        )
        for n in names
    ]
    return run_grid(world, conditions, parts)


def about(world: World) -> dict[str, Any]:
    """Fingerprint and fraction of pre-training of each kept checkpoint."""
    found = weights.index()
    return {
        "checkpoints": {
            name: {"sha256": world.backbone(name).fingerprint, "fraction": found[name]["fraction"]}
            for name in weights.names()
        }
    }


def judge(records: pd.DataFrame) -> list[Verdict]:
    """How gains and prices change from the weakest to the strongest checkpoint."""
    order = records[["checkpoint", "fraction"]].drop_duplicates().sort_values("fraction")["checkpoint"]
    weak, strong = order.iloc[0], order.iloc[-1]

    def gap(checkpoint: str, first: str, second: str, axis: str) -> pd.Series:
        return row(records, checkpoint=checkpoint, method=first, versus=second, metric=axis)

    both = f"with checkpoint {weak} and with {strong}"
    tuned = ("zero-shot", "fine-tune")
    return [
        shrinks(
            "the stronger the pre-training, the less fine-tuning adds to ID accuracy",
            *(gap(c, *tuned, "id accuracy") for c in (weak, strong)), f"fine-tune - zero-shot {both}", sign=-1,
        ),
        shrinks(
            "the stronger the pre-training, the less fine-tuning adds to accuracy under shift",
            *(gap(c, *tuned, "shift accuracy") for c in (weak, strong)), f"fine-tune - zero-shot {both}", sign=-1,
        ),
        difference(f"with checkpoint {weak}, fine-tuning beats RRP under shift", records, "fine-tune", "rrp",
                   "shift accuracy", "higher", {"checkpoint": weak}),
        difference(f"with checkpoint {strong}, RRP beats fine-tuning under shift", records, "rrp", "fine-tune",
                   "shift accuracy", "higher", {"checkpoint": strong}),
        difference(f"with checkpoint {strong}, RRP rejects OOD better than fine-tuning", records, "rrp", "fine-tune",
                   "fpr", "lower", {"checkpoint": strong}),
    ]  # fmt: skip


EXPERIMENT = Experiment(
    "strength", "Does the ranking of the methods turn as pre-training gets stronger?", ("checkpoint", "fraction"),
    measure, judge, 25, about=about,
)  # fmt: skip
