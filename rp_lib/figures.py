"""Figures that a reader understands at a glance."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rp_lib.evaluation import ALL_OOD, ALL_SHIFTS
from rp_lib.utils.distributed import on_main
from rp_lib.utils.io import write_atomically

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

# Okabe and Ito's colour-blind-safe palette. Eight colours are fewer than methods: relatives share one, and each
# method has a marker of its own, so that colour is never the only difference.
STYLE: dict[str, tuple[str, str, str]] = {
    "zero-shot": ("#000000", "D", "Zero-shot"),
    "linear-probe": ("#E69F00", "s", "Linear probe"),
    "zs-lp": ("#E69F00", "h", "Probe from zero-shot"),
    "task-res": ("#999933", "$R$", "TaskRes"),  # olive, of the same scheme as CoOp's wine
    "clap": ("#999933", "$C$", "CLAP"),
    "tip-adapter": ("#999933", "$t$", "Tip-Adapter"),
    "tip-adapter-f": ("#999933", "$T$", "Tip-Adapter-F"),
    "fine-tune": ("#D55E00", "^", "Full fine-tuning"),
    "l2-sp": ("#D55E00", "v", "L2-SP"),
    "lp-ft": ("#E69F00", "P", "LP-FT"),
    "flyp": ("#D55E00", "p", "FLYP"),
    "lipsum-ft": ("#D55E00", "$l$", "Lipsum-FT"),
    "clip-lora": ("#D55E00", "$L$", "CLIP-LoRA"),
    "wise-ft": ("#CC79A7", "X", "WiSE-FT"),
    "logit-ensemble": ("#56B4E9", "H", "Logit ensemble"),
    "coop": ("#882255", "d", "CoOp"),  # wine, of Paul Tol's colour-blind-safe "muted" scheme
    "locoop": ("#882255", "$o$", "LoCoOp"),
    "maple": ("#882255", "8", "Deep prompts (MaPLe)"),
    "attr-vr": ("#0072B2", "$a$", "AttrVR"),
    "rp-image": ("#0072B2", "<", "RP, image program alone"),
    "rp-text": ("#0072B2", ">", "RP, text program alone"),
    "rp": ("#0072B2", "o", "Reprogrammer (RP)"),
    "rrp": ("#009E73", "*", "Residual Reprogrammer (RRP)"),
}
AXES = (
    ("test", "accuracy", "ID accuracy (%)", "higher is better"),
    (ALL_SHIFTS, "accuracy", "Accuracy under shift (%)", "higher is better"),
    (ALL_OOD, "auroc", "OOD AUROC (%)", "higher is better"),
    (ALL_OOD, "fpr", "OOD FPR at 95 % TPR (%)", "lower is better"),
)


def halo() -> list[Any]:
    """Make the effect that keeps numbers readable on a line: a white outline around the text."""
    from matplotlib.patheffects import withStroke

    return [withStroke(linewidth=3, foreground="white")]


def three_axes(summary: pd.DataFrame, title: str) -> Figure:
    """Draw every method on the three axes (detection by two numbers), with intervals and zero-shot as reference.

    Args:
        summary: Of :func:`rp_lib.evaluation.summarize`.
        title: Says what was measured on what.
    """
    from matplotlib.figure import Figure

    methods = [m for m in STYLE if m in set(summary["method"])]
    # Not through pyplot: that would keep the figure alive, and pick a backend for whoever imports this.
    axes = [a for a in AXES if ((summary["set"] == a[0]) & (summary["metric"] == a[1])).any()]
    figure = Figure(figsize=(13, 0.55 * len(methods) + 1.6), layout="constrained")
    panels = figure.subplots(1, len(axes), sharey=True, squeeze=False)[0]
    for panel, (data, metric, label, direction) in zip(panels, axes, strict=True):
        rows = summary[(summary["set"] == data) & (summary["metric"] == metric)].set_index("method")
        if "zero-shot" in rows.index:
            panel.axvline(100 * rows.loc["zero-shot", "value"], color="#999999", linestyle="--", linewidth=1, zorder=0)
        for y, method in enumerate(reversed(methods)):
            colour, marker, _ = STYLE[method]
            value, low, high = (100 * float(rows.loc[method, c]) for c in ("value", "low", "high"))
            panel.plot([low, high], [y, y], color=colour, linewidth=2, solid_capstyle="round", zorder=1)
            panel.plot(value, y, color=colour, marker=marker, markersize=11 if marker == "*" else 8, zorder=2)
            panel.annotate(
                f"{value:.1f}", (value, y), (0, 8), textcoords="offset points", ha="center", fontsize=9,
                path_effects=halo(),
            )  # fmt: skip
        panel.set_yticks(range(len(methods)), [STYLE[m][2] for m in reversed(methods)])
        panel.set_ylim(-0.5, len(methods) - 0.2)
        panel.set_title(label, fontsize=11)
        panel.set_xlabel(direction, fontsize=9, color="#555555")
        panel.margins(x=0.12)
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(axis="x", color="#e5e5e5", linewidth=0.8)
        panel.set_axisbelow(True)
    figure.suptitle(title, fontsize=12)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG atomically; of several processes the first does. A palette of 256 colours makes it a third as big."""
    from PIL import Image

    full = io.BytesIO()
    figure.savefig(full, dpi=150, format="png")
    small = Image.open(full).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    on_main(lambda: write_atomically(path, lambda partial: small.save(partial, format="png", optimize=True)))
