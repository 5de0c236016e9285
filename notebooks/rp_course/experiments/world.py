"""What an experiment works with: backbone, benchmark, tuned hyper-parameters, seeds, and how much of each.

Experiments train many methods. To keep them to minutes they are judged on an even subset of every image set, the same
for all of them; each figure says on how many pictures it rests.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd
import torch

from rp_lib.benchmark import Benchmark, ImageSet
from rp_lib.clip import FrozenCLIP
from rp_lib.config import PAPER
from rp_lib.features import FeatureStore
from rp_lib.methods import METHODS, Method, Reprogrammer, ResidualReprogrammer
from rp_lib.mini import load_clip
from rp_lib.outputs import MethodOutputs, compute_outputs
from rp_lib.run.search import SEARCH, choose, read_runs, settings_of
from rp_lib.run.session import Session
from rp_lib.utils.errors import RPLibError

# Pictures of each set that experiments are judged on; derived sets follow the test pictures that are kept.
TEST_PICTURES, OTHER_PICTURES = 800, 400


def published_settings(name: str) -> dict[str, Any]:
    """Every setting of a method as its authors published it."""
    programmed = issubclass(METHODS[name], (Reprogrammer, ResidualReprogrammer))
    return {"config": PAPER.changed(border_init="normal")} if programmed else {}


def tuned_placements() -> dict[str, dict[str, Any]]:
    """RP's settings with each placement of the border, ``pad`` and ``overlay``, chosen as the search chooses."""
    table = pd.DataFrame(read_runs(SEARCH))
    of = {p: table[(table["method"] == "rp") & table["border"].str.startswith(p)] for p in ("overlay", "pad")}
    return {placement: settings_of("rp", choose(runs)["rp"]) for placement, runs in of.items()}


@dataclass
class World:
    """Everything an experiment may use; ``quick`` is for a short look, never for a claim.

    Attributes:
        benchmark: whole. settings: of every method, as :func:`rp_lib.run.search.tuned_settings` gives them.
        seeds: of training. quick: fewer pictures, one seed, fewer levels. precision: of training.
        published: whether the settings are the published ones, see :meth:`as_published`.
        device: where to compute. progress: show bars. clip: backbone instead of the shipped checkpoints.
        parts: of the run at hand, in order: whether each was read from disk (``reused``), and the ``commit`` of the
            code that measured it, None if it is not known.
    """

    benchmark: Benchmark
    settings: Mapping[str, dict[str, Any]]
    seeds: tuple[int, ...] = (1, 2, 3)
    quick: bool = False
    precision: str = "auto"
    published: bool = False
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    progress: bool = True
    clip: FrozenCLIP | None = None
    parts: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.seeds:
            raise RPLibError("an experiment needs at least one seed")
        if self.quick:
            self.seeds = self.seeds[:1]
        self._stores: dict[str, FeatureStore] = {}
        self._shipped: dict[str, FrozenCLIP] = {}
        self._fits: dict[tuple[Any, ...], Method] = {}

    def as_published(self) -> World:
        """The same world with every method at its published settings.

        They are the defaults of its class, but for the border, whose published start is N(0, 1).
        """
        settings = {name: published_settings(name) for name in self.settings}
        other = replace(self, settings=settings, published=True)
        other._stores, other._shipped, other._fits = self._stores, self._shipped, self._fits
        return other

    @functools.cached_property
    def judged(self) -> Benchmark:
        """The benchmark with an even subset of every set that methods are judged on."""
        scale = 4 if self.quick else 1
        return self.benchmark.subsample(TEST_PICTURES // scale, OTHER_PICTURES // scale)

    def backbone(self, checkpoint: str = "final") -> FrozenCLIP:
        """The frozen CLIP of this world: the one given, else the shipped checkpoint of that name."""
        if self.clip is not None:
            return self.clip
        if checkpoint not in self._shipped:
            self._shipped[checkpoint] = load_clip(checkpoint, self.device)
        return self._shipped[checkpoint]

    def store(self, clip: FrozenCLIP) -> FeatureStore:
        """The features of a backbone, shared by all that use it."""
        return self._stores.setdefault(clip.fingerprint, FeatureStore())

    def fit(
        self,
        name: str,
        seed: int,
        benchmark: Benchmark,
        clip: FrozenCLIP,
        *,
        settings: Mapping[str, Any] | None = None,
        train: ImageSet | None = None,
        fitted: Iterable[Method] = (),
    ) -> Method:
        """A method of this name, fitted on the benchmark's training images, or on others.

        Args:
            name: see :data:`rp_lib.methods.METHODS`. seed: of training. benchmark: its classes, prompts and images.
            clip: backbone. settings: instead of the tuned ones. train: images to learn from instead.
            fitted: methods of the same seed; one that mixes another with zero-shot takes that one's training from here.
        """
        train = benchmark.train if train is None else train
        tuned = settings in (None, self.settings.get(name)) and train is self.benchmark.train
        task = (benchmark.class_names, benchmark.templates)
        key = (name, repr(self.settings.get(name)), seed, clip.fingerprint, *task)
        if tuned and key in self._fits:
            return self._fits[key]
        options = {name: self.tuned(name) if settings is None else settings}
        session = Session(clip, benchmark, options, self.precision, self.progress, store=self.store(clip))
        known = [*fitted, *(self._fits[k] for k in self._fits if k[2:] == key[2:])]
        method = session.fit(name, seed, train=train, fitted=known)
        if tuned:  # most experiments need these; others are needed once
            self._fits[key] = method
        return method

    def tuned(self, name: str) -> dict[str, Any]:
        """The tuned hyper-parameters of a method.

        Raises:
            RPLibError: the recorded search has none for it.
        """
        if name not in self.settings:
            raise RPLibError(f"the recorded search has no settings for {name!r}: run `rp-lib search --methods {name}`")
        return self.settings[name]

    def placed(self, placement: str) -> dict[str, Any]:
        """The settings of RP with its border at ``placement``: its own, else the best of those searched there.

        Published settings are the same at each placement.
        """
        own = self.tuned("rp")["config"]
        if self.published or own.placement == placement:
            return {"config": own.changed(placement=placement)}
        return tuned_placements()[placement]

    def outputs(self, method: Method, seed: int, benchmark: Benchmark, **options: Any) -> MethodOutputs:
        """What a fitted method says about the benchmark's test, shifted and OOD images, computed once."""
        options.setdefault("roles", ("test", "shift", "near-ood", "far-ood"))
        return compute_outputs(method, benchmark, seed=seed, store=self.store(method.clip), **options)

    def forget(self, *methods: Method) -> None:
        """Free the features of these methods' own encoders."""
        for method in methods:
            for encoder in method.encoders:
                if encoder is not method.clip:
                    self.store(method.clip).drop(encoder)

    def forget_images(self, clip: FrozenCLIP) -> None:
        """Free all features of a backbone, since image sets made for one condition are not seen again."""
        self.store(clip).drop(clip)
