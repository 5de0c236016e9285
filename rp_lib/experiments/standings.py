"""Who stands where when the three axes are added up: records, verdicts and the printed table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from rp_lib.aggregate import NAME, aggregate, mean_ranks
from rp_lib.experiments.base import FAILS, HOLDS, UNDECIDED, Verdict, difference, direction, pick, row
from rp_lib.experiments.grid import paired_rows, rank_rows
from rp_lib.judging import ALL_OOD, ALL_SHIFTS
from rp_lib.outputs import MethodOutputs
from rp_lib.paired import PairedDraws

WINNER = "rrp"  # the method that the paper proposes
ALL_AXES = "three axes"
# Columns of the printed table: head, image set, metric.
HEADS = (
    ("ID acc", "test", "accuracy"), ("shift acc", ALL_SHIFTS, "accuracy"), ("AUROC", ALL_OOD, "auroc"),
    ("FPR95", ALL_OOD, "fpr"), ("ECE", "test", "ece"), ("mean of three", ALL_AXES, NAME), ("its rank", NAME, "rank"),
)  # fmt: skip


def standings(outputs: Mapping[str, Sequence[MethodOutputs]], draws: PairedDraws, detector: str) -> pd.DataFrame:
    """Records of the aggregate (:mod:`rp_lib.aggregate`) and of ranks, with intervals over pictures and seeds.

    ``metric`` is ``aggregate``, with ``versus`` for RRP's lead over each other method; ``mean rank`` over the three
    axes; ``rank`` and ``first`` of :func:`rp_lib.experiments.grid.rank_rows`, of the aggregate too.
    """
    total = aggregate(draws)
    leads = total.differences([(WINNER, m) for m in draws.methods if m != WINNER and WINNER in draws.methods])
    leads = leads.rename(columns={"first": "method", "second": "versus", "difference": "value"})
    frames = [paired_rows(outputs, found, detector, ALL_AXES) for found in (total.estimates(), leads) if len(found)]
    frames += [rank_rows(outputs, ranked, detector) for ranked in (draws, total)]
    mean = mean_ranks(draws).rename(columns={"rank": "value"}).assign(axis="mean rank")
    return pd.concat([*frames, paired_rows(outputs, mean, detector, ALL_AXES)], ignore_index=True)


def on_the_aggregate(records: pd.DataFrame) -> list[Verdict]:
    """Whether RRP has the best aggregate: ahead of every other method for certain, or behind one; and by how much.

    Its leads are corrected for as many comparisons as there are other methods, so that the best of these may be chosen
    by its estimate. No verdicts where RRP was not measured.
    """
    leads = pick(records[records["versus"].notna()], metric=NAME, method=WINNER)
    if leads.empty:
        return []
    outcomes = {other: direction(lead) for other, lead in leads.set_index("versus").iterrows()}
    ahead, behind = ([m for m, o in outcomes.items() if o == kind] for kind in (HOLDS, FAILS))
    outcome = FAILS if behind else HOLDS if len(ahead) == len(outcomes) else UNDECIDED
    total, rank, mean = (
        row(records, method=WINNER, versus=None, metric=metric, set=data)
        for metric, data in ((NAME, ALL_AXES), ("rank", NAME), ("mean rank", ALL_AXES))
    )
    evidence = (
        f"{WINNER} {100 * total['value']:.1f} [{100 * total['low']:.1f}, {100 * total['high']:.1f}] points, rank "
        f"{rank['value']:g} [{rank['low']:g}, {rank['high']:g}] of {len(outcomes) + 1}, mean of its ranks on the axes "
        f"{mean['value']:.1f} [{mean['low']:.1f}, {mean['high']:.1f}]; ahead for certain of {_listed(ahead)}, behind "
        f"{_listed(behind)}; {int(total['seeds'])} seeds, n = {int(total['n'])}"
    )
    others = pick(records, versus=None, metric=NAME)
    others = others[others["method"] != WINNER]
    best = others.loc[others["value"].idxmax(), "method"]
    return [
        Verdict("RRP has the best mean of the three axes", outcome, evidence),
        difference(f"RRP has a better mean of the three axes than {best}, the best of the others", records, WINNER,
                   best, NAME, "higher"),
    ]  # fmt: skip


def _cell(row: pd.Series, rank: bool) -> str:
    if rank:
        return f"{row['value']:g} [{row['low']:g}, {row['high']:g}]"
    return f"{100 * row['value']:.1f} ± {50 * (row['high'] - row['low']):.1f}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"


def text(records: pd.DataFrame) -> str:
    """The whole table for a terminal: methods x axes with the aggregate and its rank, then methods x detectors."""
    plain = pick(records, versus=None)
    msp = plain[plain["detector"].isna() | plain["detector"].isin(["", "msp"])]
    summary = pd.DataFrame(index=list(dict.fromkeys(plain["method"])))
    for head, data, metric in HEADS:
        rows = pick(msp, set=data, metric=metric).set_index("method")
        summary[head] = pd.Series({m: _cell(r, metric == "rank") for m, r in rows.iterrows()}, dtype=object)
    title = "percent, mean over seeds ± half of the 95 % interval; AUROC and FPR95 by MSP"
    blocks = [f"{title}\n{summary.fillna('-').to_string()}"]
    for metric, head in (("auroc", "AUROC"), ("fpr", "FPR95")):
        rows = pick(plain, set=ALL_OOD, metric=metric)
        found = (100 * rows.pivot(index="method", columns="detector", values="value")).loc[summary.index]
        found = found[list(dict.fromkeys(rows["detector"]))]
        cells = found.map(lambda v: "-" if v != v else f"{v:.1f}")
        blocks.append(f"{head} by detector, percent, mean over OOD sets\n{cells.to_string()}")
    return "\n\n".join(blocks)
