"""How long a method trains, at which rate, and in which order it sees its examples."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from rp_lib.utils import distributed
from rp_lib.utils.device import autocast_dtype, computing
from rp_lib.utils.errors import RPLibError, UnknownName
from rp_lib.utils.io import StorageError, tensors_sha256, torch_save, write_atomically

SCHEDULES = ("constant", "cosine", "steps")


@dataclass(frozen=True)
class Schedule:
    """How long, in which order and at which rate.

    ``cosine`` falls to zero after a linear warm-up; ``steps`` multiplies the rate by .5, .2, .1 (of the start)
    at 40, 70 and 80 % of the run, as the released code does. ``batch_size`` counts all processes of a run together.
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


def batches(n: int, size: int, seed: int, epoch: int) -> list[Tensor]:
    """The epoch's batches of indices; the order depends on (seed, epoch) alone, so that a resumed run repeats it.

    A last batch smaller than half is joined to the one before: a contrastive loss on three images is noise.
    """
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed * 100_003 + epoch))
    parts = list(order.split(size))
    if len(parts) > 1 and len(parts[-1]) < size / 2:
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts


def prefetch(indices: Sequence[Tensor], take: Callable[[Tensor], tuple[Tensor, ...]]) -> Iterator[tuple[Tensor, ...]]:
    """``take(index)`` of each index, in order; a thread works on the next one while the caller uses this one.

    What ``take`` raises is raised here. At most one result waits, so memory holds two batches.
    """
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(take, indices[0]) if indices else None
        for index in indices[1:]:
            taken = waiting.result()
            waiting = pool.submit(take, index)
            yield taken
        if waiting is not None:
            yield waiting.result()


# The state of a training run on disk: when it is written, and how a run goes on from it.

@dataclass(frozen=True)
class Checkpoint:
    """Where the state of a run is kept, and how often it is written; any of the three makes it due.

    Attributes:
        path: the file.
        epochs: after every so many epochs; 0 never; None leaves it to the method (1; 20 of a linear probe).
        steps: after every so many optimizer steps; 0 never.
        minutes: as soon as so many have passed since the last one; 0 never. Bounds what a kill can cost when epochs
            are long.
        keep: leave the file, with the final state, when the run is whole, for whoever removes it as soon as what was
            trained is safe elsewhere; else it is removed then.
    """

    path: Path
    epochs: int | None = None
    steps: int = 0
    minutes: float = 10.0
    keep: bool = False

    def __post_init__(self) -> None:
        if (self.epochs or 0) < 0 or self.steps < 0 or not self.minutes >= 0:
            raise RPLibError("epochs, steps and minutes between checkpoints must be >= 0; 0 means never")


@dataclass
class History:
    """Loss of every step and validation accuracy after every epoch."""

    losses: list[float] = field(default_factory=list)
    accuracies: list[float | None] = field(default_factory=list)


class RunState:
    """What a run must know to go on: trained module, optimizers, gradient scaler, history, and where it is.

    Only the main process writes; the others hold the same state.

    Attributes:
        epoch, position: epochs done, and batches done in the one after them.
        failure: why the main of several processes could not write; the next :meth:`check` raises it in all of them.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizers: list[torch.optim.Optimizer],
        scaler: torch.amp.GradScaler,
        history: History,
        identity: str,
        checkpoint: Checkpoint | None,
    ) -> None:
        self.module, self.optimizers, self.scaler, self.history = module, optimizers, scaler, history
        self.identity, self.checkpoint = identity, checkpoint
        self.epoch = self.position = 0
        self.failure: StorageError | None = None
        self.look: Callable[[], None] = lambda: None  # reads losses that are not in the history yet
        self._written = time.monotonic()

    def save(self) -> None:
        """Write the checkpoint, if one is wanted and this is the main process.

        Raises:
            StorageError: it cannot be written; the one before is intact. Of several processes none raises it here,
                where only one of them would, but all do in :meth:`check`.
        """
        self.look()
        if self.checkpoint is None or not distributed.is_main():
            return
        state = {
            "identity": self.identity, "module": self.module.state_dict(), "scaler": self.scaler.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers], "epoch": self.epoch, "position": self.position,
            "losses": self.history.losses, "accuracies": self.history.accuracies,
        }  # fmt: skip
        try:
            write_atomically(self.checkpoint.path, lambda partial: torch_save(state, partial))
        except StorageError as error:
            if distributed.world_size() == 1:
                raise
            self.failure = error
        self._written = time.monotonic()

    def check(self, asked: bool = False) -> bool:
        """Whether any process is asked to stop; all processes must call this. They meet here.

        Raises:
            StorageError: in every process, if the checkpoint could not be written.
        """
        said = distributed.all_reduce_max(2 if self.failure is not None else int(asked))
        if said == 2:
            raise self.failure or StorageError("the main process could not write the checkpoint; its message says why")
        return said == 1

    def save_if_due(self) -> None:
        """Write the checkpoint if its rule says so; to be called after every step, and after every epoch."""
        rule = self.checkpoint
        if rule is None:
            return
        at_end = self.position == 0
        by_epochs = at_end and rule.epochs and self.epoch % rule.epochs == 0
        by_steps = rule.steps and len(self.history.losses) % rule.steps == 0
        by_time = rule.minutes and time.monotonic() - self._written >= 60 * rule.minutes
        if by_epochs or by_steps or by_time:
            self.save()

    def resume(self, device: torch.device) -> bool:
        """Take over what the checkpoint holds, if it is there; returns whether it was.

        The main process reads the file, so the others need not see it.

        Raises:
            StorageError: it cannot be read, is damaged, or of a run with other data or settings; in every process.
        """
        if self.checkpoint is None:
            return False
        path = self.checkpoint.path
        content = distributed.read_on_main(lambda: _read(path))
        if content is None:
            return False
        failure: StorageError | None = None
        try:
            self._load(content, path, device)
        except StorageError as error:
            failure = error
        if distributed.any_process(failure is not None):
            raise failure or StorageError(f"another process could not take over {path}; its own message says why")
        return True

    def _load(self, content: bytes, path: Path, device: torch.device) -> None:
        try:
            state = torch.load(io.BytesIO(content), map_location=device, weights_only=True)
            if state["identity"] != self.identity:
                raise StorageError(f"{path} belongs to a run with other data or settings; remove it to start anew")
            self._take(state)
        except StorageError:
            raise
        except Exception as error:  # a damaged zip, a missing key, a tensor of another shape
            # Not torch's own message: it advises to load the file without its safeguard.
            raise StorageError(
                f"{path} is damaged or no rp_lib checkpoint ({type(error).__name__}); remove it to start anew"
            ) from error

    def _take(self, state: dict[str, Any]) -> None:
        self.module.load_state_dict(state["module"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.scaler.load_state_dict(state["scaler"])
        self.history.losses, self.history.accuracies = list(state["losses"]), list(state["accuracies"])
        self.epoch, self.position = int(state["epoch"]), int(state["position"])

    def finish(self) -> None:
        """The run is whole: remove the checkpoint, or write it a last time if it is to be kept.

        Raises:
            StorageError: it cannot be written; the one before is intact.
        """
        if self.checkpoint is not None and self.checkpoint.keep:
            self.save()
            self.check()
        elif self.checkpoint is not None:
            path = self.checkpoint.path
            distributed.on_main(lambda: path.unlink(missing_ok=True))  # gone for all when any goes on


def _read(path: Path) -> bytes | None:
    """The file's bytes, or None if it is not there."""
    _sweep(path)
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):  # writing it will say what is wrong with the folder
        return None
    except OSError as error:
        raise StorageError(
            f"the checkpoint {path} is there but cannot be read ({error.strerror or error}); mend its permissions, or "
            "remove it to start anew"
        ) from error


def _sweep(path: Path) -> None:
    """Remove what a killed process left half-written beside ``path``."""
    if not path.parent.is_dir():
        return
    name = re.compile(rf"\.{re.escape(path.name)}\.(\d+)\.partial")
    for entry in path.parent.iterdir():
        found = name.fullmatch(entry.name)
        if found and not _alive(int(found[1])):
            with contextlib.suppress(OSError):
                entry.unlink()


def _alive(process: int) -> bool:
    if os.name == "nt":  # there, asking would interrupt it
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is there, but another user's
        return True
    return True


# One training loop for every method: seeded, resumable to the bit, and without waste.
#
# A method hands over a :class:`Task`: what is trained, the loss of a batch, the accuracy on validation data.
# The loop does the rest. Nothing that is not trained gets a gradient, images stay uint8 until their batch is
# due, and a run that was interrupted goes on exactly where it stopped.

__all__ = [
    "OPTIMIZERS", "SCHEDULES", "Checkpoint", "Group", "History", "Schedule", "Task", "TrainingDiverged", "batches",
    "interrupt_between_steps", "train",
]  # fmt: skip
log = logging.getLogger(__name__)
OPTIMIZERS = ("adam", "adamw", "sgd")
LOOK = {"cpu": 1}  # steps from one look at the losses to the next; 50 elsewhere, as a look waits for the device


class TrainingDiverged(RPLibError):
    """The loss is no longer a number."""


@dataclass(frozen=True)
class Group:
    """Parameters that share an optimizer setting.

    ``optimizer``: ``adam`` (weight decay coupled, as an L2 term), ``adamw`` (decoupled) or ``sgd`` (momentum .9).
    """

    parameters: list[nn.Parameter]
    lr: float
    weight_decay: float = 0.0
    optimizer: str = "adamw"
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-8


class Task(Protocol):
    """What the loop needs from a method."""

    device: torch.device

    def modules(self) -> nn.Module:
        """Return all that is trained, under the names that a checkpoint uses."""

    def parameter_groups(self) -> list[Group]:
        """Return the trained parameters with their optimizer settings."""

    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Scalar loss of a batch on ``device``.

        ``inputs`` are this process's share of the batch (alone: all of it), ``labels`` those of the whole batch; what
        is computed of the inputs passes :func:`rp_lib.utils.distributed.gather` and then meets the labels.
        """


def _optimizers(groups: list[Group]) -> list[torch.optim.Optimizer]:
    made: list[torch.optim.Optimizer] = []
    for g in groups:
        match g.optimizer:
            case "adam":
                made.append(torch.optim.Adam(g.parameters, g.lr, g.betas, g.eps, g.weight_decay))
            case "adamw":
                made.append(torch.optim.AdamW(g.parameters, g.lr, g.betas, g.eps, g.weight_decay))
            case "sgd":
                made.append(torch.optim.SGD(g.parameters, g.lr, momentum=0.9, weight_decay=g.weight_decay))
            case other:
                raise UnknownName("optimizer", other, OPTIMIZERS)
    return made


def train(
    task: Task,
    inputs: Tensor,
    labels: Tensor,
    schedule: Schedule,
    *,
    validate: Callable[[], float] | None = None,
    identity: str = "",
    checkpoint: Path | Checkpoint | None = None,
    checkpoint_every: int = 1,
    content: str | None = None,
    progress: str | None = None,
    on_epoch: Callable[[int, History], None] | None = None,
) -> History:
    """Train ``task`` and return its history. Several processes share the work, see :mod:`rp_lib.utils.distributed`.

    Args:
        task: the method.
        inputs: (n, ...) images uint8 (n, 3, h, w), or features float (n, d).
        labels: int64 (n,).
        schedule: epochs, batch size, rates, seed, precision.
        validate: returns the accuracy on validation data, as a fraction; called after each epoch.
        identity: all that the run depends on next to data and schedule; a checkpoint of another run is refused.
        checkpoint: file to write now and then and on Ctrl-C, and to resume from if it is there; removed when the run
            is whole. A path alone means after every ``checkpoint_every`` epochs, and every ten minutes in between;
            a :class:`rp_lib.trainer.Checkpoint` says how often, and whether it stays.
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
    _check_shareable(task.modules())
    distributed.copy_from_main(task.modules())
    groups = task.parameter_groups()
    parameters = [p for g in groups for p in g.parameters]
    optimizers = _optimizers(groups)
    base_rates = [[g["lr"] for g in o.param_groups] for o in optimizers]
    dtype = autocast_dtype(device, schedule.precision)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    steps = len(batches(len(labels), schedule.batch_size, 0, 0))
    total = schedule.epochs * steps
    rule = Checkpoint(checkpoint) if isinstance(checkpoint, Path) else checkpoint
    if rule is not None and rule.epochs is None:
        rule = replace(rule, epochs=checkpoint_every)
    identity = f"{asdict(schedule)} {identity} {_digest(inputs, labels, content)}" if rule else ""
    state = RunState(task.modules(), optimizers, scaler, history, identity, rule)
    if state.resume(device):
        log.info("resuming from %s at epoch %d, step %d", rule and rule.path, state.epoch, state.position)

    def stop_if(asked: bool) -> None:
        if state.check(asked):
            state.save()
            state.check()  # no process leaves, and ends the launcher's patience, before it is saved
            raise KeyboardInterrupt

    waiting: list[Tensor] = []  # the last losses of the history, which the device may still be computing

    def look() -> None:
        first = len(history.losses) - len(waiting)
        for at, loss in enumerate(torch.stack(waiting).tolist() if waiting else (), first):
            if not math.isfinite(loss):
                raise TrainingDiverged(
                    f"the loss became {loss} at epoch {at // steps + 1}, step {at % steps + 1}: lower the learning "
                    "rate, lengthen the warm-up or train with --precision float32, and check the images for NaN"
                )
            history.losses[at] = loss
        waiting.clear()

    state.look = look
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
                for optimizer, rates in zip(optimizers, base_rates, strict=True):
                    for group, rate in zip(optimizer.param_groups, rates, strict=True):
                        group["lr"] = rate * factor
                # For towers with dropout: a step draws from (seed, step) alone, so a resumed run repeats it.
                torch.manual_seed(schedule.seed * 1_000_003 + step)
                with computing(device, dtype):
                    loss = task.loss(x, y)
                history.losses.append(math.nan)
                waiting.append(loss.detach())
                if len(waiting) >= LOOK.get(device.type, 50):
                    look()
                scaler.scale(loss).backward()
                distributed.average_gradients(parameters)
                for optimizer in optimizers:
                    scaler.step(optimizer)
                    optimizer.zero_grad(set_to_none=True)
                scaler.update()
                state.position += 1
                bar.update()
                stop_if(interrupted())
                if state.position < steps:
                    state.save_if_due()
            look()
            state.epoch, state.position = state.epoch + 1, 0
            last = state.epoch == schedule.epochs
            due = last or (schedule.validate_every and state.epoch % schedule.validate_every == 0)
            history.accuracies.append(validate() if due and validate is not None else None)
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
    if distributed.world_size() > 1 and any(m.training for m in norms):
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
    with contextlib.closing(prefetch(order, take)) as ready:
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
