"""The worked examples of CONTRIBUTING.md run as they stand there."""

import re
from pathlib import Path

import pytest
import torch

from rp_lib import Run, evaluate, load_method
from rp_lib.detectors import DETECTORS
from rp_lib.methods import METHODS

TEXT = (Path(__file__).resolve().parent.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", TEXT, flags=re.S)


@pytest.fixture
def examples():
    assert len(EXAMPLES) == 2
    before = [(registry, dict(registry)) for registry in (METHODS, DETECTORS)]
    names: dict = {"__name__": "contributing"}
    for code in EXAMPLES:
        exec(compile(code, "CONTRIBUTING.md", "exec"), names)
    yield names
    for registry, old in before:
        registry.clear()
        registry.update(old)


def test_examples_are_whole_members_of_the_library(examples, tiny_clip, tiny_benchmark, tmp_path):
    method = METHODS["nearest-mean"](tiny_clip, tiny_benchmark.class_names, tiny_benchmark.templates)
    method.fit(tiny_benchmark.train)
    features = tiny_clip.encode(tiny_benchmark.train.images)
    by_hand = torch.stack([features[tiny_benchmark.train.labels == c].mean(0) for c in range(3)])
    torch.testing.assert_close(method.means, torch.nn.functional.normalize(by_hand, dim=1))
    method.save(tmp_path / "m.safetensors")
    again = load_method(tmp_path / "m.safetensors", tiny_clip)
    assert torch.equal(again.logits(tiny_benchmark.test.images), method.logits(tiny_benchmark.test.images))
    records = evaluate([Run(method, 1)], tiny_benchmark, detectors=("msp", "margin"), n_resamples=5)
    assert set(records["method"]) == {"nearest-mean"} and {"msp", "margin"} <= set(records["detector"].dropna())


def test_registries_are_as_before():
    assert "nearest-mean" not in METHODS and "margin" not in DETECTORS
