"""One object for a frozen CLIP: the mini model or any open_clip backbone.

It knows what a method needs and what otherwise goes wrong without an error: the input size and normalization of its
images, its tokenizer, its logit scale, the activation of OpenAI's weights, and a fingerprint, so that a program that
was trained for one backbone is never applied to another.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rp_lib.backbones import SCHEMAS, load_backbone
from rp_lib.towers import encode_image, encode_tokens
from rp_lib.utils import distributed
from rp_lib.utils.arguments import checked
from rp_lib.utils.device import compile_in_place, computing, evaluating
from rp_lib.utils.errors import RPLibError
from rp_lib.utils.frozen_layers import speed_up_frozen_layers
from rp_lib.utils.io import tensors_sha256
from rp_lib.utils.preparation import Preparation
from rp_lib.utils.prompts import check_distinct, fill_prompts

log = logging.getLogger(__name__)


def check_images(images: Tensor, shape: tuple[int, int] = (1, 1)) -> None:
    """Raise ``RPLibError`` unless images are uint8, or float and finite in [0, 1], (n, 3, h, w).

    Args:
        images: To be checked.
        shape: Height and width that h and w are in proportion to.

    Raises:
        RPLibError: Another type, range or shape.
    """
    if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] != 3:
        shape = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise RPLibError(f"images must be a tensor of shape (n, 3, height, width), got {shape}")
    if 0 in images.shape[2:]:
        raise RPLibError(f"images of {images.shape[2]} x {images.shape[3]} pixels show nothing")
    if images.shape[2] * shape[1] != images.shape[3] * shape[0]:
        wanted = "a square" if shape[0] == shape[1] else f"{shape[0]} x {shape[1]} pixels"
        raise RPLibError(
            f"images of {images.shape[2]} x {images.shape[3]} pixels would be squeezed into {wanted}, which training "
            "pictures were cut to: hand their files to rp_lib.predict, or cut out what has these proportions first"
        )
    if images.dtype == torch.uint8:
        return
    if not images.is_floating_point():
        raise RPLibError(f"images must be uint8 in [0, 255] or float in [0, 1], got {images.dtype}")
    if images.numel():
        low, high = torch.aminmax(images)
        if not bool(low >= 0) or not bool(high <= 1):  # also true for NaN
            raise RPLibError(
                f"float images must be finite and in [0, 1], these span [{float(low):.3g}, {float(high):.3g}]; pass "
                "raw pixels (uint8, or divided by 255): the model normalizes them itself"
            )


def to_unit_range(images: Tensor) -> Tensor:
    """Divide uint8 images by 255; float images only become float32."""
    return images.float() / 255 if images.dtype == torch.uint8 else images.float()


def resize(images: Tensor, size: int | tuple[int, int], mode: str = "bicubic") -> Tensor:
    """Resize float images (n, 3, h, w) in [0, 1] to a side, or height and width, antialiased, clamped to [0, 1]."""
    shape = (size, size) if isinstance(size, int) else size
    if images.shape[-2:] == shape:
        return images
    return F.interpolate(images, shape, mode=mode, antialias=True, align_corners=False).clamp(0, 1)


def _factor(logit_scale: Tensor, name: str) -> float:
    """Return the factor on cosine similarities, of the logarithm that the weights hold."""
    factor = float(logit_scale.exp())
    if not 0 < factor < 1e4:  # CLIP's training stops at 100
        raise RPLibError(
            f"the logit_scale of {name} is {float(logit_scale):g}, so similarities would be multiplied by {factor:g}. "
            "Weights hold the logarithm of that factor (4.605 for 100): if the file has the factor itself, store its "
            "logarithm instead"
        )
    return factor


def _same_features(embeddings: Tensor) -> list[tuple[int, int]]:
    """Name two of C rows that are equal but for rounding: one pair or none, found in blocks, as (C, C) may not fit."""
    for start in range(0, len(embeddings), 1024):
        near = embeddings[start : start + 1024] @ embeddings.T > 1 - 1e-5
        if (pairs := near.triu(start + 1).nonzero()).numel():
            return [(start + int(pairs[0, 0]), int(pairs[0, 1]))]
    return []


class FrozenCLIP:
    """A CLIP whose weights never change, with all that belongs to it.

    Args:
        model: As open_clip builds it: with ``visual``, a text tower and ``logit_scale``.
        tokenizer: Maps n texts to int64 tokens, shape (n, context length).
        name: Model and weights, such as ``"ViT-B-32-quickgelu/openai"``.
        mean: Of each channel, of images in [0, 1], length 3.
        std: Of each channel, length 3.
        image_size: Side of the input, or height and width, pixels; or that and how pictures become it.
        device: Where the model computes.
        channels_last: Lay out images with channels last in memory, which convolutions on GPUs are faster with.
        compile: Compile the image towers with ``torch.compile``: True, or the name of one of its backends. The first
            step then takes a minute or more, and results differ by rounding. Pays on GPUs, for long runs.
        source: How to load this backbone again: arguments of :meth:`open_clip`, or ``{"mini": CHECKPOINT}``. None if it
            was built by hand.

    Attributes:
        preparation: How pictures of any size become its input; pass it as ``size`` of :func:`rp_lib.from_folders`.
        logit_scale: The factor on cosine similarities, a float (100 for OpenAI's models).
        logit_bias: What models that were trained with the sigmoid loss, such as SigLIP, add to the product before the
            sigmoid, a float; None for others. No softmax and no rank depends on it.
        embed_dim: Length d of the features.

    Example:
        >>> from rp_lib import mini
        >>> clip, data = mini.load()
        >>> images = clip.encode(data.test.images[:8])  # (8, d)
        >>> classes = clip.class_embeddings(data.class_names, data.templates)  # (C, d)
        >>> logits = clip.logit_scale * images @ classes.T
        >>> logits.shape
        torch.Size([8, 40])
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Callable[[Sequence[str]], Tensor],
        *,
        name: str,
        mean: Sequence[float],
        std: Sequence[float],
        image_size: int | tuple[int, int] | Preparation,
        device: torch.device | str = "cpu",
        channels_last: bool = False,
        compile: bool | str = False,
        source: Mapping[str, Any] | None = None,
    ) -> None:
        distributed.start()  # of several processes, each then has a GPU of its own behind "cuda"
        try:
            self.device = torch.device(device)
        except RuntimeError as error:
            raise RPLibError(f"{device!r} is no device of torch; take 'cpu' or 'cuda'") from error
        self.channels_last, self.compiled = channels_last, compile
        # No gradient is ever computed for a frozen weight: that is a third of a training step saved.
        self.model = speed_up_frozen_layers(model.to(self.device).eval().requires_grad_(False))
        self.arrange(self.model.visual)
        self.tokenizer = tokenizer
        self.name, self.source = name, source
        self.preparation = Preparation.of(image_size)
        self.image_size = self.preparation.size
        self._mean = torch.tensor(mean, device=self.device).view(1, 3, 1, 1)
        self._std = torch.tensor(std, device=self.device).view(1, 3, 1, 1)
        self.logit_scale = _factor(model.logit_scale.detach(), name)
        bias = getattr(model, "logit_bias", None)
        self.logit_bias = None if bias is None else float(bias.detach())
        with torch.no_grad():
            probe = self.encode_tokens(self.tokenize(["a"]))
        if not bool(torch.isfinite(probe).all()):
            raise RPLibError(f"the text features of {name} are not finite: the weights are damaged; load them again")
        self.embed_dim = int(probe.shape[1])
        # Class names and templates of tasks, and whether their embeddings were compared.
        self._known_prompts: dict[tuple[tuple[str, ...], tuple[str, ...]], bool] = {}

    @classmethod
    @checked
    def open_clip(
        cls, name: str, pretrained: str | Path | None, device: torch.device | str = "cpu", **options: object
    ) -> FrozenCLIP:
        """Load any open_clip model, with the activation that its weights were trained with.

        Args:
            name: Such as ``ViT-B-32``, ``hf-hub:ORG/REPO`` or ``local-dir:FOLDER``.
            pretrained: Tag of open_clip or a local weight file; None for random weights.
            device: Where the model computes.
            options: ``channels_last`` and ``compile`` as above; others go to ``open_clip.create_model``.

        Raises:
            UnknownName: open_clip has no such model or tag.
            RPLibError: The weights cannot be fetched or read, or no text program can act on the text tower.
        """
        own: dict[str, Any] = {key: options.pop(key) for key in ("channels_last", "compile") if key in options}
        b = load_backbone(name, pretrained, **options)
        weights = None if pretrained is None else str(pretrained)
        if weights is not None and Path(weights).is_file():
            weights = str(Path(weights).resolve())
        known = pretrained is not None or name.startswith(SCHEMAS)  # random weights cannot be loaded again
        return cls(
            b.model, b.tokenizer, name=b.name, mean=b.mean, std=b.std, image_size=b.preparation, device=device,
            source={"name": name, "pretrained": weights, **options} if known else None, **own,
        )  # fmt: skip

    def arrange(self, tower: nn.Module) -> nn.Module:
        """Lay out and compile an image tower as this backbone's own, in place; returns it."""
        if self.channels_last:
            tower.to(memory_format=torch.channels_last)
        if self.compiled:
            compile_in_place(tower, self.device, "inductor" if self.compiled is True else str(self.compiled))
        return tower

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over all weights, the normalization and the activation; equal only for the same model."""
        # The same weights with another activation are another model, and no weight tells them apart.
        quick = torch.tensor(any(type(m).__name__ == "QuickGELU" for m in self.model.modules()))
        parts = {**self.model.state_dict(), "mean": self._mean, "std": self._std, "quick_gelu": quick}
        # Another resizing or size gives other features; where patches tile the input, their positions tell the size.
        visual: Any = self.model.visual
        grid, patch = getattr(visual, "grid_size", (0,)), getattr(visual, "patch_size", (0,))
        told = [g * p for g, p in zip(grid, patch, strict=True)] == list(self.preparation.shape)
        own = replace(self.preparation, size=224) if told else self.preparation
        if own != Preparation():
            parts["preparation"] = torch.tensor(list(repr(own).encode()))
        return tensors_sha256(parts)

    @checked
    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Tokenize n texts: int64 (n, context length) on this model's device."""
        return self.tokenizer(list(texts)).to(self.device)

    @checked
    def check_prompts(self, class_names: Sequence[str], templates: Sequence[str]) -> None:
        """Raise unless every class has a prompt of its own, as this model reads it: in tokens.

        A prompt that is longer than the model reads is named in a warning. Names that differ in a blank at their end
        alone repeat a class on purpose, as ImageNet's released names do.

        Raises:
            RPLibError: A template has not exactly one ``{}``, a name is empty, or two classes have the same tokens, or
                names that differ in case, blanks or underscores alone.
        """
        key = (tuple(class_names), tuple(templates))
        if key in self._known_prompts:
            return
        prompts = fill_prompts(class_names, templates)
        check_distinct(class_names, templates[0])
        tokens = self.tokenize(prompts).cpu()
        length = tokens.shape[1]
        padding = self.tokenize([""])[0, -1].item()  # 0 in CLIP's tokenizers, 1 in T5's
        # A row that is full was cut, unless the tokenizer can say that the prompt just fits.
        count = getattr(self.tokenizer, "encode", None)
        full = (tokens != padding).all(1).nonzero()[:, 0].tolist()
        cut = [prompts[i] for i in full if count is None or len(count(prompts[i])) + 2 > length]
        if cut:
            log.warning(
                "%d of %d prompts are longer than the %d tokens that %s reads; the rest of them is cut off, of %r for "
                "example", len(cut), len(prompts), length, self.name, cut[0],
            )  # fmt: skip
        first: dict[bytes, str] = {}
        for name, rows in zip(class_names, tokens.view(len(class_names), -1), strict=True):
            other = first.setdefault(rows.numpy().tobytes(), name)
            if other.strip() != name.strip():
                raise RPLibError(
                    f"{self.name} reads the prompts of the classes {other!r} and {name!r} as the same tokens"
                    f"{f', since it reads {length} tokens and no more' if cut else ''}: one of the two would never be "
                    "predicted. Give them other names, or merge them"
                )
        self._known_prompts[key] = False

    def encode_tokens(self, tokens: Tensor) -> Tensor:
        """Encode int tokens (n, length) as text features of unit length, float32 (n, d)."""
        with computing(self.device):
            return F.normalize(encode_tokens(self.model, tokens).float(), dim=-1)

    @checked
    @torch.no_grad()
    def class_embeddings(self, class_names: Sequence[str], templates: Sequence[str]) -> Tensor:
        """Embed each class: its prompts encoded, averaged, and the mean scaled to unit length.

        The same as open_clip's ``build_zero_shot_classifier``.

        Args:
            class_names: C names.
            templates: T prompts with one ``{}`` each.

        Returns:
            float32, shape (C, d).
        """
        prompts = fill_prompts(class_names, templates)
        parts = self.tokenize(prompts).split(1024 if len(prompts) <= 1024 else 256)
        with evaluating():  # in parts, so that 80 templates of 1,000 classes fit into memory
            features = torch.cat([self.encode_tokens(part) for part in parts])  # (C * T, d)
        features = features.view(len(class_names), len(templates), -1)  # (C, T, d)
        embeddings = F.normalize(features.mean(1), dim=-1)
        key = (tuple(class_names), tuple(templates))
        if self._known_prompts.get(key) is False and type(embeddings) is Tensor:  # not where only shapes are counted
            self._known_prompts[key] = True
            for i, j in _same_features(embeddings):
                log.warning(
                    "%s gives the classes %r and %r the same text features, perhaps because it knows none of their "
                    "words: zero-shot does not tell them apart", self.name, class_names[i], class_names[j],
                )  # fmt: skip
        return embeddings

    def normalize(self, images: Tensor) -> Tensor:
        """Map float images (n, 3, H, H) in [0, 1] to what the image tower expects."""
        pixels = (images - self._mean) / self._std
        return pixels.contiguous(memory_format=torch.channels_last) if self.channels_last else pixels

    def encode_pixels(self, images: Tensor) -> Tensor:
        """Encode float images (n, 3, H, H) in [0, 1] as unit features, float32 (n, d); gradients reach the pixels."""
        with computing(self.device):
            return F.normalize(encode_image(self.model.visual, self.normalize(images)).float(), dim=-1)

    def prepare(self, images: Tensor) -> Tensor:
        """Bring uint8 or float images (n, 3, h, w) to float32 (n, 3, H, W) in [0, 1] on this model's device.

        Images of bytes are resized as Pillow resizes files, which open_clip does: to within one grey level.
        """
        check_images(images, self.preparation.shape)
        images, (height, width), mode = images.to(self.device), self.preparation.shape, self.preparation.interpolation
        if images.dtype != torch.uint8 or images.shape[-2:] == (height, width):
            return resize(to_unit_range(images), (height, width), mode)
        # One direction after the other, with whole numbers of 0 to 255 in between.
        for shape in ((images.shape[-2], width), (height, width)):
            images = F.interpolate(images.float(), shape, mode=mode, antialias=True).round().clamp(0, 255)
        return images / 255

    def encode(self, images: Tensor) -> Tensor:
        """Encode uint8 or float images of any size as features of unit length, float32 (n, d)."""
        return self.encode_pixels(self.prepare(images))
