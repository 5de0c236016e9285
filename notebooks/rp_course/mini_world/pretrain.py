"""Pre-train the mini CLIP from scratch: ``python -m rp_course mini pretrain``.

The recipe, in the order of what it is worth:

* symmetric contrastive loss (Radford et al. 2021), with every picture of the same concept in the batch
  a positive: icons repeat, and "home" drawn by two designers is no negative pair;
* Muon for the matrices inside the blocks (Jordan 2024, with the update scaled to AdamW's RMS as in Liu et
  al. 2025, arXiv 2502.16982), AdamW for everything else;
* warm-up, constant rate, linear decay to zero, so that a run can be lengthened until the decay begins;
* during the constant phase half of the patches are dropped (Li et al. 2023, FLIP, arXiv 2212.00794);
* augmentation that grows from nothing over the first third; strong from the start, nothing is learned;
* once that is learned, pictures drawn again in other manners (:mod:`rp_course.mini_world.restyle`);
* bf16 autocast and the plain attention kernel: for 17 tokens it is nearly twice as fast on CPUs.

A run writes ``state.pt`` (loaded with ``weights_only``) every few minutes and goes on from it after Ctrl-C or
a kill, on the same sequence of batches: step k draws from a generator seeded with (seed, k).
"""

from __future__ import annotations

import json
import math
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from rp_course.mini_world.captions import WordTokens, caption
from rp_course.mini_world.icon_pairs import IconPairs
from rp_lib.towers import embed, encode_embedded, end_positions
from rp_lib.trainer import interrupt_between_steps
from rp_lib.utils.errors import RPLibError
from rp_lib.utils.io import StorageError, load_tensors, torch_save, write_atomically

CONFIG: dict[str, Any] = {
    "embed_dim": 256,
    "vision_cfg": {"image_size": 64, "patch_size": 16, "width": 192, "layers": 6, "head_width": 64},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 128, "heads": 2, "layers": 2},
}
# Captions longer than this are cut in pre-training: 99 % are shorter, and a fixed length keeps memory flat.
PRETRAIN_LENGTH = 12


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the result. Rates are per step; ``steps`` x ``batch`` pictures are seen."""

    steps: int = 4200
    batch: int = 512
    lr: float = 2e-3
    weight_decay: float = 0.1
    warmup: int = 100
    constant_until: float = 0.45
    patch_dropout: float = 0.5
    muon: bool = True
    seed: int = 0
    augment_over: float = 1 / 3  # of the run, until augmentation has its full strength; 0 starts with it
    coloured: float = 1.0  # how much more often a picture of a coloured set is drawn
    shared: float = 0.0  # how much less often a name that few families use is drawn, see IconPairs
    restyle: float = 0.0  # how often a picture is drawn again in another manner, see rp_course.mini_world.restyle
    width: int = CONFIG["vision_cfg"]["width"]  # of the image tower, with as many heads
    keep_at: tuple[float, ...] = (0.02, 0.05, 0.1, 0.2, 0.4, 0.7)


# "main" from scratch; "polish" goes on from its end and shows coloured sets more often, which are few; "broaden"
# goes on from there with pictures drawn again in other manners, and with more of the names that many designers share.
# "small" is a second size: half the width, in one stage of all that.
RECIPES = {
    "main": Recipe(),
    "polish": Recipe(
        steps=1000, lr=1.2e-3, warmup=40, constant_until=0.0, patch_dropout=0.0, augment_over=0.0, coloured=3.0,
        seed=1, keep_at=(),
    ),
    "broaden": Recipe(
        steps=4600, lr=1.5e-3, warmup=100, constant_until=0.3, patch_dropout=0.0, augment_over=0.0, coloured=3.0,
        shared=0.7, restyle=1.0, seed=2, keep_at=(0.3,),
    ),
    "small": Recipe(
        steps=1880, constant_until=0.4, coloured=3.0, shared=0.7, restyle=1.0, seed=3, width=96, keep_at=()
    ),
}  # fmt: skip


def config(width: int) -> dict[str, Any]:
    """What open_clip builds the model from; the image tower gets narrower heads, not fewer, when it gets narrower."""
    tower = CONFIG["vision_cfg"]
    heads = tower["width"] // tower["head_width"]
    if width % heads:
        raise RPLibError(f"an image tower of width {width} cannot be split into {heads} heads")
    return {**CONFIG, "vision_cfg": {**tower, "width": width, "head_width": width // heads}}


def contrastive_loss(
    image: torch.Tensor, text: torch.Tensor, scale: torch.Tensor, concept: torch.Tensor
) -> torch.Tensor:
    """Symmetric contrastive loss with all pairs of the same concept positive.

    ``image``, ``text``: unit float (n, d); ``concept``: int (n,). Targets are uniform over the positives
    (Yang et al. 2022, UniCL, arXiv 2204.03610); without repeats this is CLIP's loss.
    """
    logits = scale * image.float() @ text.float().T
    target = (concept[:, None] == concept[None]).float()
    target = target / target.sum(1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def learning_rate(step: int, recipe: Recipe) -> float:
    """Warm-up, constant, linear decay to zero."""
    if step < recipe.warmup:
        return recipe.lr * (step + 1) / recipe.warmup
    decay_from = recipe.constant_until * recipe.steps
    return recipe.lr * min(1.0, (recipe.steps - step) / max(1.0, recipe.steps - decay_from))


def _optimisers(model: torch.nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    matrices, decayed, rest = [], [], []
    for name, p in model.named_parameters():
        if "resblocks" in name and p.ndim == 2 and recipe.muon:
            matrices.append(p)
        elif p.ndim >= 2 and "embedding" not in name:
            decayed.append(p)
        else:
            rest.append(p)
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    out: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.98), fused=True)]
    if matrices:
        out.append(
            torch.optim.Muon(matrices, lr=recipe.lr, weight_decay=recipe.weight_decay, adjust_lr_fn="match_rms_adamw")
        )
    return out


def pretrain(
    corpus: Path,
    out: Path,
    recipe: Recipe,
    start: Path | None = None,
    save_every: float = 240.0,
    log_every: int = 20,
) -> None:
    """Run (or resume) pre-training; leaves ``state.pt``, ``log.jsonl`` and ``checkpoint-*.pt`` in ``out``.

    ``start`` is the ``state.pt`` of a finished run on the same corpus, or released weights (``final.safetensors``) of
    one: its weights (not its optimiser) begin this one.
    """
    from open_clip.model import CLIP
    from tqdm import tqdm

    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    pairs, words = IconPairs(corpus, recipe.coloured, recipe.shared), WordTokens()
    # Only tokens that can occur get a row while training; the table is laid out in full when it is exported.
    used = {0, words.start, words.end}
    for text in (*_template_words(), *(t for c, o, s, _ in pairs.rows for t in (c, *o, *s))):
        used.update(words.ids(text))
    vocabulary = torch.tensor(sorted(used))
    compact = torch.zeros(49408, dtype=torch.int64)
    compact[vocabulary] = torch.arange(len(vocabulary))  # order is kept, so the end mark is still the largest id
    vision = {**config(recipe.width)["vision_cfg"], "patch_dropout": recipe.patch_dropout}
    model = CLIP(CONFIG["embed_dim"], vision, {**CONFIG["text_cfg"], "vocab_size": len(vocabulary)})
    optimisers = _optimisers(model, recipe)
    step, elapsed = 0, 0.0
    if (out / "state.pt").is_file():
        state = _read_state(out / "state.pt", recipe, vocabulary)
        model.load_state_dict(state["model"])
        for optimiser, saved in zip(optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        step, elapsed = state["step"], state["elapsed"]
    elif start is not None:
        model.load_state_dict(_read_start(start, vocabulary))
    (out / "recipe.json").write_text(
        json.dumps(
            {
                **asdict(recipe),
                "icons": len(pairs),
                "sets": pairs.sets,
                "concepts": int(pairs.concept_id.max()) + 1,
                "vocabulary": len(vocabulary),
                "torch": torch.__version__,
                "cpus": os.cpu_count(),
            },
            indent=1,
        )
    )

    def save(name: str) -> None:
        whole = name == "state.pt"
        state = {
            "model": model.state_dict(), "optimisers": [o.state_dict() for o in optimisers] if whole else [],
            "step": step, "elapsed": elapsed, "vocabulary": vocabulary, "recipe": _identity(recipe),
        }  # fmt: skip
        write_atomically(out / name, lambda partial: torch_save(state, partial))

    keep = {round(f * recipe.steps): f for f in recipe.keep_at}
    last_save = started = time.monotonic()
    bar = tqdm(total=recipe.steps, initial=step, unit="step", mininterval=10)
    with bar, interrupt_between_steps() as interrupted:
        while step < recipe.steps:
            rng = np.random.default_rng((recipe.seed, step))
            torch.manual_seed(recipe.seed * 1_000_003 + step)  # patch dropout draws from torch
            strength = (
                1.0 if step >= recipe.augment_over * recipe.steps else step / (recipe.augment_over * recipe.steps)
            )
            if step >= recipe.constant_until * recipe.steps:
                model.visual.patch_dropout.prob = 0.0
            index = pairs.draw(recipe.batch, rng)
            image = (pairs.pictures(index, strength, rng, recipe.restyle * strength) - 0.5) / 0.5
            tokens = compact[words.batch([caption(*pairs.rows[i], rng) for i in index], PRETRAIN_LENGTH)]
            rate = learning_rate(step, recipe)
            for optimiser in optimisers:
                for group in optimiser.param_groups:
                    group["lr"] = rate
            with sdpa_kernel(SDPBackend.MATH), torch.autocast("cpu", torch.bfloat16):
                image_features = model.encode_image(image, normalize=True)
                text_features = encode_embedded(model, embed(model, tokens), end_positions(tokens))
            loss = contrastive_loss(
                image_features,
                F.normalize(text_features.float(), dim=-1),
                model.logit_scale.exp(),
                pairs.concept_id[index],
            )
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            if not torch.isfinite(norm):
                raise RPLibError(
                    f"the gradient is not finite at step {step}; resume with a lower --lr from {out}/state.pt"
                )
            for optimiser in optimisers:
                optimiser.step()
                optimiser.zero_grad(set_to_none=True)
            with torch.no_grad():
                model.logit_scale.clamp_(0, math.log(100))
            step += 1
            bar.update()
            now = time.monotonic()
            if step % log_every == 0 or step == recipe.steps:
                record = {
                    "step": step,
                    "loss": round(float(loss.detach()), 4),
                    "lr": rate,
                    "scale": round(float(model.logit_scale.detach().exp()), 2),
                    "grad_norm": round(float(norm), 3),
                    "seconds": round(elapsed + now - started, 1),
                }
                with (out / "log.jsonl").open("a") as log:
                    log.write(json.dumps(record) + "\n")
                bar.set_postfix(loss=record["loss"])
            if step in keep:
                save(f"checkpoint-{keep[step]:g}.pt")
            if now - last_save > save_every or step == recipe.steps or interrupted():
                elapsed, started = elapsed + now - started, now
                last_save = now
                save("state.pt")
                if interrupted():
                    raise KeyboardInterrupt


def _identity(recipe: Recipe) -> str:
    """What must not change on resuming; the length may, until the decay begins."""
    return repr(sorted((k, v) for k, v in asdict(recipe).items() if k not in ("steps", "keep_at")))


def _read_state(path: Path, recipe: Recipe | None, vocabulary: torch.Tensor) -> dict[str, Any]:
    try:
        state = torch.load(path, weights_only=True)
        same = recipe is None or state.get("recipe", _identity(recipe)) == _identity(recipe)
        same = same and torch.equal(state["vocabulary"], vocabulary)
    except Exception as error:  # a damaged zip or a missing key
        raise StorageError(f"{path} is damaged; remove it to start anew") from error
    if not same:
        raise StorageError(f"{path} belongs to a run with another recipe or corpus; choose another --out or remove it")
    return state


def _read_start(path: Path, vocabulary: torch.Tensor) -> dict[str, torch.Tensor]:
    """Weights to begin with: of a run's state, or of released float16 weights that hold every token row."""
    if path.suffix != ".safetensors":
        return _read_state(path, None, vocabulary)["model"]
    tensors, _ = load_tensors(path)
    rows, ids = tensors.pop("token_rows", None), tensors.pop("token_ids", None)
    tensors.pop("other_row", None)
    if rows is None or ids is None or not torch.equal(ids.long(), vocabulary):
        raise StorageError(
            f"{path} holds no mini CLIP with a row for each of this corpus's {len(vocabulary)} tokens; "
            "start from the state.pt or the final.safetensors of a run on the same corpus"
        )
    return {name: t.float() for name, t in tensors.items()} | {"token_embedding.weight": rows.float()}


def _template_words() -> list[str]:
    from rp_course.mini_world import captions

    return [
        t.replace("{}", " ").replace("{style}", " ")
        for t in (
            *captions.TEMPLATES,
            captions.STYLED_TEMPLATE,
            captions.EMOJI_TEMPLATE,
            captions.LOGO_TEMPLATE,
            captions.FLAG_TEMPLATE,
        )
    ]
