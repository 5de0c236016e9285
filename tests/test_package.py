"""What importing the package costs, and that every public name is there."""

from __future__ import annotations

import doctest
import importlib
import subprocess
import sys

import pytest

import rp_lib

# Each of these takes a good part of a second, or more than torch itself, and no public name needs it at once.
HEAVY = ("torchvision", "open_clip", "torch._dynamo", "scipy.stats", "pandas", "sklearn", "matplotlib", "timm")


def loaded(code: str) -> set[str]:
    """Modules that a process of its own has loaded after ``code``."""
    code += "\nimport sys; print(*sys.modules)"
    return set(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split())


def test_a_plain_import_needs_no_torch():
    assert not loaded("import rp_lib; dir(rp_lib); rp_lib.__version__") & {"torch", "numpy", *HEAVY}


def test_public_names_need_nothing_heavy():
    names = loaded("from rp_lib import *; Reprogrammer, from_folders, evaluate")
    assert "torch" in names and not names & set(HEAVY)


def test_public_names_are_those_of_their_modules():
    assert len(rp_lib.__all__) == len(set(rp_lib.__all__)) >= 40 and set(rp_lib.__all__) <= set(dir(rp_lib))
    for name in rp_lib.__all__:
        value = getattr(rp_lib, name)
        assert getattr(value, "__name__", name) == name
    assert rp_lib.FrozenCLIP is sys.modules["rp_lib.clip"].FrozenCLIP
    assert not hasattr(rp_lib, "frozen_clip")


@pytest.mark.parametrize(
    "name",
    ["", *(f".{m}" for m in "benchmark clip programs mini mini.shifts negative_labels utils.io utils.arguments".split())],
)
def test_examples_of_docstrings(name):
    found = doctest.testmod(importlib.import_module("rp_lib" + name))
    assert found.attempted and not found.failed
