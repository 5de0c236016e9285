"""The mini CLIP in another size: ``python -m rp_course mini release --size NAME``.

It answers one question, whether the ranking of the methods depends on the size of the backbone. Its weights do not
ship, 25 MB hold no more checkpoints; its card and the records of the experiment ``size`` do.
"""

from __future__ import annotations

from pathlib import Path

import torch

from rp_course.mini_world.pretrain import config
from rp_course.mini_world.release import accuracy_cell, benchmark_tokens, read_stage, stage_text
from rp_course.mini_world.stored import export_clip
from rp_lib.features import FeatureStore
from rp_lib.methods import ZeroShot
from rp_lib.mini import load_benchmark, load_clip
from rp_lib.utils.io import write_atomically


def release_size(run: Path, out: Path, name: str) -> None:
    """Export a finished run of another width as ``NAME.safetensors``, with a card.

    Args:
        run: folder of ``python -m rp_course mini pretrain``. out: folder for both files. name: of the backbone.

    Raises:
        RPLibError: the run is missing or not finished.
    """
    stage = read_stage(run)
    state = torch.load(run / "state.pt", weights_only=True)
    benchmark = load_benchmark()
    path = out / f"{name}.safetensors"
    out.mkdir(parents=True, exist_ok=True)
    export_clip(state, config(stage["width"]), path, benchmark_tokens(load_clip(), benchmark))
    clip = load_clip(str(path))
    method, store = ZeroShot(clip, benchmark.class_names, benchmark.templates), FeatureStore()
    sets = [benchmark.test, *benchmark.shifts.values()]
    rows = [f"| {s.name} | {len(s):,} | {accuracy_cell(method, s, store)} |" for s in sets]
    millions = sum(p.numel() for p in clip.model.visual.parameters()) / 1e6
    card = f"""# The mini CLIP, {name}

An image tower of width {stage["width"]} ({millions:.2f} million weights), otherwise built as \
[the mini CLIP](MODEL_CARD.md) and pre-trained on the same icons and names, in one stage. It is there to be compared; \
it keeps the token rows that the benchmark's words need. Its weights do not ship.

{stage_text(1, stage)}

Zero-shot accuracy, top-1 in percent over {len(benchmark.class_names)} classes, Wilson 95 % interval:

| set | n | {name} |
|---|---|---|
{chr(10).join(rows)}
"""
    write_atomically(out / f"{name.upper()}.md", lambda p: p.write_text(card, encoding="utf-8"))
