"""FLOPs against numbers derived by hand, memory and time against arithmetic, and the plan that prints them."""

import copy

import pytest
import torch
from conftest import make_clip, make_model
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from rp_lib import cli
from rp_lib.config import AS_RELEASED, PAPER
from rp_lib.methods import METHODS, build_method
from rp_lib.mini import load_benchmark
from rp_lib.run import cost
from rp_lib.run.config import read_config
from rp_lib.run.cost import (
    GPUS,
    TaskSize,
    TowerCosts,
    distinct_classes,
    duration,
    method_cost,
    seconds,
    steps_per_epoch,
    task_size,
)
from rp_lib.trainer import batches
from rp_lib.utils.errors import RPLibError, UnknownName

TASK = TaskSize(train=1000, val=100, judged=500, classes=10)


@pytest.fixture(scope="module")
def b32():
    return TowerCosts.open_clip("ViT-B-32-quickgelu")


def vit(tokens: int, width: int, layers: int) -> int:
    """Two per multiply-add: attention's four maps and the MLP's two of fourfold width, scores and their use."""
    return layers * (2 * tokens * width**2 * (4 + 8) + 2 * 2 * tokens**2 * width)


def test_image_forward_is_what_follows_from_the_architecture(b32):
    patches, projection = 2 * 49 * 768 * 3 * 32**2, 2 * 768 * 512
    assert b32.image().forward == vit(50, 768, 12) + patches + projection
    # 8.7, 17.5 and 26 GFLOP without the products of attention itself, as usually quoted; those add one per cent.
    attention = 12 * 2 * 2 * 50**2 * 768
    assert (b32.image().forward - attention) / 1e9 == pytest.approx(8.73, abs=0.01)
    assert (b32.image("input").flops - 3 * attention) / 1e9 == pytest.approx(17.45, abs=0.01)
    assert (b32.image("weights").flops - 3 * attention) / 1e9 == pytest.approx(25.9, abs=0.1)


def test_backward_passes_are_what_follows_from_the_architecture(b32):
    # Every product once more for the gradient of its input, and once more for that of its weight; attention's own have
    # two inputs each. The first map's input is the image: its gradient is needed by a border, not by fine-tuning.
    attention, maps = 12 * 2 * 2 * 50**2 * 768, 12 * 2 * 50 * 768**2 * 12
    patches, projection = 2 * 49 * 768 * 3 * 32**2, 2 * 768 * 512
    assert b32.image("input").backward == maps + patches + projection + 2 * attention
    assert b32.image("weights").backward == 2 * (maps + projection + attention) + patches
    assert b32.image("none").backward == 0


@pytest.mark.parametrize(
    ("layer", "inputs"),
    [
        (nn.Conv2d(12, 24, 3, stride=2, padding=1, bias=False), (1, 12, 9, 9)),
        (nn.Conv2d(12, 24, 3, padding=1, groups=3, bias=False), (1, 12, 9, 9)),
        (nn.Conv2d(12, 12, 7, padding=3, groups=12, bias=False), (1, 12, 9, 9)),  # depthwise
        (nn.ConvTranspose2d(12, 24, 2, stride=2, groups=4, bias=False), (1, 12, 9, 9)),
    ],
)
def test_gradients_of_a_convolution_cost_as_much_as_itself_each(layer, inputs):
    """Against the multiplications that there are, and, where it is right, PyTorch's own count."""
    x = torch.zeros(inputs)
    positions = (inputs if isinstance(layer, nn.ConvTranspose2d) else layer(x).shape)[2:]
    forward = 2 * positions[0] * positions[1] * layer.weight.numel()  # every weight once at every position
    found, theirs = {}, {}
    for wanted in ("input", "weights", "both"):
        x.requires_grad_(wanted != "weights")
        layer.requires_grad_(wanted != "input")
        for counted, counter in ((found, cost._counter()), (theirs, FlopCounterMode(display=False))):
            with counter:
                layer(x).sum().backward()
            counted[wanted] = counter.get_total_flops() - forward
    assert found == {"input": forward, "weights": forward, "both": 2 * forward}
    assert theirs == {"input": forward, "weights": layer.groups * forward, "both": (1 + layer.groups) * forward}


def test_a_depthwise_tower_is_not_overestimated():
    """ConvNeXt: every map once more for the gradient of its input, and once more for that of its weight."""
    tower = TowerCosts.open_clip("convnext_base")
    forward, border, tuned = (tower.image(gradient) for gradient in ("none", "input", "weights"))
    assert border.backward == forward.forward
    assert 1.95 * forward.forward < tuned.backward <= 2 * forward.forward  # less the first layer's input


def test_text_forward_is_what_follows_from_the_architecture(b32):
    for length in (11, 77):
        assert b32.text(length).forward == vit(length, 512, 12) + 2 * 512 * 512
    assert b32.text(77).forward / b32.text(11).forward > 7  # why prompts are cut
    assert b32.text(11, batch=5).forward == 5 * b32.text(11).forward
    with pytest.raises(RPLibError, match="77 positions, not 78"):
        b32.text(78)


def test_parameters_are_those_of_the_published_model(b32):
    assert b32.parameters == {"image": 87_849_216, "all": 151_277_313}
    assert (b32.width, b32.vocabulary, b32.context_length, b32.image_size) == (512, 49_408, 77, 224)


def test_a_model_with_weights_counts_the_same_and_stays_as_it_is():
    model = make_model().eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    costs = TowerCosts(model, 32, "tiny")
    with FlopCounterMode(display=False) as counter:
        model.train().visual(torch.zeros(1, 3, 32, 32))
    model.eval()
    attention = 2 * 2 * 2 * 5**2 * 64  # which the counter does not see in the CPU's fused kernel
    assert costs.image().forward - counter.get_total_flops() in (0, attention)
    assert costs.image().forward == vit(5, 64, 2) + 2 * 4 * 64 * 3 * 16**2 + 2 * 64 * 32
    costs.image("weights", 4)
    assert not model.training and all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_what_backward_needs_is_what_autograd_keeps(clip):
    """Against the same hooks on real tensors, which hold real storage."""
    costs = TowerCosts(clip.model, 32, "tiny")
    for gradient in ("input", "weights"):
        model = copy.deepcopy(clip.model).train().requires_grad_(gradient == "weights")
        images = torch.zeros(6, 3, 32, 32, requires_grad=gradient == "input")
        own, kept = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}

        def keep(t, own=own, kept=kept):
            if t.untyped_storage().data_ptr() not in own:
                kept[t.untyped_storage().data_ptr()] = (t.untyped_storage().nbytes(), t)
            return t

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            model.visual(images)
        assert costs.image(gradient, 6).kept == sum(size for size, _ in kept.values())


def test_memory_of_a_frozen_tower_is_below_that_of_a_tuned_one(b32):
    tuned, border = b32.image("weights", 128, True).kept, b32.image("input", 128, True).kept
    assert border < 0.8 * tuned
    assert border < b32.image("input", 128, False).kept  # bfloat16 keeps less


def test_seconds_are_flops_over_rate():
    assert seconds(312e12, 0, "a100", 1.0) == pytest.approx(1)
    assert seconds(0, 19.5e12, "a100", 0.5) == pytest.approx(2)
    assert seconds(312e12 * 3, 19.5e12, "a100", 1.0) == pytest.approx(4)
    assert all(half > full for half, full in GPUS.values())
    with pytest.raises(UnknownName, match="did you mean a100"):
        seconds(1, 1, "a10")
    for wrong in (0, -1, 1.5, float("nan")):
        with pytest.raises(RPLibError, match="utilisation"):
            seconds(1, 1, "a100", wrong)


@pytest.mark.parametrize(
    ("n", "batch"), [(1000, 128), (45_000, 128), (24, 8), (5, 128), (130, 128), (192, 128), (191, 128)]
)
def test_steps_are_those_of_the_trainer(n, batch):
    assert steps_per_epoch(n, batch) == len(batches(n, batch, 0, 0))


def test_distinct_classes_are_what_batches_hold():
    g = torch.Generator().manual_seed(0)
    drawn = [len(torch.randint(0, 1000, (128,), generator=g).unique()) for _ in range(200)]
    assert distinct_classes(128, 1000) == pytest.approx(sum(drawn) / 200, rel=0.01)
    assert distinct_classes(128, 10) == pytest.approx(10, abs=1e-3)


def test_a_step_costs_its_images_and_prompts(b32):
    rp = method_cost("rp", {"config": PAPER}, TASK, b32)
    assert rp.step_flops == 128 * b32.image("input").flops + 10 * b32.text(8, "input").flops
    assert rp.steps == 25 * steps_per_epoch(1000, 128) and rp.train_flops == rp.steps * rp.step_flops
    assert rp.other_flops == (25 * 100 + 500) * b32.image().forward
    tuned = method_cost("fine-tune", {}, TASK, b32)
    assert tuned.step_flops == 128 * b32.image("weights").flops
    assert 0.6 < rp.step_flops / tuned.step_flops < 0.75  # two thirds, and the prompts
    parameters = 4 * b32.parameters["all"] + 16 * (b32.parameters["image"] + 10 * 512)
    assert tuned.memory == parameters + b32.image("weights", 128, True).kept + 4 * 128 * 3 * 224**2
    assert rp.memory < 0.7 * tuned.memory
    coop = method_cost("coop", {"n_context": 16, "epochs": 50}, TASK, b32)
    assert coop.step_flops == 10 * b32.text(20, "input").flops and coop.other_flops == 0 and coop.needs_features
    for free in ("zero-shot", "rrp", "logit-ensemble", "linear-probe"):
        cost = method_cost(free, {}, TASK, b32)
        assert (cost.steps, cost.step_flops, cost.other_flops, cost.memory) == (0, 0, 0, 0)
    assert method_cost("wise-ft", {}, TASK, b32).other_flops == 500 * b32.image().forward
    assert method_cost("wise-ft", {"alpha": 1.0}, TASK, b32).other_flops == 0
    released = method_cost("rp", {"config": AS_RELEASED}, TASK, b32)
    assert released.other_flops == rp.other_flops
    assert released.memory - rp.memory == 16 * 512 * (49_408 - 10 * 8)  # the whole token table is trained


def test_trained_numbers_are_those_of_the_methods(clip, train_set):
    """What memory rests on: weights, gradients and optimiser states of what is trained."""
    from rp_lib.run.cost import describe

    costs = TowerCosts(clip.model, clip.image_size, "tiny")
    task = TaskSize(24, 9, 40, 3, 1, prompt_tokens=8)
    names = ("cat", "dog", "fire engine")
    for name in METHODS:
        settings = {"config": PAPER} if name.startswith("rp") else {"n_context": 2} if name == "coop" else {}
        settings |= {"depth": 2} if name == "maple" else {}
        work = describe(name, settings, task, costs)
        if not work.trained:
            continue
        method = build_method(name, clip, names, ("a photo of a {}",), settings)
        really = sum(p.numel() for p in method.modules().parameters())
        # Rows of the token table are an upper bound: prompts share words. MaPLe's maps lead into the image tower.
        spare = task.classes * task.prompt_tokens * costs.width + costs.width
        assert really <= work.trained + (64 - 32) * 2 * 33 and work.trained <= really + spare, name


def test_every_method_has_a_cost(b32):
    for name in METHODS:
        settings = {"config": PAPER} if name in ("rp", "rrp", "rp-image", "rp-text") else {}
        assert method_cost(name, settings, TASK, b32).step_flops >= 0
    with pytest.raises(RPLibError, match="no cost is known for the method 'new'"):
        method_cost("new", {}, TASK, b32)


def test_sizes_of_the_published_benchmarks():
    cifar = task_size({"id": "cifar10"})
    assert (cifar.train, cifar.val, cifar.classes, cifar.templates) == (45_000, 5_000, 10, 1)
    assert cifar.judged == 10_000 + 2_000 + 2_000 + 7_200 + 26_032 + 10_000 + 10_000 + 8_925 + 5_640 + 36_500
    assert cifar.prompt_tokens == 8  # two marks, "a photo of a", one word, and a full stop
    small = task_size({"id": "cifar10", "per_class": 16, "subset": 1000})
    assert (small.train, small.val, small.judged) == (160, 1000, 10_000)
    imagenet = task_size({"id": "imagenet"})
    assert (imagenet.train, imagenet.val, imagenet.classes) == (1_271_167, 10_000, 1000)
    assert imagenet.judged == 50_000 + 10_000 + 30_000 + 7_500 + 50_889 + 3 * 10_000 + 5_640
    assert 12 <= imagenet.prompt_tokens <= 20


def test_sizes_of_the_mini_benchmark_are_counted():

    mini, size = load_benchmark(), task_size({"id": "mini"})
    assert (size.train, size.val, size.classes) == (len(mini.train), len(mini.val), 40)
    assert size.judged == sum(len(s) for s in mini.sets) - size.train - size.val
    tokens = make_clip().tokenize([t.format(c) for c in mini.class_names for t in mini.templates])
    assert size.prompt_tokens == int(tokens.argmax(1).max()) + 1


def test_dry_run_says_what_is_missing_and_what_it_would_cost(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("RP_DATA", str(tmp_path / "data"))
    assert (
        cli.main(["run", "--config", "cifar10-paper", "--dry-run", "--gpu", "rtx-4090", "--utilisation", "0.25"]) == 0
    )
    said = capsys.readouterr().out
    for word in ("stl10: missing", "./data_download.sh --root", "Estimate, not a measurement", "45,000 training",
                 "118,297 judged", "one rtx-4090 at 25%", "ViT-B-32-quickgelu", "seeds 1, 2, 3"):  # fmt: skip
        assert word in said
    rows = {line.split()[0]: line.split() for line in said.splitlines() if line}
    assert rows["fine-tune"][1:4] == ["3", "8,800", "3,356"] and rows["rp"][3] == "2,281"
    assert rows["rrp"][2:] == ["-"] * 5
    assert not (tmp_path / "data").exists()
    config = read_config("cifar10-paper")
    assert not config.out.exists() or "reused" in said


def test_dry_run_of_folders_counts_them(capsys, tmp_path):
    for part, n in (("train/cat", 7), ("train/dog", 5), ("test/cat", 2), ("test/dog", 1), ("other", 4)):
        (tmp_path / part).mkdir(parents=True)
        for i in range(n):
            (tmp_path / part / f"{i}.jpg").touch()
    folders = f"train={tmp_path}/train,test={tmp_path}/test,ood:other={tmp_path}/other"
    assert cli.main(["run", "--folders", folders, "--dry-run", "--backbone", "mini", "--methods", "zero-shot"]) == 0
    said = capsys.readouterr().out
    assert "11 training, 1 validation and 7 judged images, 2 classes" in said
    assert cli.main(["run", "--folders", f"train={tmp_path}/nowhere", "--dry-run"]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_durations():
    said = [duration(s) for s in (0.2, 40, 89, 600, 5399, 19_000, 400_000)]
    assert said == ["< 1 s", "40 s", "89 s", "10 min", "90 min", "5.3 h", "111.1 h"]
