"""Families of dual encoders, built from open_clip's own configurations but small, at random weights.

``python -m tests.families FOLDER`` loads what the test saved, in a process of its own, and says what it predicts.
"""

from __future__ import annotations

import functools
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path

import open_clip
import torch
from open_clip.coca_model import CoCa
from open_clip.model import CLIP, CustomTextCLIP
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import load_file
from torch import Tensor

from rp_lib import load_method
from rp_lib.clip import FrozenCLIP

VOCABULARY = 1000  # of a tokenizer that is made here
OWN = {"layers": 2, "width": 32, "head_width": 16, "image_size": 64}
# A family's architecture, and the small image tower of the same kind that takes the place of its own.
FAMILIES = {
    "ViT-B-32-quickgelu": OWN,
    "RN50": {"layers": (1, 1, 1, 1), "width": 16, "image_size": 64},
    "ViT-H-14-CLIPA": OWN | {"patch_size": 16},
    "coca_ViT-B-32": OWN | {"attn_pooler_heads": 2},
    "ViT-L-14-worldwide": OWN | {"patch_size": 16},
    "ViT-H-14-worldwide": OWN | {"patch_size": 16},
    "ViT-B-16-SigLIP": {"timm_model_name": "vit_tiny_patch16_224"},
    "ViT-B-16-SigLIP2-256": {"timm_model_name": "vit_tiny_patch16_224", "image_size": 224},
    "MobileCLIP-S1": {"timm_model_name": "fastvit_t8", "image_size": 64},
    "MobileCLIP2-S0": {"timm_model_name": "fastvit_t8", "image_size": 64},
    "convnext_base": {"timm_model_name": "convnext_atto", "image_size": 64},
    "EVA02-B-16": {"timm_model_name": "eva02_tiny_patch14_224"},
    "PE-Core-B-16": {"timm_model_name": "vit_pe_core_tiny_patch16_384", "image_size": 384},
}


class Words:
    """A tokenizer made for the purpose: a number for each word, with the marks and padding of T5, BERT or XLM-V."""

    def __init__(self, length: int, start: Sequence[int], end: Sequence[int], padding: int) -> None:
        self.length, self.start, self.end, self.padding = length, list(start), list(end), padding

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Int64 (n, length)."""
        rows = []
        for text in texts:
            words = [10 + zlib.crc32(word.encode()) % (VOCABULARY - 10) for word in text.split()]
            row = (self.start + words)[: self.length - len(self.end)] + self.end
            rows.append(row + [self.padding] * (self.length - len(row)))
        return torch.tensor(rows)


@functools.cache
def make_family(name: str) -> FrozenCLIP:
    """Build a family's small model; the same weights each time."""
    config = open_clip.get_model_config(name)
    custom, text = config.pop("custom_text", False), config["text_cfg"]
    length = text["context_length"]
    tokenizer = SimpleTokenizer(context_length=length)
    if of := text.pop("hf_tokenizer_name", None):
        marks = {"bert-base-uncased": ([5], [], 0), "facebook/xlm-v-base": ([0], [2], 1)}.get(of, ([], [1], 1))
        if "SigLIP2" in name:  # Gemma's
            marks = ([], [1], 0)
        tokenizer = Words(length, *marks)
        text["vocab_size"] = VOCABULARY
    text.pop("tokenizer_kwargs", None)
    text |= {"width": 32, "heads": 2, "layers": 2}
    if "multimodal_cfg" in config:
        config["multimodal_cfg"] |= {"width": 32, "heads": 2, "layers": 1, "attn_pooler_heads": 2}
    config |= {"embed_dim": 32, "vision_cfg": config["vision_cfg"] | FAMILIES[name]}
    if config["vision_cfg"].get("timm_pool") == "map" and config["vision_cfg"]["timm_proj"] == "none":
        config["embed_dim"] = 192  # the width of the image tower, which projects nothing
    build = CoCa if "multimodal_cfg" in config else CustomTextCLIP if custom else CLIP
    with torch.random.fork_rng([]):
        torch.manual_seed(1)
        model = build(**config).eval()
        with torch.no_grad():  # untrained token rows hardly differ; make words matter
            getattr(model, "text", model).token_embedding.weight.mul_(20)
        if build is CoCa:  # open_clip leaves it as the memory was
            model.text_decoder.text_projection.data.zero_()
        if hasattr(trunk := getattr(model.visual, "trunk", None), "blocks"):  # timm's transformers
            trunk.blocks = trunk.blocks[:2]
    return FrozenCLIP(
        model, tokenizer, name=name, mean=(0.5, 0.45, 0.4), std=(0.25, 0.25, 0.3),
        image_size=model.visual.image_size,
    )  # fmt: skip


if __name__ == "__main__":
    for path in sorted(Path(sys.argv[1]).glob("*/expected/*")):
        clip = make_family(path.parent.parent.name)
        method, expected = load_method(path.parent.parent / path.name, clip), load_file(path)
        difference = (method.logits(expected["images"]) - expected["logits"]).abs().max()
        print(clip.name, path.stem, "same" if difference < 1e-4 else f"differs by {difference:.1e}")
