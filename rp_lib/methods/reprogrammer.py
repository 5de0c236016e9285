"""Reprogrammer (RP), Geng and Chen 2024, arXiv 2403.10800."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rp_lib.benchmark import ImageSet
from rp_lib.clip import check_images, to_unit_range
from rp_lib.config import PAPER, RPConfig
from rp_lib.features import Encoder, FeatureStore
from rp_lib.losses import reprogramming_loss
from rp_lib.methods.base import Method, Mixture
from rp_lib.programs import ImageProgram, TextProgram
from rp_lib.trainer import Group, Schedule
from rp_lib.utils.device import in_float32
from rp_lib.utils.distributed import gather, shared
from rp_lib.utils.errors import RPLibError


@dataclass(eq=False, repr=False)
class Reprogrammer(Method):
    """Trains a border around the images and an input layer for the prompts; CLIP itself never changes.

    Args:
        config: Every switch and hyper-parameter; see :class:`rp_lib.config.RPConfig`.
        seed: Of the border's start and the order of the batches.
        precision: Of training, see :func:`rp_lib.utils.device.autocast_dtype`.

    Example:
        >>> rp = Reprogrammer(clip, class_names, templates, PAPER.changed(epochs=5)).fit(train)  # doctest: +SKIP
    """

    name = "rp"

    config: RPConfig = PAPER
    _: KW_ONLY
    seed: int = 1
    precision: str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        config, clip = self.config, self.clip
        if config.objective == "sigmoid" and clip.logit_bias is None:
            raise RPLibError(
                f"{clip.name} was not trained with the sigmoid loss and has no logit bias: take another objective, or "
                "a backbone such as SigLIP"
            )
        side = min(clip.preparation.shape)
        self.image_program = ImageProgram(
            clip.image_size,
            round(config.padding * side),
            placement=config.placement,
            init=config.border_init,
            resolution=_pixels(config.eval_resolution, side),
            seed=self.seed,
        ).to(clip.device)
        self.text_program = TextProgram(clip, self.class_names, self.templates, rows=config.text_rows)
        self._class_embeddings: Tensor | None = None
        self._frozen_prompts: Tensor | None = None

    def before_training(self, train_set: ImageSet, store: FeatureStore) -> None:
        """Encode the class prompts once if they do not change."""
        self._frozen_prompts = None if self.config.use_text_program else self.prompt_embeddings()

    def training_schedule(self) -> Schedule:
        """Return epochs, batch size and a cosine after the warm-up."""
        c = self.config
        return Schedule(c.epochs, c.batch_size, "cosine", c.warmup_steps, self.seed, self.precision)

    def parameter_groups(self) -> list[Group]:
        """Return W (Adam or AdamW), and Theta and b (AdamW), as far as they are switched on."""
        c, groups = self.config, []
        if c.use_image_program:
            kind = "adam" if c.coupled_decay else "adamw"
            groups.append(Group([self.image_program.W], c.image_lr, c.image_decay, kind, (0.9, 0.999)))
        if c.use_text_program:
            program = self.text_program
            groups.append(Group([program.Theta, program.b], c.text_lr, c.text_decay, "adamw", (0.9, 0.98), 1e-6))
        return groups

    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Compute the reprogramming loss of a batch, a scalar; see :meth:`Method.loss`.

        The gradient runs through both frozen towers and stops at W, Theta and b.
        """
        c = self.config
        features = gather(self.encode(inputs) if c.use_image_program else inputs, len(labels))  # (n, d)
        if self._frozen_prompts is not None:
            prompts = self._frozen_prompts  # (C, d)
        else:
            classes = torch.arange(len(self.class_names), device=self.device)
            if c.objective.startswith("contrastive"):  # prompts of classes that the batch lacks count nothing
                classes, labels = labels.unique(return_inverse=True)
            prompts = shared(self.text_program.class_embeddings, classes)  # (classes of the batch, d)
        with in_float32(self.device):
            logits = self.clip.logit_scale * features.float() @ prompts.float().T
            return reprogramming_loss(logits, labels, c.objective, c.loss, self.clip.logit_bias or 0.0)

    def set_training(self, on: bool) -> None:
        """Take the resolution of training or of evaluation, and drop the prompts as they were encoded before."""
        fraction = self.config.train_resolution if on else self.config.eval_resolution
        self.image_program.resolution = _pixels(fraction, min(self.clip.preparation.shape))
        self._class_embeddings = None

    @property
    def encoders(self) -> tuple[Encoder, ...]:
        """Itself, or the untouched backbone when there is no image program."""
        return (self,) if self.config.use_image_program else (self.clip,)

    def program_images(self, images: Tensor) -> Tensor:
        """psi(x): uint8 or float [0, 1] images of any size -> float (n, 3, H, H) in [0, 1]."""
        check_images(images, self.clip.preparation.shape)
        return self.image_program(to_unit_range(images.to(self.clip.device)))

    def encode(self, images: Tensor) -> Tensor:
        """Unit float32 (n, d) features of programmed images."""
        return self.clip.encode_pixels(self.program_images(images))

    def class_embeddings(self) -> Tensor:
        """Unit float32 (C, d) features of the class prompts, on the CPU; encoded once after training."""
        if self._class_embeddings is None:
            with torch.no_grad():
                self._class_embeddings = self.prompt_embeddings().cpu()
        return self._class_embeddings

    def prompt_embeddings(self) -> Tensor:
        """Unit float32 (C, d) on the device, with gradients if the text program is on."""
        if self.config.use_text_program:
            return self.text_program.class_embeddings()
        return self.clip.class_embeddings(self.class_names, self.templates)

    @torch.no_grad()
    def encode_classes(self, words: Sequence[str]) -> Tensor:
        """Programmed embeddings of any class names: words of the task's prompts have moved, others have not."""
        if not self.config.use_text_program:
            return super().encode_classes(words)
        tokens = self.clip.tokenize([t.format(w) for w in words for t in self.templates])
        features = self.text_program.encode(tokens).view(len(words), len(self.templates), -1)
        return F.normalize(features.mean(1), dim=-1).cpu()

    def head(self, features: Tensor) -> Tensor:
        """Inner products with the programmed prompts, times CLIP's logit scale."""
        return self.clip.logit_scale * features @ self.class_embeddings().T

    def modules(self) -> nn.ModuleDict:
        """The programs that are switched on."""
        parts: dict[str, nn.Module] = {}
        if self.config.use_image_program:
            parts["image"] = self.image_program
        if self.config.use_text_program:
            parts["text"] = self.text_program
        return nn.ModuleDict(parts)

    def state_dict(self) -> dict[str, Tensor]:
        """The border of W, Theta with its token ids, and b; nothing else."""
        tensors = self.modules().state_dict()
        if "image.W" in tensors:  # the inner square is never used
            tensors["image.W"] = tensors["image.W"] * self.image_program.M
        return tensors

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Take over what :meth:`state_dict` returned.

        Raises:
            RPLibError: Another configuration, or other words in the prompts.
        """
        own = self.state_dict().get("text.token_ids")
        saved = tensors.get("text.token_ids")
        if own is not None and saved is not None and own.shape == saved.shape and not torch.equal(own, saved):
            raise RPLibError(
                "the saved text program was trained on other words; use the same class names and templates"
            )
        super().load_state_dict(tensors)


def _pixels(fraction: float | None, size: int) -> int | None:
    return None if fraction is None else max(1, round(fraction * size))


class ResidualReprogrammer(Mixture):
    """Residual Reprogrammer (RRP): a fitted RP whose features are mixed with zero-shot CLIP's.

    For images and for class prompts alike::

        f = normalize((1 - alpha) * f_rp + alpha * f_zero_shot)

    Nothing is trained beyond RP. ``alpha=0`` is RP, ``alpha=1`` is zero-shot CLIP.

    Args:
        rp: The reprogrammer, fitted or not; it is shared, not copied.
        alpha: Weight of the zero-shot features, in [0, 1]. Defaults to ``rp.config.alpha``.

    Example:
        >>> rp = Reprogrammer(clip, class_names, templates).fit(train)
        >>> rrp = ResidualReprogrammer(rp, alpha=0.4)
        >>> sweep = {a: rrp.with_alpha(a).accuracy(val) for a in (0.0, 0.5, 1.0)}  # no image is encoded twice
    """

    name = "rrp"

    def __init__(self, rp: Reprogrammer, alpha: float | None = None) -> None:
        super().__init__(rp, rp.config.alpha if alpha is None else alpha)
        self.rp = rp
        self._zero_shot = rp.clip.class_embeddings(rp.class_names, rp.templates).cpu()

    @property
    def encoders(self) -> tuple[Encoder, ...]:
        """RP's encoder and the untouched backbone."""
        return (*self.rp.encoders, self.clip)

    def _mix(self, programmed: Tensor, zero_shot: Tensor) -> Tensor:
        mixed = (1 - self.alpha) * programmed + self.alpha * zero_shot
        return F.normalize(mixed, dim=-1) if self.rp.config.renormalize_residual else mixed

    def mix_features(self, *features: Tensor) -> Tensor:
        """Mix of programmed and untouched image features; of unit length unless the switch says otherwise."""
        programmed, zero_shot = features
        return self._mix(programmed, zero_shot)

    def class_embeddings(self) -> Tensor:
        """Mix of programmed and untouched prompt features, float32 (C, d)."""
        return self._mix(self.rp.class_embeddings(), self._zero_shot)

    def encode_classes(self, words: Sequence[str]) -> Tensor:
        """Mix of programmed and untouched embeddings of any class names."""
        return self._mix(self.rp.encode_classes(words), super().encode_classes(words))

    def head(self, features: Tensor) -> Tensor:
        """Inner products of mixed features, times CLIP's logit scale."""
        return self.clip.logit_scale * features @ self.class_embeddings().T


# RP with one of its two programs, to see what each contributes alone (question 1 of the course).

class _SingleProgram(Reprogrammer):
    """A reprogrammer whose other program is switched off, whatever its configuration says of that one."""

    kept: ClassVar[str]
    dropped: ClassVar[str]

    def __post_init__(self) -> None:
        if not getattr(self.config, self.kept):
            raise RPLibError(f"{self.name} is nothing without its program; leave {self.kept} on")
        self.config = self.config.changed(**{self.dropped: False})
        super().__post_init__()


class ImageReprogrammer(_SingleProgram):
    """RP's border around the images alone; the class prompts are those of zero-shot.

    Example:
        >>> ImageReprogrammer(clip, class_names, templates).fit(train)  # doctest: +SKIP
    """

    name = "rp-image"
    kept, dropped = "use_image_program", "use_text_program"


class TextReprogrammer(_SingleProgram):
    """RP's text program alone; images are encoded once, by the untouched tower.

    Example:
        >>> TextReprogrammer(clip, class_names, templates).fit(train)  # doctest: +SKIP
    """

    name = "rp-text"
    kept, dropped = "use_text_program", "use_image_program"
