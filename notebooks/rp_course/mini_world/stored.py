"""Write the files of the mini world: PNG sheets and the index of the benchmark, checkpoints of the mini CLIP.

:mod:`rp_lib.mini` reads them.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rp_lib.mini.sheets import COLUMNS, LEVELS, SIZE, index_digest
from rp_lib.utils.io import save_tensors


def quantize(coverage: np.ndarray) -> np.ndarray:
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


def describe_icons(icons: Sequence[tuple[str, str]]) -> list[list[Any]]:
    """Run-length form of (set, icon) pairs: [[set, [icon, ...]], ...] in the same order."""
    runs: list[list[Any]] = []
    for prefix, icon in icons:
        if not runs or runs[-1][0] != prefix:
            runs.append([prefix, []])
        runs[-1][1].append(icon)
    return runs


def write_index(index: dict[str, Any], path: Path) -> None:
    """Write the index with the SHA-256 of its own content; one line per image set keeps changes readable."""
    index = {**index, "sha256": index_digest(index)}
    lines = [f"{json.dumps(key)}: {_dump(value)}" for key, value in index.items()]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def _dump(value: Any) -> str:
    if isinstance(value, dict):
        inner = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v, separators=(',', ':'))}" for k, v in value.items())
        return "{\n" + inner + "\n}"
    return json.dumps(value)


def export_clip(state: dict[str, Any], config: dict[str, Any], path: Path, keep_tokens: Tensor | None = None) -> None:
    """Write a pre-training state as float16; ``keep_tokens`` (int64 ids) limits the token rows kept."""
    tensors = dict(state["model"])
    rows, ids = tensors.pop("token_embedding.weight"), state["vocabulary"]
    if keep_tokens is not None:
        kept = torch.isin(ids, keep_tokens)
        rows, ids = rows[kept], ids[kept]
    tensors = {name: t.half() for name, t in tensors.items()}
    tensors |= {
        "token_rows": rows.half(),
        "token_ids": ids.int(),
        "other_row": state["model"]["token_embedding.weight"].mean(0).half(),
    }
    save_tensors(path, tensors, {"config": config, "step": state["step"]})
