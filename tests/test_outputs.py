import dataclasses

import pandas as pd
import pytest
import torch

from rp_lib.benchmark import ImageSet
from rp_lib.config import AS_RELEASED, PAPER
from rp_lib.evaluation import RECORDED, Run, evaluate, evaluate_outputs
from rp_lib.features import FeatureStore
from rp_lib.methods import LinearProbe, Reprogrammer, ResidualReprogrammer, ZeroShot
from rp_lib.negative_labels import mine_negative_words
from rp_lib.outputs import Outputs, compute_outputs, load_outputs, save_outputs
from rp_lib.utils.errors import RPLibError
from rp_lib.utils.io import StorageError, load_tensors, save_tensors, seal


@pytest.fixture(scope="module")
def task(tiny_clip, tiny_benchmark):
    return tiny_clip, tiny_benchmark.class_names, tiny_benchmark.templates


@pytest.fixture(scope="module")
def probe(task, tiny_benchmark):
    return LinearProbe(*task, epochs=3).fit(tiny_benchmark.train)


@pytest.fixture(scope="module")
def rrp(task, tiny_benchmark):
    rp = Reprogrammer(*task, PAPER.changed(epochs=1, batch_size=8, padding=0.1), precision="float32")
    return ResidualReprogrammer(rp.fit(tiny_benchmark.train), 0.3)


@pytest.fixture(scope="module")
def full(task, tiny_benchmark, probe, rrp):
    """Outputs of the residual with all that detectors may need."""
    words = mine_negative_words(*task, ["river", "tree", "stone", "lake"] + [f"thing {i}" for i in range(10)])
    others = {"zero-shot": ZeroShot(*task), "linear-probe": probe}
    return compute_outputs(rrp, tiny_benchmark, seed=4, others=others, negatives=words)


def same(a, b) -> bool:
    return (a is None and b is None) or (a.dtype == b.dtype and torch.equal(a, b))


def test_outputs_are_what_the_method_says(full, task, tiny_benchmark, rrp, probe):
    assert set(full.sets) == {s.name for s in tiny_benchmark.sets}
    for images in tiny_benchmark.sets:
        mine = full.sets[images.name]
        torch.testing.assert_close(mine.features, rrp.features(images.images))
        torch.testing.assert_close(mine.logits, rrp.logits(images.images))
        torch.testing.assert_close(mine.others["linear-probe"], probe.logits(images.images))
        assert mine.role == images.role and same(mine.labels, images.labels) and same(mine.groups, images.groups)
        # The head that was read off gives the logits back, and the cosines are those logits without their scale.
        torch.testing.assert_close(
            mine.features @ mine.head.weight.T + mine.head.bias, mine.logits, rtol=1e-4, atol=1e-4
        )
        torch.testing.assert_close(mine.cosines.float() * mine.head.logit_scale, mine.logits, rtol=1e-4, atol=1e-4)
        assert mine.negative_cosines.shape == (len(images), 2)
    classes = rrp.class_embeddings()
    torch.testing.assert_close(full.test.head.class_embeddings, classes, rtol=1e-4, atol=1e-5)
    about = full.about
    assert (full.method, full.seed, about["alpha"], about["convention"]) == ("rrp", 4, 0.3, "id-positive")
    assert about["benchmark_sha256"] == tiny_benchmark.fingerprint and about["backbone_sha256"] == task[0].fingerprint
    assert about["trained_on"] == tiny_benchmark.train.fingerprint and len(about["negative_words"]["words"]) == 2


def test_a_biased_classifier_has_no_class_embeddings(probe, tiny_benchmark):
    outputs = compute_outputs(probe, tiny_benchmark, seed=1, roles=("test",))
    head = outputs.test.head
    torch.testing.assert_close(head.weight, probe.classifier.weight.detach(), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(head.bias, probe.classifier.bias.detach())
    assert head.class_embeddings is None and outputs.test.cosines is None and outputs.test.negative_cosines is None


def test_logits_that_are_not_linear_have_no_head(task, tiny_benchmark):
    class Curved(ZeroShot):
        def head(self, features):
            return super().head(features) ** 2

    head = compute_outputs(Curved(*task), tiny_benchmark, seed=1, roles=("test",)).test.head
    assert head.weight is None and head.class_embeddings is None


def test_every_encoder_sees_every_image_once(task, tiny_benchmark, tiny_clip, monkeypatch):
    seen = []
    monkeypatch.setattr(
        tiny_clip, "encode", lambda x: seen.append(len(x)) or type(tiny_clip).encode(tiny_clip, x), raising=False
    )
    store, zero_shot = FeatureStore(), ZeroShot(*task)
    compute_outputs(zero_shot, tiny_benchmark, seed=1, store=store, others={"zero-shot": zero_shot})
    compute_outputs(zero_shot, tiny_benchmark, seed=1, store=store)
    assert sum(seen) == sum(map(len, tiny_benchmark.sets))


def test_saved_outputs_come_back_whole(full, tmp_path, tiny_benchmark):
    save_outputs(tmp_path / "o.safetensors", full)
    back = load_outputs(tmp_path / "o.safetensors", tiny_benchmark)
    assert back.about == full.about and list(back.sets) == list(full.sets)
    for name, mine in full.sets.items():
        other = back.sets[name]
        assert (mine.name, mine.role, mine.derived) == (other.name, other.role, other.derived)
        for key in ("features", "logits", "labels", "sources", "groups"):
            assert same(getattr(mine, key), getattr(other, key)), (name, key)
        assert all(same(logits, other.others[k]) for k, logits in mine.others.items()) and len(other.others) == 2
        for key in ("weight", "bias", "negatives"):
            assert same(getattr(mine.head, key), getattr(other.head, key))
        assert mine.head.logit_scale == other.head.logit_scale


def stored_logits(outputs, name="test"):
    return outputs.sets[name].__dict__["logits"]


def test_linear_logits_are_stored_as_what_they_are_computed_of(task, tiny_benchmark, probe, full, tmp_path):
    """A cosine classifier, one with a bias and their fellows: no logits in the file, and the same digits."""
    zero_shot = ZeroShot(*task)
    frozen = compute_outputs(probe, tiny_benchmark, seed=1, others={"zero-shot": zero_shot, "linear-probe": probe})
    for outputs in (frozen, full):
        save_outputs(tmp_path / "o", outputs)
        tensors = load_tensors(tmp_path / "o")[0]
        back = load_outputs(tmp_path / "o")
        assert not any(key.endswith(("/logits", "/others/zero-shot", "/others/linear-probe")) for key in tensors)
        for name, mine in outputs.sets.items():
            assert torch.equal(back.sets[name].logits, mine.logits)
            for other in ("zero-shot", "linear-probe"):
                assert torch.equal(back.sets[name].others[other], mine.others[other])
    # All three classifiers read the same features: they are stored once, and so is each weight.
    save_outputs(tmp_path / "o", frozen)
    tensors = load_tensors(tmp_path / "o")[0]
    assert sum(t.shape == frozen.test.features.shape for k, t in tensors.items() if k.startswith("test/")) == 1
    assert sum(torch.equal(t, stored_logits(frozen).weight) for t in tensors.values()) == 1
    # What was read can be saved again.
    save_outputs(tmp_path / "again", load_outputs(tmp_path / "o"))
    assert torch.equal(load_outputs(tmp_path / "again").test.logits, frozen.test.logits)


def test_logits_that_do_not_follow_to_the_bit_are_stored(task, tiny_benchmark, tmp_path):
    class Rounded(ZeroShot):
        def head(self, features):
            return super().head(features) * (1 + 2.0**-23)

    outputs = compute_outputs(Rounded(*task), tiny_benchmark, seed=1, roles=("test",))
    assert isinstance(stored_logits(outputs), torch.Tensor) and outputs.test.head.weight is not None
    save_outputs(tmp_path / "o", outputs)
    assert torch.equal(stored_logits(load_outputs(tmp_path / "o")), outputs.test.logits)


def test_blocks_of_linear_logits_are_the_logits(task, tiny_benchmark, tmp_path, monkeypatch):
    monkeypatch.setattr("rp_lib.outputs.BLOCK", 1)
    images, labels = tiny_benchmark.test.images.repeat(11, 1, 1, 1), tiny_benchmark.test.labels.repeat(11)
    benchmark = dataclasses.replace(tiny_benchmark, test=ImageSet("test", "test", images, labels))
    save_outputs(tmp_path / "o", compute_outputs(ZeroShot(*task), benchmark, seed=1, roles=("test",)))
    test = load_outputs(tmp_path / "o").test
    sizes = [len(block) for block in test.blocks]
    assert len(sizes) > 1 and set(sizes[:-1]) == {64} and 64 <= sizes[-1] < 128
    assert torch.equal(torch.cat([block.logits for block in test.blocks]), test.logits)


def test_files_of_the_first_format_are_read(full, tmp_path):
    about = {**full.about, "format": "rp_lib outputs 1", "others": []}
    s, head = full.test, full.test.head
    tensors = {f"test/{key}": getattr(s, key) for key in ("features", "logits", "labels", "sources", "groups")}
    tensors |= {"head/weight": head.weight, "head/bias": head.bias}
    about["sets"] = [{"name": "test", "role": "test", "n": len(s), "derived": False, "among": None}]
    save_tensors(tmp_path / "o", tensors, {**about, "sha256": seal(tensors, about)})
    assert torch.equal(load_outputs(tmp_path / "o").test.logits, s.logits)


def test_derived_sets_are_remembered(tmp_path, task, tiny_benchmark):
    test = tiny_benchmark.test
    dark = dataclasses.replace(test, name="dark", role="shift", images=255 - test.images, derived_from="dark")
    benchmark = dataclasses.replace(tiny_benchmark, shifts={"dark": dark})
    save_outputs(tmp_path / "o", compute_outputs(ZeroShot(*task), benchmark, seed=1, roles=("test", "shift")))
    back = load_outputs(tmp_path / "o")
    assert back.shifts["dark"].derived and not back.test.derived


@pytest.mark.parametrize("config", [PAPER, AS_RELEASED], ids=["paper", "as_released"])
def test_records_from_files_are_those_from_the_method(config, tmp_path, task, tiny_benchmark):
    rp = Reprogrammer(*task, config.changed(epochs=1, batch_size=8), precision="float32").fit(tiny_benchmark.train)
    run = Run(ResidualReprogrammer(rp, 0.9), 1)
    expected = evaluate([run], tiny_benchmark, detectors=("msp", "energy"))
    save_outputs(tmp_path / "o", compute_outputs(run.method, tiny_benchmark, seed=1))
    found = evaluate_outputs([load_outputs(tmp_path / "o")], detectors=("msp", "energy"), metrics=RECORDED)
    pd.testing.assert_frame_equal(found, expected)


def test_damaged_files_and_other_kinds_are_refused(full, tmp_path, tiny_benchmark, probe):
    path = tmp_path / "o.safetensors"
    save_outputs(path, full)
    tensors, about = load_tensors(path)
    changed = {k: t.clone() for k, t in tensors.items()}
    changed["test/features"][0, 0] += 1e-3
    save_tensors(tmp_path / "number", changed, about)
    save_tensors(tmp_path / "header", tensors, about | {"seed": 5})
    (tmp_path / "short").write_bytes(path.read_bytes()[:-10])
    for name, error in (("number", "altered"), ("header", "altered"), ("short", "damaged"), ("none", "not exist")):
        with pytest.raises(StorageError, match=error):
            load_outputs(tmp_path / name)
    probe.save(tmp_path / "method")
    with pytest.raises(RPLibError, match="no outputs"):
        load_outputs(tmp_path / "method")
    other = dataclasses.replace(tiny_benchmark, templates=("{}",))
    with pytest.raises(RPLibError, match="another version of the benchmark"):
        load_outputs(path, other)


def test_rows_must_fit():
    ids, nothing = torch.arange(3), torch.zeros(3, 2)
    with pytest.raises(RPLibError, match="logits of zero-shot"):
        Outputs("x", "test", nothing, nothing, ids, ids, ids, None, others={"zero-shot": torch.zeros(2, 2)})
    with pytest.raises(RPLibError, match="labels"):
        Outputs("x", "test", nothing, nothing, ids[:2], ids, ids, None)


def test_two_sets_of_one_name_are_refused(task, tiny_benchmark):
    twin = dataclasses.replace(tiny_benchmark.shifts["emoji"], name="test")
    benchmark = dataclasses.replace(tiny_benchmark, shifts={"emoji": twin})
    with pytest.raises(RPLibError, match="same name"):
        compute_outputs(ZeroShot(*task), benchmark, seed=1)
