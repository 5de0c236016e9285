"""Build the mini benchmark from an icon corpus: select, split by family, remove near-duplicates, write.

The same corpus gives the same bytes. Nothing is random: where a choice is needed, a hash of the icon's name
makes it. Each file is replaced when it is whole and the index last, so an interrupted build can be run again.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from rp_course.mini_world.benchmark_card import write_card
from rp_course.mini_world.classes import ID_CLASSES
from rp_course.mini_world.corpus import load_sets
from rp_course.mini_world.families import PRETRAINING
from rp_course.mini_world.near_duplicates import THRESHOLD, coverage, first_of_each, nearest, signature
from rp_course.mini_world.selection import (
    CAPS,
    TARGETS,
    Icon,
    deal_families,
    id_place,
    measured_style,
    ood_place,
    read_icons,
    spread,
)
from rp_course.mini_world.stored import describe_icons, encode_sheet, quantize, write_index
from rp_lib.mini.sheets import FORMAT, INDEX
from rp_lib.utils.errors import RPLibError
from rp_lib.utils.io import write_atomically

TEMPLATES = ("an icon of a {}",)
EXACT = 0.995
MIN_TEST_IMAGES = 8
ROLES = {
    "train": "train", "val": "val", "test": "test", "second-draw": "shift", "emoji": "shift", "duotone": "shift",
    "other-hands": "shift", "near": "near-ood", "logos": "far-ood", "flags": "far-ood", "characters": "far-ood",
    "signs": "far-ood",
}  # fmt: skip
# Where two sets share a picture, the one named later loses it.
PRECEDENCE = ("test", "second-draw", "emoji", "duotone", "other-hands", "val", "train")
OOD_PRECEDENCE = ("near", "characters", "signs", "flags", "logos")


@dataclass
class Pool:
    """Icons with their pictures: coverage uint8 (n, 64, 64) and signatures, in the same order.

    ``rgb`` holds uint8 (n, 3, 64, 64) on white for coloured icons (zeros for monochrome ones), None if there are none.
    """

    icons: list[Icon]
    ink: np.ndarray
    rgb: np.ndarray | None
    signatures: torch.Tensor

    def __len__(self) -> int:
        return len(self.icons)

    def keep(self, mask: torch.Tensor | Sequence[bool]) -> Pool:
        """The icons where ``mask``, bool (n,), is true."""
        index = torch.as_tensor(mask, dtype=torch.bool).nonzero()[:, 0].numpy()
        rgb = None if self.rgb is None else self.rgb[index]
        return Pool([self.icons[i] for i in index], self.ink[index], rgb, self.signatures[index])


def read_pool(corpus: Path, icons: Sequence[Icon]) -> Pool:
    """Read the pictures of ``icons``; colour is composited on white."""
    icons = sorted(icons, key=lambda icon: (icon.coloured, icon.set, icon.row))
    ink = np.zeros((len(icons), 64, 64), np.uint8)
    rgb = np.zeros((len(icons), 3, 64, 64), np.uint8) if any(i.coloured for i in icons) else None
    by_set: dict[str, list[int]] = defaultdict(list)
    for place, icon in enumerate(icons):
        by_set[icon.set].append(place)
    for prefix, places in by_set.items():
        pictures = np.load(corpus / f"{prefix}.npy", mmap_mode="r")[[icons[p].row for p in places]]
        ink[places] = coverage(pictures)
        if rgb is not None and pictures.ndim == 4:
            alpha = pictures[:, 3:].astype(np.float32) / 255
            rgb[places] = np.rint(pictures[:, :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)
    return Pool(icons, ink, rgb, signature(ink))


def build_benchmark(corpus: Path, out: Path) -> None:
    """Build the benchmark, its data card, contact sheet and attribution.

    Args:
        corpus: folder that ``python -m rp_course mini corpus`` wrote.
        out: folder for the benchmark.

    Raises:
        RPLibError: no corpus there, or too few pictures of a class to train on.
    """
    sets = load_sets(corpus)
    removed: dict[str, Counter[str]] = defaultdict(Counter)
    wanted: dict[str, list[Icon]] = defaultdict(list)
    shows_id: list[Icon] = []
    for icon, category in read_icons(sets):
        if icon.label >= 0:
            shows_id.append(icon)
        place = id_place(icon) or ood_place(icon, category)
        if place:
            wanted[place].append(icon)
    pools = {name: read_pool(corpus, wanted[name]) for name in ("id", "emoji", "other-hands")}
    pools = _unseen_in_pretraining(corpus, sets, pools, removed)
    pools, sides = _split(pools, removed)
    pools = _between(pools, PRECEDENCE, removed)
    pools, class_names = _drop_rare_classes(pools, removed)
    reference = read_pool(corpus, shows_id)
    trained = {family for family, side in sides.items() if side in ("train", "val")}
    pools |= _ood(corpus, wanted, trained, reference, removed)
    out.mkdir(parents=True, exist_ok=True)
    _write(pools, class_names, out)
    write_card(out, sets, removed, sides, _filled_alone(pools))


def _unseen_in_pretraining(
    corpus: Path, sets: Mapping[str, Any], pools: dict[str, Pool], removed: dict[str, Counter[str]]
) -> dict[str, Pool]:
    """Drop what nearly equals any picture, of any name, that pre-training may have seen."""
    queries = torch.cat([pool.signatures for pool in pools.values()])
    best = torch.full((len(queries),), -1.0)
    for prefix, meta in sets.items():
        if meta["family"] in PRETRAINING:
            pictures = np.load(corpus / f"{prefix}.npy", mmap_mode="r")
            for start in range(0, len(pictures), 4096):
                references = signature(coverage(np.array(pictures[start : start + 4096])))
                best = torch.maximum(best, nearest(queries, references)[0])
    kept, start = {}, 0
    for name, pool in pools.items():
        fresh = best[start : start + len(pool)] <= THRESHOLD
        start += len(pool)
        removed[name]["near-duplicate of a pre-training picture"] += int((~fresh).sum())
        kept[name] = pool.keep(fresh)
    return kept


def _split(pools: dict[str, Pool], removed: dict[str, Counter[str]]) -> tuple[dict[str, Pool], dict[str, str]]:
    """Deal the ID pool's families to the splits, and take the duotone pictures out of it."""
    for name, pool in pools.items():
        unique = first_of_each(pool.signatures, EXACT)
        removed[name]["exact copy of another candidate"] += int((~unique).sum())
        pools[name] = pool.keep(unique)
    everything = pools["id"]
    styles = np.array(measured_style(everything.ink))
    plain = everything.keep(torch.from_numpy(styles != "duotone"))
    sides = deal_families(Counter(icon.family for icon in plain.icons), TARGETS)
    out = {name: plain.keep([sides[icon.family] == name for icon in plain.icons]) for name in TARGETS}
    duotone = everything.keep(torch.from_numpy(styles == "duotone"))
    # A family with nothing but duotone pictures stands on no other side.
    on_test_side = torch.tensor([sides.get(icon.family, "test") == "test" for icon in duotone.icons], dtype=torch.bool)
    removed["duotone"]["of a family that stands on another side"] += int((~on_test_side).sum())
    return out | {
        "duotone": duotone.keep(on_test_side),
        "emoji": pools["emoji"],
        "other-hands": pools["other-hands"],
    }, sides


def _between(pools: dict[str, Pool], precedence: Sequence[str], removed: dict[str, Counter[str]]) -> dict[str, Pool]:
    """Drop what nearly equals a picture of a set that comes earlier in ``precedence``."""
    out: dict[str, Pool] = {}
    for name in precedence:
        fresh = torch.ones(len(pools[name]), dtype=torch.bool)
        for earlier, pool in out.items():
            # A duotone picture is the designer's own test drawing with a tone, as dark mode is; only copies go.
            limit = EXACT if (earlier, name) == ("test", "duotone") else THRESHOLD
            fresh &= nearest(pools[name].signatures, pool.signatures)[0] <= limit
        removed[name]["near-duplicate of a picture in an earlier set"] += int((~fresh).sum())
        out[name] = pools[name].keep(fresh)
    return out


def _drop_rare_classes(
    pools: dict[str, Pool], removed: dict[str, Counter[str]]
) -> tuple[dict[str, Pool], tuple[str, ...]]:
    """Keep classes with enough test images; labels stay numbers of ``ID_CLASSES``."""
    counts = Counter(icon.label for icon in pools["test"].icons)
    trained = {icon.label for icon in pools["train"].icons}
    kept = {label for label in range(len(ID_CLASSES)) if counts[label] >= MIN_TEST_IMAGES and label in trained}
    if not kept:
        raise RPLibError("no class has enough test and training pictures: is the corpus complete?")
    out = {}
    for name, pool in pools.items():
        out[name] = pool.keep([icon.label in kept for icon in pool.icons])
        removed[name]["class with too few test images"] += len(pool) - len(out[name])
    return out, tuple(name for label, name in enumerate(ID_CLASSES) if label in kept)


def _ood(
    corpus: Path, wanted: Mapping[str, Sequence[Icon]], trained: set[str], shows_id: Pool,
    removed: dict[str, Counter[str]],
) -> dict[str, Pool]:  # fmt: skip
    """The OOD sets: from families that are not trained on, unlike every ID-class picture, each picture once."""
    out: dict[str, Pool] = {}
    id_views = _views(shows_id.keep([icon.coloured for icon in shows_id.icons]))
    seen = [torch.zeros(0, 1024)]
    for name in OOD_PRECEDENCE:
        icons = [icon for icon in wanted[name] if icon.family not in trained]
        removed[name]["of a family that is trained on"] += len(wanted[name]) - len(icons)
        # A stock to choose from: enough to lose many to the checks below.
        pool = read_pool(corpus, _choose(name, icons, 3 * CAPS[name]))
        visible = torch.tensor([_visible(pool, place) for place in range(len(pool))], dtype=torch.bool)
        removed[name]["light on white: nothing to see"] += int((~visible).sum())
        pool = pool.keep(visible)
        if name == "flags":  # the outline of a flag's cloth is a square or a disc and says nothing; its colours do
            fresh = nearest(_views(pool), id_views)[0] <= THRESHOLD
        else:
            fresh = nearest(pool.signatures, shows_id.signatures)[0] <= THRESHOLD
        removed[name]["near-duplicate of a picture of an ID class"] += int((~fresh).sum())
        pool = pool.keep(fresh)
        # Flags and logos differ by colour too, so among coloured pictures colour is compared.
        views = _views(pool)
        unique = first_of_each(views)
        fresh = unique & (nearest(views, torch.cat(seen))[0] <= THRESHOLD)
        removed[name]["near-duplicate of an OOD picture"] += int((~fresh).sum())
        pool = pool.keep(fresh)
        chosen = {icon.key for icon in _choose(name, pool.icons, CAPS[name])}
        removed[name]["above the cap"] += len(pool) - len(chosen)
        out[name] = pool.keep([icon.key in chosen for icon in pool.icons])
        seen.append(_views(out[name]))
    return out


def _visible(pool: Pool, place: int) -> bool:
    return pool.rgb is None or not pool.icons[place].coloured or float((pool.rgb[place] < 225).mean()) > 0.01


def _choose(name: str, icons: Sequence[Icon], cap: int) -> list[Icon]:
    if name in ("near", "signs"):
        return spread(icons, lambda icon: icon.concept, cap)
    if name == "logos":
        mono = spread([i for i in icons if not i.coloured], lambda icon: icon.set, cap // 2)
        return mono + spread([i for i in icons if i.coloured], lambda icon: icon.set, cap - len(mono))
    return spread(icons, lambda icon: icon.set, cap)


def _views(pool: Pool) -> torch.Tensor:
    """Unit float32 (n, 1024): a colour signature of coloured pictures, the usual one of monochrome ones."""
    out = pool.signatures.clone()
    coloured = [place for place, icon in enumerate(pool.icons) if icon.coloured]
    if coloured and pool.rgb is not None:
        cells = F.adaptive_avg_pool2d(torch.from_numpy(pool.rgb[coloured]).float() / 255, 18).flatten(1)
        cells = F.normalize(cells - cells.mean(1, keepdim=True), dim=1)
        out[coloured] = F.pad(cells, (0, out.shape[1] - cells.shape[1]))
    return out


def _filled_alone(pools: Mapping[str, Pool]) -> list[str]:
    """Say in numbers why filled drawings are no shift of their own."""
    styles = Counter(measured_style(pools["test"].ink))
    return [
        "Line and filled drawings are mixed in every ID set, as designers ship them, and the style of each picture is "
        f"stored. With line drawings alone as ID the test set would hold {styles['line']} pictures, so `filled` "
        f"({styles['filled']} of the test pictures) is not a shift of its own; accuracy can be read by style instead."
    ]


def _write(pools: Mapping[str, Pool], class_names: Sequence[str], out: Path) -> None:
    """Write the sheets, then the index."""
    families = sorted({icon.family for pool in pools.values() for icon in pool.icons})
    all_names = list(ID_CLASSES)
    number = {all_names.index(name): new for new, name in enumerate(class_names)}
    entries: dict[str, Any] = {}
    for name, role in ROLES.items():
        pool = pools[name]
        sheets = []
        mono = sum(not icon.coloured for icon in pool.icons)  # a pool is sorted: monochrome first
        parts = [(f"{name}.png", quantize(pool.ink[:mono]))] if mono else []
        if mono < len(pool) and pool.rgb is not None:
            parts.append((f"{name}-colour.png", pool.rgb[mono:]))
        for file, pictures in parts:
            data = encode_sheet(pictures)
            write_atomically(out / file, lambda path, data=data: path.write_bytes(data))
            sheets.append({"file": file, "n": len(pictures), "sha256": hashlib.sha256(data).hexdigest()})
        styles = [*measured_style(pool.ink[:mono]), *["colour"] * (len(pool) - mono)]
        style_names = sorted(set(styles))
        entries[name] = {
            "role": role,
            "sheets": sheets,
            "labels": None if role.endswith("ood") else [number[icon.label] for icon in pool.icons],
            "groups": [families.index(icon.family) for icon in pool.icons],
            "style_names": style_names,
            "styles": [style_names.index(style) for style in styles],
            "icons": describe_icons([(icon.set, icon.name) for icon in pool.icons]),
        }
    index = {
        "format": FORMAT, "class_names": list(class_names), "templates": list(TEMPLATES), "families": families,
        "sets": entries,
    }  # fmt: skip
    write_atomically(out / INDEX, lambda path: write_index(index, path))
