#!/usr/bin/env bash
# open_clip_torch 3.3.0: for inputs that are not square the interpolation that was asked for is not used.
#
# One would guess: `image_transform_v2(PreprocessCfg(size=(224, 336), interpolation="bilinear"))`, and with it what
# `create_model_and_transforms(..., force_image_size=(224, 336), image_interpolation="bilinear")` returns, resizes by bilinear
# interpolation, as it does for 224 x 224.
#
# What happens: in the mode "shortest" such a size takes another path (`ResizeKeepRatio`), which the interpolation is not handed
# to: it is bicubic, whatever was asked for. The mode "squash" heeds it. Weights that were trained with bilinear pictures then see
# others, without a word.
# What helps: the mode "squash", or a transform of one's own with torchvision's `resize` and `center_crop`.
#
# Seen:
#   open_clip 3.3.0
#   (224, 224), shortest: bilinear differs from bicubic by up to 25 grey levels
#   (224, 224), squash: bilinear differs from bicubic by up to 23 grey levels
#   (224, 336), shortest: bilinear differs from bicubic by up to 0 grey levels
#   (224, 336), squash: bilinear differs from bicubic by up to 28 grey levels
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --only-binary :all: open_clip_torch==3.3.0 torch==2.14.1 torchvision==0.29.1 timm==1.0.31 pillow==13.0.0 numpy==2.4.6 2>/dev/null
"$work/venv/bin/python" - <<'PY'
import numpy as np
import open_clip
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

print("open_clip", open_clip.__version__)
picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8))
found = {}
for size in ((224, 224), (224, 336)):
    for mode in ("shortest", "squash"):
        both = [
            image_transform_v2(PreprocessCfg(size=size, mean=(0, 0, 0), std=(1, 1, 1), interpolation=how, resize_mode=mode), is_train=False)(picture)
            for how in ("bilinear", "bicubic")
        ]
        found[size, mode] = float((both[0] - both[1]).abs().max() * 255)
        print(f"{size}, {mode}: bilinear differs from bicubic by up to {found[size, mode]:.0f} grey levels")
assert found.pop(((224, 336), "shortest")) == 0, "the behaviour has changed"
assert min(found.values()) > 5
PY
