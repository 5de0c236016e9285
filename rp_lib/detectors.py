"""OOD detectors: confidence that an image is like the ID data, from a method's outputs; and a threshold on it.

A higher score means more in-distribution (ID). Those that learn nothing are functions under ``@formula``; the others
are classes. :func:`build_detector` makes each of them by name. All compute in float64: float32 ties nearly saturated
probabilities.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, MutableMapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Self
from weakref import WeakKeyDictionary

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rp_lib.outputs import MethodOutputs, Outputs
from rp_lib.stats import Interval, wilson_interval
from rp_lib.utils.arguments import checked
from rp_lib.utils.arrays import Array, check_array
from rp_lib.utils.errors import RPLibError, UnknownName

GROUP = 100  # words of a group of NegLabel
BLOCK = 1024  # training images that are read at once
PRODUCTS = 2**25  # similarities of images to training images that are there at once, 128 MB: bounds memory


class NotApplicable(RPLibError):
    """The detector is not defined for this method, say because it needs class embeddings and there are none."""


def _unit(features: Tensor) -> Tensor:
    return F.normalize(features.double(), dim=1)


class Detector(ABC):
    """Score the images of a method's outputs: the higher, the more in-distribution.

    Attributes:
        name: What records call it.
        needs: Beyond logits and features of the images at hand: ``"train"``, labelled outputs of the training set;
            ``"others"``, logits of other methods; ``"negatives"``, embeddings of negative words.

    Example:
        >>> detector = build_detector("mahalanobis").fit(outputs.train)  # doctest: +SKIP
        >>> detector.score(outputs.test).mean() > detector.score(outputs.ood["far"]).mean()  # doctest: +SKIP
        True
    """

    name: ClassVar[str]
    needs: ClassVar[frozenset[str]] = frozenset()

    def fit(self, train: Outputs) -> Self:
        """Learn from the outputs of the training set; nothing to do for most detectors.

        Raises:
            RPLibError: Labels or features are missing.
            NotApplicable: The detector is not defined for this method.
        """
        return self

    def score(self, outputs: Outputs) -> np.ndarray:
        """Compute float64 (n,) confidences, higher = more ID.

        Raises:
            RPLibError: NaN in the outputs or in the score, or outputs that lack what the detector ``needs``.
            NotApplicable: The detector is not defined for this method.
        """
        scores = []
        for block in outputs.blocks:
            for what, values in (("features", block.features), ("logits", block.logits)):
                # A sum that is a number says that all are, in a fraction of the time.
                if bool(values.sum().isnan()) and bool(values.isnan().any()):
                    raise RPLibError(
                        f"the {what} of {outputs.name!r} hold NaN: the backbone or the method is damaged; train it "
                        "again"
                    )
            scores.append(np.asarray(self.confidence(block), dtype=np.float64))
            if np.isnan(scores[-1]).any():
                raise RPLibError(f"{self.name!r} gives NaN on {outputs.name!r}: what it was fitted on is degenerate")
        return np.concatenate(scores)

    @abstractmethod
    def confidence(self, outputs: Outputs) -> Tensor | np.ndarray:
        """Compute :meth:`score` of a block of images, without its checks."""


def cosines_of(outputs: Outputs, detector: str) -> Tensor:
    """Return float64 (n, C) cosine similarities to the classes; raise :class:`NotApplicable` if there are none."""
    cosines = outputs.cosines
    if cosines is None:
        raise NotApplicable(
            f"{detector!r} needs a method that classifies by similarity to class embeddings; this one does not"
        )
    return cosines


def labels_of(train: Outputs, detector: str) -> Tensor:
    """Return int64 (n,) labels to fit on; raise ``RPLibError`` if there are none."""
    if train.labels is None or not len(train):
        raise RPLibError(f"{detector!r} is fitted on labelled ID images; {train.name!r} has none")
    return train.labels


def detection_scores(detector: Detector, outputs: MethodOutputs) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Fit a detector if it needs that, then score the ID test set and every OOD set, by name (float64 each)."""
    if "train" in detector.needs:
        detector.fit(outputs.train)
    return detector.score(outputs.test), {name: detector.score(ood) for name, ood in outputs.ood.items()}


DETECTORS: dict[str, type[Detector]] = {}  # by name; filled below, in the order of tables


def register(detector: type[Detector]) -> type[Detector]:
    """Put a detector into :data:`DETECTORS`."""
    DETECTORS[detector.name] = detector
    return detector


def build_detector(name: str) -> Detector:
    """Build a detector by its name, a key of :data:`DETECTORS`; not yet fitted.

    Example:
        >>> build_detector("knn").needs
        frozenset({'train'})
    """
    if name not in DETECTORS:
        raise UnknownName("detector", name, DETECTORS)
    return DETECTORS[name]()


def formula(name: str, *needs: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make a function of outputs the detector ``name``, which learns nothing."""

    def registered(function: Callable[..., Any]) -> Callable[..., Any]:
        parts = {
            "name": name,
            "needs": frozenset(needs),
            "confidence": lambda self, outputs: function(outputs),
            "__doc__": function.__doc__,
        }
        register(type(function.__name__, (Detector,), parts))
        return function

    return registered


# --- Formulas; z are the logits of an image, p its softmax probabilities ----------------------------------------------


def maximum_softmax_probability(logits: Tensor) -> np.ndarray:
    """Compute MSP, max p (Hendrycks and Gimpel 2017, arXiv 1610.02136): float64 (n,) in (0, 1].

    Args:
        logits: float (n, C).

    Raises:
        RPLibError: A logit is NaN.

    Example:
        >>> maximum_softmax_probability(torch.tensor([[0.0, 0.0], [100.0, 0.0]])).tolist()
        [0.5, 1.0]
    """
    if bool(logits.isnan().any()):
        raise RPLibError("the logits hold NaN: the backbone or the trained method is damaged; train it again")
    return logits.double().softmax(1).amax(1).numpy()


@formula("msp")
def _msp(outputs: Outputs) -> np.ndarray:
    """Compute max p, see :func:`maximum_softmax_probability`."""
    return maximum_softmax_probability(outputs.logits)


@formula("mcm")
def _mcm(outputs: Outputs) -> Tensor:
    """Compute max softmax(cosines), MCM (Ming et al. 2022, arXiv 2211.13445), at the paper's temperature 1."""
    return cosines_of(outputs, "mcm").softmax(1).amax(1)


@formula("max-logit")
def _max_logit(outputs: Outputs) -> Tensor:
    """Compute max z (Hendrycks et al. 2022, arXiv 1911.11132)."""
    return outputs.logits.amax(1).double()


@formula("energy")
def _energy(outputs: Outputs) -> Tensor:
    """Compute logsumexp z, the negative energy (Liu et al. 2020, arXiv 2010.03759), at the paper's temperature 1."""
    return outputs.logits.double().logsumexp(1)


@formula("entropy")
def _entropy(outputs: Outputs) -> Tensor:
    """Compute sum p log p, as in Chan et al. 2021 (arXiv 2012.06575)."""
    return -torch.special.entr(outputs.logits.double().softmax(1)).sum(1)


@formula("gen")
def _gen(outputs: Outputs) -> Tensor:
    """Compute -sum p^0.1 (1 - p)^0.1 over all classes, GEN (Liu, Lochman and Zach, CVPR 2023).

    Of ImageNet's 1000 classes the paper takes the 100 with the largest p. Libraries clip p at 1e-7, so that nearly
    saturated predictions tie; here 1 - p of the largest is the sum of the others, which keeps its digits.
    """
    p = outputs.logits.double().softmax(1)  # (n, C)
    first = p.argmax(1, keepdim=True)
    rest = (1 - p).scatter(1, first, p.scatter(1, first, 0).sum(1, keepdim=True))
    return -(p * rest).pow(0.1).sum(1)


# --- Detectors that compare features with those of the training images ------------------------------------------------


class _Gaussian:
    """Class centres and one covariance for all classes, from features of any number: sums over blocks of them."""

    def __init__(self, features: Tensor, labels: Tensor) -> None:
        # The mean of each class that has an image.
        classes, index = labels.unique(return_inverse=True)
        n, d = features.shape
        blocks = list(zip(features.split(BLOCK), index.split(BLOCK), strict=True))
        total = torch.zeros(len(classes), d, dtype=torch.float64)
        for block, of in blocks:
            total.index_add_(0, of, block.double())
        self.centres = total / index.bincount()[:, None]
        # What is left of each feature x: the sums of x x^T and of |x|^4.
        scatter, fourth = torch.zeros(d, d, dtype=torch.float64), 0.0
        for block, of in blocks:
            residuals = block.double() - self.centres[of]
            scatter += residuals.T @ residuals
            fourth += float(residuals.square().sum(1).square().sum())
        if not scatter.any():
            raise RPLibError("all training features equal their class mean: no covariance can be fitted on them")
        # |z L^-T| with L L^T = covariance is the Mahalanobis length: one product for all classes.
        lower, failed = torch.linalg.cholesky_ex(_shrunk_covariance(scatter, fourth, n))
        if failed:
            raise RPLibError(
                f"the covariance of {n} training features is singular: train on more pictures, or take a "
                "detector without a covariance"
            )
        self.root = torch.linalg.solve_triangular(lower, torch.eye(d, dtype=lower.dtype), upper=False).T
        self._whitened = self.centres @ self.root
        self._known: MutableMapping[Outputs, Tensor] = WeakKeyDictionary()

    def nearest(self, outputs: Outputs) -> Tensor:
        """Compute float64 (n,) squared distances to the nearest centre, kept for as long as the outputs live."""
        if outputs not in self._known:
            features = outputs.features.double() @ self.root
            self._known[outputs] = torch.cdist(features, self._whitened).amin(1).square()
        return self._known[outputs]


def _shrunk_covariance(scatter: Tensor, fourth: float, n: int) -> Tensor:
    """Shrink the covariance of n centred x (Ledoit and Wolf 2004) from sums of x x^T, float64 (d, d), and of |x|^4."""
    d = len(scatter)
    sample = (scatter + scatter.T) / (2 * n)
    scale = sample.trace() / d
    # Squared distances over d: of the sample covariance to the target, and to the true one as far as chance goes.
    far = (sample.square().sum() - d * scale.square()) / d
    chance = torch.minimum((fourth / n - sample.square().sum()) / (n * d), far)
    share = float(chance / far) if chance > 0 else 0.0
    return (1 - share) * sample + share * scale * torch.eye(d, dtype=torch.float64)


# Two detectors fit the Gaussians of the same training outputs.
_GAUSSIANS: MutableMapping[Outputs, _Gaussian] = WeakKeyDictionary()


def _class_gaussians(train: Outputs, detector: str) -> _Gaussian:
    if train not in _GAUSSIANS:
        _GAUSSIANS[train] = _Gaussian(train.features, labels_of(train, detector))
    return _GAUSSIANS[train]


@register
class Mahalanobis(Detector):
    """Minus half the squared Mahalanobis distance to the nearest class mean (Lee et al. 2018, arXiv 1807.03888).

    One covariance for all classes. With a few hundred images in as many dimensions the sample covariance is (nearly)
    singular, so it is shrunk as in Ledoit and Wolf (2004); with many images that is the sample one.

    Example:
        >>> scores = Mahalanobis().fit(outputs.train).score(outputs.test)  # doctest: +SKIP
    """

    name = "mahalanobis"
    needs = frozenset({"train"})

    def fit(self, train: Outputs) -> Self:
        """Fit class means and the shared covariance; classes without an image have no mean."""
        self.gaussian = _class_gaussians(train, self.name)
        return self

    def confidence(self, outputs: Outputs) -> Tensor:
        """Compute scores of at most 0."""
        return -0.5 * self.gaussian.nearest(outputs)


@register
class RelativeMahalanobis(Mahalanobis):
    """Mahalanobis distance to the nearest class minus that to all training data (Ren et al. 2021, arXiv 2106.09022).

    Example:
        >>> scores = RelativeMahalanobis().fit(outputs.train).score(outputs.test)  # doctest: +SKIP
    """

    name = "relative-mahalanobis"

    def fit(self, train: Outputs) -> Self:
        """Fit as :class:`Mahalanobis`, and one Gaussian to all training images."""
        self.background = _Gaussian(train.features, torch.zeros_like(labels_of(train, self.name)))
        return super().fit(train)

    def confidence(self, outputs: Outputs) -> Tensor:
        """Compute scores without bounds."""
        return self.background.nearest(outputs) - self.gaussian.nearest(outputs)


@register
class NearestNeighbours(Detector):
    """Minus the distance to the k-th nearest training feature, at unit length (Sun et al. 2022, arXiv 2204.06507).

    k is a tenth of the median class size, from 1 to 50: the neighbours of an ID image are then of its class. The
    paper's 50 is meant for thousands of images a class; 10 where classes have 6 to 8 costs 3 points of AUROC.

    Example:
        >>> scores = NearestNeighbours().fit(outputs.train).score(outputs.test)  # doctest: +SKIP
    """

    name = "knn"
    needs = frozenset({"train"})

    def fit(self, train: Outputs) -> Self:
        """Keep the training features, and choose k."""
        sizes = labels_of(train, self.name).unique(return_counts=True)[1]
        self.k = min(50, max(1, int(sizes.median()) // 10))
        self.known = torch.cat([_unit(block).float() for block in train.features.split(BLOCK)])
        self.train = train.features
        return self

    def confidence(self, outputs: Outputs) -> Tensor:
        """Compute scores in [-2, 0]: float32 finds the candidates, float64 decides between those that it ties."""
        rows = max(1, PRODUCTS // len(self.known))
        return -torch.cat([self._distances(_unit(block)) for block in outputs.features.split(rows)])

    def _distances(self, images: Tensor) -> Tensor:
        count = min(self.k + 14, len(self.known))
        similarity, index = (images.float() @ self.known.T).topk(count)  # (n, k + 14), falling
        # A product of two unit vectors of d numbers in float32 is off by at most d + 4 roundings, in any order.
        unsure = 2 * (images.shape[1] + 4) * 2.0**-24
        gap = similarity - similarity[:, self.k - 1 : self.k]
        distance = torch.full_like(gap, torch.inf, dtype=torch.float64).masked_fill_(gap > unsure, -torch.inf)
        of, column = (gap.abs() <= unsure).nonzero(as_tuple=True)
        distance[of, column] = (images[of] - _unit(self.train[index[of, column]])).norm(dim=1)
        found = distance.kthvalue(self.k, dim=1).values
        # Where even the last candidate is too near to call, others may be as near: all are compared.
        for i in (gap[:, -1] >= -unsure).nonzero()[:, 0] if count < len(self.known) else ():
            near = torch.cat([(_unit(block) - images[i]).norm(dim=1) for block in self.train.split(BLOCK)])
            found[i] = near.kthvalue(self.k).values
        return found


@register
class VirtualLogit(Detector):
    """ViM (Wang et al. 2022, arXiv 2203.10807): energy of the logits minus a virtual logit.

    The virtual logit is the length of the feature outside the principal subspace of the training features, at the
    scale of the largest logit. The subspace has half of the features' or of the images' number of dimensions, the
    smaller.

    Example:
        >>> scores = VirtualLogit().fit(outputs.train).score(outputs.test)  # doctest: +SKIP
    """

    name = "vim"
    needs = frozenset({"train"})

    def fit(self, train: Outputs) -> Self:
        """Fit the principal subspace and the virtual logit's scale."""
        weight, bias, labels = train.head.weight, train.head.bias, labels_of(train, self.name)
        if weight is None or bias is None:
            raise NotApplicable(f"{self.name!r} needs logits that are linear in the features")
        # The origin is where all logits are zero, as nearly as can be.
        self.origin = -torch.linalg.pinv(weight.double()) @ bias.double()  # (d,)
        d, blocks = train.features.shape[1], train.features.split(BLOCK)
        dimensions = max(1, min(d, len(labels)) // 2)
        scatter = torch.zeros(d, d, dtype=torch.float64)
        for block in blocks:
            x = block.double() - self.origin  # (n, d)
            scatter += x.T @ x
        # Eigenvectors come by rising eigenvalue: all but the last ones are outside the subspace.
        self.outside = torch.linalg.eigh(scatter)[1][:, :-dimensions]  # (d, d - dimensions)
        residual = torch.cat([self._residual(block) for block in blocks]).mean()
        if not residual > 0:
            raise NotApplicable(f"{self.name!r} finds no training feature outside the subspace: give more images")
        self.scale = torch.cat([block.logits.amax(1) for block in train.blocks]).double().mean() / residual
        return self

    def _residual(self, features: Tensor) -> Tensor:
        return ((features.double() - self.origin) @ self.outside).norm(dim=1)

    def confidence(self, outputs: Outputs) -> Tensor:
        """Compute scores without bounds."""
        return outputs.logits.double().logsumexp(1) - self.scale * self._residual(outputs.features)


# --- Formulas that need negative words or other methods ---------------------------------------------------------------


@formula("neg-label", "negatives")
def _neg_label(outputs: Outputs) -> Tensor:
    """Compute the softmax mass of classes against negative words, NegLabel (Jiang et al. 2024, arXiv 2403.20078).

    The mean over groups of the probability of all classes together, under a softmax over classes and that group's
    words at CLIP's logit scale. Words are put into groups of 100 at random, and those that fill no group are dropped,
    as in the released code; the paper has 100 groups of 100. With fewer words there is one group.
    """
    classes, words = cosines_of(outputs, "neg-label"), outputs.negative_cosines
    if words is None and outputs.head.negatives is not None:
        raise NotApplicable("'neg-label' needs features in CLIP's space; this method's are not")
    if words is None:
        raise RPLibError("'neg-label' needs negative words: compute the outputs with `negatives`")
    scale, count = outputs.head.logit_scale, words.shape[1]
    size = min(GROUP, count)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))[: count // size * size]
    positive = torch.logsumexp(scale * classes, 1, keepdim=True)  # (n, 1)
    negative = torch.logsumexp(scale * words[:, order].unflatten(1, (-1, size)), 2)  # (n, groups)
    return torch.sigmoid(positive - negative).mean(1)


MEMBERS = ("zero-shot", "linear-probe")


@formula("cooked", "others")
def _cooked(outputs: Outputs) -> Tensor:
    """Compute sum p log p of the mean p of three classifiers, COOkeD (Humblot-Renaux et al. 2025, arXiv 2507.22576).

    The classifiers are one trained end to end on the task, zero-shot CLIP at its logit scale, and a linear probe on
    CLIP's features. Here the first is the method at hand: ``cooked`` of ``fine-tune`` is the paper's; of other methods
    it asks what they add to the two CLIP classifiers (of these two themselves, one counts twice).
    """
    missing = [name for name in MEMBERS if name not in outputs.others]
    if missing:
        raise RPLibError(
            f"'cooked' needs the logits of {' and '.join(missing)} for the same images: evaluate these methods too, or "
            "compute the outputs with `others`"
        )
    members = [outputs.logits, *(outputs.others[name] for name in MEMBERS)]
    probability = torch.stack([logits.double().softmax(1) for logits in members]).mean(0)
    return -torch.special.entr(probability).sum(1)


# --- A threshold to deploy, fitted on ID validation scores ------------------------------------------------------------

CONVENTION = "id-positive"


@dataclass(frozen=True)
class ThresholdReport:
    """What a threshold does on data it was not fitted on; fractions, with 95 % Wilson intervals.

    ``tpr`` is the share of ID test images accepted (``aimed`` is what was aimed at), ``fpr`` that of OOD images.
    Wilson's interval takes images as independent; where several show one picture, expect more spread.

    Example:
        >>> print(Threshold.fit([0.1, 0.2, 0.3, 0.4], tpr=0.75).report([0.15, 0.25, 0.3, 0.5], [0.1, 0.3]))
        aimed at TPR 75 %, reached 75.0 % [30.1, 95.4] on 4 ID test images; FPR 50.0 % [9.5, 90.5] on 2 OOD images \
(id-positive, 95 % intervals)
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
        value: The threshold, in the unit of the scores.
        tpr: What was aimed at.
        n: Number of validation scores.
        convention: ID positive, accept score >= value.

    Example:
        >>> threshold = Threshold.fit([0.1, 0.2, 0.3, 0.4], tpr=0.75)
        >>> threshold.value, threshold.accept([0.15, 0.25]).tolist()
        (0.2, [False, True])
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
    @checked
    def fit(cls, id_validation_scores: Any, tpr: float = 0.95) -> Self:
        """Take the largest threshold that accepts at least ``tpr`` of the ID validation scores (n,), higher = more ID.

        Raises:
            ValueError: No scores, or NaN.
            RPLibError: ``tpr`` outside (0, 1], or the threshold would be infinite.
        """
        scores = check_array(id_validation_scores, "id_validation_scores")
        descending, n = np.sort(scores)[::-1], len(scores)
        # Ties with the threshold are accepted too, so the share at this score is at least that of its rank.
        reached = np.arange(1, n + 1) / n >= tpr
        return cls(float(descending[np.argmax(reached)]), tpr, n)

    def accept(self, scores: Any) -> Array:
        """Say which scores count as ID, bool (n,); NaN raises ``ValueError``."""
        return check_array(scores, "scores") >= self.value

    def report(self, test_scores: Any, ood_scores: Any) -> ThresholdReport:
        """Measure the TPR reached on ID test scores (n,) and FPR on OOD scores (m,), with intervals."""
        tests, oods = self.accept(test_scores), self.accept(ood_scores)
        intervals = (wilson_interval(int(a.sum()), len(a)) for a in (tests, oods))
        return ThresholdReport(self.tpr, *intervals, n_test=len(tests), n_ood=len(oods))

    def to_json(self) -> str:
        """Write one line; :meth:`from_json` gives back an equal threshold."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what :meth:`to_json` wrote.

        Raises:
            RPLibError: The text is no threshold.
        """
        try:
            fields = json.loads(text)
            return cls(float(fields["value"]), float(fields["tpr"]), int(fields["n"]), fields["convention"])
        except (ValueError, KeyError, TypeError) as error:
            raise RPLibError(f"this is no saved threshold ({error!r}): fit one again") from error
