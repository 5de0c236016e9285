"""How the mini benchmark is stored: one PNG sheet of tiles per image set, and one index.

``NAME.png`` holds the pictures as 64 by 64 tiles, row by row: grey for monochrome sets (white paper, ink in 16
levels), RGB on white for coloured ones; a set with both has ``NAME.png`` and ``NAME-colour.png``.
``index.json`` holds classes, prompts, the families, and for each picture its label, family, icon and style; it
names the SHA-256 of every sheet and of itself. Nothing is executed on loading.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rp_lib.utils.errors import RPLibError

FOLDER = Path(__file__).resolve().parent.parent / "assets" / "mini" / "benchmark"
SIZE = 64
COLUMNS = 40
LEVELS = 16
FORMAT = 1
INDEX = "index.json"
_REMEDY = "reinstall rp_lib, or build the benchmark again with `python -m rp_course mini benchmark`"


@dataclass(frozen=True)
class StoredSet:
    """One image set as it is stored: the monochrome pictures first, then the coloured ones.

    Attributes:
        role: see :data:`rp_lib.benchmark.ROLES`.
        images: uint8 (n, 3, 64, 64). labels: int64 (n,) or None. groups: int64 (n,), positions in ``families``.
        icons: ``set:icon`` of each picture. styles: how each is drawn.
    """

    role: str
    images: Tensor
    labels: Tensor | None
    groups: Tensor
    icons: list[str]
    styles: list[str]


@dataclass(frozen=True)
class StoredBenchmark:
    """Everything in a benchmark's folder."""

    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    families: tuple[str, ...]
    sets: dict[str, StoredSet]


def quantise(coverage: np.ndarray) -> np.ndarray:
    """Coverage uint8 (n, 64, 64) to grey pictures, uint8 (n, 64, 64): black ink on white in 16 levels."""
    step = 255 // (LEVELS - 1)
    return (255 - (coverage.astype(np.int32) + step // 2) // step * step).astype(np.uint8)


def encode_sheet(pictures: np.ndarray) -> bytes:
    """PNG of uint8 (n, 64, 64) or (n, 3, 64, 64) pictures, the same bytes for the same pictures."""
    if pictures.ndim == 3:
        pictures = pictures[:, None]
    n, channels = pictures.shape[:2]
    rows = -(-n // COLUMNS)
    tiles = np.full((rows * COLUMNS, channels, SIZE, SIZE), 255, np.uint8)
    tiles[:n] = pictures
    sheet = tiles.reshape(rows, COLUMNS, channels, SIZE, SIZE).transpose(0, 3, 1, 4, 2)
    sheet = sheet.reshape(rows * SIZE, COLUMNS * SIZE, channels)
    out = io.BytesIO()
    Image.fromarray(sheet[..., 0] if channels == 1 else sheet).save(out, "PNG", optimize=True)
    return out.getvalue()


def decode_sheet(data: bytes, n: int) -> np.ndarray:
    """The first ``n`` pictures of a sheet, uint8 (n, 3, 64, 64)."""
    image = Image.open(io.BytesIO(data))
    sheet = np.asarray(image if image.mode == "L" else image.convert("RGB"))
    sheet = sheet[..., None] if sheet.ndim == 2 else sheet
    rows, channels = sheet.shape[0] // SIZE, sheet.shape[2]
    tiles = sheet.reshape(rows, SIZE, COLUMNS, SIZE, channels).transpose(0, 2, 4, 1, 3)
    tiles = tiles.reshape(rows * COLUMNS, channels, SIZE, SIZE)[:n]
    return np.broadcast_to(tiles, (len(tiles), 3, SIZE, SIZE)).copy()


def write_index(index: dict[str, Any], path: Path) -> None:
    """Write the index with the SHA-256 of its own content; one line per image set keeps changes readable."""
    index = {**index, "sha256": _digest(index)}
    lines = [f"{json.dumps(key)}: {_dump(value)}" for key, value in index.items()]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def _digest(index: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(index, sort_keys=True).encode()).hexdigest()


def _dump(value: Any) -> str:
    if isinstance(value, dict):
        inner = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v, separators=(',', ':'))}" for k, v in value.items())
        return "{\n" + inner + "\n}"
    return json.dumps(value)


def read_index(folder: Path) -> dict[str, Any]:
    """The checked content of ``index.json``.

    Raises:
        RPLibError: missing, truncated, altered, or written by another version.
    """
    path = folder / INDEX
    if not path.is_file():
        raise RPLibError(f"there is no benchmark in {folder} ({INDEX} is missing): {_REMEDY}")
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        intact = index.pop("sha256") == _digest(index)
    except (ValueError, KeyError, AttributeError):
        intact = False
    if not intact:
        raise RPLibError(f"{path} is truncated or altered: {_REMEDY}")
    if index["format"] != FORMAT:
        raise RPLibError(f"{path} has format {index['format']}, this rp_lib reads format {FORMAT}: {_REMEDY}")
    return index


def read_benchmark(folder: Path) -> StoredBenchmark:
    """Read a benchmark that ``python -m rp_course mini benchmark`` wrote, every file checked by its SHA-256.

    Raises:
        RPLibError: a file is missing, truncated or altered; the message says which and what to do.
    """
    index = read_index(folder)
    sets = {name: _read_set(folder, entry) for name, entry in index["sets"].items()}
    return StoredBenchmark(tuple(index["class_names"]), tuple(index["templates"]), tuple(index["families"]), sets)


def _read_set(folder: Path, entry: dict[str, Any]) -> StoredSet:
    parts = []
    for sheet in entry["sheets"]:
        path = folder / sheet["file"]
        if not path.is_file():
            raise RPLibError(f"{path} is missing: {_REMEDY}")
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != sheet["sha256"]:
            raise RPLibError(f"{path} is truncated or altered (its SHA-256 is not that of the index): {_REMEDY}")
        parts.append(torch.from_numpy(decode_sheet(data, sheet["n"])))
    labels = entry["labels"]
    icons = [f"{prefix}:{icon}" for prefix, names in entry["icons"] for icon in names]
    styles = [entry["style_names"][i] for i in entry["styles"]]
    return StoredSet(
        role=entry["role"],
        images=torch.cat([torch.zeros(0, 3, SIZE, SIZE, dtype=torch.uint8), *parts]),
        labels=None if labels is None else torch.tensor(labels, dtype=torch.int64),
        groups=torch.tensor(entry["groups"], dtype=torch.int64),
        icons=icons,
        styles=styles,
    )


def describe_icons(icons: Sequence[tuple[str, str]]) -> list[list[Any]]:
    """Run-length form of (set, icon) pairs: [[set, [icon, ...]], ...] in the same order."""
    runs: list[list[Any]] = []
    for prefix, icon in icons:
        if not runs or runs[-1][0] != prefix:
            runs.append([prefix, []])
        runs[-1][1].append(icon)
    return runs
