"""Made-up photos, a CLIP from a local checkpoint file, and a configuration that names both; for tests of runs."""

import json
import re
from pathlib import Path

import pytest
import torch
from conftest import CONTEXT, make_model, make_set
from PIL import Image

from rp_lib import cli
from rp_lib.run.session import Session

CONFIG = """
about = "made-up photos"
preset = "paper"
methods = ["zero-shot", "linear-probe", "fine-tune", "wise-ft", "rp", "rrp"]
seeds = 2
out = "OUT"
device = "cpu"
precision = "float32"

[data]
id = "folders"
train = "PHOTOS/train"
val = "PHOTOS/val"
test = "PHOTOS/test"
size = 32
cache = "PHOTOS/cache"
templates = ["a photo of a {}"]
[data.shifts]
drawn = "PHOTOS/drawn"
[data.ood]
other = "PHOTOS/other"

[backbone]
name = "tiny-of-the-tests"
pretrained = "WEIGHTS"

[settings.linear-probe]
epochs = 2
[settings.fine-tune]
epochs = 1
batch_size = 8
[settings.wise-ft]
alpha = 0.25
[settings.rp]
epochs = 2
batch_size = 8
[settings.rrp]
alpha = 0.5
"""


def write_photos(folder: Path, n: int, seed: int, classes: bool = True) -> None:
    data = make_set(n, seed=seed, side=32)
    for i, (pixels, label) in enumerate(zip(data.images, data.labels.tolist(), strict=True)):
        path = folder / (("cat", "cup", "fire_engine")[label] if classes else "") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(path)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for seed, (name, n) in enumerate({"train": 24, "val": 9, "test": 15, "drawn": 12}.items()):
        write_photos(folder / name, n, seed)
    write_photos(folder / "other", 14, 9, classes=False)
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A checkpoint file of a tiny architecture, which open_clip knows meanwhile."""
    import open_clip.factory as factory

    folder = tmp_path_factory.mktemp("weights")
    config = {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 64, "layers": 2, "head_width": 32},
        "text_cfg": {"context_length": CONTEXT, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    }
    (folder / "tiny-of-the-tests.json").write_text(json.dumps(config))
    torch.save(make_model(3).state_dict(), folder / "tiny.pt")
    factory.add_model_config(folder / "tiny-of-the-tests.json")
    yield folder / "tiny.pt"
    factory._MODEL_CONFIG_PATHS.remove(folder / "tiny-of-the-tests.json")
    factory._rescan_model_configs()
    factory._MODEL_CONFIGS.pop("tiny-of-the-tests", None)


@pytest.fixture
def file(tmp_path, photos, weights):
    text = CONFIG.replace("PHOTOS", str(photos)).replace("WEIGHTS", str(weights)).replace("OUT", str(tmp_path / "out"))
    path = tmp_path / "own.toml"
    path.write_text(text)
    return path


def call(*arguments) -> int:
    return cli.main(["run", "--quiet", *map(str, arguments)])


def compare(clip, benchmark, out, *, settings, precision="float32", **options):
    """What a session of these finds in a folder."""
    return Session(clip, benchmark, settings, precision).compare(out, **options)


def names_of(folder):
    """Files without the digest of what made them: rp-seed1-01234567.safetensors is rp-seed1.safetensors."""
    return sorted(re.sub(r"-[0-9a-f]{8}(?=\.)", "", path.name) for path in folder.glob("*.safetensors"))


def only(folder, pattern):
    (path,) = folder.glob(pattern)
    return path
