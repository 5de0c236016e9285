"""L2-SP: fine-tuning with a penalty towards the start (Xuhong et al. 2018, arXiv 1802.01483)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rp_lib.benchmark import ImageSet
from rp_lib.clip import FrozenCLIP
from rp_lib.features import FeatureStore
from rp_lib.methods.fine_tune import FineTune
from rp_lib.methods.linear_probe import LinearProbe
from rp_lib.utils.device import in_float32
from rp_lib.utils.errors import RPLibError


class L2SP(FineTune):
    """Full fine-tuning whose loss has one more term.

    ::

        tower_penalty / 2 * |w - w_0|^2 + head_penalty / 2 * |v - v_0|^2

    w are all weights of the image tower, v those of the head. The paper pulls every weight that has a pre-trained
    counterpart towards it and only a head without one towards zero. Here the head has one, the zero-shot
    classifier, so it is pulled towards that, with a strength of its own. The strengths are the paper's alpha and beta;
    ``alpha`` means the share of zero-shot everywhere in this library. As in the paper the penalty takes
    the place of weight decay (0 by default) and is part of the loss, so that AdamW rescales its gradient too.

    Args:
        tower_penalty, head_penalty: >= 0; both 0 give :class:`FineTune`. settings: as :class:`FineTune` takes them.

    Raises:
        RPLibError: a penalty is negative or not finite.
    """

    name = "l2-sp"

    def __init__(
        self,
        clip: FrozenCLIP,
        class_names: Sequence[str],
        templates: Sequence[str],
        *,
        tower_penalty: float = 0.1,
        head_penalty: float = 0.01,
        weight_decay: float = 0.0,
        **settings: Any,
    ) -> None:
        if not (0 <= tower_penalty < float("inf") and 0 <= head_penalty < float("inf")):
            raise RPLibError(f"penalties must be finite and >= 0, got {tower_penalty} and {head_penalty}")
        super().__init__(clip, class_names, templates, weight_decay=weight_decay, **settings)
        self.tower_penalty, self.head_penalty = tower_penalty, head_penalty
        self._head_start = self.classifier.weight.detach().clone()

    def penalty(self) -> Tensor:
        """The two terms, a float32 scalar; its gradient is ``penalty * (weight - start)``."""
        # The frozen backbone itself holds the start: no copy is needed.
        pairs = zip(self.visual.parameters(), self.clip.model.visual.parameters(), strict=True)
        tower = torch.stack([(now - start).square().sum() for now, start in pairs]).sum()
        head = (self.classifier.weight - self._head_start).square().sum()
        return self.tower_penalty / 2 * tower + self.head_penalty / 2 * head

    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy plus the penalty."""
        cross_entropy = super().loss(inputs, labels)
        with in_float32(self.clip.device):
            return cross_entropy + self.penalty()


# LP-FT: linear probing, then full fine-tuning (Kumar et al. 2022, arXiv 2202.10054).


class LPFT(FineTune):
    """Full fine-tuning from the head of a :class:`LinearProbe`, bias and learnt scale included.

    A head that already fits the features lets the tower move less, and so distorts less of what it knows.
    ``fit`` trains the probe on cached features first; before it the head is the zero-shot classifier.

    Args:
        probe_lr, probe_epochs, probe_weight_decay: of the probe; it shares batch size and seed.
        settings: of the fine-tuning, as :class:`FineTune` takes them; ``epochs=0`` leaves the probe.
    """

    name = "lp-ft"

    def __init__(
        self,
        clip: FrozenCLIP,
        class_names: Sequence[str],
        templates: Sequence[str],
        *,
        probe_lr: float = 1e-2,
        probe_epochs: int = 25,
        probe_weight_decay: float = 0.0,
        **settings: Any,
    ) -> None:
        super().__init__(clip, class_names, templates, **settings)
        self.probe_lr, self.probe_epochs, self.probe_weight_decay = probe_lr, probe_epochs, probe_weight_decay
        self._probed = False

    def new_classifier(self, bias: bool = True) -> nn.Module:
        """A linear head with bias, as the probe's."""
        return super().new_classifier(bias)

    def before_training(self, train_set: ImageSet, store: FeatureStore) -> None:
        """Probe the frozen backbone and take over the head; a second ``fit`` goes on with the tuned one instead."""
        if self._probed:
            return
        probe = LinearProbe(
            self.clip, self.class_names, self.templates, lr=self.probe_lr, epochs=self.probe_epochs,
            batch_size=self.batch_size, weight_decay=self.probe_weight_decay, seed=self.seed,
        )  # fmt: skip
        self.classifier.load_state_dict(probe.fit(train_set, store=store).state_dict())
        self._probed = True

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Every weight of the tower, and the head with its bias."""
        super().load_state_dict(tensors)
        self._probed = True
