"""Predictions among some of the classes: for image sets that show some only and are scored over these."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rp_lib.errors import RPLibError


def among_only(logits: Tensor, among: tuple[int, ...] | None) -> Tensor:
    """Logits (n, C) with those outside the class numbers ``among`` at minus infinity; None changes nothing.

    Softmax over the result is softmax over these classes, and the largest logit is the largest of theirs.

    Raises:
        RPLibError: a class number without a logit.
    """
    if among is None:
        return logits
    if among[-1] >= logits.shape[1]:
        raise RPLibError(f"there are {logits.shape[1]} logits, none of class {among[-1]} that is to be scored")
    kept = torch.full_like(logits, -torch.inf)
    kept[:, list(among)] = logits[:, list(among)]
    return kept


def check_among(among: Sequence[int], labels: Tensor | None, name: str) -> tuple[int, ...]:
    """Class numbers in ascending order, for an image set ``name`` with int64 ``labels`` (n,).

    Raises:
        RPLibError: a set without labels, no numbers, one twice or below 0, or a label that is not among them.
    """
    numbers = tuple(sorted(int(c) for c in among))
    if labels is None:
        raise RPLibError(f"{name!r} has no labels, so no prediction is made among classes")
    if not numbers or numbers[0] < 0 or len(set(numbers)) != len(numbers):
        raise RPLibError(f"{name!r} must be scored among distinct class numbers from 0, at least one")
    outside = sorted(set(labels.unique().tolist()) - set(numbers))
    if outside:
        raise RPLibError(f"{name!r} has the label {outside[0]}, which is not among the classes it is scored over")
    return numbers
