"""Read the mini benchmark's files: one PNG sheet of tiles for each image set, and one index.

``NAME.png`` holds the pictures as 64 by 64 tiles, row by row: grey for monochrome sets (white paper, ink in 16
levels), RGB on white for coloured ones; a set with both has ``NAME.png`` and ``NAME-colour.png``.
``index.json`` holds classes, prompts, the families of designers, and for each picture its label, family, icon and
style. It has the SHA-256 of each sheet and of itself. Nothing is executed on loading.
"""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
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

    Args:
        role: See :data:`rp_lib.benchmark.ROLES`.
        images: uint8, shape (n, 3, 64, 64).
        labels: int64, shape (n,), or None.
        groups: Positions in ``families``, int64, shape (n,).
        icons: ``set:icon`` of each picture.
        styles: How each picture is drawn.
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


def read_benchmark(folder: Path) -> StoredBenchmark:
    """Read a benchmark that ``python -m rp_course mini benchmark`` wrote, each file checked by its SHA-256.

    Raises:
        RPLibError: A file is missing, truncated or altered; the message says which and what to do.
    """
    index = _read_index(folder)
    sets = {name: _read_set(folder, entry) for name, entry in index["sets"].items()}
    return StoredBenchmark(tuple(index["class_names"]), tuple(index["templates"]), tuple(index["families"]), sets)


def index_digest(index: dict[str, Any]) -> str:
    """SHA-256 (hex) of an index without its own digest."""
    return hashlib.sha256(json.dumps(index, sort_keys=True).encode()).hexdigest()


def decode_sheet(data: bytes, n: int) -> np.ndarray:
    """Decode the first ``n`` pictures of a PNG sheet: uint8 (n, 3, 64, 64)."""
    from PIL import Image

    image = Image.open(io.BytesIO(data))
    sheet = np.asarray(image if image.mode == "L" else image.convert("RGB"))
    sheet = sheet[..., None] if sheet.ndim == 2 else sheet  # (rows * 64, columns * 64, channels)
    rows, channels = sheet.shape[0] // SIZE, sheet.shape[2]
    tiles = sheet.reshape(rows, SIZE, COLUMNS, SIZE, channels).transpose(0, 2, 4, 1, 3)
    tiles = tiles.reshape(rows * COLUMNS, channels, SIZE, SIZE)[:n]
    return np.broadcast_to(tiles, (len(tiles), 3, SIZE, SIZE)).copy()


def _read_index(folder: Path) -> dict[str, Any]:
    path = folder / INDEX
    if not path.is_file():
        raise RPLibError(f"there is no benchmark in {folder} ({INDEX} is missing): {_REMEDY}")
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        intact = index.pop("sha256") == index_digest(index)
    except (ValueError, KeyError, AttributeError):
        intact = False
    if not intact:
        raise RPLibError(f"{path} is truncated or altered: {_REMEDY}")
    if index["format"] != FORMAT:
        raise RPLibError(f"{path} has format {index['format']}, this rp_lib reads format {FORMAT}: {_REMEDY}")
    return index


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
    return StoredSet(
        role=entry["role"],
        images=torch.cat([torch.zeros(0, 3, SIZE, SIZE, dtype=torch.uint8), *parts]),
        labels=None if labels is None else torch.tensor(labels, dtype=torch.int64),
        groups=torch.tensor(entry["groups"], dtype=torch.int64),
        icons=[f"{prefix}:{icon}" for prefix, names in entry["icons"] for icon in names],
        styles=[entry["style_names"][i] for i in entry["styles"]],
    )
