"""The paper's CIFAR-10 benchmark from downloaded data, and a smaller one from class folders of image files.

CIFAR-10 is ID, CIFAR-10.1, CIFAR-10.2 and STL-10 are shifted, SVHN, LSUN (crop and resize), iSUN, Textures and
Places365 are OOD. All sets are squares of one side, CIFAR-10's own 32 pixels by default, so that resolution tells
neither ID from OOD nor one method from another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from rp_lib.benchmark import Benchmark, ImageSet
from rp_lib.errors import RPLibError, UnknownName
from rp_lib.photos.cifar_files import read_cifar10, read_cifar10_1, read_cifar10_2, read_stl10, read_svhn
from rp_lib.photos.classes import CIFAR10, STL10_ORDERS, TINY_IMAGENET_TO_CIFAR10, prompt_templates
from rp_lib.photos.folders import FolderError, image_files, image_folder, listed, several
from rp_lib.photos.parts import Maker, check_sizes, located, shots

SHIFTS = ("cifar10.1", "cifar10.2", "stl10")
# OOD sets of image files, and where those are in their folders. Textures are all 5,640 images of DTD: the
# literature on OOD detection uses the whole data set, not one of its test splits.
OOD_FOLDERS = {
    "lsun-crop": "LSUN/test", "lsun-resize": "LSUN_resize/LSUN_resize", "isun": ".", "textures": "dtd/dtd/images",
    "places365": "val_256",
}  # fmt: skip
OOD = ("svhn", *OOD_FOLDERS)


def cifar10_benchmark(
    root: Path | None = None,
    *,
    subset: int | None = None,
    per_class: int | None = None,
    val_per_class: int = 500,
    size: int = 32,
    templates: str | Sequence[str] = "plain",
    stl10_order: str = "cifar10",
    missing: str = "error",
    cache: Path | None = None,
    seed: int = 0,
    workers: int | None = None,
    progress: bool = False,
) -> Benchmark:
    """CIFAR-10 with its shifted and OOD sets, as ``./data_download.sh cifar`` gets them.

    Images of another side than ``size`` are resized, shorter side bicubic with antialiasing, and cut out of the centre.
    STL-10's monkeys are left out: a classifier of CIFAR-10's classes has no answer for them.

    Args:
        root: folder of the data sets; by default ``$RP_DATA``, else ``data``.
        subset: at most so many images of each of val, test, every shifted and every OOD set, drawn with ``seed``;
            classes keep their shares. per_class: training images of each class, drawn likewise; by default all.
        val_per_class: images of each class of the training batches that are kept aside for validation.
        size: side of all images, pixels.
        templates: prompts, or ``plain``, ``as_released`` (row 13 of the ledger: no full stop) or ``ensemble``, see
            :func:`rp_lib.photos.classes.prompt_templates`.
        stl10_order: ``cifar10``, or ``as_released``, which leaves STL-10's labels as they are (row 3).
        missing: what a shifted or OOD set that is not there is: an ``"error"``, or ``"skip"``, left out with a warning.
        cache, workers, progress: see :func:`rp_lib.photos.load_images`.

    Raises:
        NotThere: data sets that are not downloaded; the message lists all and the command that gets them.
        RPLibError: files that are not as published, or options that do not fit.
    """
    check_sizes(subset=subset, per_class=per_class, val_per_class=val_per_class, size=size)
    if stl10_order not in STL10_ORDERS:
        raise UnknownName("order of STL-10's labels", stl10_order, STL10_ORDERS)
    prompts = prompt_templates(templates)
    folders = located(["cifar10"], [*SHIFTS, *OOD], root, missing)
    make = Maker(size, cache, workers, progress, seed)
    files = {n: image_files(folders[n] / below) for n, below in OOD_FOLDERS.items() if n in folders}

    photos = read_cifar10(folders["cifar10"], train=True)
    learnt, aside = shots(photos.labels, per_class, val_per_class, seed)
    train = make.of_pixels("train", "train", photos.pixels[learnt.numpy()], photos.labels[learnt])
    val = make.of_pixels("val", "val", photos.pixels[aside.numpy()], photos.labels[aside], subset=subset)
    test = make.of_pixels("test", "test", *read_cifar10(folders["cifar10"], train=False), subset=subset)

    readers = {
        "cifar10.1": read_cifar10_1,
        "cifar10.2": read_cifar10_2,
        "stl10": lambda folder: read_stl10(folder, order=stl10_order),
    }
    shifts = {
        name: make.of_pixels(name, "shift", *readers[name](folders[name]), subset=subset)
        for name in SHIFTS
        if name in folders
    }
    ood: dict[str, ImageSet] = {}
    if "svhn" in folders:
        ood["svhn"] = make.of_pixels("svhn", "far-ood", read_svhn(folders["svhn"]), subset=subset)
    for name, paths in files.items():
        ood[name] = make.of_files(name, "far-ood", paths, subset=subset)
    return Benchmark("cifar10", CIFAR10, prompts, train, val, test, shifts, ood)


def cifar10_from_folders(
    train: Path | str,
    test: Path | str,
    *,
    tiny_imagenet: Path | str | None = None,
    ood: Mapping[str, Path | str | Sequence[Path | str]] | None = None,
    subset: int | None = None,
    per_class: int | None = None,
    val_per_class: int = 500,
    size: int = 32,
    templates: str | Sequence[str] = "plain",
    cache: Path | None = None,
    seed: int = 0,
    workers: int | None = None,
    progress: bool = False,
) -> Benchmark:
    """CIFAR-10 from class folders of image files, with Tiny-ImageNet as a natural shift and OOD folders.

    Args:
        train, test: folders with one subfolder for each class of CIFAR-10, by its name.
        tiny_imagenet: Tiny-ImageNet's folder ``val`` as published (``val_annotations.txt`` beside ``images``), or
            class folders by WordNet id. Images of :data:`rp_lib.photos.classes.TINY_IMAGENET_TO_CIFAR10` become the
            shifted set ``tiny-imagenet``; they show seven of the ten classes, predictions are made among all ten.
        ood: image folders, one or several, by name; none may show a class of CIFAR-10.
        subset, per_class, val_per_class, size, templates, cache, seed, workers, progress: see
            :func:`cifar10_benchmark`.

    Raises:
        RPLibError: folders that do not fit, or files that cannot be decoded.
    """
    check_sizes(subset=subset, per_class=per_class, val_per_class=val_per_class, size=size)
    prompts = prompt_templates(templates)
    make = Maker(size, cache, workers, progress, seed)
    found = {"train": image_folder(train), "test": image_folder(test)}
    for part in found.values():
        if part.classes != CIFAR10:
            raise FolderError(f"{part.root} must have the class folders {', '.join(CIFAR10)}, not {part.classes}")
    learnt, aside = shots(found["train"].labels, per_class, val_per_class, seed)

    def chosen(name: str, index: torch.Tensor, most: int | None) -> ImageSet:
        paths = [found["train"].paths[i] for i in index.tolist()]
        return make.of_files(name, name, paths, found["train"].labels[index], subset=most)

    shifts = {}
    if tiny_imagenet is not None:
        paths, numbers = _tiny_imagenet(Path(tiny_imagenet).expanduser())
        shifts["tiny-imagenet"] = make.of_files("tiny-imagenet", "shift", paths, numbers, subset=subset)
    for name in ood or {}:
        if name in ("train", "val", "test", *shifts):
            raise RPLibError(f"the name {name!r} stands for two image sets; give each its own")
    train_set, val_set = chosen("train", learnt, None), chosen("val", aside, subset)
    test_set = make.of_files("test", "test", found["test"].paths, found["test"].labels, subset=subset)
    ood_sets = {
        name: make.of_files(name, "far-ood", [f for at in several(folders) for f in image_files(at)], subset=subset)
        for name, folders in (ood or {}).items()
    }
    return Benchmark("cifar10-folders", CIFAR10, prompts, train_set, val_set, test_set, shifts, ood_sets)


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
