"""Images decoded once: uint8 tensors on disk, memory-mapped, shared by every run that wants the same pixels.

A cache is found by the content of the files (not by their names or times) and by the transform. It is complete, or it
is not there. Pictures that another one holds already are copied from it and not decoded again, and one whose pictures
all stand in new ones is removed::

    CACHE/hashes/KEY    SHA-256 of the files of one folder, by name, size and times: unchanged files are not read again
    CACHE/pixels/KEY/   pixels.u8 (n, 3, size, size) and about.safetensors: a digest of every file and image
    CACHE/building/KEY/ on its way; the next process at work removes what a dead one left
    CACHE/locks/KEY     held while KEY is built; the system frees it when its process ends, however

Pixels are as CLIP sees them up to the normalization (Radford et al. 2021): the shorter side is resized to ``size``
(bicubic, antialiased) and the center is cut out. Four things go beyond it. The EXIF orientation is respected. Files of
16 bits per channel keep their upper 8. Transparent pixels are laid onto white, as viewers show them. Conversion to RGB
precedes the resize, so that palettes are interpolated.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import math
import mmap
import os
import shutil
import sys
import time
import warnings
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from stat import S_ISREG
from typing import Any, NamedTuple

import numpy as np
import PIL
import torch
from filelock import FileLock, Timeout
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from rp_lib.data.download import locked, reports_full_disk, require_space
from rp_lib.utils.errors import RPLibError
from rp_lib.utils.io import StorageError, file_sha256, load_tensors, save_tensors
from rp_lib.utils.preparation import Preparation

log = logging.getLogger(__name__)

# Raise it when the same file would give other pixels: caches are made again then.
DECODER_VERSION = 3
TRANSFORM = "EXIF orientation, RGB on white, shorter side bicubic antialiased, centre crop"
GREYSCALE_MODES = frozenset({"1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N"})
# Up to this size every byte of a cache is verified when it is opened; above it, so many images of it are, and all of
# them if the file's size or time is not as it was.
VERIFY_BYTES = 256 << 20
VERIFY_IMAGES = 512
# A file's time that is younger than the look at it proves nothing: the next write may fall on the same tick.
_SETTLED_NS = 2_000_000_000
# Of a picture that is longer than so many times its short side, the middle alone is resized.
_LONGEST = 16
_FILES_AT_ONCE, _AT_ONCE, _SHOWN = 256, 16, 10


class BrokenImage(ValueError):
    """A file that shows no image; the message says what is wrong with it."""


class BrokenImages(RPLibError):
    """Files that show no image; the message names the first ten, ``broken`` has all of ``total``."""

    def __init__(self, broken: Mapping[Path, str], total: int) -> None:
        self.broken, self.total = dict(broken), total
        shown = "; ".join(f"{path}: {reason}" for path, reason in list(broken.items())[:_SHOWN])
        more = f"; and {len(broken) - _SHOWN:,} more" if len(broken) > _SHOWN else ""
        super().__init__(f"{len(broken):,} of {total:,} images cannot be used: {shown}{more}. Repair or remove them")


class Decoded(NamedTuple):
    """``pixels``: uint8 (3, size, size). ``greyscale``: the file stores one channel. ``sha256``: of ``pixels``."""

    pixels: np.ndarray
    greyscale: bool
    sha256: bytes


@dataclass(frozen=True, eq=False)
class CachedImages:
    """Images of a cache.

    Attributes:
        images: uint8 (n, 3, size, size), mapped copy-on-write: pages are read when they are used, and what a
            program writes to them stays in its own memory.
        content: Hex SHA-256 of all pixels, by way of a digest for each image; for ``ImageSet.content``.
        files: uint8 (n, 32), SHA-256 of every file.
        pixels: uint8 (n, 32), SHA-256 of every image as it stands in ``images``.
        greyscale: bool (n,), whether the file stores one channel.
        place: Folder of the cache.

    Example:
        >>> load_images(image_files("photos"), 224).images.shape  # doctest: +SKIP
        torch.Size([1200, 3, 224, 224])
    """

    images: Tensor
    content: str
    files: np.ndarray
    pixels: np.ndarray
    greyscale: np.ndarray
    place: Path


def default_cache() -> Path:
    """``$RP_CACHE``, else ``rp_lib`` in the user's cache folder (``$XDG_CACHE_HOME`` or ``~/.cache``)."""
    if folder := os.environ.get("RP_CACHE"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rp_lib"


def load_images(
    paths: Sequence[Path],
    size: int | tuple[int, int] | Preparation,
    *,
    cache: Path | None = None,
    workers: int | None = None,
    progress: str | None = None,
) -> CachedImages:
    """Load images as squares that CLIP can take, decoded now or taken from the cache.

    Args:
        paths: n image files, in the order of the result.
        size: Side of the squares, or height and width, pixels; or all that a backbone wants: ``clip.preparation``.
        cache: Folder of all caches; by default :func:`default_cache`. Several processes may use it at once: of two
            that want the same images one decodes, and the other waits for it.
        workers: Threads that decode; by default one for each processor, 32 at most.
        progress: What the bar says; no bar by default.

    Raises:
        BrokenImages: Files that are missing, empty, truncated, too large, or no image; all of them.
        NoSpace: The cache does not fit on its disk.
        RPLibError: No paths, or a size below 1.
    """
    paths = [path if isinstance(path, Path) else Path(path) for path in paths]
    if not paths:
        raise RPLibError("there are no images to load")
    preparation = Preparation.of(size)
    size = preparation.size
    cache, workers = cache or default_cache(), workers or _workers()
    files, broken = hash_files(paths, cache=cache, workers=workers, progress=progress)
    decoding = None if progress is None else f"{progress}: decoding"
    if broken:
        whole = [i for i in range(len(paths)) if i not in broken]
        results = _decoded([paths[i] for i in whole], files[whole], preparation, workers, decoding, {})
        broken |= {i: r for i, r in zip(whole, results, strict=True) if isinstance(r, str)}
        raise BrokenImages({paths[i]: broken[i] for i in sorted(broken)}, len(paths))
    sides = size if isinstance(size, int) else list(size)  # as JSON has them
    about = {"decoder": DECODER_VERSION, "transform": TRANSFORM, "size": sides, "n": len(files)}
    if preparation != Preparation(size):
        about |= {"interpolation": preparation.interpolation, "resize_mode": preparation.resize_mode}
    settings = {name: value for name, value in about.items() if name != "n"}
    key = hashlib.sha256(json.dumps(about).encode() + files.tobytes()).hexdigest()
    place = cache / "pixels" / key
    if found := open_cache(place, files, size):
        return found
    with _lock(cache, key):
        if found := open_cache(place, files, size):  # another process made it meanwhile
            return found
        known = _already_decoded(cache, files, settings)
        _build(place, paths, files, settings, _decoded(paths, files, preparation, workers, decoding, known))
        if found := open_cache(place, files, size):
            drop_covered([found])
            return found
    raise StorageError(f"{place} does not hold what was just written to it; check that disk")


def _workers() -> int:
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(32, processors)


def cache_usage(cache: Path | None = None) -> tuple[int, int]:
    """Count the sets of decoded images that a cache holds, and its bytes."""
    cache = cache or default_cache()
    files = [path for path in cache.rglob("*") if path.is_file()]
    return len(list((cache / "pixels").glob("*"))), sum(path.stat().st_size for path in files)


def clear_cache(cache: Path | None = None) -> int:
    """Remove all decoded images and hashes that no process is making just now; they can be made again.

    Returns:
        The bytes that are free again.
    """
    cache = cache or default_cache()
    before = cache_usage(cache)[1]
    for place in (cache / "pixels").glob("*"):
        _remove(place)
    shutil.rmtree(cache / "hashes", ignore_errors=True)
    return before - cache_usage(cache)[1]


def drop_covered(kept: Sequence[CachedImages]) -> None:
    """Remove the sets beside these whose pictures all stand in them, with others, prepared alike.

    A photo that was added, or another split of a folder, then takes no second copy of all the others.
    """
    places, held = {images.place for images in kept}, {row.tobytes() for images in kept for row in images.files}
    with contextlib.suppress(StorageError):  # another process dropped these: it has the pictures now
        settings = load_tensors(kept[0].place / "about.safetensors")[1]["settings"]
        for place, tensors in _sets(kept[0].place.parent, settings):
            if place not in places and held > {row.tobytes() for row in tensors["files"].numpy()}:
                _remove(place)


def _remove(place: Path) -> None:
    """Remove a set unless it is being made; where it is mapped it stays readable."""
    with contextlib.suppress(Timeout, OSError), FileLock(place.parent.parent / "locks" / place.name, timeout=0):
        shutil.rmtree(place)


# --- Which files these are ---


def hash_files(
    paths: Sequence[Path], *, cache: Path | None = None, workers: int | None = None, progress: str | None = None
) -> tuple[np.ndarray, dict[int, str]]:
    """SHA-256 of n files, remembered in the cache.

    Returns:
        uint8 (n, 32), and what is wrong with the files that cannot be read, by position; their rows are zero.
    """
    cache, found, broken = cache or default_cache(), np.zeros((len(paths), 32), np.uint8), {}
    texts = [os.fspath(path) for path in paths]  # a million Path operations would take a minute
    folders: dict[str, list[int]] = defaultdict(list)
    for i, text in enumerate(texts):
        folders[os.path.dirname(text)].append(i)  # noqa: PTH120
    stats: dict[int, tuple[int, int, int]] = {}  # of what must be read
    for folder, members in folders.items():
        known = _load(_place(cache, folder))
        for i in members:
            try:
                stat = os.stat(texts[i])  # noqa: PTH116
            except OSError as error:
                gone = os.path.islink(texts[i])  # noqa: PTH114
                broken[i] = "a link to a file that is not there" if gone else error.strerror or str(error)
                continue
            if not S_ISREG(stat.st_mode):  # reading a named pipe would wait for ever
                broken[i] = "no regular file"
                continue
            now = stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
            before, sha256 = known.get(os.path.basename(texts[i]), (None, b""))  # noqa: PTH119
            if before == now:
                found[i] = np.frombuffer(sha256, np.uint8)
            else:
                stats[i] = now
    unread, now = list(stats), time.time_ns()
    about = None if progress is None else f"{progress}: reading"
    with (
        ThreadPoolExecutor(workers or _workers()) as pool,
        tqdm(total=len(unread), desc=about, unit="file", disable=about is None or not unread, leave=False) as bar,
    ):
        for start in range(0, len(unread), _FILES_AT_ONCE):
            chunk = unread[start : start + _FILES_AT_ONCE]
            for i, result in zip(chunk, pool.map(lambda i: _read(paths[i]), chunk), strict=True):
                if isinstance(result, str):
                    broken[i] = result
                else:
                    found[i] = np.frombuffer(result, np.uint8)
            bar.update(len(chunk))
    fresh: dict[str, dict[str, tuple[tuple[int, int, int], bytes]]] = defaultdict(dict)
    for i, stat in stats.items():
        if i not in broken and max(stat[1:]) < now - _SETTLED_NS:
            folder, name = os.path.split(texts[i])
            fresh[folder][name] = stat, found[i].tobytes()
    for folder, rows in fresh.items():
        _remember(cache, folder, rows)
    return found, broken


def _read(path: Path) -> bytes | str:
    try:
        return bytes.fromhex(file_sha256(path))
    except OSError as error:
        return error.strerror or str(error)


def _place(cache: Path, folder: str) -> Path:
    return cache / "hashes" / f"{hashlib.sha256(os.fsencode(Path(folder).resolve())).hexdigest()[:32]}.safetensors"


def _load(path: Path) -> dict[str, tuple[tuple[int, int, int], bytes]]:
    """Size, modification and change time (ns), and SHA-256 of the files of one folder, by name."""
    try:
        tensors, about = load_tensors(path)
        stats, sha256 = tensors["stats"].tolist(), tensors["sha256"].numpy().reshape(-1, 32)
        rows = zip(about["names"], stats, sha256, strict=True)  # type: ignore[call-overload]
        return {name: ((size, m, c), row.tobytes()) for name, (size, m, c), row in rows}
    except (StorageError, KeyError, TypeError, ValueError, RuntimeError):
        return {}  # hashes can always be made again


def _remember(cache: Path, folder: str, new: Mapping[str, tuple[tuple[int, int, int], bytes]]) -> None:
    """Add to what is known of a folder; of two processes that write at once the last one's file stays, complete."""
    rows = {**_load(_place(cache, folder)), **new}
    sha256 = np.frombuffer(b"".join(row for _, row in rows.values()), np.uint8).reshape(-1, 32).copy()
    tensors = {"stats": torch.tensor([stat for stat, _ in rows.values()]), "sha256": torch.from_numpy(sha256)}
    # JSON escapes names that are no valid text.
    save_tensors(_place(cache, folder), tensors, {"names": list(rows), "folder": folder})


# --- From the bytes of a file to pixels ---


def decode(data: bytes, size: int | tuple[int, int] | Preparation) -> Decoded:
    """Decode one image file; the first frame of several.

    Raises:
        BrokenImage: it is empty, truncated, no image, or larger than ``PIL.Image.MAX_IMAGE_PIXELS``.
    """
    if not data:
        raise BrokenImage("an empty file")
    try:
        with Image.open(io.BytesIO(data)) as image:
            limit = Image.MAX_IMAGE_PIXELS
            if limit is not None and image.width * image.height > limit:  # Pillow itself raises at twice the limit
                raise BrokenImage(f"{image.width} x {image.height} pixels, too many (decompression bomb?)")
            greyscale = image.mode in GREYSCALE_MODES
            image.load()
            pixels = to_square(image, size)
    except (BrokenImage, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise BrokenImage("too many pixels (decompression bomb?)") from error
    except Image.UnidentifiedImageError as error:
        raise BrokenImage("no image, or of a kind that Pillow does not know") from error
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and others
        raise BrokenImage(f"{error}" or type(error).__name__) from error
    return Decoded(pixels, greyscale, hashlib.sha256(pixels).digest())


def to_square(image: Image.Image, size: int | tuple[int, int] | Preparation) -> np.ndarray:
    """Prepare a loaded picture, which may change: uint8 (3, size, size), or (3, *size) of a height and width.

    Raises:
        BrokenImage: Its numbers have no defined range.
    """
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as TF

    with contextlib.suppress(Exception):  # unreadable EXIF data says nothing about the pixels, which were read
        ImageOps.exif_transpose(image, in_place=True)
    preparation = Preparation.of(size)
    shape, how = preparation.shape, InterpolationMode(preparation.interpolation)
    if preparation.resize_mode == "squash":
        square = TF.resize(_rgb(image), list(shape), how, antialias=True)
    else:
        image = _rgb(_middle(image))
        ratio = min(side / new for side, new in zip((image.height, image.width), shape, strict=True))
        # torchvision and open_clip round the longer side in these two ways.
        around = shape[0] if shape[0] == shape[1] else [round(image.height / ratio), round(image.width / ratio)]
        square = TF.center_crop(TF.resize(image, around, how, antialias=True), list(shape))
    return np.ascontiguousarray(np.asarray(square, dtype=np.uint8).transpose(2, 0, 1))


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Silence Pillow's warnings (odd EXIF data, large images): each is either harmless or an error in :func:`decode`.

    Warning filters belong to the process, not to a thread: enter it once around all workers.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "F":
        raise BrokenImage("floating-point pixels, which have no defined range")
    if image.mode.startswith("I"):  # Pillow would clip 16 bits at 255: nearly white
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise BrokenImage("32-bit pixels, which have no defined range: convert them to 8 bits")
        clear = image.info.get("transparency")  # the value that marks transparent pixels
        shown = values if clear is None else values[values != clear]
        top = shown.max(initial=0)
        if 0 < top < 4096:  # 12 bits in 16, as cameras and scanners store them, would become nearly black
            raise BrokenImage(
                f"16-bit pixels, of which only values up to {top} are used: scale them to the full range, or convert "
                "them to 8 bits"
            )
        eight = values >> 8 if clear is None else np.where(values == clear, 255, values >> 8)
        return Image.fromarray(eight.astype(np.uint8)).convert("RGB")
    if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        # Below transparent pixels a file keeps some colour, mostly black; viewers show the ground, mostly white.
        layers = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), layers).convert("RGB")
    return image.convert("RGB")


def _middle(image: Image.Image) -> Image.Image:
    """Return the part of a long strip that the centre crop can show: resized as it is, it would fill the memory."""
    short, long = sorted(image.size)
    if long <= _LONGEST * short:
        return image
    margin = (long - _LONGEST * short) // 2
    across = image.width >= image.height
    return image.crop((margin, 0, image.width - margin, short) if across else (0, margin, short, image.height - margin))


# --- Opening and building a cache ---


def _stride(size: int | tuple[int, int]) -> int:
    """Return the bytes of an image."""
    return 3 * math.prod(Preparation.of(size).shape)


def content_of(pixels: np.ndarray, size: int | tuple[int, int]) -> str:
    """Hex SHA-256 of all pixels, from the digests of the images, uint8 (n, 32)."""
    shape = (len(pixels), 3, *Preparation.of(size).shape)
    return hashlib.sha256(f"uint8 {shape}".encode() + pixels.tobytes()).hexdigest()


def open_cache(place: Path, files: np.ndarray, size: int | tuple[int, int]) -> CachedImages | None:
    """The cache at ``place``; None if it is not there or damaged."""
    path, stride = place / "pixels.u8", _stride(size)
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
            images = _mapped(file.fileno(), stat.st_size).reshape(n, 3, *Preparation.of(size).shape)
        if not settled:  # copied, say; it was verified whole and need not be the next time
            with contextlib.suppress(OSError):  # another's file, or a disk that cannot be written: verify it each time
                os.utime(path, ns=(stat.st_atime_ns, about["modified"]))  # type: ignore[arg-type]
    except (StorageError, KeyError, ValueError, OSError) as error:
        if isinstance(error, PermissionError):
            raise StorageError(f"cannot read the cache {place} ({error.strerror}); mend its permissions") from error
        log.warning("the cache %s is damaged (%s) and is made anew", place, error)
        return None
    return CachedImages(images, str(about["content"]), files, pixels, greyscale, place)


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


def _copied(file: Path, i: int, size: int | tuple[int, int], greyscale: bool, sha256: bytes) -> Decoded | None:
    """Read image ``i`` of another cache; None if that is gone or damaged."""
    length = _stride(size)
    try:
        with file.open("rb") as pixels:
            pixels.seek(i * length)
            data = pixels.read(length)
    except OSError:
        return None
    if hashlib.sha256(data).digest() != sha256:
        return None
    return Decoded(np.frombuffer(data, np.uint8).reshape(3, *Preparation.of(size).shape), greyscale, sha256)


def _sets(folder: Path, settings: object) -> Iterator[tuple[Path, dict[str, Tensor]]]:
    """Yield the place and the digests of every set that was made with these settings."""
    for place in folder.glob("*"):
        with contextlib.suppress(StorageError, KeyError):  # damaged, gone meanwhile, or of an earlier version
            tensors, about = load_tensors(place / "about.safetensors")
            if about["settings"] == settings and "files" in tensors:
                yield place, tensors


def _already_decoded(
    cache: Path, files: np.ndarray, settings: Mapping[str, Any]
) -> dict[bytes, Callable[[], Decoded | None]]:
    """Find those of ``files`` in sets with the same settings: what reads their pixels, by the file's SHA-256."""
    wanted, found = {row.tobytes() for row in files}, {}
    for place, tensors in _sets(cache / "pixels", settings):
        rows = zip(*(tensors[key].numpy() for key in ("files", "pixels", "greyscale")), strict=True)
        for i, (file, pixels, greyscale) in enumerate(rows):
            if (sha256 := file.tobytes()) in wanted and sha256 not in found:
                copied = partial(_copied, place / "pixels.u8", i, settings["size"], bool(greyscale), pixels.tobytes())
                found[sha256] = copied
    return found


def _decoded(
    paths: Sequence[Path], files: np.ndarray, size: Preparation, workers: int, progress: str | None,
    known: Mapping[bytes, Callable[[], Decoded | None]],
) -> Generator[Decoded | str]:  # fmt: skip
    """Every image in order, or what is wrong with it; a few chunks for each worker are in memory at a time."""

    def one(i: int) -> Decoded | str:
        copied = known.get(sha256 := files[i].tobytes(), lambda: None)
        return copied() or _decode_file(paths[i], sha256, size)

    def work(start: int) -> list[Decoded | str]:
        return [one(i) for i in range(len(paths))[start : start + _AT_ONCE]]

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


def _decode_file(path: Path, sha256: bytes, size: Preparation) -> Decoded | str:
    try:
        data = path.read_bytes()
        if hashlib.sha256(data).digest() != sha256:
            return "changed while it was read"
        return decode(data, size)
    except BrokenImage as error:
        return str(error)
    except OSError as error:
        return error.strerror or str(error)


def _build(
    place: Path,
    paths: Sequence[Path],
    files: np.ndarray,
    settings: Mapping[str, Any],
    results: Generator[Decoded | str],
) -> None:
    """Write the cache next to ``place`` and rename it; under its lock."""
    cache, n, size = place.parent.parent, len(paths), settings["size"]
    aside = cache / "building" / place.name
    shutil.rmtree(aside, ignore_errors=True)
    for left in (cache / "building").glob("*"):  # of dead processes
        _remove(left)
    remedy = "choose another disk with cache=... or RP_CACHE, or take a smaller size"
    height, width = Preparation.of(size).shape
    require_space(cache, n * (_stride(size) + 64), f"{n:,} images of {height} x {width} pixels need", remedy)
    pixels, greyscale, broken = np.zeros((n, 32), np.uint8), np.zeros(n, bool), {}
    try:
        aside.mkdir(parents=True)
        with (
            reports_full_disk(f"writing {n:,} images to {cache}"),
            closing(results),
            (aside / "pixels.u8").open("wb") as file,
        ):
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
        arrays = {"files": files, "pixels": pixels, "greyscale": greyscale}
        stat = (aside / "pixels.u8").stat()
        about = {
            "content": content_of(pixels, size), "modified": stat.st_mtime_ns, "settings": dict(settings),
            "pillow": PIL.__version__,
        }  # fmt: skip
        save_tensors(aside / "about.safetensors", {k: torch.from_numpy(a) for k, a in arrays.items()}, about)
        shutil.rmtree(place, ignore_errors=True)  # a damaged one
        place.parent.mkdir(parents=True, exist_ok=True)
        aside.rename(place)
    except OSError as error:
        raise StorageError(f"cannot write {place} ({error.strerror or error}); choose another cache folder") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@contextlib.contextmanager
def _lock(cache: Path, key: str) -> Iterator[None]:
    """Hold the lock of one cache."""
    with contextlib.ExitStack() as stack:
        wait = "another process decodes the same images; waiting until it is done"
        try:
            stack.enter_context(locked(cache / "locks" / key, lambda: log.info(wait)))
        except OSError as error:
            reason = error.strerror or error
            raise StorageError(f"cannot write in {cache} ({reason}); choose another cache folder") from error
        yield
