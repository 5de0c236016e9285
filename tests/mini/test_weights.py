import shutil

import pytest
import torch

from rp_lib.features import FeatureStore
from rp_lib.methods import ZeroShot
from rp_lib.mini import load_clip, weights
from rp_lib.stats import wilson_interval
from rp_lib.utils.errors import UnknownName
from rp_lib.utils.io import StorageError, load_tensors


def test_shipped_weights_are_small_float16_and_whole():
    files = list(weights.FOLDER.glob("*.safetensors"))
    assert {f.name for f in files} == {e["file"] for e in weights.index().values()}
    assert sum(f.stat().st_size for f in files) <= 25e6
    assert weights.names()[-1] == "final" and len(weights.names()) >= 3
    for file in files:
        tensors, metadata = load_tensors(file)
        assert {t.dtype for t in tensors.values()} == {torch.float16, torch.int32}
        assert metadata["config"]["vision_cfg"]["image_size"] == 64


def test_the_mini_clip_is_a_real_zero_shot_model(mini_clip, mini_benchmark):
    """Class prompts alone: at least 85 % on unseen monochrome sets and 65 % on unseen emoji vendors."""
    benchmark, store = mini_benchmark, FeatureStore()
    method = ZeroShot(mini_clip, benchmark.class_names, benchmark.templates)
    assert len(benchmark.class_names) >= 25
    assert method.accuracy(benchmark.test, store) >= 0.85
    assert method.accuracy(benchmark.shifts["emoji"], store) >= 0.65


def test_accuracy_grows_with_pre_training(mini_benchmark):
    benchmark = mini_benchmark
    some = benchmark.test.subset(torch.arange(0, len(benchmark.test), 4))
    accuracies = []
    for name in weights.names():
        method = ZeroShot(load_clip(name), benchmark.class_names, benchmark.templates)
        accuracies.append(method.accuracy(some))
    assert accuracies == sorted(accuracies)
    assert accuracies[0] < wilson_interval(round(accuracies[-1] * len(some)), len(some)).low


@pytest.mark.parametrize("damage", ["truncated", "altered", "missing"])
def test_damaged_weights_are_refused(tmp_path, monkeypatch, damage):
    shutil.copytree(weights.FOLDER, tmp_path / "clip")
    file = tmp_path / "clip" / weights.index()["final"]["file"]
    data = bytearray(file.read_bytes())
    if damage == "missing":
        file.unlink()
    else:
        data[-100] ^= 1
        file.write_bytes(bytes(data) if damage == "altered" else bytes(data[:-500]))
    with pytest.raises(StorageError, match="install rp_lib again"), monkeypatch.context() as patch:
        patch.setattr(weights, "FOLDER", tmp_path / "clip")
        load_clip("final")
    with pytest.raises(StorageError, match="install rp_lib again"):
        weights.index(tmp_path / "nowhere")
    weights.index.cache_clear()
    (tmp_path / "clip" / "index.json").write_text('{"final": {')
    with pytest.raises(StorageError, match="install rp_lib again"):
        weights.index(tmp_path / "clip")


def test_unknown_checkpoint_names_the_nearest():
    with pytest.raises(UnknownName, match="did you mean final"):
        load_clip("finale")


def test_untrained_words_share_one_row(mini_clip):
    table = mini_clip.model.token_embedding.weight
    trained = load_tensors(weights.FOLDER / weights.index()["final"]["file"])[0]["token_ids"].long()
    others = torch.ones(len(table), dtype=torch.bool)
    others[trained] = False
    assert others.sum() > 20_000 and (table[others] == table[others][0]).all()
    assert table[trained].std(0).mean() > 0
    torch.testing.assert_close(table[others][0], table[trained].mean(0), atol=1e-3, rtol=0)
