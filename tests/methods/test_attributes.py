"""AttrVR against a loop over images, classes and texts, and against CLIP's own classification."""

import pytest
import torch
import torch.nn.functional as F
from conftest import CLASSES

from rp_lib.benchmark import ImageSet
from rp_lib.clip import FrozenCLIP
from rp_lib.config import PAPER
from rp_lib.methods import AttrVR, load_method
from rp_lib.utils.errors import RPLibError

PHOTO = ("a photo of a {}.",)
QUICK = PAPER.changed(epochs=2, batch_size=8, image_lr=0.05)
DESCRIPTIVE = {c: [f"a {c} is seen", f"a {c} has a shape", f"parts of a {c}", f"{c}s"] for c in CLASSES}
DISTINCTIVE = {c: [f"only a {c}", f"a {c} and nothing else", *[f"this is a {c}"] * (c == CLASSES[0])] for c in CLASSES}


def make(clip: FrozenCLIP, **more: object) -> AttrVR:
    settings = {"descriptive": DESCRIPTIVE, "distinctive": DISTINCTIVE, "precision": "float32"}
    return AttrVR(clip, CLASSES, PHOTO, QUICK, **(settings | more))


def test_a_class_counts_by_its_nearest_texts(clip: FrozenCLIP, train_set: ImageSet):
    method = make(clip, nearest=3, balance=0.7).fit(train_set)
    features = method.encode(train_set.images[:5]).detach().cpu()
    by_hand = torch.zeros(5, len(CLASSES))
    for i, feature in enumerate(features):
        for c, name in enumerate(CLASSES):
            for weight, kind in ((0.7, DESCRIPTIVE), (0.3, DISTINCTIVE)):
                texts = [clip.encode_tokens(clip.tokenize([text]))[0].detach().cpu() for text in kind[name]]
                cosines = sorted((float(feature @ text) for text in texts), reverse=True)[:3]
                by_hand[i, c] += weight * clip.logit_scale * sum(cosines) / len(cosines)
    torch.testing.assert_close(method.logits(train_set.images[:5]), by_hand, atol=2e-3, rtol=1e-4)
    method.set_training(True)
    loss = float(method.loss(train_set.images[:5], train_set.labels[:5]).detach())
    assert loss == pytest.approx(float(F.cross_entropy(by_hand, train_set.labels[:5])), abs=2e-3)


def test_all_weight_on_one_kind_drops_the_other(clip: FrozenCLIP, images: torch.Tensor):
    swapped = make(clip, descriptive=DISTINCTIVE, distinctive=DESCRIPTIVE, balance=0.0)
    torch.testing.assert_close(make(clip, balance=1.0).logits(images), swapped.logits(images))
    torch.testing.assert_close(make(clip, distinctive=None).logits(images), swapped.logits(images))


def test_without_texts_the_templates_count(clip: FrozenCLIP, images: torch.Tensor):
    method = make(clip, descriptive=None, distinctive=None)
    expected = clip.logit_scale * method.features(images) @ clip.class_embeddings(CLASSES, PHOTO).cpu().T
    torch.testing.assert_close(method.logits(images), expected, atol=1e-4, rtol=1e-4)


def test_texts_are_saved_with_it(clip: FrozenCLIP, train_set: ImageSet, images: torch.Tensor, tmp_path):
    texts = {c: tuple(t) for c, t in DESCRIPTIVE.items()} | {"another class": ("a thing",)}
    method = make(clip, descriptive=texts, nearest=2).fit(train_set)
    method.save(tmp_path / "attr.safetensors")
    again = load_method(tmp_path / "attr.safetensors", clip)
    assert torch.equal(again.logits(images), method.logits(images)) and again.metadata() == method.metadata()
    assert again.descriptive == DESCRIPTIVE


def test_bad_input_is_refused(clip: FrozenCLIP):
    for wrong in ({"nearest": 0}, {"balance": 1.5}, {"balance": float("nan")}):
        with pytest.raises(RPLibError, match=r"(nearest|balance) of AttrVR must be"):
            make(clip, **wrong)
    for texts in ({}, {CLASSES[0]: ["a text"]}, DESCRIPTIVE | {CLASSES[1]: "a text"}, DESCRIPTIVE | {CLASSES[1]: [" "]}):
        with pytest.raises(RPLibError, match=r"needs a list of texts|descriptive of AttrVR must be Mapping"):
            make(clip, descriptive=texts)
