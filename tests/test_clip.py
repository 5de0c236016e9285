import json
import logging
from pathlib import Path

import open_clip
import pytest
import torch
from conftest import CLASSES, TEMPLATES, make_clip, model_hash
from open_clip.zero_shot_classifier import build_zero_shot_classifier

from rp_lib.clip import FrozenCLIP, check_images, resize, to_unit_range
from rp_lib.methods import ZeroShot
from rp_lib.utils.errors import RPLibError, UnknownName

RESNET = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 16, "head_width": 32, "patch_size": None}
TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 32, "layers": 1, "head_width": 16},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1},
}


def test_class_embeddings_are_open_clips(clip: FrozenCLIP):
    templates = [*TEMPLATES, "an icon of {}, the best of all"]
    theirs = build_zero_shot_classifier(clip.model, clip.tokenizer, CLASSES, templates).T
    ours = clip.class_embeddings(CLASSES, templates)
    assert ours.shape == (len(CLASSES), clip.embed_dim) and ours.dtype == torch.float32
    assert (ours - theirs).abs().max() < 1e-5
    assert (ours.norm(dim=1) - 1).abs().max() < 1e-6
    assert (ours - clip.class_embeddings(CLASSES, TEMPLATES)).abs().max() > 1e-3
    assert (ours[0] - ours[1]).abs().max() > 1e-3


@pytest.mark.parametrize("vision", [None, RESNET])
def test_image_features_are_open_clips(vision, images: torch.Tensor):
    clip = make_clip(vision=vision)
    pixels = images.float() / 255
    scaled = torch.nn.functional.interpolate(pixels, (32, 32), mode="bicubic", antialias=True, align_corners=False)
    mean, std = torch.tensor([0.5, 0.45, 0.4]).view(3, 1, 1), torch.tensor([0.25, 0.25, 0.3]).view(3, 1, 1)
    with torch.no_grad():
        theirs = clip.model.encode_image((scaled.clamp(0, 1) - mean) / std, normalize=True)
        assert (clip.encode(pixels) - theirs).abs().max() < 1e-5
        assert (clip.encode(images) - theirs).abs().max() < 0.01  # bytes are resized to whole grey levels
        for shape in ((32, 32), (50, 50)):
            assert clip.encode(torch.rand(2, 3, *shape)).shape == (2, clip.embed_dim)


def test_what_it_knows(clip: FrozenCLIP):
    assert clip.logit_scale == pytest.approx(1 / 0.07)
    assert (clip.image_size, clip.embed_dim) == (32, 32)
    assert not any(p.requires_grad for p in clip.model.parameters()) and not clip.model.training
    assert clip.tokenize(["a", "b"]).shape == (2, 16)


def test_fingerprint_tells_models_apart(clip: FrozenCLIP):
    assert clip.fingerprint == make_clip().fingerprint
    others = [make_clip(1), make_clip(mean=0.51), make_clip(std=0.26), make_clip(quick_gelu=True)]
    assert len({clip.fingerprint, *(c.fingerprint for c in others)}) == 5


def test_gradients_reach_the_pixels_only(clip: FrozenCLIP):
    pixels = torch.rand(2, 3, 32, 32, requires_grad=True)
    clip.encode_pixels(pixels)[:, 0].sum().backward()
    assert pixels.grad is not None and pixels.grad.abs().sum() > 0
    assert all(p.grad is None for p in clip.model.parameters())


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.zeros(3, 8, 8), r"\(n, 3, height, width\), got \(3, 8, 8\)"),
        (torch.zeros(2, 8, 8, 3), r"\(n, 3, height, width\)"),
        (torch.zeros(2, 1, 8, 8), r"\(n, 3, height, width\)"),
        ([[1, 2]], "got list"),
        (torch.zeros(2, 3, 0, 8), "0 x 8 pixels"),
        (torch.zeros(2, 3, 8, 50), "8 x 50 pixels would be squeezed into a square.*rp_lib.predict"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.int64), "got torch.int64"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.bool), "got torch.bool"),
        (torch.full((2, 3, 8, 8), 1.01), r"in \[0, 1\].*raw pixels"),
        (torch.full((2, 3, 8, 8), -0.01), r"in \[0, 1\]"),
        (torch.zeros(2, 3, 8, 8).index_fill(0, torch.tensor(1), torch.nan), "finite"),
        (torch.zeros(2, 3, 8, 8).index_fill(3, torch.tensor(1), torch.inf), "finite"),
    ],
)
def test_bad_images(clip: FrozenCLIP, bad, message: str):
    for use in (check_images, clip.encode):
        with pytest.raises(RPLibError, match=message):
            use(bad)


def test_units_and_sizes():
    grey = torch.tensor([0, 51, 255], dtype=torch.uint8)
    assert to_unit_range(grey).tolist() == pytest.approx([0, 0.2, 1])
    sharp = torch.zeros(1, 3, 8, 8)
    sharp[..., ::2] = 1
    assert resize(sharp, 8) is sharp
    large = resize(sharp, 33)
    assert large.shape == (1, 3, 33, 33) and large.min() >= 0 and large.max() <= 1
    assert resize(sharp, 4).std() < 0.2  # antialiased: stripes become grey


# open_clip's registry -----------------------------------------------------------------------------------


@pytest.fixture
def registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``tiny-test`` and its QuickGELU twin among open_clip's models, and a file with weights."""
    from open_clip import factory

    monkeypatch.setattr(factory, "_MODEL_CONFIG_PATHS", list(factory._MODEL_CONFIG_PATHS))
    monkeypatch.setattr(factory, "_MODEL_CONFIGS", dict(factory._MODEL_CONFIGS))
    for name, quick in (("tiny-test", False), ("tiny-test-quickgelu", True)):
        (tmp_path / f"{name}.json").write_text(json.dumps(TINY | {"quick_gelu": quick}))
        open_clip.add_model_config(tmp_path / f"{name}.json")
    torch.manual_seed(3)
    torch.save(open_clip.create_model("tiny-test").state_dict(), tmp_path / "weights.pt")
    return tmp_path / "weights.pt"


def test_open_clip_local_file(registered: Path, images: torch.Tensor):
    clip = FrozenCLIP.open_clip("tiny-test", registered)
    assert clip.name == "tiny-test/weights.pt" and clip.image_size == 32
    reference = open_clip.create_model("tiny-test", pretrained=str(registered)).eval()
    assert model_hash(clip.model) == model_hash(reference)
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD))
    with torch.no_grad():
        theirs = reference.encode_image((pixels - mean) / std, normalize=True)
        assert (clip.encode(pixels) - theirs).abs().max() < 1e-5
        text = clip.tokenize(["a cat"])
        assert text.shape == (1, 12)
        assert (clip.encode_tokens(text) - reference.encode_text(text, normalize=True)).abs().max() < 1e-5


def test_open_clip_random_weights(registered: Path):
    assert FrozenCLIP.open_clip("tiny-test", None).name == "tiny-test/random"


def test_openai_weights_get_quick_gelu(
    registered: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    real, asked = open_clip.create_model, []
    monkeypatch.setattr(open_clip, "list_pretrained_tags_by_model", lambda _: ["openai"])

    def create(name: str, pretrained: str | None = None, **options: object):
        asked.append((name, pretrained))
        return real(name, pretrained=str(registered), device="cpu")

    monkeypatch.setattr(open_clip, "create_model", create)
    with caplog.at_level(logging.WARNING):
        clip = FrozenCLIP.open_clip("tiny-test", "openai")
    assert asked == [("tiny-test-quickgelu", "openai")] and "QuickGELU" in caplog.text
    assert any(type(m).__name__ == "QuickGELU" for m in clip.model.modules())
    assert clip.name == "tiny-test-quickgelu/openai"
    # The same file under the wrong activation is another model, and says so.
    assert clip.fingerprint != FrozenCLIP.open_clip("tiny-test", registered, force_quick_gelu=False).fingerprint


def test_real_names_have_the_twin():
    assert {"ViT-B-32", "ViT-B-32-quickgelu", "RN50-quickgelu"} <= set(open_clip.list_models())


def test_unknown_names(registered: Path, tmp_path: Path):
    with pytest.raises(UnknownName, match=r"open_clip model 'ViT-B32'; did you mean .*ViT-B-32"):
        FrozenCLIP.open_clip("ViT-B32", None)
    with pytest.raises(UnknownName, match=r"did you mean .*laion2b_s34b_b79k"):
        FrozenCLIP.open_clip("ViT-B-32", "laion2b_s34b_b79")
    with pytest.raises(UnknownName, match="weight file"):
        FrozenCLIP.open_clip("tiny-test", tmp_path / "missing.pt")
    (tmp_path / "broken.pt").write_bytes(registered.read_bytes()[:1000])
    with pytest.raises(RPLibError, match=r"broken\.pt is damaged or holds no weights .*download it again"):
        FrozenCLIP.open_clip("tiny-test", tmp_path / "broken.pt")


@pytest.mark.parametrize(
    "names", [("Cat", "cat"), ("hot dog", "hot  dog"), ("hot dog", "hot_dog"), ("cat", " CAT "), ("\uff43at", "cat")]
)
def test_names_that_differ_in_nothing_to_see_are_refused(own_clip: FrozenCLIP, names):
    vocabulary = {}  # a tokenizer that tells case and blanks apart, as those of multilingual towers do
    own_clip.tokenizer = lambda texts: torch.tensor([[1, 2 + vocabulary.setdefault(t, len(vocabulary))] for t in texts])
    for templates in (["a {}"], ["a {}", "the {}"]):
        with pytest.raises(RPLibError, match="give the same prompt"):
            own_clip.check_prompts(names, templates)
    own_clip.check_prompts(["hot dog", "hot-dog", "C", "C++", "cat", "cats"], ["a {}"])  # of these each means another
    own_clip.check_prompts(["missile", "missile "], ["a {}"])  # as ImageNet's released names repeat a class


def test_classes_with_the_same_features_are_named(own_clip: FrozenCLIP, caplog):
    own_clip.check_prompts(CLASSES, TEMPLATES)
    own_clip.class_embeddings(CLASSES, TEMPLATES)
    assert not caplog.records
    # A model that knows none of the words: all rows of the vocabulary are alike.
    own_clip.model.token_embedding.weight[:] = own_clip.model.token_embedding.weight[:1].clone()
    own_clip.class_embeddings(["sloth", "okapi"], ["a {}"])  # words of no task, such as negative labels, are not compared
    assert not caplog.records
    method = ZeroShot(own_clip, ["sloth", "okapi", "gnu"], ["a {}"])
    (said,) = [r.getMessage() for r in caplog.records]
    assert "the classes 'okapi' and 'gnu' the same text features" in said
    ZeroShot(own_clip, ["sloth", "okapi", "gnu"], ["a {}"]).logits(torch.zeros(1, 3, 32, 32))
    assert len(caplog.records) == 1 and method.class_names[0] == "sloth"  # once
