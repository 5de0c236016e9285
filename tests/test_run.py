"""``rp-lib run`` from the command line to the records, on made-up photos and a CLIP from a local checkpoint file."""

import json
import os
import signal
import socket
import subprocess
import sys
import tomllib
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import CONTEXT, make_clip, make_model, make_set
from PIL import Image

from rp_lib import cli, run_cli
from rp_lib.data import NotThere
from rp_lib.evaluation import Run, evaluate
from rp_lib.methods import METHODS, build_method
from rp_lib.outputs import load_outputs
from rp_lib.presets import AS_RELEASED, PAPER
from rp_lib.records import load_records
from rp_lib.run import run_benchmark
from rp_lib.run_config import ConfigError, accepted, check_config, read_config, shipped
from rp_lib.tracks import open_backbone, open_benchmark

CONFIG = """
about = "made-up photos"
preset = "paper"
methods = ["zero-shot", "linear-probe", "fine-tune", "wise-ft", "rp", "rrp"]
seeds = 2
out = "OUT"
device = "cpu"
precision = "float32"

[data]
id = "folders"
train = "PHOTOS/train"
val = "PHOTOS/val"
test = "PHOTOS/test"
size = 32
cache = "PHOTOS/cache"
templates = ["a photo of a {}"]
[data.shifts]
drawn = "PHOTOS/drawn"
[data.ood]
other = "PHOTOS/other"

[backbone]
name = "tiny-of-the-tests"
pretrained = "WEIGHTS"

[settings.linear-probe]
epochs = 2
[settings.fine-tune]
epochs = 1
batch_size = 8
[settings.wise-ft]
alpha = 0.25
[settings.rp]
epochs = 2
batch_size = 8
[settings.rrp]
alpha = 0.5
"""


def write_photos(folder: Path, n: int, seed: int, classes: bool = True) -> None:
    data = make_set(n, seed=seed, side=32)
    for i, (pixels, label) in enumerate(zip(data.images, data.labels.tolist(), strict=True)):
        path = folder / (("cat", "cup", "fire_engine")[label] if classes else "") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(path)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for seed, (name, n) in enumerate({"train": 24, "val": 9, "test": 15, "drawn": 12}.items()):
        write_photos(folder / name, n, seed)
    write_photos(folder / "other", 14, 9, classes=False)
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A checkpoint file of a tiny architecture, which open_clip knows meanwhile."""
    import open_clip.factory as factory

    folder = tmp_path_factory.mktemp("weights")
    config = {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 64, "layers": 2, "head_width": 32},
        "text_cfg": {"context_length": CONTEXT, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    }
    (folder / "tiny-of-the-tests.json").write_text(json.dumps(config))
    torch.save(make_model(3).state_dict(), folder / "tiny.pt")
    factory.add_model_config(folder / "tiny-of-the-tests.json")
    yield folder / "tiny.pt"
    factory._MODEL_CONFIG_PATHS.remove(folder / "tiny-of-the-tests.json")
    factory._rescan_model_configs()
    factory._MODEL_CONFIGS.pop("tiny-of-the-tests", None)


@pytest.fixture
def file(tmp_path, photos, weights):
    text = CONFIG.replace("PHOTOS", str(photos)).replace("WEIGHTS", str(weights)).replace("OUT", str(tmp_path / "out"))
    path = tmp_path / "own.toml"
    path.write_text(text)
    return path


def call(*arguments) -> int:
    return cli.main(["run", "--quiet", *map(str, arguments)])


# The whole way ----------------------------------------------------------------------------------------------------


def test_a_configuration_becomes_a_table_records_figure_and_outputs(file, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    assert call("--config", file, "--details") == 0
    said = capsys.readouterr().out
    for word in ("3 classes", "24 training and 15 test", "tiny.pt", "wise-ft", "±", "drawn", "id-positive", "Wrote"):
        assert word in said
    assert {p.name for p in out.iterdir()} == {
        "config.toml", "records.csv", "records.json", "three_axes.png", "trained", "outputs",
    }  # fmt: skip
    trained = {f"{m}-seed{s}.safetensors" for m in ("linear-probe", "fine-tune", "rp") for s in (1, 2)}
    assert {p.name for p in (out / "trained").iterdir()} == trained
    records, about = load_records(out / "records.csv")
    assert about["config"]["backbone"]["name"] == "tiny-of-the-tests" and about["config"]["seeds"] == [1, 2]
    assert about["seed_numbers"] == [1, 2] and about["settings"]["wise-ft"]["alpha"] == 0.25
    assert about["settings"]["rp"]["config"] | {"x": 0} == asdict(PAPER.changed(epochs=2, batch_size=8)) | {"x": 0}
    assert set(records["set"]) == {"test", "drawn", "mean of shifts", "other", "mean of OOD sets"}
    assert records.groupby("method")["seed"].nunique().to_dict() == {
        "zero-shot": 1, "linear-probe": 2, "fine-tune": 2, "wise-ft": 2, "rp": 2, "rrp": 2,
    }  # fmt: skip
    kept = load_outputs(out / "outputs" / "rrp-seed2.safetensors")
    assert kept.about["alpha"] == 0.5 and set(kept.sets) == {"test", "drawn", "other"}

    # What was used is written, and repeats the run; nothing is trained or encoded again.
    for method in ("FineTune", "Reprogrammer", "LinearProbe"):
        monkeypatch.setattr(f"rp_lib.methods.{method}.fit", lambda *a, **k: pytest.fail("trained again"))
    monkeypatch.setattr("rp_lib.run.compute_outputs", lambda *a, **k: pytest.fail("encoded again"))
    assert call("--config", out / "config.toml") == 0
    assert "Reused" in capsys.readouterr().out
    (out / "records.csv").unlink()
    assert call("--config", out / "config.toml") == 0
    again, _ = load_records(out / "records.csv")
    pd.testing.assert_frame_equal(records, again)


def test_records_are_those_of_evaluate(tiny_clip, tiny_benchmark, tmp_path):
    settings = {"linear-probe": {"epochs": 2}, "rp": {"config": PAPER.changed(epochs=1, batch_size=8)}}
    story = run_benchmark(
        tiny_clip, tiny_benchmark, tmp_path, seeds=(3, 5), methods=("rrp", "rp", "zero-shot", "linear-probe"),
        settings=settings | {"rrp": settings["rp"]}, detectors=("msp", "max-logit"), precision="float32",
        progress=False,
    )  # fmt: skip
    task = (tiny_clip, tiny_benchmark.class_names, tiny_benchmark.templates)
    runs = [Run(build_method("zero-shot", *task), 3)]
    for seed in (3, 5):
        probe = build_method("linear-probe", *task, {"epochs": 2, "seed": seed})
        rp = build_method("rp", *task, {**settings["rp"], "seed": seed, "precision": "float32"})
        runs += [Run(m.fit(tiny_benchmark.train, tiny_benchmark.val), seed) for m in (probe, rp)]
        runs.append(Run(METHODS["rrp"].of(rp), seed))
    keys = ["method", "seed", "set", "metric", "detector"]
    expected, found = (
        frame.sort_values(keys, ignore_index=True)
        for frame in (evaluate(runs, tiny_benchmark, detectors=("msp", "max-logit")), story.records)
    )
    pd.testing.assert_frame_equal(expected, found)


def test_a_finished_method_is_not_kept_in_memory(tiny_clip, tiny_benchmark, tmp_path, monkeypatch):
    import gc
    import weakref

    from rp_lib import run

    alive, most = weakref.WeakSet(), []
    compute = run.compute_outputs

    def watched(method, *args, **more):
        if type(method).__name__ == "FineTune":
            alive.add(method)
        gc.collect()
        most.append(len(alive))
        return compute(method, *args, **more)

    monkeypatch.setattr(run, "compute_outputs", watched)
    options = {"settings": {"fine-tune": {"epochs": 0}}, "precision": "float32", "progress": False}
    run_benchmark(tiny_clip, tiny_benchmark, tmp_path, seeds=(1, 2, 3), methods=("fine-tune",), **options)
    assert most == [1, 1, 1]  # nothing that follows is made of them
    most.clear()
    run_benchmark(
        tiny_clip, tiny_benchmark, tmp_path, seeds=(1, 2, 3), methods=("wise-ft", "fine-tune"), fresh=True,
        settings={"fine-tune": {"epochs": 0}, "wise-ft": {"epochs": 0}}, precision="float32", progress=False,
    )  # fmt: skip
    assert most[:3] == [1, 2, 3]  # WiSE-FT is


def test_interrupted_in_the_middle_of_training_it_goes_on_to_the_same_result(file, tmp_path, capsys, monkeypatch):
    from rp_lib.methods import reprogrammer

    arguments = ("--config", file, "--methods", "linear-probe,rp", "--set", f"data.cache={tmp_path / 'cache'}")
    assert call(*arguments, "--out", tmp_path / "whole") == 0
    loss, steps = reprogrammer._ReprogramTask.loss, []

    def interrupting(self, inputs, labels):
        steps.append(1)
        if len(steps) == 5:  # in the second epoch of the first seed
            os.kill(os.getpid(), signal.SIGINT)
        return loss(self, inputs, labels)

    monkeypatch.setattr(reprogrammer._ReprogramTask, "loss", interrupting)
    assert call(*arguments) == 130
    assert "goes on from there" in capsys.readouterr().err
    assert len(steps) == 5
    assert (tmp_path / "out" / "trained" / "linear-probe-seed2.safetensors").is_file()
    assert (tmp_path / "out" / "trained" / "rp-seed1.checkpoint").exists()
    assert not (tmp_path / "out" / "records.csv").exists()
    monkeypatch.setattr("rp_lib.methods.LinearProbe.fit", lambda *a, **k: pytest.fail("trained again"))
    assert call(*arguments) == 0
    assert len(steps) == 12  # two seeds of six steps, none of them twice
    ours, theirs = (load_records(tmp_path / name / "records.csv")[0] for name in ("out", "whole"))
    pd.testing.assert_frame_equal(ours, theirs)
    assert not list(tmp_path.rglob("*.checkpoint"))


def test_other_settings_in_the_same_folder_are_trained_and_judged_anew(tiny_clip, tiny_benchmark, tmp_path):
    def told(out, epochs, **more):
        settings = {"linear-probe": {"epochs": epochs}}
        return run_benchmark(
            tiny_clip, tiny_benchmark, tmp_path / out, seeds=(1,), methods=("linear-probe",), settings=settings,
            precision="float32", progress=False, keep_outputs=True, **more,
        )  # fmt: skip

    one, three = told("one", 1), told("three", 3)
    assert not one.records["value"].equals(three.records["value"])
    again = told("one", 3)
    assert not again.reused
    pd.testing.assert_frame_equal(again.records, three.records)
    assert told("one", 3).reused and not told("one", 3, fresh=True).reused


def test_as_released_is_another_run(file, tmp_path):
    arguments = ("--config", file, "--methods", "rp,rrp", "--seeds", "1")
    assert call(*arguments) == 0
    assert call(*arguments, "--preset", "as_released", "--out", tmp_path / "released") == 0
    paper, _ = load_records(tmp_path / "out" / "records.csv")
    released, about = load_records(tmp_path / "released" / "records.csv")
    assert about["settings"]["rp"]["config"] == asdict(AS_RELEASED.changed(epochs=2, batch_size=8))
    conventions = [set(r["convention"].dropna()) for r in (paper, released)]
    assert conventions == [{"id-positive"}, {"authors"}]
    at = {"method": "rrp", "set": "test", "metric": "accuracy"}
    reported = [r[(r[list(at)] == pd.Series(at)).all(axis=1)] for r in (released, released.replace("rp", "rrp"))]
    assert reported[0]["value"].item() in reported[1]["value"].tolist()  # row 6: RRP's column shows RP's
    assert not paper["value"].equals(released["value"])


def test_folders_without_a_configuration(photos, weights, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("RP_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "five"
    folders = ",".join(f"{k}={photos / v}" for k, v in (
        ("train", "train"), ("val", "val"), ("test", "test"), ("shift:drawn", "drawn"), ("ood:other", "other")))  # fmt: skip
    assert call("--folders", folders, "--methods", "zero-shot", "--backbone", "tiny-of-the-tests",
                "--pretrained", weights, "--out", out, "--set", "data.size=32", "--device", "cpu") == 0  # fmt: skip
    records, about = load_records(out / "records.csv")
    assert {"drawn", "other"} <= set(records["set"]) and about["config"]["preset"] == "paper"
    assert "sketch" not in str(about["config"]["data"])  # nothing of the example's folders is left


def test_two_processes_of_a_launcher_give_the_same_records_and_one_voice(file, tmp_path, capfd):
    one = ("--config", file, "--methods", "zero-shot,rp", "--seeds", "1", "--backbone", "mini", "--pretrained", "final")
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


# Configurations ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", ["cifar10", "imagenet"])
@pytest.mark.parametrize("name", ["paper", "as_released"])
def test_shipped_settings_are_those_of_the_released_code(data, name):
    config = read_config(f"{data}-{name}")
    s = config.settings()
    assert config.backbone == {"name": "ViT-B-32-quickgelu", "pretrained": "openai"}
    assert config.detectors == ("msp",) and config.out == Path(f"results/{data}-{name}")
    assert s["linear-probe"] == {"lr": 1e-2, "weight_decay": 0, "epochs": 25, "batch_size": 128}
    steps = {"lr": 3e-5, "weight_decay": 0.1, "epochs": 25, "batch_size": 128, "schedule": "steps", "warmup_steps": 0}
    assert s["fine-tune"] == steps and s["wise-ft"] == steps | {"alpha": 0.5}
    coop = {"n_context": 16, "start": "random", "lr": 2e-3, "weight_decay": 5e-4, "epochs": 50, "batch_size": 128}
    assert s["coop"] == coop | {"warmup_steps": 500}
    rp = s["rp"]["config"]
    assert (rp.image_lr, rp.text_lr, rp.epochs, rp.batch_size, rp.warmup_steps, rp.alpha) == (
        5e-3,
        5e-4,
        25,
        128,
        500,
        0.4,
    )
    assert rp == s["rrp"]["config"] == {"paper": PAPER, "as_released": AS_RELEASED}[name]
    if name == "as_released":
        assert config.seeds == (1,) and rp.coupled_decay and rp.image_decay == rp.text_decay == 0.1
        assert (rp.loss, round(224 * rp.train_resolution), round(224 * rp.eval_resolution)) == ("focal", 64, 128)


def test_every_shipped_configuration_reads_builds_and_repeats_itself(tiny_clip, tiny_benchmark):
    assert {"cifar10-paper", "imagenet-as_released", "mini", "folders"} <= set(shipped())
    for name in shipped():
        config = read_config(name)
        assert config.about.endswith(".") and config.source == name
        task = (tiny_clip, tiny_benchmark.class_names, tiny_benchmark.templates)
        for method, settings in config.settings().items():
            if method == "coop":
                settings["n_context"] = 4  # the tiny text tower has few positions
            build_method(method, *task, settings)
        again = check_config(tomllib.loads(_toml(config)), name)
        assert again.as_dict() == config.as_dict() and again.settings() == config.settings()


def _toml(config) -> str:
    import tomli_w

    return tomli_w.dumps(config.as_dict())


def test_the_mini_configuration_is_the_demo():
    from rp_lib.demo import CORE, tuned_settings

    config = read_config("mini")
    assert config.methods == CORE and config.seeds == (1, 2, 3)
    assert config.settings() == {name: tuned_settings()[name] for name in CORE}
    changed = read_config("mini", {"settings.rp.epochs": 2, "settings.fine-tune.epochs": 3}).settings()
    assert changed["rp"]["config"] == tuned_settings()["rp"]["config"].changed(epochs=2)
    assert changed["fine-tune"] == tuned_settings()["fine-tune"] | {"epochs": 3}


def test_what_a_configuration_accepts_is_what_methods_take():
    assert set(accepted("wise-ft")) == set(accepted("fine-tune")) | {"alpha"}
    assert {"tower_penalty", "lr", "epochs"} <= set(accepted("l2-sp"))
    assert {"n_context", "class_specific", "warmup_steps"} <= set(accepted("coop"))
    assert {"n_prompts", "depth"} <= set(accepted("maple")) and set(accepted("rp")) == set(asdict(PAPER))
    for name in METHODS:
        assert not {"seed", "precision", "config"} & set(accepted(name))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.subet": 3}, r"unknown key in cifar10-paper \[data\] 'subet'; did you mean subset"),
        ({"nonsense": 1}, "unknown key in cifar10-paper 'nonsense'"),
        ({"seeds": None, "sedes": 2}, "unknown key in cifar10-paper 'sedes'; did you mean seeds"),
        ({"backbone": None, "bakcbone": {}}, "did you mean backbone"),
        ({"seeds": 0}, "seeds must be a number of seeds of at least 1"),
        ({"seeds": [1, 1]}, "distinct"),
        ({"seeds": True}, "seeds must be"),
        ({"methods": ["rp", "fine-tuen"]}, "did you mean fine-tune"),
        ({"methods": []}, "methods must be a list of texts, not empty"),
        ({"methods": "rp"}, "methods must be a list"),
        ({"preset": "papre"}, "did you mean paper"),
        ({"preset": "tuned"}, "searched for on the mini benchmark"),
        ({"detectors": ["msb"]}, "did you mean msp"),
        ({"precision": "float23"}, "did you mean float32"),
        ({"out": None}, "cifar10-paper lacks out"),
        ({"data": None}, "cifar10-paper lacks data"),
        ({"data": 3}, "data must be a table"),
        ({"data.id": "cifar100"}, r"unknown id in cifar10-paper \[data\] 'cifar100'; did you mean cifar10"),
        ({"data.id": None}, "lacks id, one of mini, cifar10, imagenet, folders"),
        ({"data.subset": 1.5}, "subset must be a whole number, got 1.5"),
        ({"data.subset": 0}, "subset must be a whole number of at least 1"),
        ({"data": {"id": "folders"}}, r"\[data\] lacks train"),
        ({"backbone.name": None}, r"\[backbone\] lacks name"),
        ({"settings.rp.imagelr": 1}, r"unknown key in cifar10-paper \[settings.rp\] 'imagelr'; did you mean image_lr"),
        ({"settings.rp.image_lr": "high"}, "image_lr must be a number, got 'high'"),
        ({"settings.rp.coupled_decay": 1}, "coupled_decay must be true or false"),
        ({"settings.rp.placement": "pda"}, "did you mean pad"),
        ({"settings.rpp.epochs": 1}, "did you mean rp"),
        ({"settings.zero-shot.lr": 1.0}, "unknown key in cifar10-paper"),
        ({"settings.fine-tune": 1}, "must be a table"),
        ({"seeds.x": 1}, "seeds is a value, no table"),
        ({"methods": ["l2-sp"]}, r"no settings for 'l2-sp': add a table \[settings.l2-sp\] \(it takes .*tower_penalty"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused_with_the_place_and_the_remedy(changes, message):
    from rp_lib.errors import RPLibError

    with pytest.raises(RPLibError, match=message):
        read_config("cifar10-paper", changes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "say what to run"),
        (["--config", "cifar10-papre"], "did you mean cifar10-paper"),
        (["--config", "nowhere.toml"], "does not exist; shipped ones: cifar10-as_released"),
        (["--config", "mini", "--track", "mini"], "leave --track and --id out"),
        (["--track", "ful"], "did you mean full"),
        (["--id", "cifar"], "did you mean cifar10"),
        (["--track", "mini", "--id", "cifar10"], "the mini track has one benchmark"),
        (["--config", "mini", "--seeds", "x"], "--seeds takes a number"),
        (["--config", "mini", "--seeds", ""], "seeds must be"),
        (["--config", "mini", "--set", "seeds"], "--set takes KEY=VALUE"),
        (["--folders", "trian=a"], "--folders takes train=PATH"),
        (["--folders", "shift=a"], "--folders takes train=PATH"),
        (["--folders", "train=a", "--track", "full"], "data of your own"),
        (["--config", "mini", "--dry-run", "--gpu", "a10"], "did you mean a100"),
        (["--config", "mini", "--dry-run", "--utilisation", "3"], "above 0 and at most 1"),
        (["--config", "mini", "--device", "cuda:77"], "--device cpu"),
        (["--config", "mini", "--methods", "rp", "--detectors", "knn", "--out", "out"], "also needs train"),
    ],
)
def test_a_wrong_command_line_exits_2(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call(*arguments) == 2
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said


@pytest.mark.parametrize("text", ["preset = ", "preset = 'paper'\npreset = 'paper'", "\xff"])
def test_what_is_no_toml_is_refused(text, tmp_path):
    (tmp_path / "x.toml").write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match="not valid TOML"):
        read_config(tmp_path / "x.toml")


def test_the_command_line_wins(file):
    parser = cli.build_parser()
    args = parser.parse_args(
        ["run", "--config", str(file), "--seeds", "4,7", "--methods", "rp, zero-shot", "--set", "settings.rp.epochs=9",
         "--set", "data.val_fraction=0.2", "--set", "about=words of one's own", "--out", "elsewhere"]
    )  # fmt: skip
    config = read_config(run_cli.configuration_of(args), run_cli.changes_of(args))
    assert config.seeds == (4, 7) and config.methods == ("rp", "zero-shot") and config.out == Path("elsewhere")
    assert config.settings()["rp"]["config"].epochs == 9 and config.data["val_fraction"] == 0.2
    assert config.about == "words of one's own" and config.precision == "float32"
    for arguments, name in (
        (["--track", "full"], "cifar10-paper"),
        (["--track", "full", "--id", "imagenet", "--preset", "as_released"], "imagenet-as_released"),
        (["--id", "cifar10", "--preset", "as_released"], "cifar10-as_released"),
        (["--track", "mini"], "mini"),
    ):
        args = parser.parse_args(["run", *arguments])
        assert run_cli.configuration_of(args) == name
        read_config(name, run_cli.changes_of(args))


# Data and backbone ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("data", "name"), [("cifar10", "stl10"), ("imagenet", "imagenet-v2")])
def test_missing_data_exits_6_with_the_command_that_gets_it(data, name, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("RP_DATA", str(tmp_path / "data"))
    monkeypatch.setattr("rp_lib.clip.FrozenCLIP.open_clip", lambda *a, **k: pytest.fail("weights were asked for first"))
    arguments = ("--track", "full", "--id", data, "--out", tmp_path / "out", "--device", "cpu")
    assert call(*arguments) == NotThere.exit_code == 6
    said = capsys.readouterr().err
    assert name in said and f"./data_download.sh --root {tmp_path / 'data'}" in said


@pytest.mark.parametrize("data", ["cifar10", "imagenet"])
def test_the_preset_also_switches_what_the_released_code_does_to_the_data(data, monkeypatch):
    asked = []
    monkeypatch.setattr(f"rp_lib.photos.{'cifar' if data == 'cifar10' else data}.{data}_benchmark",
                        lambda **options: asked.append(options))  # fmt: skip
    for preset in ("paper", "as_released"):
        open_benchmark({"id": data, "subset": 7, "root": "~/x"}, preset)
    open_benchmark({"id": data, "templates": ["a {}"]}, "as_released")
    paper, released, own = asked
    assert paper == {"subset": 7, "root": Path("~/x").expanduser(), "progress": False}
    changed = {"cifar10": {"stl10_order": "as_released"},
               "imagenet": {"score_among_all_classes": True, "class_names": "as_released"}}[data]  # fmt: skip
    assert released == paper | changed | {"templates": "as_released"}
    assert own == changed | {"templates": ["a {}"], "progress": False}


def test_a_checkpoint_file_is_the_backbone(weights):
    clip = open_backbone({"name": "tiny-of-the-tests", "pretrained": str(weights)})
    ours = make_clip(3)
    images = make_set(3, side=32).images
    assert clip.name == "tiny-of-the-tests/tiny.pt" and clip.image_size == 32
    theirs = torch.nn.functional.normalize(ours.model.visual(clip.normalise(clip.prepare(images))), dim=-1)
    torch.testing.assert_close(clip.encode(images), theirs)


def test_random_weights_are_always_the_same(weights):
    with torch.random.fork_rng([]):
        torch.manual_seed(1)
        one = open_backbone({"name": "tiny-of-the-tests", "pretrained": "random"})
        torch.manual_seed(2)
        two = open_backbone({"name": "tiny-of-the-tests", "pretrained": "random"})
    assert one.fingerprint == two.fingerprint


def test_a_backbone_with_weights_of_its_own_drops_those_of_the_file(capsys):
    parser = cli.build_parser()
    for name in ("mini", "hf-hub:a/b"):
        args = parser.parse_args(["run", "--config", "folders", "--backbone", name])
        assert "pretrained" not in read_config("folders", run_cli.changes_of(args)).backbone
    args = parser.parse_args(["run", "--config", "folders", "--backbone", "RN50-quickgelu"])
    assert read_config("folders", run_cli.changes_of(args)).backbone["pretrained"] == "openai"
    assert call("--config", "cifar10-paper", "--backbone", "hf-hub:a/b", "--dry-run") == 0
    assert "known when it is loaded" in capsys.readouterr().out


def test_layout_and_compilation_are_passed_on(weights, monkeypatch):
    from rp_lib.clip import FrozenCLIP

    asked = []
    monkeypatch.setattr(FrozenCLIP, "open_clip", lambda *a, **k: asked.append((a, k)))
    open_backbone({"name": "RN50", "pretrained": "openai", "channels_last": True, "compile": False})
    open_backbone({"name": "hf-hub:a/b"})
    assert asked[0] == (("RN50", Path("openai"), "cpu"), {"channels_last": True, "compile": False})
    assert asked[1] == (("hf-hub:a/b", None, "cpu"), {})


def test_weights_that_cannot_be_fetched_say_what_to_do(weights, monkeypatch):
    import open_clip

    from rp_lib.errors import RPLibError

    def offline(*args, **more):
        raise OSError("no network")

    monkeypatch.setattr(open_clip, "create_model", offline)
    with pytest.raises(RPLibError, match=r"no network.*--pretrained FILE.*RP_PRETRAINED"):
        open_backbone({"name": "ViT-B-32-quickgelu", "pretrained": "openai"})
    with pytest.raises(RPLibError, match="did you mean ViT-B-32"):
        open_backbone({"name": "ViT-B-32-quickgelo", "pretrained": "openai"})
    with pytest.raises(RPLibError, match="needs pretrained"):
        open_backbone({"name": "ViT-B-32-quickgelu"})


# What it would do -------------------------------------------------------------------------------------------------


def test_the_list_names_every_shipped_configuration(capsys):
    assert call("--list") == 0
    said = capsys.readouterr().out
    assert all(name in said for name in shipped())
