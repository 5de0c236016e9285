"""Linear probing: a linear classifier on the frozen image features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rp_lib.features import Encoder
from rp_lib.methods.base import Method
from rp_lib.trainer import Group, Schedule
from rp_lib.utils.distributed import gather


@dataclass(kw_only=True, eq=False, repr=False)
class LinearProbe(Method):
    """Softmax regression on unit features, with bias, trained with Adam as the released code does.

    The encoder is frozen, so its features are computed once; all epochs after that are matrix algebra.

    Args:
        lr, epochs, batch_size, weight_decay: Of Adam, with the stepped schedule of the released code.
        seed: Of the order of the batches.

    Example:
        >>> LinearProbe(clip, class_names, templates, lr=3e-2).fit(train)  # doctest: +SKIP
    """

    name = "linear-probe"
    schedule: ClassVar[str] = "steps"
    optimizer: ClassVar[str] = "adam"
    eps: ClassVar[float] = 1e-8
    device = torch.device("cpu")  # the features are there, and a (d, C) matrix needs no GPU

    lr: float = 1e-2
    epochs: int = 25
    batch_size: int = 128
    weight_decay: float = 0.0
    seed: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.training_schedule()  # a bad value is refused now, not when training begins
        self.classifier = self.new_classifier()

    def new_classifier(self) -> nn.Module:
        """Return what turns features (n, d) into logits (n, C): weight (C, d) and bias (C,), both zero."""
        classifier = nn.Linear(self.clip.embed_dim, len(self.class_names))
        nn.init.zeros_(classifier.weight)
        nn.init.zeros_(classifier.bias)
        return classifier

    def training_schedule(self) -> Schedule:
        """Return epochs, batch size and the course of the rate; in float32, there is nothing to gain from less."""
        return Schedule(self.epochs, self.batch_size, self.schedule, seed=self.seed, precision="float32")

    def modules(self) -> nn.Module:
        """Return the classifier."""
        return self.classifier

    def parameter_groups(self) -> list[Group]:
        """Return all weights of the classifier, with one rate."""
        trained = list(self.classifier.parameters())
        return [Group(trained, self.lr, self.weight_decay, self.optimizer, (0.9, 0.999), self.eps)]

    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Compute the cross-entropy of float32 (n, d) features, a scalar."""
        return F.cross_entropy(gather(self.classifier(inputs), len(labels)), labels)

    @property
    def encoders(self) -> tuple[Encoder, ...]:
        """The frozen backbone."""
        return (self.clip,)

    @torch.no_grad()
    def head(self, features: Tensor) -> Tensor:
        """The classifier's own logits; a probe learns their scale."""
        return self.classifier(features)
