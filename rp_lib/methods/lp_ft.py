"""LP-FT: linear probing, then full fine-tuning (Kumar et al. 2022, arXiv 2202.10054)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from rp_lib.benchmark import ImageSet
from rp_lib.clip import FrozenCLIP
from rp_lib.features import FeatureStore
from rp_lib.methods.fine_tune import FineTune
from rp_lib.methods.linear_probe import LinearProbe


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

    def new_head(self, bias: bool = True) -> nn.Module:
        """A linear head with bias, as the probe's."""
        return super().new_head(bias)

    def start(self, train_set: ImageSet, store: FeatureStore | None) -> None:
        """Probe the frozen backbone and take over the head; a second ``fit`` goes on with the tuned one instead."""
        if self._probed:
            return
        probe = LinearProbe(
            self.clip, self.class_names, self.templates, lr=self.probe_lr, epochs=self.probe_epochs,
            batch_size=self.schedule.batch_size, weight_decay=self.probe_weight_decay, seed=self.schedule.seed,
        )  # fmt: skip
        self.head.load_state_dict(probe.fit(train_set, store=store).trained())
        self._probed = True

    def settings(self) -> dict[str, Any]:
        """Hyper-parameters."""
        names = ("probe_lr", "probe_epochs", "probe_weight_decay")
        return {**super().settings(), **{name: getattr(self, name) for name in names}}

    def load_trained(self, tensors: dict[str, Tensor]) -> None:
        """Every weight of the tower, and the head with its bias."""
        super().load_trained(tensors)
        self._probed = True
