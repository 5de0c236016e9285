"""Ensembles of zero-shot and fine-tuned CLIP: in the space of weights (WiSE-FT) and of outputs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.func import functional_call

from rp_lib.features import Encoder
from rp_lib.methods.base import Mixture
from rp_lib.methods.fine_tune import FineTune
from rp_lib.methods.zero_shot import ZeroShot
from rp_lib.utils.errors import RPLibError


class FineTuneEnsemble(Mixture):
    """What both ensembles share: a :class:`FineTune`, zero-shot, and ``alpha`` between them.

    Args:
        fine_tuned: The fine-tuned model; it is shared, not copied.
        alpha: Weight of zero-shot, in [0, 1]: 0 is fine-tuned, 1 is zero-shot.

    Raises:
        RPLibError: It is another method, which a saved ensemble could not rebuild; or alpha is not in [0, 1].
    """

    def __init__(self, fine_tuned: FineTune, alpha: float = 0.5) -> None:
        if type(fine_tuned) is not FineTune:
            raise RPLibError(f"{self.name} is made of a {FineTune.name} method, not of {fine_tuned.name!r}")
        super().__init__(fine_tuned, alpha)
        self.fine_tuned, self.zero_shot = fine_tuned, ZeroShot(self.clip, self.class_names, self.templates)


class WiSEFT(FineTuneEnsemble):
    """Weight-space ensemble of tower and head (Wortsman et al. 2022, arXiv 2109.01903).

    ::

        theta = (1 - alpha) * theta_FT + alpha * theta_ZS

    The paper's alpha weighs the fine-tuned weights instead: its alpha is 1 - alpha here. Every alpha between 0 and 1
    is a model of its own, so it costs one encoding; the ends share the encoders of fine-tuning and of zero-shot.

    Example:
        >>> WiSEFT(fine_tuned, alpha=0.5).accuracy(data.test)  # doctest: +SKIP
    """

    name = "wise-ft"

    @property
    def encoders(self) -> tuple[Encoder, ...]:
        """The interpolated tower; at the ends the tower that is there already."""
        if self.alpha == 0:
            return self.fine_tuned.encoders
        return (self.clip,) if self.alpha == 1 else (self,)

    def weights(self) -> dict[str, Tensor]:
        """The interpolated tower's weights and float buffers (running statistics), by name."""
        zero_shot = self.clip.model.visual.state_dict()
        return {
            name: torch.lerp(value, zero_shot[name], self.alpha)
            for name, value in self.fine_tuned.visual.state_dict().items()
            if value.is_floating_point()
        }

    def encode(self, images: Tensor) -> Tensor:
        """Unit float32 (n, d) features of the interpolated tower."""
        # Interpolated anew for every batch: far cheaper than the batch, and no alpha keeps a tower in memory.
        weights, tower = self.weights(), self.fine_tuned.visual
        return self.fine_tuned.encode_with(lambda pixels: functional_call(tower, weights, (pixels,)), images)

    def head(self, features: Tensor) -> Tensor:
        """The interpolated head's logits; zero-shot's head are its class embeddings times CLIP's logit scale."""
        zero_shot = self.clip.logit_scale * self.zero_shot.class_embeddings
        head = torch.lerp(self.fine_tuned.classifier.weight.detach().cpu(), zero_shot, self.alpha)
        return features @ head.T


class LogitEnsemble(FineTuneEnsemble):
    """Output-space ensemble, the other baseline of Wortsman et al. (2022, arXiv 2109.01903).

    ::

        logits = (1 - alpha) * logits_FT + alpha * logits_ZS

    Features are both models' side by side, float32 (n, 2 d), weighed by sqrt(1 - alpha) and sqrt(alpha): they are of
    unit length, and two images' inner product is the same mixture of their cosines in both models. The logits are
    linear in them. Both models' features are computed once; every alpha after that is matrix algebra.

    Example:
        >>> LogitEnsemble(fine_tuned, alpha=0.5).accuracy(data.test)  # doctest: +SKIP
    """

    name = "logit-ensemble"

    def encode_classes(self, words: Sequence[str]) -> Tensor:
        """float32 (k, 2 d): CLIP's embeddings twice, weighed as the features are."""
        embeddings = super().encode_classes(words)
        return self.mix_features(embeddings, embeddings)

    @property
    def encoders(self) -> tuple[Encoder, ...]:
        """The fine-tuned tower and the untouched backbone."""
        return (*self.fine_tuned.encoders, self.clip)

    @property
    def _weights(self) -> tuple[float, float]:
        return (1 - self.alpha) ** 0.5, self.alpha**0.5

    def mix_features(self, *features: Tensor) -> Tensor:
        """Both models' unit features side by side, weighed so that the whole is of unit length: (n, 2 d)."""
        return torch.cat([w * f for w, f in zip(self._weights, features, strict=True)], dim=-1)

    def head(self, features: Tensor) -> Tensor:
        """Mixed logits of float32 (n, 2 d) features."""
        # Both heads are linear: weight times features already weighed gives (1 - alpha) and alpha.
        (w_tuned, w_untouched), (tuned, untouched) = self._weights, features.chunk(2, dim=-1)
        return w_tuned * self.fine_tuned.head(tuned) + w_untouched * self.zero_shot.head(untouched)
