"""The detection threshold on score histograms."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from rp_lib.arrays import floats
from rp_lib.course.slides import Facts, Slides
from rp_lib.course.stage import Stage
from rp_lib.metrics import ood_metrics

STOPS = (*(round(0.05 * i, 2) for i in range(1, 20)), 0.99, 1.0)
ID_COLOUR, OOD_COLOUR = "#0072B2", "#D55E00"


def threshold_widget(id_scores: Any, ood_scores: Any, score: str = "confidence") -> Slides:
    """Slider over the share of ID images to accept (TPR): the threshold, and the share of OOD images that pass (FPR).

    ``.at(tpr)`` gives ``threshold`` in the unit of the scores, and the fractions ``tpr`` and ``fpr`` that it reaches
    (convention ``id-positive``: accept score >= threshold).

    Args:
        id_scores: shape (n,), higher = more ID. ood_scores: shape (m,). score: its name, on the axis.

    Raises:
        ValueError: empty or NaN scores.
    """
    known, alien = floats(id_scores, "id_scores"), floats(ood_scores, "ood_scores")
    found = {stop: ood_metrics(known, alien, tpr=stop) for stop in STOPS}
    figure = Figure(figsize=(7, 3))
    panel = figure.add_axes((0.09, 0.16, 0.88, 0.7))
    finite = np.concatenate([known, alien])
    finite = finite[np.isfinite(finite)]
    bins = np.linspace(finite.min(), finite.max(), 41) if finite.size and np.ptp(finite) > 0 else 10
    for values, colour, hatch, label in ((known, ID_COLOUR, "", "ID"), (alien, OOD_COLOUR, "///", "OOD")):
        weights = np.full(len(values), 100 / len(values))
        panel.hist(
            values, bins, weights=weights, color=colour, alpha=0.55, hatch=hatch, label=f"{label} (n = {len(values)})"
        )
    line = panel.axvline(0, color="black", linewidth=2)
    shade = panel.axvspan(0, 0, color="#009E73", alpha=0.12)
    panel.set_xlabel(f"{score} (higher: more in-distribution)", fontsize=9)
    panel.set_ylabel("share of images, %", fontsize=9)
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(fontsize=8, frameon=False, loc="best")
    left, right = panel.get_xlim()
    title = figure.text(0.53, 0.93, "", ha="center", va="center", fontsize=10)
    stage = Stage(figure, [shade, line, title])

    def facts(stop: float) -> Facts:
        threshold = found[stop]["threshold"]
        return {"threshold": threshold, "tpr": float((known >= threshold).mean()), "fpr": found[stop]["fpr"]}

    def frame(stop: float) -> bytes:
        at = facts(stop)
        threshold = float(np.clip(at["threshold"], left, right))
        line.set_xdata([threshold, threshold])
        shade.set_x(threshold)
        shade.set_width(right - threshold)
        title.set_text(
            f"accept scores from {at['threshold']:.3g}: {at['tpr']:.0%} of ID (TPR), {at['fpr']:.0%} of OOD (FPR)"
        )
        return stage.png()

    alt = (
        f"Histograms of the {score} of ID and of OOD images with a vertical line at the threshold, accepted side shaded"
    )
    names = [f"{stop:.0%}" for stop in STOPS]

    def words(facts: Facts) -> Facts:
        return {
            "threshold": facts["threshold"],
            "ID images accepted (TPR)": f"{facts['tpr']:.1%}", "OOD images accepted (FPR)": f"{facts['fpr']:.1%}",
        }  # fmt: skip

    return Slides("ID images to accept", STOPS, frame, facts, alt, start=0.5, names=names, say=words)
