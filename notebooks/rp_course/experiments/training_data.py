"""The ranking against the training data: images per class, and how many classes there are.

With fewer images an epoch has fewer steps. Every condition trains for as many steps as the tuned settings take on all
images, so that what varies is the data and not how long a method learns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch

from rp_course.experiments.base import Experiment, Verdict, difference, row, shrinks
from rp_course.experiments.grid import Condition, Entry, run_grid
from rp_course.experiments.world import World
from rp_lib.benchmark import Benchmark, ImageSet
from rp_lib.methods import METHODS
from rp_lib.run import CORE
from rp_lib.trainer import batches

SHOTS, CLASSES = (1, 2, 4, 8), (5, 10, 20)


def same_steps(world: World, images: int, names: Sequence[str] = CORE) -> dict[str, Entry]:
    """The methods with as many epochs as make, on so many images, the steps that they take on all."""
    entries = {}
    for name in names:
        settings = dict(world.tuned(name))
        config = settings.get("config")
        known = config or METHODS[name]  # whose defaults are the published settings
        epochs = settings.get("epochs", getattr(known, "epochs", None))
        if epochs is not None:
            size = settings.get("batch_size", known.batch_size)
            whole, few = (len(batches(n, size, 0, 0)) for n in (len(world.benchmark.train), images))
            epochs = max(1, round(epochs * whole / few))
            settings |= {"config": config.changed(epochs=epochs)} if config else {"epochs": epochs}
        entries[name] = Entry(name, settings)
    return entries


def per_class(train: ImageSet, shots: int, seed: int) -> ImageSet:
    """At most ``shots`` images of each class, drawn by ``seed``; the draw for more shots holds that for fewer."""
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    kept: list[int] = []
    for label in train.labels.unique().tolist():
        kept += [i for i in order.tolist() if train.labels[i] == label][:shots]
    return replace(train.subset(sorted(kept)), name=f"{train.name}, {shots} a class")


def measure_shots(world: World, parts: Path) -> pd.DataFrame:
    """The core methods with few images a class, another draw for each seed."""
    train = world.benchmark.train
    most = int(train.labels.bincount().max())
    levels = (1, 4) if world.quick else (*(s for s in SHOTS if s < most), most)
    conditions = []
    for s in levels:
        drawn = {k: per_class(train, s, k) for k in world.seeds}
        images = len(drawn[world.seeds[0]])  # the same for each draw
        conditions.append(Condition({"shots": s}, world.judged, same_steps(world, images), train=drawn))
    return run_grid(world, conditions, parts)


def judge_shots(records: pd.DataFrame) -> list[Verdict]:
    """Few against all images."""
    few, all_ = int(records["shots"].min()), int(records["shots"].max())
    gap = [row(records, shots=s, method="fine-tune", versus="rrp", metric="id accuracy") for s in (all_, few)]
    return [
        shrinks("the more images, the better fine-tuning compares with RRP in ID accuracy", *gap,
                f"fine-tune - rrp with up to {all_} and with {few} a class"),
        difference(f"with {few} a class, RRP beats fine-tuning on ID", records, "rrp", "fine-tune", "id accuracy",
                   "higher", {"shots": few}),
        difference(f"with {few} a class, RRP beats fine-tuning under shift", records, "rrp", "fine-tune",
                   "shift accuracy", "higher", {"shots": few}),
        difference("with all images, RRP beats fine-tuning under shift", records, "rrp", "fine-tune",
                   "shift accuracy", "higher", {"shots": all_}),
    ]  # fmt: skip


def of_classes(benchmark: Benchmark, kept: Sequence[int]) -> Benchmark:
    """The benchmark with some of its classes, in the order given."""
    new = torch.full((len(benchmark.class_names),), -1)
    new[list(kept)] = torch.arange(len(kept))

    def fewer(images: ImageSet) -> ImageSet:
        chosen = images.subset(new[images.labels] >= 0)
        subset = images.class_subset
        subset = None if subset is None else tuple(int(new[c]) for c in subset if new[c] >= 0)
        return replace(chosen, labels=new[chosen.labels], class_subset=subset)

    return replace(
        benchmark, class_names=tuple(benchmark.class_names[i] for i in kept), train=fewer(benchmark.train),
        val=fewer(benchmark.val), test=fewer(benchmark.test),
        shifts={name: fewer(images) for name, images in benchmark.shifts.items()}, controls={},
    )  # fmt: skip


def measure_classes(world: World, parts: Path) -> pd.DataFrame:
    """The core methods on tasks of few and of many classes; smaller tasks are subsets of larger ones."""
    benchmark = world.judged
    total = len(benchmark.class_names)
    order = torch.randperm(total, generator=torch.Generator().manual_seed(0)).tolist()
    levels = (5, total) if world.quick else (*CLASSES, total)
    levels = sorted({min(n, total) for n in levels})
    tasks = {n: of_classes(benchmark, order[:n]) for n in levels}
    conditions = [Condition({"classes": n}, task, same_steps(world, len(task.train))) for n, task in tasks.items()]
    return run_grid(world, conditions, parts)


def judge_classes(records: pd.DataFrame) -> list[Verdict]:
    """Few against many classes."""
    few, many = int(records["classes"].min()), int(records["classes"].max())
    gap = [row(records, classes=c, method="zero-shot", versus="rp", metric="id accuracy") for c in (few, many)]
    lead = [row(records, classes=c, method="fine-tune", versus="rp", metric="id accuracy") for c in (many, few)]
    return [
        shrinks("the more classes, the less RP adds to ID accuracy", *gap,
                f"rp - zero-shot with {few} and with {many} classes", sign=-1),
        shrinks("the more classes, the further RP falls behind fine-tuning on ID", *lead,
                f"fine-tune - rp with {many} and with {few} classes"),
    ]  # fmt: skip


SHOTS_EXPERIMENT = Experiment(
    "shots", "How many images a class does each method need?", ("shots",), measure_shots, judge_shots, 6
)
CLASSES_EXPERIMENT = Experiment(
    "classes", "Why does reprogramming struggle with many classes?", ("classes",), measure_classes, judge_classes, 4
)
