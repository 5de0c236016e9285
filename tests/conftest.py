"""A CLIP that is random but complete, and image sets that take no time."""

from __future__ import annotations

import copy
import hashlib
import os

import pytest
import torch
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer

from rp_lib.benchmark import Benchmark, ImageSet
from rp_lib.clip import FrozenCLIP
from rp_lib.mini import load_benchmark, load_clip

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of processes that tests start
CLASSES = ("cat", "fire engine", "cup")
TEMPLATES = ("a photo of a {}.", "{}")
CONTEXT = 16


def make_model(
    seed: int = 0,
    *,
    vision: dict | None = None,
    text: dict | None = None,
    quick_gelu: bool = False,
    sharpen: bool = True,
) -> CLIP:
    """A tiny open_clip CLIP with random weights: 32 px, 64 wide."""
    vision = {"image_size": 32, "patch_size": 16, "width": 64, "layers": 2, "head_width": 32} | (vision or {})
    text = {"context_length": CONTEXT, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2} | (text or {})
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        model = CLIP(32, vision, text, quick_gelu=quick_gelu)
        with torch.no_grad():
            if sharpen:  # untrained token rows hardly differ; make words and images matter
                model.token_embedding.weight.mul_(20)
                model.positional_embedding.mul_(5)
    return model


def make_clip(seed: int = 0, *, mean: float = 0.5, std: float = 0.25, **options: object) -> FrozenCLIP:
    return FrozenCLIP(
        make_model(seed, **options),  # type: ignore[arg-type]
        SimpleTokenizer(context_length=CONTEXT),
        name=f"tiny-{seed}",
        mean=(mean, 0.45, 0.4),
        std=(std, 0.25, 0.3),
        image_size=32,
    )


def make_set(
    n: int = 24, *, seed: int = 0, side: int = 24, classes: int = len(CLASSES), name: str = "tiny", role: str = "train"
) -> ImageSet:
    """Noise around one colour per class, so that there is something to learn."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    colours = torch.randint(40, 216, (classes, 3, 1, 1), generator=torch.Generator().manual_seed(99))
    images = (colours[labels] + torch.randint(-40, 40, (n, 3, side, side), generator=g)).to(torch.uint8)
    known = None if role.endswith("ood") else labels
    return ImageSet(name=name, role=role, images=images, labels=known, groups=torch.arange(n) // 2)


def model_hash(module: torch.nn.Module) -> str:
    """Over the raw bytes of every parameter and buffer, without going through the library."""
    digest = hashlib.sha256()
    for name, tensor in sorted([*module.named_parameters(), *module.named_buffers()]):
        digest.update(name.encode() + tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """One thread for each test and its fixtures: numba, once it compiles, gives torch as many as there are cores."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def clip() -> FrozenCLIP:
    """Shared, and never changed: the tests of the methods check just that."""
    return make_clip()


@pytest.fixture
def own_clip(clip: FrozenCLIP) -> FrozenCLIP:
    """A copy for tests that tamper with it."""
    return copy.deepcopy(clip)


@pytest.fixture(scope="session")
def mini_clip() -> FrozenCLIP:
    """The one that ships, loaded once and never changed."""
    return load_clip()


@pytest.fixture(scope="session")
def mini_benchmark() -> Benchmark:
    """The one that ships, loaded once and never changed."""
    return load_benchmark()


@pytest.fixture(scope="session")
def train_set() -> ImageSet:
    return make_set(24, name="train")


@pytest.fixture(scope="session")
def val_set() -> ImageSet:
    return make_set(9, seed=1, name="val")


@pytest.fixture(scope="session")
def images() -> torch.Tensor:
    return make_set(7, seed=2).images


@pytest.fixture(scope="session")
def tiny_clip() -> FrozenCLIP:
    """As ``clip``, another object."""
    return make_clip()


@pytest.fixture(scope="session")
def tiny_benchmark() -> Benchmark:
    """Every kind of image set, two of shift and OOD each."""
    return Benchmark(
        name="tiny",
        class_names=CLASSES,
        templates=TEMPLATES,
        train=make_set(24, name="train"),
        val=make_set(12, seed=1, name="val", role="val"),
        test=make_set(15, seed=2, name="test", role="test"),
        shifts={n: make_set(12, seed=s, name=n, role="shift") for s, n in ((11, "second"), (12, "emoji"))},
        ood={n: make_set(16, seed=s, name=n, role=f"{n}-ood") for s, n in ((13, "near"), (14, "far"))},
    )
