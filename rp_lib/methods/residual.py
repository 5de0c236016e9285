"""Residual Reprogrammer (RRP), Geng and Chen 2024, arXiv 2403.10800."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch.nn.functional as F
from torch import Tensor

from rp_lib.benchmark import ImageSet
from rp_lib.checkpoints import Checkpoint
from rp_lib.clip import FrozenCLIP
from rp_lib.features import Encoder, FeatureStore
from rp_lib.methods.base import Method
from rp_lib.methods.reprogrammer import Reprogrammer, through_half
from rp_lib.presets import PAPER, Reprogramming, check_alpha


class ResidualReprogrammer(Method):
    """RRP: at inference, a share ``alpha`` of the untouched CLIP's features is mixed back in, on both sides.

    The mixed features are::

        f = (1 - alpha) * f_RP + alpha * f_ZS

    Nothing more is trained than RP; ``alpha = 0`` is RP and ``alpha = 1`` is zero-shot.

    Args:
        config, seed, precision: of the reprogrammer inside. alpha: overrides ``config.alpha``, in [0, 1].
    """

    name = "rrp"

    def __init__(
        self,
        clip: FrozenCLIP,
        class_names: Sequence[str],
        templates: Sequence[str],
        config: Reprogramming = PAPER,
        *,
        alpha: float | None = None,
        seed: int = 1,
        precision: str = "auto",
    ) -> None:
        super().__init__(clip, class_names, templates)
        self.rp = Reprogrammer(clip, class_names, templates, config, seed=seed, precision=precision)
        self.alpha = check_alpha(config.alpha if alpha is None else alpha)
        self._zero_shot = clip.class_embeddings(self.class_names, self.templates).cpu()

    @classmethod
    def of(cls, rp: Reprogrammer, alpha: float | None = None) -> ResidualReprogrammer:
        """The residual of a trained reprogrammer, sharing its program."""
        made = cls.__new__(cls)  # __init__ would build a second reprogrammer
        Method.__init__(made, rp.clip, rp.class_names, rp.templates)
        made.rp, made.history, made.trained_on = rp, rp.history, rp.trained_on
        made.alpha = check_alpha(rp.config.alpha if alpha is None else alpha)
        made._zero_shot = rp.clip.class_embeddings(rp.class_names, rp.templates).cpu()
        return made

    def at(self, alpha: float) -> ResidualReprogrammer:
        """The same programs at another alpha; costs no encoding."""
        made = self.copy()
        made.alpha = check_alpha(alpha)
        return made

    def fit(
        self,
        train_set: ImageSet,
        val: ImageSet | None = None,
        *,
        store: FeatureStore | None = None,
        checkpoint: Path | Checkpoint | None = None,
        progress: str | None = None,
    ) -> Self:
        """Train the reprogrammer inside."""
        self.rp.fit(train_set, val, store=store, checkpoint=checkpoint, progress=progress)
        self.history, self.trained_on = self.rp.history, self.rp.trained_on
        return self

    @property
    def encoders(self) -> tuple[Encoder, ...]:
        """RP's encoder and the untouched backbone."""
        return (*self.rp.encoders, self.clip)

    def _mix(self, programmed: Tensor, zero_shot: Tensor) -> Tensor:
        mixed = (1 - self.alpha) * programmed + self.alpha * zero_shot
        return F.normalize(mixed, dim=-1) if self.rp.config.renormalise_residual else mixed

    def combine(self, *features: Tensor) -> Tensor:
        """Mix of programmed and untouched image features; of unit length unless the switch says otherwise."""
        programmed, zero_shot = features
        return self._mix(programmed, zero_shot)

    def class_embeddings(self) -> Tensor:
        """Mix of programmed and untouched prompt features, float32 (C, d)."""
        return self._mix(self.rp.class_embeddings(), self._zero_shot)

    def word_embeddings(self, words: Sequence[str]) -> Tensor:
        """Mix of programmed and untouched embeddings of any class names."""
        return self._mix(self.rp.word_embeddings(words), super().word_embeddings(words))

    def logits_from(self, features: Tensor) -> Tensor:
        """Inner products of mixed features, times CLIP's logit scale."""
        logits = self.clip.logit_scale * features @ self.class_embeddings().T
        return through_half(logits) if self.rp.as_detector and self.rp.config.half_precision_detection else logits

    def for_detection(self) -> Method:
        """See :meth:`Reprogrammer.for_detection`."""
        seen = self.rp.for_detection()
        if seen is self.rp:
            return self
        made = self.copy()
        made.rp = seen  # type: ignore[assignment]
        return made

    def settings(self) -> dict[str, Any]:
        """RP's settings and alpha."""
        return {**self.rp.settings(), "alpha": self.alpha}

    def trained(self) -> dict[str, Tensor]:
        """RP's programs."""
        return self.rp.trained()

    def load_trained(self, tensors: dict[str, Tensor]) -> None:
        """RP's programs."""
        self.rp.load_trained(tensors)
