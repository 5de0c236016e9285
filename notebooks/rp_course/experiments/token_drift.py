"""Which words did the text program move, how far, and to which neighbours?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from rp_course.experiments.base import COLUMNS, FAILS, HOLDS, UNDECIDED, Drawing, Experiment, Verdict, pick
from rp_course.experiments.world import World
from rp_lib.methods import Reprogrammer
from rp_lib.towers import text_part


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


def _figures() -> Mapping[str, Drawing]:
    from rp_course.experiments.drawings.measures import WORDS_DRAWINGS

    return WORDS_DRAWINGS


EXPERIMENT = Experiment(
    "words", "Which words did the text program move, and how far?", ("word",), measure,
    judge, 1,
    figures=_figures,
)  # fmt: skip
