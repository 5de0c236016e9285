"""What is each detail of the released code worth? One at a time, from ``paper``: for RP and RRP, and for the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

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
from rp_course.experiments.figures import named
from rp_course.experiments.grid import Condition, Entry, run_grid
from rp_course.experiments.padding import at_resolution
from rp_course.experiments.released_script import DetectionScript, ReleasedFineTune, Shown
from rp_course.experiments.world import World
from rp_lib.benchmark import Benchmark
from rp_lib.config import AS_RELEASED, PAPER, RPConfig
from rp_lib.methods.baselines.prompts import ContextPrompts
from rp_lib.outputs import MethodOutputs

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
    "16": "CIFAR-10's shifted and OOD sets keep up to 128 px",
}
# What the released code does to other methods: row of the ledger -> what it is called here, and whom it changes.
OTHERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "12": (ROWS["12"][0], ("zero-shot", "linear-probe", "fine-tune", "coop")),
    "13": ("prompts end in a full stop", ("coop",)),
    "15": ("head with a bias, all decayed", ("fine-tune",)),
}
RESIDUAL_ONLY = frozenset({"5", "6"})
SCRIPT_ROWS = frozenset({"2", "6", "7"})
QUICK = ("1", "2", "5", "15")
# A row whose intervals all lie within this of zero changes nothing that matters: one point.
MARGIN = 0.01


def switched(config: RPConfig, row: str) -> RPConfig:
    """A configuration with one row of the ledger as released; rows of the detection script leave it as it is."""
    if row in SCRIPT_ROWS:
        return config
    return config.changed(**{name: getattr(AS_RELEASED, name) for name in ROWS[row][1]})


def measure(world: World, parts: Path, rows: Sequence[str] | None = None) -> pd.DataFrame:
    """RP, RRP and the others under ``paper``, and with each row of the ledger (or of ``rows``) switched alone.

    The border of RP and RRP stands around the picture, since row 1 is to lay it over. RRP's half that is zero-shot sees
    the pictures of row 12, too.
    """
    tuned, alpha = world.placed("pad")["config"], world.tuned("rrp")["config"].alpha
    if world.published:
        tuned = tuned.changed(border_init=PAPER.border_init)  # the start from N(0, 1) is a row of the ledger
    rows = rows or (QUICK if world.quick else tuple(dict.fromkeys((*ROWS, *OTHERS))))
    entries = {"rp": Entry("rp", {"config": tuned}), "rrp": Entry("rrp", {"config": tuned.changed(alpha=alpha)}, "rp")}
    pairs = []
    for number in [n for n in rows if n in ROWS]:
        name, _, anew = ROWS[number]
        config = switched(tuned, number)
        outputs = _outputs(world.judged, number)
        rp, rrp = f"rp, row {number}: {name}", f"rrp, row {number}: {name}"
        if number not in RESIDUAL_ONLY:
            entries[rp] = Entry("rp", {"config": config}, None if anew else "rp", outputs)
            pairs.append((rp, "rp"))
        source = "rp" if number in RESIDUAL_ONLY else rp
        entries[rrp] = Entry("rrp", {"config": config.changed(alpha=alpha)}, source, outputs)
        pairs.append((rrp, "rrp"))
    for number in [n for n in rows if n in OTHERS]:
        name, changed = OTHERS[number]
        for method in changed:
            label = f"{method}, row {number}: {name}"
            entries.setdefault(method, Entry(method, _room_for_a_stop(world) if method == "coop" else None))
            entries[label] = _changed(world.judged, number, entries[method])
            pairs.append((label, method))
    return run_grid(world, [Condition({"preset": "paper"}, world.judged, entries, pairs)], parts)


def _outputs(benchmark: Benchmark, number: str) -> Callable[..., MethodOutputs]:
    """What is evaluated of RP and RRP in a row of the ledger."""
    if number in SCRIPT_ROWS:
        return DetectionScript(**dict.fromkeys(ROWS[number][1], True))
    return Shown(_shrunk(benchmark, AS_RELEASED.eval_resolution)) if number == "12" else World.outputs


def _changed(benchmark: Benchmark, number: str, plain: Entry) -> Entry:
    """Another method than RP and RRP, with one row of the ledger as released."""
    if number == "12":
        shown = Shown(_shrunk(benchmark, AS_RELEASED.eval_resolution))
        return replace(plain, data=_shrunk(benchmark, AS_RELEASED.train_resolution), outputs=shown)
    if number == "13":
        return replace(plain, data=replace(benchmark, templates=tuple(f"{t}." for t in benchmark.templates)))
    return replace(plain, kind=ReleasedFineTune)


def _shrunk(benchmark: Benchmark, fraction: float) -> Benchmark:
    return at_resolution(benchmark, round(fraction * benchmark.test.images.shape[-1]))


def _room_for_a_stop(world: World) -> dict[str, Any]:
    """CoOp's settings; a context that is to be as long as fits leaves room for the full stop of row 13."""
    names, templates = world.judged.class_names, world.judged.templates
    longest = ContextPrompts(world.backbone(), names, f"{templates[0]}.", n=None, start="random").context.shape[0]
    return {"n_context": longest, **world.tuned("coop")}


def judge(records: pd.DataFrame) -> list[Verdict]:
    """Which details change a number of a method, in which direction; and the two that corrupt what they measure."""
    verdicts = []
    compared = records[records["versus"].notna()]
    for label in [m for m in dict.fromkeys(compared["method"]) if ", row" in m and not m.startswith("rp, ")]:
        method, detail = label.split(", ", 1)
        whose = "RRP" if method == "rrp" else named(method)
        found = {axis: pick(compared, method=label, metric=axis) for axis in AXIS_LABELS}
        found = {axis: rows.iloc[0] for axis, rows in found.items() if len(rows)}
        changed = [axis for axis, r in found.items() if direction(r) != UNDECIDED]
        parts = [
            f"{AXIS_LABELS[axis]} {100 * r['value']:+.1f} [{100 * r['low']:+.1f}, {100 * r['high']:+.1f}]"
            for axis, r in found.items()
        ]
        small = all(-MARGIN <= r["low"] <= r["high"] <= MARGIN for r in found.values())
        outcome = HOLDS if changed else FAILS if small else UNDECIDED
        verdicts.append(Verdict(f"{detail} changes a number of {whose}", outcome, "; ".join(parts)))
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
