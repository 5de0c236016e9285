"""What each method's images are compared with for classes that the task never named."""

import pytest
import torch

from rp_lib.config import PAPER
from rp_lib.methods import METHODS, build_method

QUICK = PAPER.changed(epochs=1, padding=2 / 32, text_lr=0.05, border_init="white", warmup_steps=0)
SETTINGS = {
    "rp": {"config": QUICK}, "rrp": {"config": QUICK.changed(alpha=0.5)}, "coop": {"epochs": 1, "n_context": 2, "lr": 0.1},
    "flyp": {"epochs": 1, "lr": 1e-2}, "fine-tune": {"epochs": 1}, "linear-probe": {"epochs": 1},
    "rp-text": {"config": QUICK.changed(use_image_program=False)}, "zero-shot": {},
    "rp-image": {"config": QUICK.changed(use_text_program=False)}, "attr-vr": {"config": QUICK}, "maple": {"epochs": 1, "n_prompts": 1},
    "zs-lp": {"epochs": 1}, "task-res": {"epochs": 1}, "clap": {"epochs": 1}, "tip-adapter": {},
    "clip-lora": {"epochs": 1, "lr": 1e-2}, "lipsum-ft": {"epochs": 1}, "locoop": {"epochs": 1, "n_context": 2},
    "tip-adapter-f": {"epochs": 1}, "l2-sp": {"epochs": 1}, "lp-ft": {"epochs": 1}, "wise-ft": {"epochs": 1}, "logit-ensemble": {"epochs": 1},
}  # fmt: skip
OTHERS = ("tree", "old boat")


def test_every_method_is_tested():
    assert set(SETTINGS) == set(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_of_the_tasks_own_names_they_are_the_classifier(name, tiny_clip, tiny_benchmark):
    templates = tiny_benchmark.templates[:1]  # CoOp knows one
    method = build_method(name, tiny_clip, tiny_benchmark.class_names, templates, SETTINGS[name])
    method.fit(tiny_benchmark.train)
    words = method.encode_classes(tiny_benchmark.class_names)
    features = method.mix_features(*(e.encode(tiny_benchmark.test.images).detach() for e in method.encoders))
    assert words.shape == (3, features.shape[1])
    torch.testing.assert_close(words.norm(dim=1), torch.ones(3))
    if name not in ("zero-shot", "rp", "rrp", "rp-image", "rp-text", "coop", "locoop", "maple", "flyp", "clip-lora"):  # a head beside the text
        plain = tiny_clip.class_embeddings(tiny_benchmark.class_names, templates)
        torch.testing.assert_close(words @ words.T, plain @ plain.T)
        return
    logits = method.head(features)
    scale = logits.norm() / (features @ words.T).norm()
    torch.testing.assert_close(logits, scale * features @ words.T, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("name", ["rp", "rrp", "coop", "locoop", "flyp", "maple", "rp-text", "clip-lora"])
def test_other_words_go_through_what_was_trained(name, tiny_clip, tiny_benchmark):
    templates = tiny_benchmark.templates[:1]
    method = build_method(name, tiny_clip, tiny_benchmark.class_names, templates, SETTINGS[name])
    before = tiny_clip.class_embeddings(OTHERS, templates)
    method.fit(tiny_benchmark.train)
    after = method.encode_classes(OTHERS)
    assert (after - before).abs().max() > 1e-3
    torch.testing.assert_close(method.encode_classes(OTHERS[1:]), after[1:], atol=1e-5, rtol=1e-5)
