"""Linear probing: a linear classifier on the frozen image features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rp_lib.clip import FrozenCLIP
from rp_lib.features import Encoder
from rp_lib.methods.base import Method
from rp_lib.trainer import Group, Schedule
from rp_lib.utils.distributed import gather


class LinearProbe(Method):
    """Softmax regression on unit features, with bias, trained with Adam as the released code does.

    The encoder is frozen, so its features are computed once; all epochs after that are matrix algebra.

    Args:
        lr, epochs, batch_size, weight_decay: of Adam, with the stepped schedule of the released code.
        seed: order of the batches.
    """

    name = "linear-probe"
    checkpoint_every = 20
    device = torch.device("cpu")  # the features are there, and a (d, C) matrix needs no GPU

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

    def training_schedule(self) -> Schedule:
        """Return the released code's steps; in float32, there is nothing to gain from less."""
        return Schedule(self.epochs, self.batch_size, "steps", seed=self.seed, precision="float32")

    def modules(self) -> nn.Module:
        """Return the classifier: weight (C, d) and bias (C,)."""
        return self.classifier

    def parameter_groups(self) -> list[Group]:
        """Return weight and bias, with Adam."""
        return [Group(list(self.classifier.parameters()), self.lr, self.weight_decay, "adam", (0.9, 0.999))]

    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Compute the cross-entropy of float32 (n, d) features, a scalar."""
        return F.cross_entropy(gather(self.classifier(inputs), len(labels)), labels)

    @property
    def encoders(self) -> tuple[Encoder, ...]:
        """The frozen backbone."""
        return (self.clip,)

    def head(self, features: Tensor) -> Tensor:
        """The probe's own logits; their scale is learnt."""
        return F.linear(features, self.classifier.weight.detach(), self.classifier.bias.detach())
