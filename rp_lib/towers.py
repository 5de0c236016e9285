"""Run an open_clip text tower from token embeddings, on texts cut behind the longest one.

Two things that reprogramming needs and ``encode_text`` does not offer: a place between the token table and
the transformer where the text program acts, and short sequences. In a causal tower no position sees what
follows it, so cutting the padding behind the end mark changes nothing (to float rounding) and
saves most of the time: 5 to 12 tokens instead of 77.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rp_lib.utils.errors import RPLibError


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


# Run open_clip's transformers block by block, so that prompts can take their place between blocks.
#
# Nothing of the model is edited or wrapped: its blocks are called in turn, as its own ``forward`` does, and
# without prompts the outcome is the same. The image tower's ends are its own methods (``_embeds``, ``_pool``).

def vision_part(model: nn.Module) -> Any:
    """The image tower of an open_clip model, if prompts can be put between its blocks.

    Raises:
        RPLibError: it is no plain vision transformer, or it is training and drops patches.
    """
    from open_clip.transformer import VisionTransformer

    visual: Any = model.visual
    remedy = "deep prompts need one of open_clip's vision transformers, such as those of ViT-B-32 or ViT-L-14"
    if not isinstance(visual, VisionTransformer):
        raise RPLibError(f"this image tower is a {type(visual).__name__}; {remedy}")
    if visual.attn_pool is not None:
        raise RPLibError(f"this image tower pools by attention, as CoCa does; {remedy}")
    if visual.training and not isinstance(visual.patch_dropout, nn.Identity):
        raise RPLibError("this image tower drops patches while it trains; a frozen tower belongs in eval() mode")
    return visual


def replace_tokens(x: Tensor, prompts: Tensor, at: int) -> Tensor:
    """Put prompts, (k, width) or (n, k, width), into the places at, ..., at + k - 1 of x, float (n, length, width)."""
    prompts = prompts.to(x.dtype).expand(len(x), -1, -1)
    return torch.cat([x[:, :at], prompts, x[:, at + prompts.shape[1] :]], dim=1)


def walk_blocks(
    transformer: Any, x: Tensor, deep: Sequence[Tensor] = (), at: int = 0, attn_mask: Tensor | None = None
) -> Tensor:
    """An open_clip ``Transformer``, with tokens replaced in front of its second and later blocks.

    Args:
        transformer: has ``resblocks``; they get their input in its own layout, batch or sequence first.
        x: float (n, length, width). attn_mask: float (length, length), added to the attention logits.
        deep: ``deep[i]``, float (k, width), takes the places from ``at`` on in front of block i + 1; behind the
            last of them the tokens are left to go their way. Fewer than there are blocks.

    Returns:
        float (n, length, width).
    """
    batch_first = transformer.batch_first
    for i, block in enumerate(transformer.resblocks):
        if 0 < i <= len(deep):
            x = replace_tokens(x, deep[i - 1], at)
        if batch_first:
            x = block(x, attn_mask=attn_mask)
        else:
            x = block(x.transpose(0, 1), attn_mask=attn_mask).transpose(0, 1)
    return x


def encode_prompted(visual: Any, pixels: Tensor, first: Tensor, deep: Sequence[Tensor] = ()) -> Tensor:
    """Image features with prompts behind the patch tokens.

    Args:
        visual: of :func:`vision_part`. pixels: normalised float (n, 3, H, H).
        first: float (k, width), in front of the first block. deep: see :func:`walk_blocks`, (k, width) each.

    Returns:
        float (n, embed_dim), not normalised. The prompts themselves are not pooled.
    """
    x = visual._embeds(pixels)
    length = x.shape[1]
    # As in MaPLe (arXiv 2210.03117), the first prompts have no position and pass the norm that images pass.
    first = visual.ln_pre(first).to(x.dtype).expand(len(x), -1, -1)
    x = walk_blocks(visual.transformer, torch.cat([x, first], dim=1), deep, at=length)
    pooled, _ = visual._pool(x[:, :length])
    return pooled if visual.proj is None else pooled @ visual.proj
