"""Full fine-tuning of the image tower with a head that starts as the zero-shot classifier."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rp_lib.benchmark import ImageSet
from rp_lib.clip import FrozenCLIP
from rp_lib.features import Encoder, FeatureStore
from rp_lib.methods.base import Method
from rp_lib.trainer import Checkpoint, Group, Schedule, train
from rp_lib.utils.device import computing, in_float32
from rp_lib.utils.distributed import gather


class FineTune(Method):
    """All weights of a copy of the image tower and a linear head, cross-entropy.

    The head starts as the zero-shot class embeddings times CLIP's logit scale, without bias, so that before
    the first step the model is the zero-shot model (Wortsman et al. 2022, arXiv 2109.01903).

    Relatives differ by small overrides: :meth:`new_classifier`, :meth:`start`, :meth:`loss`.

    Args:
        lr, weight_decay: of AdamW (.9, .98). epochs, batch_size, warmup_steps, schedule: see ``Schedule``.
        seed: order of the batches. precision: see :func:`rp_lib.utils.device.autocast_dtype`.
    """

    name = "fine-tune"

    def __init__(
        self,
        clip: FrozenCLIP,
        class_names: Sequence[str],
        templates: Sequence[str],
        *,
        lr: float = 3e-5,
        weight_decay: float = 0.1,
        epochs: int = 25,
        batch_size: int = 128,
        warmup_steps: int = 0,
        schedule: str = "steps",
        seed: int = 1,
        precision: str = "auto",
    ) -> None:
        super().__init__(clip, class_names, templates)
        self.lr, self.weight_decay, self.precision = lr, weight_decay, precision
        self.schedule = Schedule(epochs, batch_size, schedule, warmup_steps, seed, precision)
        self.visual = clip.arrange(copy.deepcopy(clip.model.visual).requires_grad_(True))
        self.classifier = self.new_classifier().to(clip.device)

    def new_classifier(self, bias: bool = False) -> nn.Module:
        """What turns features into logits: (C, d) zero-shot weights at CLIP's logit scale, ``bias`` zero."""
        head = nn.Linear(self.clip.embed_dim, len(self.class_names), bias=bias)
        with torch.no_grad():
            head.weight.copy_(self.clip.logit_scale * self.clip.class_embeddings(self.class_names, self.templates))
            if bias:
                head.bias.zero_()
        return head

    def start(self, train_set: ImageSet, store: FeatureStore | None) -> None:
        """What comes before the first step of training; here nothing. A resumed run does it again."""

    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Scalar loss of a batch on the device: uint8 images (n, 3, h, w), int64 labels (n,); see ``Task.loss``."""
        features = gather(self.encode(inputs), len(labels))
        with in_float32(self.clip.device):
            return F.cross_entropy(self.classifier(features), labels)

    def fit(
        self,
        train_set: ImageSet,
        val: ImageSet | None = None,
        *,
        store: FeatureStore | None = None,
        checkpoint: Path | Checkpoint | None = None,
        progress: str | None = None,
    ) -> Self:
        """Train tower and head."""
        self.check_labels(train_set)
        if store is not None:
            store.drop(self)  # what it remembers was computed with the weights of before
        self.start(train_set, store)
        self.modules().train()
        task = _FineTuneTask(self, val)
        try:
            self.history = train(
                task, train_set.images, train_set.labels, self.schedule, checkpoint=checkpoint, progress=progress,
                content=train_set.content,
            )  # fmt: skip
        finally:
            self.modules().eval()
        return self

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
            return F.normalize(tower(pixels).float(), dim=-1)

    def head(self, features: Tensor) -> Tensor:
        """The tuned head's logits."""
        return F.linear(features, *(p.detach().cpu() for p in self.classifier.parameters()))

    def settings(self) -> dict[str, Any]:
        """Hyper-parameters."""
        s = self.schedule
        return {
            "lr": self.lr, "weight_decay": self.weight_decay, "epochs": s.epochs, "batch_size": s.batch_size,
            "warmup_steps": s.warmup_steps, "schedule": s.kind, "seed": s.seed, "precision": self.precision,
        }  # fmt: skip

    def state_dict(self) -> dict[str, Tensor]:
        """Every weight of the tower, and the head."""
        return self.modules().state_dict()

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Every weight of the tower, and the head."""
        self.modules().load_state_dict(tensors)
        self.modules().eval()


class _FineTuneTask:
    def __init__(self, method: FineTune, val: ImageSet | None) -> None:
        self.method, self.val, self.device = method, val, method.clip.device

    def module(self) -> nn.Module:
        return self.method.modules()

    def groups(self) -> list[Group]:
        m = self.method
        parameters = [p for p in m.modules().parameters() if p.requires_grad]
        # Biases and normalisation gains are not decayed, as in CLIP's own training.
        matrices, vectors = [p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim <= 1]
        return [Group(matrices, m.lr, m.weight_decay), Group(vectors, m.lr, 0.0)]

    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        return self.method.loss(inputs, labels)

    def identity(self) -> str:
        return repr(self.method.metadata())

    def validate(self) -> float | None:
        if self.val is None:
            return None
        self.method.modules().eval()
        value = self.method.accuracy(self.val)
        self.method.modules().train()
        return value
