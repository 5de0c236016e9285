"""What each method should cost on a task: its steps, the encodings around them, memory. Estimates, all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rp_lib.cost import UTILISATION, Pass, TowerCosts, seconds
from rp_lib.errors import RPLibError
from rp_lib.presets import PAPER, Reprogramming


@dataclass(frozen=True)
class TaskSize:
    """How large a task is.

    Attributes:
        train, val: images. judged: images of test, shifted and OOD sets together.
        classes, templates: prompts are their product. prompt_tokens: of the longest prompt, marks included.
    """

    train: int
    val: int
    judged: int
    classes: int
    templates: int = 1
    prompt_tokens: int = 8


@dataclass(frozen=True)
class MethodCost:
    """One method with one seed.

    Attributes:
        steps: optimiser steps. step_flops: of one, forward and backward. train_flops: of all steps.
        other_flops: of validation and judging, in float32. memory: bytes at the peak of a step; 0: nothing to train
            on the GPU. needs_features: whether it trains on the frozen backbone's features of the training images.
    """

    steps: int
    step_flops: int
    other_flops: int
    memory: int
    needs_features: bool

    @property
    def train_flops(self) -> int:
        """Of all steps."""
        return self.steps * self.step_flops

    def seconds(self, gpu: str, utilisation: float = UTILISATION) -> float:
        """At the GPU's dense rate (bfloat16 for steps, float32 for the rest) times the utilisation."""
        return seconds(self.train_flops, self.other_flops, gpu, utilisation)


@dataclass(frozen=True)
class Work:
    """One method's work.

    Attributes:
        epochs, batch: of its training. trained: number of trained numbers on the GPU; 0: none.
        image_gradient, text_gradient: of the pass through each tower in a step; empty: no pass.
        prompts, length: prompts in a step, and their tokens. moments: numbers the optimiser keeps per trained one.
        own_encoder: whether its image features differ from the frozen backbone's.
        judgements: encodings of all judged images that it adds.
        needs_features: whether it trains on the frozen backbone's features.
    """

    epochs: int = 0
    batch: int = 128
    trained: int = 0
    image_gradient: str = ""
    text_gradient: str = ""
    prompts: float = 0.0
    length: int = 1
    moments: int = 2
    own_encoder: bool = False
    judgements: int = 0
    needs_features: bool = False


def describe(name: str, settings: Mapping[str, Any], task: TaskSize, towers: TowerCosts) -> Work:
    """The work of a method.

    Raises:
        RPLibError: nobody has described this method.
    """
    s, length = dict(settings), min(task.prompt_tokens, towers.context_length)
    prompts = task.classes * task.templates
    own = {"own_encoder": True, "judgements": 1}
    if name in ("zero-shot", "rrp", "logit-ensemble"):
        return Work()
    if name == "wise-ft":
        return Work(judgements=int(0 < s.get("alpha", 0.5) < 1))
    if name == "linear-probe":  # on the CPU, on features
        return Work(needs_features=True)
    if name in ("fine-tune", "l2-sp", "lp-ft", "flyp"):
        work = {"epochs": s.get("epochs", 25), "batch": s.get("batch_size", 128), "image_gradient": "weights", **own}
        if name != "flyp":
            head = task.classes * towers.width
            return Work(trained=towers.parameters["image"] + head, needs_features=name == "lp-ft", **work)
        rows = min(towers.vocabulary, prompts * length) * towers.width  # not the rows of words that no prompt holds
        table = towers.vocabulary * towers.width
        seen = task.templates * distinct_classes(work["batch"], task.classes)
        trained = towers.parameters["all"] - table + rows
        return Work(trained=trained, text_gradient="weights", prompts=seen, length=length, **work)
    if name in ("coop", "maple"):
        context = (s.get("n_context") or 16) if name == "coop" else s.get("n_prompts", 2)
        # The template's words make way for the context: two marks, the context, about as many tokens as a name has.
        longer = min(towers.context_length, length + max(0, context - 4))
        work = {"text_gradient": "input", "prompts": task.classes, "length": longer, "moments": 1}
        if name == "coop":
            epochs, batch = s.get("epochs", 50), s.get("batch_size", 128)
            vectors = context * (task.classes if s.get("class_specific") else 1) * towers.width
            return Work(epochs=epochs, batch=batch, trained=vectors, needs_features=True, **work)
        epochs, batch = s.get("epochs", 5), s.get("batch_size", 4)
        layers = s.get("depth") or 9
        vectors = layers * (context + towers.width + 1) * towers.width  # prompts and the maps between the towers
        return Work(epochs=epochs, batch=batch, trained=vectors, image_gradient="input", **own, **work)
    if name in ("rp", "rp-image", "rp-text"):
        return _reprogrammer(name, s.get("config", PAPER), task, towers, length)
    raise RPLibError(f"no cost is known for the method {name!r}: describe it in {__name__}")


def _reprogrammer(name: str, c: Reprogramming, task: TaskSize, towers: TowerCosts, length: int) -> Work:
    image, text = name != "rp-text" and c.use_image_program, name != "rp-image" and c.use_text_program
    rows = towers.vocabulary if c.text_rows == "all" else min(towers.vocabulary, task.classes * length)
    trained = image * 3 * towers.image_size**2 + text * (rows + length) * towers.width
    classes = task.classes if c.objective == "class" else distinct_classes(c.batch_size, task.classes)
    # The released detection script sees other pixels than the accuracy, so both are encoded.
    twice = c.wrap_around_detection or c.half_precision_detection
    return Work(
        epochs=c.epochs, batch=c.batch_size, trained=trained, image_gradient="input" if image else "",
        text_gradient="input" if text else "", prompts=classes * task.templates, length=length, own_encoder=image,
        judgements=(2 if twice else 1) * image, needs_features=not image,
    )  # fmt: skip


def method_cost(
    name: str, settings: Mapping[str, Any], task: TaskSize, towers: TowerCosts, *, bfloat16: bool = True
) -> MethodCost:
    """What one method should cost for one seed.

    Args:
        name: of a method. settings: as :func:`rp_lib.build_method` takes them; what is not named is the default.
        bfloat16: of the steps. Mixtures with zero-shot count what they add to the method that they are made of.
    """
    d = describe(name, settings, task, towers)
    steps = d.epochs * steps_per_epoch(task.train, d.batch) if d.trained else 0
    k = max(1, round(d.prompts))
    image = towers.image(d.image_gradient, d.batch, bfloat16) if d.image_gradient else Pass(0, 0, 0)
    text = towers.text(d.length, d.text_gradient, k, bfloat16) if d.text_gradient else Pass(0, 0, 0)
    once = towers.image().forward
    validated = d.epochs * task.val if d.own_encoder and d.trained else 0
    other = once * (validated + d.judgements * task.judged)
    memory = 0
    if image.flops or text.flops:
        frozen = 4 * towers.parameters["all"]
        # A float32 weight, its gradient, and one (SGD) or two (Adam) numbers of the optimiser; a border or a context is
        # new, a tuned tower is a copy beside the frozen one.
        memory = frozen + d.trained * (8 + 4 * d.moments) + image.kept + text.kept
        memory += 4 * d.batch * 3 * towers.image_size**2 if image.flops else 0
    return MethodCost(steps, image.flops + text.flops, other, memory, d.needs_features)


def steps_per_epoch(n: int, batch: int) -> int:
    """As :func:`rp_lib.trainer.batches` makes them: a last batch below half is joined to the one before."""
    return max(1, n // batch + (n % batch >= batch / 2 and n % batch > 0))


def distinct_classes(batch: int, classes: int) -> float:
    """Expected number of distinct classes in a batch that is drawn evenly."""
    return classes * (1 - (1 - 1 / classes) ** batch)
