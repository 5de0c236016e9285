"""The mini world that ships with the package: a small CLIP pre-trained on icons, and a benchmark of icons.

>>> from rp_lib import mini
>>> clip, data = mini.load()
"""

from rp_lib.benchmark import Benchmark
from rp_lib.clip import FrozenCLIP
from rp_lib.mini.benchmark import load_benchmark
from rp_lib.mini.weights import load_clip

__all__ = ["load", "load_benchmark", "load_clip"]


def load() -> tuple[FrozenCLIP, Benchmark]:
    """Load the mini CLIP, fully pre-trained and on the CPU, and the mini benchmark."""
    return load_clip(), load_benchmark()
