"""The two programs of the paper (Geng and Chen 2024, arXiv 2403.10800).

The image program stands in front of the image tower::

    psi(x) = clamp(U(x) + tanh(W * M), 0, 1)

``U`` resizes x to the inner square and pads it with zeros to the encoder's input size H; ``W`` (3, H, H) is trained;
``M`` (H, H) is 0 on the inner square and 1 on the border. The text program stands in front of the text transformer::

    Phi(s) = Theta[s] + b

``Theta`` is a trained token table and ``b`` a trained bias for each position; both start from CLIP's own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rp_lib.clip import FrozenCLIP, resize
from rp_lib.towers import TextTower
from rp_lib.utils.device import computing
from rp_lib.utils.errors import RPLibError, UnknownName

PLACEMENTS = ("pad", "overlay")
BORDER_INITS = ("zeros", "normal", "grey", "white")
TEXT_ROWS = ("seen", "all")


class ImageProgram(nn.Module):
    """Add a trained border around an image, or on top of its margin.

    Args:
        image_size: Side H of the encoder's input, or its height and width; pixels.
        padding: Width of the border on each side, pixels of the encoder's input; 0 <= 2 * padding < H.
        placement: ``"pad"`` shrinks the image to the inner square. ``"overlay"``, as the released code does, keeps it
            at full size and adds the border on top of its margin.
        init: Start of the border: ``"normal"``, W drawn from N(0, 1) as released; ``"zeros"``; ``"grey"``; ``"white"``.
        resolution: Shrink images to this side first, as the released code does (64 in training, 128 in evaluation,
            before they are resized to 224). None keeps what is there.
        seed: Of the ``"normal"`` start.

    Attributes:
        W: Trained, float32, shape (3, H, H).
        M: 1 on the border and 0 inside, float32, shape (H, H).

    Example:
        >>> program = ImageProgram(image_size=64, padding=8)
        >>> program(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 3, 64, 64])
    """

    M: Tensor

    def __init__(
        self,
        image_size: int | tuple[int, int],
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
        self.shape = (image_size, image_size) if isinstance(image_size, int) else image_size
        if padding < 0 or 2 * padding >= min(self.shape):
            raise RPLibError(
                f"a padding of {padding} on each side of {min(self.shape)} pixels leaves no image; "
                f"use 0 to {(min(self.shape) - 1) // 2}"
            )
        self.image_size, self.padding, self.placement, self.resolution = image_size, padding, placement, resolution
        height, width = self.shape
        mask = torch.ones(height, width)
        mask[padding : height - padding, padding : width - padding] = 0
        self.register_buffer("M", mask, persistent=False)
        self.W = nn.Parameter(_initial_border(init, self.shape, seed))

    @property
    def inner_size(self) -> int | tuple[int, int]:
        """Side of the square that shows the image, or height and width where the input is none; pixels."""
        margin = 2 * self.padding if self.placement == "pad" else 0
        height, width = (side - margin for side in self.shape)
        return height if height == width else (height, width)

    def place(self, images: Tensor) -> Tensor:
        """Apply U, resize and pad with zeros: float (n, 3, h, w) in [0, 1] -> (n, 3, H, H)."""
        if self.resolution is not None:
            images = resize(images, self.resolution)
        inner = resize(images, self.inner_size)  # (n, 3, inner, inner)
        margin = self.padding if self.placement == "pad" else 0
        return F.pad(inner, (margin, margin, margin, margin)) if margin else inner

    def forward(self, images: Tensor) -> Tensor:
        """Apply psi: float (n, 3, h, w) in [0, 1] -> float (n, 3, H, H) in [0, 1]."""
        border = torch.tanh(self.W * self.M)  # tanh(W * M), (3, H, H): 0 where the image is
        return _Clamp.apply(self.place(images) + border)  # clamp(U(x) + tanh(W * M)), (n, 3, H, H)


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


def _initial_border(init: str, shape: tuple[int, int], seed: int) -> Tensor:
    if init == "normal":
        return torch.randn(3, *shape, generator=torch.Generator().manual_seed(seed))
    if init not in BORDER_INITS:
        raise UnknownName("border start", init, BORDER_INITS)
    value = {"zeros": 0.0, "grey": 0.5, "white": 0.95}[init]
    return torch.full((3, *shape), math.atanh(value))  # tanh(W) is the value


class TextProgram(nn.Module):
    """Train token rows and a position bias in front of the frozen text transformer, whatever its kind.

    Args:
        clip: The frozen backbone.
        class_names: The task's C classes.
        templates: T prompts with one ``{}`` each.
        rows: ``"seen"`` trains the rows of the words in the class prompts: every other word keeps its meaning, and so
            do the start and end marks, which all prompts share. ``"all"`` trains the complete table, as the released
            code does.

    Attributes:
        Theta: Trained rows, float32, shape (k, width).
        b: Trained position bias, float32, shape (length, width).
        token_ids: Rows of the vocabulary that Theta holds, ascending, int64, shape (k,).

    Example:
        >>> from rp_lib import mini
        >>> program = TextProgram(mini.load_clip(), ["cat", "fire engine"], ["an icon of a {}"])
        >>> program.token_ids.shape  # an, icon, of, a, cat, fire, engine
        torch.Size([7])
        >>> program.class_embeddings().shape
        torch.Size([2, 256])
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
        tower = TextTower(clip.model)
        tokens = tower.cut(clip.tokenize([t.format(c) for c in class_names for t in templates]))  # (C * T, length)
        self.register_buffer("tokens", tokens, persistent=False)
        if rows == "all":
            ids = torch.arange(tower.embedding.num_embeddings, device=clip.device)
        else:
            marks = clip.tokenize([""])[0].unique()  # start, end and padding
            ids = tokens.unique()
            ids = ids[~torch.isin(ids, marks)]
        self.register_buffer("token_ids", ids)
        self.Theta = nn.Parameter(tower.embedding(ids).detach().float().clone())
        self.b = nn.Parameter(tower.positions(tokens.shape[1]).detach().float().clone())
        self.to(clip.device)

    def forward(self, tokens: Tensor) -> Tensor:
        """Apply Phi: int tokens (n, length) -> float (n, length, width), what the frozen transformer reads."""
        tower = TextTower(self._clip[0].model)
        # Theta[s]: the trained row of a token that has one, CLIP's own row of any other.
        where = torch.searchsorted(self.token_ids, tokens.contiguous()).clamp(max=len(self.token_ids) - 1)
        trained = (self.token_ids[where] == tokens)[..., None]  # (n, length, 1)
        rows = torch.where(trained, self.Theta[where], tower.embedding(tokens).float())  # (n, length, width)
        # b: positions behind the longest class prompt keep CLIP's own positional embedding.
        length = tokens.shape[1]
        bias = self.b[:length]  # (length, width)
        if length > len(self.b):
            bias = torch.cat([bias, tower.positions(length)[len(self.b) :].float()])
        return rows + bias  # Phi(s) = Theta[s] + b

    def encode(self, tokens: Tensor) -> Tensor:
        """Encode int tokens (n, length) through the program as features of unit length, float32 (n, d)."""
        tower = TextTower(self._clip[0].model)
        tokens = tower.cut(tokens)
        with computing(self._clip[0].device):
            features = tower.encode(self(tokens), tokens)
        return F.normalize(features.float(), dim=-1)

    def class_embeddings(self, classes: Tensor | None = None) -> Tensor:
        """Embed the programmed class prompts, averaged over templates, as features of unit length.

        Args:
            classes: Class numbers, int, shape (k,), for a batch that needs no other prompts; None for all C classes.

        Returns:
            float32, shape (k, d) or (C, d).
        """
        tokens = self.tokens.view(*self.shape, -1)  # (C, T, length)
        tokens = tokens if classes is None else tokens[classes]
        features = self.encode(tokens.flatten(0, 1)).view(*tokens.shape[:2], -1)  # (C, T, d)
        return F.normalize(features.mean(1), dim=-1)
