"""FLOPs against numbers derived by hand, memory and time against arithmetic, and the plan that prints them."""

import copy

import pytest
import torch
from rp_course.tower_costs import TowerCosts
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from rp_lib import cli
from rp_lib.benchmark import ImageSet
from rp_lib.config import AS_RELEASED, PAPER
from rp_lib.data.class_names import CIFAR10
from rp_lib.features import FeatureStore
from rp_lib.methods import BASES, METHODS, build_method
from rp_lib.run import cost
from rp_lib.run.config import read_config
from rp_lib.run.cost import GPUS, TaskSize, distinct_classes, duration, method_cost, seconds, task_size
from rp_lib.trainer import batches
from rp_lib.utils.errors import RPLibError, UnknownName

TASK = TaskSize(train=1000, val=100, judged=500, class_names=CIFAR10, templates=("a photo of a {}.",))


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
    tower = TowerCosts.open_clip("convnext_tiny")
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
    assert (b32.embed_dim, b32.context_length, b32.image_size) == (512, 77, 224)


def test_a_model_with_weights_counts_the_same_and_stays_as_it_is(clip):
    before = {name: tensor.clone() for name, tensor in clip.model.state_dict().items()}
    costs = TowerCosts(clip)
    assert costs.image().forward == vit(5, 64, 2) + 2 * 4 * 64 * 3 * 16**2 + 2 * 64 * 32
    costs.image("weights", 4)
    method_cost("rp", {"config": PAPER}, TaskSize(24, 9, 40, ("cat", "dog"), ("a {}",)), costs)
    assert all(torch.equal(before[k], v) for k, v in clip.model.state_dict().items())
    assert nn.Linear(2, 2).to(torch.float64).weight.dtype == torch.float64  # modules can be moved as before


class Kept:
    """Bytes of the storages that autograd keeps of real tensors, the weights aside."""

    def __init__(self, *weights):
        self.own, self.bytes = {p.untyped_storage().data_ptr() for p in weights}, {}

    def __call__(self, t):
        storage = t.untyped_storage()
        if storage.data_ptr() not in self.own:
            self.bytes[storage.data_ptr()] = (storage.nbytes(), t)
        return t

    def count(self, run):
        with torch.autograd.graph.saved_tensors_hooks(self, lambda t: t):
            run()
        return sum(size for size, _ in self.bytes.values())


def test_what_backward_needs_is_what_autograd_keeps(clip):
    """Against the same hooks on real tensors, which hold real storage."""
    costs = TowerCosts(clip)
    for gradient in ("input", "weights"):
        model = copy.deepcopy(clip.model).requires_grad_(gradient == "weights")
        images = torch.zeros(6, 3, 32, 32, requires_grad=gradient == "input")
        kept = Kept(*model.parameters()).count(lambda m=model, x=images: m.visual(x))
        assert costs.image(gradient, 6).kept == kept


@pytest.mark.parametrize(
    "name",
    # Not lipsum-ft: a counter does not see the fused attention of its frozen encodings.
    ["rp", "rp-text", "fine-tune", "flyp", "coop", "locoop", "maple", "linear-probe", "clap", "tip-adapter-f",
     "clip-lora"],
)
def test_a_step_is_counted_as_the_method_takes_it(clip, name):
    """FLOPs, trained numbers and memory against a real step of the real method."""
    names, templates = ("cat", "dog", "fire engine"), ("a photo of a {}",)
    settings = {"rp": {"config": PAPER.changed(objective="class")}, "maple": {"depth": 2}}
    settings |= {prompted: {"n_context": 2} for prompted in ("coop", "locoop")}
    options = settings.get(name, {}) | ({} if name.startswith("rp") else {"batch_size": 6})
    batch = 6 if "batch_size" in options else 24
    costs = method_cost(name, options, TaskSize(24, 9, 40, names, templates), TowerCosts(clip), bfloat16=False)
    method = build_method(name, clip, names, templates, options)
    if name == "tip-adapter-f":
        method.modules().fill(torch.zeros(24, clip.embed_dim), torch.arange(24) % 3)
    method.set_training(True)
    images = torch.zeros(batch, 3, 32, 32, dtype=torch.uint8)
    inputs = method.training_inputs(ImageSet("train", "train", images, torch.arange(batch) % 3), FeatureStore())
    trained = list(method.modules().parameters())
    assert costs.trained == sum(p.numel() for p in trained)
    with cost._counter() as counter:  # the kernels of this machine's CPU are plain products
        method.loss(inputs, torch.arange(batch) % 3).backward()
    assert costs.step_flops == pytest.approx(counter.get_total_flops(), rel=0.002)
    groups = method.parameter_groups()
    numbers = sum(p.numel() * (8 + (4 if g.optimizer == "sgd" else 8)) for g in groups for p in g.parameters)
    with cost._FusedAttention():
        kept = Kept(*clip.model.parameters(), *trained).count(
            lambda: method.loss(inputs, torch.arange(batch) % 3)
        )
    frozen = 4 * sum(p.numel() for p in clip.model.parameters())
    assert costs.memory == pytest.approx(frozen + numbers + kept, abs=0.1 * numbers)


def test_memory_of_a_frozen_tower_is_below_that_of_a_tuned_one(b32):
    tuned, border = b32.image("weights", 128, True).kept, b32.image("input", 128, True).kept
    assert border < 0.8 * tuned
    assert border < b32.image("input", 128, False).kept  # bfloat16 keeps less
    # Of attention no product of all pairs of tokens is kept, as by the kernels of GPUs: twice the tokens, twice the bytes.
    assert b32.text(76, "input").kept == pytest.approx(2 * b32.text(38, "input").kept, rel=0.01)


def test_seconds_are_flops_over_rate():
    assert cost.UTILISATION == 0.3
    assert seconds(312e12, 0, "a100") == pytest.approx(1 / 0.3)
    assert seconds(0, 19.5e12, "a100") == pytest.approx(1 / 0.3)
    assert seconds(312e12 * 3, 19.5e12, "a100") == pytest.approx(4 / 0.3)
    assert all(half > full for half, full in GPUS.values())
    with pytest.raises(UnknownName, match="did you mean a100"):
        seconds(1, 1, "a10")


def test_distinct_classes_are_what_batches_hold():
    g = torch.Generator().manual_seed(0)
    drawn = [len(torch.randint(0, 1000, (128,), generator=g).unique()) for _ in range(200)]
    assert distinct_classes(128, 1000) == pytest.approx(sum(drawn) / 200, rel=0.01)
    assert distinct_classes(128, 10) == pytest.approx(10, abs=1e-3)


def test_a_step_costs_its_images_and_prompts(b32):
    logits = 2 * 3 * 128 * 10 * 512  # forward, and the gradients of features and prompts
    rp = method_cost("rp", {"config": PAPER}, TASK, b32)
    assert rp.step_flops == 128 * b32.image("input").flops + 10 * b32.text(8, "input").flops + logits
    assert rp.steps == 25 * len(batches(1000, 128, 0, 0)) and rp.train_flops == rp.steps * rp.step_flops
    assert rp.other_flops == (25 * 100 + 500) * b32.image().forward
    tuned = method_cost("fine-tune", {}, TASK, b32)
    assert tuned.step_flops == 128 * b32.image("weights").flops + logits
    assert 0.6 < rp.step_flops / tuned.step_flops < 0.75  # two thirds, and the prompts
    parameters = 4 * b32.parameters["all"] + 16 * (b32.parameters["image"] + 10 * 512)
    assert tuned.memory == pytest.approx(parameters + b32.image("weights", 128, True).kept, rel=0.001)
    assert rp.memory < 0.7 * tuned.memory and tuned.trained == b32.parameters["image"] + 10 * 512
    coop = method_cost("coop", {"n_context": 16, "epochs": 50}, TASK, b32)
    assert coop.step_flops == pytest.approx(10 * b32.text(20, "input").flops, rel=0.001)
    assert coop.other_flops == 0 and coop.needs_features and coop.steps == 2 * rp.steps
    for free in ("zero-shot", "rrp", "logit-ensemble"):
        assert method_cost(free, {}, TASK, b32) == cost.MethodCost()
    probe = method_cost("linear-probe", {}, TASK, b32)
    assert probe.trained == 10 * 513 and probe.step_flops < 1e7 and probe.needs_features and probe.other_flops == 0
    assert method_cost("wise-ft", {}, TASK, b32).other_flops == 500 * b32.image().forward
    assert method_cost("wise-ft", {"alpha": 1.0}, TASK, b32).other_flops == 0
    released = method_cost("rp", {"config": AS_RELEASED}, TASK, b32)
    rows = released.trained - rp.trained  # the whole token table instead of the rows of words in the prompts
    assert released.other_flops == rp.other_flops and 0.99 * 49_408 * 512 < rows < 49_408 * 512
    assert released.memory - rp.memory == pytest.approx(16 * rows, rel=0.01)


def test_a_batch_of_many_classes_has_fewer_prompts_than_images(b32):
    many = TaskSize(12_800, 100, 500, [f"class number {i}" for i in range(1000)], ("a photo of a {}.",))
    rp = method_cost("rp", {"config": PAPER}, many, b32)
    prompts = round(distinct_classes(128, 1000))
    length = int(b32.tokenize(["a photo of a class number 999."]).argmax()) + 1
    images = 128 * b32.image("input").flops + 2 * 3 * 128 * prompts * 512
    assert prompts == 120 and (rp.step_flops - images) / prompts == b32.text(length, "input").flops
    every = method_cost("rp", {"config": PAPER.changed(objective="class")}, many, b32)
    assert (every.step_flops - rp.step_flops) / (1000 - prompts) == pytest.approx(
        b32.text(length, "input").flops, rel=0.01
    )


def test_every_method_has_a_cost(clip):
    small = TowerCosts(clip)  # counting is slow, and the plan of a configuration is counted on a large one
    for name in METHODS:
        costs = method_cost(name, {}, TASK, small)
        assert (costs.step_flops > 0) == (costs.steps > 0) == (costs.trained > 0)
        assert (costs.steps == 0) == (name in {"zero-shot", "tip-adapter", *BASES})
    with pytest.raises(UnknownName, match="unknown method 'new'"):
        method_cost("new", {}, TASK, small)


def test_sizes_of_the_published_benchmarks():
    cifar = task_size({"id": "cifar10"})
    assert (cifar.train, cifar.val, cifar.classes, cifar.templates) == (45_000, 5_000, 10, ("a photo of a {}.",))
    assert cifar.judged == 10_000 + 2_000 + 2_000 + 7_200 + 26_032 + 10_000 + 10_000 + 8_925 + 5_640 + 36_500
    small = task_size({"id": "cifar10", "per_class": 16, "subset": 1000})
    assert (small.train, small.val, small.judged) == (160, 1000, 10_000)
    imagenet = task_size({"id": "imagenet"})
    assert (imagenet.train, imagenet.val, imagenet.classes) == (1_271_167, 10_000, 1000)
    assert imagenet.judged == 50_000 + 10_000 + 30_000 + 7_500 + 50_889 + 3 * 10_000 + 5_640


def test_sizes_of_the_mini_benchmark_are_counted(mini_benchmark):
    mini, size = mini_benchmark, task_size({"id": "mini"})
    assert (size.train, size.val, size.classes) == (len(mini.train), len(mini.val), 40)
    assert size.judged == sum(len(s) for s in mini.sets) - size.train - size.val


def test_dry_run_says_what_is_missing_and_what_it_would_cost(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("RP_DATA", str(tmp_path / "data"))
    assert cli.main(["run", "--config", "cifar10-paper", "--dry-run"]) == 0
    said = capsys.readouterr().out
    for word in ("stl10: missing", "./data_download.sh --root", "Estimate, not a measurement", "45,000 training",
                 "118,297 judged", "one a100 at 30%", "ViT-B-32-quickgelu", "seeds 1, 2, 3"):  # fmt: skip
        assert word in said
    rows = {line.split()[0]: line.split() for line in said.splitlines() if line}
    assert rows["fine-tune"][1:4] == ["3", "8,800", "3,356"] and rows["rp"][3] == "2,281"
    assert rows["rrp"][2:] == ["-"] * 5 and rows["linear-probe"][2] == "8,800"
    assert not (tmp_path / "data").exists()
    config = read_config("cifar10-paper")
    assert "one rtx-4090 at 30%" in cost.plan(config, "rtx-4090")
    with pytest.raises(UnknownName, match="did you mean a100"):
        cost.plan(config, "a10")
    assert not config.out.exists() or "reused" in said


def test_dry_run_of_folders_counts_them(capsys, tmp_path):
    for part, n in (("train/cat", 7), ("train/dog", 5), ("test/cat", 2), ("test/dog", 1), ("other", 4)):
        (tmp_path / part).mkdir(parents=True)
        for i in range(n):
            (tmp_path / part / f"{i}.jpg").touch()
    folders = f'data={{id="folders", train="{tmp_path}/train", test="{tmp_path}/test", ood.other="{tmp_path}/other"}}'
    run = ["run", "--config", "folders", "--dry-run", "--set", "backbone.name=mini", "--methods", "zero-shot", "--set"]
    assert cli.main([*run, folders]) == 0
    said = capsys.readouterr().out
    assert "11 training, 1 validation and 7 judged images, 2 classes" in said
    assert cli.main([*run, f"data.train={tmp_path}/nowhere"]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_durations():
    said = [duration(s) for s in (0.2, 40, 89, 600, 5399, 19_000, 400_000)]
    assert said == ["< 1 s", "40 s", "89 s", "10 min", "90 min", "5.3 h", "111.1 h"]
