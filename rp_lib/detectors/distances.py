"""Detectors that compare features with those of the training images."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any, Self
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from rp_lib.detectors.base import Detector, NotApplicable, labels_of
from rp_lib.errors import RPLibError
from rp_lib.outputs import Outputs


class _Gaussian:
    """Centres and a metric; pytorch-ood's version works in float32 and multiplies by the precision once per class."""

    def __init__(self, features: Tensor, labels: Tensor) -> None:
        from sklearn.covariance import ledoit_wolf

        classes, index = labels.unique(return_inverse=True)
        total = torch.zeros(len(classes), features.shape[1], dtype=features.dtype).index_add_(0, index, features)
        self.centres = total / index.bincount()[:, None]
        residuals = (features - self.centres[index]).numpy()
        if not residuals.any():
            raise RPLibError("all training features equal their class mean: no covariance can be fitted on them")
        covariance = torch.from_numpy(ledoit_wolf(residuals, assume_centered=True)[0])
        # |z L^-T| with L L^T = covariance is the Mahalanobis length: one product for all classes.
        lower = torch.linalg.cholesky((covariance + covariance.T) / 2)
        self.root = torch.linalg.solve_triangular(lower, torch.eye(len(lower), dtype=lower.dtype), upper=False).T
        self._known: MutableMapping[Outputs, Tensor] = WeakKeyDictionary()

    def nearest(self, outputs: Outputs) -> Tensor:
        """float64 (n,) squared distances to the nearest centre, remembered for as long as the outputs live."""
        if outputs not in self._known:
            features = outputs.features.double() @ self.root
            self._known[outputs] = torch.cdist(features, self.centres @ self.root).amin(1).square()
        return self._known[outputs]


# Two detectors fit the Gaussians of the same training outputs.
_GAUSSIANS: MutableMapping[Outputs, _Gaussian] = WeakKeyDictionary()


def _class_gaussians(train: Outputs, detector: str) -> _Gaussian:
    if train not in _GAUSSIANS:
        _GAUSSIANS[train] = _Gaussian(train.features.double(), labels_of(train, detector))
    return _GAUSSIANS[train]


class Mahalanobis(Detector):
    """Minus half the squared Mahalanobis distance to the nearest class mean (Lee et al. 2018, arXiv 1807.03888).

    One covariance for all classes. With a few hundred images in as many dimensions the sample covariance is (nearly)
    singular, so scikit-learn's Ledoit-Wolf shrinkage (2004) estimates it; with many images that is the sample one.
    """

    name = "mahalanobis"
    needs = frozenset({"train"})

    def fit(self, train: Outputs, val: Outputs | None = None) -> Self:
        """Class means and the shared covariance; classes without an image have no mean."""
        self.gaussian = _class_gaussians(train, self.name)
        return self

    def confidence(self, outputs: Outputs) -> Tensor:
        """At most 0."""
        return -0.5 * self.gaussian.nearest(outputs)


class RelativeMahalanobis(Mahalanobis):
    """Mahalanobis distance to the nearest class minus that to all training data (Ren et al. 2021, arXiv 2106.09022)."""

    name = "relative-mahalanobis"

    def fit(self, train: Outputs, val: Outputs | None = None) -> Self:
        """As :class:`Mahalanobis`, and one Gaussian for all training images."""
        self.background = _Gaussian(train.features.double(), torch.zeros_like(labels_of(train, self.name)))
        return super().fit(train, val)

    def confidence(self, outputs: Outputs) -> Tensor:
        """Any number."""
        return self.background.nearest(outputs) - self.gaussian.nearest(outputs)


class NearestNeighbours(Detector):
    """Minus the distance to the k-th nearest training feature, at unit length (Sun et al. 2022, arXiv 2204.06507).

    Args:
        k: at most the number of training images is used. pytorch-ood's 50 is meant for thousands of images a class;
            ID data alone give nothing to choose k by, so it is small here and fixed beforehand.
    """

    name = "knn"
    needs = frozenset({"train"})

    def __init__(self, k: int = 10) -> None:
        if k < 1:
            raise RPLibError(f"k must be at least 1, got {k}")
        self.k = k

    def fit(self, train: Outputs, val: Outputs | None = None) -> Self:
        """Remember the training features."""
        from pytorch_ood.detector import KNN

        k = min(self.k, len(train))
        self.index = KNN(None, k=k).fit_features(train.features.double(), labels_of(train, self.name))
        return self

    def confidence(self, outputs: Outputs) -> Tensor:
        """In [-2, 0]."""
        return -self.index.predict_features(outputs.features.double())


class VirtualLogit(Detector):
    """ViM (Wang et al. 2022, arXiv 2203.10807): energy of the logits minus a virtual logit.

    The virtual logit is the length of the feature outside the principal subspace of the training features, at the
    scale of the largest logit. pytorch-ood computes it, in float32.

    Args:
        dimensions: of the principal subspace; None = half of the features' or of the images' number, the smaller.
    """

    name = "vim"
    needs = frozenset({"train"})

    def __init__(self, dimensions: int | None = None) -> None:
        self.dimensions = dimensions

    def fit(self, train: Outputs, val: Outputs | None = None) -> Self:
        """The principal subspace and the virtual logit's scale."""
        from pytorch_ood.detector import ViM

        weight, bias = train.head.weight, train.head.bias
        if weight is None or bias is None:
            raise NotApplicable(f"{self.name!r} needs logits that are linear in the features")
        labels, (n, width) = labels_of(train, self.name), train.features.shape
        dimensions = max(1, min(width, n) // 2) if self.dimensions is None else self.dimensions
        if not 0 < dimensions < width:
            raise RPLibError(f"the subspace must have 1 to {width - 1} dimensions, got {dimensions}")
        self.model: Any = ViM(None, d=dimensions, w=weight, b=bias).fit_features(train.features, labels)
        if not np.isfinite(self.model.alpha):
            raise RPLibError(f"{self.name!r} finds no training feature outside the subspace: use fewer dimensions")
        return self

    def confidence(self, outputs: Outputs) -> Tensor:
        """Any number."""
        return -self.model.predict_features(outputs.features)
