"""Full fine-tuning of the image tower with a head that starts as the zero-shot classifier."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rp_lib.benchmark import ImageSet
from rp_lib.clip import FrozenCLIP
from rp_lib.device import computing, in_float32
from rp_lib.features import Encoder, FeatureStore
from rp_lib.methods.base import Method
from rp_lib.trainer import Group, Schedule, train


class FineTune(Method):
    """All weights of a copy of the image tower and a linear head, cross-entropy.

    The head starts as the zero-shot class embeddings times CLIP's logit scale, without bias, so that before
    the first step the model is the zero-shot model (Wortsman et al. 2022, arXiv 2109.01903).

    Args:
        lr, weight_decay: of AdamW (.9, .98). epochs, batch_size, warmup_steps, schedule: see ``Schedule``.
        seed: order of the batches. precision: see :func:`rp_lib.device.autocast_dtype`.
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
        self.visual = copy.deepcopy(clip.model.visual).requires_grad_(True)
        self.head = nn.Linear(clip.embed_dim, len(self.class_names), bias=False, device=clip.device)
        with torch.no_grad():
            self.head.weight.copy_(clip.logit_scale * clip.class_embeddings(self.class_names, self.templates))

    def fit(
        self,
        train_set: ImageSet,
        val: ImageSet | None = None,
        *,
        store: FeatureStore | None = None,
        checkpoint: Path | None = None,
        progress: str | None = None,
    ) -> Self:
        """Train tower and head."""
        self.accept(train_set)
        self.visual.train()
        task = _FineTuneTask(self, val)
        if store is not None:
            store.forget(self)  # what it remembers was computed with the weights of before
        try:
            self.history = train(
                task, train_set.images, train_set.labels, self.schedule, checkpoint=checkpoint, progress=progress
            )
        finally:
            self.visual.eval()
        return self

    @property
    def encoders(self) -> tuple[Encoder, ...]:
        """The tuned tower."""
        return (self,)

    def encode(self, images: Tensor) -> Tensor:
        """Unit float32 (n, d) features of the tuned tower."""
        pixels = self.clip.normalise(self.clip.prepare(images))
        with computing(self.clip.device):
            return F.normalize(self.visual(pixels).float(), dim=-1)

    def logits_from(self, features: Tensor) -> Tensor:
        """The tuned head's logits."""
        return features @ self.head.weight.detach().cpu().T

    def settings(self) -> dict[str, Any]:
        """Hyper-parameters."""
        s = self.schedule
        return {
            "lr": self.lr, "weight_decay": self.weight_decay, "epochs": s.epochs, "batch_size": s.batch_size,
            "warmup_steps": s.warmup_steps, "schedule": s.kind, "seed": s.seed, "precision": self.precision,
        }  # fmt: skip

    def trained(self) -> dict[str, Tensor]:
        """Every weight of the tower, and the head."""
        return {f"visual.{k}": v for k, v in self.visual.state_dict().items()} | {"head.weight": self.head.weight}

    def load_trained(self, tensors: dict[str, Tensor]) -> None:
        """Every weight of the tower, and the head."""
        self.head.load_state_dict({"weight": tensors["head.weight"]})
        self.visual.load_state_dict({k.removeprefix("visual."): v for k, v in tensors.items() if k != "head.weight"})
        self.visual.eval()


class _FineTuneTask:
    def __init__(self, method: FineTune, val: ImageSet | None) -> None:
        self.method, self.val, self.device = method, val, method.clip.device

    def module(self) -> nn.Module:
        return nn.ModuleDict({"visual": self.method.visual, "head": self.method.head})

    def groups(self) -> list[Group]:
        m = self.method
        parameters = [p for p in (*m.visual.parameters(), *m.head.parameters()) if p.requires_grad]
        # Biases and normalisation gains are not decayed, as in CLIP's own training.
        matrices, vectors = [p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim <= 1]
        return [Group(matrices, m.lr, m.weight_decay), Group(vectors, m.lr, 0.0)]

    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        features = self.method.encode(inputs)
        with in_float32(self.device):
            return F.cross_entropy(self.method.head(features), labels)

    def identity(self) -> str:
        return repr(self.method.metadata())

    def validate(self) -> float | None:
        if self.val is None:
            return None
        self.method.visual.eval()
        value = self.method.accuracy(self.val)
        self.method.visual.train()
        return value
