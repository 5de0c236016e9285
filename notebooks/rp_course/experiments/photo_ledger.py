"""Two bugs of the released code on photographs: ``python -m rp_course.experiments.photo_ledger --root FOLDER``.

Detection turns normalized images into 8 bit a second time, so that values wrap (row 2 of the ledger), and STL-10's
labels stay in their own order (3). Both are measured on CIFAR-10 as folders of images (the configuration
``cifar10-folders``) with the backbone that it names, the first also on others (``--config pacs``). STL-10 itself is not
among those images; CIFAR-10's photographs of the nine classes that both have stand in for it, written in STL-10's own
file format and numbering, with monkeys of Tiny-ImageNet, and read as STL-10 is read.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from rp_course.experiments.released_code import measure
from rp_course.experiments.world import World
from rp_lib.benchmark import ImageSet
from rp_lib.data.cifar import read_stl10
from rp_lib.data.class_names import STL10_ORDERS, STL10_TO_CIFAR10
from rp_lib.data.image_folders import image_files
from rp_lib.data.splits import Maker
from rp_lib.methods import Method
from rp_lib.run.config import read_config
from rp_lib.run.opening import open_backbone, open_benchmark, placed
from rp_lib.stats import wilson_interval
from rp_lib.utils.io import save_table

SIDE = 96  # of STL-10's images, pixels
MONKEY = 7  # STL-10's number of them, from 0
BABOON = "n02486410"  # the one monkey of Tiny-ImageNet
CLASSIFIERS = ("zero-shot", "linear-probe", "fine-tune")


def write_stl10(folder: Path, images: Tensor, numbers: Tensor) -> None:
    """Write images as STL-10's test set: ``stl10_binary/test_X.bin``, column by column, and ``test_y.bin``.

    Args:
        images: uint8 (n, 3, h, h), where 96 is a multiple of h; pixels are repeated. numbers: int64 (n,), STL-10's
            classes from 0.
    """
    times = SIDE // images.shape[-1]
    large = images.repeat_interleave(times, 2).repeat_interleave(times, 3)
    where = folder / "stl10_binary"
    where.mkdir(parents=True, exist_ok=True)
    large.transpose(2, 3).contiguous().numpy().tofile(where / "test_X.bin")
    (numbers + 1).to(torch.uint8).numpy().tofile(where / "test_y.bin")


def as_stl10(photographs: ImageSet, monkeys: Tensor) -> tuple[Tensor, Tensor]:
    """Photographs of CIFAR-10's classes in STL-10's numbering, without frogs, and monkeys.

    Args:
        photographs: with labels of CIFAR-10. monkeys: uint8 (m, 3, h, h), of the same side.

    Returns:
        uint8 (n, 3, h, h) and int64 (n,).
    """
    numbers = torch.full((10,), -1)
    for number, label in enumerate(STL10_TO_CIFAR10):
        if label >= 0:
            numbers[label] = number
    own = numbers[photographs.labels]
    images = torch.cat([photographs.images[own >= 0], monkeys])
    return images, torch.cat([own[own >= 0], torch.full((len(monkeys),), MONKEY)])


def label_order(methods: Sequence[Method], photographs: ImageSet, monkeys: Tensor) -> pd.DataFrame:
    """Return the accuracy of fitted methods with STL-10's labels mapped, and as they are.

    Args:
        methods: classifiers of CIFAR-10's classes. photographs, monkeys: see :func:`as_stl10`.

    Returns:
        Columns method (``perfect`` knows the right answer), labels (``cifar10`` or ``as_released``), value, low, high
        (Wilson), n.
    """
    side = photographs.images.shape[-1]
    make = Maker(side)
    sets = {}
    with tempfile.TemporaryDirectory() as folder:
        write_stl10(Path(folder), *as_stl10(photographs, monkeys))
        for order in STL10_ORDERS:
            sets[order] = make.of_pixels("stl10", "shift", *read_stl10(Path(folder), order=order))
    answers = {"perfect": sets["cifar10"].labels}
    for method in methods:
        answers[method.name] = method.logits(sets["cifar10"].images).argmax(1).cpu()
    rows = []
    for name, answer in answers.items():
        for order, data in sets.items():
            right, n = int((answer == data.labels).sum()), len(data)
            found = wilson_interval(right, n)
            rows.append((name, order, found.value, found.low, found.high, n))
    return pd.DataFrame(rows, columns=["method", "labels", "value", "low", "high", "n"])


def monkeys_of(tiny_imagenet: Path, side: int) -> Tensor:
    """uint8 (m, 3, side, side): Tiny-ImageNet's baboons; ``tiny_imagenet`` is its folder ``val`` as published."""
    lines = (tiny_imagenet / "val_annotations.txt").read_text(encoding="utf-8").splitlines()
    files = {parts[0] for parts in (line.split("\t") for line in lines) if parts[1] == BABOON}
    paths = [path for path in image_files(tiny_imagenet / "images") if path.name in files]
    return Maker(side).of_files("monkeys", "far-ood", paths).images[:]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure both bugs and print what they do; ``--out`` keeps the tables as CSV."""
    parser = argparse.ArgumentParser(description="Two bugs of the released code on real photographs.")
    parser.add_argument("--root", required=True, help="folder of cifar10, tiny-imagenet-200, textures and scenes")
    parser.add_argument("--config", default="cifar10-folders", help="of folders; STL-10 needs cifar10-folders")
    parser.add_argument("--out", type=Path, default=Path("results/photo-ledger"))
    parser.add_argument("--seeds", type=int, default=2)
    args = parser.parse_args(arguments)
    config = read_config(args.config, {"data.root": args.root, "seeds": args.seeds})
    data = open_benchmark(config.data, config.preset)
    clip = open_backbone(config.backbone)
    world = World(data, config.all_settings(), config.seeds, clip=clip, progress=False)
    args.out.mkdir(parents=True, exist_ok=True)
    wrap = measure(world, args.out / "parts", rows=("2",))
    save_table(args.out / "row-2.csv", wrap)
    tables = [wrap[["method", "versus", "set", "metric", "value", "low", "high", "n", "n_ood"]]]
    if "tiny_imagenet" in config.data:
        fitted = [world.fit(name, config.seeds[0], data, clip) for name in CLASSIFIERS]
        monkeys = monkeys_of(placed(config.data)["tiny_imagenet"], data.test.images.shape[-1])
        tables.append(label_order(fitted, data.test, monkeys))
        save_table(args.out / "row-3.csv", tables[1])
    for table in tables:
        shown = table.copy()
        shown[["value", "low", "high"]] = (100 * shown[["value", "low", "high"]]).round(1)
        print(shown.to_string(index=False), "\n")


if __name__ == "__main__":
    main()
