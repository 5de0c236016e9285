"""Full fine-tuning of the image tower with a head that starts as the zero-shot classifier."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rp_lib.features import Encoder
from rp_lib.methods.base import Method
from rp_lib.towers import encode_image
from rp_lib.trainer import Group, Schedule
from rp_lib.utils.device import computing, in_float32
from rp_lib.utils.distributed import gather


@dataclass(kw_only=True, eq=False, repr=False)
class FineTune(Method):
    """All weights of a copy of the image tower and a linear head, cross-entropy.

    The head starts as the zero-shot class embeddings times CLIP's logit scale, without bias, so that before
    the first step the model is the zero-shot model (Wortsman et al. 2022, arXiv 2109.01903).

    Relatives override :meth:`new_classifier`, :meth:`before_training` or :meth:`loss`.

    Args:
        lr, weight_decay: Of AdamW (.9, .98).
        epochs, batch_size, warmup_steps, schedule: See :class:`rp_lib.trainer.Schedule`.
        seed: Of the order of the batches.
        precision: Of training, see :func:`rp_lib.utils.device.autocast_dtype`.

    Example:
        >>> FineTune(clip, class_names, templates, lr=1e-5, epochs=8).fit(train)  # doctest: +SKIP
    """

    name = "fine-tune"

    lr: float = 3e-5
    weight_decay: float = 0.1
    epochs: int = 25
    batch_size: int = 128
    warmup_steps: int = 0
    schedule: str = "steps"
    seed: int = 1
    precision: str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.training_schedule()  # a bad value is refused now, not when training begins
        self.visual = self.clip.arrange(copy.deepcopy(self.clip.model.visual).requires_grad_(True))
        self.classifier = self.new_classifier().to(self.clip.device)

    def new_classifier(self, bias: bool = False) -> nn.Module:
        """What turns features into logits: (C, d) zero-shot weights at CLIP's logit scale, ``bias`` zero."""
        head = nn.Linear(self.clip.embed_dim, len(self.class_names), bias=bias)
        with torch.no_grad():
            head.weight.copy_(self.clip.logit_scale * self.clip.class_embeddings(self.class_names, self.templates))
            if bias:
                head.bias.zero_()
        return head

    def training_schedule(self) -> Schedule:
        """Return epochs, batch size and the course of the rate."""
        return Schedule(self.epochs, self.batch_size, self.schedule, self.warmup_steps, self.seed, self.precision)

    def parameter_groups(self) -> list[Group]:
        """Return all weights; biases and normalisation gains are not decayed, as in CLIP's own training."""
        trained = [p for p in self.modules().parameters() if p.requires_grad]
        matrices, vectors = [p for p in trained if p.ndim > 1], [p for p in trained if p.ndim <= 1]
        return [Group(matrices, self.lr, self.weight_decay), Group(vectors, self.lr, 0.0)]

    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Scalar loss of a batch on the device: uint8 images (n, 3, h, w), int64 labels (n,); see ``Task.loss``."""
        features = gather(self.encode(inputs), len(labels))
        with in_float32(self.clip.device):
            return F.cross_entropy(self.classifier(features), labels)

    def modules(self) -> nn.ModuleDict:
        """All that is trained."""
        return nn.ModuleDict({"visual": self.visual, "head": self.classifier})

    @property
    def encoders(self) -> tuple[Encoder, ...]:
        """The tuned tower."""
        return (self,)

    def encode(self, images: Tensor) -> Tensor:
        """Unit float32 (n, d) features of the tuned tower."""
        return self.encode_with(self.visual, images)

    def encode_with(self, tower: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        """Unit float32 (n, d) features of uint8 or float images by a tower of this backbone's kind."""
        pixels = self.clip.normalize(self.clip.prepare(images))
        with computing(self.clip.device):
            return F.normalize(encode_image(tower, pixels).float(), dim=-1)

    def head(self, features: Tensor) -> Tensor:
        """The tuned head's logits."""
        return F.linear(features, *(p.detach().cpu() for p in self.classifier.parameters()))
