import pandas as pd
import pytest

from rp_lib.run.report import load_records, save_records
from rp_lib.utils.io import StorageError


def test_round_trip_with_provenance(tmp_path):
    table = pd.DataFrame({"method": ["a", "b"], "value": [0.125, 0.5]})
    save_records(table, tmp_path / "out" / "records.csv", {"seeds": 3, "benchmark_sha256": "abc"})
    again, about = load_records(tmp_path / "out" / "records.csv")
    pd.testing.assert_frame_equal(table, again)
    assert about["seeds"] == 3 and about["benchmark_sha256"] == "abc" and about["rows"] == 2
    assert about["environment"]["packages"]["torch"] and about["environment"]["python"]


def test_missing_or_damaged_records_say_so(tmp_path):
    with pytest.raises(StorageError, match="run the command again"):
        load_records(tmp_path / "records.csv")
    save_records(pd.DataFrame({"a": [1]}), tmp_path / "records.csv", {})
    (tmp_path / "records.json").write_text("{")
    with pytest.raises(StorageError, match="damaged"):
        load_records(tmp_path / "records.csv")
    save_records(pd.DataFrame({"a": [1]}), tmp_path / "records.csv", {})
    assert len(load_records(tmp_path / "records.csv")[0]) == 1
