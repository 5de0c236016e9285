"""What the released code's evaluation prints of a trained method: its detection script, emulated."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from rp_course.experiments.world import World
from rp_lib.benchmark import Benchmark, mask_logits
from rp_lib.clip import to_unit_range
from rp_lib.methods import Method, Reprogrammer, ResidualReprogrammer
from rp_lib.outputs import MethodOutputs, Outputs


@dataclass(frozen=True)
class DetectionScript:
    """Compute the outputs that the released scripts score, of a fitted RP or RRP.

    Accuracy is that of the method itself (or of RP, with ``rp_accuracy``); the OOD scores are those of the script.

    Args:
        wrap: RP's pictures are normalised, times 255, and cast to 8 bits: what a byte cannot hold wraps around.
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
            wrapping = _Wrapping.of(rp)
            seen = wrapping if method is rp else ResidualReprogrammer(wrapping, method.alpha)
            scored = world.outputs(seen, seed, benchmark)
            world.forget(wrapping)
        if self.rp_accuracy:
            reported = world.outputs(rp, seed, benchmark)
        sets = {}
        for name, s in scored.sets.items():
            parts: dict[str, Any] = {f.name: getattr(s, f.name) for f in fields(Outputs)}
            if self.half:
                parts["logits"] = half_precision_logits(s.logits)
            sets[name] = _Scored(**parts, reported_logits=reported.sets[name].logits)
        return MethodOutputs(scored.about, sets)


@dataclass(frozen=True, eq=False)
class _Scored(Outputs):
    """Outputs whose accuracy is that of other logits than the scores'."""

    reported_logits: Tensor | None = None

    @property
    def reported(self) -> Tensor:
        """float32 (n, C) logits that accuracy and calibration are computed of."""
        return mask_logits(self.reported_logits, self.class_subset)


class _Wrapping(Reprogrammer):
    """A fitted reprogrammer whose pictures are cast to 8 bits after they were normalised."""

    @classmethod
    def of(cls, rp: Reprogrammer) -> _Wrapping:
        """Return the same programs, shared and not copied, behind the faulty cast."""
        made = cls.__new__(cls)
        made.__dict__.update(rp.__dict__)
        return made

    def program_images(self, images: Tensor) -> Tensor:
        """Return psi of the wrapped pictures, float (n, 3, H, H) in [0, 1]."""
        normalised = self.clip.normalize(to_unit_range(images.to(self.clip.device)))
        return self.image_program(wrap_to_8_bits(normalised))


def wrap_to_8_bits(normalised: Tensor) -> Tensor:
    """Return float values in [0, 1] as bytes hold them: times 255, the integer part, modulo 256."""
    return ((normalised * 255).to(torch.int64) % 256).float() / 255


def half_precision_logits(logits: Tensor) -> Tensor:
    """Return logits float32 (n, C) whose largest softmax probability is the one that float16 arithmetic leaves.

    The predicted class keeps that probability p and the others share 1 - p, nothing if it is exactly 1.
    """
    z = logits.half().double()
    p = z.softmax(1).amax(1, keepdim=True).half().double()  # (n, 1); exactly 1 from a lead of about 8 on
    rest = ((1 - p) / (z.shape[1] - 1)).log()
    return rest.expand_as(z).scatter(1, z.argmax(1, keepdim=True), p.log()).float()
