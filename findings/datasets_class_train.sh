#!/usr/bin/env bash
# datasets 5.2.0: a class called "train" (or "steam train", or "test tube") swallows the whole image folder.
#
# One would guess: `load_dataset("imagefolder", data_dir=...)` reads one class per folder, as torchvision's `ImageFolder`
# does, and gives labels by the folders' names.
#
# What happens: where any folder's name holds the word train, test, validation, val, valid, dev or eval, set off by a space, "-"
# or "_", the folders are taken for splits. Pictures of all other classes are left out, and with them the labels.
# Vehicles with a class "train" (CIFAR-100, COCO, PASCAL VOC) are such data. No error, no warning.
# What helps: `drop_labels=False` does not; put the classes one level deeper (`root/train/CLASS/`), or pass
# `data_files={"train": "root/**"}`.
#
# Seen:
#   datasets 5.2.0
#   bicycle, boat, bus: 12 pictures, read: {'train': (12, ['bicycle', 'boat', 'bus'])}
#   bicycle, boat, train: 12 pictures, read: {'train': (4, None)}
#   boat, steam train: 8 pictures, read: {'train': (4, None)}
#   beaker, test tube: 8 pictures, read: {'test': (4, None)}
#   car, train with drop_labels=False: {'train': (4, ['train'])}
#   car, train with data_files: {'train': (8, ['car', 'train'])}
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --only-binary :all: datasets==5.2.0 pillow==13.0.0 numpy==2.4.6 2>/dev/null
HF_HUB_OFFLINE=1 HF_HOME="$work/cache" WORK="$work" "$work/venv/bin/python" - <<'PY'
import os
from pathlib import Path

import datasets
from PIL import Image

datasets.disable_progress_bars()
print("datasets", datasets.__version__)


def folder_of(classes):
    """Four pictures of each class, one folder a class."""
    root = Path(os.environ["WORK"], "data", "+".join(classes).replace(" ", "."))
    for name in classes:
        (root / name).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (8, 8), (50 * i, 0, 0)).save(root / name / f"{i}.png")
    return root


def read(root, **options):
    """Pictures and labels by split."""
    splits = datasets.load_dataset("imagefolder", **options)
    return {name: (len(s), s.features["label"].names if "label" in s.features else None) for name, s in splits.items()}


for classes in (("bicycle", "boat", "bus"), ("bicycle", "boat", "train"), ("boat", "steam train"), ("beaker", "test tube")):
    root = folder_of(classes)
    found = read(root, data_dir=str(root))
    print(f"{', '.join(classes)}: {4 * len(classes)} pictures, read: {found}")
    if classes[-1] == "bus":
        assert found == {"train": (12, ["bicycle", "boat", "bus"])}
    else:
        assert list(found.values()) == [(4, None)], "the behaviour has changed"
root = folder_of(("car", "train"))
kept = read(root, data_dir=str(root), drop_labels=False)
print(f"car, train with drop_labels=False: {kept}")
assert sum(n for n, _ in kept.values()) == 4, "the behaviour has changed"
found = read(root, data_files={"train": f"{root}/**"})
print(f"car, train with data_files: {found}")
assert found == {"train": (8, ["car", "train"])}, "the way out has changed"
PY
