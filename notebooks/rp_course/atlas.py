"""An atlas of dual encoders: every architecture of the installed open_clip, run rather than remembered.

``python -m rp_course atlas`` writes one row for each. Weights are random and towers are cut to two blocks a stage, so
that the largest fit into memory: what is asked here (does a program act, is it open_clip's result, does a gradient
arrive) does not depend on the number of equal blocks. Sizes and FLOPs are those of the complete architecture.
"""

from __future__ import annotations

import re
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import open_clip
import pandas as pd
import torch
import torch.nn.functional as F
from open_clip.coca_model import CoCa
from open_clip.model import CLIP, CustomTextCLIP
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from rp_course.tower_costs import TowerCosts
from rp_lib.clip import FrozenCLIP
from rp_lib.methods import Reprogrammer
from rp_lib.towers import TextTower
from rp_lib.utils.errors import RPLibError
from rp_lib.utils.io import load_table, save_table

TABLE = Path(__file__).parent / "experiments" / "records" / "atlas.csv"
CLASSES, TEMPLATES = ("cat", "fire engine"), ("a photo of a {}.",)
BLOCKS, COMPLETE = 2, 1000  # of each stage, at most
BATCH, PROMPTS = 128, 40  # of a step whose FLOPs are counted
LARGE = 2**16  # numbers of a weight that is drawn here
MEANS = {
    (0.48145466, 0.4578275, 0.40821073): "openai", (0.485, 0.456, 0.406): "imagenet", (0.5,) * 3: "half",
    (0.0,) * 3: "none",
}  # fmt: skip
MEASURED = (
    "RN50", "ViT-B-32-quickgelu", "ViT-B-16", "convnext_base", "EVA02-B-16", "ViTamin-S", "MobileCLIP-S1",
    "MobileCLIP2-S0", "MobileCLIP-B", "PE-Core-B-16", "ViT-B-16-SigLIP", "ViT-B-16-SigLIP2", "coca_ViT-B-32",
)  # fmt: skip


class Words:
    """A tokenizer made for the purpose, where the real one needs a download: a number for each word, and marks."""

    size = 1000

    def __init__(self, length: int, start: Sequence[int] = (), end: Sequence[int] = (1,), padding: int = 1) -> None:
        self.length, self.start, self.end, self.padding = length, list(start), list(end), padding

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Int64 (n, length)."""
        rows = []
        for text in texts:
            words = [10 + zlib.crc32(word.encode()) % (self.size - 10) for word in text.split()]
            row = [*self.start, *words][: self.length - len(self.end)] + self.end
            rows.append(row + [self.padding] * (self.length - len(row)))
        return torch.tensor(rows)


def tokenizer_for(text: dict[str, Any]) -> Callable[[Sequence[str]], Tensor]:
    """Return CLIP's tokenizer, or one with the marks and the padding of the one that a text tower's config names."""
    length, name = text.get("context_length", 77), str(text.get("hf_tokenizer_name", ""))
    if not name:
        return SimpleTokenizer(context_length=length)
    if name.startswith("bert"):
        return Words(length, [5], [], 0)  # [SEP] is stripped
    if "xlm" in name:
        return Words(length, [0], [2], 1)
    return Words(length, padding=0 if "SigLIP2" in name or "mt5" in name else 1)


class _Unfilled(TorchDispatchMode):
    """Build modules without writing into their large tensors: memory that is never touched is never taken."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        in_place = func._schema.name.endswith("_") and args and isinstance(args[0], Tensor)
        return args[0] if in_place and args[0].numel() > 16 * LARGE else func(*args, **(kwargs or {}))


def build(config: dict[str, Any], blocks: int = BLOCKS, seed: int = 0) -> nn.Module:
    """Build a model of open_clip from its configuration, at random weights, with few blocks a stage.

    Args:
        config: As ``open_clip.get_model_config`` returns it.
        blocks: That each stage keeps.
        seed: Of the weights.
    """
    config = {**config, "text_cfg": dict(config["text_cfg"]), "vision_cfg": dict(config["vision_cfg"])}
    text, vision = config["text_cfg"], config["vision_cfg"]
    if text.pop("hf_tokenizer_name", None):
        text["vocab_size"] = Words.size
    text.pop("tokenizer_kwargs", None)
    text["layers"] = min(blocks, text.get("layers", 12))
    if isinstance(vision.get("layers"), int):
        vision["layers"] = min(blocks, vision["layers"])
    if "multimodal_cfg" in config:
        config["multimodal_cfg"] = {**config["multimodal_cfg"], "layers": 1}
    custom = config.pop("custom_text", False)
    make = CoCa if "multimodal_cfg" in config else CustomTextCLIP if custom or text.get("hf_model_name") else CLIP
    with torch.random.fork_rng([]), torch.no_grad():
        torch.manual_seed(seed)
        with _Unfilled():
            model = make(**config).eval()
        for parent in [*model.visual.modules()]:
            for name, stage in [*parent.named_children()]:
                if isinstance(stage, nn.Sequential | nn.ModuleList) and re.fullmatch(r"blocks|layer\d", name):
                    setattr(parent, name, stage[:blocks])
        for name, weight in model.named_parameters():
            # CoCa's decoder leaves one matrix as the memory was, whatever its size.
            if weight.numel() > LARGE or name == "text_decoder.text_projection":
                weight.normal_(0, weight[0].numel() ** -0.5)
    return model


def small_clip(name: str, config: dict[str, Any] | None = None, blocks: int = BLOCKS, **options: Any) -> FrozenCLIP:
    """Build an architecture as a frozen backbone with few blocks, random weights and a tokenizer of its kind.

    Args:
        name: Of an architecture of open_clip.
        config: Its configuration, if it is to be another one.
        blocks: That each stage keeps.
        options: Of ``FrozenCLIP``, such as ``device`` and ``compile``.
    """
    config = config or open_clip.get_model_config(name)
    model = build(config, blocks)
    return FrozenCLIP(
        model, tokenizer_for(config["text_cfg"]), name=name, mean=open_clip.OPENAI_DATASET_MEAN,
        std=open_clip.OPENAI_DATASET_STD, image_size=model.visual.image_size, **options,
    )  # fmt: skip


def kind_of_tower(model: nn.Module) -> str:
    """Say in a few words how a text tower makes a feature of a text."""
    tower = TextTower(model)
    if getattr(tower.part, "cls_emb", None) is not None:
        return "causal, class token"
    if not hasattr(tower.part, "attn_mask"):
        return "Hugging Face"
    at = {"argmax": "end mark", "eos": f"end mark {tower.end_id}", "last": "last place"}[tower.pool]
    return f"{'causal' if tower.part.attn_mask is not None else 'not causal'}, {at}"


def preparations(name: str) -> str:
    """Say how published weights of an architecture want their pictures: ``kind: number of tags``, joined."""
    found: dict[str, int] = {}
    for tag in open_clip.list_pretrained_tags_by_model(name):
        about = open_clip.get_pretrained_cfg(name, tag)
        mean = MEANS.get(tuple(about.get("mean") or open_clip.OPENAI_DATASET_MEAN), "other")
        kind = f"{mean} {about.get('interpolation') or 'bicubic'} {about.get('resize_mode') or 'shortest'}"
        found[kind] = found.get(kind, 0) + 1
    return "; ".join(f"{kind}: {n}" for kind, n in found.items())


def survey(name: str) -> dict[str, Any]:
    """Make an architecture's row: what it is, and what acts on it."""
    config = open_clip.get_model_config(name)
    text = config["text_cfg"]
    quick = config.get("quick_gelu", False)
    tags = [open_clip.get_pretrained_cfg(name, tag) for tag in open_clip.list_pretrained_tags_by_model(name)]
    row: dict[str, Any] = {
        "model": name, "open_clip": open_clip.__version__, "tags": len(tags), "preparation": preparations(name),
        "activation": "QuickGELU" if quick else "GELU",
        "tags_of_the_other": 0 if quick else sum(bool(tag.get("quick_gelu")) for tag in tags),
        "tokenizer": text.get("hf_tokenizer_name", "CLIP"), "context": text.get("context_length", 77),
    }  # fmt: skip
    try:
        clip = small_clip(name, config)
    except (RPLibError, RuntimeError, ImportError) as error:
        return row | {"programs": "none", "reason": str(error).split(";")[0][:120]}
    row |= {"image_size": clip.image_size, "text_tower": kind_of_tower(clip.model)} | compare(clip)
    acts = [row["border_gradient"], row["prompt_gradient"]]
    row["programs"] = {(True, True): "both", (True, False): "image"}.get(tuple(acts), "none")
    return row


def compare(clip: FrozenCLIP) -> dict[str, Any]:
    """Compare features with open_clip's own, on the path that training takes, and see where a gradient arrives."""
    rp = Reprogrammer(clip, CLASSES, TEMPLATES)
    size = clip.image_size
    noise = torch.randint(256, (1, 3, size, size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    images = rp.program_images(noise)
    features, prompts = clip.encode_pixels(images), rp.prompt_embeddings()
    tokens = clip.tokenize([TEMPLATES[0].format(c) for c in CLASSES])
    with torch.no_grad():
        their_features = F.normalize(clip.model.encode_image(clip.normalize(images.detach())), dim=-1)
        their_prompts = F.normalize(clip.model.encode_text(tokens), dim=-1)
    (features @ prompts.T)[0, 0].backward()
    border, program = rp.image_program.W.grad, rp.text_program
    return {
        "image_difference": float((features.detach() - their_features).abs().max()),
        "text_difference": float((prompts.detach() - their_prompts).abs().max()),
        "border_gradient": bool(border.any() and border.isfinite().all()),
        "prompt_gradient": bool(program.Theta.grad.any() and program.b.grad.any()),
    }


def costs(name: str) -> dict[str, Any]:
    """Count the complete architecture: parameters, and FLOPs of a step of RP and of fine-tuning."""
    towers = TowerCosts.open_clip(name, tokenizer_for(open_clip.get_model_config(name)["text_cfg"]))
    length = towers.tokenize([TEMPLATES[0].format(c) for c in CLASSES])
    length = TextTower(towers.model).cut(length).shape[1]
    image, weights, text = (
        towers.image("input").flops,
        towers.image("weights").flops,
        towers.text(length, "input").flops,
    )
    return {
        "image_parameters": towers.parameters["image"], "parameters": towers.parameters["all"],
        "image_tflop": BATCH * image / 1e12, "text_tflop": PROMPTS * text / 1e12,
        "fine_tuning_tflop": BATCH * weights / 1e12,
        "rp_over_fine_tuning": (BATCH * image + PROMPTS * text) / (BATCH * weights),
    }  # fmt: skip


def measure(name: str, batch: int = 4, rounds: int = 3) -> dict[str, Any]:
    """Measure CPU seconds of a step's forward and backward pass through the complete image tower.

    Returns:
        Of a border with and without the fast path of frozen layers, and of all weights: the best of some rounds, in
        which the three take turns; how a border compares with all weights, and what the fast path gains.
    """
    config = open_clip.get_model_config(name)
    clip = small_clip(name, config, COMPLETE)
    towers = {
        "border_seconds": clip.model.visual,
        "plain_border_seconds": build(config, COMPLETE).visual.requires_grad_(False),
        "weights_seconds": build(config, COMPLETE).visual.requires_grad_(True),
    }
    image = torch.rand(batch, 3, *clip.preparation.shape)
    rows = [{key: _seconds(tower, image, key != "weights_seconds") for key, tower in towers.items()}
            for _ in range(rounds)]  # fmt: skip
    best = {key: min(row[key] for row in rows) for key in towers}
    return best | {
        "border_over_weights": best["border_seconds"] / best["weights_seconds"],
        "frozen_layers_gain": best["plain_border_seconds"] / best["border_seconds"],
    }


def _seconds(tower: nn.Module, image: Tensor, border: bool) -> float:
    tower.zero_grad()
    image = image.clone().requires_grad_(border)
    start = time.process_time()
    features = tower(image)
    (features[0] if isinstance(features, tuple) else features).sum().backward()
    return time.process_time() - start


def write(names: Iterable[str], out: Path, measured: Sequence[str] = ()) -> pd.DataFrame:
    """Survey architectures and write the table after each; what it already has is kept.

    Args:
        names: Of architectures.
        out: The table, CSV.
        measured: Those of them whose step is measured, too.
    """
    table = load_table(out) if out.exists() else pd.DataFrame()
    rows = {row["model"]: row for row in table.to_dict("records")}
    for name in names:
        if name not in rows:
            rows[name] = survey(name)
        if name in measured and pd.isna(rows[name].get("border_seconds")):
            rows[name] |= measure(name)
        row = rows[name]
        if row["programs"] != "none" and pd.isna(row.get("parameters")):
            row |= costs(name)
        print(name, row["programs"], row.get("image_difference"), row.get("text_difference"), row.get("reason", ""))
        table = pd.DataFrame([rows[key] for key in sorted(rows, key=str.lower)])
        save_table(out, table, "%.4g")
    return table


def summary(table: pd.DataFrame) -> str:
    """Count on how many architectures both programs act, the image program alone, or none and why; Markdown."""
    kinds = table.fillna({"text_tower": "Hugging Face's", "reason": ""}).groupby("text_tower")
    lines = ["| text tower | both programs | image program alone | refused |", "|---|---|---|---|"]
    for kind, rows in [*kinds, ("all", table.fillna({"reason": ""}))]:
        both, image, none = (int((rows["programs"] == what).sum()) for what in ("both", "image", "none"))
        reasons = "; ".join(sorted(set(rows["reason"]) - {""})) if kind != "all" else ""
        lines.append(f"| {kind} | {both} | {image} | {none}{f': {reasons}' if reasons else ''} |")
    return "\n".join(lines)


def measured(table: pd.DataFrame) -> str:
    """Compare a step of a border with one of all weights, counted and measured, through the image tower; Markdown."""
    lines = ["| architecture | counted | measured | gain of the fast path |", "|---|---|---|---|"]
    for row in table.dropna(subset="border_seconds").to_dict("records"):
        counted = row["image_tflop"] / row["fine_tuning_tflop"]
        lines.append(
            f"| {row['model']} | {counted:.2f} | {row['border_over_weights']:.2f} | {row['frozen_layers_gain']:.2f} |"
        )
    return "\n".join(lines)
