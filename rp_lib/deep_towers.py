"""Run open_clip's transformers block by block, so that prompts can take their place between blocks.

Nothing of the model is edited or wrapped: its blocks are called in turn, as its own ``forward`` does, and
without prompts the outcome is the same. The image tower's ends are its own methods (``_embeds``, ``_pool``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rp_lib.errors import RPLibError


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
