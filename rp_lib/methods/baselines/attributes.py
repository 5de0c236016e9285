"""AttrVR, which trains an image program against descriptions of the classes.

Cai et al. 2025, arXiv 2501.13982.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rp_lib.losses import reprogramming_loss
from rp_lib.methods.reprogrammer import ImageReprogrammer
from rp_lib.utils.device import in_float32
from rp_lib.utils.distributed import gather
from rp_lib.utils.errors import RPLibError

Texts = Mapping[str, Sequence[str]]


@dataclass(kw_only=True, eq=False, repr=False)
class AttrVR(ImageReprogrammer):
    """A border around the images, trained so that they come close to descriptions of their class (AttrVR).

    For each image and each step anew, a class counts by the k texts of each kind that are nearest to the image::

        logit_c = scale * (balance * mean_k cos(f, descriptive_c) + (1 - balance) * mean_k cos(f, distinctive_c))

    The authors ask a language model for 20 texts a class of each kind: what describes a class, and what tells it from
    the others. Here whoever uses the method gives them. The border and its training are those of ``config``; the
    authors' border is a sigmoid, trained by SGD.

    Args:
        descriptive: For each class name its texts, encoded as they are. None takes the templates with the name in them.
        distinctive: Likewise. None: the descriptive texts count alone.
        nearest: k, at least 1. A class with fewer texts counts by all of them.
        balance: Weight of the descriptive texts (the authors' lambda), in [0, 1].
        config: See :class:`Reprogrammer`; the objective is ``class``, whatever it says, and there is no text program.
        seed, precision: See :class:`Reprogrammer`.

    Raises:
        RPLibError: A class has no texts, or an empty one.

    Example:
        >>> texts = {"cat": ["a cat has whiskers", "a cat has fur"], "car": ["a car has wheels"]}
        >>> method = AttrVR(clip, ("cat", "car"), templates, descriptive=texts).fit(train_set)  # doctest: +SKIP
    """

    name = "attr-vr"

    descriptive: Texts | None = None
    distinctive: Texts | None = None
    nearest: int = 3
    balance: float = 0.5

    def __post_init__(self) -> None:
        self.config = self.config.changed(objective="class")
        super().__post_init__()
        self.descriptive = self._of_classes(self.descriptive)
        self.distinctive = self._of_classes(self.distinctive)
        descriptive = self.descriptive or {c: [t.format(c) for t in self.templates] for c in self.class_names}
        # Of each class its descriptive texts, then of each its distinctive ones.
        lists = [*descriptive.values(), *(self.distinctive or descriptive).values()]
        self._texts, self._counts = [text for texts in lists for text in texts], [len(texts) for texts in lists]

    def _of_classes(self, given: Texts | None) -> dict[str, list[str]] | None:
        """Return the texts of the task's classes, in their order; raise if a class has none."""
        for name in self.class_names if given is not None else ():
            texts = given.get(name)
            if not texts or not all(text.strip() for text in texts):
                raise RPLibError(f"class {name!r} needs a list of texts that are not empty, not {texts!r}")
        return None if given is None else {name: list(given[name]) for name in self.class_names}

    def prompt_embeddings(self) -> Tensor:
        """Unit float32 (M, d) features of all texts, on the device."""
        return self.clip.class_embeddings(self._texts, ("{}",))

    def _logits(self, features: Tensor, texts: Tensor) -> Tensor:
        """Return logits (n, C) of features (n, d) and texts (M, d), both of unit length."""
        similar = (self.clip.logit_scale * features @ texts.T).split(self._counts, dim=1)  # 2C times (n, texts)
        near = [s.topk(min(self.nearest, s.shape[1]), dim=1).values.mean(1) for s in similar]
        descriptive, distinctive = torch.stack(near, dim=1).chunk(2, dim=1)  # (n, C) each
        return self.balance * descriptive + (1 - self.balance) * distinctive

    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Compute the loss over all classes, a scalar; see :meth:`Method.loss`."""
        features = gather(self.encode(inputs), len(labels))  # (n, d)
        with in_float32(self.device):
            logits = self._logits(features.float(), self._frozen_prompts.float())
            return reprogramming_loss(logits, labels, "class", self.config.loss)

    def head(self, features: Tensor) -> Tensor:
        """Mean cosine similarity to the nearest texts of each class, times CLIP's logit scale."""
        return self._logits(features, self.class_embeddings())
