#!/usr/bin/env bash
# open_clip_torch 3.3.0 and transformers 5.24.0: a transparent picture stands on black for one and on white for the other.
#
# One would guess: two loaders of the same CLIP weights prepare the same PNG in the same way (they do for photographs, within one
# grey level), so that features from one are used with a classifier from the other.
#
# What happens: open_clip drops the alpha channel and shows the colour that the file keeps where nothing is drawn, mostly
# black; transformers lays the picture onto white first. A black logo on a transparent ground is an all-black picture for one and
# a black logo on white for the other. The same holds of a palette
# with a transparent entry, whose hidden colour open_clip shows. Nothing is said.
# What helps: lay the picture onto a ground of one's own choice before either.
#
# Seen:
#   open_clip 3.3.0, transformers 5.24.0
#   RGBA, open_clip: ground [0, 0, 0], logo [0, 0, 0]
#   RGBA, transformers: ground [255, 255, 255], logo [0, 0, 0]
#   palette, open_clip: ground [200, 0, 0], logo [0, 0, 0]
#   palette, transformers: ground [255, 255, 255], logo [0, 0, 0]
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --only-binary :all: transformers==5.24.0 open_clip_torch==3.3.0 timm==1.0.31 torch==2.14.1 torchvision==0.29.1 pillow==13.0.0 numpy==2.4.6 2>/dev/null
HF_HUB_OFFLINE=1 "$work/venv/bin/python" - 2>/dev/null <<'PY'
import io

import open_clip
import torch
import transformers
from open_clip.transform import image_transform
from PIL import Image, ImageDraw
from transformers import CLIPImageProcessor

print(f"open_clip {open_clip.__version__}, transformers {transformers.__version__}")
logo = Image.new("RGBA", (224, 224), (0, 0, 0, 0))
ImageDraw.Draw(logo).ellipse((60, 60, 160, 160), fill=(0, 0, 0, 255))
palette = Image.new("P", (224, 224), 0)
palette.putpalette([200, 0, 0, 0, 0, 0])  # entry 0, red, is the transparent one
ImageDraw.Draw(palette).ellipse((60, 60, 160, 160), fill=1)


def reopened(image, **options):
    """The picture as a PNG file holds it."""
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return Image.open(file)


processor = CLIPImageProcessor()
mean, std = (torch.tensor(v)[:, None, None] for v in (processor.image_mean, processor.image_std))
transform = image_transform(224, is_train=False, mean=processor.image_mean, std=processor.image_std)
seen = {}
for kind, picture in (("RGBA", reopened(logo)), ("palette", reopened(palette, transparency=0))):
    for name, prepared in (
        ("open_clip", transform(picture)),
        ("transformers", processor(picture, return_tensors="pt").pixel_values[0]),
    ):
        levels = ((prepared * std + mean) * 255).round().int()
        seen[kind, name] = levels[:, 0, 0].tolist()
        print(f"{kind}, {name}: ground {levels[:, 0, 0].tolist()}, logo {levels[:, 110, 110].tolist()}")
assert seen["RGBA", "open_clip"] == [0, 0, 0] and seen["RGBA", "transformers"] == [255] * 3, "the behaviour has changed"
assert seen["palette", "open_clip"] == [200, 0, 0] and seen["palette", "transformers"] == [255] * 3
PY
