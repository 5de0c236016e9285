"""What a run would do, said before it does anything: data, methods, and an estimate of FLOPs, memory and time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rp_lib.backbones import SCHEMAS
from rp_lib.cost import UTILISATION, TowerCosts, seconds
from rp_lib.cost_of_methods import MethodCost, TaskSize, method_cost
from rp_lib.data import DataStore, NotThere, default_root, load_sources
from rp_lib.run_config import FULL_IDS, RunConfig
from rp_lib.tracks import RANDOM, check_data, placed, published_sets

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
        gpu, utilisation: that times are estimated for, see :mod:`rp_lib.cost`.

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
        from rp_lib.benchmark import Benchmark

        mini = Benchmark.mini(data.get("root"))
        judged = sum(len(s) for s in mini.sets if s.role not in ("train", "val"))
        tokens = _longest(mini.class_names, mini.templates)
        return TaskSize(len(mini.train), len(mini.val), judged, len(mini.class_names), len(mini.templates), tokens)
    if "train" in data:
        return _counted(placed(data))
    from rp_lib.photos.classes import CIFAR10, imagenet_class_names, prompt_templates

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
    from rp_lib.photos.classes import CIFAR10, TINY_IMAGENET_TO_CIFAR10, prompt_templates
    from rp_lib.photos.folders import image_files, image_folder, several

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
    from rp_lib.clip import FrozenCLIP

    mini = FrozenCLIP.mini()
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
