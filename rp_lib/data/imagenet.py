"""The paper's ImageNet benchmark from downloaded data.

ImageNet-1k is ID, ImageNetV2 (matched frequency), -R, -A and -Sketch are shifted, iNaturalist, SUN and Places (10,000
images each, chosen by Huang and Li 2021, arXiv 2105.01879) and Textures are OOD. Class number i is the i-th
WordNet id in sorted order, everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rp_lib.benchmark import Benchmark
from rp_lib.data.class_names import imagenet_class_names, imagenet_wnids
from rp_lib.data.image_folders import ClassFolder, FolderError, class_folders, image_files, image_folder, listed
from rp_lib.data.splits import Maker, located
from rp_lib.utils.errors import RPLibError

SHIFTS = ("imagenet-v2", "imagenet-r", "imagenet-a", "imagenet-sketch")
OF_200 = ("imagenet-r", "imagenet-a")  # show 200 of the 1000 classes
# All of DTD, as in the paper that chose the other three.
OOD_FOLDERS = {"inaturalist": ".", "sun": ".", "places": ".", "textures": "dtd/dtd/images"}


def imagenet_benchmark(
    root: Path | None = None,
    *,
    class_names: str | Sequence[str] = "distinct",
    score_among_all_classes: bool = False,
    missing: str = "error",
    **options: Any,
) -> Benchmark:
    """Read ImageNet-1k with its shifted and OOD sets, as ``./data_download.sh imagenet`` gets them.

    Every JPEG is decoded once, into the cache (150 kB an image at 224 pixels: 2.4 GB for 16 of each class, 193 GB for
    all of ImageNet's training images), and mapped into memory from there; what is not drawn is not decoded.
    ImageNet's validation images are the test set; val is drawn from the training images.

    Args:
        root: Folder of the data sets; by default ``$RP_DATA``, else ``data``.
        class_names: 1000 names, or ``distinct`` or ``as_released`` (998 distinct prompts), see
            :func:`rp_lib.data.class_names.imagenet_class_names`.
        score_among_all_classes: Score ImageNet-R and -A over 1000 classes, as the released code does, instead of over
            the 200 that they show.
        missing: What a shifted or OOD set that is not there is: an ``"error"``, or ``"skip"``, left out with a warning.
        options: Side, draws and prompts, see :class:`rp_lib.data.splits.Maker`; by default 224 pixels, and 10 images
            of each class kept aside.

    Raises:
        NotThere: Data sets that are not there; the message lists all and how to get them.
        FolderError: Class folders that are not ImageNet's.
        RPLibError: Files that cannot be decoded, or options that do not fit.
    """
    make = Maker(**{"size": 224} | options)
    prompts = make.prompts
    names = imagenet_class_names(class_names) if isinstance(class_names, str) else tuple(class_names)
    if len(names) != 1000:
        raise RPLibError(f"class_names must be 1000 names in the order of the sorted WordNet ids, got {len(names)}")
    folders = located(["imagenet-1k"], [*SHIFTS, *OOD_FOLDERS], root, missing)
    wnids = imagenet_wnids()

    # Everything is listed and checked before the first image is decoded.
    source, judged = (image_folder(folders["imagenet-1k"] / part) for part in ("train", "val"))
    labels, judged_labels = (_labels(found, wnids, len(wnids)) for found in (source, judged))
    shifted = {name: _shifted(name, folders[name], wnids) for name in SHIFTS if name in folders}
    other = {name: image_files(folders[name] / below) for name, below in OOD_FOLDERS.items() if name in folders}

    train, val = make.train_and_val(source, labels)
    test = make.of_files("test", "test", judged.paths, judged_labels)
    shifts = {}
    for name, (paths, numbers) in shifted.items():
        class_subset = tuple(numbers.unique().tolist()) if name in OF_200 and not score_among_all_classes else None
        shifts[name] = make.of_files(name, "shift", paths, numbers, class_subset)
    ood = {name: make.of_files(name, "far-ood", paths) for name, paths in other.items()}
    return Benchmark("imagenet", names, prompts, train, val, test, shifts, ood)


def _shifted(name: str, folder: Path, wnids: Sequence[str]) -> tuple[list[Path], Tensor]:
    """Files of a shifted set and their int64 class numbers."""
    found = image_folder(_with_classes(folder), numeric=name == "imagenet-v2")
    if name == "imagenet-v2":
        return found.paths, _numbers(found, len(wnids))
    return found.paths, _labels(found, wnids, 200 if name in OF_200 else len(wnids))


def _with_classes(folder: Path) -> Path:
    """The folder that the class folders are in: archives put it into one or two others."""
    for _ in range(2):
        inner = class_folders(folder)
        if len(inner) != 1:
            break
        folder = folder / inner[0]
    return folder


def _labels(found: ClassFolder, wnids: Sequence[str], expected: int) -> Tensor:
    """int64 (n,) class numbers of folders that are WordNet ids."""
    places = {wnid: number for number, wnid in enumerate(wnids)}
    foreign = [name for name in found.classes if name not in places]
    if foreign:
        raise FolderError(f"{found.root} has folders that are none of ImageNet-1k's WordNet ids: {listed(foreign)}")
    if len(found.classes) != expected:
        lacking = [wnid for wnid in wnids if wnid not in set(found.classes)]
        which = f"; there is no {listed(lacking)}" if expected == len(wnids) else ""
        raise FolderError(f"{found.root} has {len(found.classes):,} class folders instead of {expected:,}{which}")
    return torch.tensor([places[name] for name in found.classes])[found.labels]


def _numbers(found: ClassFolder, classes: int) -> Tensor:
    """int64 (n,) class numbers of folders that are numbers, whatever their order."""
    numbers = [int(name) for name in found.classes]
    if numbers != list(range(classes)):
        lacking = sorted(set(range(classes)) - set(numbers))
        raise FolderError(
            f"{found.root} must have the folders 0 to {classes - 1}; there is no {listed(lacking) or 'more'}"
        )
    return torch.tensor(numbers)[found.labels]
