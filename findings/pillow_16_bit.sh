#!/usr/bin/env bash
# Pillow 13.0.0: `convert("RGB")` of a picture of 16 bits clips it instead of scaling it.
#
# One would guess: a grey PNG of 16 bits (an X-ray, a depth map, a satellite band) becomes a grey picture of
# 8 bits, its values divided by 256; every CLIP preprocessing calls `convert("RGB")`.
#
# What happens: everything above 255 becomes 255. Such a picture is all white, and so are its features' differences
# from one picture to the next. No warning.
# What helps: divide by 256 before, for example `Image.fromarray((np.asarray(image) >> 8).astype("uint8"))`.
#
# Seen:
#   Pillow 13.0.0, mode I;16
#   values in the file: [0, 100, 256, 10000, 32768, 65535]
#   after convert("RGB"): [0, 100, 255, 255, 255, 255]
#   after convert("L"): [0, 100, 255, 255, 255, 255]
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --only-binary :all: pillow==13.0.0 numpy==2.4.6
"$work/venv/bin/python" - <<'EOF'
import io

import numpy as np
import PIL
from PIL import Image

values = np.array([[0, 100, 256, 10000, 32768, 65535]], dtype=np.uint16)
file = io.BytesIO()
Image.fromarray(values).save(file, "PNG")
image = Image.open(file)
print(f"Pillow {PIL.__version__}, mode {image.mode}")
assert np.array_equal(np.asarray(image), values), "the file itself keeps all 16 bits"
print("values in the file:", values[0].tolist())
for mode in ("RGB", "L"):
    seen = np.asarray(image.convert(mode)).reshape(6, -1)[:, 0].tolist()
    print(f'after convert("{mode}"):', seen)
    assert seen == [0, 100, 255, 255, 255, 255], "the behaviour has changed"
EOF
