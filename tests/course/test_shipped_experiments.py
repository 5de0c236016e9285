"""The records that ship belong to the weights and data that ship, and their verdicts follow from them."""

import pytest
from rp_course.experiments import EXPERIMENTS, experiment, shipped_records
from rp_course.experiments.base import COLUMNS, SHIPPED

from rp_lib.run.report import load_records
from rp_lib.run.search import tuned_settings
from rp_lib.utils.io import file_sha256

# Measured before the shifts were chosen and the settings searched anew; the notebooks that show them say so.
EARLIER = frozenset(
    "classes neighbours remedies shots size".split()
)
# And those of the tuned settings alone, of before each experiment had both.
ONE_CHOICE = EARLIER | frozenset("border frontier ledger losses padding programs words".split())
EARLIER_BENCHMARK = "0881aba6f3e08fd645c93b1fccddcb866ebac4b71fdca38fd36ff0836739b574"
NAMES = sorted(p.stem for p in SHIPPED.glob("*.json"))  # a CSV without one is no experiment's records


def test_some_ship_and_are_small():
    assert {"strength", "table"} <= set(NAMES) <= set(EXPERIMENTS)
    assert sum(p.stat().st_size for p in SHIPPED.iterdir()) < 4e6


@pytest.mark.parametrize("name", NAMES)
def test_records_are_of_what_ships_and_say_what_they_said(name, mini_clip, mini_benchmark):
    records, about = load_records(SHIPPED / f"{name}.csv")
    e = experiment(name)
    assert list(records.columns) == [f for f in (*e.factors, *COLUMNS) if f != "choice" or name not in ONE_CHOICE]
    assert about["records_sha256"] == file_sha256(SHIPPED / f"{name}.csv")
    assert about["backbone_sha256"] == mini_clip.fingerprint
    assert not about["quick"] and len(about["seeds"]) >= 3
    assert " /" not in about["command"]  # the folder of whoever ran it
    if name in EARLIER:
        assert about["benchmark_sha256"] == EARLIER_BENCHMARK
    else:
        assert about["benchmark_sha256"] == mini_benchmark.fingerprint
        assert about["settings"].items() <= {k: _plain(v) for k, v in tuned_settings().items()}.items()
    assert [v.as_dict() for v in e.judge(shipped_records(name))] == about["verdicts"]


def _plain(settings):
    """As JSON gives a method's settings back: a configuration as its text."""
    return {key: value if isinstance(value, (int, float, str)) else str(value) for key, value in settings.items()}
