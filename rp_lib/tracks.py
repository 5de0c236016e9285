"""Two tracks, one code path: ``mini`` runs offline on a laptop, ``full`` is the paper's setting on a GPU.

Notebooks and the command line ask for a track and go on with what they get: a frozen CLIP, a benchmark, and
hyper-parameters by method. In notebooks the environment switches:

========================  ==========================================================================================
``RP_TRACK``              ``mini`` (default) or ``full``
``RP_ID``                 of the full track: ``cifar10`` (default) or ``imagenet``
``RP_BACKBONE``           of the full track: an open_clip model instead of ``ViT-B-32-quickgelu``
``RP_PRETRAINED``         of the full track: a tag or a local file of weights instead of ``openai``
``RP_DATA``               folder of the data sets that ``data_download.sh`` fills, default ``data``
========================  ==========================================================================================
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rp_lib.backbones import SCHEMAS
from rp_lib.benchmark import Benchmark
from rp_lib.clip import FrozenCLIP
from rp_lib.device import pick_device
from rp_lib.errors import RPLibError, UnknownName
from rp_lib.subsets import lighten

if TYPE_CHECKING:
    from rp_lib.run_config import RunConfig

TRACKS = ("mini", "full")
RANDOM = "random"


@dataclass(frozen=True, eq=False)
class Track:
    """What a notebook or a run works with.

    Attributes:
        name: ``mini`` or ``full``. clip: frozen backbone on ``device``. data: benchmark.
        settings: keyword arguments of every method that has some, by its name, as :func:`rp_lib.build_method` takes
            them; ``zero-shot`` has none to take.
    """

    name: str
    clip: FrozenCLIP
    data: Benchmark
    settings: Mapping[str, dict[str, Any]]
    device: torch.device

    @property
    def task(self) -> tuple[FrozenCLIP, tuple[str, ...], tuple[str, ...]]:
        """What every method is built from: backbone, class names, prompt templates."""
        return self.clip, self.data.class_names, self.data.templates

    def light(self, test: int = 800, other: int = 400) -> Track:
        """The same, judged on at most ``test`` test images and ``other`` of each shifted and OOD set, evenly spaced.

        Training and validation images stay as they are. For a shorter look, and with wider intervals.
        """
        return replace(self, data=lighten(self.data, test, other))


def open_track(name: str | None = None, device: str = "auto") -> Track:
    """The track of this name, else of ``$RP_TRACK``, else ``mini``.

    Raises:
        UnknownName: no such track, or an ``RP_ID`` that is none of the full track's.
        NotThere: data sets are missing; the message says how to get them.
        RPLibError: the weights cannot be fetched or read.
    """
    from rp_lib.run_config import FULL_IDS, read_config

    name = name or os.environ.get("RP_TRACK") or "mini"
    if name not in TRACKS:
        raise UnknownName("track", name, TRACKS)
    if name == "mini":
        return track_of(read_config("mini", {"device": device}))
    data = os.environ.get("RP_ID") or "cifar10"
    if data not in FULL_IDS:
        raise UnknownName("RP_ID of the full track", data, FULL_IDS)
    changes = {"device": device}
    for variable, key in (("RP_BACKBONE", "backbone.name"), ("RP_PRETRAINED", "backbone.pretrained")):
        if value := os.environ.get(variable):
            changes[key] = value
    return track_of(read_config(f"{data}-paper", changes))


def track_of(config: RunConfig, *, progress: bool = False) -> Track:
    """Everything that a configuration names, opened; ``progress`` shows bars while images are decoded.

    Raises:
        NotThere: data sets are missing, found before anything is loaded. RPLibError: weights or images do not load.
    """
    device = pick_device(config.device)
    check_data(config.data)  # now, not after a download of weights
    clip = open_backbone(config.backbone, device)
    name = "mini" if config.data["id"] == "mini" else "full"
    return Track(name, clip, open_benchmark(config.data, config.preset, progress), config.all_settings(), device)


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
        return FrozenCLIP.mini(pretrained or "final", device)
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
            f"{error}: --pretrained FILE, in a configuration [backbone] pretrained, in notebooks $RP_PRETRAINED"
        ) from error


def check_data(data: Mapping[str, Any]) -> None:
    """Raise :class:`rp_lib.data.NotThere` if data sets that ``[data]`` of a configuration needs are missing."""
    if data["id"] not in ("cifar10", "imagenet"):
        return  # shipped, or the reader's own folders, which say themselves what is wrong with them
    from rp_lib.photos.parts import located

    needed, optional = published_sets(data["id"])
    root = Path(data["root"]).expanduser() if "root" in data else None
    located(needed, optional, root, data.get("missing", "error"))


def published_sets(name: str) -> tuple[list[str], list[str]]:
    """Names of the data sets of a published benchmark: ID, and shifted and OOD ones."""
    from rp_lib.photos import cifar, imagenet

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

    folders = ("train", "val", "test", "tiny_imagenet", "shifts", "ood")
    return {key: below(value) if key in folders else value for key, value in data.items() if key != "root"}


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
        return Benchmark.mini(options.get("root"))
    if data["id"] == "folders":
        return Benchmark.from_folders(**placed(options), progress=progress)
    from rp_lib.photos.cifar import cifar10_benchmark, cifar10_from_folders
    from rp_lib.photos.classes import DATA_SWITCHES
    from rp_lib.photos.imagenet import imagenet_benchmark

    if data["id"] == "cifar10-folders":
        switches = DATA_SWITCHES["cifar10"].get(preset, {})
        prompts = {key: switches[key] for key in ("templates",) if key in switches}
        return cifar10_from_folders(**{**prompts, **placed(options)}, progress=progress)
    make = {"cifar10": cifar10_benchmark, "imagenet": imagenet_benchmark}[data["id"]]
    return make(**{**DATA_SWITCHES[data["id"]].get(preset, {}), **options}, progress=progress)
