"""What is each detail of the released code worth? One switch of ``as_released`` at a time, from ``paper``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from rp_course.experiments.base import (
    AXIS_LABELS,
    FAILS,
    HOLDS,
    UNDECIDED,
    Experiment,
    Verdict,
    difference,
    direction,
    pick,
)
from rp_course.experiments.grid import Condition, Entry, run_grid
from rp_course.experiments.released_script import DetectionScript
from rp_course.experiments.world import World
from rp_lib.config import AS_RELEASED, PAPER, RPConfig

# Row of the ledger -> what it is called here, which switches it sets, whether RP must be trained again.
# Switches of the released detection script are those of `DetectionScript`, all others those of `RPConfig`.
ROWS: dict[str, tuple[str, tuple[str, ...], bool]] = {
    "1": ("overlay", ("placement",), True),
    "2": ("8-bit wrap in detection", ("wrap",), False),
    "5": ("residual not renormalised", ("renormalize_residual",), False),
    "6": ("RRP column shows RP", ("rp_accuracy",), False),
    "7": ("half precision in detection", ("half",), False),
    "8": ("focal loss, identity targets", ("objective", "loss"), True),
    "9": ("whole token table trained", ("text_rows", "text_decay"), True),
    "10": ("coupled L2 on the border", ("coupled_decay", "image_decay"), True),
    "11": ("border starts from N(0, 1)", ("border_init",), True),
    "12": ("trained at 64/224, evaluated at 128/224", ("train_resolution", "eval_resolution"), True),
}
# Rows that need photos and label maps of the full track; rows 4 and 14 change how a result is scored, not the method.
FULL_TRACK = {
    "3": "STL-10's labels are not mapped to CIFAR-10's order",
    "4": "ImageNet-A and -R are scored over 1000 classes",
    "13": "one bare template, repeated names on ImageNet",
}
RESIDUAL_ONLY = frozenset({"5", "6"})
SCRIPT_ROWS = frozenset({"2", "6", "7"})
QUICK = ("1", "2", "5")
# A row whose intervals all lie within this of zero changes nothing that matters: one point.
MARGIN = 0.01


def switched(config: RPConfig, row: str) -> RPConfig:
    """A configuration with one row of the ledger as released; rows of the detection script leave it as it is."""
    if row in SCRIPT_ROWS:
        return config
    return config.changed(**{name: getattr(AS_RELEASED, name) for name in ROWS[row][1]})


def measure(world: World, parts: Path, rows: Sequence[str] | None = None) -> pd.DataFrame:
    """RP and RRP under ``paper``, and with each row of the ledger (or of ``rows``) switched alone.

    Their border stands around the picture, since row 1 is to lay it over.
    """
    tuned, alpha = world.placed("pad")["config"], world.tuned("rrp")["config"].alpha
    if world.published:
        tuned = tuned.changed(border_init=PAPER.border_init)  # the start from N(0, 1) is a row of the ledger
    rows = rows or (QUICK if world.quick else tuple(ROWS))
    entries = {"rp": Entry("rp", {"config": tuned}), "rrp": Entry("rrp", {"config": tuned.changed(alpha=alpha)}, "rp")}
    pairs = []
    for number in rows:
        name, _, anew = ROWS[number]
        config = switched(tuned, number)
        outputs = DetectionScript(**dict.fromkeys(ROWS[number][1], True)) if number in SCRIPT_ROWS else World.outputs
        rp, rrp = f"rp, row {number}: {name}", f"rrp, row {number}: {name}"
        if number not in RESIDUAL_ONLY:
            entries[rp] = Entry("rp", {"config": config}, None if anew else "rp", outputs)
            pairs.append((rp, "rp"))
        source = "rp" if number in RESIDUAL_ONLY else rp
        entries[rrp] = Entry("rrp", {"config": config.changed(alpha=alpha)}, source, outputs)
        pairs.append((rrp, "rrp"))
    return run_grid(world, [Condition({"preset": "paper, tuned"}, world.judged, entries, pairs)], parts)


def judge(records: pd.DataFrame) -> list[Verdict]:
    """Which details change a number of RRP, in which direction; and the two that corrupt what they measure."""
    verdicts = []
    compared = records[records["versus"].notna()]
    for label in [m for m in dict.fromkeys(compared["method"]) if m.startswith("rrp, row")]:
        found = {axis: pick(compared, method=label, metric=axis) for axis in AXIS_LABELS}
        found = {axis: rows.iloc[0] for axis, rows in found.items() if len(rows)}
        changed = [axis for axis, r in found.items() if direction(r) != UNDECIDED]
        parts = [
            f"{AXIS_LABELS[axis]} {100 * r['value']:+.1f} [{100 * r['low']:+.1f}, {100 * r['high']:+.1f}]"
            for axis, r in found.items()
        ]
        small = all(-MARGIN <= r["low"] <= r["high"] <= MARGIN for r in found.values())
        outcome = HOLDS if changed else FAILS if small else UNDECIDED
        verdicts.append(Verdict(f"{label.removeprefix('rrp, ')} changes a number of RRP", outcome, "; ".join(parts)))
    wrap = f"rp, row 2: {ROWS['2'][0]}"
    if wrap in set(compared["method"]):
        verdicts.append(
            difference("the 8-bit wrap makes RP look worse at detection", records, wrap, "rp", "auroc", "lower")
        )
    return verdicts + [
        Verdict(f"row {number}: {name} changes a number of RRP", UNDECIDED, "not measured here: needs the full track")
        for number, name in FULL_TRACK.items()
    ]


EXPERIMENT = Experiment("ledger", "What is each detail of the released code worth?", ("preset",), measure, judge, 8)
