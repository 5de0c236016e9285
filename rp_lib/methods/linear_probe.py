"""Linear probing: a linear classifier on the frozen image features."""

from __future__ import annotations

from collections.abc import Sequence
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
from rp_lib.utils.distributed import gather


class LinearProbe(Method):
    """Softmax regression on unit features, with bias, trained with Adam as the released code does.

    The encoder is frozen, so its features are computed once; all epochs after that are matrix algebra.

    Args:
        lr, epochs, batch_size, weight_decay: of Adam, with the stepped schedule of the released code.
        seed: order of the batches.
    """

    name = "linear-probe"

    def __init__(
        self,
        clip: FrozenCLIP,
        class_names: Sequence[str],
        templates: Sequence[str],
        *,
        lr: float = 1e-2,
        epochs: int = 25,
        batch_size: int = 128,
        weight_decay: float = 0.0,
        seed: int = 1,
    ) -> None:
        super().__init__(clip, class_names, templates)
        self.lr, self.epochs, self.batch_size, self.weight_decay, self.seed = lr, epochs, batch_size, weight_decay, seed
        self.classifier = nn.Linear(clip.embed_dim, len(self.class_names))
        nn.init.zeros_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)

    def fit(
        self,
        train_set: ImageSet,
        val: ImageSet | None = None,
        *,
        store: FeatureStore | None = None,
        checkpoint: Path | Checkpoint | None = None,
        progress: str | None = None,
    ) -> Self:
        """Train on cached features; float32 throughout, there is nothing to gain from less."""
        self.check_labels(train_set)
        store = store or FeatureStore()
        schedule = Schedule(self.epochs, self.batch_size, "steps", seed=self.seed, precision="float32")
        features, labels = store.get(self.clip, train_set), train_set.labels
        task = _ProbeTask(self, val, store)
        self.history = train(
            task, features, labels, schedule, checkpoint=checkpoint, checkpoint_every=20, progress=progress
        )
        return self

    @property
    def encoders(self) -> tuple[Encoder, ...]:
        """The frozen backbone."""
        return (self.clip,)

    def head(self, features: Tensor) -> Tensor:
        """The probe's own logits; their scale is learnt."""
        return F.linear(features, self.classifier.weight.detach(), self.classifier.bias.detach())

    def settings(self) -> dict[str, Any]:
        """Hyper-parameters."""
        names = ("lr", "epochs", "batch_size", "weight_decay", "seed")
        return {name: getattr(self, name) for name in names}

    def state_dict(self) -> dict[str, Tensor]:
        """Weight (C, d) and bias (C,)."""
        return self.classifier.state_dict()

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Weight (C, d) and bias (C,)."""
        self.classifier.load_state_dict(tensors)


class _ProbeTask:
    device = torch.device("cpu")  # the features are there, and a (d, C) matrix needs no GPU

    def __init__(self, probe: LinearProbe, val: ImageSet | None, store: FeatureStore) -> None:
        self.probe, self.val, self.store = probe, val, store

    def module(self) -> nn.Module:
        return self.probe.classifier

    def groups(self) -> list[Group]:
        p = self.probe
        return [Group(list(p.classifier.parameters()), p.lr, p.weight_decay, "adam", (0.9, 0.999))]

    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(gather(self.probe.classifier(inputs), len(labels)), labels)

    def identity(self) -> str:
        return repr(self.probe.metadata())

    def validate(self) -> float | None:
        return None if self.val is None else self.probe.accuracy(self.val, self.store)
