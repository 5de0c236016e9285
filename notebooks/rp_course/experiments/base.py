"""What an experiment is: a question, a way to measure it, and verdicts that code reads off the records.

Records are tidy: one row per condition, method, image set and metric, means over seeds with a 95 % interval. Rows that
compare two methods carry ``versus``, the other's name; their metric is an axis, their value the paired difference, and
``p_holm`` its p-value, corrected by Holm for all differences of the same condition (those of the aggregate of three
axes, which only the table has, are corrected among themselves).
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from rp_course.experiments.world import World
from rp_lib.run.report import commit, load_records, save_records
from rp_lib.utils.errors import RPLibError
from rp_lib.utils.io import StorageError, as_csv, file_sha256, load_table, write_atomically

if TYPE_CHECKING:  # figures take a second to import, and not every user of records draws
    from matplotlib.figure import Figure

SHIPPED = Path(__file__).resolve().parent / "records"
COLUMNS = ("method", "versus", "set", "metric", "value", "low", "high", "p_holm", "seeds", "n", "n_ood", "detector")
HOLDS, FAILS, UNDECIDED = "holds", "fails", "undecided"
DEPENDS = "depends on the setting"
TUNED, PUBLISHED = "tuned", "published"  # where the settings of every method come from
AXIS_LABELS = {
    "id accuracy": "ID accuracy", "shift accuracy": "accuracy under shift", "auroc": "AUROC", "fpr": "FPR95",
    "aggregate": "mean of three axes",
}  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """What the records say of a claim: it ``holds``, it ``fails`` or it stays ``undecided``, and the numbers why.

    ``parts`` are the verdicts with the tuned and with the published settings, where both were measured. If they differ,
    the claim ``depends on the setting``.
    """

    claim: str
    outcome: str
    evidence: str
    parts: Mapping[str, Verdict] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """As JSON keeps it."""
        told = {"claim": self.claim, "outcome": self.outcome, "evidence": self.evidence}
        return told | ({"parts": {choice: v.as_dict() for choice, v in self.parts.items()}} if self.parts else {})

    def __str__(self) -> str:
        return f"[{self.outcome}] {self.claim}: {self.evidence}"


@dataclass(frozen=True)
class Experiment:
    """A named experiment.

    Attributes:
        name: of the command line and of the records' file.
        question: what it answers, one sentence.
        factors: columns of the records that say under which condition a row was measured.
        measure: runs it; the frame has the factors and :data:`COLUMNS`.
        judge: verdicts of the records; must be able to come out either way.
        minutes: on two cores, or of one thread; measured for those whose records ship, an estimate for the others.
        about: what to add to the provenance of a run, from its world.
        figures: gives its own figures by suffix of their files' names, imported when they are drawn; None for the one
            that all others share, see :mod:`rp_course.experiments.figures`.
        text: what the command line prints of the records beside the verdicts.
    """

    name: str
    question: str
    factors: tuple[str, ...]
    measure: Callable[[World, Path], pd.DataFrame]
    judge: Callable[[pd.DataFrame], list[Verdict]]
    minutes: float
    about: Callable[[World], dict[str, Any]] | None = None
    figures: Callable[[], Mapping[str, Drawing]] | None = None
    text: Callable[[pd.DataFrame], str] | None = None


@dataclass(frozen=True)
class Drawing:
    """A figure of an experiment's records.

    Attributes:
        draw: the figure of the records. alt: what it shows in a sentence, from the records.
    """

    draw: Callable[[pd.DataFrame], Figure]
    alt: Callable[[pd.DataFrame], str]


@dataclass(frozen=True)
class ExperimentResult:
    """Records of a run with their verdicts, and how they agree with the shipped ones (None if there are none).

    ``kept`` tells of each claim that ships too whether its outcome is the same word.
    """

    records: pd.DataFrame
    verdicts: list[Verdict]
    agreement: Agreement | None
    kept: Mapping[str, bool] = field(default_factory=dict)


@dataclass(frozen=True)
class Agreement:
    """How many figures of a rerun lie inside the interval that ships, of those that ship; and which do not."""

    inside: int
    compared: int
    outside: pd.DataFrame

    def __str__(self) -> str:
        if not self.compared:
            return "nothing to compare: the shipped records hold none of these figures"
        return f"{self.inside} of {self.compared} figures lie inside the shipped 95 % intervals"


def run(experiment: Experiment, world: World, out: Path, shipped: Path = SHIPPED) -> ExperimentResult:
    """Measure, judge, record to ``out/NAME.csv`` with provenance, and compare with what ships.

    The shipped records are compared with only if they come from the same weights, data and number of seeds. The
    provenance lists the parts that were measured earlier and the commit that measured them; a part is known by the
    library's version, settings and data, not by its code, so after a change of code delete ``out/parts/NAME``.
    """
    world.parts.clear()
    records = experiment.measure(world, out / "parts" / experiment.name)
    missing = [c for c in (*experiment.factors, *COLUMNS) if c not in records.columns]
    if missing:
        raise RPLibError(f"the experiment {experiment.name!r} recorded no {', '.join(missing)}")
    # Judged as the file will hold them, whose numbers are rounded: whoever judges the file reads the same verdicts.
    records = load_table(io.StringIO(as_csv(records[[*experiment.factors, *COLUMNS]])))
    verdicts = experiment.judge(records)
    clip = world.backbone()
    provenance = {
        "experiment": experiment.name, "question": experiment.question, "quick": world.quick,
        "seeds": list(world.seeds), "precision": world.precision, "backbone": clip.name,
        "backbone_sha256": clip.fingerprint, "benchmark": world.benchmark.name,
        "benchmark_sha256": world.benchmark.fingerprint, "settings": dict(world.settings),
        "verdicts": [v.as_dict() for v in verdicts], "parts": reused(world.parts),
    }  # fmt: skip
    extra = experiment.about(world) if experiment.about else {}
    provenance |= extra
    save_records(records, out / f"{experiment.name}.csv", provenance)
    path = shipped / f"{experiment.name}.csv"
    agreement, kept = None, {}
    if path.is_file() and not world.quick:
        theirs, about = load_records(path)
        words = {v["claim"]: v["outcome"] for v in about["verdicts"]}
        kept = {v.claim: v.outcome == words[v.claim] for v in verdicts if v.claim in words}
        same = all(about.get(k) == provenance[k] for k in ("backbone_sha256", "benchmark_sha256", "seeds", *extra))
        if same and set(experiment.factors) <= set(theirs.columns):
            agreement = compare(records, theirs, experiment.factors)
    return ExperimentResult(records, verdicts, agreement, kept)


def reused(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Of the parts of a run: how many were measured now, and how many earlier, by commit."""
    earlier = [p["commit"] or "unknown" for p in parts if p["reused"]]
    return {
        "measured": sum(not p["reused"] for p in parts),
        "reused": {commit: earlier.count(commit) for commit in sorted(set(earlier))},
    }


def rejudge(experiment: Experiment, out: Path) -> ExperimentResult:
    """Read ``out/NAME.csv`` and judge it with today's code, without measuring; the provenance gets the new verdicts.

    Raises:
        StorageError: the records are missing, or altered since they were measured.
    """
    path = out / f"{experiment.name}.csv"
    records, about = load_records(path)
    if about.get("records_sha256") != file_sha256(path):
        raise StorageError(f"{path} was altered since it was measured (its SHA-256 differs); run the experiment again")
    missing = [c for c in (*experiment.factors, *COLUMNS) if c not in records.columns]
    if missing:
        raise RPLibError(f"{path} has no {', '.join(missing)}: it was measured by an older version; run it again")
    verdicts = experiment.judge(records)
    told = [v.as_dict() for v in verdicts]
    if told != about.get("verdicts"):
        about |= {"verdicts": told, "judged_by": commit()}
        write_atomically(
            path.with_suffix(".json"), lambda p: p.write_text(json.dumps(about, indent=1, default=str) + "\n")
        )
    return ExperimentResult(records, verdicts, None)


def compare(records: pd.DataFrame, shipped: pd.DataFrame, factors: Iterable[str]) -> Agreement:
    """Which values of a rerun lie inside the shipped intervals; rows without an interval are not compared."""
    keys = [*factors, "method", "versus", "set", "metric", "detector"]
    # By way of text: a column of a file has other types than the same column in memory.
    both = [
        frame.assign(_key=frame[keys].astype(object).map(_plain).agg("|".join, axis=1)) for frame in (records, shipped)
    ]
    joined = both[0].merge(both[1][["_key", "value", "low", "high"]], on="_key", suffixes=("", "_shipped"))
    joined = joined[joined["high_shipped"] > joined["low_shipped"]]
    inside = joined["value"].between(joined["low_shipped"] - 5e-6, joined["high_shipped"] + 5e-6)  # files round
    return Agreement(int(inside.sum()), len(joined), joined[~inside].drop(columns="_key"))


def _plain(value: Any) -> str:
    if value is None or value != value:
        return ""
    try:
        return f"{float(value):.6g}"
    except (TypeError, ValueError):
        return str(value)


def shipped_records(name: str, folder: Path = SHIPPED) -> pd.DataFrame:
    """The records of an experiment that ship with the package.

    Raises:
        StorageError: they are missing or damaged.
    """
    return load_records(folder / f"{name}.csv")[0]


def pick(records: pd.DataFrame, **where: Any) -> pd.DataFrame:
    """Rows in which the named columns have these values; ``versus=None`` takes rows that compare nothing."""
    for column, value in where.items():
        records = records[records[column].isna() if value is None else records[column] == value]
    return records


def difference(
    claim: str,
    records: pd.DataFrame,
    first: str,
    second: str,
    axis: str,
    want: str,
    where: Mapping[str, Any] | None = None,
) -> Verdict:
    """A verdict on ``first - second`` on an axis, from the paired difference that was recorded.

    It is decided where the 95 % interval excludes zero and the corrected p-value is below 0.05.

    Args:
        claim: what is claimed. records: of an experiment. first, second: methods. axis: see ``rp_lib.comparison.AXES``.
        want: ``higher`` or ``lower``, of the first against the second. where: the condition.

    Differences on an axis of :data:`AXIS_LABELS` are told in points, all others in the measure's own unit.
    """
    if want not in ("higher", "lower"):
        raise RPLibError(f"a claim is that a method is higher or lower, not {want!r}")
    rows, sign = pick(records, method=first, versus=second, metric=axis, **(where or {})), 1
    if rows.empty:
        rows, sign = pick(records, method=second, versus=first, metric=axis, **(where or {})), -1
    if len(rows) != 1:
        raise RPLibError(f"{len(rows)} rows compare {first} with {second} on {axis}; name one condition")
    row = rows.iloc[0]
    value, low, high = sorted_interval(row, sign)
    outcome = direction(row, sign)
    if want == "lower":
        outcome = {HOLDS: FAILS, FAILS: HOLDS, UNDECIDED: UNDECIDED}[outcome]
    if axis in AXIS_LABELS:  # fractions
        gap = f"{100 * value:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}] {AXIS_LABELS[axis]}"
    else:
        gap = f"{value:+.3f} [{low:+.3f}, {high:+.3f}] {axis}"
    size = f"Holm p = {row['p_holm']:.3f}, {int(row['seeds'])} seeds, n = {int(row['n'])}"
    evidence = f"{first} - {second} = {gap}, {size}"
    return Verdict(claim, outcome, evidence)


def direction(row: pd.Series, sign: int = 1) -> str:
    """``holds`` if a recorded difference, times ``sign``, is above zero, ``fails`` if below, else ``undecided``."""
    _, low, high = sorted_interval(row, sign)
    if not row["p_holm"] < 0.05 or low <= 0 <= high:
        return UNDECIDED
    return HOLDS if low > 0 else FAILS


def sorted_interval(row: pd.Series, sign: int = 1) -> tuple[float, float, float]:
    """value, low, high of a row, or of its negation with ``sign`` -1."""
    value, low, high = (sign * float(row[c]) + 0.0 for c in ("value", "low", "high"))  # + 0.0 makes zero of -0.0
    return value, min(low, high), max(low, high)


def shrinks(claim: str, weak: pd.Series, strong: pd.Series, what: str, sign: int = 1) -> Verdict:
    """A verdict on whether a difference is larger under a first condition than under a second.

    The two conditions have different models, so their intervals are combined as of independent errors; where they
    share test pictures that is wider than needed, never too narrow for the sum of positively related errors.

    Args:
        claim: what is claimed. weak, strong: rows of the two differences. what: says which. sign: -1 if a negative
            difference is the gain.
    """
    one, two = sorted_interval(weak, sign), sorted_interval(strong, sign)
    change = one[0] - two[0]
    half = (((one[2] - one[1]) / 2) ** 2 + ((two[2] - two[1]) / 2) ** 2) ** 0.5
    outcome = HOLDS if change - half > 0 else FAILS if change + half < 0 else UNDECIDED
    spread = [f"{100 * v:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]" for v, low, high in (one, two)]
    evidence = f"{what}: {spread[0]} against {spread[1]} points, change {100 * change:+.1f} ± {100 * half:.1f}"
    return Verdict(claim, outcome, evidence)


def over_seeds(group: pd.DataFrame) -> pd.Series:
    """Mean over seeds of rows ``value, low, high, n``, with the interval of :func:`rp_lib.evaluation.summarize`."""
    image = np.square((group["high"] - group["low"]) / (2 * 1.96)).mean()
    seeds, value = len(group), group["value"].mean()
    half = 1.96 * np.sqrt(image + (group["value"].var(ddof=1) / seeds if seeds > 1 else 0.0))
    return pd.Series(
        {"value": value, "low": value - half, "high": value + half, "seeds": seeds, "n": group["n"].iloc[0]}
    )


def row(records: pd.DataFrame, **where: Any) -> pd.Series:
    """The one row with these values.

    Raises:
        RPLibError: there is none, or more than one.
    """
    found = pick(records, **where)
    if len(found) != 1:
        raise RPLibError(f"{len(found)} records fit {where}; one is needed")
    return found.iloc[0]
