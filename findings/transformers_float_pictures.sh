#!/usr/bin/env bash
# transformers 5.24.0: `CLIPImageProcessor` divides pictures that are in [0, 1] already by 255 again.
#
# One would guess: tensors from `ToTensor()` (float, 0 to 1) are recognised by their type, or refused, or warned about; the same
# picture as bytes and as floats gives the same input.
#
# What happens: the processor rescales whatever it gets. All pictures become nearly black, differ by a 255th of what they should,
# and get nearly the same features. No warning.
# What helps: hand over bytes or PIL pictures, or `do_rescale=False`.
#
# Seen:
#   transformers 5.24.0
#   bytes: mean 0.18, darkest -1.79, brightest 2.15
#   floats in [0, 1]: mean -1.67, darkest -1.79, brightest -1.47
#   floats in [0, 1], do_rescale=False: mean 0.18, darkest -1.98, brightest 2.31
#   warnings that speak of rescaling: 0
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --only-binary :all: transformers==5.24.0 torch==2.14.1 torchvision==0.29.1 pillow==13.0.0 numpy==2.4.6 2>/dev/null
HF_HUB_OFFLINE=1 "$work/venv/bin/python" -W always - <<'PY'
import warnings

import numpy as np
import torch
import transformers
from transformers import CLIPImageProcessor

print("transformers", transformers.__version__)
picture = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 300, 300), dtype=np.uint8))
processor = CLIPImageProcessor()
seen = {}
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    for name, given, options in (
        ("bytes", picture, {}),
        ("floats in [0, 1]", picture / 255, {}),
        ("floats in [0, 1], do_rescale=False", picture / 255, {"do_rescale": False}),
    ):
        seen[name] = processor(given, return_tensors="pt", **options).pixel_values
        print(f"{name}: mean {seen[name].mean():.2f}, darkest {seen[name].min():.2f}, brightest {seen[name].max():.2f}")
print("warnings that speak of rescaling:", sum("rescal" in str(w.message) for w in said))
assert seen["floats in [0, 1]"].max() < -1.4, "the behaviour has changed"
assert (seen["bytes"] - seen["floats in [0, 1], do_rescale=False"]).abs().mean() < 0.02
PY
