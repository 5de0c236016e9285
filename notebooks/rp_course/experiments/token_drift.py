"""Which words did the text program move, how far, and to which neighbours?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from rp_course.experiments.base import COLUMNS, FAILS, HOLDS, UNDECIDED, Drawing, Experiment, Verdict, pick
from rp_course.experiments.figures import tidy
from rp_course.experiments.world import World
from rp_lib.methods import Reprogrammer
from rp_lib.towers import text_part

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def token_words(rp: Reprogrammer) -> dict[int, str]:
    """Text of each trained token, by token id, as CLIP's BPE writes it (``</w>`` ends a word)."""
    decoder = getattr(rp.clip.tokenizer, "decoder", {})
    return {int(i): str(decoder.get(int(i), f"token {int(i)}")).replace("</w>", "") for i in rp.text_program.token_ids}


def nearest_word(vector: torch.Tensor, table: torch.Tensor, rows: torch.Tensor) -> int:
    """Position in ``rows`` (k,) of the row of ``table`` (V, width) that is nearest to ``vector`` (width,) by cosine."""
    return int((F.normalize(table[rows], dim=1) @ F.normalize(vector, dim=0)).argmax())


def measure(world: World, parts: Path) -> pd.DataFrame:
    """For every trained token: how far its row moved against its length, its cosine to the start, who is nearest."""
    clip, benchmark = world.backbone(), world.judged
    rows = []
    for seed in world.seeds:
        rp = world.fit("rp", seed, benchmark, clip)
        table = text_part(clip.model).token_embedding.weight.detach().float().cpu()
        ids, after = rp.text_program.token_ids.cpu(), rp.text_program.Theta.detach().float().cpu()
        before, names = table[ids], token_words(rp)
        for k, (i, old, new) in enumerate(zip(ids.tolist(), before, after, strict=True)):
            word = names[i]
            rows.append((word, seed, "relative distance", float((new - old).norm() / old.norm())))
            rows.append((word, seed, "cosine to the start", float(F.cosine_similarity(new, old, dim=0))))
            rows.append((word, seed, "still nearest to itself", float(nearest_word(new, table, ids) == k)))
        moved = (rp.text_program.b.detach().float().cpu() - text_part(clip.model).positional_embedding.detach().float()
                 .cpu()[: len(rp.text_program.b)]).norm(dim=1)  # fmt: skip
        rows += [(f"position {p}", seed, "bias moved by", float(d)) for p, d in enumerate(moved)]
        world.forget(rp)
    table = pd.DataFrame(rows, columns=["word", "seed", "metric", "value"])
    grouped = table.groupby(["word", "metric"], sort=False)["value"].agg(["mean", "count"]).reset_index()
    fixed = {"method": "rp", "versus": None, "set": "", "low": np.nan, "high": np.nan, "p_holm": np.nan, "n_ood": None}
    grouped = grouped.rename(columns={"mean": "value", "count": "seeds"})
    return grouped.assign(**fixed, n=len(benchmark.train), detector="")[["word", *COLUMNS]]


def judge(records: pd.DataFrame) -> list[Verdict]:
    """Whether words keep their meaning, and whether class words move more than the words of the template."""
    near = pick(records, metric="still nearest to itself")
    share, n = float((near["value"] == 1).mean()), len(near)
    keep = Verdict(
        "every trained word stays nearest to what it was", HOLDS if share == 1 else FAILS,
        f"{round(share * n)} of {n} words, in all of {int(near['seeds'].iloc[0])} seeds",
    )  # fmt: skip
    distance = pick(records, metric="relative distance").set_index("word")["value"]
    template = distance[distance.index.isin(["an", "icon", "of", "a"])]
    classes = distance[~distance.index.isin(["an", "icon", "of", "a"])]
    if template.empty or classes.empty:
        return [keep]
    outcome = HOLDS if classes.min() > template.max() else FAILS if classes.max() < template.min() else UNDECIDED
    evidence = (
        f"relative distance of class words {classes.mean():.3f} ({classes.min():.3f} to {classes.max():.3f}), of the "
        f"template's {template.mean():.3f} ({template.min():.3f} to {template.max():.3f})"
    )
    return [keep, Verdict("every class word moves more than the words of the template", outcome, evidence)]


def draw_words(records: pd.DataFrame) -> Figure:
    """How far each trained word moved, and its cosine to where it began, furthest first."""
    from matplotlib.figure import Figure

    distance = pick(records, metric="relative distance").set_index("word")["value"].sort_values()
    cosine = pick(records, metric="cosine to the start").set_index("word")["value"].loc[distance.index]
    near = pick(records, metric="still nearest to itself").set_index("word")["value"].loc[distance.index]
    figure = Figure(figsize=(9, 0.19 * len(distance) + 1.6), layout="constrained")
    y = np.arange(len(distance))
    colours = np.where(near == 1, "#0072B2", "#D55E00")
    for panel, values, label in zip(
        figure.subplots(1, 2, sharey=True), (distance, cosine), ("distance / length of the row", "cosine to the start"),
        strict=True,
    ):  # fmt: skip
        panel.hlines(y, 0 if panel.get_subplotspec().is_first_col() else 1, values, color=colours, lw=1)
        panel.scatter(values, y, color=colours, s=22)
        panel.set_yticks(y, distance.index, fontsize=8)
        panel.set_ylim(-0.8, len(distance) - 0.2)
        panel.set_xlabel(label)
        tidy(panel)
    seeds = int(pick(records, metric="relative distance")["seeds"].max())
    lost = int((near < 1).sum())
    figure.suptitle(
        f"How far the text program moved each word (mean of {seeds} seeds)\n"
        f"orange: nearest to another word afterwards in at least one seed ({lost} of {len(near)})", fontsize=11,
    )  # fmt: skip
    return figure


def describe_words(records: pd.DataFrame) -> str:
    """Which words moved furthest and least, and how many are nearest to another one afterwards."""
    distance = pick(records, metric="relative distance").set_index("word")["value"].sort_values()
    near = pick(records, metric="still nearest to itself")["value"]
    return (
        f"How far {len(distance)} words moved, as a share of their length: from {distance.iloc[0]:.3f} "
        f"({distance.index[0]}) to {distance.iloc[-1]:.3f} ({distance.index[-1]}); {int((near == 1).sum())} of "
        f"{len(near)} stay nearest to themselves in all seeds."
    )


DRAWINGS = {"": Drawing(draw_words, describe_words)}


EXPERIMENT = Experiment(
    "words", "Which words did the text program move, and how far?", ("word",), measure,
    judge, 1,
    figures=lambda: DRAWINGS,
)  # fmt: skip
