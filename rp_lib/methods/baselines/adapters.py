"""Classifiers that start from zero-shot CLIP and are trained on its frozen features, in seconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rp_lib.benchmark import ImageSet
from rp_lib.clip import FrozenCLIP
from rp_lib.features import FeatureStore
from rp_lib.methods.linear_probe import LinearProbe


def _zero_shot(method: LinearProbe) -> Tensor:
    """Return the zero-shot classifier, unit float32 (C, d) on the CPU."""
    return method.clip.class_embeddings(method.class_names, method.templates).cpu()


class ZeroShotProbe(LinearProbe):
    """Linear probe without bias whose weights start as the zero-shot classifier, at CLIP's logit scale.

    The start is that of fine-tuning's head (Wortsman et al. 2022, arXiv 2109.01903); the image tower stays frozen.

    Args:
        lr, epochs, batch_size, weight_decay, seed: As :class:`~rp_lib.methods.linear_probe.LinearProbe` takes them.

    Example:
        >>> probe = ZeroShotProbe(clip, class_names, templates, lr=1e-2).fit(train)  # doctest: +SKIP
    """

    name = "zs-lp"

    def new_classifier(self) -> nn.Module:
        """Return the zero-shot classifier as a linear layer, float32 weight (C, d)."""
        classifier = nn.Linear(self.clip.embed_dim, len(self.class_names), bias=False)
        with torch.no_grad():
            classifier.weight.copy_(self.clip.logit_scale * _zero_shot(self))
        return classifier


class _Prototypes(nn.Module):
    """Cosine similarity to ``start + scale * residual``, times CLIP's logit scale; the residual alone is saved."""

    def __init__(self, start: Tensor, scale: float, logit_scale: float) -> None:
        super().__init__()
        self.scale, self.logit_scale = scale, logit_scale
        self.register_buffer("start", start, persistent=False)  # (C, d)
        self.residual = nn.Parameter(torch.zeros_like(start))

    def forward(self, features: Tensor) -> Tensor:
        return self.logit_scale * features @ F.normalize(self.start + self.scale * self.residual, dim=1).T


@dataclass(kw_only=True, eq=False, repr=False)
class TaskRes(LinearProbe):
    """Task residual: frozen class embeddings t plus a learnt residual x (Yu et al. 2023, arXiv 2211.10277).

    ::

        logits = logit_scale * f @ normalize(t + residual_scale * x).T

    x starts at zero, so training starts as zero-shot CLIP. Defaults are the released ones; but there t has the length
    that the text tower gives it and here length 1, so that the same rate turns the prototypes further.

    Args:
        residual_scale: >= 0, the paper's alpha (``alpha`` means the share of zero-shot everywhere in this library).
        lr, epochs, batch_size, weight_decay: Of Adam, with a cosine schedule; the decay pulls x to zero.
        settings: ``seed``, the order of the batches.

    Raises:
        RPLibError: ``residual_scale`` is negative or not finite.

    Example:
        >>> TaskRes(clip, class_names, templates, residual_scale=1.0).fit(train)  # doctest: +SKIP
    """

    name = "task-res"
    schedule = "cosine"

    residual_scale: float = 0.5
    lr: float = 2e-4
    epochs: int = 100
    batch_size: int = 256
    weight_decay: float = 5e-4

    def new_classifier(self) -> _Prototypes:
        """Return the prototypes, with a residual of zero, float32 (C, d)."""
        return _Prototypes(_zero_shot(self), self.residual_scale, self.clip.logit_scale)


@dataclass(kw_only=True, eq=False, repr=False)
class CLAP(LinearProbe):
    """Zero-shot-initialised probe with a class-adaptive penalty (Silva-Rodriguez et al. 2024, arXiv 2312.12730).

    The prototypes w start as the class embeddings t and classify by cosine similarity. The loss is::

        cross-entropy + penalty * sum_c lambda_c * |w_c - t_c|^2

    lambda_c is the mean probability that zero-shot CLIP gives to class c on the training images of c, so that classes
    which it knows well stay where they are. A class without training images gets 1. Here t has length 1, in the
    released code the length that the text tower gives it; that code takes the mean over classes, ``penalty=1/C``.

    Args:
        penalty: >= 0; 0 is the paper's ZS-LP.
        lr, epochs, batch_size, weight_decay: Of SGD with momentum 0.9 and a cosine schedule; the decay acts on w - t.
        settings: ``seed``, the order of the batches.

    Raises:
        RPLibError: ``penalty`` is negative or not finite.

    Example:
        >>> CLAP(clip, class_names, templates, lr=1e-2).fit(train)  # doctest: +SKIP
    """

    name = "clap"
    schedule, optimizer = "cosine", "sgd"

    penalty: float = 1.0
    lr: float = 0.1
    epochs: int = 300
    batch_size: int = 256
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.multipliers = torch.ones(len(self.class_names))  # lambda, (C,)

    def new_classifier(self) -> _Prototypes:
        """Return the prototypes, with a residual w - t of zero, float32 (C, d)."""
        return _Prototypes(_zero_shot(self), 1.0, self.clip.logit_scale)

    @torch.no_grad()
    def before_training(self, train_set: ImageSet, store: FeatureStore) -> None:
        """Compute lambda, float32 (C,) in [0, 1], from zero-shot CLIP's answers on the training images."""
        features, labels = store.get(self.clip, train_set), train_set.labels
        logits = self.clip.logit_scale * features @ self.classifier.start.T
        own = logits.softmax(1).gather(1, labels[:, None])[:, 0]  # probability of the true class, (n,)
        total = torch.zeros(len(self.class_names)).index_add(0, labels, own)
        count = torch.bincount(labels, minlength=len(total))
        self.multipliers = torch.where(count > 0, total / count.clamp(min=1), torch.ones_like(total))

    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Compute cross-entropy plus the penalty, a scalar."""
        distance = self.classifier.residual.square().sum(1)  # |w_c - t_c|^2, (C,)
        return super().loss(inputs, labels) + self.penalty * (self.multipliers * distance).sum()


class _Cache(nn.Module):
    """Zero-shot logits plus what training images near in feature space vote for."""

    def __init__(self, start: Tensor, logit_scale: float, cache_weight: float, sharpness: float) -> None:
        super().__init__()
        self.logit_scale, self.cache_weight, self.sharpness = logit_scale, cache_weight, sharpness
        self.register_buffer("start", start, persistent=False)  # (C, d)
        self.keys = nn.Parameter(torch.zeros(0, start.shape[1]))
        self.register_buffer("labels", torch.zeros(0, dtype=torch.long))

    def fill(self, keys: Tensor, labels: Tensor) -> None:
        """Take over keys, float32 (m, d), and their classes, int64 (m,)."""
        self.keys = nn.Parameter(keys.clone(), requires_grad=self.keys.requires_grad)
        self.labels = labels.clone()

    def forward(self, features: Tensor) -> Tensor:
        affinity = (-self.sharpness * (1 - features @ self.keys.T)).exp()  # (n, m)
        logits = self.logit_scale * features @ self.start.T  # (n, C)
        return logits + self.cache_weight * torch.zeros_like(logits).index_add(1, self.labels, affinity)


@dataclass(kw_only=True, eq=False, repr=False)
class TipAdapterF(LinearProbe):
    """Tip-Adapter-F: a cache of the training images whose keys are trained (Zhang et al. 2022, arXiv 2111.03930).

    ::

        logits_c = logit_scale * f @ t_c + cache_weight * sum_k exp(-sharpness * (1 - f @ k)), keys k of class c

    Keys start as the features of the training images, one each; the saved file holds them all. The paper averages the
    features of ten augmented copies, here the image itself is encoded once.

    Args:
        cache_weight: >= 0, the paper's residual ratio alpha; 0 is zero-shot CLIP.
        sharpness: >= 0, the paper's beta.
        lr, epochs, batch_size, weight_decay: Of AdamW, with a cosine schedule.
        settings: ``seed``, the order of the batches.

    Raises:
        RPLibError: A strength is negative or not finite.

    Example:
        >>> TipAdapterF(clip, class_names, templates, sharpness=10.0).fit(train)  # doctest: +SKIP
    """

    name = "tip-adapter-f"
    schedule, optimizer, eps = "cosine", "adamw", 1e-4

    cache_weight: float = 1.0
    sharpness: float = 5.5
    lr: float = 1e-3
    epochs: int = 20
    batch_size: int = 256
    weight_decay: float = 0.01

    def new_classifier(self) -> _Cache:
        """Return an empty cache: zero-shot CLIP."""
        return _Cache(_zero_shot(self), self.clip.logit_scale, self.cache_weight, self.sharpness)

    def before_training(self, train_set: ImageSet, store: FeatureStore) -> None:
        """Fill the cache; a second ``fit`` goes on with the keys of the first."""
        if not len(self.classifier.labels):
            self.classifier.fill(store.get(self.clip, train_set), train_set.labels)

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Take over keys, float32 (m, d), and labels, int64 (m,), of any number m of training images."""
        keys, labels = tensors.get("keys"), tensors.get("labels")
        if keys is not None and labels is not None and keys.shape == (len(labels), self.clip.embed_dim):
            self.classifier.fill(keys.cpu(), labels.cpu())
        super().load_state_dict(tensors)


class TipAdapter(TipAdapterF):
    """Tip-Adapter: the same cache, nothing trained (Zhang et al. 2022, arXiv 2111.03930).

    Args:
        cache_weight, sharpness: See :class:`TipAdapterF`.

    Example:
        >>> TipAdapter(clip, class_names, templates, cache_weight=3.0).fit(train)  # doctest: +SKIP
    """

    name = "tip-adapter"

    def __init__(
        self,
        clip: FrozenCLIP,
        class_names: Sequence[str],
        templates: Sequence[str],
        *,
        cache_weight: float = 1.0,
        sharpness: float = 5.5,
    ) -> None:
        super().__init__(clip, class_names, templates, cache_weight=cache_weight, sharpness=sharpness, epochs=0)
        self.classifier.requires_grad_(False)

    def before_training(self, train_set: ImageSet, store: FeatureStore) -> None:
        """Fill the cache again with these images."""
        self.classifier.fill(store.get(self.clip, train_set), train_set.labels)
