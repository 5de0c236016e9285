#!/usr/bin/env bash
# open_clip_torch 3.3.0: a CoCa that is built without weights holds a matrix that nobody wrote to.
#
# One would guess: after `torch.manual_seed(0)` a model with random weights is the same each time, and its weights are finite.
#
# What happens: `text_decoder.text_projection` is `torch.empty` and stays so: what the memory held before, which may be nan. Two
# builds with one seed differ, a hash of the weights is another one in each process, and training of captions from scratch can
# start at nan. With torch's deterministic mode, which fills such memory with nan, it is seen each time.
# What helps: `torch.nn.init.normal_(model.text_decoder.text_projection, std=width ** -0.5)`, as the other text tower does.
#
# Seen:
#   open_clip 3.3.0
#   CustomTextCLIP: 0 of 38 weights were never written: []
#   CoCa: 1 of 77 weights were never written: ['text_decoder.text_projection']
#   350 of 350 logits of the caption are nan
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
torch.use_deterministic_algorithms(True)  # memory that nobody wrote to then holds nan
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
    found[kind] = [name for name, weight in model.named_parameters() if weight.isnan().any()]
    print(f"{kind.__name__}: {len(found[kind])} of {len(list(model.parameters()))} weights were never written: {found[kind]}")
logits = model(torch.rand(1, 3, 32, 32), torch.randint(1, 50, (1, 8)))["logits"]
print(f"{int(logits.isnan().sum())} of {logits.numel()} logits of the caption are nan")
assert found[CustomTextCLIP] == [] and found[CoCa] == ["text_decoder.text_projection"], "the behaviour has changed"
PY
