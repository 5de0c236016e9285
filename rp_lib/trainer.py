"""One training loop for every method: seeded, resumable to the bit, and without waste.

A method hands over a :class:`Task`: what is trained, the loss of a batch, the accuracy on validation data.
The loop does the rest. Nothing that is not trained gets a gradient, images stay uint8 until their batch is
due, and a run that was interrupted goes on exactly where it stopped.
"""

from __future__ import annotations

import contextlib
import logging
import math
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from rp_lib.device import autocast_dtype, computing
from rp_lib.errors import RPLibError, UnknownName
from rp_lib.storage import StorageError, tensors_sha256, torch_save, write_atomically

log = logging.getLogger(__name__)
SCHEDULES = ("constant", "cosine", "steps")
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
        """Scalar loss of a batch on ``device``."""

    def identity(self) -> str:
        """Everything beside data and schedule that the run depends on; a checkpoint of another run is refused."""

    def validate(self) -> float | None:
        """Accuracy on validation data as a fraction, or None if there is none."""


@dataclass(frozen=True)
class Schedule:
    """How long, in which order and at which rate.

    ``cosine`` falls to zero after a linear warm-up; ``steps`` multiplies the rate by .5, .2, .1 (of the start)
    at 40, 70 and 80 % of the run, as the released code does.
    """

    epochs: int
    batch_size: int = 128
    kind: str = "cosine"
    warmup_steps: int = 0
    seed: int = 1
    precision: str = "auto"
    validate_every: int = 1

    def __post_init__(self) -> None:
        if self.kind not in SCHEDULES:
            raise UnknownName("schedule", self.kind, SCHEDULES)
        if self.epochs < 0 or self.batch_size < 1:
            raise RPLibError("epochs must be >= 0 and batch_size >= 1")

    def factor(self, step: int, total: int) -> float:
        """Multiplier of the base rate at a step; the warm-up takes at most a fifth of a short run."""
        warmup = min(self.warmup_steps, total // 5)
        if step < warmup:
            return (step + 1) / warmup
        done = (step - warmup) / max(1, total - warmup)
        if self.kind == "cosine":
            return 0.5 * (1 + math.cos(math.pi * done))
        if self.kind == "steps":
            return next((f for at, f in ((0.8, 0.1), (0.7, 0.2), (0.4, 0.5)) if done >= at), 1.0)
        return 1.0


@dataclass
class History:
    """Loss of every step and validation accuracy after every epoch."""

    losses: list[float] = field(default_factory=list)
    accuracies: list[float | None] = field(default_factory=list)


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


def batches(n: int, size: int, seed: int, epoch: int) -> list[Tensor]:
    """The epoch's batches of indices; the order depends on (seed, epoch) alone, so that a resumed run repeats it.

    A last batch smaller than half is joined to the one before: a contrastive loss on three images is noise.
    """
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed * 100_003 + epoch))
    parts = list(order.split(size))
    if len(parts) > 1 and len(parts[-1]) < size / 2:
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts


def train(
    task: Task,
    inputs: Tensor,
    labels: Tensor,
    schedule: Schedule,
    *,
    checkpoint: Path | None = None,
    checkpoint_every: int = 1,
    progress: str | None = None,
    on_epoch: Callable[[int, History], None] | None = None,
) -> History:
    """Train ``task`` and return its history.

    Args:
        task: the method.
        inputs: (n, ...) images uint8 (n, 3, h, w), or features float (n, d).
        labels: int64 (n,).
        schedule: epochs, batch size, rates, seed, precision.
        checkpoint: file to write after every ``checkpoint_every`` epochs and on Ctrl-C, and to resume from if
            it is there; removed when the run is whole.
        checkpoint_every: epochs from one checkpoint to the next.
        progress: label of a progress bar on stderr; None shows none.
        on_epoch: called after each epoch with (epochs done, history).

    Raises:
        TrainingDiverged: a loss is NaN or infinite.
        StorageError: the checkpoint cannot be written, or belongs to another run.
    """
    device, history = task.device, History()
    optimisers = _optimiser(task.groups())
    base_rates = [[g["lr"] for g in o.param_groups] for o in optimisers]
    dtype = autocast_dtype(device, schedule.precision)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    sizes = [len(b) for b in batches(len(labels), schedule.batch_size, 0, 0)]
    total = schedule.epochs * len(sizes)
    identity = (
        f"{asdict(schedule)} {task.identity()} {tensors_sha256({'inputs': inputs, 'labels': labels})}"
        if checkpoint
        else ""
    )
    epoch, position = 0, 0
    if checkpoint is not None and checkpoint.is_file():
        epoch, position = _resume(checkpoint, identity, task, optimisers, scaler, history)
        log.info("resuming from %s at epoch %d, step %d", checkpoint, epoch, position)

    def save() -> None:
        if checkpoint is not None:
            state = {
                "identity": identity, "module": task.module().state_dict(), "scaler": scaler.state_dict(),
                "optimisers": [o.state_dict() for o in optimisers], "epoch": epoch, "position": position,
                "losses": history.losses, "accuracies": history.accuracies,
            }  # fmt: skip
            write_atomically(checkpoint, lambda partial: torch_save(state, partial))

    bar: Any = tqdm(
        total=total, initial=len(history.losses), desc=progress, unit="step", disable=progress is None, leave=False
    )
    cuda = [device] if device.type == "cuda" else []
    with bar, interrupt_between_steps() as interrupted, torch.random.fork_rng(cuda):
        while epoch < schedule.epochs:
            for index in batches(len(labels), schedule.batch_size, schedule.seed, epoch)[position:]:
                factor = schedule.factor(epoch * len(sizes) + position, total)
                for optimiser, rates in zip(optimisers, base_rates, strict=True):
                    for group, rate in zip(optimiser.param_groups, rates, strict=True):
                        group["lr"] = rate * factor
                x, y = inputs[index].to(device), labels[index].to(device)
                # For towers with dropout: a step draws from (seed, step) alone, so a resumed run repeats it.
                torch.manual_seed(schedule.seed * 1_000_003 + epoch * len(sizes) + position)
                with computing(device, dtype):
                    loss = task.loss(x, y)
                if not torch.isfinite(loss):
                    raise TrainingDiverged(
                        f"the loss became {loss.item()} at epoch {epoch + 1}, step {position + 1}: lower the learning "
                        "rate, lengthen the warm-up or train with --precision float32, and check the images for NaN"
                    )
                scaler.scale(loss).backward()
                for optimiser in optimisers:
                    scaler.step(optimiser)
                    optimiser.zero_grad(set_to_none=True)
                scaler.update()
                position += 1
                history.losses.append(float(loss.detach()))
                bar.update()
                if interrupted():
                    save()
                    raise KeyboardInterrupt
            epoch, position = epoch + 1, 0
            last = epoch == schedule.epochs
            due = last or (schedule.validate_every and epoch % schedule.validate_every == 0)
            history.accuracies.append(task.validate() if due else None)
            if history.accuracies[-1] is not None:
                bar.set_postfix(val=f"{100 * history.accuracies[-1]:.1f}%")
            if on_epoch is not None:
                on_epoch(epoch, history)
            if interrupted():  # while validating
                save()
                raise KeyboardInterrupt
            if not last and epoch % checkpoint_every == 0:
                save()
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    return history


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


def _resume(
    path: Path, identity: str, task: Task, optimisers: list[torch.optim.Optimizer], scaler: Any, history: History
) -> tuple[int, int]:
    """Load a checkpoint into task, optimisers and history; returns (epoch, position in it)."""
    try:
        state = torch.load(path, map_location=task.device, weights_only=True)
        if state["identity"] != identity:
            raise StorageError(f"{path} belongs to a run with other data or settings; remove it to start anew")
        task.module().load_state_dict(state["module"])
        for optimiser, saved in zip(optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        scaler.load_state_dict(state["scaler"])
        history.losses, history.accuracies = list(state["losses"]), list(state["accuracies"])
        return int(state["epoch"]), int(state["position"])
    except StorageError:
        raise
    except Exception as error:  # a damaged zip, a missing key, a tensor of another shape
        # Not torch's own message: it advises to load the file without its safeguard.
        raise StorageError(
            f"{path} is damaged or no rp_lib checkpoint ({type(error).__name__}); remove it to start anew"
        ) from error
