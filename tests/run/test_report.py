import dataclasses
import re
from pathlib import Path

import pandas as pd
import pytest
import torch

from rp_lib.methods import ZeroShot
from rp_lib.outputs import compute_outputs
from rp_lib.run.report import details, load_records, save_answers, save_records, table
from rp_lib.utils.io import StorageError, load_table, save_table


def test_round_trip_with_provenance(tmp_path):
    records = pd.DataFrame({"method": ["a", "b"], "value": [0.125, 0.5]})
    save_records(records, tmp_path / "out" / "records.csv", {"seeds": 3, "benchmark_sha256": "abc"})
    again, about = load_records(tmp_path / "out" / "records.csv")
    pd.testing.assert_frame_equal(records, again)
    assert about["seeds"] == 3 and about["benchmark_sha256"] == "abc" and about["rows"] == 2
    assert about["environment"]["packages"]["torch"] and about["environment"]["python"]


# What pandas takes for missing, for a truth value or for a number.
EATEN = ("NA", "null", "None", "nan", "N/A", "n/a", "NaN", "NULL", "true", "False", "1e5", "007", "inf", "-")


def test_sets_and_methods_may_have_any_name(tmp_path, tiny_clip, tiny_benchmark):
    from rp_lib.evaluation import Run, evaluate, summarize

    shift = tiny_benchmark.shifts["emoji"]
    shifts = {n: dataclasses.replace(shift, name=n, images=shift.images.roll(i, 3)) for i, n in enumerate(EATEN)}
    odd = dataclasses.replace(tiny_benchmark, shifts=shifts)
    method = ZeroShot(tiny_clip, odd.class_names, odd.templates)
    method.name = "none"
    records = evaluate([Run(method, 1)], odd, n_resamples=5)
    save_records(records, tmp_path / "records.csv", {})
    again = load_records(tmp_path / "records.csv")[0]
    assert list(again["set"]) == list(records["set"]) and set(EATEN) <= set(again["set"])
    assert list(again["detector"].isna()) == list(records["detector"].isna())
    pd.testing.assert_frame_equal(again, records, check_dtype=False, rtol=1e-5)
    assert len(summarize(again)) == len(summarize(records))  # a name that became missing would merge its rows
    assert {type(name) for name in again["set"]} == {str}


@pytest.mark.parametrize("name", ["method", "versus", "set", "role", "metric", "detector", "convention", "class"])
def test_a_column_of_names_stays_text(tmp_path, name):
    table = pd.DataFrame({name: [*EATEN, None], "value": [1.5] * len(EATEN) + [None]})
    save_table(tmp_path / "t.csv", table)
    again = load_table(tmp_path / "t.csv")
    assert list(again[name][:-1]) == list(EATEN) and again.iloc[-1].isna().all()
    only = table.assign(**{name: "1e5"})  # a column of nothing but numbers
    save_table(tmp_path / "t.csv", only)
    assert set(load_table(tmp_path / "t.csv")[name]) == {"1e5"}


def test_digits_and_damage(tmp_path):
    save_table(tmp_path / "t.csv", pd.DataFrame({"value": [1 / 3]}), digits=None)
    assert load_table(tmp_path / "t.csv")["value"].item() == 1 / 3
    for text in ("", 'a,b\n"1'):
        (tmp_path / "t.csv").write_text(text)
        with pytest.raises(StorageError, match="no table"):
            load_table(tmp_path / "t.csv")


def test_nothing_else_reads_or_writes_tables():
    """One place knows how a table is stored, so that no name is lost on the way."""
    root = Path(__file__).resolve().parents[2]
    sources = [*(root / "rp_lib").rglob("*.py"), *(root / "notebooks" / "rp_course").rglob("*.py")]
    found = {p.name for p in sources if re.search(r"\.to_csv\(|read_csv\(", p.read_text("utf-8"))}
    assert found == {"io.py"}


def test_missing_or_damaged_records_say_so(tmp_path):
    with pytest.raises(StorageError, match="run the command again"):
        load_records(tmp_path / "records.csv")
    save_records(pd.DataFrame({"a": [1]}), tmp_path / "records.csv", {})
    for damaged in ("{", "[]"):
        (tmp_path / "records.json").write_text(damaged)
        with pytest.raises(StorageError, match="damaged"):
            load_records(tmp_path / "records.csv")
    save_records(pd.DataFrame({"a": [1]}), tmp_path / "records.csv", {})
    assert len(load_records(tmp_path / "records.csv")[0]) == 1


def test_details_are_percentages_of_every_set():
    rows = [("art", "zero-shot", "accuracy", 0.5), ("art", "rp", "accuracy", 0.625), ("food", "rp", "auroc", 0.75)]
    shown = details(pd.DataFrame(rows, columns=["set", "method", "metric", "value"])).splitlines()
    assert shown[-2].split() == ["art", "50.0", "62.5", "accuracy"] and shown[-1].split()[-2:] == ["75.0", "auroc"]


def test_cells_of_the_table_stay_apart_and_fit_a_terminal():
    name, sets = "reprogrammer-of-images", (("test", "accuracy"), ("mean of OOD sets", "auroc"))
    rows = [(method, s, m, 1.0, 0.676, 1.0) for method in ("zero-shot", name) for s, m in sets]
    summary = pd.DataFrame(rows, columns=["method", "set", "metric", "value", "low", "high"])
    head, *lines = table(summary).splitlines()
    cell = "100.0 [67.6, 100.0]"
    assert [re.split(" {2,}", line.strip()) for line in lines] == [
        [m, cell, "-", cell, "-", "-"] for m in ("zero-shot", name)
    ]
    assert re.split(" {2,}", head.strip()) == ["method", "ID acc", "shift acc", "AUROC", "FPR95", "ECE"]
    usual = table(summary.assign(method=["zero-shot"] * 2 + ["rrp"] * 2, value=0.9, low=0.85, high=0.95))
    assert max(map(len, usual.splitlines())) <= 80


def test_answers_of_classes_with_any_name_become_a_square_matrix(tmp_path, tiny_clip, tiny_benchmark):
    data = dataclasses.replace(tiny_benchmark, class_names=("label", *tiny_benchmark.class_names[1:]))
    method = ZeroShot(tiny_clip, data.class_names, data.templates)
    save_answers(tmp_path, compute_outputs(method, data, seed=1), data)
    found = pd.read_csv(tmp_path / "confusion.csv", header=None, keep_default_na=False)
    assert found.iloc[0].tolist() == ["label", *data.class_names] == ["label", *found.iloc[1:, 0]]
    best = method.scores(data.test).argmax(1)
    counts = torch.zeros(len(data.class_names), len(data.class_names), dtype=torch.long)
    counts.index_put_((data.test.labels, best), torch.tensor(1), accumulate=True)
    assert found.iloc[1:, 1:].astype(int).to_numpy().tolist() == counts.tolist()
    mistakes = load_table(tmp_path / "mistakes.csv")
    assert mistakes["probability"].is_monotonic_decreasing and (mistakes["label"] != mistakes["answer"]).all()
