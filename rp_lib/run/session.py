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
from rp_lib.data import from_folders
from rp_lib.mini import load_benchmark, load_clip
from rp_lib.utils.device import pick_device
from rp_lib.utils.errors import RPLibError, UnknownName

if TYPE_CHECKING:
    from rp_lib.run.config import RunConfig
import hashlib
import json
import logging
import time
from collections.abc import Sequence

import pandas as pd

from rp_lib.benchmark import OOD_ROLES
from rp_lib.detectors import build_detector
from rp_lib.evaluation import COLUMNS, RECORDED, evaluate_outputs, summarize
from rp_lib.features import FeatureStore
from rp_lib.figures import save_figure, three_axes
from rp_lib.methods import BASES, METHODS, Method, build_method, load_method, made_of
from rp_lib.outputs import MethodOutputs, compute_outputs, load_outputs, save_outputs
from rp_lib.run import FULL_IDS, TRACKS
from rp_lib.run.report import load_records, save_records
from rp_lib.trainer import Checkpoint
from rp_lib.utils import distributed
from rp_lib.utils.io import StorageError, check_writable, file_sha256

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
        return replace(self, data=self.data.subsample(test, other))


def open_track(name: str | None = None, device: str = "auto") -> Track:
    """The track of this name, else of ``$RP_TRACK``, else ``mini``.

    Raises:
        UnknownName: no such track, or an ``RP_ID`` that is none of the full track's.
        NotThere: data sets are missing; the message says how to get them.
        RPLibError: the weights cannot be fetched or read.
    """
    from rp_lib.run.config import read_config

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
    data = dict(config.data)
    if data["id"] in ("folders", "imagenet"):  # pictures of many sizes are decoded at the one that the backbone takes
        data.setdefault("size", clip.preparation)
    return Track(name, clip, open_benchmark(data, config.preset, progress), config.all_settings(), device)


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
    """Raise :class:`rp_lib.data.NotThere` if data sets that ``[data]`` of a configuration needs are missing."""
    if data["id"] not in ("cifar10", "imagenet"):
        return  # shipped, or the reader's own folders, which say themselves what is wrong with them
    from rp_lib.data.splits import located

    needed, optional = published_sets(data["id"])
    root = Path(data["root"]).expanduser() if "root" in data else None
    located(needed, optional, root, data.get("missing", "error"))


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


# Fit, evaluate, record and draw: the one path of ``rp-lib demo``, ``rp-lib run`` and every benchmark.
#
# Every fitted method is kept as soon as it is fitted, so that a run that was interrupted goes on where it stopped;
# a method is judged when it is fitted, and dropped when nothing that follows is made of it.

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Story:
    """What a run found: tidy records, their summary, where they are, and whether they were reused."""

    records: pd.DataFrame
    summary: pd.DataFrame
    figure: Path
    reused: bool


@dataclass(frozen=True)
class _Fitting:
    """What fitting one method needs beside its name and seed."""

    clip: FrozenCLIP
    benchmark: Benchmark
    settings: Mapping[str, Mapping[str, Any]]
    out: Path
    store: FeatureStore
    precision: str
    fresh: bool
    progress: bool


def run_benchmark(
    clip: FrozenCLIP,
    benchmark: Benchmark,
    out: Path,
    *,
    seeds: Sequence[int],
    methods: Sequence[str],
    settings: Mapping[str, Mapping[str, Any]],
    precision: str = "auto",
    detectors: Sequence[str] = ("msp",),
    keep_outputs: bool = False,
    fresh: bool = False,
    progress: bool = True,
    about: Mapping[str, Any] | None = None,
) -> Story:
    """Fit every method with every seed on a benchmark and judge it on the three axes.

    ``out`` then holds ``records.csv`` with its provenance beside it, ``three_axes.png``, and in ``trained`` the
    trained part of every method; they are reused when backbone, data and settings are the same.

    Args:
        clip: backbone. benchmark: data. out: folder, made if needed.
        seeds: of every trained method; zero-shot has none and runs once. methods: names, see ``METHODS``.
        settings: keyword arguments by method, as :func:`rp_lib.build_method` takes them. precision: of training.
        detectors: names of OOD detectors that read outputs of the test and OOD images alone.
        keep_outputs: also write features and logits to ``outputs``, see :func:`rp_lib.load_outputs`, and reuse them.
        fresh: train and evaluate anew whatever is there. progress: show bars.
        about: more for the provenance.

    Raises:
        StorageError: ``out`` cannot be written. UnknownName: no such method or detector. RPLibError: bad settings.
    """
    if not seeds:
        raise RPLibError("at least one seed is needed")
    if not methods:
        raise RPLibError(f"no method is named; known: {', '.join(METHODS)}")
    for name in methods:
        if name not in METHODS:
            raise UnknownName("method", name, METHODS)
    for name in detectors:
        if needs := build_detector(name).needs:
            raise RPLibError(f"the detector {name!r} also needs {', '.join(sorted(needs))}: use rp_lib.evaluate for it")
    distributed.on_main(lambda: check_writable(out))  # now, not after hours of training
    fitting = _Fitting(clip, benchmark, settings, out, FeatureStore(), precision, fresh, progress)
    order = sorted(dict.fromkeys(methods), key=lambda name: name in BASES)  # what others are made of comes first
    wanted = [(name, seed) for name in order for seed in (seeds[:1] if name == "zero-shot" else seeds)]
    identity = _identity(fitting, wanted, detectors)
    path, figure = out / "records.csv", out / "three_axes.png"
    records, reused = None if fresh else _recorded(path, identity), True
    incomplete = keep_outputs and not all(_outputs_path(out, *w).is_file() for w in wanted)
    if distributed.any_process(records is None or incomplete):  # whatever one finds, all do the same
        started, reused = time.monotonic(), False
        records, found = _measured(fitting, wanted, detectors, keep_outputs)
        provenance = {
            **(about or {}), "identity": identity, "benchmark": benchmark.name,
            "benchmark_sha256": benchmark.fingerprint, "backbone": clip.name, "backbone_sha256": clip.fingerprint,
            "device": str(clip.device), "precision": precision, "seeds": len(seeds), "seed_numbers": list(seeds),
            **found, "seconds": round(time.monotonic() - started, 1),
        }  # fmt: skip
        save_records(records, path, provenance)
    summary = summarize(records)
    title = (
        f"{benchmark.name} benchmark, backbone {clip.name}: mean of {len(seeds)} seeds, bars are 95 % intervals over "
        "images and seeds; dashed: zero-shot"
    )
    save_figure(three_axes(of_detector(summary, detectors[0]), title), figure)
    return Story(records, summary, figure, reused)


def of_detector(summary: pd.DataFrame, name: str) -> pd.DataFrame:
    """The rows of a summary that a table or figure of one detector shows: accuracy, calibration, and its own."""
    return summary[summary["detector"].isna() | (summary["detector"] == name)]


def _identity(fitting: _Fitting, wanted: Sequence[tuple[str, int]], detectors: Sequence[str]) -> str:
    """SHA-256 (hex) over all that the records depend on."""
    described = [_built(fitting, name, seed).metadata() for name, seed in wanted]
    parts = [fitting.benchmark.fingerprint, described, list(detectors)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _recorded(path: Path, identity: str) -> pd.DataFrame | None:
    """The records that are there, if they are whole and of this very run."""
    if not (path.is_file() and path.with_suffix(".json").is_file()):
        return None
    try:
        records, about = load_records(path)
    except StorageError as error:
        log.warning("%s; evaluating again", error)
        return None
    same = about.get("identity") == identity and about.get("records_sha256") == file_sha256(path)
    return records if same else None


def _measured(
    fitting: _Fitting, wanted: Sequence[tuple[str, int]], detectors: Sequence[str], keep_outputs: bool
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Records of every method and seed; and settings and times, for the provenance."""
    rows: list[dict[str, Any]] = []
    fitted: list[Method] = []
    settings, seconds, judging = {}, {}, 0.0
    for position, (name, seed) in enumerate(wanted):
        started = time.monotonic()
        method = _fitted(fitting, name, seed, fitted)
        shared = any(other.history is method.history for other in fitted)
        trained = bool(method.history.losses) and not shared
        seconds[f"{name} {seed}"] = round(time.monotonic() - started, 1) if trained else None
        settings[name] = {k: v for k, v in method.metadata()["settings"].items() if k != "seed"}
        started = time.monotonic()
        outputs = _outputs(fitting, method, seed, keep_outputs)
        rows += evaluate_outputs([outputs], detectors=detectors, metrics=RECORDED).to_dict("records")
        judging += time.monotonic() - started
        # A fine-tuned tower and its features of every image are large: only what something is made of stays.
        needed = {BASES.get(later) for later, _ in wanted[position + 1 :]}
        fitted.append(method)
        fitted = _released(fitting, fitted, needed)
        del method, outputs
    times = {"seconds_to_fit": seconds, "seconds_to_evaluate": round(judging, 1)}
    return pd.DataFrame(rows, columns=list(COLUMNS)), {"settings": settings, **times}


def _released(fitting: _Fitting, fitted: Sequence[Method], needed: set[str | None]) -> list[Method]:
    """The methods of needed names; the features of the others' own encoders are forgotten."""
    left = [method for method in fitted if method.name in needed]
    shared = {id(encoder) for method in left for encoder in method.encoders} | {id(fitting.clip)}
    for method in fitted:
        for encoder in method.encoders:
            if id(encoder) not in shared:
                fitting.store.drop(encoder)
    return left


def _built(fitting: _Fitting, name: str, seed: int) -> Method:
    """A method that is about to be fitted on the benchmark's training images."""
    options = dict(fitting.settings.get(name, {}))
    if name != "zero-shot":
        options["seed"] = seed
    if name not in ("zero-shot", "linear-probe"):
        options["precision"] = fitting.precision
    benchmark = fitting.benchmark
    method = build_method(name, fitting.clip, benchmark.class_names, benchmark.templates, options)
    if name != "zero-shot":
        method.check_labels(benchmark.train)
    return method


def _fitted(fitting: _Fitting, name: str, seed: int, fitted: Sequence[Method]) -> Method:
    """A fitted method: of its base with the same seed if it has one, else from disk, else trained and saved."""
    method, train_set = _built(fitting, name, seed), fitting.benchmark.train
    if name == "zero-shot":
        return method
    shared = made_of(method, fitted, train_set.fingerprint)  # settings name the seed
    if shared is not None:
        return shared
    path = fitting.out / "trained" / f"{name}-seed{seed}.safetensors"
    checkpoint = Checkpoint(path.with_suffix(".checkpoint"), keep=True)

    def forget() -> None:
        distributed.on_main(lambda: checkpoint.path.unlink(missing_ok=True))

    if fitting.fresh:
        forget()
    else:
        kept = _kept(path, method)
        if not distributed.any_process(kept is None):
            forget()  # of a run that died when it had saved the method
            return kept
    label = f"{name}, seed {seed}" if fitting.progress else None
    method.fit(train_set, fitting.benchmark.val, store=fitting.store, checkpoint=checkpoint, progress=label)
    method.save(path)
    forget()  # only now: a disk that is full until here costs no training
    return method


def _kept(path: Path, method: Method) -> Method | None:
    """What an earlier run saved, if it is the same method."""
    if not path.is_file():
        return None
    try:
        kept = load_method(path, method.clip)
    except RPLibError as error:  # of another backbone or version, or damaged: train it again
        log.warning("%s; training again", error)
        return None
    return kept if kept.metadata() == method.metadata() else None


def _outputs_path(out: Path, name: str, seed: int) -> Path:
    return out / "outputs" / f"{name}-seed{seed}.safetensors"


def _outputs(fitting: _Fitting, method: Method, seed: int, keep: bool) -> MethodOutputs:
    """What the method says about all images that methods are judged on; from disk if it is the same there."""
    path = _outputs_path(fitting.out, method.name, seed)
    there = _computed(path, fitting.benchmark, method) if keep and not fitting.fresh else None
    if not distributed.any_process(there is None):
        return there
    roles = ("test", "shift", *OOD_ROLES)
    outputs = compute_outputs(
        method, fitting.benchmark, seed=seed, store=fitting.store, roles=roles, progress=fitting.progress
    )
    if keep:
        save_outputs(path, outputs)
    return outputs


def _computed(path: Path, benchmark: Benchmark, method: Method) -> MethodOutputs | None:
    """Outputs that an earlier run saved, if they are of the same method and data."""
    if not path.is_file():
        return None
    try:
        there = load_outputs(path, benchmark)
    except RPLibError as error:
        log.warning("%s; computing again", error)
        return None
    expected = json.loads(json.dumps({k: v for k, v in method.metadata().items() if k != "format"}))
    return there if all(there.about.get(key) == value for key, value in expected.items()) else None
