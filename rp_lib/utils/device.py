"""Which device computes, in which precision, and with which attention kernel."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from rp_lib.utils import distributed
from rp_lib.utils.errors import RPLibError, UnknownName

PRECISIONS = ("auto", "float32", "bfloat16", "float16")


def pick_device(name: str = "auto") -> torch.device:
    """Choose a device and check that it is there.

    Args:
        name: ``"auto"`` takes CUDA, then Apple's MPS, then the CPU; or any torch device string. Of several processes
            that a launcher started, each gets its own GPU with ``"auto"`` and with ``"cuda"``.

    Raises:
        RPLibError: The device is not there.
    """
    own = distributed.local_device()
    if name == "auto":
        if own is not None:
            return own
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    if name == "cuda" and own is not None and own.type == "cuda":
        return own
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise RPLibError(f"device {name!r} cannot be used here; take auto or cpu") from error
    return device


def autocast_dtype(device: torch.device, precision: str = "auto") -> torch.dtype | None:
    """Choose the dtype to autocast to while training; None is plain float32.

    ``precision="auto"`` uses bfloat16 where the hardware multiplies in it (recent GPUs; CPUs with AVX512-BF16 or AMX;
    elsewhere it would be emulated and slow), float16 with scaled gradients on older GPUs, and float32 everywhere else.
    """
    if precision not in PRECISIONS:
        raise UnknownName("precision", precision, PRECISIONS)
    if precision != "auto":
        return None if precision == "float32" else getattr(torch, precision)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type == "cpu":
        fast = any(getattr(torch.cpu, f"_is_{f}_supported", bool)() for f in ("avx512_bf16", "amx_tile"))
        return torch.bfloat16 if fast else None
    return None


def in_float32(device: torch.device) -> torch.autocast:
    """Suspend autocast: a cosine in bfloat16 times CLIP's scale of 100 would be off by up to 0.4."""
    return torch.autocast(device.type, enabled=False)


@contextlib.contextmanager
def evaluating() -> Iterator[None]:
    """Suspend autocast on every device: features and scores of an evaluation are computed in float32."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.autocast("cpu", enabled=False))
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        if accelerator is not None:
            stack.enter_context(torch.autocast(accelerator.type, enabled=False))
        yield


@contextlib.contextmanager
def computing(device: torch.device, dtype: torch.dtype | None = None) -> Iterator[None]:
    """Autocast to ``dtype`` (if any); on CPUs use the plain attention kernel.

    The fused CPU kernel's backward is slow for the short sequences of small images and prompts:
    measured, it halves the training speed of a 17-token tower.
    """
    with contextlib.ExitStack() as stack:
        if device.type == "cpu":
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if dtype is not None:
            stack.enter_context(torch.autocast(device.type, dtype))
        yield


def compile_in_place(module: nn.Module, device: torch.device, backend: str = "inductor") -> None:
    """``torch.compile`` for a module that stays what it is: names, weights and type do not change.

    Raises:
        RPLibError: Nothing can be compiled here, for example because there is no C++ compiler.
    """
    try:  # now, on something small, and not at the first step of training
        torch.compile(lambda x: x + 1, backend=backend)(torch.zeros(2, device=device))
    except Exception as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RPLibError(f"torch.compile does not work here ({first}); leave `compile` out") from error
    module.compile(backend=backend)
