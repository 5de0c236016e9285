"""The state of a training run on disk: when it is written, and how a run goes on from it."""

from __future__ import annotations

import contextlib
import io
import os
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rp_lib import distributed
from rp_lib.errors import RPLibError
from rp_lib.storage import StorageError, torch_save, write_atomically


@dataclass(frozen=True)
class Checkpoint:
    """Where the state of a run is kept, and how often it is written; any of the three makes it due.

    Attributes:
        path: the file.
        epochs: after every so many epochs; 0 never; None leaves it to the method (1; 20 of a linear probe).
        steps: after every so many optimiser steps; 0 never.
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
    """What a run must know to go on: trained module, optimisers, gradient scaler, history, and where it is.

    Only the main process writes; the others hold the same state.

    Attributes:
        epoch, position: epochs done, and batches done in the one after them.
        failure: why the main of several processes could not write; the next :meth:`check` raises it in all of them.
    """

    def __init__(
        self,
        module: nn.Module,
        optimisers: list[torch.optim.Optimizer],
        scaler: torch.amp.GradScaler,
        history: History,
        identity: str,
        checkpoint: Checkpoint | None,
    ) -> None:
        self.module, self.optimisers, self.scaler, self.history = module, optimisers, scaler, history
        self.identity, self.checkpoint = identity, checkpoint
        self.epoch = self.position = 0
        self.failure: StorageError | None = None
        self._written = time.monotonic()

    def save(self) -> None:
        """Write the checkpoint, if one is wanted and this is the main process.

        Raises:
            StorageError: it cannot be written; the one before is intact. Of several processes none raises it here,
                where only one of them would, but all do in :meth:`check`.
        """
        if self.checkpoint is None or not distributed.is_main():
            return
        state = {
            "identity": self.identity, "module": self.module.state_dict(), "scaler": self.scaler.state_dict(),
            "optimisers": [o.state_dict() for o in self.optimisers], "epoch": self.epoch, "position": self.position,
            "losses": self.history.losses, "accuracies": self.history.accuracies,
        }  # fmt: skip
        try:
            write_atomically(self.checkpoint.path, lambda partial: torch_save(state, partial))
        except StorageError as error:
            if distributed.world() == 1:
                raise
            self.failure = error
        self._written = time.monotonic()

    def check(self, asked: bool = False) -> bool:
        """Whether any process is asked to stop; all processes must call this. They meet here.

        Raises:
            StorageError: in every process, if the checkpoint could not be written.
        """
        said = distributed.highest(2 if self.failure is not None else int(asked))
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
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
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
