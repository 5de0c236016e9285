#!/usr/bin/env bash
# kornia 0.9.0: `resize` (and the augmentation `Resize`) shrinks without smoothing.
#
# One would guess: kornia's resize on a GPU stands in for torchvision's, which smooths when it shrinks (`antialias=True`), as
# Pillow and every CLIP preprocessing do.
#
# What happens: `antialias=False` is the default. Shrunk by more than two, most pixels are never read; fine patterns turn into
# coarse ones that are not in the picture.
# What helps: `antialias=True`; the result is then still another than torchvision's (a blur first, then the resize).
#
# Seen:
#   kornia 0.9.0
#   torchvision: deviation 2.5 of 255 grey levels
#   kornia resize: deviation 75.1 of 255 grey levels
#   kornia Resize: deviation 73.9 of 255 grey levels
#   kornia resize, antialias=True: deviation 2.9 of 255 grey levels
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --only-binary :all: kornia==0.9.0 torch==2.14.1 torchvision==0.29.1 pillow==13.0.0 numpy==2.4.6 2>/dev/null
"$work/venv/bin/python" - 2>/dev/null <<'PY'
import kornia
import torch
from kornia.augmentation import Resize
from kornia.geometry.transform import resize
from torchvision.transforms.v2.functional import resize as torchvision_resize

print("kornia", kornia.__version__)
# Stripes one pixel wide: at 224 of 800 pixels nothing but an even grey is left of them.
stripes = (torch.arange(800) % 2).float().expand(1, 3, 800, 800)
seen = {
    "torchvision": torchvision_resize(stripes, [224, 224], antialias=True),
    "kornia resize": resize(stripes, (224, 224)),
    "kornia Resize": Resize((224, 224))(stripes),
    "kornia resize, antialias=True": resize(stripes, (224, 224), antialias=True),
}
contrast = {name: 255 * float(picture.std()) for name, picture in seen.items()}
for name, value in contrast.items():
    print(f"{name}: deviation {value:.1f} of 255 grey levels")
assert contrast["torchvision"] < 10 and contrast["kornia resize"] > 50, "the behaviour has changed"
assert contrast["kornia Resize"] > 50, "the behaviour has changed"
PY
