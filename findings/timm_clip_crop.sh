#!/usr/bin/env bash
# timm 1.0.31: the transform that timm makes for a CLIP tower shows it less of the picture than CLIP's own does.
#
# One would guess: `create_transform(**resolve_data_config(...))` of `vit_base_patch16_clip_224.openai` prepares pictures as
# CLIP's authors and open_clip do, for the same weights.
#
# What happens: mean, deviation and interpolation are CLIP's, but `crop_pct` is 0.9: the short side becomes 248 pixels and the
# middle 224 are cut out, so that 18 % of a square picture's area is never seen. CLIP resizes to 224 and cuts nothing off the
# short side. The towers of 336 pixels have 1.0. A probe trained with one transform and used with the other sees other pictures.
# What helps: `create_transform(..., crop_pct=1.0)`.
#
# Seen:
#   timm 1.0.31
#   vit_base_patch16_clip_224.openai: crop_pct 0.9, frame of 4 % is {'timm': 0, 'crop_pct=1.0': 9, 'open_clip': 9} pixels wide
#   vit_base_patch32_clip_224.laion2b: crop_pct 0.9, frame of 4 % is {'timm': 0, 'crop_pct=1.0': 9, 'open_clip': 9} pixels wide
#   vit_large_patch14_clip_336.openai: crop_pct 1.0, frame of 4 % is {'timm': 13, 'crop_pct=1.0': 13, 'open_clip': 13} pixels wide
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --only-binary :all: timm==1.0.31 open_clip_torch==3.3.0 torch==2.14.1 torchvision==0.29.1 pillow==13.0.0 numpy==2.4.6 2>/dev/null
"$work/venv/bin/python" - <<'PY'
import numpy as np
import timm
from open_clip.transform import image_transform
from PIL import Image
from timm.data import create_transform, resolve_data_config

print("timm", timm.__version__)
# A black picture with a white frame whose width is 4 % of the side: what is cut off at the border is seen at once.
pixels = np.zeros((500, 500, 3), np.uint8)
pixels[:20] = pixels[-20:] = 255
pixels[:, :20] = pixels[:, -20:] = 255
picture = Image.fromarray(pixels)
for name in ("vit_base_patch16_clip_224.openai", "vit_base_patch32_clip_224.laion2b", "vit_large_patch14_clip_336.openai"):
    config = resolve_data_config(timm.get_pretrained_cfg(name).to_dict())
    size = config["input_size"][1]
    frame = {}
    for source, transform in (
        ("timm", create_transform(**config)),
        ("crop_pct=1.0", create_transform(**{**config, "crop_pct": 1.0})),
        ("open_clip", image_transform(size, is_train=False, mean=config["mean"], std=config["std"])),
    ):
        middle = transform(picture)[0, size // 2]  # a row: white frame, black, white frame
        frame[source] = int((middle > 0).sum()) // 2
    print(f"{name}: crop_pct {config['crop_pct']}, frame of 4 % is {frame} pixels wide")
    assert frame["crop_pct=1.0"] == frame["open_clip"]
    assert (frame["timm"] < frame["open_clip"]) == ("224" in name), "the behaviour has changed"
PY
