"""What is timed: the same work by the library and by the plain pattern, in turns, on the same machine."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from rp_lib import FineTune, FrozenCLIP, ImageSet, LinearProbe, Reprogrammer, ResidualReprogrammer, preset
from rp_lib.clip import resize, to_unit_range
from rp_lib.features import FeatureStore, encode_all
from rp_lib.mini import load_clip
from rp_lib.utils.device import autocast_dtype, computing
from tests.speed.plain import TEMPLATE, Plain, prepare

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")  # as CIFAR-10
ALPHAS = tuple(i / 20 for i in range(21))
PROBE_EPOCHS = 25


@dataclass(frozen=True)
class Setting:
    """What is measured on: backbone, images a step, steps a timing, timings, and images of the evaluation."""

    backbone: str = "ViT-B-32-quickgelu"
    batch: int = 32
    steps: int = 2
    rounds: int = 3
    images: int = 64
    precision: str = "auto"

    def clip(self) -> FrozenCLIP:
        """The backbone, with random weights unless it is the mini CLIP: speed does not depend on them."""
        return load_clip() if self.backbone == "mini" else FrozenCLIP.open_clip(self.backbone, None)

    def data(self, n: int | None = None, role: str = "train") -> ImageSet:
        """Random images of CIFAR's size, every class in turn."""
        n = n or self.batch
        g = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (n, 3, 32, 32), generator=g, dtype=torch.uint8)
        return ImageSet("random", role, images, torch.arange(n) % len(CLASSES))


def in_turns(work: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each piece of work, ``rounds`` times in turns after one warm-up, so that a busy moment hits all."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(rounds + 1):
        for name, run in work.items():
            started = time.perf_counter()
            run()
            if turn:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def steps(setting: Setting) -> dict[str, list[float]]:
    """Seconds per training step: ours and the plain pattern's."""
    dtype = autocast_dtype(torch.device("cpu"), setting.precision)
    data, ours = setting.data(), setting.clip()
    plain = Plain(setting.clip(), CLASSES, dtype)
    methods = trainers(ours, setting)
    work = {f"ours {name}": lambda m=m: m.fit(data) for name, m in methods.items()}
    for name, step in (("rp", plain.rp_step), ("fine-tune", plain.fine_tune_step)):
        work[f"plain {name}"] = lambda s=step: [s(data.images, data.labels) for _ in range(setting.steps)]
    return {k: [s / setting.steps for s in v] for k, v in in_turns(work, setting.rounds).items()}


def trainers(clip: FrozenCLIP, setting: Setting) -> dict[str, Reprogrammer | FineTune]:
    """RP and full fine-tuning, each for as many steps as one timing takes."""
    task, options = (clip, CLASSES, (TEMPLATE,)), {"batch_size": setting.batch, "epochs": setting.steps}
    config = preset("paper").changed(**options, warmup_steps=0)
    return {
        "rp": Reprogrammer(*task, config, precision=setting.precision),
        "fine-tune": FineTune(*task, **options, precision=setting.precision),
    }


def probing(setting: Setting) -> dict[str, list[float]]:
    """Seconds of a linear probe over 25 epochs: features cached once, and encoded anew in every epoch."""
    data, clip = setting.data(setting.images), setting.clip()
    plain = Plain(setting.clip(), CLASSES, None)

    def ours() -> None:
        LinearProbe(clip, CLASSES, (TEMPLATE,), epochs=PROBE_EPOCHS, batch_size=setting.batch).fit(data)

    def wasteful() -> None:
        for _ in range(PROBE_EPOCHS):
            for images, labels in zip(data.images.split(setting.batch), data.labels.split(setting.batch), strict=True):
                plain.probe_step(images, labels)

    return in_turns({"ours linear probe": ours, "plain linear probe": wasteful}, 1)


def sweep(setting: Setting) -> dict[str, list[float]]:
    """Seconds of evaluating RRP on the same images at one alpha and at 21, and of the plain pattern at one."""
    data, clip = setting.data(setting.images, "test"), setting.clip()
    rp = trainers(clip, setting)["rp"]
    plain = Plain(setting.clip(), CLASSES, None)

    def at(alphas: tuple[float, ...]) -> list[float]:
        store, rrp = FeatureStore(), ResidualReprogrammer(rp)
        rp._class_embeddings = None  # as if just trained
        return [rrp.with_alpha(a).accuracy(data, store) for a in alphas]

    work = {"ours 1 alpha": lambda: at((0.4,)), "ours 21 alphas": lambda: at(ALPHAS)}
    work["plain 1 alpha"] = lambda: (plain.residual(data.images, 0.4).argmax(1) == data.labels).float().mean()
    return in_turns(work, setting.rounds)


def preparation(setting: Setting) -> dict[str, list[float]]:
    """Seconds to bring a batch of 128 uint8 images to the encoder's input, batched and one by one by way of PIL."""
    images, size = setting.data(128).images, setting.clip().image_size
    work = {"ours": lambda: resize(to_unit_range(images), size), "plain": lambda: prepare(images, size)}
    return in_turns(work, max(5, setting.rounds))


def matrix_product(setting: Setting, side: int = 2048) -> float:
    """FLOP/s of a bare matrix product in the precision of training: what the machine reaches at best."""
    dtype = autocast_dtype(torch.device("cpu"), setting.precision) or torch.float32
    a, b = torch.randn(side, side, dtype=dtype), torch.randn(side, side, dtype=dtype)
    seconds = in_turns({"product": lambda: a @ b}, 7)["product"]
    return 2 * side**3 / min(seconds)


def step_flops(setting: Setting) -> dict[str, float]:
    """FLOPs that one step really executes, counted operator by operator (2 per multiply-add)."""
    data, counted = setting.data(), {}
    for name, method in trainers(setting.clip(), setting).items():
        with FlopCounterMode(display=False) as counter:
            method.fit(data)
        counted[f"ours {name}"] = counter.get_total_flops() / setting.steps
    plain = Plain(setting.clip(), CLASSES, None)
    for name, step in (("rp", plain.rp_step), ("fine-tune", plain.fine_tune_step)):
        with FlopCounterMode(display=False) as counter:
            step(data.images, data.labels)
        counted[f"plain {name}"] = counter.get_total_flops()
    return counted


def peak_memory(setting: Setting, name: str) -> float:
    """Bytes that steps of one method add to the process's peak; call it in a process of its own."""
    data, clip = setting.data(), setting.clip()
    who, what = name.split(" ", 1)
    if who == "ours":
        method = trainers(clip, setting)[what]
        before = _peak()
        method.fit(data)
    else:
        plain = Plain(clip, CLASSES, autocast_dtype(torch.device("cpu"), setting.precision))
        before = _peak()
        step = plain.rp_step if what == "rp" else plain.fine_tune_step
        for _ in range(setting.steps):
            step(data.images, data.labels)
    return _peak() - before


def _peak() -> float:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def ratio(first: list[float], second: list[float]) -> tuple[float, float, float]:
    """Median, smallest and largest ratio of timings taken in turns."""
    each = [a / b for a, b in zip(first, second, strict=True)]
    return statistics.median(each), min(each), max(each)


def encoding(setting: Setting) -> dict[str, list[float]]:
    """Seconds to encode the evaluation's images with the untouched backbone."""
    data, clip = setting.data(setting.images), setting.clip()

    def run() -> None:
        with computing(clip.device):
            encode_all(clip, data.images)

    return in_turns({"encode": run}, setting.rounds)
