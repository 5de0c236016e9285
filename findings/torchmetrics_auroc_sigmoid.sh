#!/usr/bin/env bash
# torchmetrics 1.9.0: the AUROC of scores above 1 falls towards chance the further they are from 0.
#
# One would guess: AUROC depends on the order of the scores alone, so that energies, distances or largest logits can be
# handed in as they are, and adding 20 to all of them changes nothing.
#
# What happens: if any score is outside [0, 1], all are taken for logits and put through a sigmoid in float32 first. From
# about 17 on that is exactly 1, so that pictures above it are tied: OOD detection at 92 % becomes chance. A shift of -20
# does no harm, as float32 is finer near 0. The documentation names the sigmoid; nothing warns when it ties scores.
# What helps: hand in ranks (`scores.argsort().argsort() / len(scores)`), or scikit-learn's `roc_auc_score`.
#
# Seen:
#   torchmetrics 1.9.0
#   energies around 0: 92.0%
#   the same minus 20: 92.0%
#   the same plus 20: 50.5%
#   the same as ranks: 92.0%
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --only-binary :all: torchmetrics==1.9.0 torch==2.14.1 numpy==2.4.6 2>/dev/null
"$work/venv/bin/python" - <<'PY'
import torch
import torchmetrics
from torchmetrics.classification import BinaryAUROC

print("torchmetrics", torchmetrics.__version__)
generator = torch.Generator().manual_seed(0)
known, unknown = torch.randn(2, 2000, generator=generator) + torch.tensor([[-1.0], [1.0]])
scores, labels = torch.cat([known, unknown]), torch.tensor([0, 1]).repeat_interleave(2000)
ranks = scores.argsort().argsort() / len(scores)
values = {}
for name, given in (
    ("energies around 0", scores),
    ("the same minus 20", scores - 20),
    ("the same plus 20", scores + 20),
    ("the same as ranks", ranks),
):
    values[name] = float(BinaryAUROC()(given, labels))
    print(f"{name}: {values[name]:.1%}")
right = values["the same as ranks"]
assert right > 0.9 and abs(values["energies around 0"] - right) < 1e-3 and abs(values["the same minus 20"] - right) < 1e-3
assert values["the same plus 20"] < 0.6, "the behaviour has changed"
PY
