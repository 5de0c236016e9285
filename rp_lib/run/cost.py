"""What a run should cost: FLOPs counted, memory and time derived. Estimates, all of them.

A method is built and takes a step, forward and backward, on tensors that have a shape and no numbers. PyTorch's own
counter counts the FLOPs (two per multiply-add; matrix products and convolutions alone), and what autograd keeps for the
backward pass is summed up. No weight is needed, so a laptop can say what a GPU run should take. Kernels' work space,
fragmentation and the reading of images are not in it.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count, sdpa_flop_count

from rp_lib.backbones import SCHEMAS, quiet_about_random_weights
from rp_lib.clip import FrozenCLIP
from rp_lib.data.download import DataStore
from rp_lib.data.sources import NotThere, default_root, load_sources
from rp_lib.features import Encoder
from rp_lib.methods import LPFT, build_method
from rp_lib.methods.base import Mixture
from rp_lib.run import FULL_IDS
from rp_lib.run.config import RunConfig
from rp_lib.run.opening import RANDOM, check_data, placed, published_sets
from rp_lib.trainer import batches
from rp_lib.utils.errors import UnknownName
from rp_lib.utils.preparation import Preparation

# Dense TFLOP/s of the makers' data sheets: bfloat16 (T4: float16) with float32 accumulation, and plain float32.
GPUS: dict[str, tuple[float, float]] = {
    "a100": (312.0, 19.5), "h100": (989.0, 67.0), "l4": (121.0, 30.3), "t4": (65.0, 8.1), "rtx-3090": (71.0, 35.6),
    "rtx-4090": (165.2, 82.6),
}  # fmt: skip
UTILISATION = 0.3  # assumed share of that rate; small towers and batches do not fill a large GPU
FAKE = FakeTensorMode(allow_non_fake_inputs=True)


@dataclass(frozen=True)
class Pass:
    """One pass through a tower or a method: FLOPs forward and backward, bytes that autograd keeps in between."""

    forward: int
    backward: int
    kept: int

    @property
    def flops(self) -> int:
        """Sum of forward and backward."""
        return self.forward + self.backward


class _Shapes(TorchDispatchMode):
    """Compute integers (labels, tokens, places) for real; of floats there is a shape and nothing else."""

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return tree_map_only(Tensor, _without_numbers, func(*args, **(kwargs or {})))


def _without_numbers(tensor: Tensor) -> Tensor:
    if isinstance(tensor, FakeTensor) or not tensor.is_floating_point():
        return tensor
    with FAKE:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)


class _FusedAttention(TorchFunctionMode):
    """Keep of attention what the kernels of GPUs keep: not the products of all pairs of tokens."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in (F.multi_head_attention_forward, F.scaled_dot_product_attention):
            with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]):  # the second for a trained bias
                return func(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def shapes_only() -> Iterator[None]:
    """Build and run modules without numbers; the counted methods run inside."""
    move = nn.Module.to
    nn.Module.to = lambda module, *place, **options: module  # torch cannot move such a tensor; all are in one place
    try:
        with warnings.catch_warnings(), _Shapes(), _FusedAttention():
            warnings.filterwarnings("ignore", "Accessing the data pointer")  # torch's own copy of such a tensor asks
            yield
    finally:
        nn.Module.to = move


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


def _counter() -> FlopCounterMode:
    aten = torch.ops.aten
    rules = {
        aten.convolution_backward: _convolution_backward,
        # Scores and their use; backwards each has two gradients.
        aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *a, **o: sdpa_flop_count(q, k, v),
        aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda g, q, k, v, *a, **o: (
            2 * sdpa_flop_count(q, k, v)
        ),
    }
    return FlopCounterMode(display=False, custom_mapping=rules)


def measure(run: Callable[[], Tensor], weights: Iterable[Tensor] = (), bfloat16: bool = False) -> Pass:
    """Count what ``run`` computes, and the gradients of what it returns; ``weights`` are not counted as kept."""
    own = {tensor.untyped_storage()._cdata for tensor in weights}
    kept: dict[int, tuple[Tensor, int]] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:  # a view and its base are kept once
            kept[storage._cdata] = (tensor, storage.nbytes())
        return tensor

    with (
        _counter() as there,
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=bfloat16),
    ):
        out = run()
    with _counter() as back:
        if out.requires_grad:
            out.sum().backward()
    return Pass(there.get_total_flops(), back.get_total_flops(), sum(size for _, size in kept.values()))


class Weightless(FrozenCLIP):
    """A backbone whose weights have shapes and no numbers: its steps can be counted, and it takes no memory.

    Args:
        clip: Any backbone; it stays as it is.

    Example:
        >>> Weightless.open_clip("ViT-B-32").embed_dim
        512
    """

    def __init__(self, clip: FrozenCLIP) -> None:
        self._take(clip.model, clip.tokenizer, clip.name, clip.image_size)

    @classmethod
    @functools.cache
    def open_clip(cls, name: str, tokenizer: Callable[[Sequence[str]], Tensor] | None = None) -> Self:
        """Build an open_clip architecture, with its own tokenizer or another."""
        import open_clip

        if name not in open_clip.list_models():
            raise UnknownName("open_clip model", name, open_clip.list_models())
        with quiet_about_random_weights(), torch.device("meta"):
            model = open_clip.create_model(name, pretrained=None, device="meta")
        made = cls.__new__(cls)
        made._take(model, tokenizer or open_clip.get_tokenizer(name), name, model.visual.image_size)
        return made

    def _take(
        self, model: nn.Module, tokenizer: Callable[[Sequence[str]], Tensor], name: str, size: int | tuple[int, int]
    ) -> None:
        with FAKE:
            memo = {id(t): _empty(t) for t in [*model.parameters(), *model.buffers()]}
            self.model = copy.deepcopy(model, memo).eval()
        self.device, self.channels_last, self.compiled = torch.device("cpu"), False, False
        self.tokenizer, self.name = tokenizer, name
        self.preparation, self.source = Preparation(size), None
        self.image_size = self.preparation.size
        self.logit_scale, self.logit_bias, self._known_prompts = 100.0, 0.0, {}
        with shapes_only(), torch.no_grad():
            self._mean = self._std = torch.zeros(1, 3, 1, 1)
            self.embed_dim = self.encode_tokens(self.tokenize(["a"])).shape[1]


def _empty(tensor: Tensor) -> Tensor:
    made = torch.empty(tensor.shape, dtype=tensor.dtype)
    return nn.Parameter(made, requires_grad=False) if isinstance(tensor, nn.Parameter) else made


def _numel(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)


def seconds(half_flops: float, full_flops: float, gpu: str) -> float:
    """Compute the time of FLOPs in bfloat16 and in float32 on a GPU of :data:`GPUS`, at :data:`UTILISATION`.

    Raises:
        UnknownName: No such GPU.
    """
    if gpu not in GPUS:
        raise UnknownName("GPU", gpu, GPUS)
    half, full = (1e12 * rate * UTILISATION for rate in GPUS[gpu])
    return half_flops / half + full_flops / full


@dataclass(frozen=True)
class TaskSize:
    """How large a task is.

    Args:
        train: Number of training images.
        val: Number of validation images.
        judged: Images of test, shifted and OOD sets together.
        class_names: Of all classes.
        templates: Of the prompts.
    """

    train: int
    val: int
    judged: int
    class_names: Sequence[str]
    templates: Sequence[str]

    @property
    def classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)


@dataclass(frozen=True)
class MethodCost:
    """One method with one seed.

    Args:
        steps: Optimizer steps; 0 of a method that trains nothing more than the one it is made of.
        step_flops: Of one step, forward and backward.
        other_flops: Of validation and judging, in float32, with encoders that are not the frozen backbone.
        memory: Bytes at the peak of a step; 0 without steps.
        trained: Numbers that are trained.
        needs_features: Whether it trains on the frozen backbone's features of the training images.
    """

    steps: int = 0
    step_flops: int = 0
    other_flops: int = 0
    memory: int = 0
    trained: int = 0
    needs_features: bool = False

    @property
    def train_flops(self) -> int:
        """Of all steps."""
        return self.steps * self.step_flops

    def seconds(self, gpu: str) -> float:
        """Compute the time on a GPU, in bfloat16 for steps and float32 for the rest; see :func:`seconds`."""
        return seconds(self.train_flops, self.other_flops, gpu)


def method_cost(
    name: str, settings: Mapping[str, Any], task: TaskSize, clip: Weightless, *, bfloat16: bool = True
) -> MethodCost:
    """Count what one method should cost for one seed: the method itself takes a step.

    Args:
        name: Of a method.
        settings: As :func:`rp_lib.build_method` takes them; what is not named is the default.
        task: What it is trained and judged on.
        clip: The backbone.
        bfloat16: Precision of the steps.

    Returns:
        Of a mixture with zero-shot, what it adds to the method that it is made of.
    """
    with shapes_only():
        method = build_method(name, clip, task.class_names, task.templates, dict(settings))
        shared = (clip, *(method.base.encoders if isinstance(method, Mixture) else ()))
        own = [encoder for encoder in method.encoders if encoder not in shared]
        if not isinstance(method, LPFT):  # whose preparation is the training of a probe
            method.before_training(*_training_set(task, clip.embed_dim))
        trained = _numel(p for p in method.modules().parameters() if p.requires_grad)
        trains = trained and not isinstance(method, Mixture)
        step, steps, memory, validated = Pass(0, 0, 0), 0, 0, 0
        if trains:
            method.set_training(True)
            plan = method.training_schedule()
            batch = min(plan.batch_size, task.train)
            with FAKE, torch.no_grad():  # what `fit` hands over: the images, or features that are there already
                pixels = torch.empty(batch, 3, *clip.preparation.shape, dtype=torch.uint8)
                store = SimpleNamespace(get=lambda encoder, data: encoder.encode(data.images))
                inputs = method.training_inputs(SimpleNamespace(images=pixels), store)
            # As many distinct classes as a batch has on average, evenly spaced.
            k = max(1, round(distinct_classes(batch, task.classes)))
            labels = torch.tensor([i % k * task.classes // k for i in range(batch)])
            weights = [*clip.model.parameters(), *method.modules().parameters()]
            step = measure(lambda: method.loss(inputs, labels), weights, bfloat16)
            method.set_training(False)
            steps = plan.epochs * len(batches(task.train, plan.batch_size, 0, 0))
            validated = plan.epochs * task.val
            # A float32 weight, its gradient, and one (SGD) or two (Adam) numbers of the optimizer.
            groups = [(1 if g.optimizer == "sgd" else 2, _numel(g.parameters)) for g in method.parameter_groups()]
            memory = 4 * _numel(clip.model.parameters()) + step.kept
            memory += sum(n * (8 + 4 * moments) for moments, n in groups)
        once = sum(_encoding(encoder, clip.preparation.shape) for encoder in own)
    features = bool(trains) and (method.encoders == (clip,) or isinstance(method, LPFT))
    return MethodCost(steps, step.flops, once * (validated + task.judged), memory, trained if trains else 0, features)


def _encoding(encoder: Encoder, shape: tuple[int, int]) -> int:
    """FLOPs of encoding one image."""
    with FAKE:
        image = torch.empty(1, 3, *shape, dtype=torch.uint8)
    with shapes_only(), torch.no_grad():
        return measure(lambda: encoder.encode(image)).forward


def _training_set(task: TaskSize, width: int) -> tuple[Any, Any]:
    """Labels and a store of frozen features that have the shapes of the training images', but no storage."""
    with FAKE:
        features = torch.empty(task.train, width)
    labels = torch.arange(task.train) % task.classes
    return SimpleNamespace(labels=labels), SimpleNamespace(get=lambda *_: features)


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


def plan(config: RunConfig, gpu: str = "a100") -> str:
    """Say what ``rp-lib run`` would do with a configuration, as text.

    Args:
        config: The configuration.
        gpu: A key of :data:`GPUS`, which times are estimated for.

    Raises:
        UnknownName: No such GPU.
        RPLibError: Folders that are not there.
    """
    seconds(0, 0, gpu)  # refuses an unknown one before the work of the rest
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
        lines += ["", *_estimate(config, gpu)]
    return "\n".join(lines)


def _data_lines(config: RunConfig) -> list[str]:
    if config.data["id"] not in FULL_IDS:
        if config.data["id"] == "mini":
            return ["data       the shipped icons"]
        check_data(config.data)
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


def task_size(data: Mapping[str, Any]) -> TaskSize:
    """How large a task is: published numbers where the data is published, else counted.

    Raises:
        RPLibError: folders that are not there or hold nothing.
    """
    name = data["id"]
    if name == "mini":
        from rp_lib.mini import load_benchmark

        mini = load_benchmark(data.get("root"))
        judged = sum(len(s) for s in mini.sets if s.role not in ("train", "val"))
        return TaskSize(len(mini.train), len(mini.val), judged, mini.class_names, mini.templates)
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
    return TaskSize(train, min(aside, most or aside), judged, names, templates)


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
    return TaskSize(left, val, judged, names, templates)


def _estimate(config: RunConfig, gpu: str) -> list[str]:
    clip = _backbone(config.backbone["name"])
    task = task_size(config.data)
    half = config.precision != "float32"
    costs = {n: method_cost(n, s, task, clip, bfloat16=half) for n, s in config.settings().items()}
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
                duration(seconds(low, full, gpu)) if low + full else "-",
            )
        )  # fmt: skip
    # The frozen backbone encodes each image once for all methods and seeds.
    features = task.train + task.val if any(cost.needs_features for cost in costs.values()) else 0
    once = _encoding(clip, clip.preparation.shape) * (features + task.judged)
    rows.append(("frozen CLIP", "", "", "", _figure(once / 1e15), "", duration(seconds(0, once, gpu))))
    total = seconds(total_half, total_full + once, gpu)
    everything = (total_half + total_full + once) / 1e15
    rows.append(("all seeds", "", "", "", _figure(everything), "", duration(total)))
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    table = ["  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(r, widths, strict=True)))
             for r in rows]  # fmt: skip
    return [
        f"Estimate, not a measurement: {task.train:,} training, {task.val:,} validation and {task.judged:,} judged "
        f"images, {task.classes:,} classes;",
        f"one {gpu} at {UTILISATION:.0%} of its dense {'bfloat16 (steps) and ' if half else ''}float32 "
        f"{'(all else) ' if half else ''}rate. Reading and decoding images,",
        "metrics and their intervals are not in it; memory is a step's, without the GPU's own work space.",
        "",
        *[line.rstrip() for line in table],
    ]


def _backbone(name: str) -> Weightless:
    if name != "mini":
        return Weightless.open_clip(name.replace("/", "-"))
    from rp_lib.mini import load_clip

    return Weightless(load_clip())


def _figure(value: float) -> str:
    return "-" if not value else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def duration(value: float) -> str:
    """Seconds as people say them: ``40 s``, ``12 min``, ``5.3 h``."""
    if value < 90:
        return f"{value:.0f} s" if value >= 1 else "< 1 s"
    return f"{value / 60:.0f} min" if value < 5400 else f"{value / 3600:.1f} h"
