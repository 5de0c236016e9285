"""The examples in docstrings run as they stand there."""

import doctest
import importlib
import inspect

import pytest

import rp_lib

MODULES = (
    "metrics", "stats", "detectors", "outputs", "comparison", "evaluation", "benchmark", "negative_labels", "utils.io",
)  # fmt: skip


@pytest.mark.parametrize("module", ["metrics", "stats", "losses", "detectors", "outputs", "comparison", "utils.io", "config", "trainer"])
def test_examples(module):
    found = doctest.testmod(importlib.import_module(f"rp_lib.{module}"))
    assert found.failed == 0


@pytest.mark.parametrize("name", MODULES)
def test_every_public_class_has_an_example(name):
    module = importlib.import_module(f"rp_lib.{name}")
    own = [c for c in vars(module).values() if inspect.isclass(c) and c.__module__ == module.__name__]
    public = [c for c in own if not c.__name__.startswith("_") and not issubclass(c, Exception)]
    assert [c.__name__ for c in public if "Example:" not in (c.__doc__ or "")] == []


def test_every_class_that_the_package_exports_has_an_example():
    exported = [getattr(rp_lib, name) for name in rp_lib.__all__]
    classes = [c for c in exported if inspect.isclass(c) and not issubclass(c, Exception)]
    assert len(classes) > 25 and [c.__name__ for c in classes if "Example:" not in c.__doc__] == []
