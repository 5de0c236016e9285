"""The paper's CIFAR-10 benchmark from downloaded data, and a smaller one from class folders of image files.

CIFAR-10 is ID, CIFAR-10.1, CIFAR-10.2 and STL-10 are shifted, SVHN, LSUN (crop and resize), iSUN, Textures and
Places365 are OOD. All sets are squares of one side, CIFAR-10's own 32 pixels by default, so that resolution tells
neither ID from OOD nor one method from another.

The published files are read without executing anything that stands in them. Pixels are uint8 (n, h, h, 3), labels int64
(n,) numbers of CIFAR-10's classes. What does not look as published raises :class:`FileFormatError` with its name.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rp_lib.benchmark import Benchmark
from rp_lib.data.class_names import CIFAR10, STL10_ORDERS, STL10_TO_CIFAR10, TINY_IMAGENET_TO_CIFAR10
from rp_lib.data.image_folders import FolderError, image_files, image_folder, listed, several
from rp_lib.data.splits import Maker, located
from rp_lib.utils.errors import RPLibError, UnknownName

# All that CIFAR-10's own files name. numpy moved its modules; old pickles name the old place, new ones the new place.
_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct"), ("numpy", "ndarray"),
    ("numpy", "dtype"),
}  # fmt: skip


class FileFormatError(RPLibError):
    """A file that does not hold what its data set's publisher put there."""


class Photos(NamedTuple):
    """``pixels``: uint8 (n, h, h, 3). ``labels``: int64 (n,)."""

    pixels: np.ndarray
    labels: Tensor


def read_cifar10(folder: Path, *, train: bool) -> Photos:
    """Read CIFAR-10's five training batches, or its test batch, below ``folder`` (Python version of the data)."""
    names = [f"data_batch_{i}" for i in range(1, 6)] if train else ["test_batch"]
    batches = [_batch(folder / "cifar-10-batches-py" / name) for name in names]
    return Photos(np.concatenate([b.pixels for b in batches]), torch.cat([b.labels for b in batches]))


def read_cifar10_1(folder: Path) -> Photos:
    """Read CIFAR-10.1 v6: two ``.npy`` files."""
    pixels, labels = (_numpy(folder / f"cifar10.1_v6_{part}.npy") for part in ("data", "labels"))
    return _checked(folder / "cifar10.1_v6_data.npy", pixels, labels, 32)


def read_cifar10_2(folder: Path) -> Photos:
    """Read CIFAR-10.2's test set: arrays ``images`` and ``labels`` of one ``.npz`` file."""
    path = folder / "cifar102_test.npz"
    with _numpy(path) as arrays, _readable(path):
        pixels, labels = arrays["images"], arrays["labels"]
    return _checked(path, pixels, labels, 32)


def read_stl10(folder: Path, *, order: str = "cifar10") -> Photos:
    """Read STL-10's test images but for the monkeys, 96 px: binary files, images stored column by column.

    Args:
        folder: The data set's.
        order: ``cifar10`` maps the labels to CIFAR-10's classes. ``as_released`` keeps STL-10's own numbers, as the
            released code does: bird, automobile and horse then count as other classes, and a perfect classifier
            scores two thirds.
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
    """Read the pixels of SVHN's test images: the array ``X`` (32, 32, 3, n) of a Matlab file."""
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
    except (RPLibError, MemoryError):
        raise
    except Exception as error:  # pickle, numpy and scipy raise what they like on bytes that are not theirs
        raise FileFormatError(
            f"{path} cannot be read ({error or type(error).__name__}); get it again with ./data_download.sh, or check "
            "it with --check"
        ) from error


SHIFTS = ("cifar10.1", "cifar10.2", "stl10")
# OOD sets of image files, and where those are in their folders. Textures are all 5,640 images of DTD: the
# literature on OOD detection uses the whole data set, not one of its test splits.
OOD_FOLDERS = {
    "lsun-crop": "LSUN/test", "lsun-resize": "LSUN_resize/LSUN_resize", "isun": ".", "textures": "dtd/dtd/images",
    "places365": "val_256",
}  # fmt: skip
OOD = ("svhn", *OOD_FOLDERS)
DEFAULTS = {"size": 32, "val_per_class": 500}


def cifar10_benchmark(
    root: Path | None = None, *, stl10_order: str = "cifar10", missing: str = "error", **options: Any
) -> Benchmark:
    """Read CIFAR-10 with its shifted and OOD sets, as ``./data_download.sh cifar`` gets them.

    Images of another side than ``size`` are resized, shorter side bicubic with antialiasing, and cut out of the centre.
    STL-10's monkeys are left out: a classifier of CIFAR-10's classes has no answer for them.

    Args:
        root: Folder of the data sets; by default ``$RP_DATA``, else ``data``.
        stl10_order: ``cifar10``, or ``as_released``, which leaves STL-10's labels as they are, see :func:`read_stl10`.
        missing: What a shifted or OOD set that is not there is: an ``"error"``, or ``"skip"``, left out with a warning.
        options: Side, draws and prompts, see :class:`rp_lib.data.splits.Maker`; by default 32 pixels, and 500 images of
            each class kept aside.

    Raises:
        NotThere: Data sets that are not downloaded; the message lists all and the command that gets them.
        RPLibError: Files that are not as published, or options that do not fit.
    """
    make = Maker(**DEFAULTS | options)
    if stl10_order not in STL10_ORDERS:
        raise UnknownName("order of STL-10's labels", stl10_order, STL10_ORDERS)
    prompts, folders = make.prompts, located(["cifar10"], [*SHIFTS, *OOD], root, missing)
    files = {n: image_files(folders[n] / below) for n, below in OOD_FOLDERS.items() if n in folders}

    photos = read_cifar10(folders["cifar10"], train=True)
    train, val = (
        make.of_pixels(part, part, photos.pixels[index.numpy()], photos.labels[index])
        for part, index in zip(("train", "val"), make.shots(photos.labels), strict=True)
    )
    test = make.of_pixels("test", "test", *read_cifar10(folders["cifar10"], train=False))
    readers = {
        "cifar10.1": read_cifar10_1,
        "cifar10.2": read_cifar10_2,
        "stl10": lambda folder: read_stl10(folder, order=stl10_order),
    }
    shifts = {n: make.of_pixels(n, "shift", *readers[n](folders[n])) for n in SHIFTS if n in folders}
    ood = {"svhn": make.of_pixels("svhn", "far-ood", read_svhn(folders["svhn"]))} if "svhn" in folders else {}
    ood |= {name: make.of_files(name, "far-ood", paths) for name, paths in files.items()}
    return Benchmark("cifar10", CIFAR10, prompts, train, val, test, shifts, ood)


def cifar10_from_folders(
    train: Path | str,
    test: Path | str,
    *,
    tiny_imagenet: Path | str | None = None,
    ood: Mapping[str, Path | str | Sequence[Path | str]] | None = None,
    **options: Any,
) -> Benchmark:
    """Read CIFAR-10 from class folders of image files, with Tiny-ImageNet as a natural shift and OOD folders.

    Args:
        train: Folder with one subfolder for each class of CIFAR-10, by its name.
        test: The same.
        tiny_imagenet: Tiny-ImageNet's folder ``val`` as published (``val_annotations.txt`` next to ``images``), or
            class folders by WordNet id. Images of :data:`rp_lib.data.class_names.TINY_IMAGENET_TO_CIFAR10` become the
            shifted set ``tiny-imagenet``; they show seven of the ten classes, predictions are made among all ten.
        ood: Image folders, one or several, by name; none may show a class of CIFAR-10.
        options: As :func:`cifar10_benchmark` takes them.

    Raises:
        RPLibError: Folders that do not fit, or files that cannot be decoded.
    """
    make = Maker(**DEFAULTS | options)
    prompts, found = make.prompts, {"train": image_folder(train), "test": image_folder(test)}
    for part in found.values():
        if part.classes != CIFAR10:
            raise FolderError(f"{part.root} must have the class folders {', '.join(CIFAR10)}, not {part.classes}")
    shifts = {}
    if tiny_imagenet is not None:
        shifts["tiny-imagenet"] = _tiny_imagenet(Path(tiny_imagenet).expanduser())
    for name in ood or {}:
        if name in ("train", "val", "test", *shifts):
            raise RPLibError(f"the name {name!r} stands for two image sets; give each its own")
    train_set, val_set = make.train_and_val(found["train"], found["train"].labels)
    test_set = make.of_files("test", "test", found["test"].paths, found["test"].labels)
    shift_sets = {name: make.of_files(name, "shift", *files) for name, files in shifts.items()}
    ood_sets = {
        name: make.of_files(name, "far-ood", [f for at in several(folders) for f in image_files(at)])
        for name, folders in (ood or {}).items()
    }
    return Benchmark("cifar10-folders", CIFAR10, prompts, train_set, val_set, test_set, shift_sets, ood_sets)


def _tiny_imagenet(folder: Path) -> tuple[list[Path], torch.Tensor]:
    """Images of Tiny-ImageNet that show a class of CIFAR-10, and their int64 class numbers."""
    notes = folder / "val_annotations.txt"
    if notes.is_file():
        rows = [line.split("\t") for line in notes.read_text(encoding="utf-8").splitlines() if line.strip()]
        if any(len(row) < 2 for row in rows):
            raise FolderError(f"{notes} must have a file name and a WordNet id in every line, with a tab between")
        shown = [(folder / "images" / row[0], row[1]) for row in rows]
    else:
        found = image_folder(folder)
        shown = [(path, found.classes[i]) for path, i in zip(found.paths, found.labels.tolist(), strict=True)]
    lacking = sorted(set(TINY_IMAGENET_TO_CIFAR10) - {wnid for _, wnid in shown})
    if lacking:
        raise FolderError(f"{folder} shows none of {listed(lacking)}: is it Tiny-ImageNet?")
    kept = [(path, CIFAR10.index(TINY_IMAGENET_TO_CIFAR10[w])) for path, w in shown if w in TINY_IMAGENET_TO_CIFAR10]
    return [path for path, _ in kept], torch.tensor([number for _, number in kept])
