"""The examples in docstrings run as they stand there."""

import doctest
import importlib

import pytest


@pytest.mark.parametrize("module", ["metrics", "stats", "losses", "detectors", "outputs", "comparison", "utils.io"])
def test_examples(module):
    found = doctest.testmod(importlib.import_module(f"rp_lib.{module}"))
    assert found.failed == 0
