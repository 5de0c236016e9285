#!/usr/bin/env bash
# peft 0.21.2: `modules_to_save=["proj"]` trains every attention output of a CLIP tower, and not the projection.
#
# One would guess: names in `modules_to_save` mean what names in `target_modules` mean, a module of that name; with LoRA on `c_fc`
# and `modules_to_save=["proj"]` the adapters and the tower's last projection are trained.
#
# What happens: `modules_to_save` takes every module whose path ends with these letters: `attn.out_proj` and `mlp.c_proj` of all
# blocks are copied and trained in full, tens of millions of weights. The projection itself, `visual.proj`, is a parameter and
# no module: it stays frozen. `print_trainable_parameters()` shows the number; no warning says why.
# What helps: read the list of trainable names once; train a parameter by `requires_grad_(True)` after wrapping and save it oneself.
#
# Seen:
#   peft 0.21.2
#   modules called proj: 0
#   parameters called proj: ['proj']
#   trained by LoRA: 184,320; trained in full: 35,407,872 of 87,849,216, tensors of {'out_proj': 24, 'c_proj': 24}
#   the projection is trained: False
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --only-binary :all: peft==0.21.2 open_clip_torch==3.3.0 timm==1.0.31 torch==2.14.1 torchvision==0.29.1 transformers==5.24.0 numpy==2.4.6 2>/dev/null
HF_HUB_OFFLINE=1 "$work/venv/bin/python" - 2>/dev/null <<'PY'
from collections import Counter

import open_clip
import peft
from peft import LoraConfig, get_peft_model

print("peft", peft.__version__)
tower = open_clip.create_model("ViT-B-32").visual
total = sum(p.numel() for p in tower.parameters())
print("modules called proj:", sum(name.split(".")[-1] == "proj" for name, _ in tower.named_modules()))
print("parameters called proj:", [name for name, _ in tower.named_parameters() if name.split(".")[-1] == "proj"])
model = get_peft_model(tower, LoraConfig(r=4, target_modules=["c_fc"], modules_to_save=["proj"]))
trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
full = Counter(name.split(".modules_to_save")[0].split(".")[-1] for name in trained if "lora_" not in name)
lora = sum(p.numel() for name, p in trained.items() if "lora_" in name)
rest = sum(p.numel() for name, p in trained.items() if "lora_" not in name)
print(f"trained by LoRA: {lora:,}; trained in full: {rest:,} of {total:,}, tensors of {dict(full)}")
print("the projection is trained:", any(name.endswith("model.proj") for name in trained))
assert set(full) == {"out_proj", "c_proj"} and rest > 30_000_000, "the behaviour has changed"
assert not model.base_model.model.proj.requires_grad, "the behaviour has changed"
PY
