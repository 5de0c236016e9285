"""Which icons the mini benchmark takes: by name, by family, by how they are drawn.

Everything here was fixed from names, pictures and counts, before any model's result on it was known.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from rp_course.mini_world.classes import ID_CLASSES, ID_WORDS, NEAR_CLASSES, SIGN_WORDS
from rp_course.mini_world.exclusions import FLAG_EMBLEMS, is_excluded
from rp_course.mini_world.families import EMOJI, OTHER_HANDS, PRETRAINING
from rp_lib.mini.icon_names import STYLE_WORDS, TRAILING_STYLE

# Families with duotone pictures stand on the test side, so that those pictures can form a shift of their own.
TEST_FAMILIES = frozenset(
    """solar by-phosphor-icons by-keyline-icons by-goran-spasojevic by-heskeybaozi by-abhimanyu-rana
    by-leonid-tsvetkov by-dariush-habibpour by-pingback-llc by-fernandcf""".split()
)
# The first two hold most letters and digits, which may not come from a family that is trained on; the third draws
# the pixel set that goes to other-hands.
SECOND_DRAW_FAMILIES = frozenset(["by-praveen-juge", "by-paweł-kuna", "by-gerrit-halfmann"])
# Sets in another hand than their family's: pixel art, and emoji in one colour.
OTHER_HANDS_SETS = frozenset(["pixelarticons", "emojione-monotone"])
# How many ID pictures each split should get; families are dealt whole, so these are met roughly.
TARGETS = {"test": 1560, "train": 700, "second-draw": 340, "val": 220}
CAPS = {"near": 1500, "logos": 1000, "flags": 1000, "characters": 1000, "signs": 1000}

_CLASS_OF = {name: label for label, (first, more) in enumerate(ID_CLASSES.items()) for name in (first, *more)}
_NEAR = frozenset(NEAR_CLASSES)
_NUMBER_WORDS = frozenset("""zero one two three four five six seven eight nine ten""".split())
_MARKERS = frozenset("""letter number numeric digit counter keycap""".split())
_FRAMES = frozenset(
    """circle square box boxed hexagon octagon diamond rounded small capital uppercase lowercase triangle pentagon
    plain""".split()
)  # fmt: skip
_FLAG_SETS = frozenset(["circle-flags", "flag", "flagpack"])
_FLAG_FILLERS = re.compile(r"^flag-(for-)?|-(1x1|4x3)$")


@dataclass(frozen=True)
class Icon:
    """One picture of the corpus: where it stands and what it is called.

    Attributes:
        set, row: set prefix and row in ``SET.npy``. family: who drew it. name: the icon's own name. concept: what it
            shows by its name. others: its aliases. label: class number, or -1. coloured: RGBA instead of coverage.
    """

    set: str
    row: int
    family: str
    name: str
    concept: str
    others: tuple[str, ...]
    label: int
    coloured: bool

    @property
    def key(self) -> str:
        """``set:name``, as on iconify.design."""
        return f"{self.set}:{self.name}"

    @property
    def order(self) -> str:
        """A fixed shuffle: it depends on the icon's name alone, not on any random generator."""
        return hashlib.sha256(self.key.encode()).hexdigest()


def read_icons(sets: Mapping[str, Mapping[str, Any]]) -> Iterable[tuple[Icon, str | None]]:
    """Every icon of a corpus (see :func:`rp_course.mini_world.corpus.load_sets`) with its set's category."""
    for prefix, meta in sets.items():
        for row, (name, concept, _, others) in enumerate(meta["icons"]):
            label = -1 if meta["category"] == "Logos" or is_excluded(f"{prefix}:{name}") else _CLASS_OF.get(concept, -1)
            icon = Icon(prefix, row, meta["family"], name, concept, tuple(others), label, meta["coloured"])
            yield icon, meta["category"]


def mentions_id(icon: Icon) -> bool:
    """Whether any word of the name, the concept or an alias names an ID class or a thing that contains one."""
    words = re.split(r"[-_\s]+", " ".join((icon.name.lower(), icon.concept, *icon.others)))
    return icon.label >= 0 or any(re.sub(r"\d+$", "", word) in ID_WORDS for word in words)


def id_place(icon: Icon) -> str | None:
    """Where an icon of an ID class may go: "id", "other-hands" or "emoji"; None for nowhere."""
    if icon.label < 0 or icon.family in PRETRAINING:
        return None
    if icon.family in OTHER_HANDS or icon.set in OTHER_HANDS_SETS:
        return None if icon.coloured else "other-hands"
    if icon.family in EMOJI:
        return "emoji" if icon.coloured else None
    return None if icon.coloured else "id"


def ood_place(icon: Icon, category: str | None) -> str | None:
    """Which OOD set an icon may serve, by its name: near, logos, flags, characters, signs; None for none."""
    if icon.family in PRETRAINING or icon.family in OTHER_HANDS or mentions_id(icon):
        return None
    if is_excluded(icon.key, logo=category == "Logos"):
        return None
    if category == "Logos":
        return "logos"
    if icon.set in _FLAG_SETS or (icon.family in EMOJI and icon.coloured and icon.name.startswith("flag-")):
        place = _FLAG_FILLERS.sub("", _FLAG_FILLERS.sub("", icon.name))
        return None if place in FLAG_EMBLEMS or place.split("-")[0] in FLAG_EMBLEMS else "flags"
    if is_character(icon.name):
        return "characters"
    if icon.coloured or icon.family in EMOJI:
        return None
    if icon.concept in _NEAR:
        return "near"
    if all(word in SIGN_WORDS for word in icon.concept.split()):
        return "signs"
    return None


def is_character(name: str) -> bool:
    """Whether an icon shows one letter or number: ``letter-a``, ``number-circle-five``, ``3-square``, ``keycap-7``.

    A digit at the end counts only beside a word such as "number", as ``box-2`` is a second box; a lone
    x is a closing cross more often than a letter.
    """
    words = [w for w in name.lower().split("-") if w not in STYLE_WORDS and w not in TRAILING_STYLE]
    marked = any(word in _MARKERS for word in words)
    rest = [word for word in words if word not in _MARKERS and word not in _FRAMES]
    if len(rest) != 1 or ("shield" in words) or (rest[0] in ("o",) and not marked):
        return False
    if re.fullmatch(r"[a-z]", rest[0]):
        return marked or rest[0] != "x"
    if re.fullmatch(r"\d{1,2}", rest[0]):
        return marked or words[0] == rest[0]
    return rest[0] in _NUMBER_WORDS


def measured_style(coverage: np.ndarray) -> list[str]:
    """How pictures are drawn, "line", "filled" or "duotone", measured on uint8 (n, 64, 64) coverage.

    Duotone has areas of half ink that outlast an erosion by 2 pixels, which takes away soft edges; filled has
    areas of full ink that outlast an erosion by 5 pixels, which takes away strokes.
    """
    styles: list[str] = []
    for start in range(0, len(coverage), 1024):
        ink = torch.from_numpy(np.ascontiguousarray(coverage[start : start + 1024])).float()[:, None] / 255
        area = (ink > 0.12).sum((1, 2, 3)).clamp_min(1)
        half = _erode((ink > 0.1) & (ink < 0.75), 5).sum((1, 2, 3)) / area
        full = _erode(ink > 0.75, 11).sum((1, 2, 3)) / area
        styles += ["duotone" if h > 0.05 else "filled" if f > 0.03 else "line" for h, f in zip(half, full, strict=True)]
    return styles


def _erode(mask: torch.Tensor, width: int) -> torch.Tensor:
    return 1 - F.max_pool2d(1 - mask.float(), width, 1, width // 2)


def deal_families(sizes: Mapping[str, int], targets: Mapping[str, int] = TARGETS) -> dict[str, str]:
    """Give each family to one split: fixed ones first, then the largest to the split that lacks most.

    Args:
        sizes: ID pictures of each family.
        targets: pictures wanted in each split.

    Returns:
        Split of each family.
    """
    sides = {f: "test" for f in sizes if f in TEST_FAMILIES} | {
        f: "second-draw" for f in sizes if f in SECOND_DRAW_FAMILIES
    }
    lacking = dict(targets)
    for family, side in sides.items():
        lacking[side] -= sizes[family]
    for family in sorted(sizes.keys() - sides.keys(), key=lambda f: (-sizes[f], f)):
        side = max(targets, key=lambda s: lacking[s])
        sides[family] = side
        lacking[side] -= sizes[family]
    return sides


def spread(icons: Iterable[Icon], group: Callable[[Icon], Hashable], cap: int) -> list[Icon]:
    """At most ``cap`` icons, taken in turn from each group, so that no group crowds out the others."""
    groups: dict[Hashable, list[Icon]] = defaultdict(list)
    for icon in sorted(icons, key=lambda icon: icon.order):
        groups[group(icon)].append(icon)
    ranked = [(rank, icon.order, icon) for members in groups.values() for rank, icon in enumerate(members)]
    ranked.sort(key=lambda entry: entry[:2])
    return [icon for _, _, icon in ranked[:cap]]
