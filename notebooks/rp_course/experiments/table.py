"""Who stands where when the three axes are added up: records, verdicts and the printed table."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from rp_course.experiments.aggregate import NAME, aggregate, mean_ranks
from rp_course.experiments.base import (
    AXIS_LABELS,
    FAILS,
    HOLDS,
    PUBLISHED,
    TUNED,
    UNDECIDED,
    Drawing,
    Experiment,
    Verdict,
    difference,
    direction,
    pick,
    row,
)
from rp_course.experiments.both_settings import at_both_settings, of_half, with_both_settings
from rp_course.experiments.figures import describe, describe_heatmap, draw, heatmap, listed, named, tidy
from rp_course.experiments.grid import judge_outputs, paired_draws, paired_rows, rank_rows
from rp_course.experiments.world import World
from rp_lib._version import __version__
from rp_lib.benchmark import Benchmark
from rp_lib.comparison import PairedDraws
from rp_lib.detectors import DETECTORS
from rp_lib.evaluation import ALL_OOD, ALL_SHIFTS
from rp_lib.figures import STYLE
from rp_lib.methods import BASES, METHODS, Method
from rp_lib.negative_labels import mine_negative_words
from rp_lib.outputs import MethodOutputs, load_outputs, save_outputs
from rp_lib.run.report import commit
from rp_lib.stats import as_percent
from rp_lib.utils.errors import RPLibError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WINNER = "rrp"  # the method that the paper proposes
ALL_AXES = "three axes"
# Columns of the printed table: head, image set, metric.
HEADS = (
    ("ID acc", "test", "accuracy"), ("shift acc", ALL_SHIFTS, "accuracy"), ("AUROC", ALL_OOD, "auroc"),
    ("FPR95", ALL_OOD, "fpr"), ("ECE", "test", "ece"), ("its floor", "test", "ece floor"),
    ("mean of three", ALL_AXES, NAME), ("its rank", NAME, "rank"),
)  # fmt: skip


def standings(outputs: Mapping[str, Sequence[MethodOutputs]], draws: PairedDraws, detector: str) -> pd.DataFrame:
    """Records of the aggregate (:mod:`rp_lib.comparison`) and of ranks, with intervals over pictures and seeds.

    ``metric`` is ``aggregate``, with ``versus`` for RRP's lead over each other method; ``mean rank`` over the three
    axes; ``rank`` and ``first`` of :func:`rp_course.experiments.grid.rank_rows`, of the aggregate too.
    """
    total = aggregate(draws)
    leads = total.differences([(WINNER, m) for m in draws.methods if m != WINNER and WINNER in draws.methods])
    leads = leads.rename(columns={"first": "method", "second": "versus", "difference": "value"})
    frames = [paired_rows(outputs, found, detector, ALL_AXES) for found in (total.estimates(), leads) if len(found)]
    frames += [rank_rows(outputs, ranked, detector) for ranked in (draws, total)]
    mean = mean_ranks(draws).rename(columns={"rank": "value"}).assign(axis="mean rank")
    return pd.concat([*frames, paired_rows(outputs, mean, detector, ALL_AXES)], ignore_index=True)


def on_the_aggregate(records: pd.DataFrame) -> list[Verdict]:
    """Whether RRP has the best aggregate: ahead of every other method for certain, or behind one; and by how much.

    Its leads are corrected for as many comparisons as there are other methods, so that the best of these may be chosen
    by its estimate. No verdicts where RRP was not measured.
    """
    leads = pick(records[records["versus"].notna()], metric=NAME, method=WINNER)
    if leads.empty:
        return []
    outcomes = {other: direction(lead) for other, lead in leads.set_index("versus").iterrows()}
    ahead, behind = ([m for m, o in outcomes.items() if o == kind] for kind in (HOLDS, FAILS))
    outcome = FAILS if behind else HOLDS if len(ahead) == len(outcomes) else UNDECIDED
    total, rank, mean = (
        row(records, method=WINNER, versus=None, metric=metric, set=data)
        for metric, data in ((NAME, ALL_AXES), ("rank", NAME), ("mean rank", ALL_AXES))
    )
    evidence = (
        f"{WINNER} {100 * total['value']:.1f} [{100 * total['low']:.1f}, {100 * total['high']:.1f}] points, rank "
        f"{rank['value']:g} [{rank['low']:g}, {rank['high']:g}] of {len(outcomes) + 1}, mean of its ranks on the axes "
        f"{mean['value']:.1f} [{mean['low']:.1f}, {mean['high']:.1f}]; ahead for certain of {_listed(ahead)}, behind "
        f"{_listed(behind)}; {int(total['seeds'])} seeds, n = {int(total['n'])}"
    )
    others = pick(records, versus=None, metric=NAME)
    others = others[others["method"] != WINNER]
    best = others.loc[others["value"].idxmax(), "method"]
    claim = "RRP has a better mean of the three axes than the best of the others"
    return [
        Verdict("RRP has the best mean of the three axes", outcome, evidence),
        difference(claim, records, WINNER, best, NAME, "higher"),
    ]


def _cell(row: pd.Series, rank: bool) -> str:
    if rank:
        return f"{row['value']:g} [{row['low']:g}, {row['high']:g}]"
    return as_percent(row["value"], row["low"], row["high"])


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"


def text(records: pd.DataFrame) -> str:
    """The whole table for a terminal, with the tuned settings and with the published ones."""
    halves = ((choice, pick(records, choice=choice)) for choice in (TUNED, PUBLISHED))
    return "\n\n".join(f"Every method with its {choice} settings\n\n{table_text(half)}" for choice, half in halves)


def table_text(records: pd.DataFrame) -> str:
    """One half for a terminal: methods x axes with the aggregate and its rank, then methods x detectors."""
    plain = pick(records, versus=None)
    msp = plain[plain["detector"].isna() | plain["detector"].isin(["", "msp"])]
    summary = pd.DataFrame(index=list(dict.fromkeys(plain["method"])))
    for head, data, metric in HEADS:
        rows = pick(msp, set=data, metric=metric).set_index("method")
        if rows.empty:  # the floor of ECE, in records of before it was known
            continue
        summary[head] = pd.Series({m: _cell(r, metric == "rank") for m, r in rows.iterrows()}, dtype=object)
    title = "percent, mean over seeds ± half of the 95 % interval; AUROC and FPR95 by MSP"
    blocks = [f"{title}\n{summary.fillna('-').to_string()}"]
    for metric, head in (("auroc", "AUROC"), ("fpr", "FPR95")):
        rows = pick(plain, set=ALL_OOD, metric=metric)
        found = (100 * rows.pivot(index="method", columns="detector", values="value")).loc[summary.index]
        found = found[list(dict.fromkeys(rows["detector"]))]
        cells = found.map(lambda v: "-" if v != v else f"{v:.1f}")
        blocks.append(f"{head} by detector, percent, mean over OOD sets\n{cells.to_string()}")
    return "\n\n".join(blocks)


# The whole table: every method on every axis with every detector, several seeds, and which differences are real.

QUICK = ("zero-shot", "linear-probe", "fine-tune", "rp", "rrp")
MEMBERS = ("zero-shot", "linear-probe")


def saved_outputs(world: World, folder: Path, names: Sequence[str] | None = None) -> dict[str, list[MethodOutputs]]:
    """Outputs of every method and seed from ``folder``; what is not there, or is of other settings, is made.

    Args:
        world: see :class:`World`. folder: one safetensors file per method and seed. names: of methods, default all
            that the recorded search has settings for.
    """
    names = tuple(names or (QUICK if world.quick else [name for name in METHODS if name in world.settings]))
    clip, benchmark = world.backbone(), world.judged
    words = functools.cache(lambda: mine_negative_words(clip, benchmark.class_names, benchmark.templates))
    found: dict[str, list[MethodOutputs]] = {name: [] for name in names}
    for seed in world.seeds:
        fitted: dict[str, Method] = {}

        def method(name: str, seed: int = seed, fitted: dict[str, Method] = fitted) -> Method:
            if name in BASES:  # the mixtures take its training
                method(BASES[name], seed, fitted)
            if name not in fitted:
                fitted[name] = world.fit(name, seed, benchmark, clip, fitted=fitted.values())
            return fitted[name]

        for name in names:
            if name == "zero-shot" and found[name]:
                continue
            path = folder / f"{name}-seed{seed}.safetensors"
            used = [world.tuned(n) for n in (name, *MEMBERS)]
            wanted = json.dumps([__version__, used, seed, world.precision], sort_keys=True, default=str)
            made = _kept(path, benchmark, clip.fingerprint, wanted)
            world.parts.append({"reused": made is not None, "commit": made and made.about.get("commit")})
            if made is None:
                others = {m: method(m) for m in MEMBERS}
                options = {"roles": None, "others": others, "negatives": words(), "progress": world.progress}
                made = world.outputs(method(name), seed, benchmark, **options)
                made = MethodOutputs({**made.about, "wanted": wanted, "commit": commit()}, made.sets)
                save_outputs(path, made)
            found[name].append(made)
        world.forget(*fitted.values())
    return found


def _kept(path: Path, benchmark: Benchmark, backbone: str, wanted: str) -> MethodOutputs | None:
    """Saved outputs, if they are whole and of this benchmark, backbone and settings, which their header says."""
    try:
        kept = load_outputs(path, benchmark)
    except RPLibError:  # not there, cut short, of another benchmark: made anew
        return None
    return kept if (kept.about["backbone_sha256"], kept.about.get("wanted")) == (backbone, wanted) else None


# What is claimed, of whom against whom, on which axis, and in which direction.
CLAIMS = [
    ("linear probing costs accuracy under shift", "linear-probe", "zero-shot", "shift accuracy", "lower"),
    ("linear probing costs detection", "linear-probe", "zero-shot", "auroc", "lower"),
    ("full fine-tuning costs accuracy under shift", "fine-tune", "zero-shot", "shift accuracy", "lower"),
    ("full fine-tuning costs detection", "fine-tune", "zero-shot", "auroc", "lower"),
    ("full fine-tuning raises ID accuracy", "fine-tune", "zero-shot", "id accuracy", "higher"),
    ("RP raises ID accuracy", "rp", "zero-shot", "id accuracy", "higher"),
    ("RRP raises ID accuracy", "rrp", "zero-shot", "id accuracy", "higher"),
    ("RRP keeps more accuracy under shift than RP", "rrp", "rp", "shift accuracy", "higher"),
    ("RRP beats fine-tuning under shift", "rrp", "fine-tune", "shift accuracy", "higher"),
    ("RRP beats fine-tuning at detection (AUROC)", "rrp", "fine-tune", "auroc", "higher"),
    ("RRP beats fine-tuning at detection (FPR95)", "rrp", "fine-tune", "fpr", "lower"),
    ("RRP beats zero-shot at detection (FPR95)", "rrp", "zero-shot", "fpr", "lower"),
    ("RRP beats WiSE-FT under shift", "rrp", "wise-ft", "shift accuracy", "higher"),
    ("RRP beats WiSE-FT at detection (AUROC)", "rrp", "wise-ft", "auroc", "higher"),
    ("RRP beats CoOp under shift", "rrp", "coop", "shift accuracy", "higher"),
    ("RRP beats FLYP under shift", "rrp", "flyp", "shift accuracy", "higher"),
    ("RRP beats TaskRes under shift", "rrp", "task-res", "shift accuracy", "higher"),
    ("RRP beats TaskRes at detection (AUROC)", "rrp", "task-res", "auroc", "higher"),
]


@with_both_settings
def measure(world: World, parts: Path) -> pd.DataFrame:
    """All methods x axes x detectors, and the aggregate of three axes; from saved outputs it takes seconds."""
    outputs = saved_outputs(world, parts / "outputs")
    pairs = list(dict.fromkeys((a, b) for _, a, b, _, _ in CLAIMS if {a, b} <= outputs.keys()))
    detectors = ("msp", *(d for d in DETECTORS if d != "msp"))
    draws = paired_draws(outputs, detectors[0])
    records = judge_outputs(outputs, pairs, detectors, draws)
    return pd.concat([records, standings(outputs, draws, detectors[0])], ignore_index=True).assign(scale="all")


@at_both_settings
def judge(records: pd.DataFrame) -> list[Verdict]:
    """The paper's claims, the reader's questions, and whether RRP is first when the axes are added up."""
    there = set(records["method"])
    verdicts = [
        difference(claim, records, first, second, axis, want)
        for claim, first, second, axis, want in CLAIMS
        if {first, second} <= there
    ]
    return verdicts + on_the_aggregate(records)


def draw_ranks(records: pd.DataFrame) -> Figure:
    """Each method's rank on the axes and by the aggregate, with its 95 % interval over pictures and seeds."""
    from matplotlib.figure import Figure

    rows = _ranks(records)
    axes = [a for a in AXIS_LABELS if a in set(rows["set"])]
    order = pick(rows, set=NAME).sort_values("value", ascending=False)["method"].tolist()
    figure = Figure(figsize=(13, 0.34 * len(order) + 1.9), layout="constrained")
    for panel, axis in zip(figure.subplots(1, len(axes), sharey=True, squeeze=False)[0], axes, strict=True):
        found = pick(rows, set=axis).set_index("method")
        chance = pick(records, metric="first", set=axis).set_index("method")["value"]
        for y, method in enumerate(order):
            colour, marker, _ = STYLE.get(method, ("#000000", "o", method))
            row = found.loc[method]
            panel.plot([row["low"], row["high"]], [y, y], color=colour, lw=2, solid_capstyle="round")
            panel.plot(row["value"], y, color=colour, marker=marker, ms=11 if marker == "*" else 7)
            panel.annotate(f"{100 * chance[method]:.0f} %", (1.02, y), xycoords=("axes fraction", "data"), va="center",
                           fontsize=8, color="#555555")  # fmt: skip
        panel.set_yticks(range(len(order)), [named(m) for m in order])
        panel.set_xlim(0.5, len(order) + 0.5)
        panel.set_xticks([1, *range(5, len(order) + 1, 5)])
        panel.set_title(AXIS_LABELS[axis], fontsize=10)
        panel.set_xlabel("rank, 1 is best")
        tidy(panel)
    figure.suptitle(
        f"Ranks with 95 % intervals over pictures and {int(rows['seeds'].max())} seeds (paired bootstrap, n = "
        f"{int(pick(rows, set=NAME)['n'].max())}); right: share of resamples in which none is better", fontsize=11,
    )  # fmt: skip
    return figure


def describe_ranks(records: pd.DataFrame) -> str:
    """Who is first by the aggregate, where RRP stands, and how wide ranks spread."""
    rows = _ranks(records)
    found = pick(rows, set=NAME).set_index("method").sort_values("value")
    spread = (found["high"] - found["low"]).median()
    told = [
        f"{named(m)} has rank {found.loc[m, 'value']:g} [{found.loc[m, 'low']:g}, {found.loc[m, 'high']:g}]"
        for m in dict.fromkeys([found.index[0], *(["rrp"] if "rrp" in found.index else []), found.index[-1]])
    ]
    return (
        f"Ranks of {len(found)} methods on {listed([AXIS_LABELS[a] for a in AXIS_LABELS if a in set(rows['set'])])} "
        f"with 95 % intervals: by the mean of three axes {listed(told)}, and half of the intervals span at least "
        f"{spread:g} ranks."
    )


def _ranks(records: pd.DataFrame) -> pd.DataFrame:
    rows = pick(records, metric="rank")
    if rows.empty:
        raise RPLibError("these records hold no ranks: an older version measured them; run `table` again")
    return rows


EXPERIMENT = Experiment(
    "table", "Who wins on three axes at once, and which differences are real?", ("choice", "scale"), measure, judge, 16,
    text=text,
    figures=lambda: DRAWINGS,
)  # fmt: skip


def _half(choice: str, draw_it: Callable[..., Figure], tell: Callable[..., str], **options: Any) -> Drawing:
    return of_half(choice, Drawing(lambda r: draw_it(records=r, **options), lambda r: tell(records=r, **options)))


DRAWINGS = {
    "": _half(TUNED, draw, describe, experiment=EXPERIMENT),
    "-published": _half(PUBLISHED, draw, describe, experiment=EXPERIMENT),
    "-ranks": _half(TUNED, draw_ranks, describe_ranks),
    "-auroc": _half(TUNED, heatmap, describe_heatmap, metric="auroc"),
    "-fpr": _half(TUNED, heatmap, describe_heatmap, metric="fpr"),
}
