"""Each family of dual encoders end to end: parity with open_clip, a few steps of each method, saved and loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from open_clip.zero_shot_classifier import build_zero_shot_classifier
from safetensors.torch import save_file

from rp_lib import Benchmark, FineTune, ImageSet, LinearProbe, Reprogrammer, ResidualReprogrammer
from rp_lib.config import PAPER
from rp_lib.utils.errors import RPLibError
from tests.families import FAMILIES, make_family

CLASSES, TEMPLATES = ("cat", "coffee cup", "bell"), ["an icon of a {}", "{}"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("families")


@pytest.fixture(scope="module")
def pictures(mini_benchmark: Benchmark) -> ImageSet:
    """Shipped pictures of three classes."""
    data = mini_benchmark
    labels = torch.tensor([0, 1, 2, 0])
    rows = [int((data.train.labels == data.class_names.index(CLASSES[c])).nonzero()[0]) for c in labels]
    return ImageSet(name="pictures", role="train", images=data.train.images[rows], labels=labels)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_learns(name: str, folder: Path, pictures: ImageSet):
    clip = make_family(name)
    with torch.no_grad():
        pixels = clip.normalize(clip.prepare(pictures.images))
        theirs = F.normalize(clip.model.encode_image(pixels), dim=-1)
        assert (clip.encode(pictures.images) - theirs).abs().max() < 1e-5
    zero_shot = build_zero_shot_classifier(clip.model, clip.tokenizer, CLASSES, [t.format for t in TEMPLATES]).T
    ours = clip.class_embeddings(CLASSES, TEMPLATES)
    assert (ours - zero_shot).abs().max() < 1e-5 and (ours[0] - ours[1]).abs().max() > 1e-3
    assert (clip.logit_bias == -10) is ("SigLIP" in name)

    config = PAPER.changed(epochs=1, batch_size=2, warmup_steps=0)
    if clip.logit_bias is not None:
        config = config.changed(objective="sigmoid")
    rp = Reprogrammer(clip, CLASSES, TEMPLATES, config)
    assert (rp.class_embeddings() - zero_shot).abs().max() < 1e-5  # the text program starts as nothing
    start = {key: value.clone() for key, value in rp.state_dict().items()}
    rp.fit(pictures)
    for key in ("image.W", "text.Theta", "text.b"):
        assert (rp.state_dict()[key] - start[key]).abs().max() > 1e-4, key
    assert (rp.class_embeddings() - zero_shot).abs().max() > 1e-4
    few = {"epochs": 1, "batch_size": 2}
    methods = [
        rp, ResidualReprogrammer(rp), LinearProbe(clip, CLASSES, TEMPLATES, **few).fit(pictures),
        FineTune(clip, CLASSES, TEMPLATES, **few).fit(pictures),
    ]  # fmt: skip
    for method in methods:
        path = folder / name / f"{method.name}.safetensors"
        method.save(path)
        path.with_name("expected").mkdir(exist_ok=True)
        logits = method.logits(pictures.images)
        save_file({"images": pictures.images, "logits": logits}, path.with_name("expected") / path.name)


def test_a_fresh_process_predicts_the_same(folder: Path):
    made = sorted(path.name for path in folder.iterdir())
    if not made:
        pytest.skip("nothing was trained")
    run = subprocess.run(
        [sys.executable, "-m", "tests.families", folder], stdout=subprocess.PIPE, text=True, check=True
    )
    lines = run.stdout.splitlines()
    assert len(lines) == 4 * len(made) and all(line.endswith("same") for line in lines), run.stdout


def test_the_sigmoid_objective_needs_a_logit_bias():
    with pytest.raises(RPLibError, match=r"ViT-B-32-quickgelu was not trained with the sigmoid loss.*SigLIP"):
        Reprogrammer(make_family("ViT-B-32-quickgelu"), CLASSES, TEMPLATES, PAPER.changed(objective="sigmoid"))
