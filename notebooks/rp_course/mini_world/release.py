"""Turn a pre-training run into what ships: float16 checkpoints, an index, a training curve and a model card.

Every number in the card is measured here, on the exported files.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from rp_course.mini_world.icon_pairs import SHARED_BY
from rp_course.mini_world.pretrain import CONFIG, config
from rp_course.mini_world.stored import export_clip
from rp_lib.benchmark import Benchmark, ImageSet
from rp_lib.clip import FrozenCLIP
from rp_lib.features import FeatureStore
from rp_lib.methods import ZeroShot
from rp_lib.mini import load_benchmark, weights
from rp_lib.stats import wilson_interval
from rp_lib.utils.errors import RPLibError, UnknownName
from rp_lib.utils.io import file_sha256, load_tensors, write_atomically

TRAINING = "training.json"


def release(
    runs: tuple[Path, ...],
    out: Path,
    keep: tuple[float, ...],
    note: str = "",
    after: Path | None = None,
    keep_after: tuple[str, ...] = (),
) -> None:
    """Export pre-training (see ``python -m rp_course mini pretrain``) to ``out``.

    Args:
        runs: folders of the stages, each started from the one before; the last gives the final weights.
        out: folder for the checkpoints, the index, the curve, the log and the card.
        keep: which kept checkpoints of the first of ``runs`` to export, as fractions of it.
        note: a sentence about these runs for the card.
        after: an earlier release, whose final weights the first of ``runs`` started from; its stages are told too.
        keep_after: names of checkpoints of the earlier release that ship again, its ``final`` among them or not.

    Raises:
        RPLibError: a run is missing or not finished, or kept no checkpoint at a wanted fraction.
        UnknownName: the earlier release has no checkpoint of a wanted name.
    """
    told = _read_training(after) if after is not None else []
    stages = [*told, *(read_stage(run) for run in runs)]
    before, total = sum(stage["steps"] for stage in told), sum(stage["steps"] for stage in stages)
    benchmark = load_benchmark()
    earlier = _earlier_states(after, keep_after) if after is not None else []  # read before out, its folder or not
    states = [(state, fraction * before / total) for state, fraction in earlier]
    states += [(state, (before + state["step"]) / total) for state in _kept_states(runs[0], keep)]
    names = [_name(fraction) for _, fraction in states]
    doubled = [name for name in names if names.count(name) > 1]
    if doubled:
        raise RPLibError(f"two checkpoints would both be called {doubled[0]}; keep one of them")
    final = torch.load(runs[-1] / "state.pt", weights_only=True)
    architecture = _architecture(stages)
    # Nothing is written before all of it is there: the folder may be the one that ships.
    entries: dict[str, dict[str, Any]] = {}

    def add(name: str, state: dict[str, Any], fraction: float, tokens: torch.Tensor | None) -> None:
        path = out / f"{name}.safetensors"
        export_clip(state, architecture, path, tokens)
        entries[name] = {"file": path.name, "sha256": file_sha256(path), "fraction": fraction}

    add("final", final, 1.0, None)
    words = benchmark_tokens(weights.load_clip(str(out / "final.safetensors")), benchmark)
    for state, fraction in states:
        add(_name(fraction), state, fraction, words)
    for path in out.glob("*.safetensors"):  # of an earlier release in the same folder
        if path.stem not in entries:
            path.unlink()
    write_atomically(out / "index.json", lambda p: p.write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8"))
    write_atomically(out / TRAINING, lambda p: p.write_text(json.dumps(stages) + "\n", encoding="utf-8"))
    weights.index.cache_clear()
    _draw_curve(stages, out / "training_curve.png")
    card = _card(stages, entries, out, benchmark, note)
    write_atomically(out / "MODEL_CARD.md", lambda p: p.write_text(card, encoding="utf-8"))


def _kept_states(run: Path, keep: tuple[float, ...]) -> list[dict[str, Any]]:
    """Checkpoints that a run kept, by its own fractions."""
    states = []
    for fraction in keep:
        path = run / f"checkpoint-{fraction:g}.pt"
        if not path.is_file():
            there = ", ".join(sorted(p.stem.removeprefix("checkpoint-") for p in run.glob("checkpoint-*.pt")))
            raise RPLibError(f"{run} kept no checkpoint at {fraction:g}; it has {there}")
        states.append(torch.load(path, weights_only=True))
    return states


def _architecture(stages: list[dict[str, Any]]) -> dict[str, Any]:
    return config(stages[-1].get("width", CONFIG["vision_cfg"]["width"]))


def _name(fraction: float) -> str:
    return f"at-{round(100 * fraction)}-percent"


def read_stage(run: Path) -> dict[str, Any]:
    """Recipe, seconds and log of a finished run."""
    if not (run / "state.pt").is_file():
        raise RPLibError(
            f"{run} holds no pre-training run: make one with `python -m rp_course mini pretrain --out {run}`"
        )
    recipe = json.loads((run / "recipe.json").read_text(encoding="utf-8"))
    state = torch.load(run / "state.pt", weights_only=True)
    if state["step"] < recipe["steps"]:
        raise RPLibError(f"{run} stopped at step {state['step']} of {recipe['steps']}: run it to its end")
    lines = (run / "log.jsonl").read_text(encoding="utf-8").splitlines()
    # A run that was killed repeats the steps since its last state; the later record counts.
    log = [[r["step"], r["loss"]] for _, r in sorted({r["step"]: r for r in map(json.loads, lines)}.items())]
    return {**recipe, "seconds": state["elapsed"], "log": log}


def _read_training(folder: Path) -> list[dict[str, Any]]:
    """Stages of an earlier release, as :func:`read_stage` gives them."""
    try:
        return json.loads((folder / TRAINING).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RPLibError(f"{folder} holds no release of the mini CLIP with its {TRAINING} ({error})") from error


def _earlier_states(folder: Path, names: tuple[str, ...]) -> list[tuple[dict[str, Any], float]]:
    """Checkpoints of an earlier release as pre-training states, with their fraction of that release."""
    found, index = [], weights.index(folder)
    for name in names:
        if name not in index:
            raise UnknownName("checkpoint of the earlier release", name, index)
        tensors, metadata = load_tensors(folder / index[name]["file"])
        ids, rows, _ = (tensors.pop(k) for k in ("token_ids", "token_rows", "other_row"))
        model = {**tensors, "token_embedding.weight": rows}
        found.append(({"model": model, "vocabulary": ids.long(), "step": metadata["step"]}, index[name]["fraction"]))
    return found


def benchmark_tokens(clip: FrozenCLIP, benchmark: Benchmark) -> torch.Tensor:
    """Token ids that the benchmark's prompts and its near-OOD words need; earlier checkpoints keep only these rows."""
    from rp_course.mini_world.classes import ID_CLASSES, NEAR_CLASSES

    words = [*benchmark.class_names, *NEAR_CLASSES, *(w for others in ID_CLASSES.values() for w in others)]
    templates = (*benchmark.templates, "{}", "a {} icon", "a picture of a {}", "an emoji of a {}")
    return clip.tokenize([t.format(w) for w in words for t in templates]).unique().cpu()


def _draw_curve(stages: list[dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure

    from rp_lib.figures import save_figure

    figure = Figure(figsize=(7, 3.2), layout="constrained")
    panel = figure.subplots()
    before = 0.0
    for stage, colour in zip(stages, ("#0072B2", "#D55E00", "#009E73"), strict=False):
        seen = [before + step * stage["batch"] / 1e6 for step, _ in stage["log"]]
        panel.plot(seen, [loss for _, loss in stage["log"]], color=colour, linewidth=0.8)
        if stage["constant_until"] > 0 and stage["log"]:
            panel.axvline(
                before + stage["constant_until"] * stage["steps"] * stage["batch"] / 1e6, color="#999999", ls="--"
            )
        before += stage["steps"] * stage["batch"] / 1e6
    panel.set(xlabel="pictures seen (millions)", ylabel="contrastive loss of the batch (nats)")
    panel.set_title("Pre-training; dashed: the rate decays from here on, on whole images")
    save_figure(figure, path)


def stage_text(number: int, stage: dict[str, Any]) -> str:
    """A sentence on what a stage of pre-training was, of :func:`read_stage`."""
    s = stage
    parts = [
        f"**Stage {number}**: {s['steps']:,} steps of {s['batch']} = {s['steps'] * s['batch'] / 1e6:.2f} million pictures, "
        f"peak rate {s['lr']:g} after {s['warmup']} steps of warm-up, constant until {s['constant_until']:.0%}, then linearly "
        f"to zero; weight decay {s['weight_decay']:g}; seed {s['seed']}",
        f"{s['patch_dropout']:.0%} of the patches dropped during the constant phase" if s["patch_dropout"] else "whole images",
        "augmentation (place, size, turn, colours, noise) grows from nothing over the first third"
        if s.get("augment_over", 1 / 3) else "full augmentation from the start",
    ]  # fmt: skip
    if s.get("restyle"):
        parts.append("pictures drawn again in other manners (mirrored, bolder, finer, pixelated, areas coloured)")
    if s.get("coloured", 1) != 1:
        parts.append(f"coloured sets drawn {s['coloured']:g} times as often")
    if s.get("shared"):
        parts.append(f"names of k < {SHARED_BY} families drawn (k / {SHARED_BY})^{s['shared']:g} as often")
    took = f"it took {s['seconds'] / 60:.0f} minutes on {s.get('cpus', 2)} CPU cores that had other work too"
    last = [loss for _, loss in s["log"][-10:]]
    # Of the first two stages of the shipped weights only this mean was kept, not the log.
    mean, count = (sum(last) / len(last), len(last)) if last else s["ended_at"]
    loss = f"the loss ended at {mean:.2f} (mean of the last {count} logged)"
    return "; ".join([*parts, took, loss]) + "."


def _card(stages: list[dict[str, Any]], entries: dict[str, Any], out: Path, benchmark: Benchmark, note: str) -> str:
    recipe, architecture = stages[-1], _architecture(stages)
    names = sorted(entries, key=lambda n: entries[n]["fraction"])
    sets = [benchmark.test, *benchmark.shifts.values()]
    table = []
    for name in names:
        clip = weights.load_clip(str(out / f"{name}.safetensors"))
        method, store = ZeroShot(clip, benchmark.class_names, benchmark.templates), FeatureStore()
        table.append(
            f"| {name} | {entries[name]['fraction']:.0%} | "
            + " | ".join(accuracy_cell(method, s, store) for s in sets)
            + " |"
        )
    failures = _failures(method, benchmark.test, store)
    return f"""# The mini CLIP

A dual encoder of open_clip's classes, small enough to carry: {architecture["vision_cfg"]["layers"]} image layers of width \
{architecture["vision_cfg"]["width"]} on {architecture["vision_cfg"]["image_size"]} px with patches of {architecture["vision_cfg"]["patch_size"]}, \
{architecture["text_cfg"]["layers"]} text layers of width {architecture["text_cfg"]["width"]} with CLIP's BPE, features of {architecture["embed_dim"]}. \
Input: RGB in [0, 1], normalised with mean and standard deviation 0.5.

## Data and licences
{recipe["icons"]:,} icons with {recipe["concepts"]:,} distinct names from {len(recipe["sets"])} sets of the npm package \
`@iconify/json`, all under MIT, Apache-2.0, ISC, CC0, CC-BY, OFL or Unlicense; `../benchmark/ATTRIBUTION.md` names every set, its \
author and licence. No family of sets in the benchmark was seen in pre-training. The weights are released under the MIT licence.

## Recipe
Symmetric contrastive loss with all pictures of one name as positives; Muon for the block matrices, AdamW for the rest; bf16 autocast; \
torch {recipe["torch"]}.

{chr(10).join("* " + stage_text(i + 1, stage) for i, stage in enumerate(stages))}

{note}

![Batch loss against millions of pictures seen, as far as it was logged: it falls, faster once the rate decays](training_curve.png)

## Zero-shot accuracy
Top-1 in percent over {len(benchmark.class_names)} classes with the one prompt "{benchmark.templates[0]}", Wilson 95 % interval, on sets of \
families that pre-training never saw (chance: {100 / len(benchmark.class_names):.1f}). `test` is monochrome UI style; `emoji` are unseen vendors.

| checkpoint | of training | {" | ".join(f"{s.name} (n = {len(s):,})" for s in sets)} |
|---|---|{"---|" * len(sets)}
{chr(10).join(table)}

Checkpoints inside a stage were taken at the rate of their moment, not annealed: they are weaker than a run of that length would be. \
Checkpoints before the end keep only the token rows that the benchmark's words need.

## Known failures
{failures}
It knows icons, not photographs: on photos it is close to blind. It reads single words; word order and relations mean nothing to it. Words \
that name no icon have no vector of their own (they share the mean token row).
"""


def accuracy_cell(method: ZeroShot, data: ImageSet, store: FeatureStore) -> str:
    """Accuracy in percent with its Wilson 95 % interval, as text."""
    correct = round(method.accuracy(data, store) * len(data))
    value, low, high = wilson_interval(correct, len(data))
    return f"{100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _failures(method: ZeroShot, data: ImageSet, store: FeatureStore) -> str:
    guess = method.head(store.get(method.clip, data)).argmax(1)
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
