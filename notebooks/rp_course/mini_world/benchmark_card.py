"""Data card, contact sheet and attribution of the mini benchmark; every number comes from the build."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rp_course.mini_world.corpus import NPM_PACKAGE, NPM_VERSION, write_attribution
from rp_course.mini_world.exclusions import EXCLUDED, FLAG_EMBLEMS, LOGO_EXCLUDED, VIEWED
from rp_course.mini_world.families import PRETRAINING
from rp_course.mini_world.near_duplicates import CELLS, THRESHOLD
from rp_lib.mini.sheets import LEVELS, SIZE, StoredBenchmark, read_benchmark
from rp_lib.utils.io import write_atomically

_EXAMPLES = 14
_SAYS = {
    "train": "ID, to train on", "val": "ID, to choose hyper-parameters on", "test": "ID, to judge on",
    "second-draw": "ID style, by yet other designers", "emoji": "coloured emoji of several vendors",
    "duotone": "two tones, by designers of the test side", "other-hands": "pixel and marker drawings",
    "near": "near OOD: other objects", "logos": "far OOD: brand logos", "flags": "far OOD: flags",
    "characters": "far OOD: letters and digits", "signs": "far OOD: interface signs",
}  # fmt: skip


def write_card(
    out: Path,
    sets: Mapping[str, Any],
    removed: Mapping[str, Counter[str]],
    sides: Mapping[str, str],
    limits: Sequence[str],
) -> None:
    """Write ``DATA_CARD.md``, ``contact_sheet.png`` and ``ATTRIBUTION.md`` beside a benchmark that is there.

    Args:
        out: the benchmark's folder.
        sets: the corpus' metadata.
        removed: what was left out, by set and reason.
        sides: the split of each family.
        limits: lines about what the data did not give.
    """
    stored = read_benchmark(out)
    used = {icon.split(":")[0] for images in stored.sets.values() for icon in images.icons}
    used |= {prefix for prefix, meta in sets.items() if meta["family"] in PRETRAINING}
    infos = {prefix: {**sets[prefix], "name": sets[prefix]["title"]} for prefix in used}
    write_atomically(out / "ATTRIBUTION.md", lambda path: write_attribution(infos, path))
    write_atomically(out / "contact_sheet.png", lambda path: _contact_sheet(stored, path))
    text = "\n".join(_card(out, stored, sets, removed, sides, limits)) + "\n"
    write_atomically(out / "DATA_CARD.md", lambda path: path.write_text(text, encoding="utf-8"))


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(str(cell) for cell in line) + " |" for line in lines] + [""]


def _card(
    out: Path, stored: StoredBenchmark, sets: Mapping[str, Any], removed: Mapping[str, Counter[str]],
    sides: Mapping[str, str], limits: Sequence[str],
) -> list[str]:  # fmt: skip
    labelled = {name: s for name, s in stored.sets.items() if s.labels is not None}
    used = sorted({icon.split(":")[0] for s in stored.sets.values() for icon in s.icons})
    licences = Counter(sets[prefix]["license"]["spdx"] for prefix in used)
    size = sum(path.stat().st_size for path in out.glob("*") if path.suffix in (".png", ".json")) / 2**20
    lines = [
        "# Data card of the mini benchmark", "",
        "Written by `python -m rp_course mini benchmark`, with every number in it; do not edit. "
        f"Source: {NPM_PACKAGE} {NPM_VERSION}, rasterised at {SIZE} pixels; ink in {LEVELS} levels on white, or RGB on "
        f"white. {len(stored.class_names)} classes, {sum(len(s.icons) for s in stored.sets.values())} pictures of "
        f"{len(used)} icon sets by {len(stored.families)} families of designers, {size:.1f} MiB. Families that "
        "pre-training sees are not among them.", "",
        "![Examples of every set](contact_sheet.png)", "",
        "## Sets", "",
    ]  # fmt: skip
    rows = []
    for name, s in stored.sets.items():
        styles = ", ".join(f"{count} {style}" for style, count in sorted(Counter(s.styles).items()))
        classes = "" if s.labels is None else len(s.labels.unique())
        rows.append([name, _SAYS[name], len(s.icons), classes, len(s.groups.unique()), styles])
    lines += _table(["set", "what it is", "pictures", "classes", "families", "drawn (measured)"], rows)
    lines += [
        "Derived when the benchmark is loaded, as shifts: `cluttered` (a paler icon behind), `hidden` (a sixth is covered), "
        "`tilted` (seen at an angle) and `wobbly` (bent lines), 400 test pictures each; as controls: `dark` (the test "
        "pictures inverted) and `corrupted-1`, `-3`, `-5` (the same 300 test pictures under four corruptions each).", "",
        "The shifts are these four, `emoji` and `other-hands`: what the augmentation of pre-training does not contain and "
        "costs zero-shot five points or more. `second-draw` and `duotone` cost it less, and are controls as well.", "",
        *limits, "",
        "## Pictures of each class", "",
    ]  # fmt: skip
    counts = {name: np.bincount(s.labels.numpy(), minlength=len(stored.class_names)) for name, s in labelled.items()}
    rows = [[c, *(counts[name][i] for name in labelled)] for i, c in enumerate(stored.class_names)]
    lines += _table(["class", *labelled], rows)
    lines += [
        "## Families of each set",
        "",
        "A family (sets of one author, code base or ancestor) stands on one side only.",
        "",
    ]
    for name, s in stored.sets.items():
        families = Counter(stored.families[g] for g in s.groups.tolist()).most_common()
        lines.append(f"* **{name}**: " + ", ".join(f"{family} {count}" for family, count in families))
    lines += [
        "", "## What was left out, and why", "",
        f"Near-duplicate: the ink, cropped to its box and reduced to {CELLS} by {CELLS} cells, correlates above "
        f"{THRESHOLD} (coloured OOD pictures among each other: their colours). ID and shifts are compared with every "
        "picture of the pre-training families, whatever its name; between sets, the earlier of test, second-draw, "
        "emoji, duotone, other-hands, val, train keeps a shared picture.", "",
    ]  # fmt: skip
    rows = [[name, reason, count] for name, reasons in removed.items() for reason, count in reasons.items() if count]
    lines += _table(["set", "reason", "pictures"], rows)
    lines += [
        "## How OOD was checked", "",
        "1. No word of a picture's name, concept or aliases names an ID class or a thing that contains one "
        "(`classes.ID_WORDS`).",
        "2. No picture is a near-duplicate of any picture of an ID class, of any family, coloured ones included.",
        f"3. {sum(VIEWED.values())} OOD pictures were looked at on contact sheets "
        f"({', '.join(f'{count} {name}' for name, count in VIEWED.items())}). "
        f"{len(EXCLUDED) + len(LOGO_EXCLUDED)} name patterns stand on the "
        f"list of exclusions with a reason each (`rp_lib/mini/exclusions.py`, ID pictures that do not show their class "
        f"included), and {len(FLAG_EMBLEMS)} places' flags, which show a star, sun, moon, leaf, bird or the like.",
        "4. OOD pictures come from no family of train or val. They were not compared with pre-training: a CLIP may "
        "have seen a logo or a flag, drawn by others.", "",
        "## Licences", "",
        f"By number of sets: {', '.join(f'{name} {count}' for name, count in licences.most_common())}. Every set, its "
        "author and licence, those of pre-training included: [ATTRIBUTION.md](ATTRIBUTION.md). Logos and flags remain "
        "their owners' marks.", "",
        "## Known limits", "",
        "* Labels come from names. Names that turned out to show something else were dropped, but single mislabelled "
        "pictures remain likely.",
        "* The near-duplicate measure is blind to a copy with another stroke width or a changed detail. Simple shapes "
        "(a heart, a star) fall to it although nobody copied; so these classes are smaller.",
        "* Families follow authors and known forks; unknown borrowing between designers remains possible.",
        "* Few large families hold much of the test set: use intervals clustered by family (`ImageSet.groups`).",
    ]  # fmt: skip
    split = ", ".join(f"{name} {count}" for name, count in sorted(Counter(sides.values()).items()))
    return [*lines, f"* ID families were dealt whole ({split}), so class shares differ between splits."]


def _contact_sheet(stored: StoredBenchmark, path: Path) -> None:
    """One row of labelled examples per set; the same classes in every labelled row where the data has them."""
    from matplotlib.figure import Figure

    n_classes = len(stored.class_names)
    shown = [i * n_classes // min(_EXAMPLES, n_classes) for i in range(min(_EXAMPLES, n_classes))]
    figure = Figure(figsize=(12.5, 0.98 * len(stored.sets)), dpi=80)
    axes = figure.subplots(len(stored.sets), _EXAMPLES, squeeze=False)
    for row, (name, s) in zip(axes, stored.sets.items(), strict=True):
        if s.labels is None:
            step = max(1, len(s.icons) // _EXAMPLES)
            picks = [min(i * step, len(s.icons) - 1) for i in range(_EXAMPLES)] if s.icons else []
        else:
            labels = s.labels.tolist()
            picks = [labels.index(c) if c in labels else -1 for c in shown]
        for axis in row:
            axis.axis("off")
        for axis, pick in zip(row, picks, strict=False):
            if pick >= 0:
                axis.imshow(s.images[pick].permute(1, 2, 0).numpy())
                caption = (
                    s.icons[pick].split(":")[1][:13] if s.labels is None else stored.class_names[int(s.labels[pick])]
                )
                axis.set_title(caption, fontsize=7, pad=2)
        row[0].text(
            -0.25, 0.5, f"{name}\n{len(s.icons)}", transform=row[0].transAxes, ha="right", va="center", fontsize=9
        )
    figure.subplots_adjust(left=0.09, right=0.995, top=0.975, bottom=0.01, hspace=0.35, wspace=0.15)
    data = io.BytesIO()
    figure.savefig(data, format="png", metadata={"Software": None})
    # A palette makes the file a third as large; nobody sees it.
    Image.open(data).convert("RGB").quantize(160, dither=Image.Dither.NONE).save(path, "PNG", optimize=True)
