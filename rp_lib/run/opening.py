"""Open what a configuration names: a frozen backbone and a benchmark."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from rp_lib.backbones import SCHEMAS
from rp_lib.benchmark import Benchmark
from rp_lib.clip import FrozenCLIP
from rp_lib.data import from_folders
from rp_lib.data.image_folders import FolderError
from rp_lib.mini import load_benchmark, load_clip
from rp_lib.utils.errors import RPLibError, UnknownName

RANDOM = "random"
FOLDERS = ("train", "val", "test", "tiny_imagenet", "shifts", "ood")  # keys of [data] that name folders


def open_backbone(backbone: Mapping[str, Any], device: torch.device | str = "cpu") -> FrozenCLIP:
    """The frozen CLIP that ``[backbone]`` of a configuration names.

    ``mini`` is the one that ships. ``pretrained`` is a tag of open_clip or a local file of weights; ``random`` gives
    untrained weights, always the same, to try a run out; ``hf-hub:`` and ``local-dir:`` names bring their own.
    ``channels_last`` and ``compile`` are passed on, see :class:`FrozenCLIP`.

    Raises:
        RPLibError: no such model, or its weights cannot be fetched or read.
    """
    name, pretrained = backbone["name"], backbone.get("pretrained")
    if name == "mini":
        return load_clip(pretrained or "final", device)
    options = {key: backbone[key] for key in ("channels_last", "compile") if key in backbone}
    if pretrained is None and not name.startswith(SCHEMAS):
        raise RPLibError(f"[backbone] {name} needs pretrained: a tag such as openai, a file of weights, or {RANDOM}")
    if pretrained == RANDOM:
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            return FrozenCLIP.open_clip(name, None, device, **options)
    try:
        weights = None if pretrained is None else Path(pretrained).expanduser()
        return FrozenCLIP.open_clip(name, weights, device, **options)
    except UnknownName:
        raise
    except RPLibError as error:
        raise RPLibError(
            f"{error}: [backbone] pretrained of the configuration (--set backbone.pretrained=FILE), in notebooks "
            "$RP_PRETRAINED"
        ) from error


def check_data(data: Mapping[str, Any]) -> None:
    """Check that all data is there that ``[data]`` of a configuration needs, before anything is loaded.

    Raises:
        NotThere: Published data sets are missing; the message says how to get them.
        FolderError: A folder of the reader's own is missing.
    """
    if data["id"] == "mini":
        return
    if "train" in data:  # the reader's own folders
        for folder in _folders(placed(data)):
            if not folder.is_dir():
                raise FolderError(f"{folder} does not exist or is no folder; check [data] of the configuration")
        return
    from rp_lib.data.splits import located

    needed, optional = published_sets(data["id"])
    root = Path(data["root"]).expanduser() if "root" in data else None
    located(needed, optional, root, data.get("missing", "error"))


def _folders(place: Any) -> Iterator[Path]:
    """All folders that the values of ``[data]`` name."""
    if isinstance(place, Path):
        yield place
    elif isinstance(place, Mapping | list):
        for key in place:
            if isinstance(place, list) or isinstance(place[key], Path | Mapping | list):
                yield from _folders(place[key] if isinstance(place, Mapping) else key)


def published_sets(name: str) -> tuple[list[str], list[str]]:
    """Names of the data sets of a published benchmark: ID, and shifted and OOD ones."""
    from rp_lib.data import cifar, imagenet

    if name == "cifar10":
        return ["cifar10"], [*cifar.SHIFTS, *cifar.OOD]
    return ["imagenet-1k"], [*imagenet.SHIFTS, *imagenet.OOD_FOLDERS]


def placed(data: Mapping[str, Any]) -> dict[str, Any]:
    """``[data]`` of folders without its ``root``, below which every folder with a relative path then is."""
    root = Path(data.get("root", "")).expanduser()

    def below(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: below(folder) for name, folder in value.items()}
        return [below(folder) for folder in value] if isinstance(value, list) else root / Path(value).expanduser()

    return {key: below(value) if key in FOLDERS else value for key, value in data.items() if key != "root"}


def open_benchmark(data: Mapping[str, Any], preset: str = "paper", progress: bool = False) -> Benchmark:
    """The benchmark that ``[data]`` of a configuration describes.

    Args:
        data: with ``id``. preset: ``as_released`` also switches what the released code does to labels and prompts
            (rows 3, 4 and 13 of the ledger), unless ``data`` says otherwise. progress: show bars.

    Raises:
        NotThere: data sets are missing. RPLibError: images or folders do not fit.
    """
    options = {key: value for key, value in data.items() if key != "id"}
    for key in ("root", "cache"):
        if key in options:
            options[key] = Path(options[key]).expanduser()
    if data["id"] == "mini":
        return load_benchmark(options.get("root"))
    if data["id"] == "folders":
        return from_folders(**placed(options), progress=progress)
    from rp_lib.data.cifar import cifar10_benchmark, cifar10_from_folders
    from rp_lib.data.class_names import DATA_SWITCHES
    from rp_lib.data.imagenet import imagenet_benchmark

    if data["id"] == "cifar10-folders":
        switches = DATA_SWITCHES["cifar10"].get(preset, {})
        prompts = {key: switches[key] for key in ("templates",) if key in switches}
        return cifar10_from_folders(**{**prompts, **placed(options)}, progress=progress)
    make = {"cifar10": cifar10_benchmark, "imagenet": imagenet_benchmark}[data["id"]]
    return make(**{**DATA_SWITCHES[data["id"]].get(preset, {}), **options}, progress=progress)
