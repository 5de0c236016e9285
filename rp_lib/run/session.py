"""A session: one backbone, one benchmark, and the methods that are fitted and compared on them.

Two tracks, one code path: ``mini`` runs offline on a laptop, ``full`` is the paper's setting on a GPU.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from filelock import FileLock, Timeout

from rp_lib.benchmark import Benchmark, ImageSet
from rp_lib.clip import FrozenCLIP
from rp_lib.detectors import MEMBERS
from rp_lib.evaluation import COLUMNS, RECORDED, evaluate_outputs, needs_of, roles_for, summarize
from rp_lib.features import FeatureStore
from rp_lib.figures import save_figure, three_axes
from rp_lib.methods import BASES, METHODS, Method, build_method, load_method, made_of
from rp_lib.negative_labels import NegativeWords, mine_negative_words
from rp_lib.outputs import MethodOutputs, compute_outputs, load_outputs, save_outputs
from rp_lib.prediction import fit_threshold
from rp_lib.run.config import RunConfig
from rp_lib.run.opening import check_data, open_backbone, open_benchmark
from rp_lib.run.report import load_records, save_answers, save_records
from rp_lib.trainer import Checkpoint
from rp_lib.utils import distributed
from rp_lib.utils.device import pick_device
from rp_lib.utils.errors import RPLibError, UnknownName
from rp_lib.utils.io import StorageError, check_writable, file_sha256

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunResult:
    """What a comparison found.

    Attributes:
        records: Tidy, one row per method, seed, image set and metric.
        summary: Means over seeds with intervals, see :func:`rp_lib.evaluation.summarize`.
        figure: File of the figure.
        reused: Whether nothing was left to be measured.
    """

    records: pd.DataFrame
    summary: pd.DataFrame
    figure: Path
    reused: bool


@dataclass(frozen=True, eq=False)
class Session:
    """A frozen backbone, a benchmark and hyper-parameters: builds, fits and compares methods.

    Args:
        clip: The backbone.
        data: The benchmark.
        settings: Keyword arguments by method, as :func:`rp_lib.build_method` takes them; a method that is not named
            has the library's defaults.
        precision: Of training, see :func:`rp_lib.utils.device.autocast_dtype`.
        progress: Show bars.
        name: ``mini`` or ``full`` of a track.
        store: Features that are there already.

    Example:
        >>> session = open_session(read_config("mini")).light(400, 200)  # doctest: +SKIP
        >>> rp = session.fit("rp", seed=1)  # doctest: +SKIP
        >>> result = session.compare(Path("results"), methods=["zero-shot", "rp"], seeds=[1, 2])  # doctest: +SKIP
    """

    clip: FrozenCLIP
    data: Benchmark
    settings: Mapping[str, Mapping[str, Any]]
    precision: str = "auto"
    progress: bool = False
    name: str = ""
    store: FeatureStore = field(default_factory=FeatureStore)

    @property
    def device(self) -> torch.device:
        """Where the backbone computes."""
        return self.clip.device

    @property
    def task(self) -> tuple[FrozenCLIP, tuple[str, ...], tuple[str, ...]]:
        """What every method is built from: backbone, class names, prompt templates."""
        return self.clip, self.data.class_names, self.data.templates

    @cached_property
    def negatives(self) -> NegativeWords:
        """What ``neg-label`` compares with; found at the first use."""
        return mine_negative_words(*self.task)

    def light(self, test: int = 800, other: int = 400) -> Session:
        """Return the same, judged on at most ``test`` test images and ``other`` of each shifted and OOD set.

        Images are evenly spaced; those of training and validation stay. For a shorter look, and with wider intervals.
        """
        return replace(self, data=self.data.subsample(test, other))

    # One method -----------------------------------------------------------------------------------------

    def build(self, name: str, seed: int = 1) -> Method:
        """Build a method that is not fitted."""
        run = {"seed": seed, "precision": self.precision}
        return build_method(name, *self.task, self.settings.get(name, {}) | run)

    def fit(
        self,
        name: str,
        seed: int = 1,
        *,
        train: ImageSet | None = None,
        fitted: Iterable[Method] = (),
        out: Path | None = None,
        fresh: bool = False,
    ) -> Method:
        """Return a fitted method: made of one that is fitted already, read from a folder, or trained.

        Args:
            name: See :data:`rp_lib.methods.METHODS`.
            seed: Of training.
            train: Images to learn from instead of the benchmark's.
            fitted: Methods of the same seed; a mixture with zero-shot takes its training from one of them.
            out: Folder where trained methods are kept, each under a name that tells what made it: data, settings and
                backbone. Validation accuracy is then noted after every epoch.
            fresh: Train again what is there.
        """
        train = self.data.train if train is None else train
        method = self._unfitted(name, seed, train)
        path = None if out is None else self._path(out / "trained", method, seed)
        shared = made_of(method, fitted, train.fingerprint)  # settings name the seed
        if shared is not None or name == "zero-shot":  # nothing is left to train
            made = method if shared is None else shared
            if path is not None and distributed.any_process(not path.is_file()):
                made.save(path)
            return made
        label = f"{name}, seed {seed}" if self.progress else None
        if path is None:
            return method.fit(train, None, store=self.store, progress=label)
        checkpoint = Checkpoint(path.with_suffix(".checkpoint"), keep=True)
        if fresh:
            _forget(checkpoint)
        else:
            kept = _kept(path, method)
            if not distributed.any_process(kept is None):
                _forget(checkpoint)  # of a run that died when it had saved the method
                return kept
        method.fit(train, self.data.val, store=self.store, checkpoint=checkpoint, progress=label)
        method.save(path)
        _forget(checkpoint)  # only now: a disk that is full until here costs no training
        return method

    def outputs(
        self,
        method: Method,
        seed: int,
        out: Path | None = None,
        fresh: bool = False,
        detectors: Sequence[str] = (),
        others: Mapping[str, Method] | None = None,
    ) -> MethodOutputs:
        """Return what a fitted method says about all images that methods are judged on.

        Args:
            method: Fitted.
            seed: Of its training.
            out: Folder where outputs are kept; those that are there are reused.
            fresh: Compute again what is there.
            detectors: Names of OOD detectors; outputs then also hold what these learn from.
            others: Fitted methods that ``cooked`` takes, see :func:`rp_lib.compute_outputs`.
        """
        needs = needs_of(detectors)
        path = None if out is None else self._path(out / "outputs", method, seed, self.data.fingerprint)
        there = None if path is None or fresh else _computed(path, self.data, method, needs)
        if not distributed.any_process(there is None):
            return there
        outputs = compute_outputs(
            method, self.data, seed=seed, store=self.store, roles=roles_for(needs), others=others,
            negatives=self.negatives if "negatives" in needs else None, progress=self.progress,
        )  # fmt: skip
        if path is not None:
            save_outputs(path, outputs)
        return outputs

    def _path(self, folder: Path, method: Method, seed: int, *more: str) -> Path:
        return folder / f"{method.name}-seed{seed}-{_digest(_identity(method.metadata()), *more)[:8]}.safetensors"

    # Many methods ---------------------------------------------------------------------------------------

    def compare(
        self,
        out: Path,
        *,
        methods: Sequence[str],
        seeds: Sequence[int],
        detectors: Sequence[str] = ("msp",),
        keep_outputs: bool = False,
        fresh: bool = False,
        config: RunConfig | None = None,
    ) -> RunResult:
        """Fit every method with every seed and judge it on the three axes.

        ``out`` then holds ``records.csv`` with its provenance beside it, ``three_axes.png``, and in ``trained`` every
        method and a threshold for its use. What is there of the same backbone, data and settings is reused; records of
        more methods or seeds stay; records of another run move to ``earlier``.

        Args:
            out: Folder, made if needed.
            methods: Names, see ``METHODS``.
            seeds: Of every trained method; zero-shot has none and runs once.
            detectors: Names of OOD detectors, see :data:`rp_lib.DETECTORS`. ``cooked`` takes the settings of
                ``linear-probe``, and trains one for each seed.
            keep_outputs: Also keep features and logits in ``outputs``, see :func:`rp_lib.load_outputs`, and tables of
                the answers in ``answers``, see :func:`rp_lib.run.report.save_answers`.
            fresh: Train and evaluate again whatever is there.
            config: Written beside the records.

        Raises:
            StorageError: ``out`` cannot be written.
            UnknownName: No such method or detector.
            RPLibError: Bad settings, or another run is at work in this folder.
        """
        if not seeds:
            raise RPLibError("at least one seed is needed")
        if not methods:
            raise RPLibError(f"no method is named; known: {', '.join(METHODS)}")
        for name in methods:
            if name not in METHODS:
                raise UnknownName("method", name, METHODS)
        needs_of(detectors)  # refuses an unknown one
        distributed.on_main(lambda: check_writable(out))  # now, not after hours of training
        with _alone(out):
            return self._compare(out, methods, seeds, detectors, keep_outputs, fresh, config)

    def _compare(
        self,
        out: Path,
        methods: Sequence[str],
        seeds: Sequence[int],
        detectors: Sequence[str],
        keep_outputs: bool,
        fresh: bool,
        config: RunConfig | None,
    ) -> RunResult:
        import pandas as pd

        path, figure = out / "records.csv", out / "three_axes.png"
        records, about = _recorded(path)
        before = about.get("made_by", {})
        # Zero-shot has no seed: its records count, whatever seed they stand under.
        zero = next((int(part.split()[1]) for part in before if part.startswith("zero-shot ")), seeds[0])
        order = sorted(dict.fromkeys(methods), key=lambda name: name in BASES)  # what others are made of comes first
        wanted = [(name, seed) for name in order for seed in ([zero] if name == "zero-shot" else seeds)]
        made_by = {f"{name} {seed}": self._made_by(name, seed, detectors) for name, seed in wanted}
        left = [
            (name, seed) for name, seed in wanted
            if fresh or before.get(f"{name} {seed}") != made_by[f"{name} {seed}"]
            or (keep_outputs and self._lacks_outputs(name, seed, out))
        ]  # fmt: skip
        if left:  # else all was measured before
            started = time.monotonic()
            new, found = self._measure(left, out, detectors, keep_outputs, fresh)
            # Records stay in the table if today's data, backbone and settings would give the same.
            alike = {part: made for part, made in before.items() if made == self._made_by(*_part(part), detectors)}
            if records is None or alike != before:
                distributed.on_main(lambda: _set_aside(out))
            if records is not None:
                pairs = {_part(part) for part in alike}.difference(left)
                stay = [pair in pairs for pair in zip(records["method"], records["seed"], strict=True)]
                new = pd.concat([records[stay], new], ignore_index=True)
            records, made_by = new, alike | made_by
            known = {*made_by, *(_part(part)[0] for part in made_by)}
            numbers = sorted({_part(part)[1] for part in made_by})
            provenance = {
                **({} if config is None else {"config": config.as_dict()}), "made_by": made_by,
                "benchmark": self.data.name, "benchmark_sha256": self.data.fingerprint, "backbone": self.clip.name,
                "backbone_sha256": self.clip.fingerprint, "device": str(self.device), "precision": self.precision,
                "seeds": len(numbers), "seed_numbers": numbers,
                **{
                    key: {part: value for part, value in about.get(key, {}).items() if part in known} | values
                    for key, values in found.items()
                },
                "seconds": round(time.monotonic() - started, 1),
            }  # fmt: skip
            save_records(records, path, provenance)
            if config is not None:
                distributed.on_main(lambda: config.write(out / "config.toml"))
        title = (
            f"{self.data.name} benchmark, backbone {self.clip.name}: mean over seeds, bars are 95 % intervals over "
            "images and seeds; dashed: zero-shot"
        )
        save_figure(three_axes(of_detector(summarize(records), detectors[0]), title), figure)
        asked = [pair in wanted for pair in zip(records["method"], records["seed"], strict=True)]
        records = records[asked].reset_index(drop=True)
        return RunResult(records, summarize(records), figure, not left)

    def _made_by(self, name: str, seed: int, detectors: Sequence[str]) -> str:
        """SHA-256 (hex) over all that the records of a method and seed depend on."""
        needed = [name, *(MEMBERS if "others" in needs_of(detectors) else ())]
        methods = [_identity(self._unfitted(part, seed, self.data.train).metadata()) for part in needed]
        return _digest(*methods, self.data.fingerprint, list(detectors))

    def _lacks_outputs(self, name: str, seed: int, out: Path) -> bool:
        method = self._unfitted(name, seed, self.data.train)
        path, tables = (self._path(out / part, method, seed, self.data.fingerprint) for part in ("outputs", "answers"))
        return distributed.any_process(not (path.is_file() and tables.with_suffix("").is_dir()))

    def _unfitted(self, name: str, seed: int, train: ImageSet) -> Method:
        """A method that is about to be fitted on these images."""
        method = self.build(name, seed)
        if name != "zero-shot":
            method.check_labels(train)  # notes what it is trained on
        return method

    def _measure(
        self, wanted: Sequence[tuple[str, int]], out: Path, detectors: Sequence[str], keep_outputs: bool, fresh: bool
    ) -> tuple[pd.DataFrame, dict[str, Any]]:
        """Records of methods and seeds; and settings and times, for the provenance."""
        import pandas as pd

        rows: list[dict[str, Any]] = []
        fitted: list[Method] = []
        settings, seconds_to_fit, seconds_to_evaluate = {}, {}, {}
        for position, (name, seed) in enumerate(wanted):
            started = time.monotonic()
            method = self.fit(name, seed, fitted=fitted, out=out, fresh=fresh)
            shared = any(other.history is method.history for other in fitted)
            trained = bool(method.history.losses) and not shared
            seconds_to_fit[f"{name} {seed}"] = round(time.monotonic() - started, 1) if trained else None
            settings[name] = {k: v for k, v in method.metadata()["settings"].items() if k != "seed"}
            started = time.monotonic()
            others = None
            if "others" in needs_of(detectors):
                probe = self.fit("linear-probe", seed, out=out)
                others = {"zero-shot": self.build("zero-shot", seed), probe.name: probe}
            outputs = self.outputs(method, seed, out if keep_outputs else None, fresh, detectors, others)
            rows += evaluate_outputs([outputs], detectors=detectors, metrics=RECORDED).to_dict("records")
            self._save_threshold(method, seed, out)
            if keep_outputs:
                folder = self._path(out / "answers", method, seed, self.data.fingerprint).with_suffix("")
                distributed.on_main(partial(save_answers, folder, outputs, self.data))
            seconds_to_evaluate[f"{name} {seed}"] = round(time.monotonic() - started, 1)
            # A fine-tuned tower and its features of every image are large: only what something is made of stays.
            needed = {BASES.get(later) for later, _ in wanted[position + 1 :]}
            fitted = self._released([*fitted, method], needed)
            del method, outputs
        found = {"settings": settings, "seconds_to_fit": seconds_to_fit, "seconds_to_evaluate": seconds_to_evaluate}
        return pd.DataFrame(rows, columns=list(COLUMNS)), found

    def _save_threshold(self, method: Method, seed: int, out: Path) -> None:
        """Write what ``rp-lib predict --threshold`` takes: the method accepts 95 % of the validation images."""
        path = self._path(out / "trained", method, seed).with_suffix(".threshold.json")
        if self.data.val is not None and len(self.data.val):
            gate = fit_threshold(method, self.data.val)
            distributed.on_main(lambda: gate.save(path))

    def _released(self, fitted: Sequence[Method], needed: set[str | None]) -> list[Method]:
        """The methods of needed names; the features of the others' own encoders are dropped."""
        left = [method for method in fitted if method.name in needed]
        shared = {id(encoder) for method in left for encoder in method.encoders} | {id(self.clip)}
        for method in fitted:
            for encoder in method.encoders:
                if id(encoder) not in shared:
                    self.store.drop(encoder)
        return left


def open_session(config: RunConfig, *, progress: bool = False) -> Session:
    """Open everything that a configuration names; ``progress`` shows bars.

    Raises:
        NotThere: Data sets are missing, found before anything is loaded.
        RPLibError: Folders are missing, or weights or images do not load.
    """
    device = pick_device(config.device)
    check_data(config.data)  # now, not after a download of weights
    clip = open_backbone(config.backbone, device)
    data = dict(config.data)
    if data["id"] in ("folders", "imagenet"):  # pictures of many sizes are decoded as the backbone takes them
        data.setdefault("size", clip.preparation)
    benchmark = open_benchmark(data, config.preset, progress and distributed.is_main())
    name = "mini" if config.data["id"] == "mini" else "full"
    return Session(clip, benchmark, config.all_settings(), config.precision, progress, name)


def of_detector(summary: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return the rows of a summary that one detector's table shows: accuracy, calibration, and its own."""
    return summary[summary["detector"].isna() | (summary["detector"] == name)]


def _identity(about: Mapping[str, Any]) -> dict[str, Any]:
    """What a trained method depends on, of its metadata or of those of its outputs, as plain data."""
    keys = ("rp_lib", "method", "settings", "class_names", "templates", "backbone_sha256", "preparation", "trained_on")
    found = json.loads(json.dumps({key: about.get(key) for key in keys}))
    if "alpha" in found["settings"] and "config" in found["settings"]:  # RRP: alpha of the RP inside changes nothing
        found["settings"]["config"]["alpha"] = found["settings"]["alpha"]
    return found


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


@contextlib.contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Keep a second run out of a folder; of several processes the main one does it for all."""
    lock = FileLock(out / ".lock")

    def acquire() -> None:
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise RPLibError(f"another run is at work in {out}: wait for it, or choose another folder") from error

    distributed.on_main(acquire)
    try:
        yield
    finally:
        lock.release()


def _part(text: str) -> tuple[str, int]:
    """Method and seed of a key of the provenance."""
    name, seed = text.split()
    return name, int(seed)


def _recorded(path: Path) -> tuple[pd.DataFrame | None, dict[str, Any]]:
    """The records that are there with their provenance, if they are complete; the main process reads for all."""

    def read() -> tuple[pd.DataFrame | None, dict[str, Any]]:
        if not (path.is_file() and path.with_suffix(".json").is_file()):
            return None, {}
        try:
            records, about = load_records(path)
        except StorageError as error:
            log.warning("%s; evaluating again", error)
            return None, {}
        if about.get("records_sha256") != file_sha256(path):
            log.warning("%s was altered since it was measured; evaluating again", path)
            return None, {}
        return records, about

    return distributed.on_main(read)


def _set_aside(out: Path) -> None:
    """Move the records of another run, and what belongs to them, to a folder of their own."""
    files = [out / name for name in ("records.csv", "records.json", "three_axes.png", "config.toml")]
    files = [file for file in files if file.is_file()]
    if not files:
        return
    folder = out / "earlier" / _digest([file_sha256(file) for file in files])[:8]
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        file.replace(folder / file.name)
    log.warning("the records of another run in %s are in %s now", out, folder)


def _forget(checkpoint: Checkpoint) -> None:
    distributed.on_main(lambda: checkpoint.path.unlink(missing_ok=True))


def _kept(path: Path, method: Method) -> Method | None:
    """What an earlier run saved, if it is the same method."""
    if not path.is_file():
        return None
    try:
        kept = load_method(path, method.clip)
    except RPLibError as error:  # damaged: train it again
        log.warning("%s; training again", error)
        return None
    return kept if _identity(kept.metadata()) == _identity(method.metadata()) else None


def _computed(path: Path, benchmark: Benchmark, method: Method, needs: Collection[str]) -> MethodOutputs | None:
    """Outputs that an earlier run saved, if they are of the same method and data and hold what detectors need."""
    if not path.is_file():
        return None
    try:
        there = load_outputs(path, benchmark)
    except RPLibError as error:
        log.warning("%s; computing again", error)
        return None
    held = {
        "train": there.of_role("train"),
        "others": there.about["others"],
        "negatives": there.about["negative_words"],
    }
    same = _identity(there.about) == _identity(method.metadata())
    return there if same and all(held[need] for need in needs) else None
