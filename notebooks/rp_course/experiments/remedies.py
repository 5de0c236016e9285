"""What could help reprogramming with many classes? Changes of RP, on tasks of few and of many classes.

On the final backbone zero-shot is right on nearly every picture of a small task, so that no method can add anything
there. The weakest checkpoint leaves room at every number of classes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import torch

from rp_course.experiments.base import Experiment, Verdict, difference, row, shrinks
from rp_course.experiments.grid import Condition, Entry, run_grid
from rp_course.experiments.training_data import of_classes, same_steps
from rp_course.experiments.world import World
from rp_lib.config import RPConfig
from rp_lib.mini import weights

CLASSES = (5, 20)  # and all
LONGER = 3
TRAINED_LONGER, ALL = f"rp, {LONGER} times as long", "rp, all four"


def switches(config: RPConfig) -> dict[str, dict[str, Any]]:
    """By label, what a remedy changes: more trained pixels; more trained words; every wrong class in every step."""
    return {
        "rp, border twice as wide": {"padding": 2 * config.padding},
        "rp, all token rows": {"text_rows": "all"},
        "rp, class objective": {"objective": "class"},
    }


def longer(config: RPConfig) -> RPConfig:
    """Three times the epochs on a schedule of the same shape, so that the highest learning rate stays what it is."""
    return config.changed(epochs=LONGER * config.epochs, warmup_steps=LONGER * config.warmup_steps)


def remedies(config: RPConfig) -> dict[str, RPConfig]:
    """RP with each remedy alone, and with all of them."""
    changed = {label: config.changed(**turned) for label, turned in switches(config).items()}
    together = {name: value for turned in switches(config).values() for name, value in turned.items()}
    return {**changed, TRAINED_LONGER: longer(config), ALL: longer(config.changed(**together))}


def measure(world: World, parts: Path) -> pd.DataFrame:
    """RP and RP with each remedy, zero-shot and fine-tuning, on tasks that are subsets of each other.

    All train for as many steps as on all images, but for the remedy that trains longer. Hyper-parameters are those
    that were tuned on the final backbone; none was tuned for a remedy.
    """
    benchmark = world.judged
    total = len(benchmark.class_names)
    order = torch.randperm(total, generator=torch.Generator().manual_seed(0)).tolist()
    levels = sorted({min(n, total) for n in ((5, total) if world.quick else (*CLASSES, total))})
    conditions = []
    for n in levels:
        task = of_classes(benchmark, order[:n])
        entries = same_steps(world, len(task.train), ("zero-shot", "fine-tune", "rp"))
        changed = remedies(entries["rp"].settings["config"])
        entries |= {label: Entry("rp", {"config": config}) for label, config in changed.items()}
        pairs = [("rp", "zero-shot"), ("fine-tune", "zero-shot"), ("fine-tune", "rp")]
        pairs += [(label, "rp") for label in changed]
        conditions.append(Condition({"classes": n}, task, entries, pairs, checkpoint=weights.names()[0]))
    return run_grid(world, conditions, parts)


def about(world: World) -> dict[str, Any]:
    """Fingerprint of the backbone that is measured."""
    name = weights.names()[0]
    return {"checkpoints": {name: {"sha256": world.backbone(name).fingerprint}}}


def judge(records: pd.DataFrame) -> list[Verdict]:
    """Whether many classes are harder for RP, and which remedy helps with all of them."""
    few, many = int(records["classes"].min()), int(records["classes"].max())

    def gap(classes: int, first: str, second: str) -> pd.Series:
        return row(records, classes=classes, method=first, versus=second, metric="id accuracy")

    both = f"with {few} and with {many} classes"
    labels = [m for m in dict.fromkeys(records["method"]) if m.startswith("rp, ")]
    return [
        shrinks("the more classes, the less RP adds to ID accuracy",
                *(gap(c, "rp", "zero-shot") for c in (few, many)), f"rp - zero-shot {both}"),
        shrinks("the more classes, the further RP falls behind fine-tuning on ID",
                *(gap(c, "fine-tune", "rp") for c in (many, few)), f"fine-tune - rp with {many} and {few} classes"),
        difference(f"with {many} classes, fine-tuning beats RP on ID", records, "fine-tune", "rp", "id accuracy",
                   "higher", {"classes": many}),
        *(
            difference(f"with {many} classes, {label.removeprefix('rp, ')} raises RP's {what}", records, label, "rp",
                       axis, "higher", {"classes": many})
            for axis, what in (("id accuracy", "ID accuracy"), ("shift accuracy", "accuracy under shift"))
            for label in labels
        ),
    ]  # fmt: skip


EXPERIMENT = Experiment(
    "remedies", "What could help reprogramming with many classes?", ("classes",), measure, judge, 20, about=about
)
