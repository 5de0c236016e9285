"""Images decoded once: uint8 tensors on disk, memory-mapped, shared by every run that wants the same pixels.

A cache is found by the content of the files (not by their names or times) and by the transform. It is whole, or it is
not there::

    CACHE/hashes/       SHA-256 of files by path, size and times (rp_lib.photos.digests)
    CACHE/pixels/KEY/   pixels.u8 (n, 3, size, size) and about.safetensors, with a digest of every image
    CACHE/building/KEY/ on its way; the next process at work throws away what a dead one left
    CACHE/locks/KEY     held while KEY is built; the system frees it when its process ends, however
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import shutil
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import PIL
import torch
from filelock import FileLock, Timeout
from tqdm import tqdm

from rp_lib.data.errors import NoSpace
from rp_lib.data.space import RESERVE, free_bytes, human
from rp_lib.errors import RPLibError
from rp_lib.photos.decode import DECODER_VERSION, TRANSFORM, BrokenImage, Decoded, decode, quiet_pillow
from rp_lib.photos.digests import file_digests
from rp_lib.photos.mapped import CachedImages, content_of, open_cache
from rp_lib.storage import StorageError, save_tensors

log = logging.getLogger(__name__)

_CHUNK = 16
_SHOWN = 10


class BrokenImages(RPLibError):
    """Files that show no image; the message names the first ten, ``broken`` has all of ``total``."""

    def __init__(self, broken: Mapping[Path, str], total: int) -> None:
        self.broken, self.total = dict(broken), total
        shown = "; ".join(f"{path}: {reason}" for path, reason in list(broken.items())[:_SHOWN])
        more = f"; and {len(broken) - _SHOWN:,} more" if len(broken) > _SHOWN else ""
        super().__init__(f"{len(broken):,} of {total:,} images cannot be used: {shown}{more}. Repair or remove them")


def default_cache() -> Path:
    """``$RP_CACHE``, else ``rp_lib`` in the user's cache folder (``$XDG_CACHE_HOME`` or ``~/.cache``)."""
    if folder := os.environ.get("RP_CACHE"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rp_lib"


def load_images(
    paths: Sequence[Path],
    size: int,
    *,
    cache: Path | None = None,
    workers: int | None = None,
    progress: str | None = None,
) -> CachedImages:
    """Images as CLIP sees them (:mod:`rp_lib.photos.decode`), decoded now or taken from the cache.

    Args:
        paths: n image files, in the order of the result.
        size: side of the squares, pixels.
        cache: folder of all caches; by default :func:`default_cache`. Several processes may use it at once: of two
            that want the same images one decodes, and the other waits for it.
        workers: threads that decode; by default one for each processor, 32 at most.
        progress: what the bar says; no bar by default.

    Raises:
        BrokenImages: files that are missing, empty, truncated, too large, or no image; all of them.
        NoSpace: the cache does not fit on its disk.
        RPLibError: no paths, or a size below 1.
    """
    paths = [path if isinstance(path, Path) else Path(path) for path in paths]
    if not paths:
        raise RPLibError("there are no images to load")
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise RPLibError(f"size is the side of the images in pixels, 1 or more, got {size!r}")
    files, broken = hash_files(paths, cache=cache, workers=workers, progress=progress)
    cache = default_cache() if cache is None else Path(cache)
    workers = workers or min(32, _processors())
    decoding = None if progress is None else f"{progress}: decoding"
    if broken:
        whole = [i for i in range(len(paths)) if i not in broken]
        results = _decoded([paths[i] for i in whole], files[whole], size, workers, decoding)
        broken |= {i: r for i, r in zip(whole, results, strict=True) if isinstance(r, str)}
        raise BrokenImages({paths[i]: broken[i] for i in sorted(broken)}, len(paths))
    key = _key(files, size)
    place = cache / "pixels" / key
    if found := open_cache(place, files, size):
        return found
    with _lock(cache, key):
        if found := open_cache(place, files, size):  # another process made it meanwhile
            return found
        _build(place, paths, files, size, _decoded(paths, files, size, workers, decoding))
        if found := open_cache(place, files, size):
            return found
    raise StorageError(f"{place} does not hold what was just written to it; check that disk")


def hash_files(
    paths: Sequence[Path], *, cache: Path | None = None, workers: int | None = None, progress: str | None = None
) -> tuple[np.ndarray, dict[int, str]]:
    """:func:`rp_lib.photos.digests.file_digests` with the defaults of :func:`load_images`."""
    return file_digests(
        paths,
        default_cache() if cache is None else Path(cache),
        workers=workers or min(32, _processors()),
        progress=None if progress is None else f"{progress}: reading",
    )


def _key(files: np.ndarray, size: int) -> str:
    about = {"decoder": DECODER_VERSION, "transform": TRANSFORM, "size": size, "n": len(files)}
    return hashlib.sha256(json.dumps(about).encode() + files.tobytes()).hexdigest()


def _decoded(
    paths: Sequence[Path], files: np.ndarray, size: int, workers: int, progress: str | None
) -> Generator[Decoded | str]:
    """Every image in order, or what is wrong with it; a few chunks for each worker are in memory at a time."""

    def work(start: int) -> list[Decoded | str]:
        return [_decode_file(paths[i], files[i].tobytes(), size) for i in range(start, min(start + _CHUNK, len(paths)))]

    pending: deque[Future[list[Decoded | str]]] = deque()
    bar = tqdm(total=len(paths), desc=progress, unit="image", disable=progress is None, leave=False)
    pool = ThreadPoolExecutor(workers)  # Pillow and hashlib let other threads run while they work
    try:
        with bar, quiet_pillow():
            for start in range(0, len(paths), _CHUNK):
                pending.append(pool.submit(work, start))
                if len(pending) > 2 * workers:
                    done = pending.popleft().result()
                    bar.update(len(done))
                    yield from done
            for future in pending:
                bar.update(len(future.result()))
                yield from future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _decode_file(path: Path, sha256: bytes, size: int) -> Decoded | str:
    try:
        data = path.read_bytes()
        if hashlib.sha256(data).digest() != sha256:
            return "changed while it was read"
        return decode(data, size)
    except BrokenImage as error:
        return str(error)
    except OSError as error:
        return error.strerror or str(error)


def _build(place: Path, paths: Sequence[Path], files: np.ndarray, size: int, results: Generator[Decoded | str]) -> None:
    """Write the cache aside and rename it to ``place``; under its lock."""
    cache, n = place.parent.parent, len(paths)
    aside = cache / "building" / place.name
    _sweep(cache, place.name)
    needed, free = n * 3 * size**2 + 64 * n, free_bytes(cache)
    if needed + RESERVE > free:
        raise NoSpace(
            f"{n:,} images of {size} x {size} pixels need {human(needed)} (and {human(RESERVE)} to spare) in {cache}, "
            f"where {human(free)} are free; make room, choose another disk with cache=... or RP_CACHE, or take "
            "a smaller size"
        )
    pixels, greyscale, broken = np.zeros((n, 32), np.uint8), np.zeros(n, bool), {}
    try:
        aside.mkdir(parents=True)
        with closing(results), (aside / "pixels.u8").open("wb") as file:
            for i, result in enumerate(results):
                if isinstance(result, str):
                    broken[paths[i]] = result
                elif not broken:  # all broken files are named, but nothing more is written
                    file.write(result.pixels)
                    pixels[i], greyscale[i] = np.frombuffer(result.sha256, np.uint8), result.greyscale
            file.flush()
            os.fsync(file.fileno())
        if broken:
            raise BrokenImages(broken, n)
        tensors = {"pixels": torch.from_numpy(pixels), "greyscale": torch.from_numpy(greyscale)}
        stat = (aside / "pixels.u8").stat()
        about = {
            "content": content_of(pixels, size), "size": size, "modified": stat.st_mtime_ns, "transform": TRANSFORM,
            "decoder": DECODER_VERSION, "pillow": PIL.__version__,
        }  # fmt: skip
        save_tensors(aside / "about.safetensors", tensors, about)
        shutil.rmtree(place, ignore_errors=True)  # a damaged one
        place.parent.mkdir(parents=True, exist_ok=True)
        aside.rename(place)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpace(f"the disk of {cache} is full; {human(needed)} are needed for {n:,} images") from error
        raise StorageError(f"cannot write {place} ({error.strerror or error}); choose another cache folder") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@contextlib.contextmanager
def _lock(cache: Path, key: str) -> Iterator[None]:
    """Hold the lock of one cache."""
    try:
        (cache / "locks").mkdir(parents=True, exist_ok=True)
        lock = FileLock(cache / "locks" / key)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log.info("another process decodes the same images; waiting until it is done")
            lock.acquire(poll_interval=0.1)
    except OSError as error:
        raise StorageError(
            f"cannot write in {cache} ({error.strerror or error}); choose another cache folder"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _sweep(cache: Path, own: str) -> None:
    """Remove what dead processes left half-built; what is locked is being built."""
    for left in (cache / "building").glob("*"):
        if left.name == own:
            shutil.rmtree(left)
            continue
        try:
            with FileLock(cache / "locks" / left.name, timeout=0):
                shutil.rmtree(left, ignore_errors=True)
        except Timeout:
            pass


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
