"""Rows 2 and 3 of the ledger on photographs: made-up ones whose colour says their class."""

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import make_set
from photo_world import Seer, block, jpeg, write
from rp_course.experiments import photo_ledger
from rp_course.experiments.photo_ledger import BABOON, as_stl10, label_order, monkeys_of, write_stl10

from rp_lib.benchmark import Benchmark, ImageSet
from rp_lib.data.cifar import read_stl10
from rp_lib.data.class_names import CIFAR10

ALL = torch.arange(10).repeat(4)
STL10 = ("airplane", "bird", "automobile", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")


def pictures(numbers: list[int]) -> torch.Tensor:
    return torch.from_numpy(np.stack([block(number, 32) for number in numbers]).transpose(0, 3, 1, 2).copy())


@pytest.fixture
def photographs() -> ImageSet:
    return ImageSet("test", "test", pictures(ALL.tolist()), ALL)


def test_photographs_take_stl10s_numbers_and_frogs_are_left_out(photographs):
    images, numbers = as_stl10(photographs, pictures([-1, -1]))
    shown = [STL10[number] for number in numbers.tolist()]
    assert shown[-2:] == ["monkey", "monkey"] and "frog" not in shown and len(shown) == 38
    colours = [CIFAR10[int(Seer(CIFAR10).encode(image[None]).argmax())] for image in images[:-2]]
    assert colours == shown[:-2]


def test_what_is_written_is_read_as_stl10_is(tmp_path):
    images = make_set(3, side=32).images  # no symmetry
    write_stl10(tmp_path, images, torch.tensor([8, 1, 7]))
    for order, labels in (("cifar10", [8, 2]), ("as_released", [8, 1])):
        photos = read_stl10(tmp_path, order=order)
        assert photos.labels.tolist() == labels and photos.pixels.shape == (2, 96, 96, 3)
        assert np.array_equal(photos.pixels[:, 1::3, ::3], images[:2].permute(0, 2, 3, 1).numpy())


def test_unmapped_labels_cost_a_perfect_classifier_a_third(photographs):
    seers = [Seer(CIFAR10), Seer(CIFAR10, shadow=CIFAR10.index("horse"))]
    seers[1].name = "sees horses"
    found = label_order(seers, photographs, pictures([-1] * 5)).set_index(["method", "labels"])
    assert set(found["n"]) == {36}  # no frogs, no monkeys
    for name in ("perfect", "seer"):
        assert found.loc[(name, "cifar10"), "value"] == 1
        assert found.loc[(name, "as_released"), "value"] == pytest.approx(2 / 3)
    # Of nine classes one is the horse; as released, horses stand at 6 and monkeys at 7, which none is any more.
    assert found.loc[("sees horses", "cifar10"), "value"] == pytest.approx(1 / 9)
    assert found.loc[("sees horses", "as_released"), "value"] == 0
    assert found.loc[("perfect", "as_released"), "low"] == pytest.approx(0.5031, abs=1e-3)  # Wilson, 24 of 36
    assert found.loc[("perfect", "as_released"), "high"] == pytest.approx(0.7979, abs=1e-3)


def test_the_monkeys_are_tiny_imagenets_baboons(tmp_path, monkeypatch):
    monkeypatch.setenv("RP_CACHE", str(tmp_path / "cache"))
    lines = []
    for i, wnid in enumerate([BABOON, "n02480495", BABOON]):
        write(tmp_path / "val" / "images" / f"val_{i}.JPEG", jpeg(100 * i, 64))
        lines.append(f"val_{i}.JPEG\t{wnid}\t0\t0\t63\t63\n")
    (tmp_path / "val" / "val_annotations.txt").write_text("".join(lines))
    found = monkeys_of(tmp_path / "val", 32)
    assert found.shape == (2, 3, 32, 32) and found.dtype == torch.uint8
    assert (found.float().mean((2, 3))[:, 0] - torch.tensor([20.0, 64.0])).abs().max() < 3


def test_both_rows_by_one_command(tiny_clip, tmp_path, monkeypatch, capsys):
    def made(name: str, role: str, n: int, seed: int) -> ImageSet:
        return make_set(n, seed=seed, side=32, classes=10, name=name, role=role)

    data = Benchmark(
        "photos", CIFAR10, ("a photo of a {}.",), made("train", "train", 40, 0), made("val", "val", 20, 1),
        made("test", "test", 40, 2), {"tiny-imagenet": made("tiny-imagenet", "shift", 20, 3)},
        {"textures": made("textures", "far-ood", 30, 4)},
    )  # fmt: skip
    monkeypatch.setattr(photo_ledger, "open_benchmark", lambda *a: data)
    monkeypatch.setattr(photo_ledger, "open_backbone", lambda *a: tiny_clip)
    monkeypatch.setattr(photo_ledger, "monkeys_of", lambda *a: pictures([-1]))
    settings = "[settings.linear-probe]\nepochs = 1\n[settings.fine-tune]\nepochs = 1\n[settings.rp]\nepochs = 1\n"
    head = 'preset = "paper"\nmethods = ["zero-shot", "linear-probe", "fine-tune", "rp", "rrp"]\nseeds = 1\nout = "x"\n'
    folders = (
        '[data]\nid = "cifar10-folders"\ntrain = "a"\ntest = "b"\ntiny_imagenet = "c"\n[backbone]\nname = "mini"\n'
    )
    (tmp_path / "own.toml").write_text(head + folders + settings)
    photo_ledger.main(["--root", "r", "--config", str(tmp_path / "own.toml"), "--out", str(tmp_path / "out")])
    wrap, order = (pd.read_csv(tmp_path / "out" / f"row-{n}.csv") for n in (2, 3))
    compared = wrap[wrap["versus"].notna()]
    assert set(compared["method"]) == {"rp, row 2: 8-bit wrap in detection", "rrp, row 2: 8-bit wrap in detection"}
    assert {"auroc", "fpr"} <= set(compared["metric"]) and set(compared["versus"]) == {"rp", "rrp"}
    moved = compared[compared["metric"] == "auroc"]["value"].abs()
    assert (moved > 0).all() and (compared[compared["metric"] == "id accuracy"]["value"] == 0).all()
    assert list(order["method"].unique()) == ["perfect", "zero-shot", "linear-probe", "fine-tune"]
    assert "as_released" in capsys.readouterr().out
