"""Configurations of ``rp-lib run``: what ships, what is refused, and which data and backbone they name."""

import tomllib
from dataclasses import asdict
from pathlib import Path

import pytest
import run_world
import torch
from conftest import make_clip, make_set
from photo_world import jpeg, write
from run_world import call

from rp_lib import cli
from rp_lib.config import AS_RELEASED, PAPER
from rp_lib.data import NotThere
from rp_lib.data.class_names import CIFAR10, TINY_IMAGENET_TO_CIFAR10
from rp_lib.methods import METHODS, build_method
from rp_lib.run import CORE
from rp_lib.run.config import ConfigError, accepted, check_config, read_config, shipped
from rp_lib.run.cost import task_size
from rp_lib.run.opening import open_backbone, open_benchmark
from rp_lib.run.search import tuned_settings

photos, weights, file = run_world.photos, run_world.weights, run_world.file

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
        ({"data.subet": 3}, r"cifar10-paper: unknown key in \[data\] 'subet'; did you mean subset"),
        ({"nonsense": 1}, "cifar10-paper: unknown key 'nonsense'"),
        ({"bakcbone": {}}, "unknown key 'bakcbone'; did you mean backbone"),
        ({"seeds": 0}, "seeds should be a number of seeds of at least 1"),
        ({"seeds": [1, 1]}, "distinct"),
        ({"seeds": True}, "seeds should be"),
        ({"seeds": [1, True]}, "seeds.1 should be a valid integer, got True"),
        ({"seeds": [-1]}, "seeds.0 should be greater than or equal to 0"),
        ({"seeds": 20240101}, r"at most 1,000 seeds; the one seed 20240101 is the list \[20240101\]"),
        ({"methods": ["rp", "fine-tuen"]}, "methods.1: unknown choice 'fine-tuen'; did you mean fine-tune"),
        ({"methods": []}, "methods should be a list of names, not empty"),
        ({"methods": "rp"}, "methods should be a list"),
        ({"preset": "papre"}, "did you mean paper"),
        ({"preset": "tuned"}, "searched for on the mini benchmark"),
        ({"detectors": ["msb"]}, "did you mean msp"),
        ({"precision": "float23"}, "did you mean float32"),
        ({"out": None}, "cifar10-paper: out is missing"),
        ({"out": ""}, "out should be a folder"),
        ({"data": None}, "cifar10-paper: data is missing"),
        ({"data": 3}, "data should be a valid table, got 3"),
        ({"data.id": "cifar100"}, r"unknown id in \[data\] 'cifar100'; did you mean cifar10"),
        ({"data.id": None}, r"unknown id in \[data\] ''; known: cifar10, cifar10-folders, folders, imagenet, mini"),
        ({"data.subset": 1.5}, "data.subset should be a valid integer, got 1.5"),
        ({"data.subset": 3.0}, "data.subset should be a valid integer, got 3.0"),
        ({"data.subset": "3"}, "data.subset should be a valid integer, got '3'"),
        ({"data.subset": 0}, "data.subset should be greater than or equal to 1, got 0"),
        ({"data.templates": 3}, "data.templates should be the name of a list of prompts, or a list of them, got 3"),
        ({"data.templates": ["a {}", 3]}, "data.templates.1 should be a valid string, got 3"),
        ({"data": {"id": "folders"}}, "data.train is missing"),
        ({"data": {"id": "folders", "train": "a", "ood": {"x": 3}}}, "data.ood.x should be FOLDER"),
        ({"backbone.name": None}, "backbone.name is missing"),
        ({"settings.rp.imagelr": 1}, r"unknown key in \[settings.rp\] 'imagelr'; did you mean image_lr"),
        ({"settings.rp.image_lr": "high"}, "settings.rp.image_lr should be a valid number, got 'high'"),
        ({"settings.rp.image_lr": True}, "settings.rp.image_lr should be a valid number, got True"),
        ({"settings.rp.image_lr": -1}, "settings.rp.image_lr should be greater than 0, got -1"),
        ({"settings.rp.image_decay": float("inf")}, "settings.rp.image_decay should be a finite number"),
        ({"settings.rp.padding": 0.5}, "settings.rp.padding should be less than 0.5"),
        ({"settings.rrp.alpha": 1.5}, "settings.rrp.alpha should be less than or equal to 1"),
        ({"settings.fine-tune.batch_size": 0}, "settings.fine-tune.batch_size should be greater than or equal to 1"),
        ({"settings.fine-tune.schedule": "cosin"}, "settings.fine-tune.schedule: .*did you mean cosine"),
        ({"settings.rp.coupled_decay": 1}, "settings.rp.coupled_decay should be a valid boolean"),
        ({"settings.rp.placement": "pda"}, "did you mean pad"),
        ({"settings.rpp.epochs": 1}, "did you mean rp"),
        ({"settings.zero-shot.lr": 1.0}, r"unknown key in \[settings.zero-shot\] 'lr'"),
        ({"settings.fine-tune": 1}, "settings.fine-tune should be a valid table"),
        ({"seeds.x": 1}, "seeds is a value, no table"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused_with_the_place_and_the_remedy(changes, message):
    with pytest.raises(ConfigError, match=message):
        read_config("cifar10-paper", changes)


def test_all_that_is_wrong_is_said_at_once():
    changes = {"seeds": None, "sedes": 2, "data.subset": 1.5, "backbone.nmae": "x", "settings.rp.epochs": -1}
    with pytest.raises(ConfigError) as caught:
        read_config("cifar10-paper", changes)
    first, *faults = str(caught.value).splitlines()
    assert first == "cifar10-paper: 5 faults" and [f.split()[0] for f in faults] == [
        "seeds", "unknown", "data.subset", "unknown", "settings.rp.epochs",
    ]  # fmt: skip


def test_whole_numbers_are_numbers_and_a_list_of_seeds_stays_one():
    config = read_config("cifar10-paper", {"settings.rp.image_lr": 1, "seeds": [7, 3], "methods": ["rp", "rp"]})
    assert config.settings()["rp"]["config"].image_lr == 1 and config.seeds == (7, 3) and config.methods == ("rp",)


def test_a_value_out_of_range_is_refused_before_a_backbone_is_built(capsys, monkeypatch):
    monkeypatch.setattr("rp_lib.run.cost.Weightless.open_clip", lambda name: pytest.fail("a backbone was built"))
    assert call("--config", "cifar10-paper", "--set", "settings.rp.image_lr=-1", "--dry-run") == 2
    assert "settings.rp.image_lr should be greater than 0, got -1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "say what to run: --config NAME"),
        (["--config", "cifar10-papre"], "did you mean cifar10-paper"),
        (["--config", "nowhere.toml"], "does not exist; shipped ones: cifar10-as_released"),
        (["--config", "mini", "--seeds", "x"], "--seeds takes a number"),
        (["--config", "mini", "--seeds", ""], "seeds should be"),
        (["--config", "mini", "--seeds", "20240101"], "the one seed 20240101 is the list [20240101]"),
        (["--config", "mini", "--methods", ","], "methods should be a list of names, not empty"),
        (["--config", "mini", "--set", "seeds"], "--set takes KEY=VALUE"),
        (["--config", "mini", "--set", "backbone.name="], "backbone.name is missing"),
        (["--config", "mini", "--set", "device=cuda:77"], "take auto or cpu"),
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
    config = read_config(args.config, cli.changes_of(args))
    assert config.seeds == (4, 7) and config.methods == ("rp", "zero-shot") and config.out == Path("elsewhere")
    assert config.settings()["rp"]["config"].epochs == 9 and config.data["val_fraction"] == 0.2
    assert config.about == "words of one's own" and config.precision == "float32"
    one = parser.parse_args(["run", "--config", str(file), "--seeds", "7,"])
    assert read_config(one.config, cli.changes_of(one)).seeds == (7,)


def test_folders_are_below_the_root(photos, tmp_path, monkeypatch, capsys):
    below = {
        "id": "folders", "train": "train", "test": "test", "val": "val", "shifts": {"drawn": "drawn"}, "size": 32,
        "ood": {"other": ["other"]}, "cache": str(tmp_path / "cache"),
    }  # fmt: skip
    data = open_benchmark({**below, "root": str(photos)})
    assert [len(s) for s in data.sets] == [24, 9, 15, 12, 14]
    monkeypatch.chdir(photos)
    assert [s.fingerprint for s in open_benchmark(below).sets] == [s.fingerprint for s in data.sets]
    drawn = open_benchmark({**below, "root": str(photos), "subset": 6, "per_class": 2})
    assert [len(s) for s in drawn.sets] == [6, 6, 6, 6, 6]
    assert open_benchmark({**below, "train": str(photos / "train"), "root": "."}).train.fingerprint
    size = task_size({**below, "root": str(photos), "subset": 6, "per_class": 2})
    assert (size.train, size.val, size.judged, size.classes) == (6, 6, 18, 3)


def test_cifar10_of_folders_with_its_shift(tmp_path, capsys):
    """The shipped configuration on made-up photos in the folders that it names."""
    for part in ("train", "test"):
        for number, name in enumerate(CIFAR10):
            for i in range(4):
                write(tmp_path / "cifar10" / part / name / f"{i}.jpg", jpeg(100 * number + 10 * i, 32))
    for number, wnid in enumerate(TINY_IMAGENET_TO_CIFAR10):
        write(tmp_path / "tiny-imagenet-200" / "val" / wnid / "0.jpg", jpeg(number, 64))
    for i, folder in enumerate(("textures/dots", "scenes/forests", "scenes/glacier", "scenes/mountains", "scenes/sea")):
        write(tmp_path / folder / "0.jpg", jpeg(900 + i, 64))
    changes = {"data.root": str(tmp_path), "data.per_class": 2, "data.val_per_class": 1}
    config = read_config("cifar10-folders", changes | {"data.cache": str(tmp_path / "cache")})
    data = open_benchmark(config.data, config.preset)
    assert data.class_names == CIFAR10 and data.templates == ("a photo of a {}.",)
    assert [len(s) for s in data.sets] == [20, 10, 40, len(TINY_IMAGENET_TO_CIFAR10), 1, 3]
    assert open_benchmark(config.data, "as_released").templates == ("a photo of a {}",)
    assert task_size(config.data).train == 20
    assert call("--config", "cifar10-folders", "--set", f"data.root={tmp_path}", "--dry-run", "--set", "data.val_per_class=1") == 0
    assert f"train: {tmp_path / 'cifar10' / 'train'}" in capsys.readouterr().out


def test_pacs_is_a_benchmark_of_folders(tmp_path, capsys):
    for domain in ("photo", "art_painting", "cartoon", "sketch"):
        for number, name in enumerate(("dog", "house")):
            for i in range(4):
                shade = 100 * ("photo", "art_painting", "cartoon", "sketch").index(domain) + 10 * number + i
                write(tmp_path / "pacs" / domain / name / f"{i}.jpg", jpeg(shade, 96))
    for i, folder in enumerate(("textures/dots", *(f"scenes/{n}" for n in ("forests", "glacier", "mountains", "sea")))):
        write(tmp_path / folder / "0.jpg", jpeg(900 + i, 64))
    out = ("--out", tmp_path / "out", "--set", f"data.cache={tmp_path / 'cache'}", "--methods", "zero-shot")
    assert call("--config", "pacs", "--set", f"data.root={tmp_path}", *out) == 0
    said = capsys.readouterr().out
    assert "pacs: 2 classes, 4 training and 2 test images, 3 shifted and 2 OOD sets; backbone mini" in said
    assert all(name in said for name in ("art", "cartoon", "sketch", "textures", "scenes"))
    assert call("--config", "pacs", "--set", f"data.root={tmp_path / 'nowhere'}", *out, "--fresh") == 2
    assert f"{tmp_path / 'nowhere' / 'pacs' / 'photo'} does not exist" in capsys.readouterr().err


# Data and backbone ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("data", "name"), [("cifar10", "stl10"), ("imagenet", "imagenet-v2")])
def test_missing_data_exits_6_with_the_command_that_gets_it(data, name, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("RP_DATA", str(tmp_path / "data"))
    monkeypatch.setattr("rp_lib.clip.FrozenCLIP.open_clip", lambda *a, **k: pytest.fail("weights were asked for first"))
    arguments = ("--config", f"{data}-paper", "--out", tmp_path / "out", "--set", "device=cpu")
    assert call(*arguments) == NotThere.exit_code == 6
    said = capsys.readouterr().err
    assert name in said and f"./data_download.sh --root {tmp_path / 'data'}" in said


@pytest.mark.parametrize("key", ["data.test", "data.shifts.more", "data.ood.more"])
def test_a_missing_folder_is_found_before_a_backbone_is_built(file, key, capsys, monkeypatch):
    monkeypatch.setattr("rp_lib.run.session.open_backbone", lambda *a, **k: pytest.fail("a backbone was built"))
    for value in ("/nowhere/x", '["/nowhere/x"]')[: 2 if "ood" in key else 1]:
        assert call("--config", file, "--set", f"{key}={value}") == 2
        assert "/nowhere/x does not exist" in capsys.readouterr().err
    assert call("--config", file, "--set", f"{key}=/nowhere/x", "--dry-run") == 2


@pytest.mark.parametrize("data", ["cifar10", "imagenet"])
def test_the_preset_also_switches_what_the_released_code_does_to_the_data(data, monkeypatch):
    asked = []
    monkeypatch.setattr(f"rp_lib.data.{'cifar' if data == 'cifar10' else data}.{data}_benchmark",
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
    theirs = torch.nn.functional.normalize(ours.model.visual(clip.normalize(clip.prepare(images))), dim=-1)
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
        args = parser.parse_args(["run", "--config", "folders", "--set", f"backbone.name={name}"])
        assert "pretrained" not in read_config("folders", cli.changes_of(args)).backbone
    args = parser.parse_args(["run", "--config", "folders", "--set", "backbone.name=RN50-quickgelu"])
    assert read_config("folders", cli.changes_of(args)).backbone["pretrained"] == "openai"
    assert call("--config", "cifar10-paper", "--set", "backbone.name=hf-hub:a/b", "--dry-run") == 0
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

    from rp_lib.utils.errors import RPLibError

    def offline(*args, **more):
        raise OSError("no network")

    monkeypatch.setattr(open_clip, "create_model", offline)
    with pytest.raises(RPLibError, match=r"no network.*backbone.pretrained=FILE.*RP_PRETRAINED"):
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


def test_a_method_without_settings_runs_with_the_librarys_defaults_and_says_so(caplog):
    config = read_config("mini", {"methods": ["l2-sp", "wise-ft"], "preset": "paper", "settings": {"linear-probe": {}}})
    assert [r.levelname for r in caplog.records] == ["WARNING"] * 2
    assert "has no settings for 'l2-sp', which runs with the library's defaults" in caplog.text
    assert "tower_penalty" in caplog.text and config.settings()["l2-sp"] == {} and "l2-sp" not in config.all_settings()
    caplog.clear()
    read_config("mini", {"methods": ["zero-shot", "linear-probe", "rp"], "settings.linear-probe.epochs": 2})
    assert not caplog.records
