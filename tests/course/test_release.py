import json
import shutil
from dataclasses import replace

import pytest
import torch
from rp_course.mini_world.other_size import release_size
from rp_course.mini_world.pretrain import config, pretrain
from rp_course.mini_world.release import release
from test_pretrain import RECIPE, corpus  # noqa: F401  the fixture

from rp_lib.mini import weights
from rp_lib.utils.errors import RPLibError, UnknownName
from rp_lib.utils.io import StorageError, load_tensors


@pytest.fixture(scope="module")
def released(corpus, tmp_path_factory, mini_benchmark):  # noqa: F811
    """Two releases: one run from scratch, and a second stage that goes on from the first release's weights."""
    root = tmp_path_factory.mktemp("release")
    few = mini_benchmark.subsample(40, 20)  # the cards measure every checkpoint on every set
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rp_course.mini_world.release.load_benchmark", lambda: few)
        pretrain(corpus, root / "one", RECIPE)
        release((root / "one",), root / "first", (0.5,))
        second = replace(RECIPE, steps=3, seed=9, restyle=1.0, shared=0.7, augment_over=0.0)
        pretrain(corpus, root / "two", second, start=root / "first" / "final.safetensors")
        release((root / "two",), root / "second", (), "A note.", root / "first", ("at-50-percent", "final"))
    return root


def test_fractions_count_all_stages(released):
    first, second = (json.loads((released / n / "index.json").read_text()) for n in ("first", "second"))
    assert {n: e["fraction"] for n, e in first.items()} == {"final": 1.0, "at-50-percent": 0.5}
    assert {n: e["fraction"] for n, e in second.items()} == {
        "final": 1.0,
        "at-33-percent": pytest.approx(3 / 9),
        "at-67-percent": pytest.approx(6 / 9),
    }
    stages = json.loads((released / "second" / "training.json").read_text())
    assert [s["steps"] for s in stages] == [6, 3] and stages[1]["restyle"] == 1.0
    card = (released / "second" / "MODEL_CARD.md").read_text()
    assert "**Stage 2**: 3 steps" in card and "drawn again in other manners" in card and "A note." in card


def test_earlier_weights_ship_again_unchanged(released, monkeypatch):
    old, _ = load_tensors(released / "first" / "final.safetensors")
    new, _ = load_tensors(released / "second" / "at-67-percent.safetensors")
    assert all(torch.equal(old[k], v) for k, v in new.items() if not k.startswith(("token", "other")))
    rows = dict(zip(old["token_ids"].tolist(), old["token_rows"], strict=True))
    assert len(new["token_ids"]) and all(
        torch.equal(rows[i], r) for i, r in zip(new["token_ids"].tolist(), new["token_rows"], strict=True)
    )
    monkeypatch.setattr(weights, "FOLDER", released / "second")
    assert weights.load_clip("final").image_size == 64


def test_second_stage_begins_with_the_released_weights(released, corpus, tmp_path):  # noqa: F811
    start = released / "first" / "final.safetensors"
    frozen = replace(RECIPE, steps=1, lr=0.0, seed=9)
    pretrain(corpus, tmp_path / "run", frozen, start=start)
    model = torch.load(tmp_path / "run" / "state.pt", weights_only=True)["model"]
    tensors, _ = load_tensors(start)
    assert torch.equal(model["token_embedding.weight"], tensors["token_rows"].float())
    assert torch.equal(model["visual.proj"], tensors["visual.proj"].float())
    few = released / "first" / "at-50-percent.safetensors"
    with pytest.raises(StorageError, match="a row for each"):
        pretrain(corpus, tmp_path / "other", frozen, start=few)


def test_wrong_earlier_releases_are_refused(released, tmp_path):
    with pytest.raises(UnknownName, match="did you mean final"):
        release((released / "two",), tmp_path / "out", (), after=released / "first", keep_after=("fin",))
    with pytest.raises(RPLibError, match="holds no release"):
        release((released / "two",), tmp_path / "out", (), after=tmp_path)


def test_a_refused_release_leaves_the_folder_as_it_was(released, tmp_path):
    shutil.copytree(released / "first", tmp_path / "out")
    before = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    with pytest.raises(RPLibError, match=r"kept no checkpoint at 0\.9"):
        release((released / "one",), tmp_path / "out", (0.9,))
    with pytest.raises(RPLibError, match="both be called at-50-percent"):
        release((released / "one",), tmp_path / "out", (0.5, 0.5))
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == before


def test_another_size_is_exported_with_a_card(corpus, tmp_path, monkeypatch, mini_benchmark):  # noqa: F811
    few = mini_benchmark.subsample(40, 20)
    pretrain(corpus, tmp_path / "narrow", replace(RECIPE, width=96, steps=3, keep_at=()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rp_course.mini_world.other_size.load_benchmark", lambda: few)
        release_size(tmp_path / "narrow", tmp_path / "out", "half-width")
        release((tmp_path / "narrow",), tmp_path / "other", ())  # of this width alone
    small, large = weights.load_clip(str(tmp_path / "out" / "half-width.safetensors")), weights.load_clip("final")
    monkeypatch.setattr(weights, "FOLDER", tmp_path / "other")
    assert weights.load_clip("final").model.visual.conv1.out_channels == 96
    assert small.model.visual.conv1.out_channels == 96 and large.model.visual.conv1.out_channels == 192
    heads = [clip.model.visual.transformer.resblocks[0].attn.num_heads for clip in (small, large)]
    assert heads[0] == heads[1] == 3 and small.embed_dim == large.embed_dim
    card = (tmp_path / "out" / "HALF-WIDTH.md").read_text()
    assert "width 96" in card and f"| test | {len(few.test)} |" in card and "3 steps" in card


def test_widths_that_cannot_be_split_into_heads_are_refused():
    with pytest.raises(RPLibError, match="cannot be split"):
        config(100)
