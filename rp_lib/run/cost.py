"""What a backbone, a step and a run should cost: FLOPs counted, memory and time derived. Estimates, all of them.

FLOPs are counted by PyTorch's own counter over tensors without storage (two per multiply-add; matrix products and
convolutions alone), forward and backward; what autograd keeps for the backward pass is summed up the same way. Nothing
is computed and no weight is needed, so a laptop can say what a GPU run should take. Kernels' work space, fragmentation
and the reading of images are not in it.
"""

from __future__ import annotations

import copy
import functools
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from rp_lib.backbones import SCHEMAS
from rp_lib.config import PAPER, RPConfig
from rp_lib.data.download import DataStore
from rp_lib.data.sources import NotThere, default_root, load_sources
from rp_lib.run import FULL_IDS
from rp_lib.run.config import RunConfig
from rp_lib.run.session import RANDOM, check_data, placed, published_sets
from rp_lib.towers import encode_embedded, text_part
from rp_lib.utils.errors import RPLibError, UnknownName

# What gradients a pass computes: none; back to the input through frozen weights; of the weights.
GRADIENTS = ("none", "input", "weights")
# Dense TFLOP/s of the makers' data sheets: bfloat16 (T4: float16) with float32 accumulation, and plain float32.
GPUS: dict[str, tuple[float, float]] = {
    "a100": (312.0, 19.5), "h100": (989.0, 67.0), "l4": (121.0, 30.3), "t4": (65.0, 8.1), "rtx-3090": (71.0, 35.6),
    "rtx-4090": (165.2, 82.6),
}  # fmt: skip
UTILISATION = 0.3  # assumed share of that rate; small towers and batches do not fill a large GPU


@dataclass(frozen=True)
class Pass:
    """One pass through a tower: FLOPs forward and backward, bytes that autograd keeps in between."""

    forward: int
    backward: int
    kept: int

    @property
    def flops(self) -> int:
        """Forward and backward."""
        return self.forward + self.backward


class TowerCosts:
    """Costs of the two towers of an open_clip model, on whatever device and with whatever weights it is.

    Args:
        model: is copied without its weights and stays as it is. image_size: side of the input, pixels.
        name: for messages and tables.
    """

    def __init__(self, model: nn.Module, image_size: int, name: str = "") -> None:
        self.name, self.image_size = name, image_size
        with torch.device("meta"):
            memo = {id(t): _empty(t) for t in [*model.parameters(), *model.buffers()]}
            # In training mode: the fused inference kernels would escape the counter.
            self._model = copy.deepcopy(model, memo).train()
        part = text_part(self._model)
        self.width, self.vocabulary = part.token_embedding.weight.shape[1], part.token_embedding.weight.shape[0]
        self.context_length = len(part.positional_embedding)
        self._towers = {"image": self._model.visual, "text": _Text(part)}
        self._pass = functools.cache(self._measure)

    @staticmethod
    @functools.cache
    def open_clip(name: str) -> TowerCosts:
        """Of an open_clip architecture; nothing is downloaded, no memory is taken."""
        import open_clip

        if name not in open_clip.list_models():
            raise UnknownName("open_clip model", name, open_clip.list_models())
        root = logging.getLogger()
        root.addFilter(_expected)
        try:
            with torch.device("meta"):
                model = open_clip.create_model(name, pretrained=None, device="meta")
        finally:
            root.removeFilter(_expected)
        size = model.visual.image_size
        return TowerCosts(model, size[0] if isinstance(size, tuple | list) else size, name)

    @property
    def parameters(self) -> dict[str, int]:
        """Numbers of weights: of the image tower, and of the whole model."""
        return {"image": _numel(self._model.visual), "all": _numel(self._model)}

    def image(self, gradient: str = "none", batch: int = 1, bfloat16: bool = False) -> Pass:
        """A batch of images; ``gradient`` is one of :data:`GRADIENTS`."""
        return self._pass("image", gradient, (batch, 3, self.image_size, self.image_size), bfloat16)

    def text(self, length: int, gradient: str = "none", batch: int = 1, bfloat16: bool = False) -> Pass:
        """A batch of prompts of ``length`` tokens, marks included, from their embeddings on.

        Raises:
            RPLibError: the tower has no such number of positions.
        """
        if not 1 <= length <= self.context_length:
            raise RPLibError(f"the text tower of {self.name} has {self.context_length} positions, not {length}")
        return self._pass("text", gradient, (batch, length, self.width), bfloat16)

    def _measure(self, tower: str, gradient: str, shape: tuple[int, ...], bfloat16: bool) -> Pass:
        if gradient not in GRADIENTS:
            raise UnknownName("gradient", gradient, GRADIENTS)
        module, batch = self._towers[tower], shape[0]
        # On this device attention falls apart into plain products, which the counter sees; FLOPs grow with the batch.
        with torch.device("meta"):
            state, x = _tensors(module, gradient, (1, *shape[1:]))
            with _counter() as there:
                y = functional_call(module, state, (x,))
            forward, backward = there.get_total_flops(), 0
            if gradient != "none":
                with _counter() as back:
                    y.sum().backward()
                backward = back.get_total_flops()
        kept = 0 if gradient == "none" else _kept(module, gradient, shape, bfloat16)
        return Pass(forward * batch, backward * batch, kept)


def _counter() -> FlopCounterMode:
    return FlopCounterMode(display=False, custom_mapping={torch.ops.aten.convolution_backward: _convolution_backward})


def _convolution_backward(
    gradient: Sequence[int], x: Sequence[int], weight: Sequence[int], *options: Any, **more: Any
) -> int:
    """FLOPs of a convolution's gradients: for the input and for the weight as many each as forward.

    PyTorch's own count of a weight's gradient multiplies all channels with all, so that of a grouped convolution comes
    out too large by the number of groups: 768 times for a depthwise one of 768 channels.
    """
    transposed, wanted = options[4], options[7]
    once = conv_flop_count(list(x), list(weight), list(gradient), transposed)
    return once * (bool(wanted[0]) + bool(wanted[1]))


def _kept(module: nn.Module, gradient: str, shape: tuple[int, ...], bfloat16: bool) -> int:
    """Bytes that autograd keeps for the backward pass, the weights themselves aside."""
    kept: dict[int, tuple[Tensor, int]] = {}
    with FakeTensorMode():  # tensors without storage that behave as on a CPU, autocast included
        state, x = _tensors(module, gradient, shape)
        own = {t.untyped_storage()._cdata for t in state.values()}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in own:  # a view and its base are kept once
                kept[storage._cdata] = (tensor, storage.nbytes())
            return tensor

        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t),
            torch.autocast("cpu", torch.bfloat16, enabled=bfloat16),
        ):
            functional_call(module, state, (x,))
    return sum(size for _, size in kept.values())


def _tensors(module: nn.Module, gradient: str, shape: tuple[int, ...]) -> tuple[dict[str, Tensor], Tensor]:
    """Weights and input on the device, and in the mode, of the context."""
    state = {}
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        state[name] = torch.empty(tensor.shape, dtype=tensor.dtype)
        if gradient == "weights" and isinstance(tensor, nn.Parameter):
            state[name].requires_grad_()
    return state, torch.empty(shape, requires_grad=gradient == "input")


class _Text(nn.Module):
    """A text tower from its embedded tokens on."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.text = part

    def forward(self, embedded: Tensor) -> Tensor:
        end = torch.zeros(len(embedded), dtype=torch.int64)
        return encode_embedded(self, embedded, end)


def _expected(record: logging.LogRecord) -> bool:
    """False for open_clip's warning of random weights: here there are none at all."""
    return "initialized randomly" not in record.getMessage()


def _empty(tensor: Tensor) -> Tensor:
    made = torch.empty_like(tensor, device="meta")
    return nn.Parameter(made, requires_grad=False) if isinstance(tensor, nn.Parameter) else made


def _numel(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def seconds(half_flops: float, full_flops: float, gpu: str, utilisation: float = UTILISATION) -> float:
    """Time of FLOPs in bfloat16 and in float32 on a GPU of :data:`GPUS`.

    Raises:
        UnknownName: no such GPU. RPLibError: a utilisation that is none.
    """
    if gpu not in GPUS:
        raise UnknownName("GPU", gpu, GPUS)
    if not 0 < utilisation <= 1:
        raise RPLibError(f"the utilisation is a share of the GPU's rate, above 0 and at most 1, got {utilisation}")
    half, full = (1e12 * rate * utilisation for rate in GPUS[gpu])
    return half_flops / half + full_flops / full


# What each method should cost on a task: its steps, the encodings around them, memory. Estimates, all of them.

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


def _reprogrammer(name: str, c: RPConfig, task: TaskSize, towers: TowerCosts, length: int) -> Work:
    image, text = name != "rp-text" and c.use_image_program, name != "rp-image" and c.use_text_program
    rows = towers.vocabulary if c.text_rows == "all" else min(towers.vocabulary, task.classes * length)
    trained = image * 3 * towers.image_size**2 + text * (rows + length) * towers.width
    classes = task.classes if c.objective == "class" else distinct_classes(c.batch_size, task.classes)
    return Work(
        epochs=c.epochs, batch=c.batch_size, trained=trained, image_gradient="input" if image else "",
        text_gradient="input" if text else "", prompts=classes * task.templates, length=length, own_encoder=image,
        judgements=int(image), needs_features=not image,
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


# What a run would do, said before it does anything: data, methods, and an estimate of FLOPs, memory and time.

# Published numbers of images; of STL-10's 8,000 the 800 monkeys are none of the classes.
IMAGES = {
    "cifar10": {
        "train": 50_000, "test": 10_000, "cifar10.1": 2_000, "cifar10.2": 2_000, "stl10": 7_200, "svhn": 26_032,
        "lsun-crop": 10_000, "lsun-resize": 10_000, "isun": 8_925, "textures": 5_640, "places365": 36_500,
    },
    "imagenet": {
        "train": 1_281_167, "test": 50_000, "imagenet-v2": 10_000, "imagenet-r": 30_000, "imagenet-a": 7_500,
        "imagenet-sketch": 50_889, "inaturalist": 10_000, "sun": 10_000, "places": 10_000, "textures": 5_640,
    },
}  # fmt: skip
DEFAULT_TEMPLATES = ("a photo of a {}.",)  # of folders
VAL_PER_CLASS = {"cifar10": 500, "imagenet": 10}


def plan(config: RunConfig, gpu: str = "a100", utilisation: float = UTILISATION) -> str:
    """What ``rp-lib run`` would do with a configuration, as text.

    Args:
        gpu, utilisation: that times are estimated for, see :mod:`rp_lib.run.cost`.

    Raises:
        UnknownName: no such GPU. RPLibError: a utilisation that is none, folders that are not there.
    """
    seconds(0, 0, gpu, utilisation)  # refuses what is wrong before the work of the rest
    weights = config.backbone.get("pretrained", "its own")
    fetched = "untrained, to try a run out" if weights == RANDOM else weights
    lines = [
        f"{config.source}: {config.about}" if config.about else config.source,
        *_data_lines(config),
        f"backbone   {config.backbone['name']}, weights: {fetched}",
        f"methods    {', '.join(config.methods)}",
        f"settings   preset {config.preset}; seeds {', '.join(map(str, config.seeds))}; device {config.device}, "
        f"precision {config.precision}",
        f"results    {config.out}" + (" (there already; what fits is reused)" if config.out.is_dir() else ""),
    ]
    if config.backbone["name"].startswith(SCHEMAS):
        lines += ["", "no estimate: the architecture of this backbone is known when it is loaded"]
    else:
        lines += ["", *_estimate(config, gpu, utilisation)]
    return "\n".join(lines)


def _data_lines(config: RunConfig) -> list[str]:
    if config.data["id"] not in FULL_IDS:
        if config.data["id"] == "mini":
            return ["data       the shipped icons"]
        return [f"data       your folders, train: {placed(config.data)['train']}"]
    store = DataStore(Path(config.data["root"]).expanduser() if "root" in config.data else default_root())
    sources, lines = load_sources(), []
    for names in published_sets(config.data["id"]):
        for name in names:
            state = store.state(sources[name])
            text = state.text if state.kind == "there" else "missing"
            lines.append(f"{'data' if not lines else '':11}{name}: {text}")
    try:
        check_data(config.data)
    except NotThere as error:
        lines.append(f"{'':11}{error}")
    return lines


def task_size(data: Mapping[str, Any], backbone: str = "") -> TaskSize:
    """How large a task is: published numbers where the data is published, else counted.

    Raises:
        RPLibError: folders that are not there or hold nothing.
    """
    name = data["id"]
    if name == "mini":
        from rp_lib.mini import load_benchmark

        mini = load_benchmark(data.get("root"))
        judged = sum(len(s) for s in mini.sets if s.role not in ("train", "val"))
        tokens = _longest(mini.class_names, mini.templates)
        return TaskSize(len(mini.train), len(mini.val), judged, len(mini.class_names), len(mini.templates), tokens)
    if "train" in data:
        return _counted(placed(data))
    from rp_lib.data.class_names import CIFAR10, imagenet_class_names, prompt_templates

    names = CIFAR10 if name == "cifar10" else imagenet_class_names("distinct")
    templates, classes = prompt_templates(data.get("templates", "plain")), len(names)
    aside = classes * data.get("val_per_class", VAL_PER_CLASS[name])
    sizes, most = dict(IMAGES[name]), data.get("subset")
    train = sizes.pop("train") - aside
    if "per_class" in data:
        train = min(train, classes * data["per_class"])
    judged = sum(min(n, most or n) for n in sizes.values())
    return TaskSize(train, min(aside, most or aside), judged, classes, len(templates), _longest(names, templates))


def _counted(data: Mapping[str, Any]) -> TaskSize:
    from rp_lib.data.class_names import CIFAR10, TINY_IMAGENET_TO_CIFAR10, prompt_templates
    from rp_lib.data.image_folders import image_files, image_folder, several

    most, cifar = data.get("subset"), data["id"] == "cifar10-folders"
    train = image_folder(data["train"])
    n, classes = len(train.paths), len(train.classes)
    given = {key: len(image_files(data[key])) for key in ("val", "test") if key in data}
    own = {"val": round(n * data.get("val_fraction", 0.1)), "test": round(n * data.get("test_fraction", 0.2))}
    if cifar:
        own["val"] = classes * data.get("val_per_class", VAL_PER_CLASS["cifar10"])
    left = n - sum(own[key] for key in own if key not in given)
    left = min(left, classes * data.get("per_class", left))
    shifts = [len(image_files(folder)) for folder in data.get("shifts", {}).values()]
    if "tiny_imagenet" in data:
        shifts.append(50 * len(TINY_IMAGENET_TO_CIFAR10))
    ood = [sum(len(image_files(at)) for at in several(folders)) for folders in data.get("ood", {}).values()]
    sizes = {**own, **given}
    judged = sum(min(size, most or size) for size in (sizes["test"], *shifts, *ood))
    names = data.get("class_names", CIFAR10 if cifar else train.classes)
    names = list(names.values()) if isinstance(names, Mapping) else names
    templates = prompt_templates(data.get("templates", "plain")) if cifar else data.get("templates", DEFAULT_TEMPLATES)
    val = min(sizes["val"], most or sizes["val"])
    return TaskSize(left, val, judged, classes, len(templates), _longest(names, templates))


def _longest(names: Iterable[str], templates: Sequence[str]) -> int:
    """Tokens of the longest prompt in CLIP's vocabulary, marks included."""
    from open_clip.tokenizer import SimpleTokenizer

    tokenizer = SimpleTokenizer()
    return 2 + max(len(tokenizer.encode(t.format(n))) for n in names for t in templates)


def _estimate(config: RunConfig, gpu: str, utilisation: float) -> list[str]:
    towers = _towers(config.backbone["name"])
    task = task_size(config.data)
    half = config.precision != "float32"
    costs = {n: method_cost(n, s, task, towers, bfloat16=half) for n, s in config.settings().items()}
    head = ("method", "seeds", "steps a seed", "GFLOP a step", "PFLOP a seed", "GPU memory", "time a seed")
    rows = [head]
    total_half = total_full = 0.0
    for name, cost in costs.items():
        seeds = 1 if name == "zero-shot" else len(config.seeds)
        low, full = (cost.train_flops, cost.other_flops) if half else (0, cost.train_flops + cost.other_flops)
        total_half, total_full = total_half + seeds * low, total_full + seeds * full
        rows.append(
            (
                name, str(seeds), f"{cost.steps:,}" if cost.steps else "-", _figure(cost.step_flops / 1e9),
                _figure((low + full) / 1e15), f"{cost.memory / 1e9:.1f} GB" if cost.memory else "-",
                duration(seconds(low, full, gpu, utilisation)) if low + full else "-",
            )
        )  # fmt: skip
    once = towers.image().forward * _frozen_images(costs, task)
    rows.append(("frozen CLIP", "", "", "", _figure(once / 1e15), "", duration(seconds(0, once, gpu, utilisation))))
    total = seconds(total_half, total_full + once, gpu, utilisation)
    everything = (total_half + total_full + once) / 1e15
    rows.append(("all seeds", "", "", "", _figure(everything), "", duration(total)))
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    table = ["  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(r, widths, strict=True)))
             for r in rows]  # fmt: skip
    return [
        f"Estimate, not a measurement: {task.train:,} training, {task.val:,} validation and {task.judged:,} judged "
        f"images, {task.classes:,} classes;",
        f"one {gpu} at {utilisation:.0%} of its dense {'bfloat16 (steps) and ' if half else ''}float32 "
        f"{'(all else) ' if half else ''}rate. Reading and decoding images,",
        "metrics and their intervals are not in it; memory is a step's, without the GPU's own work space.",
        "",
        *[line.rstrip() for line in table],
    ]


def _towers(name: str) -> TowerCosts:
    if name != "mini":
        return TowerCosts.open_clip(name.replace("/", "-"))
    from rp_lib.mini import load_clip

    mini = load_clip()
    return TowerCosts(mini.model, mini.image_size, "mini")


def _frozen_images(costs: Mapping[str, MethodCost], task: TaskSize) -> int:
    """Images that the frozen backbone encodes, once for all methods and seeds."""
    features = task.train + task.val if any(c.needs_features for c in costs.values()) else 0
    return features + task.judged


def _figure(value: float) -> str:
    return "-" if not value else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def duration(value: float) -> str:
    """Seconds as people say them: ``40 s``, ``12 min``, ``5.3 h``."""
    if value < 90:
        return f"{value:.0f} s" if value >= 1 else "< 1 s"
    return f"{value / 60:.0f} min" if value < 5400 else f"{value / 3600:.1f} h"
