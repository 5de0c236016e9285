"""Turn a pre-training run into what ships: float16 checkpoints, an index, a training curve and a model card.

Every number in the card is measured here, on the exported files.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from rp_lib.benchmark import Benchmark, ImageSet
from rp_lib.clip import FrozenCLIP
from rp_lib.errors import RPLibError
from rp_lib.features import FeatureStore
from rp_lib.intervals import wilson_interval
from rp_lib.methods import ZeroShot
from rp_lib.mini import weights
from rp_lib.mini.pretrain import CONFIG
from rp_lib.storage import file_sha256, write_atomically


def release(run: Path, out: Path, keep: tuple[float, ...]) -> None:
    """Export ``run`` (see ``rp-lib mini pretrain``) to ``out``.

    Raises:
        RPLibError: the run is not finished, or has no checkpoint at a wanted fraction.
    """
    recipe = json.loads((run / "recipe.json").read_text(encoding="utf-8"))
    final = torch.load(run / "state.pt", weights_only=True)
    if final["step"] < recipe["steps"]:
        raise RPLibError(
            f"{run} stopped at step {final['step']} of {recipe['steps']}: run `rp-lib mini pretrain` to its end"
        )
    benchmark = Benchmark.mini()
    entries: dict[str, dict[str, Any]] = {}

    def add(name: str, state: dict[str, Any], fraction: float, tokens: torch.Tensor | None) -> None:
        path = out / f"{name}.safetensors"
        weights.export(state, CONFIG, path, tokens)
        entries[name] = {"file": path.name, "sha256": file_sha256(path), "fraction": fraction, "step": state["step"]}

    add("final", final, 1.0, None)
    words = _benchmark_tokens(weights.load(str(out / "final.safetensors")), benchmark)
    for fraction in keep:
        path = run / f"checkpoint-{fraction:g}.pt"
        if not path.is_file():
            there = ", ".join(sorted(p.stem.removeprefix("checkpoint-") for p in run.glob("checkpoint-*.pt")))
            raise RPLibError(f"{run} kept no checkpoint at {fraction:g}; it has {there}")
        state = torch.load(path, weights_only=True)
        add(f"at-{round(100 * state['step'] / recipe['steps'])}-percent", state, state["step"] / recipe["steps"], words)
    write_atomically(out / "index.json", lambda p: p.write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8"))
    weights.index.cache_clear()
    log = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    _draw_curve(log, recipe, out / "training_curve.png")
    card = _card(recipe, final["elapsed"], entries, out, benchmark, log)
    write_atomically(out / "MODEL_CARD.md", lambda p: p.write_text(card, encoding="utf-8"))


def _benchmark_tokens(clip: FrozenCLIP, benchmark: Benchmark) -> torch.Tensor:
    """Token ids that the benchmark's prompts and its near-OOD words need; earlier checkpoints keep only these rows."""
    from rp_lib.mini.classes import ID_CLASSES, NEAR_CLASSES

    words = [*benchmark.class_names, *NEAR_CLASSES, *(w for others in ID_CLASSES.values() for w in others)]
    templates = (*benchmark.templates, "{}", "a {} icon", "a picture of a {}", "an emoji of a {}")
    return clip.tokenize([t.format(w) for w in words for t in templates]).unique().cpu()


def _draw_curve(log: list[dict[str, Any]], recipe: dict[str, Any], path: Path) -> None:
    import matplotlib.pyplot as plt

    from rp_lib.figures import save_figure

    figure, panel = plt.subplots(figsize=(7, 3.2), layout="constrained")
    seen = [r["step"] * recipe["batch"] / 1e6 for r in log]
    panel.plot(seen, [r["loss"] for r in log], color="#0072B2", linewidth=0.8)
    panel.axvline(recipe["constant_until"] * recipe["steps"] * recipe["batch"] / 1e6, color="#999999", linestyle="--")
    panel.annotate("whole images, decay to zero from here", (0.46, 0.93), xycoords="axes fraction", fontsize=9)
    panel.set(
        xlabel="pictures seen (millions)",
        ylabel="contrastive loss of the batch (nats)",
        title="Pre-training of the mini CLIP",
    )
    save_figure(figure, path)


def _card(
    recipe: dict[str, Any],
    seconds: float,
    entries: dict[str, Any],
    out: Path,
    benchmark: Benchmark,
    log: list[dict[str, Any]],
) -> str:
    names = sorted(entries, key=lambda n: entries[n]["fraction"])
    sets = [benchmark.test, *benchmark.shifts.values()]
    table = []
    for name in names:
        clip = weights.load(str(out / f"{name}.safetensors"))
        method, store = ZeroShot(clip, benchmark.class_names, benchmark.templates), FeatureStore()
        table.append(
            f"| {name} | {entries[name]['fraction']:.0%} | " + " | ".join(_cell(method, s, store) for s in sets) + " |"
        )
    failures = _failures(method, benchmark.test, store)
    return f"""# The mini CLIP

A dual encoder of open_clip's classes, small enough to carry: {CONFIG["vision_cfg"]["layers"]} image layers of width \
{CONFIG["vision_cfg"]["width"]} on {CONFIG["vision_cfg"]["image_size"]} px with patches of {CONFIG["vision_cfg"]["patch_size"]}, \
{CONFIG["text_cfg"]["layers"]} text layers of width {CONFIG["text_cfg"]["width"]} with CLIP's BPE, features of {CONFIG["embed_dim"]}. \
Input: RGB in [0, 1], normalised with mean and standard deviation 0.5.

## Data and licences
{recipe["icons"]:,} icons with {recipe["concepts"]:,} distinct names from {len(recipe["sets"])} sets of the npm package \
`@iconify/json`, all under MIT, Apache-2.0, ISC, CC0, CC-BY, OFL or Unlicense; `../benchmark/ATTRIBUTION.md` names every set, its \
author and licence. No family of sets in the benchmark was seen in pre-training. The weights are released under the MIT licence.

## Recipe
Symmetric contrastive loss with all pictures of one name as positives; Muon for the block matrices, AdamW for the rest, peak rate \
{recipe["lr"]:g}, weight decay {recipe["weight_decay"]:g}, {recipe["warmup"]} steps of warm-up, constant to {recipe["constant_until"]:.0%}, \
linear decay to zero; batch {recipe["batch"]}, {recipe["steps"]:,} steps = {recipe["steps"] * recipe["batch"] / 1e6:.2f} million pictures; \
{recipe["patch_dropout"]:.0%} of the patches dropped during the constant phase; augmentation (place, size, turn, colours, noise) grows \
over the first third; bf16 autocast; seed {recipe["seed"]}; torch {recipe["torch"]}. It took {seconds / 60:.0f} minutes on two CPU cores. \
The final batch loss was {sum(r["loss"] for r in log[-10:]) / len(log[-10:]):.2f} (mean of the last {len(log[-10:])} logged).

![Batch loss against millions of pictures seen: it falls steadily, faster once whole images are shown and the rate decays](training_curve.png)

## Zero-shot accuracy
Top-1 in percent over {len(benchmark.class_names)} classes with the one prompt "{benchmark.templates[0]}", Wilson 95 % interval, on sets of \
families that pre-training never saw (chance: {100 / len(benchmark.class_names):.1f}). `test` is monochrome UI style; `emoji` are unseen vendors.

| checkpoint | of training | {" | ".join(f"{s.name} (n = {len(s):,})" for s in sets)} |
|---|---|{"---|" * len(sets)}
{chr(10).join(table)}

Checkpoints before the end were taken at the rate of their moment, not annealed: they are weaker than a run of that length would be. They \
keep only the token rows that the benchmark's words need.

## Known failures
{failures}
It knows icons, not photographs: on photos it is close to blind. It reads single words; word order and relations mean nothing to it. Words \
that name no icon have no vector of their own (they share the mean token row).
"""


def _cell(method: ZeroShot, data: ImageSet, store: FeatureStore) -> str:
    correct = round(method.accuracy(data, store) * len(data))
    value, low, high = wilson_interval(correct, len(data))
    return f"{100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _failures(method: ZeroShot, data: ImageSet, store: FeatureStore) -> str:
    guess = method.logits_from(store.get(method.clip, data)).argmax(1)
    names = method.class_names
    rows = []
    for c, name in enumerate(names):
        mine = data.labels == c
        wrong = guess[mine & (guess != c)]
        if len(wrong):
            other = int(wrong.mode().values)
            rows.append(
                (1 - len(wrong) / int(mine.sum()), name, int(mine.sum()), names[other], int((wrong == other).sum()))
            )
    lines = [
        f"- {name}: {100 * acc:.0f} % of {n} recognised, most often taken for {other} ({k})"
        for acc, name, n, other, k in sorted(rows)[:6]
    ]
    return "The weakest classes on `test`:\n\n" + "\n".join(lines) + "\n"
