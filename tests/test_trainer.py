import errno
import itertools
import math
import os
import signal
import threading
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import CLASSES, TEMPLATES, make_set
from torch import nn

from rp_lib import trainer as checkpoints
from rp_lib.benchmark import ImageSet
from rp_lib.clip import FrozenCLIP
from rp_lib.config import PAPER
from rp_lib.methods import CLAP, FineTune, LinearProbe, Reprogrammer, TipAdapterF
from rp_lib.trainer import Checkpoint, Group, History, Schedule, TrainingDiverged, batches
from rp_lib.utils.errors import RPLibError, UnknownName
from rp_lib.utils.io import StorageError

X = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(20) % 3
# 20 examples in batches of 6: 6, 6, 8 (the last 2 are joined), three steps an epoch.
PLAN = Schedule(epochs=3, batch_size=6, kind="cosine", warmup_steps=2, seed=5, precision="float32")


class Toy:
    device = torch.device("cpu")

    def __init__(self, name: str = "toy", optimizer: str = "adamw", nan_at: int | None = None, key: str = "k") -> None:
        torch.manual_seed(0)
        self.net = nn.ModuleDict({"used": nn.Linear(6, 3)})
        self.name, self.optimizer, self.nan_at, self.key = name, optimizer, nan_at, key
        self.steps, self.batches, self.rates, self.press_at = 0, [], [], None

    def modules(self) -> nn.ModuleDict:
        return self.net

    def parameter_groups(self) -> list[Group]:
        weight, bias = self.net["used"].weight, self.net["used"].bias
        return [Group([weight], 0.1, 0.01, self.optimizer), Group([bias], 0.05, 0.0, "adam")]

    def identity(self) -> str:
        return self.key

    def loss(self, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        self.steps += 1
        if self.steps == self.press_at:
            signal.raise_signal(signal.SIGINT)
        self.batches.append(inputs)
        loss = F.cross_entropy(self.net["used"](inputs), labels)
        return loss * torch.nan if self.steps == self.nan_at else loss

    def validate(self) -> float | None:
        with torch.no_grad():
            return float((self.net["used"](X).argmax(1) == Y).float().mean())


def train(task: Toy, *data: object, **options: object) -> History:
    """Train a toy as `Method.fit` trains a method."""
    return checkpoints.train(task, *data, validate=task.validate, identity=task.identity(), **options)


def weights(module: nn.Module) -> list[torch.Tensor]:
    return [t.clone() for t in module.state_dict().values()]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# Order and rate ------------------------------------------------------------------------------------------


def test_batches():
    for n, size in ((20, 6), (6, 6), (3, 8), (21, 6), (100, 7)):
        parts = batches(n, size, 1, 0)
        assert sorted(torch.cat(parts).tolist()) == list(range(n))
        assert all(len(p) == size for p in parts[:-1]) and len(parts[-1]) <= size * 1.5
        assert len(parts) == 1 or len(parts[-1]) >= size / 2
    assert [len(p) for p in batches(20, 6, 1, 0)] == [6, 6, 8] and [len(p) for p in batches(21, 6, 1, 0)] == [
        6,
        6,
        6,
        3,
    ]


def test_order_depends_on_seed_and_epoch_alone():
    order = torch.cat(batches(50, 8, 3, 4)).tolist()
    torch.manual_seed(77)
    assert torch.cat(batches(50, 8, 3, 4)).tolist() == order
    others = {tuple(torch.cat(batches(50, 8, s, e)).tolist()) for s, e in itertools.product((3, 4, 5), (3, 4, 5))}
    assert len(others) == 9 and tuple(order) in others


def test_schedules():
    def rates(kind: str, warmup: int = 0, total: int = 100) -> list[float]:
        return [Schedule(1, kind=kind, warmup_steps=warmup).factor(s, total) for s in range(total)]

    assert set(rates("constant")) == {1.0}
    steps = rates("steps")
    assert [steps[s] for s in (0, 39, 40, 69, 70, 79, 80, 99)] == [1, 1, 0.5, 0.5, 0.2, 0.2, 0.1, 0.1]
    cosine = rates("cosine", 10)
    assert cosine[:10] == pytest.approx([0.1 * k for k in range(1, 11)])
    assert cosine[10] == 1 and cosine[55] == pytest.approx(0.5) and 0 < cosine[99] < 0.001
    assert all(a > b for a, b in itertools.pairwise(cosine[10:]))
    assert max(rates("cosine", 500)) == 1 and rates("cosine", 500)[19:21] == [1, 1]  # at most a fifth of a short run


@pytest.mark.parametrize("options", [{"epochs": -1}, {"epochs": 1, "batch_size": 0}])
def test_bad_schedule(options: dict):
    with pytest.raises(RPLibError, match="epochs must be"):
        Schedule(**options)
    with pytest.raises(UnknownName, match="did you mean cosine"):
        Schedule(1, kind="cosin")


def test_equals_a_loop_written_by_hand():
    task, other = Toy(), Toy()
    history = train(task, X, Y, PLAN)
    w, b = other.net["used"].weight, other.net["used"].bias
    one = torch.optim.AdamW([w], 0.1, (0.9, 0.98), weight_decay=0.01)
    two = torch.optim.Adam([b], 0.05, (0.9, 0.98))
    losses, step = [], 0
    for epoch in range(3):
        for index in batches(20, 6, 5, epoch):
            one.param_groups[0]["lr"], two.param_groups[0]["lr"] = (r * PLAN.factor(step, 9) for r in (0.1, 0.05))
            loss = F.cross_entropy(F.linear(X[index], w, b), Y[index])
            one.zero_grad(), two.zero_grad()
            loss.backward()
            one.step(), two.step()
            losses.append(loss.item())
            step += 1
    assert history.losses == losses and len(history.accuracies) == 3
    assert same(weights(task.net), weights(other.net))
    assert all(p.grad is None for p in task.net.parameters())


def test_coupled_decay_is_another_optimizer():
    ends = []
    for name in ("adam", "adamw", "sgd"):
        task = Toy(optimizer=name)
        train(task, X, Y, PLAN)
        ends.append(weights(task.net)[0])
    assert not torch.equal(ends[0], ends[1]) and not torch.equal(ends[1], ends[2])
    with pytest.raises(UnknownName, match="did you mean adamw"):
        train(Toy(optimizer="adamww"), X, Y, PLAN)


def test_nothing_to_train_has_no_history():
    assert train(Toy(), X, Y, Schedule(0)) == History()


def test_progress(capsys: pytest.CaptureFixture):
    train(Toy(), X, Y, PLAN)
    assert capsys.readouterr().err == ""
    train(Toy(), X, Y, PLAN, progress="toy run")
    assert "toy run" in capsys.readouterr().err


# Interrupt and resume ------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", range(1, 10))
def test_resume_is_exact_from_every_step(tmp_path: Path, step: int):
    whole, path = Toy(), tmp_path / "run.pt"
    expected = train(whole, X, Y, PLAN)
    task = Toy()
    task.press_at = step
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(task, X, Y, PLAN, checkpoint=path)
    assert task.steps == step and path.is_file()  # the step was finished and saved, the next one not begun
    assert signal.getsignal(signal.SIGINT) is handler
    torch.manual_seed(123)
    again = Toy()
    history = train(again, X, Y, PLAN, checkpoint=path)
    assert again.steps == 9 - step
    assert history == expected and same(weights(again.net), weights(whole.net))
    assert not list(tmp_path.iterdir())


def test_ctrl_c_while_validating_is_not_lost(tmp_path: Path):
    class Slow(Toy):
        def validate(self) -> float | None:
            if self.steps == press:
                signal.raise_signal(signal.SIGINT)
            return super().validate()

    for press in (3, 9):
        task = Slow()
        with pytest.raises(KeyboardInterrupt):
            train(task, X, Y, PLAN, checkpoint=tmp_path / "x")
        assert task.steps == press
        press, whole, again = 0, Toy(), Toy()
        assert train(again, X, Y, PLAN, checkpoint=tmp_path / "x") == train(whole, X, Y, PLAN)
        assert same(weights(again.net), weights(whole.net))


def test_second_ctrl_c_interrupts_at_once():
    class Stuck(Toy):
        def loss(self, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            raise AssertionError("still running")

    with pytest.raises(KeyboardInterrupt):
        train(Stuck(), X, Y, PLAN)


def test_trains_outside_the_main_thread():
    task = Toy()
    thread = threading.Thread(target=train, args=(task, X, Y, PLAN))
    thread.start()
    thread.join()
    assert task.steps == 9


METHODS = {
    "rp": lambda c: Reprogrammer(
        c,
        CLASSES,
        TEMPLATES,
        PAPER.changed(epochs=2, batch_size=8, warmup_steps=1, image_decay=0.1),
        precision="float32",
    ),
    "rp released": lambda c: Reprogrammer(
        c,
        CLASSES,
        TEMPLATES,
        PAPER.changed(epochs=2, batch_size=8, objective="contrastive-identity", loss="focal", train_resolution=0.5),
        precision="bfloat16",
    ),
    "text only": lambda c: Reprogrammer(
        c, CLASSES, TEMPLATES, PAPER.changed(epochs=2, batch_size=8, use_image_program=False), precision="float32"
    ),
    "fine-tune": lambda c: FineTune(c, CLASSES, TEMPLATES, epochs=2, batch_size=8, lr=1e-3, precision="float32"),
    "linear-probe": lambda c: LinearProbe(c, CLASSES, TEMPLATES, epochs=2, batch_size=8),
    "clap": lambda c: CLAP(c, CLASSES, TEMPLATES, epochs=2, batch_size=8),
    "tip-adapter-f": lambda c: TipAdapterF(c, CLASSES, TEMPLATES, epochs=2, batch_size=8),
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("step", [2, 3, 5])
def test_methods_resume_exactly(
    name: str, step: int, clip: FrozenCLIP, train_set: ImageSet, val_set: ImageSet, tmp_path: Path, monkeypatch
):
    whole = METHODS[name](clip).fit(train_set, val_set)
    from rp_lib import trainer

    calls, real = itertools.count(1), trainer.computing

    def pressing(*args: object):
        if next(calls) == step:
            signal.raise_signal(signal.SIGINT)
        return real(*args)

    monkeypatch.setattr(trainer, "computing", pressing)
    with pytest.raises(KeyboardInterrupt):
        METHODS[name](clip).fit(train_set, val_set, checkpoint=tmp_path / "x")
    monkeypatch.undo()
    again = METHODS[name](clip).fit(train_set, val_set, checkpoint=tmp_path / "x")
    assert again.history == whole.history and len(again.history.losses) == 6
    a, b = whole.state_dict(), again.state_dict()
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert torch.equal(whole.logits(val_set.images), again.logits(val_set.images))
    assert not list(tmp_path.iterdir())


def test_interrupted_fit_leaves_a_usable_method(clip: FrozenCLIP, train_set: ImageSet, monkeypatch: pytest.MonkeyPatch):
    from rp_lib import trainer

    def stop(*_: object):
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "computing", stop)
    rp = Reprogrammer(clip, CLASSES, TEMPLATES, PAPER.changed(train_resolution=0.25, eval_resolution=0.5))
    tuned = FineTune(clip, CLASSES, TEMPLATES)
    for method in (rp, tuned):
        with pytest.raises(KeyboardInterrupt):
            method.fit(train_set)
    assert rp.image_program.resolution == 16 and not tuned.visual.training


# Checkpoints within an epoch, and what a kill leaves ------------------------------------------------------


def places(path: Path, rule: Checkpoint) -> list[tuple[int, int]]:
    """Where (epoch, step) checkpoints are written in nine steps, three an epoch."""
    seen, real = [], checkpoints.write_atomically

    def write(target: Path, save) -> None:
        real(target, save)
        state = torch.load(target, weights_only=True)
        seen.append((state["epoch"], state["position"]))

    with pytest.MonkeyPatch.context() as m:
        m.setattr(checkpoints, "write_atomically", write)
        train(Toy(), X, Y, PLAN, checkpoint=rule)
    assert not path.exists()
    return seen


def test_how_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "x"
    assert places(path, Checkpoint(path)) == []  # it takes no half minute
    assert places(path, Checkpoint(path, minutes=0)) == [(0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (1, 2), (1, 3), (2, 0), (2, 1), (2, 2), (2, 3), (3, 0)]
    clock = itertools.count(0, 30)  # every look at it takes half a minute
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: next(clock))
    assert places(path, Checkpoint(path, minutes=2)) == [(1, 0)]  # the fourth look; as long as writes take, no other


@pytest.mark.parametrize("minutes", [-1.0, float("nan")])
def test_bad_rule(tmp_path: Path, minutes: float):
    with pytest.raises(RPLibError, match="must be >= 0; 0 means after every step"):
        Checkpoint(tmp_path / "x", minutes)


def test_what_kills_left_is_swept(tmp_path: Path):
    kept = [".y.12.partial", ".x.12.partial.txt", "x.partial"]
    for name in [*kept, ".x.12.partial"]:
        (tmp_path / name).write_text("")
    train(Toy(), X, Y, PLAN, checkpoint=tmp_path / "x")
    assert {p.name for p in tmp_path.iterdir()} == set(kept)


# Inputs that are not in memory ---------------------------------------------------------------------------


class OnDisk:
    """Rows that are read by index only; remembers which, and in which thread."""

    def __init__(self, bad: int | None = None) -> None:
        self.bad, self.read, self.threads = bad, [], set()

    def __getitem__(self, index: torch.Tensor) -> torch.Tensor:
        self.read.append(index.tolist())
        self.threads.add(threading.current_thread().name)
        if len(self.read) == self.bad:
            raise OSError("the disk is gone")
        return X[index]


def test_inputs_on_disk_are_read_batch_by_batch_ahead_of_use(tmp_path: Path):
    class Watching(Toy):
        def loss(self, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            ahead.append(len(disk.read) - self.steps)
            return super().loss(inputs, labels)

    disk, ahead, whole, task = OnDisk(), [], Toy(), Watching()
    before = {t.name for t in threading.enumerate()}
    history = train(task, disk, Y, PLAN, checkpoint=tmp_path / "x", content="digest")
    assert history == train(whole, X, Y, PLAN) and same(weights(task.net), weights(whole.net))
    assert disk.read == [b.tolist() for epoch in range(3) for b in batches(20, 6, 5, epoch)]  # nothing twice
    assert threading.current_thread().name not in disk.threads and max(ahead) <= 2
    assert not disk.threads & {t.name for t in threading.enumerate()} - before  # it ends with the run


def test_checkpoint_of_other_content_is_refused(tmp_path: Path):
    task = Toy()
    task.press_at = 4
    with pytest.raises(KeyboardInterrupt):
        train(task, OnDisk(), Y, PLAN, checkpoint=tmp_path / "x", content="one")
    for content, labels in (("two", Y), ("one", Y.flip(0))):
        with pytest.raises(StorageError, match="other data or settings"):
            train(Toy(), OnDisk(), labels, PLAN, checkpoint=tmp_path / "x", content=content)
    again, whole = Toy(), Toy()
    assert train(again, OnDisk(), Y, PLAN, checkpoint=tmp_path / "x", content="one") == train(whole, X, Y, PLAN)
    assert again.steps == 5 and same(weights(again.net), weights(whole.net))


def test_what_goes_wrong_while_reading_ahead_is_raised():
    task = Toy()
    with pytest.raises(OSError, match="the disk is gone"):
        train(task, OnDisk(bad=5), Y, PLAN, content="digest")
    assert task.steps == 4 or task.steps == 3


def test_methods_pass_on_what_stands_for_their_images(
    clip: FrozenCLIP, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from rp_lib import trainer
    from rp_lib.methods import CoOp

    hashed = []
    real = trainer.tensors_sha256
    monkeypatch.setattr(trainer, "tensors_sha256", lambda t: hashed.append(sorted(t)) or real(t))
    plain = make_set(8)
    named = ImageSet("tiny", "train", plain.images, plain.labels, plain.groups, content="digest")
    task = (clip, CLASSES, TEMPLATES)
    config = PAPER.changed(epochs=1, batch_size=8)
    for method, images in (
        (Reprogrammer(*task, config), True),
        (FineTune(*task, epochs=1), True),
        (Reprogrammer(*task, config.changed(use_image_program=False)), False),  # trains on features
        (CoOp(*task, epochs=1, n_context=1), False),
        (LinearProbe(*task, epochs=1), False),
    ):
        for data in (plain, named):
            hashed.clear()
            method.fit(data, checkpoint=tmp_path / "x")
            assert hashed == [["labels"] if images and data is named else ["inputs", "labels"]]


# Half precision with scaled gradients --------------------------------------------------------------------


class Half(Toy):
    """Its gradients in float16 overflow at the scale that scaling starts with."""

    factor = 300.0

    def parameter_groups(self) -> list[Group]:
        weight, bias = self.net["used"].weight, self.net["used"].bias
        return [Group([weight], 0.1, 0.0, "sgd"), Group([bias], 0.1, 0.0, "sgd")]

    def loss(self, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        self.seen = self.net["used"](inputs).dtype
        return super().loss(inputs, labels) * self.factor

    def validate(self) -> None:
        return None


HALF = Schedule(epochs=4, batch_size=6, kind="constant", seed=5, precision="float16")


def test_float16_steps_that_overflow_are_skipped_and_the_rest_is_float32s(monkeypatch: pytest.MonkeyPatch):
    task, moved = Half(), []
    before = weights(task.net)
    real = torch.amp.GradScaler.update

    def update(self, *args):
        moved.append((self.get_scale(), not same(weights(task.net), before)))
        before[:] = weights(task.net)
        real(self, *args)

    monkeypatch.setattr(torch.amp.GradScaler, "update", update)
    history = train(task, X, Y, HALF)
    assert task.seen == torch.float16 and len(history.losses) == 12 and all(map(math.isfinite, history.losses))
    skipped = [scale for scale, step in moved if not step]
    assert skipped == [65536.0 / 2**k for k in range(len(skipped))] and 1 <= len(skipped) <= 6
    assert all(step for _, step in moved[len(skipped) :])  # found its scale, and kept it
    # Without overflow, scaling changes nothing but the precision.
    one, two = Half(), Half()
    one.factor = two.factor = 1.0
    train(one, X, Y, HALF)
    train(two, X, Y, Schedule(epochs=4, batch_size=6, kind="constant", seed=5, precision="float32"))
    a, b = weights(one.net)[0], weights(two.net)[0]
    assert 0 < (a - b).abs().max() < 2e-3 and (b - weights(Half().net)[0]).abs().max() > 0.02


@pytest.mark.parametrize("step", [1, 2, 5])
def test_float16_resumes_with_its_scale(tmp_path: Path, step: int):
    whole, task, again = Half(), Half(), Half()
    expected = train(whole, X, Y, HALF)
    task.press_at = step
    with pytest.raises(KeyboardInterrupt):
        train(task, X, Y, HALF, checkpoint=tmp_path / "x")
    assert train(again, X, Y, HALF, checkpoint=tmp_path / "x") == expected
    assert same(weights(again.net), weights(whole.net))


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_methods_train_in_half_precision_and_are_judged_in_float32(
    clip: FrozenCLIP, train_set: ImageSet, val_set: ImageSet, precision: str
):
    def fit(precision: str) -> tuple[Reprogrammer, FineTune]:
        config = PAPER.changed(epochs=2, batch_size=8)
        tuned = FineTune(clip, CLASSES, TEMPLATES, epochs=2, batch_size=8, precision=precision)
        return Reprogrammer(clip, CLASSES, TEMPLATES, config, precision=precision).fit(train_set, val_set), tuned.fit(
            train_set, val_set
        )

    for half, full in zip(fit(precision), fit("float32"), strict=True):
        assert half.history.losses == pytest.approx(full.history.losses, abs=0.1)
        assert half.history.losses != full.history.losses
        assert all(v.dtype in (torch.float32, torch.int64) for v in half.state_dict().values())
        a, b = half.logits(val_set.images), full.logits(val_set.images)
        assert a.dtype == torch.float32 and (a - b).abs().max() < 0.5


# What goes wrong -----------------------------------------------------------------------------------------


def test_nan_stops_with_advice(tmp_path: Path):
    for at, where in ((1, "epoch 1, step 1"), (5, "epoch 2, step 2")):
        with pytest.raises(
            TrainingDiverged, match=f"became nan at {where}: lower the learning rate.*--precision float32"
        ):
            train(Toy(nan_at=at), X, Y, PLAN)
    # The checkpoint of the step before is kept, and what it holds is sound.
    with pytest.raises(TrainingDiverged):
        train(Toy(nan_at=5), X, Y, PLAN, checkpoint=Checkpoint(tmp_path / "x", minutes=0))
    task, whole = Toy(), Toy()
    assert train(task, X, Y, PLAN, checkpoint=tmp_path / "x") == train(whole, X, Y, PLAN)
    assert task.steps == 5 and same(weights(task.net), weights(whole.net))


@pytest.mark.parametrize("every", [2, 100])
def test_losses_that_are_read_now_and_then_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int):
    """As on a GPU, which a look at each loss would make wait: history, checkpoints and errors stay what they are."""
    whole = train(Toy(), X, Y, PLAN)
    monkeypatch.setitem(checkpoints.LOOK, "cpu", every)
    looks = []
    real = torch.stack
    monkeypatch.setattr(torch, "stack", lambda values: looks.append(len(values)) or real(values))
    assert train(Toy(), X, Y, PLAN) == whole
    assert looks == {2: [2, 1] * 3, 100: [3] * 3}[every]  # three steps an epoch
    task = Toy()
    task.press_at = 4
    with pytest.raises(KeyboardInterrupt):
        train(task, X, Y, PLAN, checkpoint=tmp_path / "x")
    assert train(Toy(), X, Y, PLAN, checkpoint=tmp_path / "x") == whole
    with pytest.raises(TrainingDiverged, match="became nan at epoch 2, step 2: lower the learning rate"):
        train(Toy(nan_at=5), X, Y, PLAN)


def test_nan_in_a_real_method(clip: FrozenCLIP, train_set: ImageSet):
    with pytest.raises(TrainingDiverged, match="lower the learning rate"):
        config = PAPER.changed(text_lr=1e30, epochs=3, batch_size=8, warmup_steps=0)
        Reprogrammer(clip, CLASSES, TEMPLATES, config).fit(train_set)


def interrupted(path: Path, **options: object) -> None:
    task = Toy(**options)  # type: ignore[arg-type]
    task.press_at = 4
    with pytest.raises(KeyboardInterrupt):
        train(task, X, Y, PLAN, checkpoint=path)


def test_checkpoint_of_another_run_is_refused(tmp_path: Path):
    path = tmp_path / "x"
    interrupted(path)
    before = path.read_bytes()
    for task, x, y, plan in (
        (Toy(key="other settings"), X, Y, PLAN),
        (Toy(), X + 1, Y, PLAN),
        (Toy(), X, Y.flip(0), PLAN),
        (Toy(), X, Y, Schedule(epochs=4, batch_size=6, warmup_steps=2, seed=5, precision="float32")),
        (Toy(), X, Y, Schedule(epochs=3, batch_size=6, warmup_steps=2, seed=6, precision="float32")),
    ):
        start = weights(task.net)
        with pytest.raises(StorageError, match="belongs to a run with other data or settings; remove it"):
            train(task, x, y, plan, checkpoint=path)
        assert same(weights(task.net), start) and path.read_bytes() == before


def test_checkpoint_of_other_hyper_parameters_is_refused(clip: FrozenCLIP, train_set: ImageSet, tmp_path: Path):
    """Nothing of these is in the schedule or the data."""

    def make(**changes: object) -> Reprogrammer:
        return Reprogrammer(clip, CLASSES, TEMPLATES, PAPER.changed(epochs=2, batch_size=12, **changes))

    class Stop(Exception):
        pass

    from rp_lib.methods import reprogrammer

    def fit(method: Reprogrammer, stop: bool = False) -> None:
        real = reprogrammer.reprogramming_loss
        calls = itertools.count(1)

        def counted(*args: object):
            if stop and next(calls) == 3:
                raise Stop
            return real(*args)

        with pytest.MonkeyPatch.context() as m:
            m.setattr(reprogrammer, "reprogramming_loss", counted)
            method.fit(train_set, checkpoint=Checkpoint(tmp_path / "x", minutes=0))

    with pytest.raises(Stop):
        fit(make(), stop=True)
    assert (tmp_path / "x").is_file()
    for changes in ({"image_lr": 1e-2}, {"loss": "focal"}, {"placement": "overlay"}, {"padding": 0.2}):
        with pytest.raises(StorageError, match="other data or settings"):
            fit(make(**changes))
    fit(make())


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "flipped"])
def test_damaged_checkpoint_is_refused(tmp_path: Path, damage: str):
    path = tmp_path / "x"
    interrupted(path)
    raw = path.read_bytes()
    path.write_bytes(
        {"empty": b"", "cut": raw[: len(raw) // 2], "text": b"hello", "flipped": b"\0" * 64 + raw[64:-64]}[damage]
    )
    with pytest.raises(StorageError, match=r"is damaged .*remove it to start anew") as caught:
        train(Toy(), X, Y, PLAN, checkpoint=path)
    assert "weights_only" not in str(caught.value)


def test_checkpoint_never_runs_code(tmp_path: Path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "pwned"),)

    torch.save({"identity": Evil()}, tmp_path / "x")
    with pytest.raises(StorageError, match="damaged"):
        train(Toy(), X, Y, PLAN, checkpoint=tmp_path / "x")
    assert not (tmp_path / "pwned").exists()


def test_disk_fills_up_during_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path, synced = tmp_path / "x", itertools.count(1)
    real = os.fsync

    def full(descriptor: int) -> None:
        if next(synced) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"disk is full while writing .*was saved before is intact"):
        train(Toy(), X, Y, PLAN, checkpoint=Checkpoint(path, minutes=0))
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
    task, whole = Toy(), Toy()
    assert train(task, X, Y, PLAN, checkpoint=path) == train(whole, X, Y, PLAN)
    assert task.steps == 8 and same(weights(task.net), weights(whole.net))  # from after the first step


def test_folder_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        train(Toy(), X, Y, PLAN, checkpoint=tmp_path / "file" / "x")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


# Nothing is wasted ---------------------------------------------------------------------------------------


class Counter:
    """Counts the rows that go through a module."""

    def __init__(self, module: nn.Module, method: str = "forward") -> None:
        self.rows: list[int] = []
        self.handle = module.register_forward_pre_hook(lambda _, args: self.rows.append(len(args[0])))

    def __enter__(self):
        return self.rows

    def __exit__(self, *_: object) -> None:
        self.handle.remove()


def test_prompts_are_encoded_once_a_step(clip: FrozenCLIP, train_set: ImageSet):
    config = PAPER.changed(epochs=2, batch_size=8)
    rp = Reprogrammer(clip, CLASSES, TEMPLATES, config)
    with Counter(clip.model.transformer) as text, Counter(clip.model.visual) as visual:
        rp.fit(train_set)
    assert len(text) == 6 and max(text) <= len(CLASSES) * len(TEMPLATES)  # not 8 * templates
    assert visual == [8] * 6


def test_prompts_of_absent_classes_are_not_encoded(clip: FrozenCLIP):
    many = [f"thing {w}" for w in ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]]
    data = make_set(4, classes=2)
    for objective, expected in (("contrastive", 2), ("class", 10)):
        rp = Reprogrammer(clip, many, ["{}"], PAPER.changed(epochs=2, batch_size=4, objective=objective))
        with Counter(clip.model.transformer) as text:
            rp.fit(data)
        assert text == [expected] * 2


def test_a_frozen_text_side_is_encoded_once(clip: FrozenCLIP, train_set: ImageSet):
    rp = Reprogrammer(clip, CLASSES, TEMPLATES, PAPER.changed(epochs=3, batch_size=8, use_text_program=False))
    with Counter(clip.model.transformer) as text:
        rp.fit(train_set)
    assert text == [len(CLASSES) * len(TEMPLATES)]


def test_frozen_images_are_encoded_once(clip: FrozenCLIP, train_set: ImageSet, val_set: ImageSet):
    config = PAPER.changed(epochs=3, batch_size=8, use_image_program=False)
    for method in (Reprogrammer(clip, CLASSES, TEMPLATES, config), LinearProbe(clip, CLASSES, TEMPLATES, epochs=4)):
        with Counter(clip.model.visual) as visual:
            method.fit(train_set, val_set)
        assert sum(visual) == len(train_set) + len(val_set)
