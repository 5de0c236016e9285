"""Choose hyper-parameters by cross-validation over groups of ID pictures, with equal chances for every method.

Training and validation pictures are pooled and divided into folds by :attr:`rp_lib.benchmark.ImageSet.groups` (in the
mini benchmark the families of designers), so that no group is on both sides. Every trial is trained on each fold and
repetition, which have a seed and a division of their own; shifted and OOD pictures are never touched. All runs are
recorded, those of the search that ships in :data:`SEARCH`. :func:`near_ties` says which trials they cannot tell apart,
and which of these is taken.
"""

from __future__ import annotations

import functools
import itertools
import math
import time
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from rp_lib.benchmark import Benchmark, ImageSet
from rp_lib.clip import FrozenCLIP
from rp_lib.config import PAPER
from rp_lib.evaluation import ALPHAS
from rp_lib.features import FeatureStore
from rp_lib.methods import BASES, METHODS, Method, Reprogrammer, ResidualReprogrammer, build_method
from rp_lib.utils.errors import RPLibError, UnknownName
from rp_lib.utils.io import StorageError, load_table, save_table

SEARCH = Path(__file__).resolve().parents[1] / "assets" / "mini" / "search.csv"  # the recorded search
FOLDS, REPETITIONS = 3, 2
FIRST_SEED = 101  # of training in the first repetition; those of the experiments start at 1
WIDENINGS = 3  # trials beyond the drawn ones, where the best one lies on an edge
# Values of these are widened by the ratio of the two at the edge.
WIDENED = ("lr", "image_lr", "text_lr", "probe_lr", "epochs", "probe_epochs")
# Grids by method, what matters to each; the order of the keys is that of the draw.
SPACES: dict[str, dict[str, tuple[Any, ...]]] = {
    name: {key: tuple(values) for key, values in grid.items()}
    for name, grid in tomllib.loads(SEARCH.with_suffix(".toml").read_text(encoding="utf-8")).items()
}
# Methods that train on features, or in seconds: they get more trials for nothing.
CHEAP_TIMES = 4
CHEAP = ("linear-probe", "zs-lp", "task-res", "clap", "tip-adapter", "tip-adapter-f", "rp-text")


def draw_trials(name: str, n: int, seed: int) -> list[dict[str, Any]]:
    """Draw ``n`` distinct settings from a method's grid, every value of a setting equally often (or nearly so).

    Each setting's values are repeated and shuffled on their own, as in Latin hypercube sampling (McKay et al. 1979);
    of most of a grid, a plain sample is taken.
    """
    if name not in SPACES:
        raise UnknownName("method to search for", name, SPACES)
    space = SPACES[name]
    size = math.prod(len(values) for values in space.values())
    if not 1 <= n <= size:
        raise RPLibError(f"the number of trials for {name} must be between 1 and the size of its grid")
    rng = np.random.default_rng(seed)
    if 2 * n > size:
        every = list(itertools.product(*space.values()))
        return [dict(zip(space, every[i], strict=True)) for i in rng.permutation(size)[:n]]
    while True:
        columns = [[v for _, v in zip(range(n), _rounds(values, rng), strict=False)] for values in space.values()]
        drawn = list(dict.fromkeys(zip(*columns, strict=True)))
        if len(drawn) == n:
            return [dict(zip(space, values, strict=True)) for values in drawn]


def _rounds(values: tuple[Any, ...], rng: np.random.Generator) -> Iterator[Any]:
    """All values in a random order, again and again."""
    while True:
        yield from (values[i] for i in rng.permutation(len(values)))


def settings_of(name: str, trial: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments for :func:`rp_lib.methods.build_method` from a trial."""
    if not issubclass(METHODS[name], (Reprogrammer, ResidualReprogrammer)):
        return dict(trial)
    switches = dict(trial)
    if "border" in switches:
        switches["placement"], _, switches["border_init"] = switches.pop("border").partition(" from ")
    return {"config": PAPER.changed(**switches)}


def folds_of(pool: ImageSet, seed: int) -> list[Tensor]:
    """Divide labelled images into :data:`FOLDS` parts; no group is in two of them, and each class can be learned.

    Of 100 divisions of the groups by chance the one with the most even sizes is taken.

    Returns:
        Masks, bool (n,), of the pictures that each fold holds out.

    Raises:
        RPLibError: There are too few groups, or every division leaves a class without a picture to learn from.
    """
    groups = pool.groups.unique()
    if len(groups) < FOLDS:
        raise RPLibError(f"cross-validation needs pictures of at least {FOLDS} groups, here are {len(groups)}")
    classes = len(pool.labels.unique())
    draw = torch.Generator().manual_seed(seed)
    found: list[list[Tensor]] = []
    for _ in range(100):
        parts = groups[torch.randperm(len(groups), generator=draw)].tensor_split(FOLDS)
        masks = [torch.isin(pool.groups, part) for part in parts]
        if all(len(pool.labels[~held].unique()) == classes for held in masks):
            found.append(masks)
    if not found:
        raise RPLibError(
            "cross-validation would leave a class without a picture to learn from: each class needs pictures of at "
            f"least {FOLDS} groups"
        )
    return min(found, key=lambda masks: max(int(held.sum()) for held in masks))


def search(
    clip: FrozenCLIP,
    benchmark: Benchmark,
    out: Path,
    *,
    trials: int = 8,
    seed: int = 0,
    methods: tuple[str, ...] = tuple(SPACES),
    precision: str = "auto",
    progress: bool = True,
) -> pd.DataFrame:
    """Run (or go on with) the search; every finished run is appended to ``out`` (CSV) at once.

    Where a method's best trial has a rate or a number of epochs on the edge of what was tried, trials beyond it are
    added, up to :data:`WIDENINGS`. Then the methods of :data:`rp_lib.methods.BASES` that mix it with zero-shot are
    searched: the trial that was chosen for it is trained again, and each alpha is a trial.

    Args:
        clip: The frozen backbone.
        benchmark: Its training and validation pictures are pooled.
        out: The table; runs of the same search that it holds are not made again.
        trials: Per method; those of :data:`CHEAP` get :data:`CHEAP_TIMES` as many, or their whole grid.
        seed: Of the draw from the grids. methods: Which to search for. precision: Of training.
        progress: Whether to show bars.

    Returns:
        One row per run: ``method, trial, repetition, fold``, the accuracy on the ``n`` pictures held out, ``moved``
        (the mean total variation between the probabilities there and those of zero-shot, in [0, 1]), ``seconds``,
        the trial's settings, and what makes it the same search.
    """
    pool = replace(_joined(benchmark.train, benchmark.val), name="train and val", role="train")
    key = {"search_seed": seed, "backbone": clip.fingerprint[:16], "data": pool.fingerprint[:16]}
    rows = [row for row in read_runs(out) if _of(row, key)] if out.is_file() else []
    runs = _Runs(clip, benchmark, pool, precision, progress, key, out, rows)
    for name in methods:
        size = math.prod(len(values) for values in SPACES[name].values()) if name in SPACES else trials
        drawn = draw_trials(name, min(size, trials * CHEAP_TIMES) if name in CHEAP else trials, seed)
        for trial in drawn:
            runs.measure(name, trial)
        while (tried := trials_of(name, runs.table()))["trial"].nunique() < len(drawn) + WIDENINGS:
            beyond = _beyond(name, tried)
            if beyond is None:
                break
            runs.measure(name, beyond)
        for mixed in (mixed for mixed, base in BASES.items() if base == name):
            runs.mix(mixed, choose(runs.table())[name])
    return runs.table()


class _Runs:
    """The runs of a search: those that the table holds, and those that are made now."""

    def __init__(
        self, clip: FrozenCLIP, benchmark: Benchmark, pool: ImageSet, precision: str, progress: bool,
        key: dict[str, Any], out: Path, rows: list[dict[str, Any]],
    ) -> None:  # fmt: skip
        self.task = (clip, benchmark.class_names, benchmark.templates)
        self.clip, self.precision, self.progress, self.key, self.out, self.rows = (
            clip, precision, progress, key, out, rows
        )  # fmt: skip
        self.store = FeatureStore()
        self.folds = [
            (repetition, fold, pool.subset(~held), pool.subset(held))
            for repetition in range(REPETITIONS)
            for fold, held in enumerate(folds_of(pool, FIRST_SEED + repetition))
        ]
        zero_shot = build_method("zero-shot", *self.task)
        self.untouched = [zero_shot.scores(held, self.store).softmax(1) for _, _, _, held in self.folds]

    def measure(self, name: str, trial: dict[str, Any]) -> None:
        """Make the runs of a trial that are not there."""
        self._each_fold(name, trial, lambda method: [(name, trial, method)])

    def mix(self, name: str, base: dict[str, Any]) -> None:
        """Make the runs of all alphas of a mixture whose base has these settings."""

        def mixtures(fitted: Method) -> Iterable[tuple[str, dict[str, Any], Method]]:
            mixed = METHODS[name](fitted)
            return ((name, {**base, "alpha": alpha}, mixed.with_alpha(alpha)) for alpha in ALPHAS)

        if any(not self._known(name, {**base, "alpha": ALPHAS[-1]}, r, f) for r, f, _, _ in self.folds):
            self._each_fold(BASES[name], base, mixtures, again=True)

    def _each_fold(
        self,
        name: str,
        trial: dict[str, Any],
        judged: Callable[[Method], Iterable[tuple[str, dict[str, Any], Method]]],
        again: bool = False,
    ) -> None:
        for (repetition, fold, train, held), untouched in zip(self.folds, self.untouched, strict=True):
            if not again and self._known(name, trial, repetition, fold):
                continue
            started = time.monotonic()
            settings = settings_of(name, trial) | {"seed": FIRST_SEED + repetition, "precision": self.precision}
            method = build_method(name, *self.task, settings)
            label = f"{name} {repetition + 1}/{fold + 1}" if self.progress else None
            method.fit(train, None, store=self.store, progress=label)
            for what, tried, judge in judged(method):
                scores = judge.scores(held, self.store)
                moved = 0.5 * (scores.softmax(1) - untouched).abs().sum(1).mean()  # total variation
                found = {
                    "method": what, "repetition": repetition, "fold": fold, "n": len(held),
                    "moved": round(float(moved), 6),
                    "accuracy": round(float((scores.argmax(1) == held.labels).double().mean()), 6),
                    "seconds": round(time.monotonic() - started, 1),
                }  # fmt: skip
                self.rows.append({**found, **tried, **self.key})
                if judge in judge.encoders:
                    self.store.drop(judge)  # nobody else can use it
            for encoder in method.encoders:
                if encoder is not self.clip:
                    self.store.drop(encoder)
            save_table(self.out, self.table(), digits=None)

    def _known(self, name: str, trial: dict[str, Any], repetition: int, fold: int) -> bool:
        there = {"method": name, "repetition": repetition, "fold": fold, **trial}
        return any(_of(row, there) for row in self.rows)

    def table(self) -> pd.DataFrame:
        """All runs."""
        first = ["method", "repetition", "fold", "accuracy", "moved", "n", "seconds"]
        table = pd.DataFrame(self.rows)
        return table[first + [c for c in table.columns if c not in first]]


def _joined(first: ImageSet, second: ImageSet) -> ImageSet:
    """Two sets of labelled images as one."""
    return ImageSet(
        first.name, first.role, torch.cat([first.images, second.images]), torch.cat([first.labels, second.labels]),
        torch.cat([first.groups, second.groups]), class_names=first.class_names,
    )  # fmt: skip


def _of(row: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether a row has these values, as a file gives them back."""
    return all(_plain(row.get(name, "")) == _plain(value) for name, value in wanted.items())


def _settings(name: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a method that a row of the table holds."""
    keys = [*SPACES[BASES.get(name, name)], *(["alpha"] if name in BASES else [])]
    return {key: _plain(row[key]) for key in keys}


def _beyond(name: str, runs: pd.DataFrame) -> dict[str, Any] | None:
    """The best trial with one rate or number of epochs moved beyond the edge on which it lies, if that is new."""
    rows = runs.to_dict("records")
    best = _settings(name, runs.loc[runs["trial"] == runs.groupby("trial")["accuracy"].mean().idxmax()].iloc[0])
    for key in (key for key in WIDENED if key in best):
        tried = sorted(set(runs[key]))
        whole = isinstance(best[key], int)
        for edge, inside in ((tried[0], tried[1:2]), (tried[-1], tried[-2:-1])):
            if best[key] == edge and inside and (further := edge * edge / inside[0]) >= whole:
                trial = {**best, key: round(further) if whole else float(f"{further:.2g}")}
                if not any(_of(row, trial) for row in rows):
                    return trial
    return None


def trials_of(name: str, table: pd.DataFrame) -> pd.DataFrame:
    """The runs of a method, with ``trial``: runs of the same settings have the same number."""
    keys = list(SPACES[BASES.get(name, name)]) + ["alpha"] * (name in BASES)
    runs = table[table["method"] == name]
    return runs.assign(trial=runs.groupby(keys, sort=False).ngroup() if len(runs) else 0)


def near_ties(runs: pd.DataFrame) -> pd.DataFrame:
    """List the trials of one method that its runs cannot tell from the best; the first is the one to take.

    A trial is tied if the best one leads it, on the same pictures held out, by at most one standard error of the mean
    lead. Folds share training pictures, so the variance of J runs is taken with the factor 1/J + 1/(FOLDS - 1) of
    Nadeau and Bengio (2003). First come trials that are behind by less than one picture, the one nearest to zero-shot
    before the others (these risk least of what ID pictures cannot see), then the rest by their accuracy. The rule is
    the same for all methods, and for the alpha of mixtures.

    Args:
        runs: Of :func:`trials_of`; at least two per trial.

    Returns:
        One row per tied trial: its settings, mean ``accuracy`` and ``moved``, ``behind`` (the best one's mean lead) and
        the ``error`` of that.

    Raises:
        RPLibError: A trial lacks runs that others have.
    """
    right = runs.pivot(index="trial", columns=["repetition", "fold"], values="accuracy")
    if right.isna().to_numpy().any() or right.shape[1] < 2:
        raise RPLibError("the trials have not all been run on the same folds: go on with the search")
    lead = right.loc[right.mean(axis=1).idxmax()] - right
    error = lead.std(axis=1, ddof=1) * np.sqrt(1 / right.shape[1] + 1 / (FOLDS - 1))
    found = runs.drop_duplicates("trial").set_index("trial").assign(behind=lead.mean(axis=1), error=error)
    found[["accuracy", "moved"]] = runs.groupby("trial")[["accuracy", "moved"]].mean()
    pictures = runs.groupby(["trial", "repetition"])["n"].sum().iloc[0]
    close = (found["behind"] * pictures < 1).to_numpy()
    order = np.lexsort((np.where(close, found["moved"], found["behind"]), ~close))
    found = found.iloc[order]
    return found[found["behind"] <= found["error"]]


def choose(table: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """The trial to take of every method that a search's table holds, as :func:`settings_of` takes it.

    A method that mixes another with zero-shot takes that one's trial and an alpha of its own.
    """
    chosen: dict[str, dict[str, Any]] = {}
    for name in (*SPACES, *BASES):
        runs = trials_of(name, table)
        if name in BASES and len(runs):
            runs = runs[(runs[list(chosen[BASES[name]])] == pd.Series(chosen[BASES[name]])).all(axis=1)]
        if len(runs):
            chosen[name] = _settings(name, near_ties(runs).iloc[0])
    return chosen


def read_runs(path: Path) -> list[dict[str, Any]]:
    """Rows of a search's table.

    Raises:
        StorageError: The table is empty, truncated or altered beyond reading.
    """
    try:
        table = load_table(path).astype({"repetition": int, "fold": int, "accuracy": float, "moved": float})
    except (ValueError, KeyError, StorageError) as error:
        raise StorageError(f"{path} is no table of runs ({error}); remove it, or install rp_lib again") from error
    return table.to_dict("records")


def tuned_settings(path: Path = SEARCH) -> dict[str, dict[str, Any]]:
    """Read the hyper-parameters that a recorded search chose, by method, as :func:`build_method` takes them.

    Raises:
        StorageError: The table is missing or damaged.
    """
    found = _tuned(path, path.stat().st_mtime_ns if path.is_file() else 0)
    return {name: dict(settings) for name, settings in found.items()}


@functools.lru_cache(maxsize=4)
def _tuned(path: Path, changed: int) -> dict[str, dict[str, Any]]:
    """The same, found once for every state of the file: one session asks dozens of times, and a search is long."""
    if not path.is_file():
        raise StorageError(f"{path} is missing; install rp_lib again or run `rp-lib search`")
    found = choose(pd.DataFrame(read_runs(path)))
    return {"zero-shot": {}} | {name: settings_of(name, trial) for name, trial in found.items()}


def _plain(value: Any) -> Any:
    """Numbers as CSV gives them back: whole floats of a column with gaps become ints again."""
    if isinstance(value, str):
        return value
    value = float(value)
    return int(value) if value.is_integer() and value >= 1 else value
