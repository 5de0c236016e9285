"""``rp-lib run`` from the command line to the records, on made-up photos and a CLIP from a local checkpoint file."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tomllib
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
import run_world
import tomli_w
import torch
from filelock import FileLock
from run_world import call, compare, names_of, only

from rp_lib.config import AS_RELEASED, PAPER
from rp_lib.evaluation import Run, evaluate
from rp_lib.methods import METHODS, build_method, load_method
from rp_lib.negative_labels import mine_negative_words
from rp_lib.outputs import load_outputs
from rp_lib.prediction import MethodThreshold
from rp_lib.run.report import load_records
from rp_lib.run.session import Session
from rp_lib.utils.errors import RPLibError
from rp_lib.utils.io import StorageError, load_table

photos, weights, file = run_world.photos, run_world.weights, run_world.file


def test_a_configuration_becomes_a_table_records_figure_and_outputs(file, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    assert call("--config", file) == 0
    said = capsys.readouterr().out
    for word in ("3 classes", "24 training and 15 test", "tiny.pt", "wise-ft", "±", "drawn", "id-positive", "Wrote"):
        assert word in said
    assert {p.name for p in out.iterdir() if not p.name.startswith(".")} == {
        "config.toml", "records.csv", "records.json", "three_axes.png", "trained", "outputs", "answers",
    }  # fmt: skip
    methods = ("linear-probe", "fine-tune", "wise-ft", "rp", "rrp")
    trained = ["zero-shot-seed1.safetensors", *(f"{m}-seed{s}.safetensors" for m in methods for s in (1, 2))]
    assert names_of(out / "trained") == sorted(trained) == names_of(out / "outputs")
    assert str(out / "answers") in said and len(list((out / "answers").iterdir())) == len(trained)
    tables = {path.stem: load_table(path) for path in only(out / "answers", "rp-seed2-*").iterdir()}
    every, test = tables["answers"], tables["answers"].query("set == 'test'")
    assert all(map(os.path.isfile, every["picture"])) and len(test) == 15 == tables["classes"]["n"].sum()
    counts = tables["confusion"].set_index("label").to_numpy()
    assert counts.sum() == 15 and len(tables["mistakes"]) == (every["label"] != every["answer"]).sum()
    row = load_records(out / "records.csv")[0].query("method == 'rp' and seed == 2 and metric == 'accuracy'").iloc[0]
    assert row["set"] == "test" and np.trace(counts) / 15 == pytest.approx(row["value"], abs=1e-5)
    gate = MethodThreshold.load(only(out / "trained", "rrp-seed2-*.threshold.json"))
    rrp = load_method(only(out / "trained", "rrp-seed2-*.safetensors"))
    assert gate.method == rrp.fingerprint and gate.threshold.n == 9
    records, about = load_records(out / "records.csv")
    assert about["config"]["backbone"]["name"] == "tiny-of-the-tests" and about["config"]["seeds"] == [1, 2]
    assert about["seed_numbers"] == [1, 2] and about["settings"]["wise-ft"]["alpha"] == 0.25
    assert about["settings"]["rp"]["config"] | {"x": 0} == asdict(PAPER.changed(epochs=2, batch_size=8)) | {"x": 0}
    assert set(records["set"]) == {"test", "drawn", "mean of shifts", "other", "mean of OOD sets"}
    assert records.groupby("method")["seed"].nunique().to_dict() == {
        "zero-shot": 1, "linear-probe": 2, "fine-tune": 2, "wise-ft": 2, "rp": 2, "rrp": 2,
    }  # fmt: skip
    kept = load_outputs(only(out / "outputs", "rrp-seed2-*"))
    assert kept.about["alpha"] == 0.5 and set(kept.sets) == {"test", "drawn", "other"}

    # What was used is written, and repeats the run; nothing is trained or encoded again.
    for method in ("FineTune", "Reprogrammer", "LinearProbe"):
        monkeypatch.setattr(f"rp_lib.methods.{method}.fit", lambda *a, **k: pytest.fail("trained again"))
    monkeypatch.setattr("rp_lib.run.session.compute_outputs", lambda *a, **k: pytest.fail("encoded again"))
    assert call("--config", out / "config.toml") == 0
    assert "Reused" in capsys.readouterr().out
    shutil.rmtree(out / "answers")
    assert call("--config", out / "config.toml") == 0 and only(out / "answers", "rrp-seed2-*").is_dir()
    (out / "records.csv").unlink()
    assert call("--config", out / "config.toml") == 0
    again, _ = load_records(out / "records.csv")
    pd.testing.assert_frame_equal(records, again)


def test_records_are_those_of_evaluate(tiny_clip, tiny_benchmark, tmp_path):
    settings = {"linear-probe": {"epochs": 2}, "rp": {"config": PAPER.changed(epochs=1, batch_size=8)}}
    story = compare(
        tiny_clip, tiny_benchmark, tmp_path, seeds=(3, 5), methods=("rrp", "rp", "zero-shot", "linear-probe"),
        settings=settings | {"rrp": settings["rp"]}, detectors=("msp", "max-logit"), )  # fmt: skip
    task = (tiny_clip, tiny_benchmark.class_names, tiny_benchmark.templates)
    runs = [Run(build_method("zero-shot", *task), 3)]
    for seed in (3, 5):
        probe = build_method("linear-probe", *task, {"epochs": 2, "seed": seed})
        rp = build_method("rp", *task, {**settings["rp"], "seed": seed, "precision": "float32"})
        runs += [Run(m.fit(tiny_benchmark.train, tiny_benchmark.val), seed) for m in (probe, rp)]
        runs.append(Run(METHODS["rrp"](rp), seed))
    keys = ["method", "seed", "set", "metric", "detector"]
    expected, found = (
        frame.sort_values(keys, ignore_index=True)
        for frame in (evaluate(runs, tiny_benchmark, detectors=("msp", "max-logit")), story.records)
    )
    pd.testing.assert_frame_equal(expected, found)


def test_detectors_that_learn_give_the_records_of_evaluate(tiny_clip, tiny_benchmark, tmp_path, monkeypatch):
    detectors, settings = ("msp", "mahalanobis", "knn", "neg-label", "cooked"), {"linear-probe": {"epochs": 2}}
    words = mine_negative_words(tiny_clip, tiny_benchmark.class_names, tiny_benchmark.templates, ["stone", "glove"])
    monkeypatch.setattr("rp_lib.run.session.mine_negative_words", lambda *task: words)
    monkeypatch.setattr("rp_lib.evaluation.mine_negative_words", lambda *task: words)
    options = {"seeds": (3,), "methods": ("linear-probe", "zero-shot"), "settings": settings, "keep_outputs": True}
    assert not compare(tiny_clip, tiny_benchmark, tmp_path, **options).reused
    # Outputs of before hold no training features, so they are computed again.
    story = compare(tiny_clip, tiny_benchmark, tmp_path, **options, detectors=detectors)
    assert not story.reused and set(story.records["detector"].dropna()) == set(detectors)
    task = (tiny_clip, tiny_benchmark.class_names, tiny_benchmark.templates)
    probe = build_method("linear-probe", *task, {"epochs": 2, "seed": 3}).fit(tiny_benchmark.train)
    runs = [Run(probe, 3), Run(build_method("zero-shot", *task), 3)]
    keys = ["method", "seed", "set", "metric", "detector"]
    expected, found = (
        frame.sort_values(keys, ignore_index=True)
        for frame in (evaluate(runs, tiny_benchmark, detectors=detectors), story.records)
    )
    pd.testing.assert_frame_equal(expected, found)
    # Other settings of the linear probe give other numbers of `cooked`.
    only_zero = {**options, "methods": ("zero-shot",), "detectors": detectors}
    assert compare(tiny_clip, tiny_benchmark, tmp_path, **only_zero).reused
    assert not compare(tiny_clip, tiny_benchmark, tmp_path, **(only_zero | {"settings": {}})).reused


def test_a_finished_method_is_not_kept_in_memory(tiny_clip, tiny_benchmark, tmp_path, monkeypatch):
    import gc
    import weakref

    from rp_lib.run import session as run

    alive, most = weakref.WeakSet(), []
    compute = run.compute_outputs

    def watched(method, *args, **more):
        if type(method).__name__ == "FineTune":
            alive.add(method)
        gc.collect()
        most.append(len(alive))
        return compute(method, *args, **more)

    monkeypatch.setattr(run, "compute_outputs", watched)
    options = {"settings": {"fine-tune": {"epochs": 0}}}
    compare(tiny_clip, tiny_benchmark, tmp_path, seeds=(1, 2, 3), methods=("fine-tune",), **options)
    assert most == [1, 1, 1]  # nothing that follows is made of them
    most.clear()
    compare(
        tiny_clip, tiny_benchmark, tmp_path, seeds=(1, 2, 3), methods=("wise-ft", "fine-tune"), fresh=True,
        settings={"fine-tune": {"epochs": 0}, "wise-ft": {"epochs": 0}},
    )  # fmt: skip
    assert most[:3] == [1, 2, 3]  # WiSE-FT is


def test_interrupted_in_the_middle_of_training_it_goes_on_to_the_same_result(file, tmp_path, capsys, monkeypatch):
    from rp_lib.methods import reprogrammer

    arguments = ("--config", file, "--methods", "linear-probe,rp", "--set", f"data.cache={tmp_path / 'cache'}")
    assert call(*arguments, "--out", tmp_path / "whole") == 0
    loss, steps = reprogrammer.Reprogrammer.loss, []

    def interrupting(self, inputs, labels):
        steps.append(1)
        if len(steps) == 5:  # in the second epoch of the first seed
            os.kill(os.getpid(), signal.SIGINT)
        return loss(self, inputs, labels)

    monkeypatch.setattr(reprogrammer.Reprogrammer, "loss", interrupting)
    assert call(*arguments) == 130
    assert "run the same command again" in capsys.readouterr().err
    assert len(steps) == 5
    assert "linear-probe-seed2.safetensors" in names_of(tmp_path / "out" / "trained")
    assert only(tmp_path / "out" / "trained", "rp-seed1-*.checkpoint")
    assert not (tmp_path / "out" / "records.csv").exists()
    monkeypatch.setattr("rp_lib.methods.LinearProbe.fit", lambda *a, **k: pytest.fail("trained again"))
    assert call(*arguments) == 0
    assert len(steps) == 12  # two seeds of six steps, none of them twice
    ours, theirs = (load_records(tmp_path / name / "records.csv")[0] for name in ("out", "whole"))
    pd.testing.assert_frame_equal(ours, theirs)
    assert not list(tmp_path.rglob("*.checkpoint"))


def test_other_settings_in_the_same_folder_are_trained_and_judged_and_nothing_is_lost(
    tiny_clip, tiny_benchmark, tmp_path, monkeypatch, caplog
):
    def told(out, epochs, **more):
        settings = {"linear-probe": {"epochs": epochs}}
        options = {"seeds": (1,), "methods": ("linear-probe",), "settings": settings, "keep_outputs": True}
        return compare(tiny_clip, tiny_benchmark, tmp_path / out, **options | more)

    one, three = told("one", 1), told("three", 3)
    assert not one.records["value"].equals(three.records["value"])
    first = (tmp_path / "one" / "records.csv").read_bytes()
    again = told("one", 3)
    assert not again.reused and "are in" in caplog.text
    pd.testing.assert_frame_equal(again.records, three.records)
    assert only(tmp_path / "one" / "earlier", "*/records.csv").read_bytes() == first
    assert len(names_of(tmp_path / "one" / "trained")) == 2
    with monkeypatch.context() as patch:  # the first run's training is still there
        patch.setattr("rp_lib.methods.LinearProbe.fit", lambda *a, **k: pytest.fail("trained again"))
        pd.testing.assert_frame_equal(told("one", 1).records, one.records)
    assert told("one", 1).reused and not told("one", 1, fresh=True).reused


def test_fewer_methods_or_seeds_do_not_replace_a_larger_table(tiny_clip, tiny_benchmark, tmp_path, monkeypatch):
    def told(methods, seeds, **more):
        settings = {"linear-probe": {"epochs": 2}, "rp": {"config": PAPER.changed(epochs=1, batch_size=8)}}
        return compare(tiny_clip, tiny_benchmark, tmp_path, methods=methods, seeds=seeds, settings=settings, **more)

    def there():
        records, about = load_records(tmp_path / "records.csv")
        return set(zip(records["method"], records["seed"], strict=True)), about

    told(("zero-shot", "linear-probe"), (1, 2))
    content = (tmp_path / "records.csv").read_bytes()
    fewer = told(("linear-probe",), (2,))
    assert fewer.reused and set(fewer.records["seed"]) == {2} and set(fewer.records["method"]) == {"linear-probe"}
    assert told(("zero-shot",), (7,)).reused  # it has no seed
    assert (tmp_path / "records.csv").read_bytes() == content
    more = told(("rp",), (1,))
    everything = {("zero-shot", 1), ("linear-probe", 1), ("linear-probe", 2), ("rp", 1)}
    assert set(more.records["method"]) == {"rp"} and there()[0] == everything
    assert set(there()[1]["settings"]) == {"zero-shot", "linear-probe", "rp"} and there()[1]["seed_numbers"] == [1, 2]
    told(("linear-probe",), (2,), fresh=True)
    assert there()[0] == everything and not (tmp_path / "earlier").exists()
    # Another image set, or another detector: the old table moves, and what it had of this run is not lost.
    told(("linear-probe",), (1,), detectors=("energy",))
    assert there()[0] == {("linear-probe", 1)} and only(tmp_path, "earlier/*/records.csv").is_file()


def test_a_file_under_the_name_of_another_is_not_taken_for_it(tiny_clip, tiny_benchmark, tmp_path):
    session = Session(tiny_clip, tiny_benchmark, {"linear-probe": {"epochs": 1}}, "float32")
    one, two = (session.fit("linear-probe", seed, out=tmp_path) for seed in (1, 2))
    outputs = [session.outputs(method, seed, tmp_path) for seed, method in enumerate((one, two), 1)]
    for folder in ("trained", "outputs"):
        shutil.copy(*(only(tmp_path / folder, f"linear-probe-seed{seed}-*.safetensors") for seed in (1, 2)))
    again = session.fit("linear-probe", 2, out=tmp_path)
    assert again.seed == 2 and torch.equal(again.classifier.weight, two.classifier.weight)
    assert torch.equal(session.outputs(again, 2, tmp_path).test.logits, outputs[1].test.logits)


def test_two_runs_at_once_in_a_folder_are_refused(tiny_clip, tiny_benchmark, tmp_path):
    with FileLock(tmp_path / ".lock"), pytest.raises(RPLibError, match=r"another run is at work in .*choose another"):
        compare(tiny_clip, tiny_benchmark, tmp_path, methods=("zero-shot",), seeds=(1,), settings={})


def test_one_photo_less_or_a_mended_value_loses_no_training(file, photos, tmp_path, monkeypatch):
    train = tmp_path / "photos"
    shutil.copytree(photos / "train", train)
    run = ("--config", file, "--methods", "linear-probe,rp", "--seeds", "1", "--set", f"data.train={train}")
    run += ("--set", f"data.cache={tmp_path / 'cache'}")
    trained = tmp_path / "out" / "trained"
    assert call(*run) == 0
    before = {path.name: path.read_bytes() for path in trained.iterdir()}
    next((train / "cat").iterdir()).unlink()
    assert call(*run) == 0
    assert {name: (trained / name).read_bytes() for name in before} == before and len(names_of(trained)) == 4
    monkeypatch.setattr("rp_lib.methods.LinearProbe.fit", lambda *a, **k: pytest.fail("trained again"))
    assert call(*run, "--set", "settings.rp.image_lr=-1") == 2
    assert call(*run, "--set", "settings.rp.image_lr=0.001") == 0  # goes on with the probe that is there
    assert len(names_of(trained)) == 5


def test_as_released_is_another_run(file, tmp_path):
    arguments = ("--config", file, "--methods", "rp,rrp", "--seeds", "1")
    assert call(*arguments) == 0
    assert call(*arguments, "--set", "preset=as_released", "--out", tmp_path / "released") == 0
    paper, _ = load_records(tmp_path / "out" / "records.csv")
    released, about = load_records(tmp_path / "released" / "records.csv")
    assert about["settings"]["rp"]["config"] == asdict(AS_RELEASED.changed(epochs=2, batch_size=8))
    conventions = [set(r["convention"].dropna()) for r in (paper, released)]
    assert conventions == [{"id-positive"}, {"authors"}]
    assert not paper["value"].equals(released["value"])


def _dotted(table, above=""):
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _dotted(value, f"{above}{key}.")
        else:
            yield f"{above}{key} = {json.dumps(value)}"


def test_folders_without_a_configuration(photos, weights, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("RP_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "five"
    places = {k: str(photos / k) for k in ("train", "val", "test")}
    data = {"id": "folders", "size": 32, **places, "shifts": {"drawn": str(photos / "drawn")}}
    inline = tomli_w.dumps({"data": data | {"ood": {"other": str(photos / "other")}}})
    keys = [f"data={{{', '.join(line for line in _dotted(tomllib.loads(inline)['data']))}}}",
            "backbone.name=tiny-of-the-tests", f"backbone.pretrained={weights}", "device=cpu"]  # fmt: skip
    sets = [part for key in keys for part in ("--set", key)]
    assert call("--config", "folders", "--methods", "zero-shot", "--out", out, *sets) == 0
    records, about = load_records(out / "records.csv")
    assert {"drawn", "other"} <= set(records["set"]) and about["config"]["preset"] == "paper"
    assert "sketch" not in str(about["config"]["data"])  # nothing of the example's folders is left


def test_two_processes_of_a_launcher_give_the_same_records_and_one_voice(file, tmp_path, capfd):
    one = ("--config", file, "--methods", "zero-shot,rp", "--seeds", "1", "--set", "backbone.name=mini")
    assert call(*one, "--out", tmp_path / "one") == 0
    capfd.readouterr()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
         "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", str(port),
         "-m", "rp_lib", "run", "--quiet", *map(str, one), "--out", str(tmp_path / "two")],
        capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("Wrote") == 1 and "2 processes" in done.stdout
    ours, theirs = (load_records(tmp_path / name / "records.csv")[0] for name in ("one", "two"))
    pd.testing.assert_frame_equal(ours, theirs, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("name", ["rp", "fine-tune", "linear-probe"])
def test_a_disk_that_is_full_when_the_method_is_saved_costs_no_training(
    tiny_clip, tiny_benchmark, tmp_path, monkeypatch, name
):
    settings = {"rp": {"config": PAPER.changed(epochs=2, batch_size=8)}, "fine-tune": {"epochs": 2, "batch_size": 8}}
    options = {
        "seeds": (1,), "methods": (name,), "settings": settings | {"linear-probe": {"epochs": 3}},
    }  # fmt: skip
    whole = compare(tiny_clip, tiny_benchmark, tmp_path / "whole", **options).records
    out = tmp_path / "out"

    def full(self, path):
        raise StorageError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(METHODS[name], "save", full)
        with pytest.raises(StorageError, match="disk is full"):
            compare(tiny_clip, tiny_benchmark, out, **options)
    checkpoint = only(out / "trained", "*")
    assert re.fullmatch(rf"{name}-seed1-[0-9a-f]{{8}}\.checkpoint", checkpoint.name)
    with monkeypatch.context() as patch:  # what was trained is there: not a single step is taken again
        patch.setattr("rp_lib.trainer._on_device", lambda *a, **k: pytest.fail("trained again"))
        again = compare(tiny_clip, tiny_benchmark, out, **options).records
    pd.testing.assert_frame_equal(again, whole)
    assert names_of(out / "trained") == [f"{name}-seed1.safetensors"] and not checkpoint.exists()
    # Killed between saving the method and removing the checkpoint: the next run tidies up.
    checkpoint.write_bytes(b"of the run before")
    (out / "records.csv").unlink()
    compare(tiny_clip, tiny_benchmark, out, **options)
    assert names_of(out / "trained") == [f"{name}-seed1.safetensors"] and not checkpoint.exists()
