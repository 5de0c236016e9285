#!/usr/bin/env bash
# open_clip_torch 3.3.0: ViTamin-XL-384 is built for 256 pixels, and prepares pictures so.
#
# One would guess: `create_model_and_transforms("ViTamin-XL-384", "datacomp1b")` takes pictures of 384 pixels, which its weights
# (jienengchen/ViTamin-XL-384px) were trained with, as ViTamin-L-384 and ViTamin-L2-384 do.
#
# What happens: its configuration says `"image_size": 256`. The tower has no positions, so that the weights fit any size: they load
# without a word, pictures are shrunk to 256 pixels, and each feature is that of a model that nobody published.
# What helps: `force_image_size=384`.
#
# Seen:
#   open_clip 3.3.0
#   ViTamin-L-384 384 pixels, timm's vitamin_large_384 384
#   ViTamin-L2-384 384 pixels, timm's vitamin_large2_384 384
#   ViTamin-XL-256 256 pixels, timm's vitamin_xlarge_256 256
#   ViTamin-XL-336 336 pixels, timm's vitamin_xlarge_336 336
#   ViTamin-XL-384 256 pixels, timm's vitamin_xlarge_384 384
#   weights of ViTamin-XL-384 at 256 and at 384 pixels: equal shapes
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --only-binary :all: open_clip_torch==3.3.0 torch==2.14.1 torchvision==0.29.1 timm==1.0.31 pillow==13.0.0 numpy==2.4.6 2>/dev/null
"$work/venv/bin/python" - <<'PY'
import logging

import open_clip
import timm
import torch

logging.disable(logging.WARNING)
print("open_clip", open_clip.__version__)


def model(name, **options):
    with torch.device("meta"):  # sizes alone
        return open_clip.create_model(name, device="meta", **options)


wrong = []
for name in ("ViTamin-L-384", "ViTamin-L2-384", "ViTamin-XL-256", "ViTamin-XL-336", "ViTamin-XL-384"):
    tower = open_clip.get_model_config(name)["vision_cfg"]["timm_model_name"]
    built, trained = model(name).visual.image_size[0], timm.get_pretrained_cfg(tower).input_size[1]
    print(f"{name} {built} pixels, timm's {tower} {trained}")
    wrong += [name] * (built != trained)
shapes = [{key: tuple(w.shape) for key, w in model("ViTamin-XL-384", force_image_size=n).state_dict().items()} for n in (256, 384)]
print("weights of ViTamin-XL-384 at 256 and at 384 pixels:", "equal shapes" if shapes[0] == shapes[1] else "different shapes")
assert wrong == ["ViTamin-XL-384"] and shapes[0] == shapes[1], "the behaviour has changed"
PY
