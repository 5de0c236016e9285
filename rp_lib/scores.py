"""Confidence scores of an OOD detector: higher means more like the ID data."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from rp_lib.errors import RPLibError


def maximum_softmax_probability(logits: Tensor, *, half: bool = False) -> np.ndarray:
    """MSP (Hendrycks and Gimpel 2017, arXiv 1610.02136): float64 (n,) in (0, 1] of float (n, C) logits.

    With ``half`` the probabilities are rounded to float16, as the released detection script leaves them: values
    within 2**-12 of 1 become exactly 1 and tie.

    Raises:
        RPLibError: a logit is NaN.
    """
    if bool(logits.isnan().any()):
        raise RPLibError("the logits hold NaN: the backbone or the trained method is damaged; train it again")
    probability = logits.double().softmax(1).amax(1)
    return (probability.half() if half else probability).double().numpy()
