"""The mini benchmark: its stored image sets, and the shifts that are derived from its test images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from rp_lib.benchmark import OOD_ROLES, Benchmark, ImageSet
from rp_lib.mini.icon_names import parse
from rp_lib.mini.sheets import FOLDER, read_benchmark
from rp_lib.mini.shifts import CORRUPTION_RECIPE, CORRUPTIONS, SHIFT_RECIPE, SHIFTS, shift

# The derived sets ``corrupted-SEVERITY`` show the same test images under each of these.
CORRUPTED_BY = tuple(CORRUPTIONS)
CORRUPTED_SEVERITIES = (1, 3, 5)
CORRUPTED_IMAGES = 300
# A shift is what pre-training's augmentation does not contain and costs zero-shot at least 5 points; both
# were settled before any adapted method was run on it. What is no shift for this CLIP is a control.
REAL_SHIFTS = ("emoji", "other-hands")
SHIFTED_IMAGES = 400
LOSS_OF_A_SHIFT = 0.05


def load_benchmark(path: Path | str | None = None) -> Benchmark:
    """Load the benchmark of icons that ships with the package.

    Each of its six shifts costs zero-shot five points or more. Sets that cost it less are controls. Some sets are
    computed here and not stored: the shifts :data:`rp_lib.mini.shifts.SHIFTS`, and of the controls ``dark`` (the test
    images inverted) and ``corrupted-1``, ``-3`` and ``-5`` (300 test images under each of four corruptions).

    Args:
        path: Folder that ``python -m rp_course mini benchmark`` wrote. None: the one that ships.

    Raises:
        RPLibError: A file is missing, truncated or altered.
    """
    stored = read_benchmark(Path(path) if path is not None else FOLDER)
    sets = {}
    for name, s in stored.sets.items():
        words = [parse(icon.split(":", 1)[1]).concept for icon in s.icons] if s.role == "near-ood" else None
        sets[name] = ImageSet(name, s.role, s.images, s.labels, s.groups, s.styles, names=words)
    train, val, test = (sets.pop(name) for name in ("train", "val", "test"))
    shifts = {name: images for name, images in sets.items() if images.role == "shift"}
    ood = {name: images for name, images in sets.items() if images.role in OOD_ROLES}
    shifts["dark"] = ImageSet(
        "dark", "shift", 255 - test.images, test.labels, test.groups, test.styles,
        derived_from=f"255 - {test.fingerprint}",
    )  # fmt: skip
    shifts |= {f"corrupted-{severity}": _corrupted(test, severity) for severity in CORRUPTED_SEVERITIES}
    controls = {n: replace(s, role="control") for n, s in shifts.items() if n not in REAL_SHIFTS}
    shifts = {name: shifts[name] for name in REAL_SHIFTS} | {name: _shifted(test, name) for name in SHIFTS}
    return Benchmark("mini", stored.class_names, stored.templates, train, val, test, shifts, ood, controls)


def _shifted(test: ImageSet, name: str) -> ImageSet:
    """Evenly spaced test images, shifted."""
    chosen = test.subsample(SHIFTED_IMAGES)
    return ImageSet(
        name, "shift", shift(chosen.images, name), chosen.labels, chosen.groups, chosen.styles,
        sources=chosen.sources, derived_from=f"{name} {SHIFT_RECIPE} of {chosen.fingerprint}",
    )  # fmt: skip


def _corrupted(test: ImageSet, severity: int) -> ImageSet:
    """The same test images under each corruption, one corruption after the other."""
    chosen = torch.randperm(len(test), generator=torch.Generator().manual_seed(0))[:CORRUPTED_IMAGES].sort().values
    clean = test.subset(chosen)
    images = torch.cat([shift(clean.images, name, severity, seed=i) for i, name in enumerate(CORRUPTED_BY)])
    times = len(CORRUPTED_BY)
    styles = None if clean.styles is None else clean.styles * times
    return ImageSet(
        f"corrupted-{severity}", "shift", images, clean.labels.repeat(times), clean.groups.repeat(times), styles,
        sources=chosen.repeat(times),
        derived_from=f"{CORRUPTED_BY} {CORRUPTION_RECIPE} of {clean.fingerprint} at severity {severity}",
    )  # fmt: skip
