"""The CIFAR-10 benchmark from made-up files in the published layouts: colours say the classes, so that no map can be wrong."""

import io
import logging
import os
import pickle
import shutil

import numpy as np
import pytest
import scipy.io
import torch
from photo_world import Seer, block, jpeg, note, python2_batch, write
from PIL import Image
from torchvision.datasets import CIFAR10 as TORCHVISION_CIFAR10

from rp_lib import RPLibError
from rp_lib.data import FolderError, NotThere, load_sources
from rp_lib.data.cifar import (
    OOD,
    SHIFTS,
    FileFormatError,
    cifar10_benchmark,
    cifar10_from_folders,
    read_cifar10,
    read_cifar10_1,
    read_cifar10_2,
    read_stl10,
    read_svhn,
)
from rp_lib.data.class_names import CIFAR10, DATA_SWITCHES, TINY_IMAGENET_TO_CIFAR10, prompt_templates
from rp_lib.evaluation import accuracy_rows
from rp_lib.outputs import compute_outputs
from rp_lib.utils.errors import UnknownName

STL10 = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")  # class_names.txt
MONKEY = 10  # a colour of its own
BATCHES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
OOD_FILES = {
    "lsun-crop": ["LSUN/test/0.jpg", "LSUN/test/1.jpg"],
    "lsun-resize": ["LSUN_resize/LSUN_resize/0.jpg", "LSUN_resize/LSUN_resize/1.jpg", "LSUN_resize/LSUN_resize/2.jpg"],
    "isun": ["iSUN/iSUN_patches/sun_a.jpeg"],
    "textures": ["dtd/dtd/images/banded/banded_0002.jpg", "dtd/dtd/images/woven/woven_0001.jpg"],
    "places365": [f"val_256/Places365_val_0000000{i}.jpg" for i in range(1, 5)],
}


def shown(number):
    """What a class of STL-10 looks like, in CIFAR-10's colours."""
    name = {"car": "automobile"}.get(STL10[number], STL10[number])
    return CIFAR10.index(name) if name in CIFAR10 else MONKEY


def stl10_file(pixels):
    """uint8 (n, 96, 96, 3) as test_X.bin has them: channel by channel, column by column."""
    return b"".join(x[:, :, c].tobytes(order="F") for x in pixels for c in range(3))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("cifar")
    ten = list(range(10))
    for name in BATCHES:
        labels = ten * (4 if name != "test_batch" else 3)
        pixels = np.stack([block(c, 32) for c in labels])
        write(note(root, "cifar10") / "cifar-10-batches-py" / name, python2_batch(pixels, labels))
    labels = np.array(ten * 2, np.int32)
    pixels = np.stack([block(c, 32) for c in labels])
    np.save(note(root, "cifar10.1") / "cifar10.1_v6_data.npy", pixels)
    np.save(root / "cifar10.1/cifar10.1_v6_labels.npy", labels)
    np.savez(note(root, "cifar10.2") / "cifar102_test.npz", images=pixels, labels=labels.astype(np.int64))
    numbers = ten * 2
    write(note(root, "stl10") / "stl10_binary/test_X.bin", stl10_file([block(shown(c), 96) for c in numbers]))
    write(root / "stl10/stl10_binary/test_y.bin", bytes(c + 1 for c in numbers))
    digits = np.stack([block(-1, 32)] * 7).transpose(1, 2, 3, 0)
    scipy.io.savemat(note(root, "svhn") / "test_32x32.mat", {"X": digits, "y": np.full((7, 1), 10, np.uint8)})
    for name, files in OOD_FILES.items():
        for file in files:
            write(note(root, name) / file, jpeg(-1, 48))
    write(root / "textures/dtd/dtd/labels/test1.txt", b"banded/banded_0002.jpg\n")  # no split is used
    write(root / "places365/places365_val.txt", b"Places365_val_00000001.jpg 0\n")
    return root


@pytest.fixture(scope="module")
def load(root, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    return lambda **options: cifar10_benchmark(root, **{"val_per_class": 5, "cache": cache, **options})


def accuracies(benchmark):
    rows = accuracy_rows(compute_outputs(Seer(benchmark.class_names), benchmark, seed=1), 20)
    return {r["set"]: r["value"] for r in rows if r["metric"] == "accuracy"}


def copy_of(root, tmp_path):
    return shutil.copytree(root, tmp_path / "data")


def test_a_perfect_classifier_is_perfect_on_every_set(load):
    benchmark = load()
    assert tuple(benchmark.shifts) == SHIFTS and tuple(benchmark.ood) == OOD
    assert accuracies(benchmark) == {"test": 1.0, **dict.fromkeys(SHIFTS, 1.0), "mean of shifts": 1.0}
    assert Seer(CIFAR10).accuracy(benchmark.train) == Seer(CIFAR10).accuracy(benchmark.val) == 1.0
    assert {s.name: len(s) for s in benchmark.sets} == {
        "train": 150, "val": 50, "test": 30, "cifar10.1": 20, "cifar10.2": 20, "stl10": 18, "svhn": 7, "lsun-crop": 2,
        "lsun-resize": 3, "isun": 1, "textures": 2, "places365": 4,
    }  # fmt: skip
    assert {tuple(s.images.shape[1:]) for s in benchmark.sets} == {(3, 32, 32)}
    assert {s.role for s in benchmark.ood.values()} == {"far-ood"} and benchmark.test.role == "test"


def test_with_the_released_label_order_a_perfect_classifier_scores_two_thirds_on_stl10(load):
    assert load(stl10_order="as_released").shifts["stl10"].labels.tolist() == [0, 1, 2, 3, 4, 5, 6, 8, 9] * 2
    found = accuracies(load(stl10_order="as_released"))
    assert found["stl10"] == pytest.approx(2 / 3) and found["cifar10.2"] == 1.0


def test_monkeys_are_left_out(load):
    monkey = torch.from_numpy(block(MONKEY, 32)).permute(2, 0, 1)
    for order in ("cifar10", "as_released"):
        assert not (load(stl10_order=order).shifts["stl10"].images == monkey).flatten(1).all(1).any()


def test_another_size_is_the_same_for_every_set(load):
    benchmark = load(size=16)
    assert {tuple(s.images.shape[1:]) for s in benchmark.sets} == {(3, 16, 16)}
    assert accuracies(benchmark)["stl10"] == 1.0


def test_pixels_are_exactly_those_of_the_files(tmp_path):
    rng = np.random.default_rng(0)
    labels = np.arange(10)
    pixels = rng.integers(0, 256, (10, 32, 32, 3), np.uint8)
    large = rng.integers(0, 256, (10, 96, 96, 3), np.uint8)
    for name in BATCHES:
        write(tmp_path / "cifar-10-batches-py" / name, python2_batch(pixels, labels.tolist()))
    np.save(tmp_path / "cifar10.1_v6_data.npy", pixels)
    np.save(tmp_path / "cifar10.1_v6_labels.npy", labels)
    np.savez(tmp_path / "cifar102_test.npz", images=pixels, labels=labels)
    write(tmp_path / "stl10_binary/test_X.bin", stl10_file(large))
    write(tmp_path / "stl10_binary/test_y.bin", bytes(range(1, 11)))
    scipy.io.savemat(tmp_path / "test_32x32.mat", {"X": pixels.transpose(1, 2, 3, 0), "y": labels})
    assert np.array_equal(read_cifar10(tmp_path, train=False).pixels, pixels)
    assert np.array_equal(read_cifar10(tmp_path, train=True).pixels, np.concatenate([pixels] * 5))
    assert read_cifar10(tmp_path, train=True).labels.tolist() == labels.tolist() * 5
    assert np.array_equal(read_cifar10_1(tmp_path).pixels, pixels)
    assert np.array_equal(read_cifar10_2(tmp_path).pixels, pixels)
    assert np.array_equal(read_stl10(tmp_path).pixels, large[[c for c in range(10) if STL10[c] != "monkey"]])
    assert np.array_equal(read_svhn(tmp_path), pixels)


def test_torchvision_reads_the_same_out_of_the_made_up_batches(tmp_path, monkeypatch):
    pixels = np.random.default_rng(1).integers(0, 256, (10, 32, 32, 3), np.uint8)
    for name in BATCHES:
        write(tmp_path / "cifar-10-batches-py" / name, python2_batch(pixels, list(range(10))))
    write(tmp_path / "cifar-10-batches-py/batches.meta", pickle.dumps({"label_names": list(CIFAR10)}))
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    theirs = TORCHVISION_CIFAR10(str(tmp_path), train=True)
    ours = read_cifar10(tmp_path, train=True)
    assert np.array_equal(ours.pixels, theirs.data) and ours.labels.tolist() == theirs.targets


def test_the_training_batches_are_split_by_class_with_a_seed(load):
    first, again, other = load(), load(), load(seed=1)
    assert first.train.labels.bincount().tolist() == [15] * 10 and first.val.labels.bincount().tolist() == [5] * 10
    assert first.fingerprint == again.fingerprint
    assert load(per_class=3).train.labels.bincount().tolist() == [3] * 10
    assert other.train.labels.tolist() != first.train.labels.tolist()


def test_no_image_is_in_both_parts_and_shots_do_not_move_validation(tmp_path):
    pixels = np.random.default_rng(2).integers(0, 256, (200, 32, 32, 3), np.uint8)
    home = note(tmp_path, "cifar10") / "cifar-10-batches-py"
    for i, name in enumerate(BATCHES[:5]):
        write(home / name, python2_batch(pixels[40 * i : 40 * i + 40], list(range(10)) * 4))
    write(home / "test_batch", python2_batch(pixels[:10], list(range(10))))
    options = {"val_per_class": 5, "missing": "skip"}
    whole, few = (cifar10_benchmark(tmp_path, per_class=n, **options) for n in (None, 2))
    parts = [{x.numpy().tobytes() for x in s.images} for s in (whole.train, whole.val)]
    assert [len(part) for part in parts] == [150, 50] and not parts[0] & parts[1]
    assert torch.equal(few.val.images, whole.val.images)
    assert {x.numpy().tobytes() for x in few.train.images} < parts[0]


def test_a_subset_keeps_the_shares_of_classes(load):
    benchmark = load(subset=10)
    assert [len(s) for s in benchmark.sets] == [150, 10, 10, 10, 10, 10, 7, 2, 3, 1, 2, 4]
    for images in (benchmark.val, benchmark.test, benchmark.shifts["cifar10.1"]):
        assert images.labels.bincount().tolist() == [1] * 10
    assert benchmark.shifts["stl10"].labels.bincount(minlength=10)[6] == 0
    assert accuracies(benchmark)["mean of shifts"] == 1.0
    assert load(subset=10).fingerprint == benchmark.fingerprint != load(subset=10, seed=3).fingerprint


def test_prompts_of_row_13(load):
    assert load().templates == ("a photo of a {}.",)
    released = load(**DATA_SWITCHES["cifar10"]["as_released"])
    assert released.templates == ("a photo of a {}",)
    assert accuracies(released)["stl10"] == pytest.approx(2 / 3)
    assert load(templates=["{}"]).templates == ("{}",)
    ensemble = prompt_templates("ensemble")
    assert len(ensemble) == 7 and all(t.count("{}") == 1 for t in ensemble)


# What must not be trusted -------------------------------------------------------------------------------


class Runs:
    """Calls something when it is unpickled."""

    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


@pytest.mark.parametrize("call", ["os.system", "exec", "numpy.load", "nested"])
def test_a_malicious_batch_does_not_run(root, load, tmp_path, call):
    sign = tmp_path / "it-ran"
    np.save(tmp_path / "x.npy", np.arange(3))
    payload = {
        "os.system": Runs(os.system, f"touch {sign}"),
        "exec": Runs(exec, f"open({str(sign)!r}, 'w')"),
        "numpy.load": Runs(np.load, str(tmp_path / "x.npy"), "r"),
        "nested": {"data": np.zeros((1, 3072), np.uint8), "labels": [Runs(os.system, f"touch {sign}")]},
    }[call]
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        data = copy_of(root, tmp_path / str(protocol))
        write(data / "cifar10/cifar-10-batches-py/test_batch", pickle.dumps(payload, protocol))
        with pytest.raises(FileFormatError, match=r"test_batch cannot be read \(it asks for"):
            cifar10_benchmark(data, val_per_class=5, missing="skip", cache=tmp_path / "cache")
        assert not sign.exists()
    pickle.loads(pickle.dumps(payload))  # the payload itself works: an unguarded reader would have run it
    assert sign.exists() or call == "numpy.load"


def test_arrays_of_objects_are_refused(root, tmp_path):
    data, sign = copy_of(root, tmp_path), tmp_path / "it-ran"
    objects = np.array([Runs(os.system, f"touch {sign}")] * 20, dtype=object)
    np.save(data / "cifar10.1/cifar10.1_v6_labels.npy", objects, allow_pickle=True)
    with pytest.raises(FileFormatError, match=r"cifar10\.1_v6_labels\.npy cannot be read"):
        read_cifar10_1(data / "cifar10.1")
    np.savez(data / "cifar10.2/cifar102_test.npz", images=np.zeros((20, 32, 32, 3), np.uint8), labels=objects)
    with pytest.raises(FileFormatError, match=r"cifar102_test\.npz cannot be read"):
        read_cifar10_2(data / "cifar10.2")
    assert not sign.exists()


@pytest.mark.parametrize(
    ("file", "read"),
    [
        ("cifar10/cifar-10-batches-py/test_batch", lambda root: read_cifar10(root / "cifar10", train=False)),
        ("cifar10.1/cifar10.1_v6_data.npy", lambda root: read_cifar10_1(root / "cifar10.1")),
        ("cifar10.2/cifar102_test.npz", lambda root: read_cifar10_2(root / "cifar10.2")),
        ("stl10/stl10_binary/test_X.bin", lambda root: read_stl10(root / "stl10")),
        ("stl10/stl10_binary/test_y.bin", lambda root: read_stl10(root / "stl10")),
        ("svhn/test_32x32.mat", lambda root: read_svhn(root / "svhn")),
    ],
)
@pytest.mark.parametrize("damage", ["truncated", "empty", "gone"])
def test_damaged_files_are_named(root, tmp_path, file, read, damage):
    data = copy_of(root, tmp_path)
    path = data / file
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 if damage == "truncated" else 0])
    with pytest.raises(FileFormatError, match=r"test_X\.bin" if "stl10" in file else path.name):
        read(data)


def test_labels_out_of_range_are_refused(root, tmp_path):
    data = copy_of(root, tmp_path)
    write(data / "stl10/stl10_binary/test_y.bin", bytes([11] * 20))
    with pytest.raises(FileFormatError, match="not 1 to 10"):
        read_stl10(data / "stl10")
    np.save(data / "cifar10.1/cifar10.1_v6_labels.npy", np.full(20, 10))
    with pytest.raises(FileFormatError, match="no class numbers"):
        read_cifar10_1(data / "cifar10.1")


# What is not there --------------------------------------------------------------------------------------


def test_all_that_is_missing_is_listed_with_the_command_that_gets_it(root, tmp_path):
    data = copy_of(root, tmp_path)
    for name in ("svhn", "cifar10.2"):
        shutil.rmtree(data / name)
    with pytest.raises(NotThere) as caught:
        cifar10_benchmark(data, val_per_class=5)
    assert f"./data_download.sh --root {data} cifar10.2 svhn" in str(caught.value)
    assert "missing='skip'" in str(caught.value) and caught.value.exit_code == NotThere.exit_code


def test_what_is_missing_can_be_left_out_but_not_id_data(root, load, tmp_path, caplog):
    data = copy_of(root, tmp_path)
    for name in ("svhn", "stl10"):
        shutil.rmtree(data / name)
    with caplog.at_level(logging.WARNING):
        benchmark = cifar10_benchmark(data, val_per_class=5, missing="skip", cache=tmp_path / "cache")
    assert tuple(benchmark.shifts) == ("cifar10.1", "cifar10.2") and "svhn" not in benchmark.ood
    assert "left out: stl10, svhn are not in" in caplog.text
    shutil.rmtree(data / "cifar10")
    with pytest.raises(NotThere) as caught:
        cifar10_benchmark(data, missing="skip")
    assert "cifar10" in str(caught.value) and "missing='skip'" not in str(caught.value)


def test_every_set_of_the_group_is_read():
    members = {name for name, data in load_sources().data.items() if "cifar" in data.groups}
    assert members == {"cifar10", *SHIFTS, *OOD}


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"stl10_order": "stl10"}, UnknownName), ({"templates": "plane"}, UnknownName), ({"missing": "no"}, UnknownName),
        ({"subset": 0}, RPLibError), ({"size": 32.0}, RPLibError), ({"per_class": True}, RPLibError),
        ({"per_class": 16}, RPLibError), ({"val_per_class": 20}, RPLibError),
    ],
)  # fmt: skip
def test_options_that_do_not_fit_are_refused(load, options, error):
    with pytest.raises(error):
        load(**options)


# From class folders -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    top = tmp_path_factory.mktemp("folders")
    for part, n in (("train", 4), ("test", 2)):
        for c, name in enumerate(CIFAR10):
            for i in range(n):
                write(top / part / name / f"{i}.jpg", jpeg(c, 32))
    wnids = [*TINY_IMAGENET_TO_CIFAR10, "n01443537", "n04597913"]  # two that show no class of CIFAR-10
    lines = []
    for i, wnid in enumerate(reversed(wnids)):
        name = TINY_IMAGENET_TO_CIFAR10.get(wnid)
        pixels = jpeg(MONKEY if name is None else CIFAR10.index(name), 64)
        write(top / "by-annotation/images" / f"val_{i}.JPEG", pixels)
        write(top / "by-folder" / wnid / "images" / f"{i}.JPEG", pixels)
        lines.append(f"val_{i}.JPEG\t{wnid}\t0\t0\t62\t62\n")
    write(top / "by-annotation/val_annotations.txt", "".join(lines).encode())
    write(top / "ood/x.png", png(64))
    return top


def png(side):
    buffer = io.BytesIO()
    Image.fromarray(block(-1, side)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("layout", ["by-annotation", "by-folder"])
def test_tiny_imagenet_is_a_shift_of_cifar10(folders, layout, tmp_path):
    benchmark = cifar10_from_folders(
        folders / "train", folders / "test", tiny_imagenet=folders / layout, ood={"texture": folders / "ood"},
        val_per_class=1, cache=tmp_path,
    )  # fmt: skip
    shift = benchmark.shifts["tiny-imagenet"]
    assert accuracies(benchmark) == {"test": 1.0, "tiny-imagenet": 1.0, "mean of shifts": 1.0}
    assert len(shift) == 23 and shift.class_subset is None
    assert shift.labels.bincount(minlength=10).tolist() == [0, 4, 4, 3, 0, 6, 2, 0, 2, 2]
    assert [len(s) for s in benchmark.sets] == [30, 10, 20, 23, 1]


def test_folders_that_do_not_fit_are_refused(folders, tmp_path):
    options = {"val_per_class": 1, "cache": tmp_path}
    with pytest.raises(FolderError, match="class folders airplane"):
        cifar10_from_folders(folders / "by-folder", folders / "test", **options)
    with pytest.raises(FolderError, match="shows none of n01641577"):
        cifar10_from_folders(folders / "train", folders / "test", tiny_imagenet=folders / "test", **options)
    with pytest.raises(RPLibError, match="two image sets"):
        cifar10_from_folders(folders / "train", folders / "test", ood={"test": folders / "ood"}, **options)
