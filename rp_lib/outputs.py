"""Outputs: features and logits of a fitted method for every image of a benchmark, computed once and saved.

Every metric, detector and comparison follows from features and logits, so that evaluating again needs no model:
one file per fitted method and seed holds all image sets, with a header that says what they are.
"""

from __future__ import annotations

import functools
import json
import logging
from collections import UserDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rp_lib.benchmark import OOD_ROLES, Benchmark, ImageSet, mask_logits
from rp_lib.features import FeatureStore
from rp_lib.methods import Method
from rp_lib.negative_labels import NegativeWords
from rp_lib.utils.device import evaluating
from rp_lib.utils.distributed import on_main
from rp_lib.utils.errors import RPLibError
from rp_lib.utils.io import StorageError, load_tensors, save_tensors, seal

FORMAT = "rp_lib outputs 2"
LINEAR = ("features", "scale", "weight", "bias")
BLOCK = 2**18  # numbers of one block of images, 2 MB of float64: what a score computes of them stays in the cache
log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Head:
    """Hold what turns a method's features into its logits, the same for every image set.

    Attributes:
        weight: float32 (C, d) with logits = features @ weight.T + bias; None where that does not hold.
        bias: float32 (C,), or None with it.
        logit_scale: CLIP's factor on cosine similarities.
        negatives: unit float32 (M, d), the embeddings of negative words, or None.

    Example:
        >>> head = Head(2 * torch.eye(3), torch.zeros(3), logit_scale=2.0)
        >>> torch.equal(head.class_embeddings, torch.eye(3)), Head(torch.eye(3), torch.ones(3), 2.0).class_embeddings
        (True, None)
    """

    weight: Tensor | None
    bias: Tensor | None
    logit_scale: float
    negatives: Tensor | None = None

    @functools.cached_property
    def class_embeddings(self) -> Tensor | None:
        """Unit float32 (C, d) of a classifier by similarity, that is a linear one without bias; else None."""
        if self.weight is None or bool(self.bias.abs().max() > 1e-4 * self.weight.norm(dim=1).max()):
            return None
        return F.normalize(self.weight, dim=1)


@dataclass(frozen=True, eq=False)
class _LinearLogits:
    """Logits (n, C) as what they follow from, float32 and to the bit: ``(scale * features) @ weight.T + bias``."""

    features: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor
    ndim: ClassVar[int] = 2

    @staticmethod
    def candidates(method: Method, d: int) -> list[_LinearLogits]:
        """Read off a method's scale, weight and bias, without features, in the two orders that methods multiply in."""
        # Unit vectors times 2^60 give weights to the last digit: no bias is large enough to change any.
        none, long = torch.zeros(1, d), 2.0**60 * torch.eye(d)
        bias, scales = method.head(none)[0], torch.tensor([method.clip.logit_scale, 1.0])
        return [_LinearLogits(none, s, method.head(long / s).T.contiguous() / 2.0**60, bias) for s in scales]

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, rows: slice) -> _LinearLogits:
        return replace(self, features=self.features[rows])


@functools.lru_cache(maxsize=4)  # of the blocks that are being scored
@evaluating()
def _computed(x: _LinearLogits) -> Tensor:
    return F.linear(x.features if x.scale == 1 else x.scale * x.features, x.weight, x.bias if x.bias.any() else None)


def _read(logits: Tensor | _LinearLogits) -> Tensor:
    return _computed(logits) if isinstance(logits, _LinearLogits) else logits


class _Logits:
    """A field of an object that reads as a tensor."""

    def __get__(self, outputs: Outputs | None, owner: type) -> Tensor:
        if outputs is None:
            raise AttributeError("logits")  # the field has no default
        return _read(outputs.__dict__["logits"])

    def __set__(self, outputs: Outputs, logits: Tensor | _LinearLogits) -> None:
        outputs.__dict__["logits"] = logits


class _Others(UserDict[str, Any]):
    """A mapping whose values read as tensors; ``data`` holds them as they are stored."""

    def __getitem__(self, name: str) -> Tensor:
        return _read(self.data[name])


@dataclass(frozen=True, eq=False)
class Outputs:
    """Hold the features and logits of a fitted method for one image set.

    Attributes:
        name: Of the image set.
        role: Of the image set, see :data:`rp_lib.benchmark.ROLES`.
        features: float32 (n, d), of unit length unless a switch of the method says otherwise.
        logits: float32 (n, C), as OOD detection sees them.
        labels: int64 (n,), None for OOD sets.
        sources: int64 (n,), see :class:`rp_lib.benchmark.ImageSet`.
        groups: int64 (n,), see there.
        head: what made the logits.
        derived: whether the images are test images changed; ``sources`` then says of which.
        others: by name of the method, float32 (n, C) logits of other methods for the same images.
        class_subset: ascending class numbers that predictions choose from, see :class:`rp_lib.benchmark.ImageSet`.

    Raises:
        RPLibError: shapes that do not fit.

    Example:
        >>> head, ids = Head(torch.eye(2), torch.zeros(2), logit_scale=1.0), torch.arange(2)
        >>> outputs = Outputs("test", "test", torch.eye(2), torch.eye(2), ids, sources=ids, groups=ids, head=head)
        >>> len(outputs), outputs.reported.argmax(1).tolist(), outputs.cosines.tolist()
        (2, [0, 1], [[1.0, 0.0], [0.0, 1.0]])
    """

    name: str
    role: str
    features: Tensor
    logits: Tensor = cast(Tensor, _Logits())  # noqa: RUF009 - a descriptor
    labels: Tensor | None
    sources: Tensor
    groups: Tensor
    head: Head
    derived: bool = False
    others: Mapping[str, Tensor] = field(default_factory=dict)
    class_subset: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "others", _Others(getattr(self.others, "data", self.others)))
        n = len(self.features)
        matrices = {"features": self.features, "logits": self.__dict__["logits"]}
        matrices |= {f"logits of {name}": logits for name, logits in self.others.data.items()}
        vectors = {"labels": self.labels, "sources": self.sources, "groups": self.groups}
        for what, values, ndim in [(k, v, 2) for k, v in matrices.items()] + [(k, v, 1) for k, v in vectors.items()]:
            if values is not None and (values.ndim != ndim or len(values) != n):
                raise RPLibError(f"the {what} of {self.name!r} must be {ndim}-D with {n} rows, got {values.shape}")

    def __len__(self) -> int:
        return len(self.features)

    @functools.cached_property
    def blocks(self) -> list[Outputs]:
        """The images in runs of some hundreds, as views."""
        negatives = 0 if self.head is None or self.head.negatives is None else len(self.head.negatives)
        classes = _read(self.__dict__["logits"][:1]).shape[1]  # of one image: all logits may be large
        rows = max(64, BLOCK // max(1, self.features.shape[1], classes, negatives))
        # The last block takes what is left: products of a few rows are rounded in another way.
        starts = range(0, max(1, len(self) - rows + 1), rows)
        ranges = [slice(start, end) for start, end in zip(starts, [*starts[1:], None], strict=True)]
        return [self] if len(ranges) == 1 else [self._rows(r) for r in ranges]

    def _rows(self, rows: slice) -> Outputs:
        parts = {k: v[rows] for k, v in self.__dict__.items() if isinstance(v, (Tensor, _LinearLogits))}
        return replace(self, others={k: v[rows] for k, v in self.others.data.items()}, **parts)

    @property
    def correct(self) -> np.ndarray:
        """Whether the reported prediction is the label, bool (n,)."""
        return torch.cat([block.reported.argmax(1) == block.labels for block in self.blocks]).numpy()

    @property
    def reported(self) -> Tensor:
        """float32 (n, C) logits that accuracy and calibration are reported of; -inf outside ``class_subset``."""
        return mask_logits(self.logits, self.class_subset)

    @property
    def cosines(self) -> Tensor | None:
        """float64 (n, C) cosine similarities to the classes, or None if the method does not classify by them."""
        classes = self.head.class_embeddings
        return None if classes is None else F.normalize(self.features.double(), dim=1) @ classes.double().T

    @property
    def negative_cosines(self) -> Tensor | None:
        """float64 (n, M) cosine similarities to the negative words, or None if there are none."""
        negatives = self.head.negatives
        if negatives is not None and negatives.shape[1] != self.features.shape[1]:
            return None  # features that are no point of CLIP's space, such as a logit ensemble's
        return None if negatives is None else F.normalize(self.features.double(), dim=1) @ negatives.double().T


@dataclass(frozen=True, eq=False)
class MethodOutputs:
    """Hold the outputs of one fitted method for a benchmark's image sets.

    Example:
        >>> outputs = compute_outputs(method, benchmark, seed=1)  # doctest: +SKIP
        >>> outputs.test.logits.argmax(1) == outputs.test.labels  # doctest: +SKIP

    Attributes:
        about: the header: method, settings, seed, alpha, class_names, templates, backbone and benchmark with their
            fingerprints, trained_on, convention, negative_words, ...
        sets: by name.
    """

    about: dict[str, Any]
    sets: dict[str, Outputs]

    @property
    def method(self) -> str:
        """The method's name."""
        return self.about["method"]

    @property
    def seed(self) -> int:
        """The seed it was fitted with."""
        return self.about["seed"]

    def of_role(self, *roles: str) -> dict[str, Outputs]:
        """The image sets of these roles, by name."""
        return {name: outputs for name, outputs in self.sets.items() if outputs.role in roles}

    @property
    def test(self) -> Outputs:
        """The ID test set."""
        return self._one("test")

    @property
    def train(self) -> Outputs:
        """The training set."""
        return self._one("train")

    @property
    def val(self) -> Outputs | None:
        """The ID validation set, if it is there."""
        return next(iter(self.of_role("val").values()), None)

    @property
    def shifts(self) -> dict[str, Outputs]:
        """The shifted sets, by name."""
        return self.of_role("shift")

    @property
    def controls(self) -> dict[str, Outputs]:
        """The labelled sets beside the shifts that are none, by name."""
        return self.of_role("control")

    @property
    def ood(self) -> dict[str, Outputs]:
        """The OOD sets, by name."""
        return self.of_role(*OOD_ROLES)

    def _one(self, role: str) -> Outputs:
        found = self.of_role(role)
        if len(found) != 1:
            raise RPLibError(f"the outputs of {self.method!r} hold {len(found)} {role} sets, one is needed")
        return next(iter(found.values()))


def save_outputs(path: str | Path, outputs: MethodOutputs) -> None:
    """Write all image sets of a fitted method into one sealed safetensors file, atomically."""
    heads = {id(s.head): s.head for s in outputs.sets.values()}
    if len(heads) != 1:
        raise RPLibError("image sets of one fitted method are needed, at least one; these have several heads or none")
    (head,) = heads.values()
    tensors = {f"head/{k}": getattr(head, k) for k in ("weight", "bias", "negatives")}
    for name, s in outputs.sets.items():
        tensors |= {f"{name}/{key}": getattr(s, key) for key in ("features", "labels", "sources", "groups")}
        logits = {f"{name}/logits": s.__dict__["logits"], **{f"{name}/others/{k}": v for k, v in s.others.data.items()}}
        for key, found in logits.items():
            linear = isinstance(found, _LinearLogits)
            tensors |= {f"{key}/{part}": getattr(found, part) for part in LINEAR} if linear else {key: found}
    # What image sets or methods share is stored once.
    first: dict[tuple[Any, ...], str] = {}
    same = {k: first.setdefault((t.data_ptr(), t.shape), k) for k, t in tensors.items() if t is not None}
    tensors = {key: tensors[key] for key in first.values()}
    sets = [
        {"name": s.name, "role": s.role, "n": len(s), "derived": s.derived, "among": s.class_subset}
        for s in outputs.sets.values()
    ]
    same = {key: of for key, of in same.items() if of != key}
    about = json.loads(json.dumps({**outputs.about, "format": FORMAT, "sets": sets, "same": same}))
    on_main(lambda: save_tensors(Path(path), tensors, {**about, "sha256": seal(tensors, about)}))


def load_outputs(path: str | Path, benchmark: Benchmark | None = None) -> MethodOutputs:
    """Read what :func:`save_outputs` wrote.

    Args:
        path: The file.
        benchmark: If given, must be the one that the outputs are of.

    Raises:
        StorageError: The file is missing, damaged or altered.
        RPLibError: It holds something else.
    """
    tensors, about = load_tensors(Path(path))
    if about.get("half_precision") or any(key.endswith("/reported_logits") for key in tensors):
        raise RPLibError(f"{path} holds scores of the released detection script, saved by 0.1.0; compute it again")
    if about.get("format") not in (FORMAT, "rp_lib outputs 1"):  # the older ones hold all logits
        raise RPLibError(f"{path} holds no outputs saved by this version of rp_lib; compute them again")
    if about.pop("sha256", None) != seal(tensors, about):
        raise StorageError(f"{path} was altered since it was saved (its SHA-256 differs); compute it again")
    if benchmark is not None and about["benchmark_sha256"] != benchmark.fingerprint:
        raise RPLibError(
            f"{path} holds outputs for another version of the benchmark {about['benchmark']!r}; compute them again"
        )
    tensors |= {key: tensors[of] for key, of in about.pop("same", {}).items()}

    def logits(key: str) -> Tensor | _LinearLogits:
        return tensors[key] if key in tensors else _LinearLogits(*(tensors[f"{key}/{part}"] for part in LINEAR))

    head = Head(
        *(tensors.get(f"head/{k}") for k in ("weight", "bias")), logit_scale=about["logit_scale"],
        negatives=tensors.get("head/negatives"),
    )  # fmt: skip
    sets = {}
    for stored in about.pop("sets"):
        name = stored["name"]
        parts = {k: tensors.get(f"{name}/{k}") for k in ("features", "labels", "sources", "groups")}
        parts["logits"] = logits(f"{name}/logits")
        others = {other: logits(f"{name}/others/{other}") for other in about["others"]}
        subset = stored.get("among")  # absent in files of before it existed
        sets[name] = Outputs(name, stored["role"], **parts, head=head, derived=stored["derived"], others=others,
                             class_subset=None if subset is None else tuple(subset))  # fmt: skip
    return MethodOutputs(about, sets)


def check_comparable(outputs: Collection[MethodOutputs]) -> None:
    """Raise ``RPLibError`` unless all outputs are of the same benchmark."""
    if len({o.about["benchmark_sha256"] for o in outputs}) > 1:
        raise RPLibError("these outputs are of different benchmarks or versions of one; compute them on the same")


@torch.no_grad()
@evaluating()
def compute_outputs(
    method: Method,
    benchmark: Benchmark,
    *,
    seed: int,
    store: FeatureStore | None = None,
    roles: Collection[str] | None = None,
    others: Mapping[str, Method] | None = None,
    negatives: NegativeWords | None = None,
    progress: bool = False,
) -> MethodOutputs:
    """Compute features and logits of a fitted method for a benchmark; every encoder sees every image once.

    Args:
        method: A fitted method.
        benchmark: The images.
        seed: What the method was fitted with.
        store: Features that are there already; what is computed here is added.
        roles: Of the sets to compute; None takes all.
        others: Fitted methods whose logits detectors need next to the method's own, by name; COOkeD takes
            ``zero-shot`` and ``linear-probe``.
        negatives: Negative words, from :func:`rp_lib.negative_labels.mine_negative_words`.
        progress: Whether to show bars.

    Raises:
        RPLibError: Two image sets have the same name, or the classes of the benchmark are not the method's. In another
            order they are read by name.
    """
    store = store or FeatureStore()
    if not method.is_fitted:
        log.warning("%s was never fitted: its outputs are those of its start", method.name)
    for name, other in (others or {}).items():
        if other.class_names != method.class_names:
            raise RPLibError(f"{name} and {method.name} have other classes or another order of them; build both alike")
    config = getattr(getattr(method, "rp", method), "config", None)
    images = [s for s in benchmark.sets if roles is None or s.role in roles]
    if not images:
        raise RPLibError(f"benchmark {benchmark.name!r} has no set of the roles {list(roles or ())}: see ROLES")
    if len({s.name for s in images}) != len(images):
        raise RPLibError(f"two image sets of benchmark {benchmark.name!r} have the same name; rename one")

    linear: dict[Method, list[_LinearLogits]] = {}

    def outputs_of(by: Method, data: ImageSet) -> tuple[Tensor, Tensor | _LinearLogits]:
        label = f"{by.name}: {data.name}" if progress else None
        features = by.mix_features(*(store.get(e, data, label) for e in by.encoders))
        logits = by.head(features)
        linear[by] = linear.get(by) or _LinearLogits.candidates(by, features.shape[1])
        tried = (replace(parts, features=features) for parts in linear[by])
        return features, next((found for found in tried if torch.equal(_read(found), logits)), logits)

    features = {data.name: outputs_of(method, data) for data in images}
    first, logits = next(iter(features.values()))
    head = head_of(method, first, _read(logits), negatives)
    sets = {}
    for data in images:
        read = data.for_classes(method.class_names)
        sets[data.name] = Outputs(
            data.name, data.role, *features[data.name], read.labels, data.sources, data.groups, head,
            derived=data.derived_from is not None,
            others={name: outputs_of(other, data)[1] for name, other in (others or {}).items()},
            class_subset=read.class_subset,
        )  # fmt: skip
    about = {
        **method.metadata(), "format": FORMAT, "seed": seed, "alpha": getattr(method, "alpha", None),
        "convention": getattr(config, "convention", "id-positive"), "logit_scale": head.logit_scale,
        "benchmark": benchmark.name, "benchmark_sha256": benchmark.fingerprint,
        "others": sorted(others or {}), "negative_words": None if negatives is None else negatives.about(),
    }  # fmt: skip
    return MethodOutputs(json.loads(json.dumps(about)), sets)


def head_of(method: Method, features: Tensor, logits: Tensor, negatives: NegativeWords | None = None) -> Head:
    """Find weight and bias from what the method makes of the zero and of the unit vectors, if its logits are linear.

    Args:
        method: A fitted method.
        features: float32 (n, d), of some images.
        logits: float32 (n, C), of the same.
        negatives: Negative words that detectors compare with.
    """
    bias = method.head(torch.zeros(1, features.shape[1]))[0]
    weight = (method.head(torch.eye(features.shape[1])) - bias).T.contiguous()
    error = (features @ weight.T + bias - logits).abs().max()
    linear = bool(error <= 1e-4 * logits.abs().max())
    embeddings = None if negatives is None else negatives.embeddings
    parts = (weight, bias) if linear else (None, None)
    return Head(*parts, logit_scale=method.clip.logit_scale, negatives=embeddings)
