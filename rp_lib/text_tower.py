"""Run an open_clip text tower from token embeddings, on texts cut behind the longest one.

Two things that reprogramming needs and ``encode_text`` does not offer: a place between the token table and
the transformer where the text program acts, and short sequences. In a causal tower no position sees what
follows it, so cutting the padding behind the end mark changes nothing (to float rounding) and
saves most of the time: 5 to 12 tokens instead of 77.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from rp_lib.errors import RPLibError


def text_part(model: nn.Module) -> Any:
    """The module that owns the token table: ``model.text`` of open_clip's CustomTextCLIP, else the model."""
    part = getattr(model, "text", model)
    missing = [
        name
        for name in ("token_embedding", "positional_embedding", "transformer", "ln_final", "attn_mask")
        if getattr(part, name, None) is None
    ]
    if missing:
        raise RPLibError(
            f"this text tower ({type(part).__name__}) has no {', '.join(missing)}; text programs need one of "
            "open_clip's causal text transformers, such as those of the ViT-B-32, ViT-L-14 or RN50 models"
        )
    pool = getattr(part, "text_pool_type", getattr(part, "pool_type", "argmax"))
    end_id = getattr(part, "text_eos_id", getattr(part, "eos_id", None))
    at_end = pool == "argmax" or (pool == "eos" and end_id == part.token_embedding.num_embeddings - 1)
    if not at_end or getattr(part, "cls_emb", None) is not None:  # CoCa reads an extra token behind the text
        raise RPLibError(
            "only text towers that read their feature at the end mark, the largest token id, are supported"
        )
    return part


def end_positions(tokens: Tensor) -> Tensor:
    """Index of the end mark of each row of int (n, length); CLIP's end mark has the largest token id."""
    return tokens.argmax(dim=-1)


def cut_padding(tokens: Tensor) -> Tensor:
    """Drop the columns behind the last end mark: int (n, length) -> int (n, longest)."""
    return tokens[:, : int(end_positions(tokens).max()) + 1]


def encode_embedded(
    model: nn.Module, embedded: Tensor, end: Tensor, run: Callable[..., Tensor] | None = None
) -> Tensor:
    """Text features from token embeddings.

    Args:
        model: an open_clip CLIP with a causal text transformer.
        embedded: float (n, length, width), token embeddings plus position (see :func:`embed`).
        end: int (n,), position of each end mark.
        run: called as ``run(x, attn_mask=...)`` in place of the transformer, for prompts between its blocks.

    Returns:
        float (n, embed_dim), not normalised.
    """
    part = text_part(model)
    length = embedded.shape[1]
    x = embedded.to(part.transformer.get_cast_dtype())
    x = (run or part.transformer)(x, attn_mask=part.attn_mask[:length, :length])
    x = part.ln_final(x)[torch.arange(len(x), device=x.device), end]
    projection = part.text_projection
    if projection is None:
        return x
    return projection(x) if isinstance(projection, nn.Linear) else x @ projection


def embed(model: nn.Module, tokens: Tensor) -> Tensor:
    """CLIP's own input to the text transformer: token rows plus positions, float (n, length, width)."""
    part = text_part(model)
    return part.token_embedding(tokens) + part.positional_embedding[: tokens.shape[1]]


def encode_tokens(model: nn.Module, tokens: Tensor) -> Tensor:
    """Text features, float (n, embed_dim), not normalised, of int (n, length) tokens, cut as far as is exact."""
    tokens = cut_padding(tokens)
    return encode_embedded(model, embed(model, tokens), end_positions(tokens))
