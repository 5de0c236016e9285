"""Adapt CLIP without breaking it.

Layers, from the bottom: errors, arrays, parallel, storage, distributed, device; data; text_tower, deep_towers,
backbones, clip, programs; among, corruptions, benchmark, photos, features; metrics, objectives, schedule, checkpoints,
trainer, presets, methods; intervals, resampling, intrusion; negative_words, outputs, inference; scores, detectors,
threshold; judging, evaluation, paired, aggregate, records, figures; subsets, run, search, demo; cost, cost_of_methods,
run_schema, run_config (what to run), tracks, run_plan; experiments, course (what the notebooks import),
notebook_checks, notebooks, book, cli. Beside them mini, which made the mini world.
"""

from rp_lib._version import __version__
from rp_lib.benchmark import Benchmark, ImageSet
from rp_lib.clip import FrozenCLIP
from rp_lib.comparison import paired_bootstrap
from rp_lib.config import AS_RELEASED, PAPER, Reprogramming, preset
from rp_lib.detectors import DETECTORS, Threshold
from rp_lib.evaluation import Run, evaluate, evaluate_outputs, summarise
from rp_lib.features import FeatureStore
from rp_lib.methods import (
    BASES,
    FLYP,
    L2SP,
    LPFT,
    METHODS,
    CoOp,
    DeepPrompts,
    FineTune,
    ImageReprogrammer,
    LinearProbe,
    LogitEnsemble,
    Method,
    Reprogrammer,
    ResidualReprogrammer,
    TextReprogrammer,
    WiSEFT,
    ZeroShot,
    build_method,
    load_method,
)
from rp_lib.outputs import compute_outputs, load_outputs, save_outputs
from rp_lib.utils.errors import RPLibError

__all__ = [
    "AS_RELEASED", "BASES", "DETECTORS", "FLYP", "L2SP", "LPFT", "METHODS", "PAPER", "Benchmark", "CoOp", "DeepPrompts",
    "FeatureStore", "FineTune", "FrozenCLIP", "ImageReprogrammer", "ImageSet", "LinearProbe", "LogitEnsemble", "Method",
    "RPLibError", "Reprogrammer", "Reprogramming", "ResidualReprogrammer", "Run", "TextReprogrammer", "Threshold",
    "WiSEFT", "ZeroShot", "__version__", "build_method", "compute_outputs", "evaluate", "evaluate_outputs",
    "load_method", "load_outputs", "paired_bootstrap", "preset", "save_outputs", "summarise",
]  # fmt: skip
