"""Adapt CLIP without breaking it: model reprogramming (RP, RRP), other methods, and three axes to measure them on.

Public names are imported when they are first used, so that ``import rp_lib`` needs no torch.

>>> from rp_lib import Reprogrammer, mini
>>> clip, data = mini.load()
>>> rp = Reprogrammer(clip, data.class_names, data.templates).fit(data.train)  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
import inspect

from rp_lib._version import __version__ as __version__

# Module -> the public names that it defines.
_HOME = {
    "benchmark": ("Benchmark", "ImageSet"),
    "clip": ("FrozenCLIP",),
    "comparison": ("paired_bootstrap",),
    "config": ("AS_RELEASED", "PAPER", "RPConfig", "preset"),
    "data": ("from_folders",),
    "detectors": ("DETECTORS", "Threshold"),
    "evaluation": ("Run", "accuracy_by_class", "answers", "evaluate", "evaluate_outputs", "summarize"),
    "features": ("FeatureStore",),
    "methods": (
        "BASES", "CLAP", "FLYP", "L2SP", "LPFT", "METHODS", "CLIPLoRA", "CoOp", "DeepPrompts", "FineTune",
        "ImageReprogrammer", "LinearProbe", "LipsumFT", "LogitEnsemble", "Method", "Reprogrammer",
        "ResidualReprogrammer", "TaskRes", "TextReprogrammer", "TipAdapter", "TipAdapterF", "WiSEFT", "ZeroShot",
        "ZeroShotProbe", "build_method", "load_method",
    ),
    "outputs": ("compute_outputs", "load_outputs", "save_outputs"),
    "prediction": ("MethodThreshold", "export", "fit_threshold", "predict"),
    "utils.errors": ("RPLibError",),
}  # fmt: skip
_MODULE = {name: module for module, names in _HOME.items() for name in names}
__all__ = sorted(["__version__", *_MODULE])


def __getattr__(name: str) -> object:
    if name not in _MODULE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULE[name]}"), name)
    if inspect.isfunction(value):
        value = importlib.import_module(f"{__name__}.utils.arguments").checked(value)  # by its annotations
    globals()[name] = value  # found at once from now on
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
