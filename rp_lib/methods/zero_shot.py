"""CLIP as it is: cosine similarity to the class prompts (Radford et al. 2021, arXiv 2103.00020)."""

from __future__ import annotations

from typing import Self

from torch import Tensor

from rp_lib.benchmark import ImageSet
from rp_lib.features import Encoder
from rp_lib.methods.base import Method


class ZeroShot(Method):
    """Classify without training; the reference for everything else.

    Example:
        >>> ZeroShot(clip, data.class_names, data.templates).accuracy(data.test)  # doctest: +SKIP
    """

    name = "zero-shot"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.class_embeddings = self.clip.class_embeddings(self.class_names, self.templates).cpu()

    def fit(self, train_set: ImageSet, val: ImageSet | None = None, **options: object) -> Self:
        """Learn nothing: there is nothing to learn."""
        return self

    @property
    def encoders(self) -> tuple[Encoder, ...]:
        """The frozen backbone."""
        return (self.clip,)

    def head(self, features: Tensor) -> Tensor:
        """Cosine similarity times CLIP's logit scale."""
        return self.clip.logit_scale * features @ self.class_embeddings.T
