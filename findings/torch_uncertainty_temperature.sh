#!/usr/bin/env bash
# torch_uncertainty 0.13.0: `TemperatureScaler` collapses to a temperature of 0 where logits are large.
#
# One would guess: temperature scaling is one number, convex in its inverse; whatever the scale of the logits, the fit finds it or
# says that it did not.
#
# What happens: a few steps of LBFGS lead across 0, where nothing leads back. Logits with a
# deviation of 1 or 10 get their temperature to three digits; the same logits times 100 get 3e-7, and a loss of 75 million
# instead of .96. A start at 100 does not help. No warning, and the predicted classes stay the same.
# What helps: divide the logits by their deviation first, multiply the temperature by it, and look at the loss.
#
# Seen:
#   torch_uncertainty 0.13.0
#   logits times 1, start 1: temperature 0.507 (best 0.507), loss 0.9555
#   logits times 10, start 1: temperature 5.07 (best 5.08), loss 0.9555
#   logits times 10, start 10: temperature 5.07 (best 5.08), loss 0.9555
#   logits times 100, start 1: temperature 3.44e-07 (best 50.9), loss 7.5e+07
#   logits times 100, start 100: temperature 6.35e-07 (best 50.9), loss 4.067e+07
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --only-binary :all: torch_uncertainty==0.13.0 scikit-learn==1.9.1 lightning==2.6.6 "jsonargparse[signatures]==4.53.0" rich==15.0.0 einops==0.8.2 timm==1.0.31 setuptools==80.10.2 torchmetrics==1.9.0 torch==2.14.1 torchvision==0.29.1 numpy==2.4.6 2>/dev/null
"$work/venv/bin/python" -W ignore - 2>/dev/null <<'PY'
from importlib.metadata import version

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset
from torch_uncertainty.post_processing import TemperatureScaler

print("torch_uncertainty", version("torch_uncertainty"))
generator = torch.Generator().manual_seed(0)
labels = torch.randint(0, 10, (2000,), generator=generator)
logits = torch.randn(2000, 10, generator=generator)
logits[torch.arange(2000), labels] += 2
for scale in (1, 10, 100):
    z = logits * scale
    candidates = torch.logspace(-1, 3, 1000)
    best = candidates[torch.stack([cross_entropy(z / t, labels) for t in candidates]).argmin()].item()
    for start in sorted({1, scale}):
        scaler = TemperatureScaler(model=nn.Identity(), init_temperature=start)
        scaler.fit(DataLoader(TensorDataset(z, labels), batch_size=256), progress=False)
        found = float(torch.as_tensor(scaler.temperature).flatten()[0])
        loss = cross_entropy(z / found, labels).item()
        print(f"logits times {scale}, start {start}: temperature {found:.3g} (best {best:.3g}), loss {loss:.4g}")
        assert (loss < 1) == (scale < 100), "the behaviour has changed"
PY
