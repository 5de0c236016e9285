"""Evaluate fitted methods on three axes: ID accuracy, accuracy under covariate shift, OOD detection.

Every encoder sees every image once; all metrics, detectors, alphas and intervals come from the outputs, computed or
loaded. Records are tidy: one row per method, seed, image set, metric and detector, with interval and sample size.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rp_lib.benchmark import OOD_ROLES, Benchmark
from rp_lib.detectors import MEMBERS, Detector, NotApplicable, build_detector, detection_scores
from rp_lib.features import FeatureStore
from rp_lib.methods import BASES, METHODS, Method
from rp_lib.metrics import calibration_gaps
from rp_lib.negative_labels import NegativeWords, mine_negative_words
from rp_lib.outputs import MethodOutputs, Outputs, check_comparable, compute_outputs
from rp_lib.stats import (
    MEAN_RESAMPLES,
    OOD_RESAMPLES,
    Interval,
    Resamples,
    bootstrap_ci,
    bootstrap_ood,
    calibration_error,
    resample_sets,
    wilson_interval,
)
from rp_lib.utils.arguments import checked
from rp_lib.utils.errors import RPLibError, UnknownName

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)
COLUMNS = (
    "method", "seed", "alpha", "set", "role", "metric", "value", "low", "high", "n", "n_ood", "detector", "convention",
)  # fmt: skip
RECORDED = ("auroc", "fpr", "aupr_in", "aupr_out", "detection_error")
ALL_SHIFTS, ALL_OOD = "mean of shifts", "mean of OOD sets"
ALPHAS = tuple(round(0.05 * i, 2) for i in range(21))
Row = dict[str, Any]


def _check_table(table: pd.DataFrame, columns: Sequence[str], maker: str) -> None:
    lacking = [name for name in columns if name not in table.columns]
    if lacking or not len(table):
        raise RPLibError(f"a table of {maker} is needed; this one has {'no ' + lacking[0] if lacking else 'no rows'}")


def accuracy_rows(outputs: MethodOutputs, n_resamples: int = OOD_RESAMPLES) -> list[Row]:
    """Measure accuracy and calibration error of all labelled sets, and the mean accuracy over shifts.

    ``ece`` is free of the bias of binning, ``ece floor`` what a calibrated model would show of the plain error; see
    :func:`rp_lib.stats.calibration_error`.
    """
    rows: list[Row] = []
    seed, shifted = outputs.seed, []
    for data in (outputs.test, *outputs.shifts.values(), *outputs.controls.values()):
        correct = data.correct
        blocks = [calibration_gaps(block.reported.double().softmax(1), block.labels) for block in data.blocks]
        gaps = map(np.concatenate, zip(*blocks, strict=True))
        ece, floor = calibration_error(*gaps, _draw_pictures(data, n_resamples, seed))
        measured = {
            "accuracy": accuracy_interval(correct, data, seed), "ece": ece, "ece floor": Interval(floor, floor, floor),
        }  # fmt: skip
        rows += [_row(outputs, data.name, data.role, metric, found, len(data)) for metric, found in measured.items()]
        if data.role == "shift":
            shifted.append((correct, data))
    if shifted:
        n = sum(len(correct) for correct, _ in shifted)
        rows.append(_row(outputs, ALL_SHIFTS, "shift", "accuracy", mean_accuracy_interval(shifted, seed), n))
    return rows


def detection_rows(
    outputs: MethodOutputs, detector: Detector, metrics: Sequence[str], n_resamples: int = OOD_RESAMPLES
) -> list[Row]:
    """Measure how well one detector tells the test set from every OOD set, and the means over these.

    Intervals of AUROC and FPR alone, in the convention ``id-positive``, take milliseconds; all else resamples one by
    one. A detector that is not defined for the method gives no rows.
    """
    if not outputs.ood:
        return []
    convention = outputs.about["convention"]
    try:
        id_scores, sets = detection_scores(detector, outputs)
    except NotApplicable as reason:
        log.info("no rows for %s of %s: %s", detector.name, outputs.method, reason)
        return []
    sources = [outputs.test.sources.numpy(), *(outputs.ood[name].sources.numpy() for name in sets)]
    options = {"convention": convention, "n_resamples": n_resamples, "seed": outputs.seed, "sources": sources}
    found = bootstrap_ood(id_scores, sets, metrics, mean=ALL_OOD, **options)
    roles = {name: data.role for name, data in outputs.ood.items()} | {ALL_OOD: "ood"}
    sizes = {name: len(scores) for name, scores in sets.items()}
    sizes[ALL_OOD] = sum(sizes.values())
    return [
        _row(outputs, name, roles[name], metric, interval, len(id_scores),
             n_ood=sizes[name], detector=detector.name, convention=convention)
        for name, measured in found.items()
        for metric, interval in measured.items()
    ]  # fmt: skip


def _row(
    outputs: MethodOutputs, data: str, role: str, metric: str, interval: Sequence[float], n: int, **more: object
) -> Row:
    value, low, high = interval
    alpha = outputs.about["alpha"]
    return {
        "method": outputs.method, "seed": outputs.seed, "alpha": np.nan if alpha is None else alpha, "set": data,
        "role": role, "metric": metric, "value": value, "low": low, "high": high, "n": n, **more,
    }  # fmt: skip


def _draw_pictures(data: Outputs, n_resamples: int, seed: int) -> Resamples:
    """Draw the pictures that the images are made of: copies count together."""
    known, ids = np.unique(data.sources.numpy(), return_inverse=True)
    return Resamples.draw(len(known), n_resamples, seed).of_members(ids)


def accuracy_interval(correct: np.ndarray, data: Outputs, seed: int) -> Interval:
    """Compute accuracy with Wilson's interval; where pictures repeat, with a bootstrap of pictures.

    Raises:
        RPLibError: Every image is made of the same picture.
    """
    known = len(data.sources.unique())
    if known == len(data):
        return wilson_interval(int(correct.sum()), len(correct))
    if known < 2:
        raise RPLibError(f"all images of {data.name!r} are made of one picture: nothing can be resampled")
    return bootstrap_ci(correct, clusters=data.sources, seed=seed)


def mean_accuracy_interval(shifted: list[tuple[np.ndarray, Outputs]], seed: int) -> Interval:
    """Compute the mean accuracy over sets, each weighing the same, with its percentile bootstrap interval.

    Sets derived from the test pictures share each resample of them: their errors do not average out.
    """
    units = {data.name: data.sources.numpy() for _, data in shifted}
    draws = resample_sets(units, {data.name for _, data in shifted if data.derived}, MEAN_RESAMPLES, (seed,))
    means = np.mean([draws[data.name].mean(correct) for correct, data in shifted], axis=0)
    fewest = min(len(data.sources.unique()) for _, data in shifted)
    value = float(np.mean([correct.mean() for correct, _ in shifted]))
    return Interval.of_resamples(means, fewest)._replace(value=value)


@checked
@dataclass(frozen=True)
class Run:
    """Hold a fitted method and the seed it was fitted with.

    Example:
        >>> evaluate([Run(method, seed=1)], benchmark)  # doctest: +SKIP
    """

    method: Method
    seed: int


def evaluate(
    runs: Iterable[Run],
    benchmark: Benchmark,
    *,
    store: FeatureStore | None = None,
    detectors: Sequence[str] = ("msp",),
    n_resamples: int = OOD_RESAMPLES,
    progress: bool = False,
) -> pd.DataFrame:
    """Evaluate fitted methods on a benchmark.

    Args:
        runs: Fitted methods with their seeds.
        benchmark: Its test, shifted and OOD sets are evaluated.
        store: Features that are there already; what is computed here is added.
        detectors: Names, see :data:`rp_lib.detectors.DETECTORS`. Those that learn encode the training images too;
            ``cooked`` needs zero-shot and a linear probe among the runs.
        n_resamples: Bootstrap resamples of the detection and calibration intervals. Intervals are over pictures;
            pictures of one designer are alike, so for other designers expect more spread.
        progress: Whether to show bars.

    Returns:
        One row per method, seed, set, metric and detector with the columns :data:`COLUMNS`; values are fractions.
        ``mean of shifts`` and ``mean of OOD sets`` weigh every set the same. A detector that is not defined for a
        method (say one by class similarity, for a linear probe) has no rows.
    """
    import pandas as pd

    runs, store = list(runs), store or FeatureStore()
    built = [build_detector(name) for name in dict.fromkeys(detectors)]
    needs = needs_of(detectors)
    words: dict[tuple[object, ...], NegativeWords] = {}
    rows: list[dict[str, object]] = []
    for run in runs:
        negatives, task = None, (run.method.class_names, run.method.templates)
        if "negatives" in needs:
            key = (run.method.clip.fingerprint, *task)
            negatives = words[key] = words.get(key) or mine_negative_words(run.method.clip, *task)
        others = _members(run, runs) if "others" in needs else None
        outputs = compute_outputs(
            run.method, benchmark, seed=run.seed, store=store, roles=roles_for(needs), others=others,
            negatives=negatives, progress=progress,
        )  # fmt: skip
        rows += _rows(outputs, built, RECORDED, n_resamples)
    return pd.DataFrame(rows, columns=list(COLUMNS))


def needs_of(detectors: Sequence[str]) -> frozenset[str]:
    """Return what detectors of these names need next to outputs, see :class:`rp_lib.detectors.Detector`."""
    return frozenset().union(*(build_detector(name).needs for name in detectors))


def roles_for(needs: Collection[str]) -> tuple[str, ...]:
    """Return the roles of the image sets that are evaluated by detectors with these needs."""
    return ("test", "shift", *OOD_ROLES, *(("train",) if "train" in needs else ()))


def evaluate_outputs(
    outputs: Sequence[MethodOutputs],
    *,
    detectors: Sequence[str] = ("msp",),
    metrics: Sequence[str] = ("auroc", "fpr"),
) -> pd.DataFrame:
    """Make the records of :func:`evaluate` from outputs that are there already; no model is needed.

    Args:
        outputs: As :func:`rp_lib.outputs.load_outputs` reads them, of one benchmark.
        metrics: Of OOD detection; with the default two, intervals take milliseconds per method and detector.
        detectors: As in :func:`evaluate`.

    Raises:
        RPLibError: outputs of different benchmarks, or outputs that lack what a detector needs.
    """
    import pandas as pd

    check_comparable(outputs)
    built = [build_detector(name) for name in dict.fromkeys(detectors)]
    rows = [row for o in outputs for row in _rows(o, built, metrics, OOD_RESAMPLES)]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _rows(outputs: MethodOutputs, detectors: Sequence[Detector], metrics: Sequence[str], r: int) -> list[Row]:
    """Measure accuracy, then detection by every detector, on r resamples."""
    return accuracy_rows(outputs, r) + [row for d in detectors for row in detection_rows(outputs, d, metrics, r)]


def _members(run: Run, runs: Sequence[Run]) -> dict[str, Method]:
    """Find the ensemble's other classifiers: of the same seed, or else the only one of that name."""
    found: dict[str, Method] = {}
    for name in MEMBERS:
        named = [r for r in runs if r.method.name == name and r.method.clip is run.method.clip]
        same = [r for r in named if r.seed == run.seed] or (named if len(named) == 1 else [])
        if same:
            found[name] = same[0].method
    return found


def summarize(records: pd.DataFrame) -> pd.DataFrame:
    """Average over seeds, with an interval for both sources of chance.

    The images are the same for every seed, so their uncertainty does not shrink with more seeds, while that of
    training does: variance = mean image variance + seed variance / number of seeds.

    Returns:
        One row per method, alpha, set, metric and detector: ``value, low, high, seeds, n, n_ood``. The interval is a
        normal approximation on either side of the mean, within [0, 1]; with two or three seeds their part is rough.

    Raises:
        RPLibError: A table of something else, or a number twice, which would make intervals narrower.
    """
    import pandas as pd

    # One method at two alphas, or with two detectors, is two rows, not two seeds.
    keys = ["method", "alpha", "set", "role", "metric", "detector"]
    _check_table(records, [*keys, "seed", "value", "low", "high", "n", "n_ood"], "evaluate")
    if (twice := records.duplicated([*keys, "seed"])).any():
        row = records[twice].iloc[0]
        raise RPLibError(
            f"{row['method']!r} with seed {row['seed']} has its {row['metric']} on {row['set']!r} twice in these "
            "records, which would count as two seeds: give each run its own seed, and no run twice"
        )
    sides = {side: np.square(records[side] - records["value"]) for side in ("low", "high")}
    groups = records.assign(**sides).groupby(keys, sort=False, dropna=False)
    seeds, value = groups.size(), groups["value"].mean()
    chance = 1.96**2 * (groups["value"].var(ddof=1) / seeds).where(seeds > 1, 0.0)
    low, high = (np.sqrt(groups[side].mean() + chance) for side in ("low", "high"))
    first = groups[["n", "n_ood"]].nth(0)
    summary = {"value": value, "low": (value - low).clip(0), "high": (value + high).clip(upper=1)}
    summary["seeds"] = seeds.astype(float)
    sizes = {name: first[name].to_numpy(float) for name in ("n", "n_ood")}
    return pd.DataFrame(summary).assign(**sizes).reset_index()


def choose_alpha(
    base: Method, benchmark: Benchmark, store: FeatureStore, name: str = "rrp"
) -> tuple[float, pd.DataFrame]:
    """Find the largest alpha whose ID validation accuracy is within one standard error of the best.

    Mixing with zero-shot is there to keep what CLIP knows, which ID data cannot see; so among alphas that ID
    validation data cannot tell apart, the one nearest to zero-shot is taken (the one-standard-error rule of Breiman et
    al. 1984). For mixed features and outputs the sweep is matrix algebra on features that are there already; for
    mixed weights it encodes the validation images once per alpha.

    Args:
        base: The fitted method that is mixed with zero-shot.
        benchmark: Its validation images decide.
        store: Features that are there already.
        name: Key of :data:`rp_lib.methods.BASES`: the method that is made of ``base``.

    Returns:
        The alpha, and the sweep: ``alpha, val_accuracy``.

    Raises:
        UnknownName: ``name`` has no alpha.
    """
    import pandas as pd

    if name not in BASES:
        raise UnknownName("method with an alpha", name, BASES)
    mixed, rows = METHODS[name](base), []
    for alpha in ALPHAS:
        candidate = mixed.with_alpha(alpha)
        rows.append((alpha, candidate.accuracy(benchmark.val, store)))
        if candidate in candidate.encoders:
            store.drop(candidate)  # nobody else can use it, and the store would keep its weights alive
    sweep = pd.DataFrame(rows, columns=["alpha", "val_accuracy"])
    best = float(sweep["val_accuracy"].max())
    error = float(np.sqrt(best * (1 - best) / len(benchmark.val)))
    return float(sweep.loc[sweep["val_accuracy"] >= best - error, "alpha"].max()), sweep


def answers(outputs: MethodOutputs, benchmark: Benchmark) -> pd.DataFrame:
    """List what a method answers to every labelled picture of the test set and of the shifts.

    Args:
        outputs: Of one fitted method.
        benchmark: What they are of; pictures that came from files are named by their path, others by their position.

    Returns:
        One row a picture: ``set``, ``picture``, ``label`` and ``answer`` (names of classes), ``probability`` of the
        answer, and ``correct``. Misclassified pictures are ``table[~table["correct"]]``, the confusion matrix is
        ``pandas.crosstab(table["label"], table["answer"])``.

    Raises:
        RPLibError: The outputs are of another benchmark.

    Example:
        >>> table = answers(outputs, data)  # doctest: +SKIP
        >>> table[~table["correct"]].sort_values("probability", ascending=False)  # doctest: +SKIP
    """
    import pandas as pd

    if outputs.about["benchmark_sha256"] != benchmark.fingerprint:
        raise RPLibError(f"the outputs are of another version of the benchmark {benchmark.name!r}; compute them again")
    names, frames = np.array(benchmark.class_names, dtype=object), []
    for images in (benchmark.test, *benchmark.shifts.values()):
        data = outputs.sets[images.name]
        best = data.reported.double().softmax(1).max(1)
        frames.append(
            pd.DataFrame({
                "set": images.name, "picture": images.paths or [str(i) for i in range(len(images))],
                "label": names[data.labels.numpy()], "answer": names[best.indices.numpy()],
                "probability": best.values.numpy(), "correct": (best.indices == data.labels).numpy(),
            })
        )  # fmt: skip
    return pd.concat(frames, ignore_index=True)


def accuracy_by_class(table: pd.DataFrame) -> pd.DataFrame:
    """Summarize :func:`answers` by class, the worst class first.

    Args:
        table: Rows of one image set, or of several that count together.

    Returns:
        One row a class that is there: ``class``, ``accuracy`` with ``low`` and ``high`` (95 %, Wilson), ``n``, and
        ``mistaken_for``, the most frequent wrong answer (empty if there is none).

    Raises:
        RPLibError: A table of something else, or without rows.
    """
    import pandas as pd

    _check_table(table, ("label", "answer"), "answers")
    table, rows = table.assign(correct=table["label"] == table["answer"]), []
    for name, of_class in table.groupby("label", sort=True):
        wrong = of_class.loc[~of_class["correct"], "answer"]
        accuracy, low, high = wilson_interval(int(of_class["correct"].sum()), len(of_class))
        rows.append({
            "class": name, "accuracy": accuracy, "low": low, "high": high, "n": len(of_class),
            "mistaken_for": wrong.mode().iloc[0] if len(wrong) else "",
        })  # fmt: skip
    return pd.DataFrame(rows).sort_values(["accuracy", "class"], ignore_index=True)
