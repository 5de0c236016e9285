"""How long a method trains, at which rate, and in which order it sees its examples."""

from __future__ import annotations

import contextlib
import glob
import io
import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from rp_lib.utils import distributed
from rp_lib.utils.device import autocast_dtype, computing
from rp_lib.utils.errors import RPLibError, UnknownName
from rp_lib.utils.io import StorageError, check_writable, tensors_sha256, torch_save, write_atomically

log = logging.getLogger(__name__)
SCHEDULES = ("constant", "cosine", "steps")
OPTIMIZERS = ("adam", "adamw", "sgd")
LOOK = {"cpu": 1}  # steps from one look at the losses to the next; 50 elsewhere, as a look waits for the device


@dataclass(frozen=True)
class Schedule:
    """How long, in which order and at which rate.

    ``cosine`` falls to zero after a linear warm-up; ``steps`` multiplies the rate by .5, .2, .1 (of the start)
    at 40, 70 and 80 % of the run, as the released code does. ``batch_size`` counts all processes of a run together.

    Example:
        >>> [Schedule(epochs=10, kind="steps").factor(step, 100) for step in (0, 40, 70, 80)]
        [1.0, 0.5, 0.2, 0.1]
    """

    epochs: int
    batch_size: int = 128
    kind: str = "cosine"
    warmup_steps: int = 0
    seed: int = 1
    precision: str = "auto"

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
    """Where the state of a run is kept, and how often it is written: what a kill can cost.

    Attributes:
        path: The file.
        minutes: From one to the next, at least; more where writing takes long, so that it stays one per cent of the
            time. 0 writes after every step.
        keep: Leave the file, with the final state, when the run is whole, for whoever removes it as soon as what was
            trained is safe elsewhere; else it is removed then.

    Example:
        >>> rp.fit(train, checkpoint=Checkpoint(Path("rp.checkpoint"), minutes=5))  # doctest: +SKIP
    """

    path: Path
    minutes: float = 0.5
    keep: bool = False

    def __post_init__(self) -> None:
        if not self.minutes >= 0:
            raise RPLibError("minutes between checkpoints must be >= 0; 0 means after every step")


@dataclass
class History:
    """Loss of every step and validation accuracy after every epoch."""

    losses: list[float] = field(default_factory=list)
    accuracies: list[float | None] = field(default_factory=list)


class RunState:
    """What a run must know to go on: trained module, optimizers, gradient scaler, history, and where it is.

    Every process holds the same state; the main one writes it.

    Attributes:
        epoch, position: Epochs done, and batches done in the one after them.
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
        self.look: Callable[[], None] = lambda: None  # reads losses that are not in the history yet
        self._written, self._pause = time.monotonic(), 60 * checkpoint.minutes if checkpoint else 0.0

    def save(self) -> None:
        """Write the checkpoint, if one is wanted. Collective.

        Raises:
            StorageError: It cannot be written; the one before is intact.
        """
        self.look()
        if self.checkpoint is None:
            return
        begun = time.monotonic()
        distributed.on_main(self._write)
        self._written = time.monotonic()
        if self.checkpoint.minutes:
            self._pause = max(60 * self.checkpoint.minutes, 100 * (self._written - begun))

    def _write(self) -> None:
        state = {
            "identity": self.identity, "module": self.module.state_dict(), "scaler": self.scaler.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers], "epoch": self.epoch, "position": self.position,
            "losses": self.history.losses, "accuracies": self.history.accuracies,
        }  # fmt: skip
        write_atomically(self.checkpoint.path, lambda partial: torch_save(state, partial))

    def save_if_due(self, stop: bool) -> None:
        """Write the checkpoint if the last one is old enough, or if any process is to stop. Collective.

        Raises:
            KeyboardInterrupt: In every process if any is to stop, and behind the checkpoint.
        """
        due = self.checkpoint is not None and time.monotonic() - self._written >= self._pause
        agreed = distributed.all_reduce_max(2 if stop else int(due))
        if agreed:
            self.save()
        if agreed == 2:
            raise KeyboardInterrupt

    def resume(self, device: torch.device) -> bool:
        """Take over what the checkpoint holds, if it is there; returns whether it was.

        The main process reads the file, so the others need not see it.

        Raises:
            StorageError: it cannot be read, is damaged, or of a run with other data or settings; in every process.
        """
        if self.checkpoint is None:
            return False
        path = self.checkpoint.path
        content = distributed.on_main(lambda: _read(path))
        if content is None:
            return False
        failure: StorageError | None = None
        try:
            self._take(torch.load(io.BytesIO(content), map_location=device, weights_only=True))
        except StorageError as error:
            failure = error
        except Exception as error:  # a damaged zip, a missing key, a tensor of another shape
            # Not torch's own message: it advises to load the file without its safeguard.
            kind = type(error).__name__
            failure = StorageError(f"{path} is damaged or no rp_lib checkpoint ({kind}); remove it to start anew")
        if distributed.any_process(failure is not None):
            raise failure or StorageError(f"another process could not take over {path}; its own message says why")
        return True

    def _take(self, state: dict[str, Any]) -> None:
        if state["identity"] != self.identity:
            path = self.checkpoint.path
            raise StorageError(f"{path} belongs to a run with other data or settings; remove it to start anew")
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
        elif self.checkpoint is not None:
            path = self.checkpoint.path
            distributed.on_main(lambda: path.unlink(missing_ok=True))  # gone for all when any goes on


def _read(path: Path) -> bytes | None:
    """The file's bytes, or None if it is not there."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):  # half-written by a killed process
        with contextlib.suppress(OSError):
            left.unlink()
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):  # writing it will say what is wrong with the folder
        return None
    except OSError as error:
        raise StorageError(
            f"the checkpoint {path} is there but cannot be read ({error.strerror or error}); mend its permissions, or "
            "remove it to start anew"
        ) from error


# One training loop for every method: seeded, resumable to the bit, and without waste.
# Nothing that is not trained gets a gradient, and images stay uint8 until their batch is due.


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
    content: str | None = None,
    progress: str | None = None,
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
            is whole. A :class:`rp_lib.trainer.Checkpoint` also says how often, and whether it stays.
        content: digest that stands for ``inputs`` in the checkpoint. For data that is not in memory: without it, a
            checkpoint reads all of them once, to be sure that it is resumed with the same. With it, batches are
            read one step ahead of use.
        progress: label of a progress bar on stderr; None shows none.

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
    identity = f"{asdict(schedule)} {identity} {_digest(inputs, labels, content)}" if rule else ""
    if rule:  # a folder that cannot be written is refused now, not when the first checkpoint is due
        distributed.on_main(lambda: check_writable(rule.path.parent))
    state = RunState(task.modules(), optimizers, scaler, history, identity, rule)
    if state.resume(device):
        log.info("resuming from %s at epoch %d, step %d", rule and rule.path, state.epoch, state.position)

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
                state.save_if_due(stop=interrupted())
            look()
            state.epoch, state.position = state.epoch + 1, 0
            history.accuracies.append(None if validate is None else validate())
            if history.accuracies[-1] is not None:
                bar.set_postfix(val=f"{100 * history.accuracies[-1]:.1f}%")
            state.save_if_due(stop=interrupted())  # while validating
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
