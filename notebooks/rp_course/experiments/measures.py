"""Claims about measures that are not on the three axes: paired differences, and verdicts that are read off them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pandas as pd

from rp_course.experiments.base import COLUMNS, Verdict, difference
from rp_lib.comparison import PairedDraws
from rp_lib.stats import holm
from rp_lib.utils.errors import RPLibError


class Claim(NamedTuple):
    """That ``first`` is ``want`` (higher or lower) than ``second`` on a measure."""

    text: str
    measure: str
    first: str
    second: str
    want: str


def claimed_differences(draws: PairedDraws, claims: Sequence[Claim], n: Mapping[str, int], seeds: int) -> pd.DataFrame:
    """Records of the paired differences that claims are about, corrected by Holm among themselves.

    Args:
        draws: of the methods; its axes are measures. claims: those of other measures are left out.
        n: number of pictures of each measure. seeds: of training.
    """
    asked = list(dict.fromkeys((c.first, c.second, c.measure) for c in claims if c.measure in draws.axes))
    table = draws.differences(list(dict.fromkeys(pair[:2] for pair in asked))).set_index(["first", "second", "axis"])
    table = table.loc[asked].reset_index()
    records = table.rename(columns={"first": "method", "second": "versus", "axis": "metric", "difference": "value"})
    records = records.assign(
        p_holm=holm(table["p"]), set="", seeds=seeds, n=records["metric"].map(n), n_ood=None, detector=""
    )
    return records[list(COLUMNS)]


def verdicts_of(records: pd.DataFrame, claims: Sequence[Claim]) -> list[Verdict]:
    """Verdicts on the claims whose measure was compared.

    Raises:
        RPLibError: none was: the records are of a version that compared nothing.
    """
    compared = records[records["versus"].notna()]
    told = [
        difference(c.text, compared, c.first, c.second, c.measure, c.want)
        for c in claims
        if c.measure in set(compared["metric"])
    ]
    if not told:
        raise RPLibError("these records hold no paired differences: an older version measured them; run it again")
    return told
