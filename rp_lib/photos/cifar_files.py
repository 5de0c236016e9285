"""The files of the CIFAR-10 benchmark, read without executing anything that stands in them.

Pixels are uint8 (n, h, h, 3), labels int64 (n,) numbers of CIFAR-10's classes. What does not look as published raises
:class:`FileFormatError` with the file's name.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rp_lib.errors import RPLibError
from rp_lib.photos.classes import STL10_TO_CIFAR10

# All that CIFAR-10's own files name. numpy moved its modules; old pickles name the old place, new ones the new place.
_ALLOWED = {
    (module, name)
    for modules, name in (
        (("numpy.core.multiarray", "numpy._core.multiarray"), "_reconstruct"),
        (("numpy",), "ndarray"),
        (("numpy",), "dtype"),
    )
    for module in modules
}


class FileFormatError(RPLibError):
    """A file that does not hold what its data set's publisher put there."""


class Photos(NamedTuple):
    """``pixels``: uint8 (n, h, h, 3). ``labels``: int64 (n,)."""

    pixels: np.ndarray
    labels: Tensor


def read_cifar10(folder: Path, *, train: bool) -> Photos:
    """CIFAR-10's five training batches, or its test batch, below ``folder`` (Python version of the data)."""
    names = [f"data_batch_{i}" for i in range(1, 6)] if train else ["test_batch"]
    batches = [_batch(folder / "cifar-10-batches-py" / name) for name in names]
    return Photos(np.concatenate([b.pixels for b in batches]), torch.cat([b.labels for b in batches]))


def read_cifar10_1(folder: Path) -> Photos:
    """CIFAR-10.1 v6: two ``.npy`` files."""
    pixels, labels = (_numpy(folder / f"cifar10.1_v6_{part}.npy") for part in ("data", "labels"))
    return _checked(folder / "cifar10.1_v6_data.npy", pixels, labels, 32)


def read_cifar10_2(folder: Path) -> Photos:
    """CIFAR-10.2's test set: arrays ``images`` and ``labels`` of one ``.npz`` file."""
    path = folder / "cifar102_test.npz"
    with _numpy(path) as arrays, _readable(path):
        pixels, labels = arrays["images"], arrays["labels"]
    return _checked(path, pixels, labels, 32)


def read_stl10(folder: Path, *, order: str = "cifar10") -> Photos:
    """STL-10's test images but for the monkeys, 96 px: binary files, images stored column by column.

    Args:
        order: ``cifar10`` maps the labels to CIFAR-10's classes. ``as_released`` keeps STL-10's own numbers, as the
            released code does (row 3 of the ledger): bird, automobile and horse then count as other classes, and a
            perfect classifier scores two thirds.
    """
    path = folder / "stl10_binary" / "test_X.bin"
    with _readable(path):
        raw = np.fromfile(path, np.uint8)
        numbers = np.fromfile(path.with_name("test_y.bin"), np.uint8).astype(np.int64) - 1
    if raw.size != numbers.size * 3 * 96 * 96 or not raw.size:
        raise FileFormatError(f"{path} and test_y.bin do not hold images of 96 px and as many labels")
    if numbers.min() < 0 or numbers.max() > 9:
        raise FileFormatError(f"{path.with_name('test_y.bin')} has labels that are not 1 to 10")
    mapped = np.array(STL10_TO_CIFAR10)[numbers]
    kept = mapped >= 0
    pixels = raw.reshape(-1, 3, 96, 96)[kept].transpose(0, 3, 2, 1)
    return _checked(path, pixels, (numbers if order == "as_released" else mapped)[kept], 96)


def read_svhn(folder: Path) -> np.ndarray:
    """Pixels of SVHN's test images: the array ``X`` (32, 32, 3, n) of a Matlab file."""
    from scipy.io import loadmat

    path = folder / "test_32x32.mat"
    with _readable(path):
        stored = loadmat(path, variable_names=["X"])["X"]
    if stored.ndim != 4:
        raise FileFormatError(f"{path} holds an array of {stored.ndim} dimensions instead of 4")
    pixels = stored.transpose(3, 0, 1, 2)
    return _checked(path, pixels, np.zeros(len(pixels), np.int64), 32).pixels


class _ArraysOnly(pickle.Unpickler):
    """Builds numpy arrays of plain numbers, lists, dicts, texts and numbers, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        """Refuse whatever could run."""
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no file of CIFAR-10 needs")
        return super().find_class(module, name)


def _batch(path: Path) -> Photos:
    with _readable(path), path.open("rb") as file:
        # Python 2 wrote these files; latin1 maps its bytes to text one to one.
        batch = _ArraysOnly(file, encoding="latin1").load()
        pixels, labels = batch["data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), np.asarray(batch["labels"])
    return _checked(path, pixels, labels, 32)


def _numpy(path: Path) -> Any:
    with _readable(path):
        return np.load(path, allow_pickle=False)


def _checked(path: Path, pixels: np.ndarray, labels: np.ndarray, side: int) -> Photos:
    n = len(labels) if labels.ndim == 1 else -1
    if pixels.dtype != np.uint8 or pixels.shape != (n, side, side, 3) or not n:
        raise FileFormatError(f"{path} holds {pixels.dtype} {pixels.shape} for {labels.shape} labels, no such images")
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() > 9:
        raise FileFormatError(f"{path}: the labels are no class numbers from 0 to 9")
    return Photos(pixels, torch.from_numpy(labels.astype(np.int64)))


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except RPLibError:
        raise
    except MemoryError:
        raise
    except Exception as error:  # pickle, numpy and scipy raise what they like on bytes that are not theirs
        raise FileFormatError(
            f"{path} cannot be read ({error or type(error).__name__}); get it again with ./data_download.sh, or check "
            "it with --check"
        ) from error
