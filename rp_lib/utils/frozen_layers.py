"""Two layers of a frozen tower, computed so that a gradient through them costs no more than it must on a CPU.

Reprogramming asks for gradients with respect to activations, never to weights, and torch takes a slow way through
two layers then: it multiplies by a weight once per token, copying the weight each time, and it runs a convolution
backwards that is one matrix product. Names, weights and types of the layers stay; results differ by rounding alone.
With a ViT-B/32 these two were a third of a training step (``python -m tests.speed``).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def speed_up_frozen_layers(model: nn.Module) -> nn.Module:
    """Replace both kinds of layers of a model, in place; a second call changes nothing.

    Args:
        model: Any module; layers that do not fit stay as they are.

    Returns:
        The same model.
    """
    for module in model.modules():
        if isinstance(module, nn.MultiheadAttention) and module.batch_first and not module._forward_pre_hooks:
            module.register_forward_pre_hook(_tokens_first, with_kwargs=True)
        elif type(module) is nn.Conv2d and _cuts_patches(module):
            module.__class__ = PatchProjection  # adds no state: copies and checkpoints remain a Conv2d's
    return model


def _passes_gradient(x: Tensor, weight: Tensor) -> bool:
    """Whether a gradient goes through a layer and stops at none of its weights, on a CPU."""
    return torch.is_grad_enabled() and x.requires_grad and not weight.requires_grad and x.device.type == "cpu"


def _tokens_first(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
    """Lay out self-attention's input (n, length, width) in memory as the layer transposes it, (length, n, width).

    The projection into queries, keys and values then sees contiguous rows, and is one product instead of ``length``.
    """
    weight: Tensor | None = module.in_proj_weight  # type: ignore[assignment]
    if weight is None or len(args) < 3 or args[1] is not args[0] or args[2] is not args[0]:
        return None
    if args[0].ndim != 3 or not _passes_gradient(args[0], weight):
        return None
    x = args[0].transpose(0, 1).contiguous().transpose(0, 1)
    return (x, x, x, *args[3:]), kwargs


def _cuts_patches(conv: nn.Conv2d) -> bool:
    plain = conv.padding == (0, 0) and conv.dilation == (1, 1) and conv.groups == 1
    return plain and conv.kernel_size == conv.stride and conv.kernel_size != (1, 1)


class PatchProjection(nn.Conv2d):
    """A convolution whose patches do not overlap; as one matrix product where a gradient passes through."""

    def forward(self, input: Tensor) -> Tensor:
        """Float (n, c, H, W) -> (n, width, H // p, W // p)."""
        if input.ndim != 4 or not _passes_gradient(input, self.weight):
            return super().forward(input)
        (p, q), (n, c, height, width) = self.kernel_size, input.shape
        rows, columns = height // p, width // q
        x = input[:, :, : rows * p, : columns * q].reshape(n, c, rows, p, columns, q)
        x = x.permute(0, 2, 4, 1, 3, 5).reshape(n, rows * columns, c * p * q)
        return F.linear(x, self.weight.flatten(1), self.bias).transpose(1, 2).reshape(n, -1, rows, columns)
