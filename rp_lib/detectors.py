"""Confidence scores of an OOD detector: higher means more like the ID data."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import MutableMapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Self
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from rp_lib.outputs import MethodOutputs, Outputs
from rp_lib.stats import Interval, wilson_interval
from rp_lib.utils.arrays import Array, check_array
from rp_lib.utils.errors import RPLibError, UnknownName


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


# The small interface that every OOD detector implements.

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


# Detectors that read the logits (or the cosine similarities) of one image and learn nothing.
#
# pytorch-ood computes the scores; its sign is turned, because there a high score means OOD. It is imported at the first
# use: that takes seconds.

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


# Detectors that compare features with those of the training images.

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


# COOkeD: an ensemble of what three classifiers predict.

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


# Negative labels: how much of an image's likeness goes to the classes, and how much to other words.

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


# OOD detectors, all behind :class:`~rp_lib.detectors.Detector`; they read saved outputs and no images.

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


# A threshold to deploy: fitted on ID validation scores, judged by what it does on test data.

CONVENTION = "id-positive"


@dataclass(frozen=True)
class ThresholdReport:
    """What a threshold does on data it was not fitted on; fractions, with 95 % Wilson intervals.

    ``tpr`` is the share of ID test images accepted (``aimed`` is what was aimed at), ``fpr`` that of OOD images.
    Wilson's interval takes images as independent; where several show one picture, expect more spread.
    """

    aimed: float
    tpr: Interval
    fpr: Interval
    n_test: int
    n_ood: int
    convention: str = CONVENTION

    def __str__(self) -> str:
        def percent(i: Interval) -> str:
            return f"{100 * i.value:.1f} % [{100 * i.low:.1f}, {100 * i.high:.1f}]"

        return (
            f"aimed at TPR {100 * self.aimed:g} %, reached {percent(self.tpr)} on {self.n_test} ID test images; FPR "
            f"{percent(self.fpr)} on {self.n_ood} OOD images ({self.convention}, 95 % intervals)"
        )


@dataclass(frozen=True)
class Threshold:
    """Accept an image as ID if its score is at least ``value``.

    The TPR on new data is not the one aimed at. If validation and new scores are exchangeable and have no ties, the
    TPR of a threshold at the k-th smallest of n validation scores is Beta(n + 1 - k, k) distributed over validation
    sets: its mean is (n + 1 - k) / (n + 1), with n = 200 and 95 % its standard deviation is 1.5 points. If the images
    of validation and use differ (other designers, another camera), nothing is promised: see :meth:`report`.

    Attributes:
        value: the threshold, in the unit of the scores.
        tpr: what was aimed at. n: number of validation scores. convention: ID positive, accept score >= value.
    """

    value: float
    tpr: float
    n: int
    convention: str = CONVENTION

    def __post_init__(self) -> None:
        if not np.isfinite(self.value) or not 0 < self.tpr <= 1 or self.n < 1 or self.convention != CONVENTION:
            raise RPLibError(
                f"a threshold is finite, with 0 < tpr <= 1, n >= 1 and the convention {CONVENTION!r}; got {self}"
            )

    @classmethod
    def fit(cls, id_validation_scores: Any, tpr: float = 0.95) -> Self:
        """The largest threshold that accepts at least ``tpr`` of the ID validation scores (n,), higher = more ID.

        Raises:
            ValueError: no scores, or NaN. RPLibError: ``tpr`` outside (0, 1], or the threshold would be infinite.
        """
        scores = check_array(id_validation_scores, "id_validation_scores")
        if not 0 < tpr <= 1:
            raise RPLibError(f"tpr must be a fraction in (0, 1], got {tpr}: write 0.95 for 95 %")
        descending, n = np.sort(scores)[::-1], len(scores)
        # Ties with the threshold are accepted too, so the share at this score is at least that of its rank.
        reached = np.arange(1, n + 1) / n >= tpr
        return cls(float(descending[np.argmax(reached)]), tpr, n)

    def accept(self, scores: Any) -> Array:
        """Bool (n,): which scores count as ID; NaN raises ``ValueError``."""
        return check_array(scores, "scores") >= self.value

    def report(self, test_scores: Any, ood_scores: Any) -> ThresholdReport:
        """TPR reached on ID test scores (n,) and FPR on OOD scores (m,), with intervals."""
        tests, oods = self.accept(test_scores), self.accept(ood_scores)
        intervals = (wilson_interval(int(a.sum()), len(a)) for a in (tests, oods))
        return ThresholdReport(self.tpr, *intervals, n_test=len(tests), n_ood=len(oods))

    def to_json(self) -> str:
        """One line; :meth:`from_json` gives back an equal threshold."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Inverse of :meth:`to_json`.

        Raises:
            RPLibError: the text is no threshold.
        """
        try:
            fields = json.loads(text)
            return cls(float(fields["value"]), float(fields["tpr"]), int(fields["n"]), fields["convention"])
        except (ValueError, KeyError, TypeError) as error:
            raise RPLibError(f"this is no saved threshold ({error!r}): fit one again") from error
