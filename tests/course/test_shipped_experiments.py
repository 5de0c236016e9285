"""The records that ship belong to the weights and data that ship, and their verdicts follow from them."""

import pytest
from rp_course.experiments import EXPERIMENTS, experiment, shipped_records
from rp_course.experiments.base import COLUMNS, SHIPPED

from rp_lib.config import SCRIPT_SWITCHES
from rp_lib.mini import load_benchmark, load_clip
from rp_lib.run.report import load_records
from rp_lib.run.search import tuned_settings
from rp_lib.utils.io import file_sha256

NAMES = sorted(p.stem for p in SHIPPED.glob("*.json"))  # a CSV without one is no experiment's records


def test_some_ship_and_are_small():
    assert {"strength", "table"} <= set(NAMES) <= set(EXPERIMENTS)
    assert sum(p.stat().st_size for p in SHIPPED.iterdir()) < 3e6


@pytest.mark.parametrize("name", NAMES)
def test_records_are_of_what_ships_and_say_what_they_said(name):
    records, about = load_records(SHIPPED / f"{name}.csv")
    e = experiment(name)
    assert list(records.columns) == [*e.factors, *COLUMNS]
    assert about["records_sha256"] == file_sha256(SHIPPED / f"{name}.csv")
    assert about["backbone_sha256"] == load_clip().fingerprint
    assert about["benchmark_sha256"] == load_benchmark().fingerprint
    assert not about["quick"] and len(about["seeds"]) >= 3
    settings = {name: {k: _renamed(v) for k, v in values.items()} for name, values in about["settings"].items()}
    assert settings == {k: _plain(v) for k, v in tuned_settings().items()}
    assert [v.as_dict() for v in e.judge(shipped_records(name))] == about["verdicts"]


def _renamed(value):
    """A configuration's text with the names of today; records of version 0.1.0 have those of then."""
    if not isinstance(value, str):
        return value
    for name in SCRIPT_SWITCHES:  # all off, and no switches any more
        value = value.replace(f" {name}=False,", "")
    return value.replace("Reprogramming(", "RPConfig(").replace("renormalise_residual", "renormalize_residual")


def _plain(settings):
    """As JSON gives a method's settings back: a configuration as its text."""
    return {key: value if isinstance(value, (int, float, str)) else str(value) for key, value in settings.items()}
