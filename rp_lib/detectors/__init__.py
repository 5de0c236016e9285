"""OOD detectors, all behind :class:`~rp_lib.detectors.base.Detector`; they read saved outputs and no images."""

from __future__ import annotations

from typing import Any

from rp_lib.detectors.base import Detector, NotApplicable, detection_scores
from rp_lib.detectors.distances import Mahalanobis, NearestNeighbours, RelativeMahalanobis, VirtualLogit
from rp_lib.detectors.ensemble import Cooked
from rp_lib.detectors.logits import (
    DeltaEnergy,
    Energy,
    Entropy,
    GeneralizedEntropy,
    MaximumConceptMatching,
    MaximumSoftmaxProbability,
    MaxLogit,
)
from rp_lib.detectors.words import NegativeLabels
from rp_lib.errors import UnknownName

DETECTORS: dict[str, type[Detector]] = {
    d.name: d
    for d in (
        MaximumSoftmaxProbability,
        MaximumConceptMatching,
        MaxLogit,
        Energy,
        Entropy,
        GeneralizedEntropy,
        Mahalanobis,
        RelativeMahalanobis,
        NearestNeighbours,
        VirtualLogit,
        NegativeLabels,
        DeltaEnergy,
        Cooked,
    )
}


def build_detector(name: str, **options: Any) -> Detector:
    """A detector by name, not yet fitted; ``options`` as its class takes them."""
    if name not in DETECTORS:
        raise UnknownName("detector", name, DETECTORS)
    return DETECTORS[name](**options)


__all__ = ["DETECTORS", "Detector", "NotApplicable", "build_detector", "detection_scores"]
