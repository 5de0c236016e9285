"""The small interface that every method implements."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor, nn

from rp_lib._version import __version__
from rp_lib.benchmark import ImageSet, mask_logits
from rp_lib.clip import FrozenCLIP, check_images
from rp_lib.features import Encoder, FeatureStore, encode_all
from rp_lib.trainer import Checkpoint, Group, History, Schedule, train
from rp_lib.utils.arguments import after_checked_fields, checked
from rp_lib.utils.device import evaluating
from rp_lib.utils.distributed import on_main
from rp_lib.utils.errors import RPLibError
from rp_lib.utils.io import StorageError, load_tensors, save_tensors, seal
from rp_lib.utils.preparation import Preparation

if TYPE_CHECKING:
    import pandas as pd
    from PIL import Image

log = logging.getLogger(__name__)


@dataclass(eq=False, repr=False)
class Method(ABC):
    """An adaptation of CLIP to a task of C classes.

    ``fit`` learns from labelled images, ``features`` and ``logits`` apply what was learnt to new ones, ``save`` and
    :func:`rp_lib.load_method` keep the trained part alone.

    A method's features are combined from those of its ``encoders``, so that whoever evaluates can compute each
    encoder once and share it: the residual needs nothing new beside RP's and the zero-shot features.

    A method is a dataclass: what it takes next to these three are its hyper-parameters, keyword arguments all of them.

    Args:
        clip: The frozen backbone.
        class_names: The task's C classes, distinct.
        templates: Prompts with one ``{}``.

    Example:
        >>> method.fit(data.train).accuracy(data.test)  # doctest: +SKIP
    """

    name: ClassVar[str]

    clip: FrozenCLIP
    class_names: Sequence[str]
    templates: Sequence[str]

    def __init_subclass__(cls) -> None:
        """Have the arguments of a method checked before it uses them, whoever writes it."""
        for name in ("__init__", "__post_init__", "fit", "load_state_dict"):
            if name in cls.__dict__:
                own = cls.__dict__[name]
                setattr(cls, name, after_checked_fields(own) if name == "__post_init__" else checked(own))

    @after_checked_fields
    def __post_init__(self) -> None:
        self.class_names, self.templates = tuple(self.class_names), tuple(self.templates)
        if len(set(self.class_names)) != len(self.class_names) or not self.class_names:
            raise RPLibError("class names must be distinct and not empty")
        if len(self.class_names) < 2:
            only = self.class_names[0]
            raise RPLibError(f"a task needs at least two classes; with {only!r} alone nothing can be wrong")
        self.clip.check_prompts(self.class_names, self.templates)
        self.history = History()
        # Fingerprint of the training images, and how they were prepared, as new pictures are then too.
        self.trained_on: str | None = None
        self._loaded = False
        self.preparation: Preparation = getattr(self.clip, "preparation", Preparation())

    # What a method is made of -------------------------------------------------------------------------

    @checked
    def fit(
        self,
        train_set: ImageSet,
        val: ImageSet | None = None,
        *,
        store: FeatureStore | None = None,
        checkpoint: Path | Checkpoint | None = None,
        progress: str | None = None,
    ) -> Self:
        """Learn from labelled images.

        A second call goes on from what the first one learnt; build another method to start again.

        Args:
            train_set: Labelled images of the task's classes.
            val: Labelled images whose accuracy is noted after each epoch in ``history``; nothing is chosen by it.
            store: Features of the frozen backbone that are there already; what is computed here is added.
            checkpoint: Where the state of an unfinished run is kept; the same call, made again, goes on from there. See
                :func:`rp_lib.trainer.train`.
            progress: Label of a progress bar; None shows none.

        Raises:
            RPLibError: No labels, or labels that do not fit the classes.
            TrainingDiverged: The loss is no longer a number.
            StorageError: The checkpoint cannot be written, or belongs to another run.
        """
        train_set = train_set.for_classes(self.class_names)
        self.check_labels(train_set)
        store = FeatureStore() if store is None else store
        store.drop(self)  # what it holds was computed with the weights of before
        self.before_training(train_set, store)
        frozen = self.encoders == (self.clip,)
        inputs = self.training_inputs(train_set, store)

        def accuracy() -> float:
            self.set_training(False)
            value = self.accuracy(val, store if frozen else None)
            self.set_training(True)
            return value

        self.set_training(True)
        try:
            self.history = train(
                self, inputs, train_set.labels, self.training_schedule(), validate=None if val is None else accuracy,
                identity=repr(self.metadata()), checkpoint=checkpoint, content=None if frozen else train_set.content,
                progress=progress,
            )  # fmt: skip
        finally:
            self.set_training(False)
        return self

    # A method is its own training task: the next six say what `fit` does with it. A method that does not train by
    # gradient steps overrides `fit` instead.

    def before_training(self, train_set: ImageSet, store: FeatureStore) -> None:  # noqa: B027
        """Do what comes before the first step; here nothing. A resumed run does it again."""

    def training_inputs(self, train_set: ImageSet, store: FeatureStore) -> Tensor:
        """Return what :meth:`loss` gets batches of: the images, or the features of a frozen image side.

        Those are computed once, and every epoch reads them.
        """
        return store.get(self.clip, train_set) if self.encoders == (self.clip,) else train_set.images

    def training_schedule(self) -> Schedule:
        """Return the number of epochs, the batch size and the learning rate's course."""
        raise NotImplementedError(f"{type(self).__name__} trains no weights")

    def modules(self) -> nn.Module:
        """Return all that is trained, under the names that :meth:`state_dict` uses."""
        return nn.ModuleDict()

    def parameter_groups(self) -> list[Group]:
        """Return the trained parameters with their optimizer settings."""
        raise NotImplementedError(f"{type(self).__name__} trains no weights")

    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Compute the loss of a batch of n images, a scalar with gradients.

        Args:
            inputs: On ``device``: uint8 images (n, 3, h, w), or float32 features (n, d) if the only encoder is the
                frozen backbone. Of several processes: this one's share of the batch.
            labels: int64 (n,), of the complete batch.
        """
        raise NotImplementedError(f"{type(self).__name__} trains no weights")

    def set_training(self, on: bool) -> None:
        """Switch between training and evaluation; methods also drop what they cached of the weights of before."""
        self.modules().train(on)

    @property
    def device(self) -> torch.device:
        """Where the steps of training run."""
        return self.clip.device

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

    def state_dict(self) -> dict[str, Tensor]:
        """Return what ``fit`` learnt, by name; nothing of the frozen backbone."""
        return self.modules().state_dict()

    @checked
    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Take over what :meth:`state_dict` of a method with the same settings returned.

        Raises:
            RPLibError: A name is missing or unknown, or a shape differs.
        """
        expected = self.state_dict()
        wrong = {k for k in expected.keys() | tensors.keys()
                 if k not in expected or k not in tensors or expected[k].shape != tensors[k].shape}  # fmt: skip
        if wrong:
            raise RPLibError(
                f"the saved weights do not fit the settings of this {self.name!r}: {', '.join(sorted(wrong)[:8])}; "
                "build it with the settings, classes and templates that it was trained with"
            )
        if damaged := [k for k, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]:
            raise RPLibError(f"the saved weights of this {self.name!r} are not finite: {damaged[0]}; train it again")
        self.modules().load_state_dict(tensors)
        self.set_training(False)
        self._loaded = True

    @checked
    @torch.no_grad()
    def encode_classes(self, words: Sequence[str]) -> Tensor:
        """Unit float32 (k, d), on the CPU: what this method's images are compared with for any other class names.

        Open-vocabulary use (Radford et al. 2021): by default CLIP's own embeddings under the task's prompts; a
        method that changes the text side says what it makes of the words.
        """
        return self.clip.class_embeddings(words, self.templates).cpu()

    @classmethod
    def parameter_names(cls) -> list[str]:
        """Return the names of the keyword arguments that it takes, next to clip, class names and templates."""
        return list(inspect.signature(cls).parameters)[3:]

    def get_params(self) -> dict[str, Any]:
        """Return the keyword arguments that build this method again, next to clip, class names and templates."""
        return {name: getattr(self, name) for name in self.parameter_names()}

    # What follows from it -----------------------------------------------------------------------------

    def features(self, images: Tensor) -> Tensor:
        """float32 (n, d) image features of uint8 or float [0, 1] images (n, 3, h, w), on the CPU.

        Raises:
            RPLibError: No such images, or of another size than those that it was trained on.
        """
        trained = self.preparation.shape
        check_images(images, trained)
        if self.trained_on is not None and images.shape[2:] != trained:
            size, own = (" x ".join(map(str, shape)) for shape in (images.shape[2:], trained))
            raise RPLibError(
                f"images of {size} pixels, but {self.name!r} was trained on {own}: hand their "
                f"files to rp_lib.predict, or read them at {self.preparation.size}"
            )
        return self.mix_features(*(encode_all(e, images) for e in self.encoders))

    @torch.inference_mode()
    @evaluating()
    def logits(self, images: Tensor) -> Tensor:
        """float32 (n, C) logits of uint8 or float [0, 1] images (n, 3, h, h), on the CPU."""
        return self.head(self.features(images))

    def predict(
        self, pictures: Sequence[Path | str | Image.Image], threshold: object = None, *, batch_size: int = 256
    ) -> pd.DataFrame:
        """Classify new pictures, files or PIL images; a row each, see :func:`rp_lib.predict`."""
        import rp_lib

        return rp_lib.predict(self, pictures, threshold, batch_size=batch_size)

    @checked
    @torch.inference_mode()
    @evaluating()
    def accuracy(self, data: ImageSet, store: FeatureStore | None = None) -> float:
        """Top-1 accuracy on labelled data, as a fraction; among the classes that the set is scored over.

        Raises:
            RPLibError: The set says that its classes are others, or has no labels.
        """
        read = data.for_classes(self.class_names)
        if read.labels is None:
            raise RPLibError(f"{data.name!r} has no labels to compare with")
        return float((self.scores(data, store).argmax(1) == read.labels).float().mean())

    @checked
    @torch.inference_mode()
    @evaluating()
    def scores(self, data: ImageSet, store: FeatureStore | None = None) -> Tensor:
        """float32 (n, C) logits of a set's images, on the CPU; -inf for classes that it is not scored over."""
        store, read = store or FeatureStore(), data.for_classes(self.class_names)
        logits = self.head(self.mix_features(*(store.get(e, data) for e in self.encoders)))
        return mask_logits(logits, read.class_subset)

    def metadata(self) -> dict[str, object]:
        """What a saved file says about itself."""
        return {
            "format": "rp_lib method 1",
            "rp_lib": __version__,
            "method": self.name,
            "settings": {name: _as_json(value) for name, value in self.get_params().items()},
            "class_names": list(self.class_names),
            "templates": list(self.templates),
            "backbone": self.clip.name,
            "backbone_sha256": self.clip.fingerprint,
            "backbone_source": self.clip.source,
            "preparation": dataclasses.asdict(self.preparation),
            "trained_on": self.trained_on,
        }

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over the trained weights, settings, classes, prompts and backbone."""
        keys = ("method", "settings", "class_names", "templates", "backbone_sha256")
        return seal(self.state_dict(), {key: self.metadata()[key] for key in keys})

    @checked
    def save(self, path: str | Path) -> None:
        """Write the trained part as safetensors, with the backbone's fingerprint and the classes.

        Of several processes all must call this; the main one writes and the others wait.
        """
        tensors, metadata = self.state_dict(), {**self.metadata(), "fitted": self.is_fitted}
        if not self.is_fitted:
            log.warning("%s was never fitted: %s holds its start", self.name, path)
        on_main(lambda: save_tensors(Path(path), tensors, {**metadata, "sha256": seal(tensors, metadata)}))

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
        self.preparation = data.preparation or dataclasses.replace(self.clip.preparation, size=data.images.shape[2:])
        if dataclasses.replace(self.preparation, size=self.clip.image_size) != self.clip.preparation:
            log.warning(
                "the pictures of %r were prepared by %s, but %s was trained with %s: pass size=clip.preparation where "
                "they are read", data.name, self.preparation, self.clip.name, self.clip.preparation,
            )  # fmt: skip

    @property
    def is_fitted(self) -> bool:
        """Whether it was fitted or loaded, or has nothing to learn."""
        return self.trained_on is not None or self._loaded or not self.state_dict()

    def copy(self) -> Self:
        """A shallow copy that shares weights."""
        return copy.copy(self)


class Mixture(Method):
    """A method whose outputs are mixed with those of zero-shot CLIP; nothing more is trained than the method itself.

    Args:
        base: The method, fitted or not; it is shared, not copied. Fit it through the mixture, or make the mixture again
            afterwards.
        alpha: Weight of zero-shot, in [0, 1]: 0 is the method, 1 is zero-shot CLIP.

    Raises:
        RPLibError: ``alpha`` is not in [0, 1].
    """

    def __init__(self, base: Method, alpha: float) -> None:
        super().__init__(base.clip, base.class_names, base.templates)
        self.base, self.alpha = base, alpha
        self.history, self.trained_on, self.preparation = base.history, base.trained_on, base.preparation

    @checked
    def with_alpha(self, alpha: float) -> Self:
        """Return the same mixture at another alpha; nothing is trained or copied."""
        made = self.copy()
        made.alpha = alpha
        return made

    def fit(self, train_set: ImageSet, val: ImageSet | None = None, **options: Any) -> Self:
        """Fit the method inside; see :meth:`Method.fit`."""
        self.base.fit(train_set, val, **options)
        if options.get("store") is not None:
            options["store"].drop(self)
        self.history, self.trained_on, self.preparation = self.base.history, self.base.trained_on, self.base.preparation
        return self

    def modules(self) -> nn.Module:
        """Return what the method inside trains."""
        return self.base.modules()

    def get_params(self) -> dict[str, Any]:
        """Return those of the method inside, and alpha."""
        return {**self.base.get_params(), "alpha": self.alpha}

    def state_dict(self) -> dict[str, Tensor]:
        """Return what the method inside learnt."""
        return self.base.state_dict()

    @property
    def is_fitted(self) -> bool:
        """Whether the method inside is."""
        return self.base.is_fitted

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Load what the method inside learnt."""
        self.base.load_state_dict(tensors)


def _as_json(value: Any) -> Any:
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value


def read_saved(
    path: str | Path, clip: FrozenCLIP | None, class_names: Sequence[str] | None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of a saved method, after checking that they belong to this backbone and these classes.

    Raises:
        StorageError: the file is missing or damaged.
        RPLibError: it was trained for another backbone or other classes, or not at all.
    """
    tensors, meta = load_tensors(Path(path))
    if meta.get("format") != "rp_lib method 1":
        raise RPLibError(f"{path} holds no method saved by rp_lib")
    if meta.pop("sha256", None) != seal(tensors, meta):
        raise StorageError(f"{path} was altered since it was saved (its SHA-256 differs); fetch or train it again")
    if not meta.get("fitted", True):  # absent in files of before it existed
        raise RPLibError(f"{path} holds a {meta['method']!r} that was never fitted: fit it, and save it again")
    if clip is not None and meta["backbone_sha256"] != clip.fingerprint:
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
