"""Feature drift: how much an adaptation changed the representation. None of these looks at accuracy."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rp_lib.utils.arguments import checked
from rp_lib.utils.errors import RPLibError


@checked
def linear_cka(first: Tensor, second: Tensor) -> float:
    """Compute linear CKA, in [0, 1], of float (n, d) and (n, e) features of the same n pictures.

    Centred kernel alignment, ``|| Y^T X ||_F^2 / (|| X^T X ||_F || Y^T Y ||_F)`` with centred columns (Kornblith et
    al. 2019, arXiv 1905.00414, eq. 5): 1 if one is a rotation and scaling of the other.

    Example:
        >>> x = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 2.0]])
        >>> round(linear_cka(x, 3 * x.flip(1)), 6)
        1.0

    Raises:
        RPLibError: other numbers of pictures, fewer than two, or features that are all alike.
    """
    x, y = _centred(first), _centred(second)
    if len(x) != len(y) or len(x) < 2:
        raise RPLibError(f"CKA needs features of the same two or more pictures, got {len(x)} and {len(y)}")
    scale = (x.T @ x).norm() * (y.T @ y).norm()
    if not bool(scale > 0):
        raise RPLibError("the features are all alike: CKA is not defined")
    return float((y.T @ x).norm() ** 2 / scale)


@checked
def cosine_drift(first: Tensor, second: Tensor) -> np.ndarray:
    """Compute 1 - cosine between two features, float (n, d), of each picture: float64 (n,), 0 unchanged, 2 opposite.

    Raises:
        RPLibError: other shapes.
    """
    if first.shape != second.shape or first.ndim != 2:
        raise RPLibError(f"drift compares features of one space, got {tuple(first.shape)} and {tuple(second.shape)}")
    return (1 - F.cosine_similarity(first.double(), second.double(), dim=1)).numpy()


@checked
def class_spread(features: Tensor, labels: Tensor) -> tuple[float, float]:
    """Compute mean squared distances of unit features to class means, and of these to their mean.

    Args:
        features: float (n, d).
        labels: int64 (n,); classes with one picture count for the second number only.

    Returns:
        (within, between); tight and well separated classes have a small first and a large second number.
    """
    x = F.normalize(features.double(), dim=1)
    classes = labels.unique()
    means = torch.stack([x[labels == c].mean(0) for c in classes])
    spread = (x - means[torch.searchsorted(classes, labels)]).square().sum(1)
    several = torch.isin(labels, classes[torch.stack([(labels == c).sum() for c in classes]) > 1])
    if not bool(several.any()):
        raise RPLibError("every class has one picture: there are no clusters to measure")
    return float(spread[several].mean()), float((means - means.mean(0)).square().sum(1).mean())


def _centred(features: Tensor) -> Tensor:
    if features.ndim != 2:
        raise RPLibError(f"features must have shape (n, d), got {tuple(features.shape)}")
    x = features.double()
    return x - x.mean(0)
