"""Detectors that read the logits (or the cosine similarities) of one image and learn nothing.

pytorch-ood computes the scores; its sign is turned, because there a high score means OOD. It is imported at the first
use: that takes seconds.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from rp_lib.detectors.base import Detector, cosines_of
from rp_lib.errors import RPLibError
from rp_lib.outputs import Outputs
from rp_lib.scores import maximum_softmax_probability


class MaximumSoftmaxProbability(Detector):
    """MSP (Hendrycks and Gimpel 2017, arXiv 1610.02136): the largest predicted probability."""

    name = "msp"

    def confidence(self, outputs: Outputs) -> np.ndarray:
        """In (0, 1]; rounded to float16 where the released script's switch is on."""
        return maximum_softmax_probability(outputs.logits, half=outputs.head.half_precision)


class MaximumConceptMatching(Detector):
    """MCM (Ming et al. 2022, arXiv 2211.13445): the largest softmax probability over cosine similarities.

    Args:
        temperature: what cosines are divided by; the paper's 1. At 1 / CLIP's logit scale MCM is MSP, and as it
            grows the order of the images tends to that of the largest minus the mean cosine.
    """

    name = "mcm"

    def __init__(self, temperature: float = 1.0) -> None:
        if not temperature > 0:
            raise RPLibError(f"the temperature must be positive, got {temperature}")
        self.temperature = temperature

    def confidence(self, outputs: Outputs) -> Tensor:
        """In (0, 1]; defined for methods that classify by similarity."""
        from pytorch_ood.detector import MaxSoftmax

        return -MaxSoftmax.score(cosines_of(outputs, self.name), t=self.temperature)


class MaxLogit(Detector):
    """The largest logit (Hendrycks et al. 2022, arXiv 1911.11132)."""

    name = "max-logit"

    def confidence(self, outputs: Outputs) -> Tensor:
        """Any number."""
        from pytorch_ood.detector import MaxLogit as Score

        return -Score.score(outputs.logits.double())


class Energy(Detector):
    """Negative energy, T logsumexp(logits / T) (Liu et al. 2020, arXiv 2010.03759).

    Args:
        temperature: T; the paper's 1.
    """

    name = "energy"

    def __init__(self, temperature: float = 1.0) -> None:
        if not temperature > 0:
            raise RPLibError(f"the temperature must be positive, got {temperature}")
        self.temperature = temperature

    def confidence(self, outputs: Outputs) -> Tensor:
        """Any number, at least the largest logit."""
        from pytorch_ood.detector import EnergyBased

        return -EnergyBased.score(outputs.logits.double(), t=self.temperature)


class Entropy(Detector):
    """Negative Shannon entropy of the predicted probabilities (as in Chan et al. 2021, arXiv 2012.06575).

    pytorch-ood clips probabilities at 1e-7 inside the logarithm.
    """

    name = "entropy"

    def confidence(self, outputs: Outputs) -> Tensor:
        """In [-log C, 0]."""
        from pytorch_ood.detector import Entropy as Score

        return -Score.score(outputs.logits.double())


class GeneralizedEntropy(Detector):
    """GEN (Liu, Lochman and Zach, CVPR 2023): minus the mean of p^gamma (1 - p)^gamma over the largest M probabilities.

    The paper sums; the mean orders images the same. pytorch-ood clips probabilities to [1e-7, 1 - 1e-7], so that
    nearly saturated predictions tie.

    Args:
        gamma: the paper's 0.1. top: M, None = all classes (the paper uses 100 of ImageNet's 1000).
    """

    name = "gen"

    def __init__(self, gamma: float = 0.1, top: int | None = None) -> None:
        self.gamma, self.top = gamma, top

    def confidence(self, outputs: Outputs) -> Tensor:
        """At most 0."""
        from pytorch_ood.detector import GEN

        return -GEN.score(outputs.logits.double(), gamma=self.gamma, M=self.top)


class DeltaEnergy(Detector):
    """Energy change when the largest cosine similarity is lowered to zero (Zhu et al. 2025, arXiv 2510.11296).

    ``E1 - E0`` with ``E = -logsumexp(logits)``, E0 of the logits as they are, E1 with the largest set to 0. This is the
    score as the paper's abstract describes it; its equations were not at hand, so two details are unverified: that
    the "low value" is 0, and that energies are taken at CLIP's logit scale. The paper crops the top c similarities; how
    their changes are combined is not known here, and c = 1 is the case in which every reading is the same.

    At CLIP's logit scale exp(0) is small beside the other classes' terms, and the score nears -log(1 - MSP): expect
    the figures of MSP.
    """

    name = "delta-energy"

    def confidence(self, outputs: Outputs) -> Tensor:
        """Any number; positive unless the largest logit is negative."""
        logits = outputs.logits.double()
        lowered = logits.scatter(1, logits.argmax(1, keepdim=True), 0.0)
        return torch.logsumexp(logits, 1) - torch.logsumexp(lowered, 1)
