"""One training loop for every method: seeded, resumable to the bit, and without waste.

A method hands over a :class:`Task`: what is trained, the loss of a batch, the accuracy on validation data.
The loop does the rest. Nothing that is not trained gets a gradient, images stay uint8 until their batch is
due, and a run that was interrupted goes on exactly where it stopped.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from rp_lib import distributed
from rp_lib.checkpoints import Checkpoint, History, RunState
from rp_lib.device import autocast_dtype, computing
from rp_lib.errors import RPLibError, UnknownName
from rp_lib.schedule import SCHEDULES, Schedule, ahead, batches
from rp_lib.storage import tensors_sha256

__all__ = [
    "OPTIMISERS", "SCHEDULES", "Checkpoint", "Group", "History", "Schedule", "Task", "TrainingDiverged", "batches",
    "interrupt_between_steps", "train",
]  # fmt: skip
log = logging.getLogger(__name__)
OPTIMISERS = ("adam", "adamw", "sgd")


class TrainingDiverged(RPLibError):
    """The loss is no longer a number."""


@dataclass(frozen=True)
class Group:
    """Parameters that share an optimiser setting.

    ``optimiser``: ``adam`` (weight decay coupled, as an L2 term), ``adamw`` (decoupled) or ``sgd`` (momentum .9).
    """

    parameters: list[nn.Parameter]
    lr: float
    weight_decay: float = 0.0
    optimiser: str = "adamw"
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-8


class Task(Protocol):
    """What the loop needs from a method."""

    device: torch.device

    def module(self) -> nn.Module:
        """Holds every trained parameter, under the names they are checkpointed by."""

    def groups(self) -> list[Group]:
        """Trained parameters with their optimiser settings."""

    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Scalar loss of a batch on ``device``.

        ``inputs`` are this process's share of the batch (alone: all of it), ``labels`` those of the whole batch; what
        is computed of the inputs passes :func:`rp_lib.distributed.gather` and then meets the labels.
        """

    def identity(self) -> str:
        """Everything beside data and schedule that the run depends on; a checkpoint of another run is refused."""

    def validate(self) -> float | None:
        """Accuracy on validation data as a fraction, or None if there is none."""


def _optimiser(groups: list[Group]) -> list[torch.optim.Optimizer]:
    made: list[torch.optim.Optimizer] = []
    for g in groups:
        match g.optimiser:
            case "adam":
                made.append(torch.optim.Adam(g.parameters, g.lr, g.betas, g.eps, g.weight_decay))
            case "adamw":
                made.append(torch.optim.AdamW(g.parameters, g.lr, g.betas, g.eps, g.weight_decay))
            case "sgd":
                made.append(torch.optim.SGD(g.parameters, g.lr, momentum=0.9, weight_decay=g.weight_decay))
            case other:
                raise UnknownName("optimiser", other, OPTIMISERS)
    return made


def train(
    task: Task,
    inputs: Tensor,
    labels: Tensor,
    schedule: Schedule,
    *,
    checkpoint: Path | Checkpoint | None = None,
    checkpoint_every: int = 1,
    content: str | None = None,
    progress: str | None = None,
    on_epoch: Callable[[int, History], None] | None = None,
) -> History:
    """Train ``task`` and return its history. Several processes share the work, see :mod:`rp_lib.distributed`.

    Args:
        task: the method.
        inputs: (n, ...) images uint8 (n, 3, h, w), or features float (n, d).
        labels: int64 (n,).
        schedule: epochs, batch size, rates, seed, precision.
        checkpoint: file to write now and then and on Ctrl-C, and to resume from if it is there; removed when the run
            is whole. A path alone means after every ``checkpoint_every`` epochs, and every ten minutes in between;
            a :class:`rp_lib.checkpoints.Checkpoint` says how often, and whether it stays.
        checkpoint_every: epochs from one checkpoint to the next.
        content: digest that stands for ``inputs`` in the checkpoint. For data that is not in memory: without it, a
            checkpoint reads all of them once, to be sure that it is resumed with the same. With it, batches are
            read one step ahead of use.
        progress: label of a progress bar on stderr; None shows none.
        on_epoch: called after each epoch with (epochs done, history).

    Raises:
        TrainingDiverged: a loss is NaN or infinite.
        StorageError: the checkpoint cannot be written, or belongs to another run.
        RPLibError: several processes train batch normalisation, whose statistics would be of each one's share.
    """
    device, history = task.device, History()
    _check_shareable(task.module())
    distributed.copy_from_main(task.module())
    groups = task.groups()
    parameters = [p for g in groups for p in g.parameters]
    optimisers = _optimiser(groups)
    base_rates = [[g["lr"] for g in o.param_groups] for o in optimisers]
    dtype = autocast_dtype(device, schedule.precision)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    steps = len(batches(len(labels), schedule.batch_size, 0, 0))
    total = schedule.epochs * steps
    rule = Checkpoint(checkpoint) if isinstance(checkpoint, Path) else checkpoint
    if rule is not None and rule.epochs is None:
        rule = replace(rule, epochs=checkpoint_every)
    identity = f"{asdict(schedule)} {task.identity()} {_digest(inputs, labels, content)}" if rule else ""
    state = RunState(task.module(), optimisers, scaler, history, identity, rule)
    if state.resume(device):
        log.info("resuming from %s at epoch %d, step %d", rule and rule.path, state.epoch, state.position)

    def stop_if(asked: bool) -> None:
        if state.check(asked):
            state.save()
            state.check()  # no process leaves, and ends the launcher's patience, before it is saved
            raise KeyboardInterrupt

    bar: Any = tqdm(
        total=total, initial=len(history.losses), desc=progress, unit="step", leave=False,
        disable=progress is None or not distributed.is_main(),
    )  # fmt: skip
    cuda = [device] if device.type == "cuda" else []
    with bar, interrupt_between_steps() as interrupted, torch.random.fork_rng(cuda):
        while state.epoch < schedule.epochs:
            order = batches(len(labels), schedule.batch_size, schedule.seed, state.epoch)[state.position :]
            for x, y in _on_device(inputs, labels, order, device, content is not None):
                step = state.epoch * steps + state.position
                factor = schedule.factor(step, total)
                for optimiser, rates in zip(optimisers, base_rates, strict=True):
                    for group, rate in zip(optimiser.param_groups, rates, strict=True):
                        group["lr"] = rate * factor
                # For towers with dropout: a step draws from (seed, step) alone, so a resumed run repeats it.
                torch.manual_seed(schedule.seed * 1_000_003 + step)
                with computing(device, dtype):
                    loss = task.loss(x, y)
                if not torch.isfinite(loss):
                    raise TrainingDiverged(
                        f"the loss became {loss.item()} at epoch {state.epoch + 1}, step {state.position + 1}: lower "
                        "the learning rate, lengthen the warm-up or train with --precision float32, and check the "
                        "images for NaN"
                    )
                scaler.scale(loss).backward()
                distributed.average_gradients(parameters)
                for optimiser in optimisers:
                    scaler.step(optimiser)
                    optimiser.zero_grad(set_to_none=True)
                scaler.update()
                state.position += 1
                history.losses.append(float(loss.detach()))
                bar.update()
                stop_if(interrupted())
                if state.position < steps:
                    state.save_if_due()
            state.epoch, state.position = state.epoch + 1, 0
            last = state.epoch == schedule.epochs
            due = last or (schedule.validate_every and state.epoch % schedule.validate_every == 0)
            history.accuracies.append(task.validate() if due else None)
            if history.accuracies[-1] is not None:
                bar.set_postfix(val=f"{100 * history.accuracies[-1]:.1f}%")
            if on_epoch is not None:
                on_epoch(state.epoch, history)
            stop_if(interrupted())  # while validating
            if not last:
                state.save_if_due()
    state.finish()
    return history


def _check_shareable(module: nn.Module) -> None:
    norms = (m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
    if distributed.world() > 1 and any(m.training for m in norms):
        raise RPLibError(
            "this tower trains batch normalisation, which would see one process's share of a batch; train it in one "
            "process, or choose a vision transformer"
        )


def _digest(inputs: Tensor, labels: Tensor, content: str | None) -> str:
    if content is None:
        return tensors_sha256({"inputs": inputs, "labels": labels})
    return f"{content} {tensors_sha256({'labels': labels})}"


def _on_device(
    inputs: Tensor, labels: Tensor, order: list[Tensor], device: torch.device, on_disk: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    """This process's part of each batch of inputs, and the labels of the whole batch."""

    def take(index: Tensor) -> tuple[Tensor, Tensor]:
        x, y = inputs[index[distributed.share(len(index))]], labels[index]
        return (x.pin_memory(), y.pin_memory()) if device.type == "cuda" else (x, y)

    if device.type != "cuda" and not on_disk:  # nothing to wait for
        yield from map(take, order)
        return
    # Reading and pinning happen in a thread; from pinned memory the copy runs beside the GPU's work.
    with contextlib.closing(ahead(order, take)) as ready:
        for x, y in ready:
            yield x.to(device, non_blocking=True), y.to(device, non_blocking=True)


@contextlib.contextmanager
def interrupt_between_steps() -> Iterator[Callable[[], bool]]:
    """Hold Ctrl-C back until a step is whole, so that what is saved is a state the run really had.

    A second Ctrl-C interrupts at once. Only the main thread may handle signals; elsewhere nothing changes.
    """
    pressed: list[int] = []

    def hold(signum: int, frame: object) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(signum)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = signal.signal(signal.SIGINT, hold)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)
