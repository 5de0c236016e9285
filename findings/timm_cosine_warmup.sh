#!/usr/bin/env bash
# timm 1.0.31: a cosine schedule with warm-up never reaches the rate that was asked for.
#
# One would guess: `CosineLRScheduler(optimizer, t_initial=10, warmup_t=3)` rises to the optimizer's rate during three epochs
# and falls from there along a cosine to zero at the tenth, as open_clip's and transformers' schedules do.
#
# What happens: the cosine starts at epoch 0 and the warm-up covers its first part (`warmup_prefix=False`): at the end
# of the warm-up the rate drops onto the cosine, here to 79 %. With a warm-up of a third of a short run, a learning rate
# found with timm is a fifth smaller than it says.
# What helps: `warmup_prefix=True`, with `t_initial` less the warm-up if the run shall not get longer.
#
# Seen:
#   timm 1.0.31
#   default:            [0.0, 0.33, 0.67, 0.79, 0.65, 0.5, 0.35, 0.21, 0.1, 0.02]
#   warmup_prefix=True: [0.0, 0.33, 0.67, 1.0, 0.95, 0.81, 0.61, 0.39, 0.19, 0.05]
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --only-binary :all: timm==1.0.31 torch==2.14.1 torchvision==0.29.1 numpy==2.4.6 2>/dev/null
"$work/venv/bin/python" - <<'PY'
import timm
import torch
from timm.scheduler import CosineLRScheduler

print("timm", timm.__version__)


def rates(**options):
    """Learning rate of each of ten epochs, of an optimizer whose rate is 1."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = CosineLRScheduler(optimizer, warmup_t=3, warmup_lr_init=0.0, **options)
    seen = []
    for epoch in range(10):
        seen.append(round(optimizer.param_groups[0]["lr"], 2))
        scheduler.step(epoch + 1)
    return seen


default, prefix = rates(t_initial=10), rates(t_initial=7, warmup_prefix=True)
print("default:           ", default)
print("warmup_prefix=True:", prefix)
assert max(default) == 0.79 and max(prefix) == 1.0, "the behaviour has changed"
PY
