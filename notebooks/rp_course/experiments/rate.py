"""What does adaptation break, and at which learning rate? The three axes of trained methods over their rates."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from rp_course.experiments.base import Drawing, Experiment, Verdict, difference, pick, row, shrinks
from rp_course.experiments.figures import listed, named, percent, tidy
from rp_course.experiments.grid import Condition, Entry, run_grid
from rp_course.experiments.world import World, published_settings
from rp_lib.evaluation import ALL_OOD, ALL_SHIFTS
from rp_lib.figures import STYLE
from rp_lib.run.config import read_config

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure

FACTORS = (0.3, 1.0, 3.0, 10.0, 30.0)  # times the published rate
PAPER_RUN = "cifar10-paper"  # the configuration with every setting as published
# Published rates: as there, and of the methods' own papers.
TOWERS: dict[str, dict[str, float]] = {  # trained through a tower
    "fine-tune": {"lr": 3e-5}, "l2-sp": {"lr": 3e-5}, "lp-ft": {"lr": 3e-5}, "flyp": {"lr": 1e-5},
    "lipsum-ft": {"lr": 1e-5}, "clip-lora": {"lr": 2e-4},
    "coop": {"lr": 2e-3}, "locoop": {"lr": 2e-3}, "maple": {"lr": 3.5e-3}, "rp-text": {"text_lr": 5e-4},
    "rp": {"image_lr": 5e-3, "text_lr": 5e-4}, "rrp": {"image_lr": 5e-3, "text_lr": 5e-4},
}  # fmt: skip
FEATURES: dict[str, dict[str, float]] = {  # trained on frozen features
    "linear-probe": {"lr": 1e-2}, "zs-lp": {"lr": 1e-2}, "task-res": {"lr": 2e-4}, "clap": {"lr": 1e-1},
    "tip-adapter-f": {"lr": 1e-3},
}  # fmt: skip
RATES = TOWERS | FEATURES
OTHER_SIZE = ("flyp", "clip-lora")  # whose other settings are for tasks of another size
TUNED, AS_PUBLISHED = "tuned", "published"  # where all settings but the rate come from
SHIFT, AUROC = "shift accuracy", "auroc"
KINDS = ((TOWERS, "through a tower"), (FEATURES, "on frozen features"))
PANELS = (
    ("test", "accuracy", "ID accuracy, %"), (ALL_SHIFTS, "accuracy", "accuracy under shift, %"),
    (ALL_OOD, "auroc", "AUROC, %"),
)  # fmt: skip


def at_rate(world: World, name: str, factor: float) -> Entry:
    """The tuned method at ``factor`` times its published learning rate, all else as tuned."""
    rates = {key: factor * rate for key, rate in RATES[name].items()}
    settings = dict(world.tuned(name))
    config = settings.get("config")
    return Entry(name, settings | ({"config": config.changed(**rates)} if config else rates))


def published() -> dict[str, Entry]:
    """The methods with every setting as published, but CoOp with as many context tokens as fit, at most the 16.

    Those of :data:`OTHER_SIZE` are left out.
    """
    settings = read_config(PAPER_RUN).settings()
    settings["coop"].pop("n_context")  # beside the mini CLIP's class names 12 fit
    names = [name for name in RATES if name not in OTHER_SIZE]
    return {name: Entry(name, settings.get(name, {}) | published_settings(name)) for name in names}


def measure(world: World, parts: Path) -> pd.DataFrame:
    """Every method at each rate with all else as tuned, and once with every setting as published."""
    zero = {"zero-shot": Entry("zero-shot")}
    rates = {f: {name: at_rate(world, name, f) for name in RATES} for f in ((1.0, 10.0) if world.quick else FACTORS)}
    cells = [({"rest": TUNED, "factor": f}, entries) for f, entries in rates.items()]
    cells.append(({"rest": AS_PUBLISHED, "factor": 1.0}, published()))
    conditions = [
        Condition(
            levels, world.judged, zero | entries,
            pairs=[*((name, "zero-shot") for name in entries), ("rrp", "fine-tune")],
        )
        for levels, entries in cells
    ]  # fmt: skip
    return run_grid(world, conditions, parts)


def judge(records: pd.DataFrame) -> list[Verdict]:
    """What fine-tuning costs at its published settings and at higher rates, and whether RRP's lead outlives them."""
    top = float(records["factor"].max())
    published, tuned = {"rest": AS_PUBLISHED, "factor": 1.0}, {"rest": TUNED, "factor": top}
    places = ((published, "with every setting as published"), (tuned, f"at {top:g} times its published rate"))
    verdicts = []
    for where, words in places:
        for axis, what in ((SHIFT, "accuracy under shift"), (AUROC, "detection")):
            claim = f"{words}, fine-tuning costs {what}"
            verdicts.append(difference(claim, records, "fine-tune", "zero-shot", axis, "lower", where))
    for axis, what in ((SHIFT, "accuracy under shift"), (AUROC, "AUROC")):
        ends = [
            row(records, rest=TUNED, factor=f, method="fine-tune", versus="zero-shot", metric=axis) for f in (1.0, top)
        ]
        verdicts.append(
            shrinks(f"what fine-tuning does to {what} is a price of its rate", *ends,
                    f"fine-tune - zero-shot in {what} at 1 and at {top:g} times the published rate")
        )  # fmt: skip
    verdicts.append(
        difference("with every setting as published, RRP beats fine-tuning under shift", records, "rrp", "fine-tune",
                   SHIFT, "higher", published)
    )  # fmt: skip
    return verdicts


def draw_rates(records: pd.DataFrame) -> Figure:
    """The three axes over the learning rate, a line for each method; stars have every setting as published."""
    from matplotlib.figure import Figure

    plain = pick(records, versus=None)
    figure = Figure(figsize=(13, 8.6), layout="constrained")
    for part, (methods, where) in zip(figure.subfigures(2), KINDS, strict=True):
        _draw_kind(part, plain, methods, where)
    figure.suptitle(
        f"Lines: the rate varies, all else as tuned. Stars: every setting as published. 95 % intervals over pictures "
        f"and {int(plain['seeds'].max())} seeds, n = {int(pick(plain, set='test')['n'].iloc[0])}", fontsize=11,
    )  # fmt: skip
    return figure


def _draw_kind(part: SubFigure, plain: pd.DataFrame, methods: Iterable[str], where: str) -> None:
    for panel, (data, metric, title) in zip(part.subplots(1, 3), PANELS, strict=True):
        rows = pick(plain, set=data, metric=metric)
        zero = pick(rows, method="zero-shot")["value"].iloc[0]
        panel.axhline(100 * zero, color=STYLE["zero-shot"][0], ls="--", lw=1.2, label="Zero-shot")
        panel.axvline(1, color="#999999", lw=0.8)
        for method in [m for m in methods if m in set(rows["method"])]:
            colour, marker, label = STYLE[method]
            line = pick(rows, method=method, rest=TUNED).sort_values("factor")
            value, bars = percent(line)
            panel.errorbar(line["factor"], value, bars, color=colour, marker=marker, ms=5, lw=1.4, capsize=2,
                           label=label)  # fmt: skip
            star = pick(rows, method=method, rest=AS_PUBLISHED)
            if len(star):
                panel.plot(1, 100 * star["value"].iloc[0], "*", color=colour, mec="black", mew=0.6, ms=13, zorder=4)
        panel.set_xscale("log")
        panel.set_xticks(sorted(plain["factor"].unique()), [f"{f:g}" for f in sorted(plain["factor"].unique())])
        panel.minorticks_off()
        panel.set_xlabel("learning rate, times the published one")
        panel.set_title(f"{title}, {where}", fontsize=10)
        tidy(panel)
    handles, names = panel.get_legend_handles_labels()
    part.legend(handles, names, loc="outside lower center", ncols=6, frameon=False)


def describe_rates(records: pd.DataFrame) -> str:
    """How far each method falls from its best rate to its worst under shift."""
    rows = pick(pick(records, versus=None), set=ALL_SHIFTS, metric="accuracy", rest=TUNED)
    told = []
    for method in [m for m in RATES if m in set(rows["method"])]:
        line = pick(rows, method=method).set_index("factor")["value"]
        at = [f"{100 * v:.1f} % at {x:g}" for v, x in ((line.max(), line.idxmax()), (line.min(), line.idxmin()))]
        told.append(f"{named(method)} {at[0]} and {at[1]}")
    return f"Accuracy on three axes over multiples of the published learning rate; under shift {listed(told)}."


EXPERIMENT = Experiment(
    "rate", "What does adaptation break, and at which learning rate?", ("rest", "factor"), measure, judge, 52,
    figures=lambda: {"": Drawing(draw_rates, describe_rates)},
)  # fmt: skip
