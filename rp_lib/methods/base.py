"""The small interface that every method implements."""

from __future__ import annotations

import copy
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from rp_lib._version import __version__
from rp_lib.benchmark import ImageSet, mask_logits
from rp_lib.clip import FrozenCLIP
from rp_lib.features import Encoder, FeatureStore, encode_all
from rp_lib.trainer import Checkpoint, History
from rp_lib.utils.device import evaluating
from rp_lib.utils.distributed import on_main
from rp_lib.utils.errors import RPLibError
from rp_lib.utils.io import StorageError, load_tensors, save_tensors, tensors_sha256


class Method(ABC):
    """An adaptation of CLIP to a task of C classes.

    ``fit`` learns from labelled images, ``features`` and ``logits`` apply what was learnt to new ones, ``save`` and
    :func:`rp_lib.load_method` keep the trained part alone.

    A method's features are combined from those of its ``encoders``, so that whoever evaluates can compute each
    encoder once and share it: the residual needs nothing new beside RP's and the zero-shot features.

    Args:
        clip: the frozen backbone. class_names: the task's C classes, distinct. templates: prompts with one ``{}``.
    """

    name: ClassVar[str]

    def __init__(self, clip: FrozenCLIP, class_names: Sequence[str], templates: Sequence[str]) -> None:
        if len(set(class_names)) != len(class_names) or not class_names:
            raise RPLibError("class names must be distinct and not empty")
        if not templates or any(t.count("{}") != 1 for t in templates):
            raise RPLibError("every prompt template needs exactly one {} for the class name")
        self.clip = clip
        self.class_names = tuple(class_names)
        self.templates = tuple(templates)
        self.history = History()
        # Fingerprint of the training images; part of what is saved.
        self.trained_on: str | None = None

    # What a method is made of -------------------------------------------------------------------------

    @abstractmethod
    def fit(
        self,
        train: ImageSet,
        val: ImageSet | None = None,
        *,
        store: FeatureStore | None = None,
        checkpoint: Path | Checkpoint | None = None,
        progress: str | None = None,
    ) -> Self:
        """Learn from labelled images; ``val`` is only watched. See :func:`rp_lib.trainer.train` for the rest.

        ``checkpoint`` keeps the state of an unfinished run; an interrupted one, called again, goes on from there.

        A second call goes on from what the first one learnt; build a new method to start anew.
        """

    @property
    @abstractmethod
    def encoders(self) -> tuple[Encoder, ...]:
        """The encoders whose features :meth:`mix_features` takes."""

    def mix_features(self, *features: Tensor) -> Tensor:
        """Image features float32 (n, d) of this method from those of its encoders."""
        return features[0]

    @abstractmethod
    def head(self, features: Tensor) -> Tensor:
        """float32 (n, C) logits at the scale that softmax expects, of float32 (n, d) features."""

    @abstractmethod
    def state_dict(self) -> dict[str, Tensor]:
        """What ``fit`` learnt, by name; nothing of the frozen backbone."""

    @abstractmethod
    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Inverse of :meth:`state_dict`."""

    @torch.no_grad()
    def encode_classes(self, words: Sequence[str]) -> Tensor:
        """Unit float32 (k, d), on the CPU: what this method's images are compared with for any other class names.

        Open-vocabulary use (Radford et al. 2021): by default CLIP's own embeddings under the task's prompts; a
        method that changes the text side says what it makes of the words.
        """
        return self.clip.class_embeddings(words, self.templates).cpu()

    def settings(self) -> dict[str, Any]:
        """JSON-able keyword arguments that rebuild this method, beside clip, classes and templates."""
        return {}

    def for_detection(self) -> Method:
        """The method as OOD detection sees it: itself, unless a switch of the released code says otherwise."""
        return self

    # What follows from it -----------------------------------------------------------------------------

    def features(self, images: Tensor) -> Tensor:
        """float32 (n, d) image features of uint8 or float [0, 1] images (n, 3, h, w), on the CPU."""
        return self.mix_features(*(encode_all(e, images) for e in self.encoders))

    @torch.inference_mode()
    @evaluating()
    def logits(self, images: Tensor) -> Tensor:
        """float32 (n, C) logits of uint8 or float [0, 1] images (n, 3, h, w), on the CPU."""
        return self.head(self.features(images))

    @torch.inference_mode()
    @evaluating()
    def accuracy(self, data: ImageSet, store: FeatureStore | None = None) -> float:
        """Top-1 accuracy on labelled data, as a fraction; among the classes that the set is scored over."""
        store = store or FeatureStore()
        logits = self.head(self.mix_features(*(store.get(e, data) for e in self.encoders)))
        return float((mask_logits(logits, data.class_subset).argmax(1) == data.labels).float().mean())

    def metadata(self) -> dict[str, object]:
        """What a saved file says about itself."""
        return {
            "format": "rp_lib method 1",
            "rp_lib": __version__,
            "method": self.name,
            "settings": self.settings(),
            "class_names": list(self.class_names),
            "templates": list(self.templates),
            "backbone": self.clip.name,
            "backbone_sha256": self.clip.fingerprint,
            "trained_on": self.trained_on,
        }

    def save(self, path: str | Path) -> None:
        """Write the trained part as safetensors, with the backbone's fingerprint and the classes.

        Of several processes all must call this; the main one writes and the others wait.
        """
        tensors, metadata = self.state_dict(), self.metadata()
        on_main(lambda: save_tensors(Path(path), tensors, {**metadata, "sha256": _seal(tensors, metadata)}))

    def check_labels(self, data: ImageSet) -> None:
        """Note what is trained on; raise unless its labels fit the classes."""
        if data.labels is None or not len(data):
            raise RPLibError(f"{data.name!r} has no labelled images to learn from")
        if int(data.labels.max()) >= len(self.class_names) or int(data.labels.min()) < 0:
            raise RPLibError(
                f"{data.name!r} has labels {int(data.labels.min())} to {int(data.labels.max())} but the task has "
                f"{len(self.class_names)} classes; check the order and number of class names"
            )
        self.trained_on = data.fingerprint

    def copy(self) -> Self:
        """A shallow copy that shares weights."""
        return copy.copy(self)


def _seal(tensors: dict[str, Tensor], metadata: dict[str, object]) -> str:
    """SHA-256 (hex) over what is saved, so that a changed weight, class or alpha is noticed."""
    text = json.dumps(metadata, sort_keys=True)
    return hashlib.sha256(f"{tensors_sha256(tensors)} {text}".encode()).hexdigest()


def read_saved(
    path: str | Path, clip: FrozenCLIP, class_names: Sequence[str] | None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of a saved method, after checking that they belong to this backbone and these classes.

    Raises:
        StorageError: the file is missing or damaged.
        RPLibError: it was trained for another backbone or other classes.
    """
    tensors, meta = load_tensors(Path(path))
    if meta.get("format") != "rp_lib method 1":
        raise RPLibError(f"{path} holds no method saved by rp_lib")
    if meta.pop("sha256", None) != _seal(tensors, meta):
        raise StorageError(f"{path} was altered since it was saved (its SHA-256 differs); fetch or train it again")
    if meta["backbone_sha256"] != clip.fingerprint:
        raise RPLibError(
            f"{path} was trained for the backbone {meta['backbone']!r} "
            f"(SHA-256 {str(meta['backbone_sha256'])[:12]}...), not for {clip.name!r} "
            f"({clip.fingerprint[:12]}...): load that backbone, or train again on this one"
        )
    if class_names is not None and list(class_names) != meta["class_names"]:
        saved = list(meta["class_names"])  # type: ignore[call-overload]
        pairs = enumerate(zip(saved, class_names, strict=False))
        where = next((i for i, (a, b) in pairs if a != b), min(len(saved), len(class_names)))
        raise RPLibError(
            f"{path} was trained for {len(saved)} classes, you gave {len(class_names)}; they differ from index "
            f"{where} on: {saved[where : where + 3]} against {list(class_names)[where : where + 3]}. The same classes "
            "in the same order are needed"
        )
    return tensors, dict(meta)
