"""Opening a cache of images: verify it, and map it into memory."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import mmap
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rp_lib.storage import StorageError, load_tensors

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
