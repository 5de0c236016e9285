"""What a backbone, a step and a run should cost: FLOPs counted, memory and time derived. Estimates, all of them.

FLOPs are counted by PyTorch's own counter over tensors without storage (two per multiply-add; matrix products and
convolutions alone), forward and backward; what autograd keeps for the backward pass is summed up the same way. Nothing
is computed and no weight is needed, so a laptop can say what a GPU run should take. Kernels' work space, fragmentation
and the reading of images are not in it.
"""

from __future__ import annotations

import copy
import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from rp_lib.errors import RPLibError, UnknownName
from rp_lib.text_tower import encode_embedded, text_part

# What gradients a pass computes: none; back to the input through frozen weights; of the weights.
GRADIENTS = ("none", "input", "weights")
# Dense TFLOP/s of the makers' data sheets: bfloat16 (T4: float16) with float32 accumulation, and plain float32.
GPUS: dict[str, tuple[float, float]] = {
    "a100": (312.0, 19.5), "h100": (989.0, 67.0), "l4": (121.0, 30.3), "t4": (65.0, 8.1), "rtx-3090": (71.0, 35.6),
    "rtx-4090": (165.2, 82.6),
}  # fmt: skip
UTILISATION = 0.3  # assumed share of that rate; small towers and batches do not fill a large GPU


@dataclass(frozen=True)
class Pass:
    """One pass through a tower: FLOPs forward and backward, bytes that autograd keeps in between."""

    forward: int
    backward: int
    kept: int

    @property
    def flops(self) -> int:
        """Forward and backward."""
        return self.forward + self.backward


class TowerCosts:
    """Costs of the two towers of an open_clip model, on whatever device and with whatever weights it is.

    Args:
        model: is copied without its weights and stays as it is. image_size: side of the input, pixels.
        name: for messages and tables.
    """

    def __init__(self, model: nn.Module, image_size: int, name: str = "") -> None:
        self.name, self.image_size = name, image_size
        with torch.device("meta"):
            memo = {id(t): _empty(t) for t in [*model.parameters(), *model.buffers()]}
            # In training mode: the fused inference kernels would escape the counter.
            self._model = copy.deepcopy(model, memo).train()
        part = text_part(self._model)
        self.width, self.vocabulary = part.token_embedding.weight.shape[1], part.token_embedding.weight.shape[0]
        self.context_length = len(part.positional_embedding)
        self._towers = {"image": self._model.visual, "text": _Text(part)}
        self._pass = functools.cache(self._measure)

    @staticmethod
    @functools.cache
    def open_clip(name: str) -> TowerCosts:
        """Of an open_clip architecture; nothing is downloaded, no memory is taken."""
        import open_clip

        if name not in open_clip.list_models():
            raise UnknownName("open_clip model", name, open_clip.list_models())
        root = logging.getLogger()
        root.addFilter(_expected)
        try:
            with torch.device("meta"):
                model = open_clip.create_model(name, pretrained=None, device="meta")
        finally:
            root.removeFilter(_expected)
        size = model.visual.image_size
        return TowerCosts(model, size[0] if isinstance(size, tuple | list) else size, name)

    @property
    def parameters(self) -> dict[str, int]:
        """Numbers of weights: of the image tower, and of the whole model."""
        return {"image": _numel(self._model.visual), "all": _numel(self._model)}

    def image(self, gradient: str = "none", batch: int = 1, bfloat16: bool = False) -> Pass:
        """A batch of images; ``gradient`` is one of :data:`GRADIENTS`."""
        return self._pass("image", gradient, (batch, 3, self.image_size, self.image_size), bfloat16)

    def text(self, length: int, gradient: str = "none", batch: int = 1, bfloat16: bool = False) -> Pass:
        """A batch of prompts of ``length`` tokens, marks included, from their embeddings on.

        Raises:
            RPLibError: the tower has no such number of positions.
        """
        if not 1 <= length <= self.context_length:
            raise RPLibError(f"the text tower of {self.name} has {self.context_length} positions, not {length}")
        return self._pass("text", gradient, (batch, length, self.width), bfloat16)

    def _measure(self, tower: str, gradient: str, shape: tuple[int, ...], bfloat16: bool) -> Pass:
        if gradient not in GRADIENTS:
            raise UnknownName("gradient", gradient, GRADIENTS)
        module, batch = self._towers[tower], shape[0]
        # On this device attention falls apart into plain products, which the counter sees; FLOPs grow with the batch.
        with torch.device("meta"):
            state, x = _tensors(module, gradient, (1, *shape[1:]))
            with _counter() as there:
                y = functional_call(module, state, (x,))
            forward, backward = there.get_total_flops(), 0
            if gradient != "none":
                with _counter() as back:
                    y.sum().backward()
                backward = back.get_total_flops()
        kept = 0 if gradient == "none" else _kept(module, gradient, shape, bfloat16)
        return Pass(forward * batch, backward * batch, kept)


def _counter() -> FlopCounterMode:
    return FlopCounterMode(display=False, custom_mapping={torch.ops.aten.convolution_backward: _convolution_backward})


def _convolution_backward(
    gradient: Sequence[int], x: Sequence[int], weight: Sequence[int], *options: Any, **more: Any
) -> int:
    """FLOPs of a convolution's gradients: for the input and for the weight as many each as forward.

    PyTorch's own count of a weight's gradient multiplies all channels with all, so that of a grouped convolution comes
    out too large by the number of groups: 768 times for a depthwise one of 768 channels.
    """
    transposed, wanted = options[4], options[7]
    once = conv_flop_count(list(x), list(weight), list(gradient), transposed)
    return once * (bool(wanted[0]) + bool(wanted[1]))


def _kept(module: nn.Module, gradient: str, shape: tuple[int, ...], bfloat16: bool) -> int:
    """Bytes that autograd keeps for the backward pass, the weights themselves aside."""
    kept: dict[int, tuple[Tensor, int]] = {}
    with FakeTensorMode():  # tensors without storage that behave as on a CPU, autocast included
        state, x = _tensors(module, gradient, shape)
        own = {t.untyped_storage()._cdata for t in state.values()}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in own:  # a view and its base are kept once
                kept[storage._cdata] = (tensor, storage.nbytes())
            return tensor

        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t),
            torch.autocast("cpu", torch.bfloat16, enabled=bfloat16),
        ):
            functional_call(module, state, (x,))
    return sum(size for _, size in kept.values())


def _tensors(module: nn.Module, gradient: str, shape: tuple[int, ...]) -> tuple[dict[str, Tensor], Tensor]:
    """Weights and input on the device, and in the mode, of the context."""
    state = {}
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        state[name] = torch.empty(tensor.shape, dtype=tensor.dtype)
        if gradient == "weights" and isinstance(tensor, nn.Parameter):
            state[name].requires_grad_()
    return state, torch.empty(shape, requires_grad=gradient == "input")


class _Text(nn.Module):
    """A text tower from its embedded tokens on."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.text = part

    def forward(self, embedded: Tensor) -> Tensor:
        end = torch.zeros(len(embedded), dtype=torch.int64)
        return encode_embedded(self, embedded, end)


def _expected(record: logging.LogRecord) -> bool:
    """False for open_clip's warning of random weights: here there are none at all."""
    return "initialized randomly" not in record.getMessage()


def _empty(tensor: Tensor) -> Tensor:
    made = torch.empty_like(tensor, device="meta")
    return nn.Parameter(made, requires_grad=False) if isinstance(tensor, nn.Parameter) else made


def _numel(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def seconds(half_flops: float, full_flops: float, gpu: str, utilisation: float = UTILISATION) -> float:
    """Time of FLOPs in bfloat16 and in float32 on a GPU of :data:`GPUS`.

    Raises:
        UnknownName: no such GPU. RPLibError: a utilisation that is none.
    """
    if gpu not in GPUS:
        raise UnknownName("GPU", gpu, GPUS)
    if not 0 < utilisation <= 1:
        raise RPLibError(f"the utilisation is a share of the GPU's rate, above 0 and at most 1, got {utilisation}")
    half, full = (1e12 * rate * utilisation for rate in GPUS[gpu])
    return half_flops / half + full_flops / full
