"""One hand against all hands: means over families, and every family."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from rp_course.experiments.base import Drawing, pick
from rp_course.experiments.figures import named, percent, tidy
from rp_course.experiments.single_designer import ALONE, MEAN, MIXED
from rp_lib.evaluation import ALL_OOD, ALL_SHIFTS
from rp_lib.figures import AXES, STYLE

SHIFT, FPR = (ALL_SHIFTS, "accuracy"), (ALL_OOD, "fpr")


def draw_narrowness(records: pd.DataFrame) -> Figure:
    """Each method on one hand's images and on all hands': means over families, and every family as a thin line."""
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
    figure.suptitle(
        f"Training images by one designer or by all, as many of each class: mean of {count} families (thick, with 95 % "
        "intervals for other families) and every family (thin)", fontsize=11,
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
