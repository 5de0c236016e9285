"""Ship the mini CLIP in another size beside the first: ``rp-lib mini release --size NAME``.

It answers one question, whether the ranking of the methods depends on the size of the backbone, so it ships as the
checkpoints before the end do: with the token rows that the benchmark's words need.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from rp_lib.benchmark import Benchmark
from rp_lib.errors import RPLibError
from rp_lib.features import FeatureStore
from rp_lib.methods import ZeroShot
from rp_lib.mini import weights
from rp_lib.mini.pretrain import config
from rp_lib.mini.release import accuracy_cell, benchmark_tokens, read_stage, stage_text
from rp_lib.storage import file_sha256, write_atomically


def release_size(run: Path, out: Path, name: str) -> None:
    """Export a finished run of another width into a release, with a card.

    Args:
        run: folder of ``rp-lib mini pretrain``. out: folder of a release. name: of the checkpoint.

    Raises:
        RPLibError: the run is not finished, or the release has a checkpoint of that name already that is no size.
    """
    stage, entries = read_stage(run), dict(weights.index(out))
    if "width" not in entries.get(name, {"width": 0}):
        raise RPLibError(f"{out} has a checkpoint called {name!r}; choose another --size")
    state = torch.load(run / "state.pt", weights_only=True)
    benchmark = Benchmark.mini()
    path = out / f"{name}.safetensors"
    tokens = benchmark_tokens(weights.load("final", folder=out), benchmark)
    weights.export(state, config(stage["width"]), path, tokens)
    entries[name] = {"file": path.name, "sha256": file_sha256(path), "fraction": 1.0, "width": stage["width"]}
    write_atomically(out / "index.json", lambda p: p.write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8"))
    weights.index.cache_clear()
    clip = weights.load(name, folder=out)
    method, store = ZeroShot(clip, benchmark.class_names, benchmark.templates), FeatureStore()
    sets = [benchmark.test, *benchmark.shifts.values()]
    rows = [f"| {s.name} | {len(s):,} | {accuracy_cell(method, s, store)} |" for s in sets]
    millions = sum(p.numel() for p in clip.model.visual.parameters()) / 1e6
    card = f"""# The mini CLIP, {name}

An image tower of width {stage["width"]} ({millions:.2f} million weights), otherwise built as \
[the mini CLIP](MODEL_CARD.md) and pre-trained on the same icons and names, in one stage. It is there to be compared; \
it keeps the token rows that the benchmark's words need.

{stage_text(1, stage)}

Zero-shot accuracy, top-1 in percent over {len(benchmark.class_names)} classes, Wilson 95 % interval:

| set | n | {name} |
|---|---|---|
{chr(10).join(rows)}
"""
    write_atomically(out / f"{name.upper()}.md", lambda p: p.write_text(card, encoding="utf-8"))
