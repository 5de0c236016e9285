"""The experiment on a second backbone size."""

import pandas as pd
import pytest
from rp_course.experiments import World, experiment, run
from rp_course.experiments.size import LARGE, SMALL
from test_verdicts import made_up, outcomes

from rp_lib.utils.errors import RPLibError

CORE = ("zero-shot", "linear-probe", "fine-tune", "rp", "rrp")


def test_who_wants_to_measure_is_told_how_to_make_the_narrow_one(tmp_path, monkeypatch, mini_benchmark):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RPLibError, match=r"mini pretrain --recipe small .* --size half-width --out results/half-width"):
        run(experiment("size"), World(mini_benchmark, {}, quick=True, seeds=(1,)), tmp_path)


def test_size_points_the_right_way():
    worse = dict(zip(CORE, (5, 4, 0, 5.5, 8), strict=True))  # fine-tuning loses
    better = dict(zip(CORE, (0, 1, 9, 4, 5), strict=True))  # fine-tuning wins
    told = outcomes("size", pd.concat([
        made_up(worse, checkpoint=SMALL, million_weights=0.8), made_up(better, checkpoint=LARGE, million_weights=2.9)
    ]))  # fmt: skip
    assert set(told.values()) == {"holds"} and len(told) == 6
    turned = outcomes("size", pd.concat([
        made_up(better, checkpoint=SMALL, million_weights=0.8), made_up(worse, checkpoint=LARGE, million_weights=2.9)
    ]))  # fmt: skip
    assert set(turned.values()) == {"fails"}
