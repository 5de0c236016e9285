import dataclasses
import json
import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from conftest import CLASSES, TEMPLATES, make_clip, make_model, make_set, model_hash
from open_clip.model import CLIP, CustomTextCLIP
from open_clip.tokenizer import SimpleTokenizer
from open_clip.zero_shot_classifier import build_zero_shot_classifier
from PIL import Image, ImageFilter
from safetensors.torch import save_file
from torch import nn

from rp_lib import backbones
from rp_lib.backbones import load_backbone
from rp_lib.benchmark import Benchmark, ImageSet
from rp_lib.clip import FrozenCLIP, resize
from rp_lib.config import PAPER
from rp_lib.data.pixel_cache import load_images, to_square
from rp_lib.features import encode_all
from rp_lib.methods import FineTune, Reprogrammer, ZeroShot, load_method
from rp_lib.outputs import compute_outputs
from rp_lib.prediction import predict
from rp_lib.towers import text_part, vision_part
from rp_lib.utils.errors import RPLibError
from rp_lib.utils.preparation import Preparation

CONTEXT = 12
TEXT = {"context_length": CONTEXT, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1}
VISION = {"image_size": 32, "patch_size": 16, "width": 32, "layers": 1, "head_width": 16}
TINY = {"embed_dim": 16, "vision_cfg": VISION, "text_cfg": TEXT}
CONVNEXT = {"timm_model_name": "convnext_atto"}
RESNET = {"image_size": 32, "layers": (1, 2, 1, 1), "width": 16, "head_width": 32, "patch_size": None}


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``tiny`` with a QuickGELU twin and ``lonely`` without one, among open_clip's models."""
    from open_clip import factory

    monkeypatch.setattr(factory, "_MODEL_CONFIG_PATHS", list(factory._MODEL_CONFIG_PATHS))
    monkeypatch.setattr(factory, "_MODEL_CONFIGS", dict(factory._MODEL_CONFIGS))
    for name, quick in (("tiny", False), ("tiny-quickgelu", True), ("lonely", False)):
        (tmp_path / f"{name}.json").write_text(json.dumps(TINY | {"quick_gelu": quick}))
        open_clip.add_model_config(tmp_path / f"{name}.json")
    return tmp_path


def state(seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return open_clip.create_model("tiny").state_dict()


def frozen(model: nn.Module, size: int = 32, **options: object) -> FrozenCLIP:
    return FrozenCLIP(
        model, SimpleTokenizer(context_length=CONTEXT), name="x", mean=(0.5, 0.45, 0.4), std=(0.25, 0.25, 0.3),
        image_size=size, **options,
    )  # fmt: skip


def is_quick(clip: FrozenCLIP) -> bool:
    return any(type(m).__name__ == "QuickGELU" for m in clip.model.modules())


# OpenAI's weights, whichever way they come ---------------------------------------------------------------


def openai_file(folder: Path) -> Path:
    """As OpenAI's state dict is: half precision, and three numbers beside the weights."""
    weights = {k: v.half() for k, v in state().items()}
    weights |= {"input_resolution": torch.tensor(32), "context_length": torch.tensor(12), "vocab_size": torch.tensor(9)}
    torch.save(weights, folder / "ViT.pt")
    save_file(weights, folder / "ViT.safetensors")
    return folder / "ViT.pt"


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("name", ["tiny", "tiny-quickgelu", "lonely"])
def test_openais_own_file_gets_quick_gelu(names: Path, name: str, suffix: str, caplog: pytest.LogCaptureFixture):
    path = openai_file(names).with_suffix(suffix)
    with caplog.at_level(logging.WARNING, "rp_lib"):
        clip = FrozenCLIP.open_clip(name, path)
    assert is_quick(clip)
    assert ("was trained with QuickGELU" in caplog.text) is (name != "tiny-quickgelu")
    assert clip.name == ("lonely" if name == "lonely" else "tiny-quickgelu") + f"/ViT{suffix}"
    reference = open_clip.create_model("tiny-quickgelu").eval()
    reference.load_state_dict({k: v.half().float() for k, v in state().items()})
    assert model_hash(clip.model) == model_hash(reference)
    images = make_set(3).images
    with torch.no_grad():
        theirs = reference.encode_image(clip.normalize(clip.prepare(images)), normalize=True)
    assert (clip.encode(images) - theirs).abs().max() < 1e-6


def test_openais_file_of_another_size_is_refused(names: Path):
    path = openai_file(names)
    weights = torch.load(path, weights_only=True)
    torch.save(weights | {"text_projection": torch.zeros(16, 8)}, path)
    with pytest.raises(RPLibError, match=r"(?s)ViT\.pt are not those of tiny-quickgelu: .*text_projection"):
        FrozenCLIP.open_clip("tiny", path)


def test_a_file_that_runs_code_is_refused(names: Path):
    torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)).save(str(names / "ViT-B-32.pt"))
    with pytest.raises(RPLibError, match=r"TorchScript archive.*runs code.*torch\.jit\.load\('ViT-B-32\.pt'"):
        FrozenCLIP.open_clip("tiny", names / "ViT-B-32.pt")


def test_a_pickle_is_not_executed(names: Path, tmp_path: Path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "pwned"),)

    torch.save({"state_dict": Evil()}, names / "evil.pt")
    with pytest.raises(RPLibError, match="Python objects besides tensors"):
        FrozenCLIP.open_clip("tiny", names / "evil.pt")
    assert not (tmp_path / "pwned").exists()


def test_half_precision_numbers_raise_suspicion(names: Path, caplog: pytest.LogCaptureFixture):
    torch.save({k: v.half() for k, v in state().items()}, names / "half.pt")
    torch.save(state(), names / "full.pt")
    for name, file, warned in (("tiny", "half", 1), ("tiny", "full", 0), ("tiny-quickgelu", "half", 0)):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "rp_lib"):
            clip = FrozenCLIP.open_clip(name, names / f"{file}.pt")
        assert caplog.text.count("load tiny-quickgelu instead") == warned and is_quick(clip) is (name != "tiny")


@pytest.mark.parametrize("tower", ["image", "text"])
def test_a_tower_that_was_left_as_openai_released_it_raises_suspicion(names: Path, tower: str, caplog):
    mixed = {k: v.half().float() if k.startswith("visual.") == (tower == "image") else v for k, v in state().items()}
    torch.save(mixed, names / "mixed.pt")
    with caplog.at_level(logging.WARNING, "rp_lib"):
        FrozenCLIP.open_clip("tiny", names / "mixed.pt")
    assert f"every weight matrix of the {tower} tower" in caplog.text and "load tiny-quickgelu instead" in caplog.text


FORMS = {
    "plain": lambda s: s,
    "half": lambda s: {k: v.half() for k, v in s.items()},
    "open_clip training, a numpy number beside it": lambda s: {"epoch": 1, "best": np.float64(0.3), "state_dict": s},
    "numbers of several kinds": lambda s: {"model": s, "best": np.float32(1), "steps": np.int64(3), "done": np.True_},
    "DistributedDataParallel": lambda s: {f"module.{k}": v for k, v in s.items()},
    "torch.compile": lambda s: {f"_orig_mod.{k}": v for k, v in s.items()},
    "both": lambda s: {"model_state_dict": {f"module._orig_mod.{k}": v for k, v in s.items()}},
    "Lightning, with a metric's buffer": lambda s: {
        "state_dict": {**{f"model.{k}": v for k, v in s.items()}, "accuracy.total": torch.zeros(1)}, "loops": {}
    },
    "own class around it": lambda s: {"net": {f"clip_model.{k}": v for k, v in s.items()}},
    "with a logit bias": lambda s: {**s, "logit_bias": torch.tensor(-10.0)},
    "a logit scale of one element": lambda s: {**s, "logit_scale": s["logit_scale"].reshape(1)},
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_weights_load_in_the_forms_that_people_have(names: Path, form: str, caplog):
    torch.save(FORMS[form](state()), names / "w.pt")
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        clip = FrozenCLIP.open_clip("tiny-quickgelu" if form == "half" else "tiny", names / "w.pt")
    assert "initialized randomly" not in caplog.text
    for key, value in state().items():
        expected = value.half().float() if form == "half" else value
        torch.testing.assert_close(clip.model.state_dict()[key], expected.reshape(clip.model.state_dict()[key].shape))


@pytest.mark.parametrize("suffix", [".pt", ".bin"])
def test_openais_buffers_behind_a_prefix_still_mean_quick_gelu(names: Path, suffix: str):
    extra = dict.fromkeys(("input_resolution", "context_length", "vocab_size"), torch.tensor(32))
    torch.save({"state_dict": {f"module.{k}": v for k, v in {**state(), **extra}.items()}}, names / f"w{suffix}")
    assert is_quick(FrozenCLIP.open_clip("tiny", names / f"w{suffix}"))


def test_refusals_say_what_the_file_is_and_what_to_do(names: Path):
    lacking = {k: v for k, v in state().items() if "attn" not in k}
    for write, message in (
        (lambda p: p.write_bytes(b""), "is empty: download it again"),
        (lambda p: p.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), "run `git lfs pull`"),
        (lambda p: p.write_bytes(b"<html>not found</html>"), "download it again|tensors"),
        (lambda p: torch.save(open_clip.create_model("tiny"), p), r"save `model.state_dict\(\)` instead"),
        (lambda p: torch.save([1, 2], p), "a state dict of tensors by name is needed"),
        (lambda p: torch.save({"epoch": 3}, p), "a state dict of tensors by name is needed"),
        (lambda p: torch.save(lacking, p), r"not those of tiny: 8 missing \(.*, \.\.\.\)"),
        (lambda p: torch.save({**state(), "extra": torch.zeros(1)}, p), r"not those of tiny: 1 unknown \(extra\)"),
    ):  # fmt: skip
        write(names / "w.pt")
        with pytest.raises(RPLibError, match=message) as raised:
            FrozenCLIP.open_clip("tiny", names / "w.pt")
        said = str(raised.value)
        assert len(said) < 500 and "weights_only" not in said and "local checkpoint" not in said


@pytest.fixture
def published(names: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that open_clip knows of: one tag of ``tiny``, and two of ``lonely`` that want different pictures."""
    from open_clip import pretrained

    siglip = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "interpolation": "bilinear", "resize_mode": "squash"}
    table = dict(pretrained._PRETRAINED)
    table["tiny"] = {"web_v1": {"url": "", "hf_hub": "", **siglip}}
    table["lonely"] = {"laion_a": {"url": ""}, "web_v1": {"url": "", "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}}
    monkeypatch.setattr(pretrained, "_PRETRAINED", table)


def test_a_local_file_is_prepared_as_the_published_weights(names: Path, published, caplog):
    torch.save(state(), names / "weights.pt")
    clip = FrozenCLIP.open_clip("tiny", names / "weights.pt")
    assert clip._mean.flatten().tolist() == clip._std.flatten().tolist() == [0.5] * 3
    assert clip.preparation == Preparation(32, "bilinear", "squash")
    forced = FrozenCLIP.open_clip("tiny", names / "weights.pt", force_preprocess_cfg={"mean": (0.2, 0.2, 0.2)})
    assert forced._mean.flatten().tolist() == pytest.approx([0.2] * 3) and forced.preparation == Preparation(32)
    assert forced.fingerprint != clip.fingerprint
    caplog.clear()
    with caplog.at_level(logging.WARNING, "rp_lib"):
        unsaid = FrozenCLIP.open_clip("lonely", names / "weights.pt")
    assert "does not say which" in caplog.text and "laion_a" in caplog.text and "web_v1" in caplog.text
    assert unsaid._mean.flatten().tolist() == pytest.approx(open_clip.OPENAI_DATASET_MEAN)
    (names / "weights.pt").rename(names / "lonely-web_v1-epoch3.pt")
    caplog.clear()
    with caplog.at_level(logging.WARNING, "rp_lib"):
        named = FrozenCLIP.open_clip("lonely", names / "lonely-web_v1-epoch3.pt")
    assert not caplog.records and named._mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])


def test_the_fingerprint_covers_the_resizing_and_is_what_it_was_for_clips_own(clip: FrozenCLIP):
    prints = {}
    for interpolation in ("bicubic", "bilinear"):
        for mode in ("shortest", "squash"):
            made = make_clip()
            made.preparation = Preparation(32, interpolation, mode)
            prints[interpolation, mode] = made.fingerprint
    assert len(set(prints.values())) == 4 and prints["bicubic", "shortest"] == clip.fingerprint


def test_the_activation_of_a_local_file_is_the_published_one(names: Path, published, monkeypatch, caplog):
    from open_clip import pretrained

    table = {**pretrained._PRETRAINED, "lonely": {"laion_a": {"url": ""}, "meta_q": {"url": "", "quick_gelu": True}}}
    monkeypatch.setattr(pretrained, "_PRETRAINED", table)
    for file, quick, said in (
        ("w.pt", False, "two activations"), ("my-laion_a.pt", False, ""), ("my-meta_q.pt", True, "as meta_q"),
    ):  # fmt: skip
        torch.save(state(), names / file)
        caplog.clear()
        with caplog.at_level(logging.WARNING, "rp_lib"):
            clip = FrozenCLIP.open_clip("lonely", names / file)
        assert is_quick(clip) is quick and (said in caplog.text if said else not caplog.records)
    assert is_quick(FrozenCLIP.open_clip("lonely", names / "w.pt", force_quick_gelu=True))
    torch.save({key: value.half() for key, value in state().items()}, names / "half-laion_a.pt")
    monkeypatch.setitem(table, "tiny", table["lonely"])
    caplog.clear()
    with caplog.at_level(logging.WARNING, "rp_lib"):
        assert not is_quick(FrozenCLIP.open_clip("tiny", names / "half-laion_a.pt"))
    assert not caplog.records  # the tag says more than the precision


def test_a_configuration_next_to_a_file_decides(names: Path, published, caplog):
    folder = names / "download"
    folder.mkdir()
    torch.save(state(), folder / "web_v1.pt")
    about = {"model_cfg": {"quick_gelu": True}, "preprocess_cfg": {"mean": [0.1] * 3, "resize_mode": "squash"}}
    (folder / "open_clip_config.json").write_text(json.dumps(about))
    clip = FrozenCLIP.open_clip("lonely", folder / "web_v1.pt")
    assert is_quick(clip) and clip.preparation == Preparation(32, resize_mode="squash")
    assert clip._mean.flatten().tolist() == pytest.approx([0.1] * 3)
    (folder / "open_clip_config.json").write_text("{")
    with pytest.raises(RPLibError, match=r"open_clip_config\.json is no JSON"):
        FrozenCLIP.open_clip("lonely", folder / "web_v1.pt")


def test_weights_that_nobody_published_are_said(names: Path, caplog):
    torch.save(state(), names / "w.pt")
    with caplog.at_level(logging.WARNING, "rp_lib"):
        FrozenCLIP.open_clip("tiny-quickgelu", names / "w.pt")
    assert "no weights of tiny-quickgelu are published" in caplog.text and "force_preprocess_cfg" in caplog.text


def test_a_missing_package_is_said_before_anything_is_built(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RPLibError, match=r"ViT-H-14-worldwide reads texts as .*xlm.* 'rp-lib\[hugging-face\]'"):
        FrozenCLIP.open_clip("ViT-H-14-worldwide", "metaclip2_worldwide")


@pytest.mark.parametrize("how", [{}, {"resize_mode": "squash"}, {"interpolation": "bilinear"}])
@pytest.mark.parametrize("shape", [(50, 80), (81, 40), (32, 32), (20, 24)])
def test_pictures_are_prepared_as_open_clip_prepares_them(how: dict, shape: tuple[int, int]):
    from open_clip.transform import PreprocessCfg, image_transform_v2

    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels).resize(shape[::-1]).filter(ImageFilter.GaussianBlur(1))
    config = PreprocessCfg(size=32, mean=(0, 0, 0), std=(1, 1, 1), **how)
    theirs = (image_transform_v2(config, is_train=False)(picture) * 255).round().int()
    ours = torch.from_numpy(to_square(picture.copy(), Preparation(32, **how))).int()
    assert (ours - theirs).abs().max() <= 1


@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
@pytest.mark.parametrize("side", [7, 20, 45, 100])
def test_tensors_of_bytes_are_resized_as_open_clip_resizes_files(side, mode):
    from open_clip.transform import PreprocessCfg, image_transform_v2

    pixels = np.random.default_rng(side).integers(0, 256, (side, side, 3), dtype=np.uint8)
    clip = frozen(make_model(text={"context_length": CONTEXT}))
    clip.preparation = Preparation(32, mode)
    ours = clip.prepare(torch.from_numpy(pixels).permute(2, 0, 1)[None])[0] * 255
    config = PreprocessCfg(size=32, mean=(0, 0, 0), std=(1, 1, 1), interpolation=mode)
    theirs = image_transform_v2(config, is_train=False)(Image.fromarray(pixels)) * 255
    assert (ours - theirs).abs().max() < 1.01 and torch.equal(ours, ours.round())


def test_pictures_that_were_prepared_for_another_backbone_are_said(names: Path, published, caplog):
    torch.save(state(), names / "weights.pt")
    clip = FrozenCLIP.open_clip("tiny", names / "weights.pt")
    cut = dataclasses.replace(make_set(8), preparation=Preparation(24))
    for data, warned in ((cut, True), (dataclasses.replace(cut, preparation=replace(clip.preparation, size=24)), False)):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "rp_lib"):
            FineTune(clip, CLASSES, ("a {}",), epochs=0).fit(data)
        assert ("pass size=clip.preparation" in caplog.text) == warned


def test_the_fingerprint_covers_sizes_that_no_weight_tells():
    # 378 and 384 pixels are 27 patches of 14 each; a convolution takes any size.
    for vision, sizes in (({"patch_size": 8}, (32, 38)), (CONVNEXT, (64, 96))):
        prints = set()
        for size in sizes:
            torch.manual_seed(0)
            model = make_model(vision=vision | {"image_size": size}, text={"context_length": CONTEXT})
            prints.add(frozen(model, size).fingerprint)
        assert len(prints) == 2


def test_what_cannot_be_prepared_so_is_said(names: Path, caplog):
    folder = names / "my-clip"
    folder.mkdir()
    about = {"model_cfg": TINY, "preprocess_cfg": {"resize_mode": "longest"}}
    (folder / "open_clip_config.json").write_text(json.dumps(about))
    save_file(state(), folder / "open_clip_model.safetensors")
    with caplog.at_level(logging.WARNING, "rp_lib"):
        clip = FrozenCLIP.open_clip(f"local-dir:{folder}", None)
    assert "the resize mode 'longest'" in caplog.text and clip.preparation == Preparation(32)
    about["preprocess_cfg"] = {"resize_mode": "squash", "interpolation": "bilinear"}
    (folder / "open_clip_config.json").write_text(json.dumps(about))
    assert FrozenCLIP.open_clip(f"local-dir:{folder}", None).preparation == Preparation(32, "bilinear", "squash")


@pytest.mark.parametrize("stored", [100.0, 14.2857, float("nan"), float("inf")])
def test_a_logit_scale_that_is_no_logarithm_is_refused(names: Path, stored: float):
    torch.save({**state(), "logit_scale": torch.tensor(stored)}, names / "w.pt")
    with pytest.raises(RPLibError, match=r"the logit_scale of tiny/w\.pt .* hold the logarithm"):
        FrozenCLIP.open_clip("tiny", names / "w.pt")


def test_weights_that_are_no_numbers_are_refused(names: Path):
    torch.save({**state(), "text_projection": torch.full((16, 16), float("nan"))}, names / "w.pt")
    with pytest.raises(RPLibError, match=r"text features of tiny/w\.pt are not finite"):
        FrozenCLIP.open_clip("tiny", names / "w.pt")


def test_a_shorter_context_cuts_the_prompts_too(names: Path):
    clip = FrozenCLIP.open_clip("tiny", None, force_context_length=8)
    assert clip.tokenize(["a b c d e f g h i j k"]).shape == (1, 8)
    assert clip.class_embeddings(["cat"], ["a photo of the very nice {} in the garden."]).shape == (1, 16)


def test_prompts_that_are_cut_are_named_and_those_that_fit_are_not(clip: FrozenCLIP, caplog):
    with caplog.at_level(logging.WARNING, "rp_lib"):
        clip.check_prompts(["a b c d e f g h i j k l m n", "x"], ["{}"])  # 14 words and two marks: just fits
    assert not caplog.records
    with caplog.at_level(logging.WARNING, "rp_lib"):
        clip.check_prompts(["a b c d e f g h i j k l m n o", "x"], ["{}"])
    assert "1 of 2 prompts are longer than the 16 tokens" in caplog.text and "l m n o'" in caplog.text
    long = "a b c d e f g h i j k l m n o p"
    with pytest.raises(RPLibError, match="since it reads 16 tokens and no more"):
        ZeroShot(clip, [f"{long} white", f"{long} black"], ["{}"])
    ZeroShot(clip, ["crane", "crane "], ["{}"])  # ImageNet's released names repeat a class in this way


def test_many_prompts_are_encoded_in_parts(clip: FrozenCLIP, monkeypatch):
    sizes, plain = [], clip.encode_tokens
    monkeypatch.setattr(clip, "encode_tokens", lambda tokens: sizes.append(len(tokens)) or plain(tokens))
    words = [f"{a} {b}" for a in "abcdefghij" for b in range(60)]
    found = clip.class_embeddings(words, ["{}", "a {}"])
    assert sizes == [256] * 4 + [176] and found.shape == (600, 32)
    torch.testing.assert_close(found[550:], clip.class_embeddings(words[550:], ["{}", "a {}"]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["tiny", "lonely"])
def test_tags_that_say_quick_gelu(names: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    torch.save(state(), names / "weights.pt")
    real = open_clip.create_model

    def create(model: str, pretrained: str | None = None, **options: object):
        assert pretrained == "meta"
        options.pop("require_pretrained")
        return real(model, pretrained=str(names / "weights.pt"), **options)

    monkeypatch.setattr(open_clip, "list_pretrained_tags_by_model", lambda _: ["meta", "other"])
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda _, tag: {"quick_gelu": tag == "meta"})
    monkeypatch.setattr(open_clip, "create_model", create)
    assert is_quick(FrozenCLIP.open_clip(name, "meta"))


def test_every_real_tag_gets_its_activation():
    """All pairs of open_clip's registry: loading must end with the activation that the tag was trained with."""
    from rp_lib.backbones import _with_quick_gelu

    pairs = 0
    for name, tag in open_clip.list_pretrained():
        about = open_clip.get_pretrained_cfg(name, tag)
        if tag == "openai" or about.get("quick_gelu"):
            assert about.get("quick_gelu"), (name, tag)
            found, options = _with_quick_gelu(name, tag, {})
            assert open_clip.get_model_config(found).get("quick_gelu") or options == {"force_quick_gelu": True}
            pairs += 1
    assert pairs > 20


# Names, folders, sizes, options --------------------------------------------------------------------------


def test_local_folder_brings_weights_and_normalisation(names: Path):
    folder = names / "my-clip"
    folder.mkdir()
    about = {"model_cfg": TINY, "preprocess_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}}
    (folder / "open_clip_config.json").write_text(json.dumps(about))
    save_file(state(), folder / "open_clip_model.safetensors")
    clip = FrozenCLIP.open_clip(f"local-dir:{folder}", None)
    assert clip.name == "my-clip" and torch.equal(clip._mean.flatten(), torch.tensor([0.1, 0.2, 0.3]))
    assert torch.equal(clip.model.visual.conv1.weight, state()["visual.conv1.weight"])
    with pytest.raises(RPLibError, match="brings its own weights"):
        FrozenCLIP.open_clip(f"local-dir:{folder}", "openai")
    (folder / "open_clip_model.safetensors").unlink()
    with pytest.raises(RPLibError, match="cannot build local-dir"):
        FrozenCLIP.open_clip(f"local-dir:{folder}", None)


def test_without_a_network_the_hub_is_not_there(monkeypatch: pytest.MonkeyPatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(RPLibError, match=r"cannot load hf-hub:nobody/nothing .*local checkpoint file"):
        FrozenCLIP.open_clip("hf-hub:nobody/nothing", None)


def test_openais_spelling_of_names(names: Path):
    clips = [FrozenCLIP.open_clip(name, path) for name, path in (("tiny/quickgelu", None), ("tiny-quickgelu", None))]
    assert {c.name for c in clips} == {"tiny-quickgelu/random"} and load_backbone("tiny", None).preparation.size == 32


def test_another_image_size(names: Path):
    torch.save(state(), names / "weights.pt")
    clip = FrozenCLIP.open_clip("tiny", names / "weights.pt", force_image_size=48)
    assert clip.image_size == 48 and clip.model.visual.positional_embedding.shape == (10, 32)
    rp = Reprogrammer(clip, CLASSES, TEMPLATES, PAPER.changed(epochs=1, batch_size=8)).fit(make_set(8))
    assert rp.image_program.W.shape == (3, 48, 48)
    openai = FrozenCLIP.open_clip("tiny", openai_file(names), force_image_size=48)
    assert openai.image_size == 48 and is_quick(openai)


@pytest.mark.parametrize("mode", ["shortest", "squash"])
@pytest.mark.parametrize("shape", [(32, 48), (48, 32)])
def test_inputs_need_not_be_square(names: Path, tmp_path: Path, shape: tuple[int, int], mode: str):
    from open_clip.transform import PreprocessCfg, image_transform_v2

    torch.save(state(), names / "weights.pt")
    about = {"force_image_size": shape, "force_preprocess_cfg": {"resize_mode": mode}}
    clip = FrozenCLIP.open_clip("tiny", names / "weights.pt", **about)
    assert clip.preparation == Preparation(shape, resize_mode=mode) and clip.image_size == shape
    # Files, and what open_clip makes of them.
    config = PreprocessCfg(size=shape, mean=(0, 0, 0), std=(1, 1, 1), resize_mode=mode)
    paths, theirs = [], []
    for n, size in enumerate([(80, 50), (50, 81), (48, 32), (20, 20)]):
        pixels = np.random.default_rng(n).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        paths.append(tmp_path / f"{n}.png")
        Image.fromarray(pixels).save(paths[-1])
        theirs.append((image_transform_v2(config, is_train=False)(Image.open(paths[-1])) * 255).round())
    pictures = [load_images(paths, clip.preparation, cache=tmp_path / "cache").images for _ in range(2)][1]
    assert pictures.shape == (4, 3, *shape) and (pictures - torch.stack(theirs)).abs().max() <= 1
    with torch.no_grad():
        features = clip.model.encode_image(clip.normalize(pictures / 255), normalize=True)
    assert (clip.encode(pictures) - features).abs().max() < 1e-5
    # Programs, and the method saved and loaded.
    data = ImageSet("own", "train", pictures, torch.arange(4) % 3, preparation=clip.preparation)
    rp = Reprogrammer(clip, CLASSES, TEMPLATES, PAPER.changed(epochs=1, batch_size=4)).fit(data)
    W, inner = rp.image_program.W, (shape[0] - 4, shape[1] - 4)
    assert W.shape == (3, *shape) and rp.image_program.inner_size == inner and (1 - rp.image_program.M).sum() == 28 * 44
    shown = rp.program_images(pictures)
    assert shown.shape == (4, 3, *shape) and torch.equal(shown[..., 2:-2, 2:-2], resize(pictures / 255, inner))
    rp.save(tmp_path / "rp.safetensors")
    loaded = load_method(tmp_path / "rp.safetensors", clip)
    assert torch.equal(loaded.logits(pictures), rp.logits(pictures)) and loaded.preparation == clip.preparation
    answers = predict(loaded, paths)
    assert answers["probability"].notna().all()
    for wrong in (torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, *shape[::-1])):
        with pytest.raises(RPLibError, match=f"would be squeezed into {shape[0]} x {shape[1]} pixels"):
            rp.logits(wrong)
    turned = FrozenCLIP.open_clip("tiny", names / "weights.pt", **about | {"force_image_size": shape[::-1]})
    with pytest.raises(RPLibError, match="backbone"):
        load_method(tmp_path / "rp.safetensors", turned)


def test_sizes_that_open_clip_has_wrong(names: Path, monkeypatch):
    assert {"ViTamin-XL-384"} == backbones.TRAINED_SIZES.keys() <= set(open_clip.list_models())
    monkeypatch.setitem(backbones.TRAINED_SIZES, "tiny", 48)
    assert FrozenCLIP.open_clip("tiny", None).image_size == 48
    assert FrozenCLIP.open_clip("tiny", None, force_image_size=64).image_size == 64


@pytest.mark.parametrize("option", [{"jit": True}, {"weights_only": False}, {"precision": "fp16"}])
def test_options_that_would_break_it(names: Path, option: dict):
    with pytest.raises(RPLibError, match=f"option '{next(iter(option))}' of open_clip is not available"):
        FrozenCLIP.open_clip("tiny", None, **option)


# Every kind of tower -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "vision",
    [
        {},
        {"patch_size": 8},
        {"image_size": 48, "width": 96, "layers": 3},
        {"ls_init_value": 0.1, "pool_type": "avg"},
        RESNET,
        RESNET | {"image_size": 64, "layers": (1, 1, 2, 1)},
    ],
)
def test_programs_act_on_towers_of_any_size(vision: dict):
    size = vision.get("image_size", 32)
    clip = frozen(make_model(vision=vision, text={"context_length": CONTEXT}), size)
    before = model_hash(clip.model)
    rp = Reprogrammer(clip, CLASSES, TEMPLATES, PAPER.changed(epochs=2, batch_size=8), precision="float32")
    start = rp.image_program.W.detach().clone()
    rp.encode(make_set(4).images)[:, 0].sum().backward()
    gradient = rp.image_program.W.grad
    border = rp.image_program.M.expand_as(gradient) > 0
    assert (gradient[border] != 0).float().mean() > 0.25 and torch.isfinite(gradient).all()  # the rest is clamped
    assert not (gradient * (1 - rp.image_program.M)).any()
    rp.fit(make_set(16), make_set(9, seed=1, role="val"))
    assert (rp.image_program.W - start).abs().max() > 1e-3
    # Running statistics are buffers of the frozen tower: they must not follow the programmed images.
    assert model_hash(clip.model) == before and not clip.model.visual.training


@pytest.mark.parametrize("templates", [["{}"], TEMPLATES, ["a {}", "the {} here", "a big {}.", "{} {{}}"[:2] + " x"]])
@pytest.mark.parametrize("kind", ["plain", "custom text", "resnet", "quick"])
def test_class_embeddings_are_open_clips_zero_shot_classifier(kind: str, templates: list[str]):
    torch.manual_seed(1)
    model = {
        "plain": lambda: CLIP(16, VISION, TEXT),
        "custom text": lambda: CustomTextCLIP(16, VISION, TEXT),
        "resnet": lambda: CLIP(16, RESNET, TEXT),
        "quick": lambda: CLIP(16, VISION, TEXT, quick_gelu=True),
    }[kind]()
    with torch.no_grad():
        getattr(model, "text", model).token_embedding.weight.mul_(20)
    clip = frozen(model)
    theirs = build_zero_shot_classifier(clip.model, clip.tokenizer, CLASSES, templates).T
    ours = clip.class_embeddings(CLASSES, templates)
    assert (ours - theirs).abs().max() < 1e-5 and (ours[0] - ours[1]).abs().max() > 1e-2
    rp = Reprogrammer(clip, CLASSES, templates, PAPER.changed(epochs=1, batch_size=8))
    assert (rp.class_embeddings() - theirs).abs().max() < 1e-5  # the text program starts as nothing
    rp.fit(make_set(8))
    assert (rp.class_embeddings() - theirs).abs().max() > 1e-4


def build_on_meta(name: str) -> nn.Module:
    config = open_clip.get_model_config(name)
    custom = config.pop("custom_text", False)
    with torch.device("meta"):
        return (CustomTextCLIP if custom else CLIP)(**config)


@pytest.mark.parametrize(
    ("name", "millions", "size"),
    [
        ("ViT-B-32-quickgelu", 151.277313, 224),
        ("ViT-L-14-336-quickgelu", 427.944193, 336),
        ("RN50-quickgelu", 102.007137, 224),
    ],
)
def test_real_structures(name: str, millions: float, size: int):
    """Sizes as published for CLIP's models (the sum of all parameters)."""
    model = build_on_meta(name)
    assert sum(p.numel() for p in model.parameters()) == round(1e6 * millions)
    assert model.visual.image_size in (size, (size, size))
    towers = [model.transformer, *([model.visual] if name.startswith("ViT") else [])]
    assert all(any(type(m).__name__ == "QuickGELU" for m in tower.modules()) for tower in towers)
    assert text_part(model) is model and model.positional_embedding.shape[0] == 77
    if name.startswith("ViT"):
        assert vision_part(model) is model.visual
    else:
        with pytest.raises(RPLibError, match="ModifiedResNet"):
            vision_part(model)


# Layout and compilation ----------------------------------------------------------------------------------


@pytest.mark.parametrize("vision", [{}, RESNET])
def test_channels_last(vision: dict):
    plain, last = (frozen(make_model(vision=vision), channels_last=flag) for flag in (False, True))
    tuned = FineTune(last, CLASSES, TEMPLATES)
    for tower in (last.model.visual, tuned.visual):
        assert tower.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert not plain.model.visual.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    seen: list[torch.Tensor] = []
    last.model.visual.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    images = make_set(5).images
    assert (plain.encode(images) - last.encode(images)).abs().max() < 1e-5
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
    assert plain.fingerprint == last.fingerprint  # the same model


def compiled(backend: str | bool) -> FrozenCLIP:
    plain, fast = (frozen(make_model(vision={"layers": 1}), compile=flag) for flag in (False, backend))
    assert plain.fingerprint == fast.fingerprint and list(plain.model.state_dict()) == list(fast.model.state_dict())
    pixels = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    a, b = (pixels.clone().requires_grad_() for _ in range(2))
    ours, theirs = fast.encode_pixels(a), plain.encode_pixels(b)
    assert (ours - theirs).abs().max() < 1e-5
    ours[:, 0].sum().backward(), theirs[:, 0].sum().backward()
    assert (a.grad - b.grad).abs().max() < 1e-5 and b.grad.abs().max() > 1e-4
    return fast


def test_compiled_towers_say_the_same():
    """Traced and differentiated as for a compiler, and run without one."""
    fast = compiled("aot_eager")
    tuned = FineTune(fast, CLASSES, TEMPLATES)
    assert tuned.visual._compiled_call_impl is not None and type(tuned.visual) is type(fast.model.visual)


@pytest.mark.skipif(not os.environ.get("RP_LIB_SLOW_TESTS"), reason="half a minute: set RP_LIB_SLOW_TESTS=1")
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler")
def test_really_compiled_towers_say_the_same():
    compiled(True)


def test_what_cannot_be_compiled_is_said_at_once():
    with pytest.raises(RPLibError, match=r"torch\.compile does not work here .*leave `compile` out"):
        frozen(make_model(vision={"layers": 1}), compile="no such backend")


# Scores in full precision --------------------------------------------------------------------------------


def test_evaluation_is_never_under_autocast(clip: FrozenCLIP, tiny_benchmark: Benchmark, images: torch.Tensor):
    task = (clip, CLASSES, TEMPLATES)
    made = [ZeroShot(*task), Reprogrammer(*task, PAPER), FineTune(*task)]
    val = tiny_benchmark.val

    def everything() -> list[torch.Tensor]:
        parts = [encode_all(clip, images), clip.class_embeddings(CLASSES, TEMPLATES), ZeroShot(*task).class_embeddings]
        for method in made:
            method.__dict__["_class_embeddings"] = None
            outputs = compute_outputs(method, tiny_benchmark, seed=1).sets["test"]
            parts += [method.logits(images), outputs.logits, outputs.features, torch.tensor(method.accuracy(val))]
        return parts

    plain = everything()
    with torch.autocast("cpu", torch.bfloat16):
        assert clip.encode(images).dtype == torch.float32 and not torch.equal(clip.encode(images), plain[0])
        cast = everything()
    assert all(p.dtype == torch.float32 for p in cast) and all(map(torch.equal, plain, cast))
    assert make_clip().fingerprint == clip.fingerprint
