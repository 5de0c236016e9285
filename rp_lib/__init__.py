"""Adapt CLIP without breaking it.

Layers, from the bottom: errors, storage, device; text_tower, clip, programs; benchmark, corruptions,
features; objectives, trainer, presets, methods; metrics, scores, evaluation, records; search, demo, figures, cli.
"""

from rp_lib._version import __version__
from rp_lib.benchmark import Benchmark, ImageSet
from rp_lib.clip import FrozenCLIP
from rp_lib.errors import RPLibError
from rp_lib.evaluation import Run, evaluate, summarise
from rp_lib.features import FeatureStore
from rp_lib.methods import (
    METHODS,
    FineTune,
    LinearProbe,
    Method,
    Reprogrammer,
    ResidualReprogrammer,
    ZeroShot,
    build_method,
    load_method,
)
from rp_lib.presets import AS_RELEASED, PAPER, Reprogramming, preset

__all__ = [
    "AS_RELEASED", "METHODS", "PAPER", "Benchmark", "FeatureStore", "FineTune", "FrozenCLIP", "ImageSet", "LinearProbe",
    "Method", "RPLibError", "Reprogrammer", "Reprogramming", "ResidualReprogrammer", "Run", "ZeroShot", "__version__",
    "build_method", "evaluate", "load_method", "preset", "summarise",
]  # fmt: skip
