"""Scoring over some of the classes: the same everywhere that accuracy is computed, and kept in files."""

import dataclasses
import hashlib

import numpy as np
import pytest
import torch
from conftest import make_set
from photo_world import Seer, block
from rp_course.experiments.training_data import of_classes

from rp_lib import Benchmark, ImageSet, RPLibError, evaluate_outputs, load_outputs, paired_bootstrap, save_outputs
from rp_lib.benchmark import mask_logits
from rp_lib.evaluation import accuracy_rows
from rp_lib.outputs import compute_outputs

NAMES = tuple("abcdef")
SOME = (1, 3, 4)


def coloured(name, role, labels, **more):
    images = torch.stack([torch.from_numpy(block(c, 4)).permute(2, 0, 1) for c in labels])
    return ImageSet(name, role, images, torch.tensor(labels), **more)


@pytest.fixture(scope="module")
def benchmark():
    six = list(range(6))
    return Benchmark(
        "some", NAMES, ("{}",), coloured("train", "train", six), coloured("val", "val", six),
        coloured("test", "test", six * 3),
        {"all": coloured("all", "shift", [1, 3, 4, 3]), "few": coloured("few", "shift", [1, 3, 4, 3], class_subset=(4, 1, 3))},
    )  # fmt: skip


@pytest.fixture(scope="module")
def misled(benchmark):
    """Right among ``SOME``, wrong among all: class 0 always has the largest logit, the true one the second largest."""
    return compute_outputs(Seer(NAMES, shadow=0), benchmark, seed=1)


def test_the_largest_of_some_logits_and_their_softmax():
    logits = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    kept = mask_logits(logits, SOME)
    torch.testing.assert_close(kept.softmax(1)[:, list(SOME)], logits[:, list(SOME)].softmax(1))
    assert bool((kept.softmax(1)[:, [0, 2, 5]] == 0).all())
    by_hand = torch.tensor(SOME)[logits[:, list(SOME)].argmax(1)]
    assert torch.equal(kept.argmax(1), by_hand) and not torch.equal(logits.argmax(1), by_hand)
    assert mask_logits(logits, None) is logits
    with pytest.raises(RPLibError, match="none of class 7"):
        mask_logits(logits, (1, 7))


def test_numbers_are_kept_sorted_and_go_along_with_a_subset(benchmark):
    few = benchmark.shifts["few"]
    assert few.class_subset == SOME and few.subset([0, 1]).class_subset == SOME


@pytest.mark.parametrize(
    ("class_subset", "message"),
    [((1, 3), "label 4"), ((1, 3, 4, 4), "distinct"), ((-1, 1, 3, 4), "distinct"), ((), "at least one")],
)
def test_numbers_that_cannot_be_meant_are_refused(class_subset, message):
    with pytest.raises(RPLibError, match=message):
        coloured("few", "shift", [1, 3, 4], class_subset=class_subset)


def test_ood_sets_and_classes_out_of_range_are_refused(benchmark):
    with pytest.raises(RPLibError, match="no labels"):
        dataclasses.replace(make_set(6, role="far-ood"), class_subset=(0, 1))
    wide = coloured("wide", "shift", [1, 3], class_subset=(1, 3, 6))
    with pytest.raises(RPLibError, match="classes up to 6"):
        dataclasses.replace(benchmark, shifts={"wide": wide})


def test_it_is_part_of_the_fingerprint_and_absence_changes_nothing(benchmark):
    plain, few = benchmark.shifts["all"], benchmark.shifts["few"]
    assert plain.fingerprint != few.fingerprint
    assert dataclasses.replace(few, class_subset=None).fingerprint == plain.fingerprint
    # To the byte as in files that were saved before the attribute had its name.
    digest = hashlib.sha256(b"None")
    for values in (few.images, few.labels, few.groups):
        digest.update(f"{values.dtype} {tuple(values.shape)}".encode() + values.numpy().tobytes())
    digest.update(b"among (1, 3, 4)")
    assert few.fingerprint == digest.hexdigest()
    assert dataclasses.replace(few, class_subset=(0, 1, 3, 4)).fingerprint != few.fingerprint


def test_accuracy_of_a_method(benchmark):
    method = Seer(NAMES, shadow=0)
    assert [method.accuracy(benchmark.shifts[name]) for name in ("all", "few")] == [0.0, 1.0]


def test_records(misled):
    rows = {(r["set"], r["metric"]): r for r in accuracy_rows(misled, 50)}
    assert rows["all", "accuracy"]["value"] == 0.0 and rows["few", "accuracy"]["value"] == 1.0
    assert rows["mean of shifts", "accuracy"]["value"] == 0.5
    # Confidence is that of the softmax over the three classes: 100 against 0, certain and right.
    assert rows["few", "ece"]["value"] == pytest.approx(0.0, abs=1e-9)
    assert rows["all", "ece"]["value"] == pytest.approx(1.0)


def test_calibration_is_of_the_softmax_over_some_classes(benchmark):
    few = benchmark.shifts["few"]
    outputs = compute_outputs(Seer(NAMES), benchmark, seed=1)
    soft = dataclasses.replace(outputs.sets["few"], logits=outputs.sets["few"].logits / 100)  # 1 against 0
    rows = accuracy_rows(dataclasses.replace(outputs, sets={**outputs.sets, "few": soft}), 50)
    found = next(r["value"] for r in rows if (r["set"], r["metric"]) == ("few", "ece"))
    assert found == pytest.approx(1 - np.e / (np.e + len(few.class_subset) - 1), abs=1e-6)


def test_paired_comparisons(benchmark, misled):
    right = compute_outputs(Seer(NAMES), benchmark, seed=1)
    drawn = paired_bootstrap({"right": [right], "misled": [misled]}, n_resamples=20)
    shift = drawn.axes.index("shift accuracy")
    assert drawn.values[:, shift].tolist() == [1.0, 0.5]  # misled: 0 among all, 1 among some
    assert drawn.resampled[:, 1, shift].tolist() == [0.5] * 20


def test_saved_outputs_score_the_same(benchmark, misled, tmp_path):
    save_outputs(tmp_path / "o.safetensors", misled)
    again = load_outputs(tmp_path / "o.safetensors", benchmark)
    assert {name: s.class_subset for name, s in again.sets.items()} == {
        n: SOME if n == "few" else None for n in misled.sets
    }
    assert evaluate_outputs([again]).equals(evaluate_outputs([misled]))


def test_detection_sees_all_logits(misled):
    few = misled.sets["few"]
    assert bool(torch.isfinite(few.logits).all()) and bool((few.logits[:, 0] == 200).all())


def test_fewer_classes_renumber_what_is_scored(benchmark):
    fewer = of_classes(benchmark, [4, 3, 0])
    assert fewer.shifts["few"].class_subset == (0, 1)
    assert sorted(fewer.shifts["few"].labels.tolist()) == [0, 1, 1]
