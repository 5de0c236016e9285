"""Run open_clip's transformers from embeddings and block by block.

Reprogramming and prompts need three things that ``encode_text`` and ``encode_image`` do not offer: a place between the
token table and the text transformer, texts that are cut behind the longest one, and a place between two blocks.
Nothing of the model is edited or wrapped. In a causal tower no position sees what follows it, so that cutting the
padding behind the end mark changes nothing (to rounding) and saves most of the time: 5 to 12 tokens instead of 77.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rp_lib.utils.errors import RPLibError


class TextTower:
    """Any text tower of open_clip, run from token embeddings.

    A causal tower that is read at its end mark gets texts without their padding. Every other one, such as SigLIP's,
    sees its padding or reads behind it: it runs as open_clip runs it, at full length, and a hook on its token table
    puts the embeddings in.

    Args:
        model: As open_clip builds it.

    Attributes:
        embedding: The token table, an ``nn.Embedding`` or a relative of it.
        pool: Where the feature is read, in open_clip's words: ``"argmax"`` is at the largest token id.
        end_id: Id of the end mark, if ``pool`` is ``"eos"``.
        cuts: Whether padding behind the end mark can be cut.

    Raises:
        RPLibError: The tower shows no token table.

    Example:
        >>> from rp_lib import mini
        >>> clip = mini.load_clip()
        >>> TextTower(clip.model).cut(clip.tokenize(["cat", "fire engine"])).shape  # marks included
        torch.Size([2, 4])
    """

    def __init__(self, model: nn.Module) -> None:
        part: Any = getattr(model, "text", model)
        embedding = getattr(part, "token_embedding", None)
        if embedding is None and hasattr(getattr(part, "transformer", None), "get_input_embeddings"):  # Hugging Face's
            embedding = part.transformer.get_input_embeddings()
        if embedding is None:
            raise RPLibError(
                f"this text tower ({type(part).__name__}) has no token_embedding; text programs need a tower of "
                "open_clip or Hugging Face, such as those of the ViT-B-32, ViT-B-16-SigLIP or RN50 models"
            )
        self.model, self.part, self.embedding = model, part, embedding
        self.pool, self.end_id = _pooling(part)
        causal = getattr(part, "attn_mask", None) is not None
        self.cuts = causal and self.pool in ("argmax", "eos") and getattr(part, "cls_emb", None) is None

    def positions(self, length: int) -> Tensor:
        """Return the tower's own positional embedding, float (length, width); 0 where it is added inside the tower."""
        own = getattr(self.part, "positional_embedding", None)
        return self.embedding.weight.new_zeros(length, self.embedding.weight.shape[1]) if own is None else own[:length]

    def cut(self, tokens: Tensor) -> Tensor:
        """Drop the columns that no text needs: int (n, length) -> int (n, longest)."""
        return tokens[:, : int(self._ends(tokens).max()) + 1] if self.cuts else tokens

    def encode(self, embedded: Tensor, tokens: Tensor) -> Tensor:
        """Encode texts from token embeddings.

        Args:
            embedded: Token embeddings plus positions, float, shape (n, length, width).
            tokens: What they stand for, int, shape (n, length); it says where marks and padding are.

        Returns:
            Features, float, shape (n, d), not normalized.
        """
        if self.cuts:
            return encode_embedded(self.model, embedded, self._ends(tokens))
        rows = embedded - self.positions(embedded.shape[1])  # the tower adds its positions itself
        with self.embedding.register_forward_hook(lambda *_: rows):
            return self.model.encode_text(tokens, normalize=False)

    def _ends(self, tokens: Tensor) -> Tensor:
        return end_positions(tokens if self.pool == "argmax" else (tokens == self.end_id).int())


def _pooling(part: Any) -> tuple[str, int | None]:
    """Return where a text tower reads its feature, in open_clip's words, and the id of its end mark."""
    pool = getattr(part, "text_pool_type", getattr(part, "pool_type", "argmax"))
    return pool, getattr(part, "text_eos_id", getattr(part, "eos_id", None))


def text_part(model: nn.Module) -> Any:
    """Find the module that owns the token table: ``model.text`` of open_clip's CustomTextCLIP, else the model.

    Raises:
        RPLibError: The tower is no causal transformer that reads its feature at the end mark.
    """
    part: Any = getattr(model, "text", model)
    needed = ("token_embedding", "positional_embedding", "transformer", "ln_final", "attn_mask")
    missing = [name for name in needed if getattr(part, name, None) is None]
    if missing:
        raise RPLibError(
            f"this text tower ({type(part).__name__}) has no {', '.join(missing)}; prompts inside it need one of "
            "open_clip's causal text transformers, such as those of the ViT-B-32, ViT-L-14 or RN50 models"
        )
    pool, end_id = _pooling(part)
    at_end = pool == "argmax" or (pool == "eos" and end_id == part.token_embedding.num_embeddings - 1)
    if not at_end or getattr(part, "cls_emb", None) is not None:  # CoCa reads an extra token behind the text
        raise RPLibError(
            "only text towers that read their feature at the end mark, the largest token id, are supported"
        )
    return part


def end_positions(tokens: Tensor) -> Tensor:
    """Find the end mark of each row: int (n, length) -> int64 (n,). CLIP's end mark has the largest token id."""
    return tokens.argmax(dim=-1)


def cut_padding(tokens: Tensor) -> Tensor:
    """Drop the columns behind the last end mark: int (n, length) -> int (n, longest)."""
    return tokens[:, : int(end_positions(tokens).max()) + 1]


def embed(model: nn.Module, tokens: Tensor) -> Tensor:
    """Compute CLIP's own input to the text transformer, token rows plus positions: float (n, length, width)."""
    part = text_part(model)
    return part.token_embedding(tokens) + part.positional_embedding[: tokens.shape[1]]


def encode_embedded(
    model: nn.Module, embedded: Tensor, end: Tensor, run: Callable[..., Tensor] | None = None
) -> Tensor:
    """Encode texts from token embeddings.

    Args:
        model: An open_clip CLIP with a causal text transformer.
        embedded: Token embeddings plus positions (see :func:`embed`), float, shape (n, length, width).
        end: Position of each end mark, int, shape (n,).
        run: Called as ``run(x, attn_mask=...)`` in place of the transformer, for prompts between its blocks.

    Returns:
        Features, float, shape (n, d), not normalized.
    """
    part: Any = getattr(model, "text", model)
    length = embedded.shape[1]
    x = embedded.to(part.transformer.get_cast_dtype())
    x = (run or part.transformer)(x, attn_mask=part.attn_mask[:length, :length])  # (n, length, width)
    x = part.ln_final(x)[torch.arange(len(x), device=x.device), end]  # (n, width), at the end marks
    projection = part.text_projection
    if projection is None:
        return x
    return projection(x) if isinstance(projection, nn.Linear) else x @ projection  # (n, d)


def encode_tokens(model: nn.Module, tokens: Tensor) -> Tensor:
    """Encode int tokens (n, length), cut as far as is exact: float (n, d), not normalized."""
    tower = TextTower(model)
    tokens = tower.cut(tokens)
    return tower.encode(tower.embedding(tokens) + tower.positions(tokens.shape[1]), tokens)


def encode_image(visual: Callable[[Tensor], Any], pixels: Tensor) -> Tensor:
    """Run an image tower on normalized float (n, 3, H, H): float (n, d). What CoCa's returns next to it is dropped."""
    features = visual(pixels)
    return features[0] if isinstance(features, tuple) else features


def vision_part(model: nn.Module) -> Any:
    """Find the image tower of an open_clip model, if its blocks can be run one by one.

    Raises:
        RPLibError: It is no plain vision transformer, or it is training and drops patches.
    """
    from open_clip.transformer import VisionTransformer

    visual: Any = model.visual
    remedy = "this method needs one of open_clip's vision transformers, such as those of ViT-B-32 or ViT-L-14"
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
    transformer: Any,
    x: Tensor,
    deep: Sequence[Tensor] = (),
    at: int = 0,
    attn_mask: Tensor | None = None,
    blocks: slice = slice(None),
) -> Tensor:
    """Run an open_clip ``Transformer``, replacing tokens in front of its second and later blocks.

    Args:
        transformer: Has ``resblocks``; they get their input in its own layout, batch or sequence first.
        x: Float, shape (n, length, width).
        deep: ``deep[i]``, float (k, width), replaces the tokens from ``at`` on in front of block i + 1. Behind the
            last of them the tokens stay. Fewer than there are blocks.
        at: First place that is replaced.
        attn_mask: Float (length, length), added to the attention logits.
        blocks: Which of the blocks run.

    Returns:
        Float, shape (n, length, width). Without ``deep`` it is the transformer's own output.
    """
    batch_first = transformer.batch_first
    for i, block in enumerate(transformer.resblocks[blocks]):
        if 0 < i <= len(deep):
            x = replace_tokens(x, deep[i - 1], at)
        if batch_first:
            x = block(x, attn_mask=attn_mask)
        else:
            x = block(x.transpose(0, 1), attn_mask=attn_mask).transpose(0, 1)
    return x


def encode_prompted(visual: Any, pixels: Tensor, first: Tensor, deep: Sequence[Tensor] = ()) -> Tensor:
    """Encode images with prompts behind the patch tokens.

    Args:
        visual: Of :func:`vision_part`.
        pixels: Normalized, float, shape (n, 3, H, H).
        first: Prompts in front of the first block, float, shape (k, width).
        deep: Prompts of later blocks, see :func:`walk_blocks`.

    Returns:
        Features, float, shape (n, d), not normalized. The prompts themselves are not pooled.
    """
    x = visual._embeds(pixels)  # (n, length, width)
    length = x.shape[1]
    # As in MaPLe (arXiv 2210.03117), the first prompts have no position and pass the norm that images pass.
    first = visual.ln_pre(first).to(x.dtype).expand(len(x), -1, -1)  # (n, k, width)
    x = walk_blocks(visual.transformer, torch.cat([x, first], dim=1), deep, at=length)  # (n, length + k, width)
    pooled, _ = visual._pool(x[:, :length])
    return pooled if visual.proj is None else pooled @ visual.proj  # (n, d)


def encode_patches(visual: Any, pixels: Tensor) -> Tensor:
    """Encode images and, in the same space, each of their patches.

    In the last block a patch attends to itself alone, so its features come from its own value (Zhou et al. 2022,
    arXiv 2112.01071; with the block's residuals, as in the code of LoCoOp, arXiv 2306.01293).

    Args:
        visual: Of :func:`vision_part`.
        pixels: Normalized, float, shape (n, 3, H, H).

    Returns:
        Features, float, shape (n, 1 + p, d), not normalized: of the image, then of its p patches.
    """
    x = walk_blocks(visual.transformer, visual._embeds(pixels), blocks=slice(-1))  # (n, 1 + p, width)
    itself = x.new_full((x.shape[1], x.shape[1]), float("-inf")).fill_diagonal_(0)
    image, patches = (walk_blocks(visual.transformer, x, attn_mask=m, blocks=slice(-1, None)) for m in (None, itself))
    pooled = torch.cat([visual._pool(image)[0][:, None], visual.ln_post(patches)[:, 1:]], dim=1)
    return pooled if visual.proj is None else pooled @ visual.proj
