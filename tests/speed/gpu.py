"""``python -m tests.speed.gpu``: steps, memory and agreement with the CPU on a GPU (or on the CPU where there is none).

Backbones have random weights and pictures are noise: neither changes the speed. A step's seconds are those of a run of
several steps less those of a run of one, so that what happens once per run does not count.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rp_course.atlas import MEASURED, small_clip

from rp_lib import CoOp, FineTune, FrozenCLIP, ImageSet, Method, Reprogrammer, ZeroShot, mini, preset
from rp_lib.features import encode_all
from rp_lib.run.report import environment
from rp_lib.utils.errors import RPLibError
from rp_lib.utils.io import write_atomically
from tests.speed.measures import CLASSES
from tests.speed.plain import TEMPLATE

BACKBONES = ("ViT-B-32-quickgelu", "ViT-L-14-quickgelu")
FAMILIES = "families"  # a dozen kinds of towers, each in its smallest size
BATCHES = (128, 1024)


def main() -> None:
    """Measure, print and save; nothing else should use the GPU meanwhile."""
    parser = argparse.ArgumentParser(prog="python -m tests.speed.gpu", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--backbones", default=",".join(BACKBONES), help=f"open_clip models, comma-separated, or {FAMILIES!r}"
    )
    parser.add_argument("--batches", default=",".join(map(str, BATCHES)), help="images a step, comma-separated")
    parser.add_argument("--blocks", type=int, default=1000, help="blocks that each stage of a tower keeps")
    parser.add_argument("--steps", type=int, default=12, help="steps of a timing")
    parser.add_argument("--rounds", type=int, default=3, help="timings of each method")
    parser.add_argument("--seconds", type=float, default=360, help="no new measurement begins after so many seconds")
    parser.add_argument("--out", type=Path, default=Path("results/gpu.json"), help="file of all figures")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    card = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    found: dict[str, Any] = {"device": card, "environment": environment(), "mini": agreement(device), "steps": []}
    print(f"{card}: features within {found['mini']['features']:.1e} of the CPU's")
    end = time.monotonic() + args.seconds
    for name in MEASURED if args.backbones == FAMILIES else args.backbones.split(","):
        for compiled in (False, True):
            if time.monotonic() > end:
                continue
            clip = small_clip(name, blocks=args.blocks, device=device, compile=compiled)
            near = float((clip.encode(pictures(4).images).cpu() - on_cpu(name, args.blocks)).abs().max())
            for batch in map(int, args.batches.split(",")):
                for method, make in makers(clip, batch).items():
                    if time.monotonic() > end:
                        continue
                    row = {"backbone": name, "compiled": compiled, "batch": batch, "method": method, "features": near}
                    row |= step(make, pictures(batch), args.steps, args.rounds, device)
                    found["steps"].append(row)
                    print(*row.values())
    write_atomically(args.out, lambda path: path.write_text(json.dumps(found, indent=1)))
    print(f"Wrote {args.out}")


def agreement(device: torch.device) -> dict[str, Any]:
    """The mini CLIP on ``device`` against the CPU: largest difference of a feature, OOD pictures that pass at 95 % TPR."""
    benchmark, clips = mini.load_benchmark(), [mini.load_clip(device=d) for d in ("cpu", device)]
    features = [encode_all(clip, benchmark.test.images) for clip in clips]
    return {
        "features": float((features[0] - features[1]).abs().max()),
        "passing": [passing(clip, benchmark) for clip in clips],
    }


def passing(clip: FrozenCLIP, benchmark: Any) -> dict[str, int]:
    """How many pictures of each OOD set score at least what 95 % of the test pictures do (MSP of zero-shot CLIP)."""
    zero_shot = ZeroShot(clip, benchmark.class_names, benchmark.templates)

    def score(images: torch.Tensor) -> torch.Tensor:
        return zero_shot.logits(images).double().softmax(1).amax(1).cpu()

    inside = score(benchmark.test.images).sort().values
    threshold = inside[int(0.05 * len(inside))]
    return {name: int((score(data.images) >= threshold).sum()) for name, data in benchmark.ood.items()}


@functools.cache
@torch.no_grad()
def on_cpu(name: str, blocks: int) -> torch.Tensor:
    """Features of a few pictures by the same weights on the CPU."""
    return small_clip(name, blocks=blocks).encode(pictures(4).images)


def pictures(n: int) -> ImageSet:
    """Noise of CIFAR's size, every class in turn."""
    images = torch.randint(0, 256, (n, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return ImageSet("noise", "train", images, torch.arange(n) % len(CLASSES))


def makers(clip: FrozenCLIP, batch: int) -> dict[str, Callable[[int], Method]]:
    """By name, what makes a method that trains for a number of steps."""
    task, config = (clip, CLASSES, (TEMPLATE,)), preset("paper").changed(warmup_steps=0, batch_size=batch)
    return {
        "rp": lambda steps: Reprogrammer(*task, config.changed(epochs=steps)),
        "fine-tune": lambda steps: FineTune(*task, epochs=steps, batch_size=batch),
        "coop": lambda steps: CoOp(*task, epochs=steps, batch_size=batch),
    }


def step(
    make: Callable[[int], Method], data: ImageSet, steps: int, rounds: int, device: torch.device
) -> dict[str, float | str | None]:
    """Median seconds of a training step and the peak of memory in GiB; or what went wrong."""

    def seconds(n: int) -> float:
        method = make(n)
        _wait(device)
        started = time.perf_counter()
        method.fit(data)
        _wait(device)
        return time.perf_counter() - started

    try:
        seconds(2)  # kernels are chosen and compiled
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        each = [(seconds(steps) - seconds(1)) / (steps - 1) for _ in range(rounds)]
    except RPLibError as error:
        return {"seconds": None, "GiB": None, "note": str(error)}
    except torch.OutOfMemoryError:
        return {"seconds": None, "GiB": None, "note": "does not fit into the memory of this device"}
    peak = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None
    return {"seconds": statistics.median(each), "GiB": peak, "note": ""}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
