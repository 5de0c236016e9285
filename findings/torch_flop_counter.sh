#!/usr/bin/env bash
# torch 2.14.1: `FlopCounterMode` leaves attention out on a CPU, and all of `nn.MultiheadAttention` in evaluation.
#
# One would guess: `FlopCounterMode` counts what a forward pass of a transformer multiplies, and the mode of the
# modules (`train()` or `eval()`, with or without gradients) makes no difference to it.
#
# What happens: two fast paths are operators that the counter has no formula for, and count as 0: the kernel that
# `scaled_dot_product_attention` takes on a CPU, forward and backward, and the fused operator that
# `nn.MultiheadAttention` and `nn.TransformerEncoderLayer` take in `eval()` without gradients. A frozen CLIP tower
# therefore seems to cost a third less than the same tower in training (5.9 instead of 8.7 GFLOP a picture for ViT-B/32
# as open_clip builds it), and an encoder layer nothing. No warning.
# What helps: count in `train()` mode or under `torch.enable_grad()`, with `sdpa_kernel(SDPBackend.MATH)`.
#
# Seen:
#   torch 2.14.1
#   scaled_dot_product_attention: 10.24 MFLOP by hand, counted: 10.24 (math), 0.00 (default)
#   TransformerEncoderLayer, no_grad: 639.4 MFLOP in train(), 0.0 in eval()
#   TransformerEncoderLayer in eval() with gradients: 629.1 MFLOP, which lacks the attention
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --only-binary :all: torch==2.14.1 numpy==2.4.6 2>/dev/null
"$work/venv/bin/python" - <<'PY'
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode


def flops(run):
    """Floating point operations that the counter sees, in millions."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / 1e6


print("torch", torch.__version__.split("+")[0])
torch.manual_seed(0)
n, tokens, width, heads = 2, 50, 512, 8
q = torch.randn(n, heads, tokens, width // heads)
expected = 2 * 2 * n * heads * tokens * tokens * (width // heads) / 1e6  # two products, multiply and add
with sdpa_kernel(SDPBackend.MATH):
    math = flops(lambda: scaled_dot_product_attention(q, q, q))
default = flops(lambda: scaled_dot_product_attention(q, q, q))
print(f"scaled_dot_product_attention: {expected:.2f} MFLOP by hand, counted: {math:.2f} (math), {default:.2f} (default)")
assert abs(math - expected) < 1e-6 and default == 0, "the behaviour has changed"

layer = torch.nn.TransformerEncoderLayer(width, heads, 4 * width, batch_first=True)
x = torch.randn(n, tokens, width)


def without_gradients():
    with torch.no_grad():
        layer(x)


seen = {}
for mode in ("train", "eval"):
    getattr(layer, mode)()
    seen[mode] = flops(without_gradients)
with_gradients = flops(lambda: layer(x))
print(f"TransformerEncoderLayer, no_grad: {seen['train']:.1f} MFLOP in train(), {seen['eval']:.1f} in eval()")
print(f"TransformerEncoderLayer in eval() with gradients: {with_gradients:.1f} MFLOP, which lacks the attention")
assert seen["eval"] == 0 and 0 < seen["train"] - with_gradients < 11, "the behaviour has changed"
PY
