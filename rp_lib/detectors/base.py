"""The small interface that every OOD detector implements."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Self

import numpy as np
from torch import Tensor

from rp_lib.errors import RPLibError
from rp_lib.outputs import MethodOutputs, Outputs


class NotApplicable(RPLibError):
    """The detector is not defined for this method, say because it needs class embeddings and there are none."""


class Detector(ABC):
    """Confidence that an image is ID, from a method's saved outputs.

    Attributes:
        name: what records call it.
        needs: beyond logits and features of the images at hand: ``"train"``, labelled outputs of the training set;
            ``"others"``, logits of other methods; ``"negatives"``, embeddings of negative words.
    """

    name: ClassVar[str]
    needs: ClassVar[frozenset[str]] = frozenset()

    def fit(self, train: Outputs, val: Outputs | None = None) -> Self:
        """Learn from ID data; nothing to do for most detectors.

        Raises:
            RPLibError: labels or features are missing. NotApplicable: not defined for this method.
        """
        return self

    def score(self, outputs: Outputs) -> np.ndarray:
        """float64 (n,) confidences, higher = more ID.

        Raises:
            RPLibError: NaN in the outputs or in the score, or outputs that lack what the detector ``needs``.
            NotApplicable: not defined for this method.
        """
        for what, values in (("features", outputs.features), ("logits", outputs.logits)):
            if bool(values.isnan().any()):
                raise RPLibError(
                    f"the {what} of {outputs.name!r} hold NaN: the backbone or the method is damaged; train it again"
                )
        scores = np.asarray(self.confidence(outputs), dtype=np.float64)
        if np.isnan(scores).any():
            raise RPLibError(f"{self.name!r} gives NaN on {outputs.name!r}: what it was fitted on is degenerate")
        return scores

    @abstractmethod
    def confidence(self, outputs: Outputs) -> Tensor | np.ndarray:
        """:meth:`score` without its checks."""


def cosines_of(outputs: Outputs, detector: str) -> Tensor:
    """float64 (n, C) cosine similarities to the classes; raise :class:`NotApplicable` if there are none."""
    cosines = outputs.cosines
    if cosines is None:
        raise NotApplicable(
            f"{detector!r} needs a method that classifies by similarity to class embeddings; this one does not"
        )
    return cosines


def labels_of(train: Outputs, detector: str) -> Tensor:
    """int64 (n,) labels to fit on; raise ``RPLibError`` if there are none."""
    if train.labels is None or not len(train):
        raise RPLibError(f"{detector!r} is fitted on labelled ID images; {train.name!r} has none")
    return train.labels


def detection_scores(detector: Detector, outputs: MethodOutputs) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Fit a detector if it needs that, then float64 scores of the ID test set and of every OOD set by name."""
    if "train" in detector.needs:
        detector.fit(outputs.train, outputs.val)
    return detector.score(outputs.test), {name: detector.score(ood) for name, ood in outputs.ood.items()}
