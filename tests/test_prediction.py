"""A trained method in use: new pictures are prepared as the training pictures were, and thresholds stay with it."""

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from rp_lib import cli
from rp_lib.data import from_folders
from rp_lib.methods import LinearProbe, ResidualReprogrammer, ZeroShot, build_method, load_method
from rp_lib.prediction import MethodThreshold, export, find_pictures, fit_threshold, predict
from rp_lib.utils.errors import RPLibError
from tests.families import make_family


@pytest.fixture(scope="module")
def clip(mini_clip):
    return mini_clip


@pytest.fixture(scope="module")
def photos(tmp_path_factory, mini_benchmark):
    """Icons in the middle of wide pictures, in folders, for two parts of five classes."""
    root, mini = tmp_path_factory.mktemp("photos"), mini_benchmark
    for part, images in (("train", mini.train), ("test", mini.test)):
        for c in range(5):
            (root / part / mini.class_names[c]).mkdir(parents=True)
            for i in (images.labels == c).nonzero()[:10, 0].tolist():
                wide = np.full((64, 128, 3), 255, np.uint8)
                wide[:, 32:96] = images.images[i].permute(1, 2, 0).numpy()
                Image.fromarray(wide).save(root / part / mini.class_names[c] / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def data(photos, tmp_path_factory):
    return from_folders(
        train=photos / "train", test=photos / "test", templates=("an icon of a {}",), size=48, progress=False,
        duplicates="drop", cache=tmp_path_factory.mktemp("cache"), val_fraction=0.3,
    )  # fmt: skip


@pytest.fixture(scope="module")
def probe(clip, data):
    return LinearProbe(clip, data.class_names, data.templates, epochs=10).fit(data.train)


@pytest.fixture(scope="module")
def saved(probe, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "probe.safetensors"
    probe.save(path)
    return path


def test_new_pictures_are_prepared_as_the_training_pictures_were(probe, data, photos):
    files = find_pictures([photos / "test"])
    table = predict(probe, files, batch_size=7)
    logits = probe.logits(data.test.images)  # decoded by the benchmark, at its 48 pixels and not at CLIP's 64
    assert probe.preparation.size == 48 and len(table) == len(files) == len(data.test)
    assert table["class"].tolist() == [data.class_names[c] for c in logits.argmax(1).tolist()]
    assert table["probability"].to_numpy() == pytest.approx(logits.double().softmax(1).amax(1).numpy(), abs=1e-6)
    assert (
        (table["score"] == table["probability"]).all()
        and table["accepted"].isna().all()
        and (table["error"] == "").all()
    )
    assert table["picture"].tolist() == [str(f) for f in files]


def test_pictures_of_another_side_than_in_training_are_refused(saved, probe, data):
    images = data.test.images[:3]
    for method in (probe, load_method(saved)):
        method.logits(images)
        with pytest.raises(RPLibError, match=f"8 x 8 pixels.*trained on {images.shape[-1]} x.*rp_lib.predict"):
            method.logits(images[..., :8, :8])


def test_pil_images_and_a_glob_of_paths_are_pictures_too(probe, photos):
    files = sorted(photos.glob("test/*/*.png"))[:4]
    by_file, by_image = predict(probe, files), predict(probe, [Image.open(f) for f in files])
    assert by_image["picture"].tolist() == [f"picture {i}" for i in range(4)]
    pd.testing.assert_frame_equal(by_file.drop(columns="picture"), by_image.drop(columns="picture"))
    with pytest.raises(RPLibError, match="pictures of predict must be Sequence"):
        predict(probe, files[0])
    with pytest.raises(RPLibError, match=r"pictures of predict must be Sequence.*, got tensor.*\(Tensor\)"):
        predict(probe, [torch.zeros(3, 8, 8)])
    assert predict(probe, []).empty


def test_files_that_show_no_image_are_named_and_the_others_answered(probe, photos, tmp_path):
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "cut.png").write_bytes(next(photos.glob("test/*/*.png")).read_bytes()[:60])
    good = next(photos.glob("test/*/*.png"))
    table = predict(probe, [tmp_path / "empty.png", good, tmp_path / "cut.png", tmp_path / "gone.png"])
    assert table["class"].tolist()[0::2] == ["", ""] and table["class"][1] and table["error"][1] == ""
    assert table["error"][0] == "an empty file" and table["error"][2] and table["error"][3] == "does not exist"
    assert np.isfinite(table["score"]).tolist() == [False, True, False, False]


def test_unread_kinds_are_named_and_patterns_followed(saved, photos, tmp_path, capsys, monkeypatch):
    one, two = sorted(photos.glob("test/*/*.png"))[:2]
    (tmp_path / "one.png").write_bytes(one.read_bytes())
    (tmp_path / "two.png").write_bytes(two.read_bytes())
    (tmp_path / "drawing.svg").write_text("<svg/>")
    assert [p.name for p in find_pictures([tmp_path / "*.png"])] == ["one.png", "two.png"]
    assert [p.name for p in find_pictures([tmp_path])] == ["drawing.svg", "one.png", "two.png"]
    assert find_pictures([photos / "test" / "*" / "[0-9]*.p?g"]) == sorted(photos.glob("test/*/*.png"))
    monkeypatch.chdir(tmp_path)
    assert find_pictures(["o*.png"]) == [Path("one.png")]
    assert cli.main(["predict", str(saved), str(tmp_path)]) == 2
    said = capsys.readouterr()
    rows = pd.read_csv(io.StringIO(said.out)).set_index("picture")["error"]
    assert rows[str(tmp_path / "drawing.svg")].startswith("no image") and rows.isna().sum() == 2
    with pytest.raises(RPLibError, match="does not exist"):
        find_pictures([tmp_path / "*.gif"])


def test_a_threshold_accepts_what_it_promises_and_stays_with_its_method(probe, data, clip, photos, tmp_path):
    gate = fit_threshold(probe, data.val, tpr=0.9)
    scores = probe.logits(data.val.images).double().softmax(1).amax(1)
    assert gate.threshold.n == len(data.val) and (scores >= gate.threshold.value).double().mean() >= 0.9
    assert (gate.data, gate.data_sha256, gate.detector) == ("val", data.val.fingerprint, "msp")
    gate.save(tmp_path / "t.json")
    assert MethodThreshold.load(tmp_path / "t.json") == gate
    table = probe.predict(find_pictures([photos / "test"]), gate)
    assert table["accepted"].tolist() == (table["score"] >= gate.threshold.value).tolist()
    other = LinearProbe(clip, data.class_names, data.templates, epochs=11).fit(data.train)
    with pytest.raises(RPLibError, match="belongs to another method or another training"):
        predict(other, ["x.png"], gate)
    with pytest.raises(RPLibError, match="what the method was trained on"):
        fit_threshold(probe, data.train)
    with pytest.raises(RPLibError, match="also needs train"):
        fit_threshold(probe, data.val, detector="mahalanobis")
    energy = fit_threshold(ZeroShot(clip, data.class_names, data.templates), data.val, detector="energy")
    assert energy.threshold.value > 1  # no probability
    for text in ("{}", "[]", "no json", json.dumps({"threshold": 1})):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(RPLibError, match="holds no threshold of a method"):
            MethodThreshold.load(tmp_path / "bad.json")


def test_a_method_that_was_never_fitted_predicts_nothing(clip, data):
    with pytest.raises(RPLibError, match="'linear-probe' was never fitted"):
        predict(LinearProbe(clip, data.class_names, data.templates), ["x.png"])


def test_mixtures_know_how_their_base_was_trained(clip, data, tmp_path):
    config = {"config": {"epochs": 1, "batch_size": 16, "border_init": "white"}}
    rp = build_method("rp", clip, data.class_names, data.templates, config).fit(data.train)
    rrp = ResidualReprogrammer(rp, 0.4)
    assert rrp.preparation.size == 48 and rrp.fingerprint != rrp.with_alpha(0.5).fingerprint
    rrp.save(tmp_path / "rrp.safetensors")
    again = load_method(tmp_path / "rrp.safetensors")
    assert (
        again.preparation.size == 48
        and again.fingerprint == rrp.fingerprint
        and again.clip.fingerprint == clip.fingerprint
    )
    assert torch.equal(again.logits(data.test.images), rrp.logits(data.test.images))


def test_a_backbone_built_by_hand_must_be_given(tiny_clip, tiny_benchmark, tmp_path):
    ZeroShot(tiny_clip, tiny_benchmark.class_names, tiny_benchmark.templates).save(tmp_path / "m")
    with pytest.raises(RPLibError, match="does not say how its backbone 'tiny-0' is loaded: pass it as `clip`"):
        load_method(tmp_path / "m")
    assert load_method(tmp_path / "m", tiny_clip).name == "zero-shot"


def test_the_command_line_in_a_fresh_process(saved, probe, photos, tmp_path):
    """As a user would: fit a threshold on folders, then classify others, in other processes."""

    def rp_lib(*arguments):
        command = [sys.executable, "-m", "rp_lib", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout

    gate = tmp_path / "t.json"
    assert "msp >=" in rp_lib("threshold", saved, photos / "test", "--tpr", "0.8", "--out", gate)
    table = pd.read_csv(io.StringIO(rp_lib("predict", saved, photos / "train", "--threshold", gate)))
    expected = predict(probe, find_pictures([photos / "train"]), MethodThreshold.load(gate))
    assert (
        table["class"].tolist() == expected["class"].tolist()
        and table["accepted"].tolist() == expected["accepted"].tolist()
    )


def test_json_lines_a_file_and_bad_input(saved, photos, tmp_path, capsys):
    pictures = [str(f) for f in sorted(photos.glob("test/*/*.png"))[:3]]
    out = tmp_path / "answers.jsonl"
    assert cli.main(["predict", str(saved), *pictures, "--format", "jsonl", "--out", str(out)]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [r["picture"] for r in rows] == pictures and all(0 < r["probability"] <= 1 for r in rows)
    (tmp_path / "empty.png").write_bytes(b"")
    assert cli.main(["predict", str(saved), str(tmp_path / "empty.png"), pictures[0]]) == 2
    said = capsys.readouterr()
    assert "an empty file" in said.out and "1 of 2 files show no image" in said.err
    assert cli.main(["predict", str(saved), str(tmp_path / "nowhere")]) == 2
    assert "nowhere does not exist" in capsys.readouterr().err


def test_an_exported_program_says_what_the_method_says(saved, probe, data, photos, tmp_path, capsys):
    assert cli.main(["export", str(saved), str(tmp_path / "probe.pt2")]) == 0
    assert "uint8 pictures (n, 3, 48, 48) -> logits (n, 5)" in capsys.readouterr().out
    files = {"about.json": ""}
    program = torch.export.load(tmp_path / "probe.pt2", extra_files=files).module()
    about = json.loads(files["about.json"])
    assert about["class_names"] == list(data.class_names) and about["preparation"]["size"] == 48
    for n in (1, 2, 7):
        found = program(data.test.images[:n])
        torch.testing.assert_close(found, probe.logits(data.test.images[:n]), rtol=1e-4, atol=1e-4)
    answers = predict(probe, data.test.paths[:7])
    np.testing.assert_allclose(found.double().softmax(1).max(1).values, answers["probability"], atol=1e-5)


def test_mixtures_are_exported_and_what_cannot_be_is_refused(tiny_clip, tiny_benchmark, tmp_path, monkeypatch):
    task = (tiny_clip, tiny_benchmark.class_names, tiny_benchmark.templates)
    rrp, maple = build_method("rrp", *task), build_method("maple", *task)
    with pytest.raises(RPLibError, match="never fitted"):
        export(rrp, tmp_path / "m.pt2")
    for method in (rrp, maple):
        method.load_state_dict(method.state_dict())
    assert export(rrp, tmp_path / "rrp.pt2") < 1e-3 and (tmp_path / "rrp.pt2").is_file()
    with pytest.raises(RPLibError, match=r"torch\.export cannot follow 'maple' on tiny-0: Constraints violated"):
        export(maple, tmp_path / "m.pt2")
    with pytest.raises(RPLibError, match=r"end in \.pt2"):
        export(rrp, tmp_path / "m.onnx")
    zero_shot = build_method("zero-shot", *task)
    monkeypatch.setattr(ZeroShot, "logits", lambda self, images: -self.head(self.features(images)))
    with pytest.raises(RPLibError, match="the program's logits differ from those of 'zero-shot'"):
        export(zero_shot, tmp_path / "m.pt2")
    assert not list(tmp_path.glob("*m.*"))


@pytest.mark.parametrize("family", ["RN50", "ViT-B-16-SigLIP"])
def test_methods_on_other_towers_are_exported(family, tmp_path):
    rp = build_method("rp", make_family(family), ("cat", "dog"), ("a photo of a {}",))
    rp.load_state_dict(rp.state_dict())
    assert export(rp, tmp_path / "rp.pt2") < 1e-4
