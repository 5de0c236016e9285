"""What does it cost to learn from one designer's images alone? Several families, each against as many by all hands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from scipy import stats

from rp_course.experiments.base import FAILS, HOLDS, UNDECIDED, Drawing, Experiment, Verdict, difference, pick, row
from rp_course.experiments.figures import named, percent, tidy
from rp_course.experiments.grid import Condition, run_grid
from rp_course.experiments.training_data import of_classes, same_steps
from rp_course.experiments.world import World
from rp_lib.benchmark import ImageSet
from rp_lib.evaluation import ALL_OOD, ALL_SHIFTS
from rp_lib.figures import AXES, STYLE
from rp_lib.stats import holm

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FAMILIES = 4  # the largest ones, each alone; the fifth has 39 images
ALONE, MIXED, MEAN = "one", "all", "mean"
NAMES = ("zero-shot", "fine-tune", "rp", "rrp")


def of_families(train: ImageSet, families: Sequence[int], counts: torch.Tensor) -> ImageSet:
    """Images of these families, each in turn, up to ``counts`` (C,) of each class."""
    queues: dict[int, dict[int, list[int]]] = {}
    for i, (label, family) in enumerate(zip(train.labels.tolist(), train.groups.tolist(), strict=True)):
        if family in families:
            queues.setdefault(label, {}).setdefault(family, []).append(i)
    kept: list[int] = []
    for label, by_family in queues.items():
        wanted = int(counts[label])
        rounds = [i for turn in range(wanted) for q in by_family.values() for i in q[turn : turn + 1]]
        kept += rounds[:wanted]
    return replace(train.subset(sorted(kept)), name=f"{train.name} of {len(families)} families")


def measure(world: World, parts: Path) -> pd.DataFrame:
    """The core methods on one family's images, and on as many of each class by all hands, for each large family.

    A family sets the classes of its task and how many images of each there are, so that only the number of hands
    differs (where the others lack a class, a few images less). Each family takes one seed of training, another than
    the family before it: the spread over families holds that over seeds. Rows of ``family`` "mean" are means over
    families, see :func:`over_families`.
    """
    sizes = world.benchmark.train.groups.bincount()
    order = sizes.argsort(descending=True, stable=True)[: int((sizes > 0).sum())].tolist()
    tasks = order[: 2 if world.quick else FAMILIES]
    conditions = []
    for k, family in enumerate(tasks):
        train = world.benchmark.train
        covered = train.labels[train.groups == family].unique().tolist()
        task = of_classes(world.judged, covered)
        counts = task.train.labels[task.train.groups == family].bincount(minlength=len(covered))
        seed = world.seeds[k % len(world.seeds)]
        for hands, families in ((ALONE, [family]), (MIXED, [family, *(f for f in order if f != family)])):
            images = of_families(task.train, families, counts)
            levels = {"family": str(family), "hands": hands, "images": len(images), "classes": len(covered)}
            entries = same_steps(world, len(images), NAMES)
            conditions.append(Condition(levels, task, entries, train={seed: images}, seeds=(seed,)))
    found = run_grid(world, conditions, parts)
    return pd.concat([found, over_families(found)], ignore_index=True)


def over_families(records: pd.DataFrame) -> pd.DataFrame:
    """Means of the families' records, with intervals for other families, other training runs and other pictures.

    The squared standard error is ``s^2 / k + (h / 1.96)^2``: s is the spread over k families (each with its own seed),
    and h the root mean square of the families' own half intervals, which do not average out, as families share test
    pictures. What of h is in s counts twice: rather too wide than too narrow. Interval and p-value are Student's,
    with Satterthwaite's degrees of freedom (Welch 1947), k - 1 at least, since s rests on few families; ``p_holm`` is
    corrected for all differences of the same ``hands``.
    """
    keys = ["hands", "method", "versus", "set", "metric", "detector"]
    own = ((records["high"] - records["low"]) / 2) ** 2
    groups = records.assign(own=own, seeds=1.0).groupby(keys, sort=False, dropna=False)
    k = groups.size()
    between = groups["value"].var(ddof=1).fillna(0.0) / k
    squared = between + groups["own"].mean() / 1.96**2
    few = np.maximum(k - 1, 1)
    free = np.maximum(squared**2 / np.maximum(between**2 / few, 1e-30), few)
    value, error = groups["value"].mean(), np.sqrt(squared)
    half = stats.t.ppf(0.975, free) * error
    mean = pd.DataFrame({"value": value, "low": value - half, "high": value + half, "seeds": k.astype(float)})
    mean["p"] = 2 * stats.t.sf(value.abs() / np.maximum(error, 1e-12), free)
    for column in ("n", "n_ood", "images", "classes"):
        mean[column] = groups[column].mean().round()
    mean = mean.reset_index().assign(family=MEAN)
    mean["p_holm"] = np.nan
    for hands in mean["hands"].unique():
        rows = mean["versus"].notna() & (mean["hands"] == hands)
        mean.loc[rows, "p_holm"] = holm(mean.loc[rows, "p"])
    return mean[records.columns]


def judge(records: pd.DataFrame) -> list[Verdict]:
    """One hand against all hands, as means over families."""
    alone = {"family": MEAN, "hands": ALONE}
    gaps = [
        row(records, family=MEAN, hands=h, method="zero-shot", versus="fine-tune", metric="shift accuracy")
        for h in (ALONE, MIXED)
    ]
    families = records.loc[records["family"] != MEAN, "family"].nunique()
    claims = [
        ("RRP beats fine-tuning under shift", "rrp", "fine-tune", "shift accuracy", "higher"),
        ("RRP has a higher AUROC than fine-tuning", "rrp", "fine-tune", "auroc", "higher"),
        ("fine-tuning costs accuracy under shift", "fine-tune", "zero-shot", "shift accuracy", "lower"),
    ]
    told = [difference(f"on one designer family's images, {claim}", records, *more, alone) for claim, *more in claims]
    runs = (f"{families} seeds", f"{families} families, a seed each")
    return [
        _paired_over_families(
            "the narrower the training data, the more fine-tuning costs under shift", records, "zero-shot", "fine-tune",
            f"zero-shot - fine-tune, mean over {families} families, one hand against all", gaps,
        ),
        *(replace(v, evidence=v.evidence.replace(*runs)) for v in told),
    ]  # fmt: skip


def _paired_over_families(
    claim: str, records: pd.DataFrame, first: str, second: str, what: str, gaps: Sequence[pd.Series]
) -> Verdict:
    """Whether ``first - second`` under shift is larger alone than mixed: t-interval over families, these pictures."""
    rows = pick(records[records["family"] != MEAN], method=first, versus=second, metric="shift accuracy")
    by = rows.pivot(index="family", columns="hands", values="value")
    change = (by[ALONE] - by[MIXED]).to_numpy()
    half = stats.t.ppf(0.975, len(change) - 1) * change.std(ddof=1) / len(change) ** 0.5 if len(change) > 1 else np.inf
    mean = change.mean()
    outcome = HOLDS if mean - half > 0 else FAILS if mean + half < 0 else UNDECIDED
    spread = [f"{100 * g['value']:+.1f} [{100 * g['low']:+.1f}, {100 * g['high']:+.1f}]" for g in gaps]
    each = ", ".join(f"{100 * c:+.1f}" for c in change)
    return Verdict(
        claim, outcome,
        f"{what}: {spread[0]} against {spread[1]} points, change {100 * mean:+.1f} ± {100 * half:.1f} ({each})",
    )  # fmt: skip


SHIFT, FPR = (ALL_SHIFTS, "accuracy"), (ALL_OOD, "fpr")


def draw_narrowness(records: pd.DataFrame) -> Figure:
    """Each method on one hand's images and on all hands': means over families, and every family as a thin line."""
    from matplotlib.figure import Figure

    plain = pick(records, versus=None)
    mean = pick(plain, family=MEAN)
    methods = [m for m in STYLE if m in set(mean["method"])]
    figure = Figure(figsize=(13, 4.4), layout="constrained")
    for panel, (data, metric, title, direction) in zip(figure.subplots(1, len(AXES)), AXES, strict=True):
        rows = pick(plain, set=data, metric=metric)
        for k, method in enumerate(methods):
            colour, marker, name = STYLE[method]
            x = np.arange(2) + 0.06 * (k - (len(methods) - 1) / 2)
            for _, own in rows[(rows["family"] != MEAN) & (rows["method"] == method)].groupby("family"):
                panel.plot(
                    x, 100 * own.set_index("hands")["value"].loc[[ALONE, MIXED]], color=colour, lw=0.7, alpha=0.5
                )
            value, bars = percent(pick(rows, family=MEAN, method=method).set_index("hands").loc[[ALONE, MIXED]])
            panel.errorbar(x, value, bars, color=colour, marker=marker, ms=7, lw=2, capsize=3, label=name)
        panel.set_xticks([0, 1], ["one hand", "all hands"])
        panel.set_xlim(-0.35, 1.35)
        panel.set_title(f"{title}\n{direction}", fontsize=10)
        tidy(panel)
    handles, names = panel.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False)
    count = plain.loc[plain["family"] != MEAN, "family"].nunique()
    choice = f" ({mean['choice'].iloc[0]} settings)" if "choice" in mean else ""
    figure.suptitle(
        f"Training images by one designer or by all{choice}: mean of {count} families (thick, with 95 % intervals for "
        "other families) and every family (thin)", fontsize=11,
    )  # fmt: skip
    return figure


def describe_narrowness(records: pd.DataFrame) -> str:
    """What fine-tuning and RRP lose on one hand's images."""
    mean = pick(records, versus=None, family=MEAN)
    told = []
    for method in ("fine-tune", "rrp"):
        shift, rejected = (
            pick(mean, method=method, set=a[0], metric=a[1]).set_index("hands")["value"] for a in (SHIFT, FPR)
        )
        told.append(
            f"{named(method)} has {100 * shift[ALONE]:.1f} % under shift and FPR95 {100 * rejected[ALONE]:.1f} % with "
            f"one hand, {100 * shift[MIXED]:.1f} % and {100 * rejected[MIXED]:.1f} % with all"
        )
    count = records.loc[records["family"] != MEAN, "family"].nunique()
    return (
        f"ID accuracy, accuracy under shift, AUROC and FPR95 with training images by one designer and by all, means "
        f"over {count} families: {'; '.join(told)}."
    )


DRAWINGS = {"": Drawing(draw_narrowness, describe_narrowness)}


EXPERIMENT = Experiment(
    "narrowness", "What does it cost to learn from one designer's images alone?",
    ("family", "hands", "images", "classes"), measure, judge, 18,
    figures=lambda: DRAWINGS,
)  # fmt: skip
