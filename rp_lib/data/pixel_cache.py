"""SHA-256 of many files, remembered: a file whose size and times did not change is not read again.

One safetensors file for each folder of images, ``CACHE/hashes/KEY.safetensors``. A time that is younger than the
look at it proves nothing (the next write may fall on the same tick), so fresh files are read again the next time.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import logging
import mmap
import os
import shutil
import sys
import time
import warnings
from collections import defaultdict, deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL
import torch
from filelock import FileLock, Timeout
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from rp_lib.data.download import RESERVE, free_bytes, human
from rp_lib.data.sources import NoSpace
from rp_lib.utils.errors import RPLibError
from rp_lib.utils.io import StorageError, file_sha256, load_tensors, save_tensors

_SETTLED_NS = 2_000_000_000
_FILES_AT_ONCE = 256


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
        for start in range(0, len(unread), _FILES_AT_ONCE):
            chunk = unread[start : start + _FILES_AT_ONCE]
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


# From the bytes of an image file to pixels as CLIP sees them.
#
# The shorter side is resized to ``size`` (bicubic, antialiased) and the centre is cut out: CLIP's own preprocessing up
# to the normalisation (Radford et al. 2021). Three things go beyond it. The EXIF orientation is respected. Files
# of 16 bits per channel keep their upper 8. Conversion to RGB precedes the resize, so that palettes are interpolated.

# Raise it when the same file would give other pixels: caches are made anew then.
DECODER_VERSION = 1
TRANSFORM = "EXIF orientation, RGB, shorter side bicubic antialiased, centre crop"
GREYSCALE_MODES = frozenset({"1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N"})
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class BrokenImage(ValueError):
    """A file that shows no image; the message says what is wrong with it."""


class Decoded(NamedTuple):
    """``pixels``: uint8 (3, size, size). ``greyscale``: the file stores one channel. ``sha256``: of ``pixels``."""

    pixels: np.ndarray
    greyscale: bool
    sha256: bytes


def decode(data: bytes, size: int) -> Decoded:
    """Decode one image file; the first frame of several.

    Raises:
        BrokenImage: it is empty, truncated, no image, or larger than ``PIL.Image.MAX_IMAGE_PIXELS``.
    """
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as TF

    if not data:
        raise BrokenImage("an empty file")
    try:
        with Image.open(io.BytesIO(data)) as image:
            limit = Image.MAX_IMAGE_PIXELS
            if limit is not None and image.width * image.height > limit:  # Pillow itself raises at twice the limit
                raise BrokenImage(f"{image.width} x {image.height} pixels, too many (decompression bomb?)")
            greyscale = image.mode in GREYSCALE_MODES
            image.load()
            square = TF.center_crop(
                TF.resize(_rgb(_upright(image)), size, InterpolationMode.BICUBIC, antialias=True), size
            )
    except BrokenImage:
        raise
    except Image.DecompressionBombError as error:
        raise BrokenImage("too many pixels (decompression bomb?)") from error
    except Image.UnidentifiedImageError as error:
        raise BrokenImage("no image, or of a kind that Pillow does not know") from error
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and others
        raise BrokenImage(f"{error}" or type(error).__name__) from error
    pixels = np.ascontiguousarray(np.asarray(square, dtype=np.uint8).transpose(2, 0, 1))
    return Decoded(pixels, greyscale, hashlib.sha256(pixels).digest())


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Silence Pillow's warnings (odd EXIF data, large images): each is either harmless or an error in :func:`decode`.

    Warning filters belong to the process, not to a thread: enter it once around all workers.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # unreadable EXIF data says nothing about the pixels, which were read
        return image
    turn = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode == "F":
        raise BrokenImage("floating-point pixels, which have no defined range")
    if image.mode.startswith("I"):  # Pillow would clip 16 bits at 255: nearly white
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise BrokenImage("32-bit pixels, which have no defined range")
        return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


# Opening a cache of images: verify it, and map it into memory.

log = logging.getLogger(__name__)

# Up to this size every byte of a cache is verified when it is opened; above it, so many images of it are, and all of
# them if the file's size or time is not as it was.
VERIFY_BYTES = 256 << 20
VERIFY_IMAGES = 512


@dataclass(frozen=True, eq=False)
class CachedImages:
    """Images of a cache.

    Attributes:
        images: uint8 (n, 3, size, size), mapped copy-on-write: pages are read when they are used, and what a
            program writes to them stays in its own memory.
        content: hex SHA-256 of all pixels, by way of a digest for each image; for ``ImageSet.content``.
        files: uint8 (n, 32), SHA-256 of every file.
        pixels: uint8 (n, 32), SHA-256 of every image as it stands in ``images``.
        greyscale: bool (n,), whether the file stores one channel.
    """

    images: Tensor
    content: str
    files: np.ndarray
    pixels: np.ndarray
    greyscale: np.ndarray


def content_of(pixels: np.ndarray, size: int) -> str:
    """Hex SHA-256 of all pixels, from the digests of the images, uint8 (n, 32)."""
    return hashlib.sha256(f"uint8 {(len(pixels), 3, size, size)}".encode() + pixels.tobytes()).hexdigest()


def open_cache(place: Path, files: np.ndarray, size: int) -> CachedImages | None:
    """The cache at ``place``; None if it is not there or damaged."""
    path, stride = place / "pixels.u8", 3 * size**2
    if not place.is_dir():
        return None
    try:
        tensors, about = load_tensors(place / "about.safetensors")
        pixels, greyscale = tensors["pixels"].numpy(), tensors["greyscale"].numpy()
        stat, n = path.stat(), len(files)
        if pixels.shape != (n, 32) or greyscale.shape != (n,) or about["content"] != content_of(pixels, size):
            raise ValueError("its description does not fit")
        if stat.st_size != n * stride:
            raise ValueError(f"pixels.u8 has {stat.st_size:,} bytes instead of {n * stride:,}")
        settled = stat.st_mtime_ns == about["modified"]
        some = settled and stat.st_size > VERIFY_BYTES
        checked = np.unique(np.linspace(0, n - 1, VERIFY_IMAGES).astype(int)).tolist() if some else range(n)
        with path.open("rb") as file:
            for i in checked:
                file.seek(i * stride)
                if hashlib.sha256(file.read(stride)).digest() != pixels[i].tobytes():
                    raise ValueError(f"image {i} is not as it was written")
            images = _mapped(file.fileno(), stat.st_size).reshape(n, 3, size, size)
        if not settled:  # copied, say; it was verified whole and need not be the next time
            with contextlib.suppress(OSError):  # another's file, or a disk that cannot be written: verify it each time
                os.utime(path, ns=(stat.st_atime_ns, about["modified"]))  # type: ignore[arg-type]
    except (StorageError, KeyError, ValueError, OSError) as error:
        if isinstance(error, PermissionError):
            raise StorageError(f"cannot read the cache {place} ({error.strerror}); mend its permissions") from error
        log.warning("the cache %s is damaged (%s) and is made anew", place, error)
        return None
    return CachedImages(images, str(about["content"]), files, pixels, greyscale)


def _mapped(descriptor: int, length: int) -> Tensor:
    """uint8 (length,), copy-on-write."""
    if sys.platform == "win32":
        view = mmap.mmap(descriptor, length, access=mmap.ACCESS_COPY)
    else:
        # Without NORESERVE Linux refuses a private mapping larger than memory and swap, as if all of it were written.
        # Python names the flag from 3.13 on.
        noreserve = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)
        view = mmap.mmap(descriptor, length, flags=mmap.MAP_PRIVATE | noreserve, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    return torch.frombuffer(view, dtype=torch.uint8)


# Images decoded once: uint8 tensors on disk, memory-mapped, shared by every run that wants the same pixels.
#
# A cache is found by the content of the files (not by their names or times) and by the transform. It is whole, or it is
# not there::
#
#     CACHE/hashes/       SHA-256 of files by path, size and times (rp_lib.data.pixel_cache)
#     CACHE/pixels/KEY/   pixels.u8 (n, 3, size, size) and about.safetensors, with a digest of every image
#     CACHE/building/KEY/ on its way; the next process at work throws away what a dead one left
#     CACHE/locks/KEY     held while KEY is built; the system frees it when its process ends, however

log = logging.getLogger(__name__)

_AT_ONCE = 16
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
    """Images as CLIP sees them (:mod:`rp_lib.data.pixel_cache`), decoded now or taken from the cache.

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
    """:func:`rp_lib.data.pixel_cache.file_digests` with the defaults of :func:`load_images`."""
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
        return [_decode_file(paths[i], files[i].tobytes(), size) for i in range(len(paths))[start : start + _AT_ONCE]]

    pending: deque[Future[list[Decoded | str]]] = deque()
    bar = tqdm(total=len(paths), desc=progress, unit="image", disable=progress is None, leave=False)
    pool = ThreadPoolExecutor(workers)  # Pillow and hashlib let other threads run while they work
    try:
        with bar, quiet_pillow():
            for start in range(0, len(paths), _AT_ONCE):
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
