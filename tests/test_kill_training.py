"""A training run killed twenty times at random moments ends as an undisturbed one; this file is also the run."""

import functools
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CLASSES, TEMPLATES, make_clip, make_set

from rp_lib.benchmark import ImageSet
from rp_lib.config import PAPER
from rp_lib.methods import FineTune, Method, Reprogrammer
from rp_lib.trainer import Checkpoint
from rp_lib.utils import io as storage

KILLS = 20


def build(kind: str, folder: Path) -> tuple[Method, ImageSet]:
    """A method with 120 steps before it, and images that stay on disk."""
    clip, data = make_clip(), make_set(24)
    file = folder / "pixels"
    file.write_bytes(data.images.numpy().tobytes())
    images = torch.from_numpy(np.memmap(file, np.uint8, "c", shape=tuple(data.images.shape)))
    data = ImageSet("train", "train", images, data.labels, data.groups, content="some digest")
    if kind == "rp":
        return Reprogrammer(clip, CLASSES, TEMPLATES, PAPER.changed(epochs=40, batch_size=8)), data
    return FineTune(clip, CLASSES, TEMPLATES, epochs=40, batch_size=8), data


def run(method: Method, data: ImageSet, folder: Path, beat: int | None) -> None:
    """Train to the end, or until killed; a byte a step, and one in every write, goes down the pipe ``beat``."""
    if beat is not None:
        # Every step scales its loss once, whatever the method.
        real = torch.amp.GradScaler.scale
        torch.amp.GradScaler.scale = lambda self, loss: (os.write(beat, b"."), real(self, loss))[1]
        storage.write_synced = functools.partial(slowly, beat)
    checkpoint = None if beat is None else Checkpoint(folder / "state" / "run", minutes=0)
    method.fit(data, make_set(9, seed=1, role="val"), checkpoint=checkpoint)
    digest = hashlib.sha256()
    for name, value in sorted(method.state_dict().items()):
        digest.update(name.encode() + value.contiguous().numpy().tobytes())
    found = {"sha256": digest.hexdigest(), "losses": method.history.losses, "accuracies": method.history.accuracies}
    (folder / ("whole" if beat is None else "survivor")).write_text(json.dumps(found))


def slowly(beat: int, path: Path, payload: bytes) -> None:
    """Write in two halves, as a large file on a slow disk, so that kills hit the time in between."""
    with path.open("wb") as file:
        file.write(payload[: len(payload) // 2])
        file.flush()
        os.write(beat, b"w")
        time.sleep(0.01)
        file.write(payload[len(payload) // 2 :])


def in_child(*args: object) -> int:
    """Run in a forked process, which has torch imported already; returns its number."""
    child = os.fork()
    if child == 0:
        try:
            run(*args)  # type: ignore[arg-type]
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return child


def main(kind: str, folder: Path, seed: int) -> None:
    """An undisturbed run, one that is killed again and again, and what happened."""
    torch.set_num_threads(1)
    folder.mkdir()
    method, data = build(kind, folder)  # trained in children only: each starts with it as it is now
    chance, counts = random.Random(seed), Counter()
    os.waitpid(in_child(method, data, folder, None), 0)
    while not (folder / "survivor").exists():
        read, write = os.pipe()
        child = in_child(method, data, folder, write)
        os.close(write)
        if counts["kills"] < KILLS:
            for _ in range(chance.randint(0, 9)):
                counts["steps"] += os.read(read, 1) == b"."
            time.sleep(chance.choice([0, chance.uniform(0, 0.02)]))
            os.kill(child, signal.SIGKILL)
        while beats := os.read(read, 4096):
            counts["steps"] += beats.count(b".")
        os.close(read)
        end = os.waitpid(child, 0)[1]
        if os.WIFEXITED(end) and os.WEXITSTATUS(end):
            sys.exit("a resumed run failed")
        counts["kills"] += os.WIFSIGNALED(end)
        counts["half-written"] += len(list((folder / "state").glob(".run.*")))
        counts["starts"] += 1
    counts["left"] = len(list((folder / "state").iterdir()))
    (folder / "counts").write_text(json.dumps(counts))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_killed_twenty_times_nothing_is_lost(tmp_path: Path):
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
    }
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path)], capture_output=True, text=True, timeout=600, check=False,
        env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    for kind in ("rp", "fine-tune"):
        whole, survivor, counts = (
            json.loads((tmp_path / kind / f).read_text()) for f in ("whole", "survivor", "counts")
        )
        assert counts["kills"] == KILLS and counts["starts"] == KILLS + 1
        assert len(whole["losses"]) == 120 and len(set(whole["losses"])) > 100
        assert counts["steps"] > 120 and counts["half-written"] > 0  # kills cost steps and writes: they were in time
        assert survivor == whole
        assert counts["left"] == 0  # neither the checkpoint nor what kills left half-written


if __name__ == "__main__":
    for number, each in enumerate(("rp", "fine-tune")):
        main(each, Path(sys.argv[1]) / each, number)
