"""Negative labels: how much of an image's likeness goes to the classes, and how much to other words."""

from __future__ import annotations

import torch
from torch import Tensor

from rp_lib.detectors.base import Detector, NotApplicable, cosines_of
from rp_lib.errors import RPLibError
from rp_lib.outputs import Outputs


class NegativeLabels(Detector):
    """NegLabel (Jiang et al. 2024, arXiv 2403.20078): softmax mass of the classes against groups of negative words.

    For each group of words, the probability of all classes together under a softmax over classes and that group's
    words, at CLIP's logit scale; the score is the mean over groups. Words are put into groups at random, and those
    that fill no group are dropped, as in the released code. With fewer words than ``group_size`` there is one group.

    Args:
        group_size: words per group; the paper has 100 groups of 100. seed: of the grouping.
    """

    name = "neg-label"
    needs = frozenset({"negatives"})

    def __init__(self, group_size: int = 100, seed: int = 0) -> None:
        if group_size < 1:
            raise RPLibError(f"a group needs at least one word, got {group_size}")
        self.group_size, self.seed = group_size, seed

    def confidence(self, outputs: Outputs) -> Tensor:
        """In [0, 1]; defined for methods that classify by similarity."""
        classes, words = cosines_of(outputs, self.name), outputs.negative_cosines
        if words is None and outputs.head.negatives is not None:
            raise NotApplicable(f"{self.name!r} needs features in CLIP's space; this method's are not")
        if words is None:
            raise RPLibError(f"{self.name!r} needs negative words: compute the outputs with `negatives`")
        scale, count = outputs.head.logit_scale, words.shape[1]
        size = min(self.group_size, count)
        order = torch.randperm(count, generator=torch.Generator().manual_seed(self.seed))[: count // size * size]
        positive = torch.logsumexp(scale * classes, 1, keepdim=True)
        negative = torch.logsumexp(scale * words[:, order].unflatten(1, (-1, size)), 2)
        return torch.sigmoid(positive - negative).mean(1)
