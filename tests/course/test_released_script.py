"""The emulated detection script, against the same steps written out by hand."""

import pytest
import torch
from conftest import CLASSES, TEMPLATES, make_clip
from rp_course.experiments.released_script import DetectionScript, half_precision_logits, wrap_to_8_bits
from rp_course.experiments.world import World

from rp_lib.config import PAPER
from rp_lib.detectors import maximum_softmax_probability
from rp_lib.methods import Reprogrammer, ResidualReprogrammer


@pytest.fixture(scope="module")
def clip():
    return make_clip()


@pytest.fixture(scope="module")
def world(clip, tiny_benchmark):
    return World(tiny_benchmark, {}, (1,), clip=clip, progress=False)


@pytest.fixture(scope="module")
def rp(clip, tiny_benchmark):
    config = PAPER.changed(epochs=1, batch_size=8, text_lr=0.05, image_lr=0.1)
    return Reprogrammer(clip, CLASSES, TEMPLATES, config, precision="float32").fit(tiny_benchmark.train)


def test_bytes_wrap_around():
    values = torch.tensor([-2.0, -0.001, 0.0, 0.5, 1.0, 1.5])
    assert wrap_to_8_bits(values).tolist() == [2, 0, 0, 127, 255, 126]


@pytest.mark.parametrize("alpha", [None, 0.25], ids=["rp", "rrp"])
def test_wrapped_pictures_are_scored_and_clean_ones_counted(alpha, rp, world, clip, tiny_benchmark):
    method = rp if alpha is None else ResidualReprogrammer(rp, alpha)
    test = DetectionScript(wrap=True)(world, method, 1, tiny_benchmark).test
    images = tiny_benchmark.test.images
    assert torch.equal(test.reported, method.logits(images))
    wrapped = (clip.normalize(clip.prepare(images)) * 255).trunc().remainder(256) / 255
    with torch.no_grad():
        features = clip.encode_pixels(rp.image_program(wrapped))
        if alpha is not None:  # the untouched half sees the wrapped picture too
            features = method.mix_features(features, clip.encode_pixels(wrapped))
    torch.testing.assert_close(test.logits, method.head(features), atol=1e-3, rtol=1e-4)
    assert not torch.allclose(test.logits, test.reported, atol=1e-2)


def test_half_precision_ties_sure_pictures_at_one(rp, world, tiny_benchmark):
    logits = torch.tensor([[20.0, 0.0, 0.0], [30.0, 0.0, 0.0], [1.0, 0.0, 0.5], [0.2, 0.3, 0.1]])
    found = maximum_softmax_probability(half_precision_logits(logits))
    by_hand = logits.half().double().softmax(1).amax(1).half().double().numpy()
    assert found == pytest.approx(by_hand, abs=1e-6) and (found == 1).sum() == 2
    assert (maximum_softmax_probability(logits) == 1).sum() == 0
    assert torch.equal(half_precision_logits(logits).argmax(1), logits.argmax(1))
    test = DetectionScript(half=True)(world, rp, 1, tiny_benchmark).test
    assert torch.equal(test.reported, rp.logits(tiny_benchmark.test.images)) and not torch.equal(test.logits, test.reported)


def test_rps_accuracy_stands_in_the_residuals_column(rp, world, tiny_benchmark):
    rrp, images = ResidualReprogrammer(rp, 0.9), tiny_benchmark.test.images
    test = DetectionScript(rp_accuracy=True)(world, rrp, 1, tiny_benchmark).test
    assert torch.equal(test.reported, rp.logits(images)) and torch.equal(test.logits, rrp.logits(images))
