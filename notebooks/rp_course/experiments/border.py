"""What does the border hold? After training it is zeroed, shuffled, flattened, or replaced by noise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from rp_course.experiments.base import Experiment, Verdict, difference
from rp_course.experiments.grid import judge_outputs
from rp_course.experiments.world import World
from rp_lib.methods import Reprogrammer
from rp_lib.outputs import MethodOutputs

TRAINED = "rp"


def _black(shown: Tensor, mask: Tensor, g: torch.Generator) -> Tensor:
    return torch.zeros_like(shown)


def _white(shown: Tensor, mask: Tensor, g: torch.Generator) -> Tensor:
    return torch.ones_like(shown)


def _mean(shown: Tensor, mask: Tensor, g: torch.Generator) -> Tensor:
    return shown[:, mask].mean(1)[:, None, None].expand_as(shown)


def _shuffled(shown: Tensor, mask: Tensor, g: torch.Generator) -> Tensor:
    pixels = shown[:, mask]
    out = shown.clone()
    out[:, mask] = pixels[:, torch.randperm(pixels.shape[1], generator=g)]
    return out


def _noise(shown: Tensor, mask: Tensor, g: torch.Generator) -> Tensor:
    return torch.rand(shown.shape, generator=g)


# What stands in the border instead, from what the trained one shows: float (3, H, H) in [0, 1], bool (H, H) mask.
CHANGES: dict[str, Callable[[Tensor, Tensor, torch.Generator], Tensor]] = {
    "black": _black, "white": _white, "its mean colour": _mean, "its pixels shuffled": _shuffled, "noise": _noise,
}  # fmt: skip


def with_border(rp: Reprogrammer, change: str, seed: int = 0) -> Reprogrammer:
    """A copy of a trained reprogrammer that shows another border; the prompts stay as trained."""
    made = Reprogrammer(rp.clip, rp.class_names, rp.templates, rp.config, seed=rp.seed, precision=rp.precision)
    made.load_state_dict(rp.state_dict())
    made.trained_on = rp.trained_on
    program = made.image_program
    mask = program.M.bool().cpu()
    shown = torch.tanh(program.W.detach().cpu()).clamp(0, 1)
    new = CHANGES[change](shown, mask, torch.Generator().manual_seed(seed)).clamp(0, 1 - 1e-6)  # tanh never gives 1
    with torch.no_grad():
        program.W.copy_(torch.where(mask, torch.atanh(new), program.W.detach().cpu()))
    return made


def measure(world: World, parts: Path) -> pd.DataFrame:
    """RP with its trained border around the picture and with each change of it, one after the other."""
    clip, benchmark = world.backbone(), world.judged
    outputs: dict[str, list[MethodOutputs]] = {}
    for seed in world.seeds:
        rp = world.fit("rp", seed, benchmark, clip, settings=world.placed("pad"))
        outputs.setdefault(TRAINED, []).append(world.outputs(rp, seed, benchmark))
        for change in list(CHANGES)[: 2 if world.quick else None]:
            changed = with_border(rp, change, seed)
            outputs.setdefault(f"rp, border: {change}", []).append(world.outputs(changed, seed, benchmark))
            world.forget(changed)
        world.forget(rp)
    pairs = [(label, TRAINED) for label in outputs if label != TRAINED]
    return judge_outputs(outputs, pairs).assign(prompts="as trained")


def judge(records: pd.DataFrame) -> list[Verdict]:
    """Whether the border carries anything that its colour, its pixels in another place, or white would not."""
    there = set(records["method"])
    return [
        difference(f"ID accuracy falls with the border {label.removeprefix('rp, border: ')}", records, label, TRAINED,
                   "id accuracy", "lower")
        for label in (f"rp, border: {change}" for change in CHANGES)
        if label in there
    ]  # fmt: skip


EXPERIMENT = Experiment(
    "border", "What does the trained border hold, and does its content matter?", ("prompts",), measure, judge, 2
)
