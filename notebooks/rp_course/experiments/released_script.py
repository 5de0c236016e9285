"""What the released code makes of a trained method: its detection script, what pictures it shows, its fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from rp_course.experiments.world import World
from rp_lib.benchmark import OOD_ROLES, Benchmark, ImageSet, mask_logits
from rp_lib.clip import FrozenCLIP
from rp_lib.methods import FineTune, Method
from rp_lib.outputs import MethodOutputs, Outputs, compute_outputs
from rp_lib.trainer import Group


@dataclass(frozen=True)
class DetectionScript:
    """Compute the outputs that the released scripts score, of a fitted RP or RRP.

    Accuracy is that of the method itself (or of RP, with ``rp_accuracy``); the OOD scores are those of the script.

    Args:
        wrap: Pictures are normalised, times 255, and cast to 8 bits: what a byte cannot hold wraps around.
        half: Logits and probabilities are float16 when pictures are scored, so that sure ones tie at exactly 1.
        rp_accuracy: The accuracy in RRP's column is RP's.

    Example:
        >>> outputs = DetectionScript(wrap=True)(world, rp, 1, world.judged)  # doctest: +SKIP
    """

    wrap: bool = False
    half: bool = False
    rp_accuracy: bool = False

    def __call__(self, world: World, method: Method, seed: int, benchmark: Benchmark) -> MethodOutputs:
        """Return outputs whose logits are scored for detection, and whose ``reported`` logits count for accuracy."""
        rp = getattr(method, "rp", method)
        scored = reported = world.outputs(method, seed, benchmark)
        if self.wrap:
            sets = {s.name: wrapped(method.clip, s) for s in benchmark.sets}
            shifts, ood = ({name: sets[name] for name in part} for part in (benchmark.shifts, benchmark.ood))
            seen = replace(benchmark, test=sets[benchmark.test.name], shifts=shifts, ood=ood, controls={})
            scored = compute_outputs(method, seen, seed=seed, roles=("test", "shift", *OOD_ROLES))
        if self.rp_accuracy:
            reported = world.outputs(rp, seed, benchmark)
        sets = {}
        for name, s in scored.sets.items():
            parts: dict[str, Any] = {f.name: getattr(s, f.name) for f in fields(Outputs)}
            if self.half:
                parts["logits"] = half_precision_logits(s.logits)
            sets[name] = _Scored(**parts, reported_logits=reported.sets[name].logits)
        return MethodOutputs(reported.about, sets)


@dataclass(frozen=True)
class Shown:
    """Compute the outputs of a fitted method for the pictures of another benchmark with the same classes.

    Args:
        benchmark: What the method is shown, such as the same pictures at a lower resolution.

    Example:
        >>> outputs = Shown(at_resolution(world.judged, 37))(world, probe, 1, world.judged)  # doctest: +SKIP
    """

    benchmark: Benchmark

    def __call__(self, world: World, method: Method, seed: int, benchmark: Benchmark) -> MethodOutputs:
        """Return the outputs for ``self.benchmark``, to be compared with those for ``benchmark``."""
        shown = world.outputs(method, seed, self.benchmark)
        return MethodOutputs({**shown.about, "benchmark_sha256": benchmark.fingerprint}, shown.sets)

    def __repr__(self) -> str:
        return f"Shown({self.benchmark.fingerprint})"


class ReleasedFineTune(FineTune):
    """Fine-tuning as the released code does it: the head has a bias, and every weight is decayed.

    Example:
        >>> ReleasedFineTune(clip, class_names, templates).fit(train)  # doctest: +SKIP
    """

    def new_classifier(self, bias: bool = True) -> nn.Module:
        """See :meth:`FineTune.new_classifier`; with a bias, which starts at zero."""
        return super().new_classifier(bias)

    def parameter_groups(self) -> list[Group]:
        """Return all weights, also biases and normalisation gains, with the same decay."""
        return [Group([p for g in super().parameter_groups() for p in g.parameters], self.lr, self.weight_decay)]


@dataclass(frozen=True, eq=False)
class _Scored(Outputs):
    """Outputs whose accuracy is that of other logits than the scores'."""

    reported_logits: Tensor | None = None

    @property
    def reported(self) -> Tensor:
        """float32 (n, C) logits that accuracy and calibration are computed of."""
        return mask_logits(self.reported_logits, self.class_subset)


def wrapped(clip: FrozenCLIP, images: ImageSet) -> ImageSet:
    """Return the pictures as the script's loader hands them on, to RP and to the zero-shot half of RRP alike.

    They are resized, normalised, times 255, and cast to bytes.
    """
    return replace(images, images=wrap_to_8_bits(clip.normalize(clip.prepare(images.images))), derived_from=None)


def wrap_to_8_bits(normalised: Tensor) -> Tensor:
    """Return float values as the bytes that they become: times 255, the integer part, modulo 256."""
    return ((normalised * 255).to(torch.int64) % 256).to(torch.uint8)


def half_precision_logits(logits: Tensor) -> Tensor:
    """Return logits float32 (n, C) whose largest softmax probability is the one that float16 arithmetic leaves.

    The predicted class keeps that probability p and the others share 1 - p, nothing if it is exactly 1.
    """
    z = logits.half().double()
    p = z.softmax(1).amax(1, keepdim=True).half().double()  # (n, 1); exactly 1 from a lead of about 8 on
    rest = ((1 - p) / (z.shape[1] - 1)).log()
    return rest.expand_as(z).scatter(1, z.argmax(1, keepdim=True), p.log()).float()
