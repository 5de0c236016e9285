#!/usr/bin/env bash
# open_clip_torch 3.3.0: `encode_image` and `encode_text` of CoCa give unit length by default, those of all other models do not.
#
# One would guess: methods of one name in one library have one default: `model.encode_image(images)` gives features as they are,
# and `normalize=True` scales them.
#
# What happens: the default is False for CLIP and CustomTextCLIP and True for CoCa. Norms, averages of several prompts, and
# probes on features as they are mean something else as soon as the model's name begins with "coca".
# What helps: pass `normalize=` always.
#
# Seen:
#   open_clip 3.3.0
#   CustomTextCLIP lengths of image features 5.02 4.95 4.94 5.00 of text features 6.10 4.59 6.25 4.34
#   CoCa lengths of image features 1.00 1.00 1.00 1.00 of text features 1.00 1.00 1.00 1.00
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --only-binary :all: open_clip_torch==3.3.0 torch==2.14.1 torchvision==0.29.1 timm==1.0.31 pillow==13.0.0 numpy==2.4.6 2>/dev/null
"$work/venv/bin/python" - <<'PY'
import open_clip
import torch
from open_clip.coca_model import CoCa
from open_clip.model import CustomTextCLIP

print("open_clip", open_clip.__version__)
sizes = {"width": 32, "layers": 1, "mlp_ratio": 2.0}
text = {"context_length": 8, "vocab_size": 50, "heads": 2, **sizes}
vision = {"image_size": 32, "patch_size": 16, "head_width": 16, **sizes}
# As in open_clip's own configuration of coca_ViT-B-32.
own = {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True}
coca = {"multimodal_cfg": {**text, "attn_pooler_heads": 2}, "text_cfg": {**text, "embed_cls": True, "output_tokens": True}, "vision_cfg": {**vision, **own}}
found = {}
for kind in (CustomTextCLIP, CoCa):
    torch.manual_seed(0)
    model = kind(32, vision, text) if kind is CustomTextCLIP else kind(32, **coca)
    with torch.no_grad():
        images, texts = model.eval().encode_image(torch.rand(4, 3, 32, 32)), model.encode_text(torch.randint(1, 50, (4, 8)))
    found[kind] = [images.norm(dim=1).tolist(), texts.norm(dim=1).tolist()]
    print(kind.__name__, "lengths of image features", *(f"{n:.2f}" for n in found[kind][0]), "of text features", *(f"{n:.2f}" for n in found[kind][1]))
unit = {kind: all(abs(n - 1) < 1e-5 for lengths in both for n in lengths) for kind, both in found.items()}
assert unit == {CustomTextCLIP: False, CoCa: True}, "the behaviour has changed"
PY
