"""COOkeD: an ensemble of what three classifiers predict."""

from __future__ import annotations

import torch
from torch import Tensor

from rp_lib.detectors.base import Detector
from rp_lib.errors import RPLibError, UnknownName
from rp_lib.outputs import Outputs

MEMBERS = ("zero-shot", "linear-probe")


class Cooked(Detector):
    """COOkeD (Humblot-Renaux et al. 2025, arXiv 2507.22576): mean probabilities of three classifiers, then a score.

    The classifiers are one trained end to end on the task, zero-shot CLIP at its logit scale, and a linear probe on
    CLIP's features. Here the first is the method at hand: ``cooked`` of ``fine-tune`` is the paper's; of other methods
    it asks what they add to the two CLIP classifiers (of these two themselves, one simply counts twice).

    Args:
        by: ``"entropy"``, as the released demo does, or ``"msp"``; the paper reports both.
    """

    name = "cooked"
    needs = frozenset({"others"})

    def __init__(self, by: str = "entropy") -> None:
        if by not in ("entropy", "msp"):
            raise UnknownName("score of the ensemble", by, ("entropy", "msp"))
        self.by = by

    def confidence(self, outputs: Outputs) -> Tensor:
        """In [-log C, 0] by entropy, in (0, 1] by MSP."""
        missing = [name for name in MEMBERS if name not in outputs.others]
        if missing:
            raise RPLibError(
                f"{self.name!r} needs the logits of {' and '.join(missing)} for the same images: evaluate these "
                "methods too, or compute the outputs with `others`"
            )
        members = [outputs.logits, *(outputs.others[name] for name in MEMBERS)]
        probability = torch.stack([logits.double().softmax(1) for logits in members]).mean(0)
        return probability.amax(1) if self.by == "msp" else -torch.special.entr(probability).sum(1)
