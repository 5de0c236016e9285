"""SHA-256 of many files, remembered: a file whose size and times did not change is not read again.

One safetensors file for each folder of images, ``CACHE/hashes/KEY.safetensors``. A time that is younger than the
look at it proves nothing (the next write may fall on the same tick), so fresh files are read again the next time.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from rp_lib.storage import StorageError, file_sha256, load_tensors, save_tensors

_SETTLED_NS = 2_000_000_000
_CHUNK = 256


@dataclass
class _Remembered:
    """Of one folder: row by name; int64 (m, 3) size, modification and change time (ns); uint8 (m, 32)."""

    rows: dict[str, int] = field(default_factory=dict)
    stats: np.ndarray = field(default_factory=lambda: np.zeros((0, 3), np.int64))
    sha256: np.ndarray = field(default_factory=lambda: np.zeros((0, 32), np.uint8))


def file_digests(
    paths: Sequence[Path], cache: Path, *, workers: int, progress: str | None = None
) -> tuple[np.ndarray, dict[int, str]]:
    """SHA-256 of every file.

    Args:
        paths: n files.
        cache: folder of the remembered hashes; written only by this function.
        workers: threads that read. progress: what the bar says.

    Returns:
        uint8 (n, 32), and what is wrong with the files that cannot be read, by position; their rows are zero.
    """
    found, broken = np.zeros((len(paths), 32), np.uint8), {}
    texts = [os.fspath(path) for path in paths]  # a million Path operations would take a minute
    stats = np.full((len(paths), 3), -1, np.int64)
    folders: dict[str, list[int]] = defaultdict(list)
    for i, text in enumerate(texts):
        folders[os.path.dirname(text)].append(i)  # noqa: PTH120
        try:
            stat = os.stat(text)  # noqa: PTH116
            stats[i] = stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
        except OSError as error:
            broken[i] = error.strerror or str(error)
    unread: list[int] = []
    for folder, members in folders.items():
        known = _load(_place(cache, folder))
        rows = np.array([known.rows.get(os.path.basename(texts[i]), -1) for i in members])  # noqa: PTH119
        at = np.array(members)
        same = rows >= 0
        same[same] = (known.stats[rows[same]] == stats[at[same]]).all(1)
        found[at[same]] = known.sha256[rows[same]]
        unread += [i for i in at[~same].tolist() if i not in broken]
    if not unread:
        return found, broken
    now = time.time_ns()
    with (
        ThreadPoolExecutor(workers) as pool,
        tqdm(total=len(unread), desc=progress, unit="file", disable=progress is None, leave=False) as bar,
    ):
        for start in range(0, len(unread), _CHUNK):
            chunk = unread[start : start + _CHUNK]
            for i, result in zip(chunk, pool.map(lambda i: _read(paths[i]), chunk), strict=True):
                if isinstance(result, str):
                    broken[i] = result
                else:
                    found[i] = np.frombuffer(result, np.uint8)
            bar.update(len(chunk))
    fresh = defaultdict(list)
    for i in unread:
        if i not in broken and stats[i, 1:].max() < now - _SETTLED_NS:
            fresh[os.path.dirname(texts[i])].append(i)  # noqa: PTH120
    for folder, members in fresh.items():
        _remember(cache, folder, [os.path.basename(texts[i]) for i in members], stats[members], found[members])  # noqa: PTH119
    return found, broken


def _read(path: Path) -> bytes | str:
    try:
        return bytes.fromhex(file_sha256(path))
    except OSError as error:
        return error.strerror or str(error)


def _place(cache: Path, folder: str) -> Path:
    return cache / "hashes" / f"{hashlib.sha256(os.fsencode(Path(folder).resolve())).hexdigest()[:32]}.safetensors"


def _load(path: Path) -> _Remembered:
    try:
        tensors, about = load_tensors(path)
        rows = {name: i for i, name in enumerate(about["names"])}  # type: ignore[arg-type]
        stats, sha256 = tensors["stats"].numpy(), tensors["sha256"].numpy()
        if stats.shape != (len(rows), 3) or sha256.shape != (len(rows), 32):
            return _Remembered()
        return _Remembered(rows, stats, sha256)
    except (StorageError, KeyError, TypeError):
        return _Remembered()  # hashes can always be made anew


def _remember(cache: Path, folder: str, names: list[str], stats: np.ndarray, sha256: np.ndarray) -> None:
    """Add to what is known of a folder; of two processes that write at once the last one's file stays, whole."""
    place = _place(cache, folder)
    known, new = _load(place), set(names)
    old = [(name, row) for name, row in known.rows.items() if name not in new]
    rows = [row for _, row in old]
    tensors = {
        "stats": torch.from_numpy(np.concatenate([known.stats[rows], stats])),
        "sha256": torch.from_numpy(np.concatenate([known.sha256[rows], sha256])),
    }
    # JSON escapes names that are no valid text.
    save_tensors(place, tensors, {"names": [name for name, _ in old] + names, "folder": folder})
