"""The two programs of the paper: one in front of the image tower, one in front of the text transformer.

Image program (Geng and Chen 2024, arXiv 2403.10800)::

    psi(x) = clamp(U(x) + tanh(W * M), 0, 1)

``U`` brings x to the inner resolution and zero-pads it to the encoder's input size; ``W`` (3, H, H) is
trained; ``M`` (H, H) is 0 on the inner square and 1 on the border. Text program::

    Phi(s) = Theta[s] + b

``Theta`` is a trainable token table and ``b`` a trainable bias per position; both start from CLIP's own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rp_lib.clip import FrozenCLIP, resize
from rp_lib.towers import cut_padding, encode_embedded, end_positions, text_part
from rp_lib.utils.device import computing
from rp_lib.utils.errors import RPLibError, UnknownName

PLACEMENTS = ("pad", "overlay")
BORDER_INITS = ("zeros", "normal", "grey", "white")
TEXT_ROWS = ("seen", "all")


class ImageProgram(nn.Module):
    """The border around (``pad``) or on top of (``overlay``) the image.

    Args:
        image_size: side H of the encoder's square input, pixels.
        padding: width of the border on each side, pixels of the encoder's input; 0 <= 2 * padding < H.
        placement: ``pad`` shrinks the image to the inner square; ``overlay``, as the released code does,
            keeps it at full size and adds the border on top of its margin.
        init: start of W: ``normal`` N(0, 1) as released; ``zeros``; ``grey`` (0.5); ``white`` (0.95).
        resolution: first shrink images to this side, as the released code does (64 in training, 128 in
            evaluation, before up-sampling to 224); None keeps what is there.
        seed: of the ``normal`` start.

    Attributes:
        W: float32 (3, H, H), trained. M: float32 (H, H), 1 on the border.
    """

    M: Tensor

    def __init__(
        self,
        image_size: int,
        padding: int,
        *,
        placement: str = "pad",
        init: str = "normal",
        resolution: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if placement not in PLACEMENTS:
            raise UnknownName("placement", placement, PLACEMENTS)
        if padding < 0 or 2 * padding >= image_size:
            raise RPLibError(
                f"a padding of {padding} on each side of {image_size} pixels leaves no image; "
                f"use 0 to {(image_size - 1) // 2}"
            )
        self.image_size, self.padding, self.placement, self.resolution = image_size, padding, placement, resolution
        mask = torch.ones(image_size, image_size)
        mask[padding : image_size - padding, padding : image_size - padding] = 0
        self.register_buffer("M", mask, persistent=False)
        self.W = nn.Parameter(_initial_border(init, image_size, seed))

    @property
    def inner_size(self) -> int:
        """Side of the square that shows the image."""
        return self.image_size - 2 * self.padding if self.placement == "pad" else self.image_size

    def place(self, images: Tensor) -> Tensor:
        """U: float (n, 3, h, w) in [0, 1] -> (n, 3, H, H), up-sampled and zero-padded."""
        if self.resolution is not None:
            images = resize(images, self.resolution)
        inner = resize(images, self.inner_size)
        margin = (self.image_size - self.inner_size) // 2
        return F.pad(inner, (margin, margin, margin, margin)) if margin else inner

    def forward(self, images: Tensor) -> Tensor:
        """psi: float (n, 3, h, w) in [0, 1] -> float (n, 3, H, H) in [0, 1]."""
        return _Clamp.apply(self.place(images) + torch.tanh(self.W * self.M))


class _Clamp(torch.autograd.Function):
    """``clamp(0, 1)`` whose gradient passes at exactly 0 and 1 too, where any number from 0 to 1 is a subgradient.

    A border that starts at W = 0 lies on the kink. torch's own clamp passes the gradient there up to 2.13, as in the
    versions that the authors used, and from 2.14 on it does not: such a border would never move.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(0, 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad * ((x >= 0) & (x <= 1))


def _initial_border(init: str, size: int, seed: int) -> Tensor:
    if init == "normal":
        return torch.randn(3, size, size, generator=torch.Generator().manual_seed(seed))
    if init not in BORDER_INITS:
        raise UnknownName("border start", init, BORDER_INITS)
    value = {"zeros": 0.0, "grey": 0.5, "white": 0.95}[init]
    return torch.full((3, size, size), math.atanh(value))


class TextProgram(nn.Module):
    """Trainable token rows and position bias in front of the frozen text transformer.

    Args:
        clip: the frozen backbone.
        class_names: the task's classes, C of them.
        templates: prompts with one ``{}`` each.
        rows: ``seen`` trains the rows of the words in the class prompts, so that every other word, and the
            start and end marks that all prompts share, keep their meaning; ``all`` trains the whole table,
            as the released code does.

    Attributes:
        Theta: float32 (k, width), trained rows. b: float32 (length, width), trained position bias.
        token_ids: int64 (k,), which rows of the vocabulary Theta holds.
    """

    tokens: Tensor
    token_ids: Tensor

    def __init__(
        self, clip: FrozenCLIP, class_names: Sequence[str], templates: Sequence[str], *, rows: str = "seen"
    ) -> None:
        super().__init__()
        if rows not in TEXT_ROWS:
            raise UnknownName("choice of text rows", rows, TEXT_ROWS)
        self._clip = [clip]  # in a list: the frozen model is not a submodule of its program
        self.shape = (len(class_names), len(templates))
        part = text_part(clip.model)
        tokens = cut_padding(clip.tokenize([t.format(c) for c in class_names for t in templates]))
        self.register_buffer("tokens", tokens, persistent=False)
        table = part.token_embedding.weight
        if rows == "all":
            ids = torch.arange(len(table), device=table.device)
        else:
            marks = clip.tokenize([""])[0].unique()  # start, end and padding
            ids = tokens.unique()
            ids = ids[~torch.isin(ids, marks)]
        self.register_buffer("token_ids", ids)
        self.Theta = nn.Parameter(table[ids].detach().float().clone())
        self.b = nn.Parameter(part.positional_embedding[: tokens.shape[1]].detach().float().clone())
        self.to(clip.device)

    def forward(self, tokens: Tensor) -> Tensor:
        """Phi: int (n, length) tokens -> float (n, length, width), what the frozen transformer reads.

        Positions beyond the class prompts' length keep CLIP's own positional embedding.
        """
        part = text_part(self._clip[0].model)
        where = torch.searchsorted(self.token_ids, tokens.contiguous()).clamp(max=len(self.token_ids) - 1)
        trained = (self.token_ids[where] == tokens)[..., None]
        rows = torch.where(trained, self.Theta[where], part.token_embedding(tokens).float())
        length = tokens.shape[1]
        bias = self.b[:length]
        if length > len(self.b):
            bias = torch.cat([bias, part.positional_embedding[len(self.b) : length].float()])
        return rows + bias

    def encode(self, tokens: Tensor) -> Tensor:
        """Unit float32 (n, d) features of int (n, length) tokens through the program."""
        tokens = cut_padding(tokens)
        with computing(self._clip[0].device):
            features = encode_embedded(self._clip[0].model, self(tokens), end_positions(tokens))
        return F.normalize(features.float(), dim=-1)

    def class_embeddings(self, classes: Tensor | None = None) -> Tensor:
        """Unit float32 (C, d) features of the programmed class prompts; each distinct prompt is encoded once.

        ``classes`` (int (k,)) limits them to some classes, (k, d): a batch needs no prompts of classes it lacks.
        """
        tokens = self.tokens.view(*self.shape, -1)
        tokens = tokens if classes is None else tokens[classes]
        features = self.encode(tokens.flatten(0, 1)).view(*tokens.shape[:2], -1)
        return F.normalize(features.mean(1), dim=-1)
