"""Tracks: what a notebook asks for, and what the environment switches."""

import pytest
import torch
from rp_course.tracks import open_track

from rp_lib.clip import FrozenCLIP
from rp_lib.config import PAPER
from rp_lib.data import NotThere
from rp_lib.methods import METHODS, build_method
from rp_lib.run import session
from rp_lib.run.search import tuned_settings
from rp_lib.utils.errors import RPLibError, UnknownName


@pytest.fixture(autouse=True)
def _environment(monkeypatch, tmp_path):
    for name in ("RP_TRACK", "RP_ID", "RP_BACKBONE", "RP_PRETRAINED"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RP_DATA", str(tmp_path / "data"))


@pytest.fixture
def opened(monkeypatch, tiny_clip, tiny_benchmark):
    """What the full track asks for, with tiny things in place of large ones."""
    asked = {}

    def clip(name, pretrained, device, **more):
        asked["backbone"] = (name, str(pretrained), str(device))
        return tiny_clip

    def data(**options):
        asked["data"] = options
        return tiny_benchmark

    monkeypatch.setattr(FrozenCLIP, "open_clip", clip)
    monkeypatch.setattr("rp_lib.data.cifar.cifar10_benchmark", data)
    monkeypatch.setattr("rp_lib.data.imagenet.imagenet_benchmark", data)
    monkeypatch.setattr(session, "check_data", lambda data: asked.setdefault("checked", data["id"]))
    return asked

# Has no recorded search: its descriptions are the caller's.
LATER = {"attr-vr"}


def test_the_mini_track_is_the_shipped_one(mini_clip, mini_benchmark):
    track = open_track()
    assert track.name == "mini" and track.device == torch.device("cpu")
    assert track.data.fingerprint == mini_benchmark.fingerprint
    assert track.clip.fingerprint == mini_clip.fingerprint
    assert track.settings == tuned_settings() and set(METHODS) - set(track.settings) == LATER
    assert track.task == (track.clip, track.data.class_names, track.data.templates)


def test_the_full_track_is_the_papers(opened, tiny_clip, tiny_benchmark, monkeypatch):
    monkeypatch.setenv("RP_TRACK", "full")
    track = open_track(device="cpu")
    assert opened["backbone"] == ("ViT-B-32-quickgelu", "openai", "cpu") and opened["checked"] == "cifar10"
    assert opened["data"] == {"progress": False}
    assert (track.name, track.clip, track.data) == ("full", tiny_clip, tiny_benchmark)
    assert track.settings["rp"]["config"] == PAPER and track.settings["fine-tune"]["lr"] == 3e-5
    assert {"rp-image", "rp-text", "logit-ensemble"} <= set(track.settings)  # of the same tables
    assert not {"l2-sp", "flyp", "maple"} & set(track.settings)  # nobody published settings for this
    for name, settings in track.settings.items():
        build_method(name, *track.task, settings | ({"n_context": 4} if name == "coop" else {}))


def test_the_environment_chooses_data_and_weights(opened, monkeypatch, tmp_path):
    weights = tmp_path / "weights.pt"
    for name, value in (("RP_ID", "imagenet"), ("RP_BACKBONE", "RN50-quickgelu"), ("RP_PRETRAINED", str(weights))):
        monkeypatch.setenv(name, value)
    open_track("full", "cpu")
    assert opened["backbone"] == ("RN50-quickgelu", str(weights), "cpu") and opened["checked"] == "imagenet"
    assert open_track("mini").clip.name.startswith("mini")  # the mini track is what it is
    with pytest.raises(RPLibError, match="RP_ID, RP_BACKBONE, RP_PRETRAINED is of the full track alone: set RP_TRACK=full"):
        open_track()
    monkeypatch.setenv("RP_ID", "cifar")
    with pytest.raises(UnknownName, match="did you mean cifar10"):
        open_track("full")


def test_a_wrong_track_is_refused(monkeypatch):
    monkeypatch.setenv("RP_TRACK", "ful")
    with pytest.raises(UnknownName, match="did you mean full"):
        open_track()


def test_the_full_track_without_data_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setattr(FrozenCLIP, "open_clip", lambda *a, **k: pytest.fail("weights were asked for first"))
    with pytest.raises(NotThere, match=r"cifar10, .* not in .*data; \./data_download\.sh --root"):
        open_track("full", "cpu")


def test_a_light_track_is_judged_on_less_and_trained_on_all(opened, tiny_benchmark):
    track = open_track("full", "cpu")
    light = track.light(test=5, other=4)
    assert [len(s) for s in (light.data.test, *light.data.shifts.values(), *light.data.ood.values())] == [5, 4, 4, 4, 4]
    assert light.data.train is tiny_benchmark.train and light.clip is track.clip and light.settings is track.settings
    assert len(track.data.test) == len(tiny_benchmark.test)
    mini = open_track("mini").light(50, 20).data
    assert len(mini.test) == 50 and torch.equal(mini.controls["dark"].sources, mini.test.sources)
