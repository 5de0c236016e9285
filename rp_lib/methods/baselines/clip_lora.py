"""CLIP-LoRA, low-rank changes of the attention in both towers: Zanella and Ben Ayed 2024, arXiv 2405.18541."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from rp_lib.methods.fine_tune import FineTune
from rp_lib.towers import cut_padding, embed, encode_embedded, end_positions, text_part
from rp_lib.trainer import Group
from rp_lib.utils.device import computing, in_float32
from rp_lib.utils.distributed import gather, shared
from rp_lib.utils.errors import RPLibError

PUBLISHED_STEPS = 500  # per image of a class


class LowRank(nn.Module):
    """``W + scale * B @ A`` for the weights of queries, keys and values, which torch keeps in one matrix (3w, w).

    Args:
        width: w.
        rank: Of B @ A.
        scale: Its factor.
        dropout: Of the input of A, in training.
        generator: Draws A as torch draws a linear layer; B starts at zero.
    """

    def __init__(self, width: int, rank: int, scale: float, dropout: float, generator: torch.Generator) -> None:
        super().__init__()
        self.scale, self.dropout = scale, nn.Dropout(dropout)
        self.A = nn.Parameter((2 * torch.rand(3, rank, width, generator=generator) - 1) / width**0.5)
        self.B = nn.Parameter(torch.zeros(3, width, rank))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the merged weights, float (3w, w)."""
        return weight + self.scale * (self.B @ self.A).flatten(0, 1)

    def change(self, x: Tensor) -> Tensor:
        """Return what is added to queries, keys and values of x: float (n, length, w) -> (n, length, 3w).

        Each of the three drops inputs of its own; the frozen weights see them all.
        """
        rows = self.dropout(x.expand(3, *x.shape)).flatten(1, 2)  # (3, n * length, w)
        change = self.scale * (rows @ self.A.mT @ self.B.mT)  # (3, n * length, w)
        return change.movedim(0, 1).reshape(*x.shape[:2], -1)


class _Attention(nn.MultiheadAttention):
    """torch's self-attention, whose input can be dropped in front of the low-rank part alone."""

    def forward(self, query: Tensor, *others: Any, attn_mask: Tensor | None = None, **options: Any) -> Any:
        frozen, added = self.parametrizations.in_proj_weight.original, self.parametrizations.in_proj_weight[0]
        if not (added.training and added.dropout.p):
            return super().forward(query, *others, attn_mask=attn_mask, **options)
        x = query if self.batch_first else query.transpose(0, 1)  # (n, length, w)
        qkv = F.linear(x, frozen, self.in_proj_bias) + added.change(x)
        # Each (n, heads, length, w / heads).
        q, k, v = qkv.view(*x.shape[:2], 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask).transpose(1, 2).flatten(2)
        x = F.linear(x, self.out_proj.weight, self.out_proj.bias)
        return (x if self.batch_first else x.transpose(0, 1)), None


@dataclass(kw_only=True, eq=False, repr=False)
class CLIPLoRA(FineTune):
    """Trains low-rank changes of queries, keys and values in every block of both towers; all else stays frozen.

    ::

        W = W_0 + lora_alpha / sqrt(rank) * B @ A

    B starts at zero, so training starts as zero-shot CLIP; in evaluation W is merged and costs nothing more. Loss:
    cross-entropy over all class prompts, at CLIP's logit scale. Defaults are those of the released code, whose factor
    has the root. Other than there, a class is the mean over its templates (there the first alone), images are not
    cropped or flipped at random, and the rate falls to 0 instead of 1e-6.

    Args:
        rank: >= 1.
        lora_alpha: See above.
        dropout: Of the input of A, in [0, 1).
        lr, weight_decay: Of AdamW (.9, .999).
        epochs: None takes the published 500 steps per image of a class: 500 * 32 / C epochs of batches of 32.
        batch_size: In images.
        settings: As :class:`FineTune` takes them.

    Raises:
        RPLibError: A setting is out of range, or a tower has none of torch's attention layers (ResNet, timm, ...).

    Example:
        >>> CLIPLoRA(clip, class_names, templates, lr=1e-3, epochs=8).fit(train)  # doctest: +SKIP
    """

    name = "clip-lora"

    rank: int = 2
    lora_alpha: float = 1.0
    dropout: float = 0.25
    lr: float = 2e-4
    weight_decay: float = 0.01
    epochs: int | None = None
    batch_size: int = 32
    schedule: str = "cosine"

    def __post_init__(self) -> None:
        if self.epochs is None:
            self.epochs = max(1, round(PUBLISHED_STEPS * 32 / max(1, len(self.class_names))))
        super().__post_init__()
        generator = torch.Generator().manual_seed(self.seed)
        self.adapters = nn.ModuleDict({
            "visual": self._adapt(self.visual.requires_grad_(False), generator),
            "text": self._adapt(self.classifier, generator),
        }).to(self.clip.device)  # fmt: skip
        self.set_training(False)

    def _adapt(self, tower: nn.Module, generator: torch.Generator) -> nn.ModuleList:
        """Put a change into every attention layer of a copied tower, in place."""
        layers = [m for m in tower.modules() if type(m) is nn.MultiheadAttention and m.in_proj_weight is not None]
        if not layers:
            raise RPLibError(
                f"this tower ({type(tower).__name__}) has none of torch's attention layers; CLIP-LoRA needs one of "
                "open_clip's vision transformers, such as those of ViT-B-32 or ViT-L-14"
            )
        made = nn.ModuleList()
        for layer in layers:
            width, scale = layer.embed_dim, self.lora_alpha / self.rank**0.5
            made.append(LowRank(width, self.rank, scale, self.dropout, generator).to(layer.in_proj_weight.device))
            layer.__class__ = _Attention  # adds no state
            parametrize.register_parametrization(layer, "in_proj_weight", made[-1])
        return made

    def new_classifier(self) -> nn.Module:
        """Return a copy of the text tower's blocks; they make the class prompts."""
        return copy.deepcopy(text_part(self.clip.model).transformer)

    def modules(self) -> nn.ModuleDict:
        """Return A and B of every layer, all that is trained."""
        return self.adapters

    def parameter_groups(self) -> list[Group]:
        """Return A and B, with AdamW."""
        return [Group(list(self.adapters.parameters()), self.lr, self.weight_decay, betas=(0.9, 0.999))]

    def set_training(self, on: bool) -> None:
        """Switch dropout; the class prompts are encoded again after training."""
        super().set_training(on)
        self._class_embeddings: Tensor | None = None

    def _tokens(self, words: Sequence[str]) -> Tensor:
        """Return tokens of the task's prompts, int (k, T, length)."""
        tokens = self.clip.tokenize([t.format(w) for w in words for t in self.templates])
        return tokens.view(len(words), len(self.templates), -1)

    def _encode_tokens(self, tokens: Tensor) -> Tensor:
        """Embed classes: int (k, T, length) -> unit float32 (k, d), with gradients."""
        rows, model = cut_padding(tokens.flatten(0, 1)), self.clip.model
        with computing(self.clip.device):
            features = encode_embedded(model, embed(model, rows), end_positions(rows), self.classifier)
        features = F.normalize(features.float(), dim=-1).view(*tokens.shape[:2], -1)
        return F.normalize(features.mean(1), dim=-1)

    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Compute the cross-entropy over all classes, a scalar; see :meth:`Method.loss`."""
        features = gather(self.encode(inputs), len(labels))
        prompts = shared(self._encode_tokens, self._tokens(self.class_names))
        with in_float32(self.clip.device):
            return F.cross_entropy(self.clip.logit_scale * features @ prompts.T, labels)

    @torch.no_grad()
    def head(self, features: Tensor) -> Tensor:
        """Cosine similarity to the tuned class prompts, times CLIP's logit scale."""
        if self._class_embeddings is None:
            self._class_embeddings = self.encode_classes(self.class_names)
        return self.clip.logit_scale * features @ self._class_embeddings.T

    @torch.no_grad()
    def encode_classes(self, words: Sequence[str]) -> Tensor:
        """The tuned text tower's embeddings of any class names."""
        return self._encode_tokens(self._tokens(words)).cpu()
