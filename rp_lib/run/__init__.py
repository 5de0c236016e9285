"""A run by configuration: what is fitted, evaluated, recorded and what it costs.

The names below stand here, where the command line reads them without importing torch.
"""

from __future__ import annotations

from pathlib import Path

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
FULL_IDS = ("cifar10", "imagenet")  # published benchmarks
CORE = ("zero-shot", "linear-probe", "fine-tune", "rp", "rrp")  # the paper's methods, which the demo compares


def shipped() -> dict[str, Path]:
    """Return the configurations that come with the package: names and their TOML files."""
    return {path.stem: path for path in sorted(CONFIGS.glob("*.toml"))}
