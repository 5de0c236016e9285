"""Several processes, one run, without a line of the script changed.

``accelerate launch --multi_gpu --num_processes 4 -m rp_lib run ...`` starts them on GPUs, ``torchrun --nproc_per_node=4
-m rp_lib run ...`` on CPUs too (``accelerate launch --cpu`` starts one process, whatever number it is given).

Every process runs the whole script. What is expensive is shared out: each takes its part of every batch, and of the
images to encode, and what they make of it is gathered, so that all of them hold the same features, losses and weights.
The batch of the schedule is the batch of all processes together: the same batches give the same trained program as one
process does, but for the order in which floats are added. Only the main process, of rank 0, writes methods, outputs,
records, figures and checkpoints. Ctrl-C in any process stops all of them behind the same step, when the checkpoint is
written; each then raises KeyboardInterrupt.

One rule makes the gradients right: behind :func:`gather` every process computes the same loss of the whole batch.
Then each weight's gradient, averaged over the processes, is that of one process, whether the weight lies before
``gather`` (where each process has seen its own rows alone) or behind it, and whatever the loss mixes.

In a process that no launcher started nothing here does anything.
"""

from __future__ import annotations

import atexit
import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rp_lib.utils.errors import RPLibError

T = TypeVar("T")
BUCKET = 8_000_000  # gradients averaged in one go, numbers; small against a model, large against the latency

_alone: ContextVar[bool] = ContextVar("alone", default=False)


def launched() -> bool:
    """Whether a launcher started this process as one of several."""
    size = os.environ.get("WORLD_SIZE", "")
    return size.isdigit() and int(size) > 1 and all(k in os.environ for k in ("RANK", "LOCAL_RANK", "MASTER_ADDR"))


def start() -> None:
    """Join the other processes, if there are any; accelerate picks the backend (NCCL on CUDA, gloo on CPUs)."""
    if not dist.is_available() or dist.is_initialized() or not launched():
        return
    from accelerate import PartialState

    cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes") or not torch.cuda.is_available()
    state = PartialState(cpu=cpu)
    atexit.register(state.destroy_process_group)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Act as if there were no other processes: for work that differs between them, or that the main one does."""
    mark = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(mark)


def world_size() -> int:
    """Number of processes of this run."""
    if _alone.get():
        return 1
    start()
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def is_main() -> bool:
    """Whether this process writes files and talks."""
    return rank() == 0


def local_device() -> torch.device | None:
    """This process's own GPU (or the CPU), or None if it is alone."""
    if world_size() == 1:
        return None
    if "nccl" not in dist.get_backend():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", torch.cuda.current_device())))


# Sharing out and gathering ----------------------------------------------------------------------------------------


def share(n: int, of: int | None = None) -> slice:
    """The consecutive part of ``n`` things that process ``of`` (default: this one) takes; sizes differ by at most one.

    If there are fewer things than processes, each process takes all of them.
    """
    size = world_size()
    if size == 1 or n < size:
        return slice(0, n)
    of = rank() if of is None else of
    return slice(n * of // size, n * (of + 1) // size)


def gather(rows: Tensor, n: int) -> Tensor:
    """All ``n`` rows, in order, from the (k, ...) rows of each process's :func:`share` of them; gradients flow back.

    Raises:
        RPLibError: these are not as many rows as this process has to give.
    """
    size, mine = world_size(), share(n)
    if len(rows) != mine.stop - mine.start:
        raise RPLibError(f"this process takes {mine.stop - mine.start} of {n} rows, got {len(rows)}")
    if size == 1 or n < size:
        return rows
    return _Gather.apply(rows, [share(n, r).stop - share(n, r).start for r in range(size)])


def gather_parts(rows: Tensor, lengths: Sequence[int]) -> Tensor:
    """As :func:`gather`, of parts of any lengths, one per process."""
    return rows if world_size() == 1 else _Gather.apply(rows, list(lengths))


def shared(encode: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    """``encode(rows)``, each process computing its part of the result; ``encode`` treats every row alone."""
    return gather(encode(rows[share(len(rows))]), len(rows))


class _Gather(torch.autograd.Function):
    """Concatenate rows of all processes; backward keeps this process's part, as often as there are processes.

    All processes hold the same gradient of the same loss, so nothing has to be sent on the way back. The factor is
    what the average over processes takes away again.
    """

    @staticmethod
    def forward(ctx, rows: Tensor, lengths: list[int]) -> Tensor:
        ctx.start, ctx.count, ctx.size = sum(lengths[: rank()]), len(rows), len(lengths)
        padded = rows.new_zeros(max(lengths), *rows.shape[1:])
        padded[: len(rows)] = rows
        padded = padded.to(_comm_device()).contiguous()
        everyone = [torch.empty_like(padded) for _ in lengths]
        dist.all_gather(everyone, padded)
        return torch.cat([part[:n] for part, n in zip(everyone, lengths, strict=True)]).to(rows.device)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient[ctx.start : ctx.start + ctx.count] * ctx.size, None


# Agreeing ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace every gradient by its mean over the processes, which all end with the same bits."""
    if world_size() == 1:
        return
    bucket: list[Tensor] = []
    gradients = [p.grad for p in parameters if p.grad is not None]
    for i, gradient in enumerate(gradients):
        bucket.append(gradient)
        if i + 1 == len(gradients) or sum(g.numel() for g in bucket) >= BUCKET:
            flat = torch.cat([g.reshape(-1) for g in bucket]).to(_comm_device())
            dist.all_reduce(flat)
            for g, mean in zip(bucket, (flat / world_size()).split([g.numel() for g in bucket]), strict=True):
                g.copy_(mean.view_as(g))
            bucket = []


@torch.no_grad()
def copy_from_main(module: nn.Module) -> None:
    """Give every process the main process's parameters and buffers."""
    if world_size() > 1:
        for value in module.state_dict().values():
            sent = value.to(_comm_device()).contiguous()
            dist.broadcast(sent, 0)
            value.copy_(sent)


def any_process(flag: bool) -> bool:
    """Whether any process says so. Collective."""
    return all_reduce_max(int(flag)) > 0


def all_reduce_max(number: int) -> int:
    """The largest number that a process passes. Collective."""
    if world_size() == 1:
        return number
    answer = torch.tensor([number], device=_comm_device())
    dist.all_reduce(answer, dist.ReduceOp.MAX)
    return int(answer)


def on_main(work: Callable[[], T]) -> T:
    """Do ``work`` on the main process, and return what it returns on every process. Collective.

    Raises:
        RPLibError: In the other processes, if it failed, with the same message; the main process raises what went
            wrong.
    """
    if world_size() == 1:
        return work()
    error: Exception | None = None
    done: list[Any] = [None, None]  # the result, and what went wrong
    if is_main():
        try:
            with alone():  # what it calls may well wait for the others, who are not there
                done[0] = work()
        except Exception as caught:
            error, done[1] = caught, f"the main process could not finish: {caught}"
    dist.broadcast_object_list(done, 0, device=torch.device(_comm_device()))
    if error is not None or done[1] is not None:
        raise error or RPLibError(done[1])
    return done[0]


def _comm_device() -> torch.device | str:
    """Where tensors must be for the backend to send them."""
    return torch.device("cuda", torch.cuda.current_device()) if "nccl" in dist.get_backend() else "cpu"
