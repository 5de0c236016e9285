#!/usr/bin/env bash
# open_clip_torch 3.3.0 (with Pillow 13.0.0): a picture with a palette is resized without any smoothing.
#
# One would guess: two files with the same pixels, one a PNG of 24 bits and one a PNG of 8 bits with a palette
# (or a GIF), give CLIP the same input; `image_transform` says `interpolation=bicubic, antialias=True`.
#
# What happens: the transform resizes first and converts to RGB afterwards, and Pillow resizes a picture with a
# palette by its nearest neighbour, whatever was asked for. Thin lines break up or vanish. Nothing is said.
# What helps: `image.convert("RGB")` before the transform.
#
# Seen (grey levels of 255):
#   open_clip 3.3.0, Pillow 13.0.0
#   same pixels before the transform: True
#   difference after it: 18.7 on average, at most 188
#   difference after it, both converted first: 0.0
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --only-binary :all: open_clip_torch==3.3.0 timm==1.0.31 torch==2.14.1 torchvision==0.29.1 pillow==13.0.0 numpy==2.4.6
"$work/venv/bin/python" - <<'EOF'
import numpy as np
import open_clip
import PIL
import torch
from open_clip.transform import image_transform
from PIL import Image, ImageDraw

print(f"open_clip {open_clip.__version__}, Pillow {PIL.__version__}")
full = Image.new("RGB", (500, 500), "white")
draw = ImageDraw.Draw(full)
for radius in range(10, 240, 12):
    draw.ellipse((250 - radius, 250 - radius, 250 + radius, 250 + radius), outline="black", width=3)
palette = full.quantize(8)  # what a PNG of 8 bits or a GIF opens as; black and white lose nothing
same = np.array_equal(np.asarray(palette.convert("RGB")), np.asarray(full))
print("same pixels before the transform:", same)

transform = image_transform(224, is_train=False)
std = torch.tensor(open_clip.OPENAI_DATASET_STD)[:, None, None]


def levels(a, b):
    """Absolute difference of two inputs, normalization undone, in grey levels."""
    return ((transform(a) - transform(b)) * std).abs() * 255


apart, first = levels(full, palette), levels(full, palette.convert("RGB"))
print(f"difference after it: {apart.mean():.1f} on average, at most {apart.max():.0f}")
print(f"difference after it, both converted first: {first.max():.1f}")
assert same and apart.mean() > 10 and apart.max() > 100 and first.max() == 0, "the behaviour has changed"
EOF
