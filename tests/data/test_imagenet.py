"""The ImageNet benchmark from a made-up folder of the real layout: 1000 classes, one or two images each."""

import logging
import os
import re
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import torch
from open_clip import IMAGENET_CLASSNAMES, SimpleTokenizer
from photo_world import Seer, jpeg, note, write
from timm.data import ImageNetInfo

import rp_lib.data.pixel_cache
from rp_lib import RPLibError
from rp_lib.data import FolderError, NotThere, load_sources
from rp_lib.data.class_names import DATA_SWITCHES, imagenet_class_names, imagenet_wnids
from rp_lib.data.imagenet import OOD_FOLDERS, SHIFTS, imagenet_benchmark
from rp_lib.data.splits import draw, shots
from rp_lib.evaluation import accuracy_rows
from rp_lib.outputs import compute_outputs
from rp_lib.utils.errors import UnknownName

WNIDS = imagenet_wnids()
OF_R = tuple(range(1, 1000, 5))  # made up: which 200 classes they show
OF_A = tuple(range(3, 1000, 5))
SIDE = 8


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root, later = tmp_path_factory.mktemp("imagenet"), time.time() + 86_400
    for name in ("imagenet-1k", *SHIFTS, *OOD_FOLDERS):
        note(root, name)
    for c, wnid in enumerate(WNIDS):
        data = jpeg(c, SIDE)
        for i in range(2):
            write(root / f"imagenet-1k/train/{wnid}/{wnid}_{i}.JPEG", data)
        write(root / f"imagenet-1k/val/{wnid}/ILSVRC2012_val_{c:08}.JPEG", data)
        write(root / f"imagenet-v2/imagenetv2-matched-frequency-format-val/{c}/0.jpeg", data)
        write(root / f"imagenet-sketch/sketch/{wnid}/sketch_0.JPEG", data)
        if c in OF_R:
            write(root / f"imagenet-r/imagenet-r/{wnid}/art_0.jpg", data)
            write(root / f"imagenet-r/imagenet-r/{wnid}/toy_0.jpg", data)
        if c in OF_A:
            write(root / f"imagenet-a/imagenet-a/{wnid}/0.1_x_0.2.jpg", data)
    write(root / "imagenet-r/imagenet-r/README.txt", b"two hundred classes")
    write(root / "imagenet-a/imagenet-a/README.txt", b"two hundred classes")
    for name, file in (("inaturalist", "iNaturalist/images"), ("sun", "SUN/images"), ("places", "Places/images")):
        for i in range(3):
            write(root / name / file / f"{i}.jpg", jpeg(-1, SIDE))
    write(root / "textures/dtd/dtd/images/banded/banded_0002.jpg", jpeg(-1, SIDE))
    # The cache remembers hashes of settled files, one synced write for each of the 4400 folders: slow, and tested elsewhere.
    for folder, _, files in os.walk(root):
        for file in files:
            os.utime(Path(folder) / file, (later, later))
    return root


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def load(root, cache):
    return lambda **options: imagenet_benchmark(root, **{"size": SIDE, "val_per_class": 1, "cache": cache, **options})


@pytest.fixture(scope="module")
def benchmark(load):
    return load()


def accuracies(benchmark, shadow=None):
    outputs = compute_outputs(Seer(benchmark.class_names, shadow=shadow), benchmark, seed=1, roles=("test", "shift"))
    return {r["set"]: r["value"] for r in accuracy_rows(outputs, 10) if r["metric"] == "accuracy"}


def test_a_perfect_classifier_is_perfect_on_every_set(benchmark):
    assert tuple(benchmark.shifts) == SHIFTS and tuple(benchmark.ood) == tuple(OOD_FOLDERS)
    assert accuracies(benchmark) == {"test": 1.0, **dict.fromkeys(SHIFTS, 1.0), "mean of shifts": 1.0}
    seer = Seer(benchmark.class_names)
    assert seer.accuracy(benchmark.train) == seer.accuracy(benchmark.val) == 1.0
    assert [len(s) for s in benchmark.sets] == [1000, 1000, 1000, 1000, 400, 200, 1000, 3, 3, 3, 1]
    assert {tuple(s.images.shape[1:]) for s in benchmark.sets} == {(3, SIDE, SIDE)}
    assert benchmark.train.labels.bincount().tolist() == [1] * 1000


def test_the_numbered_folders_of_v2_are_numbers(benchmark):
    # Sorted as text, '10' stands behind '1' and a perfect classifier scores almost nothing.
    assert benchmark.shifts["imagenet-v2"].labels.tolist() == list(range(1000))
    assert sorted(map(str, range(1000))).index("10") == 2


def test_r_and_a_are_scored_among_their_200_classes(benchmark, load):
    class_subset = {name: s.class_subset for name, s in benchmark.shifts.items()}
    assert class_subset == {"imagenet-v2": None, "imagenet-r": OF_R, "imagenet-a": OF_A, "imagenet-sketch": None}
    # A classifier that always puts class 0 first, which neither shows, and the right class second.
    misled = accuracies(benchmark, shadow=0)
    assert misled["imagenet-r"] == misled["imagenet-a"] == 1.0 and misled["imagenet-v2"] == 0.001
    released = load(**DATA_SWITCHES["imagenet"]["as_released"], subset=100)
    assert {s.class_subset for s in released.shifts.values()} == {None}
    misled = accuracies(released, shadow=0)
    assert misled["imagenet-r"] == misled["imagenet-a"] == 0.0
    assert accuracies(released)["imagenet-r"] == 1.0


def test_nothing_is_decoded_twice_and_all_is_mapped(load, benchmark, monkeypatch):
    def refuse(*_):
        raise AssertionError("decoded again")

    monkeypatch.setattr(rp_lib.data.pixel_cache, "decode", refuse)
    again = load()
    assert again.fingerprint == benchmark.fingerprint
    assert all(s.content is not None for s in again.sets)
    with pytest.raises(AssertionError, match="decoded again"):
        load(size=4, subset=1)


def test_subsets_are_drawn_with_a_seed(load):
    few = load(per_class=1, subset=100)
    assert [len(s) for s in few.sets] == [1000, 100, 100, 100, 100, 100, 100, 3, 3, 3, 1]
    assert few.train.labels.tolist() == list(range(1000))
    assert few.test.labels.bincount().max() == 1
    assert few.shifts["imagenet-a"].class_subset == OF_A  # all 200, not the classes that were drawn
    assert accuracies(few)["mean of shifts"] == 1.0


def test_shots_are_drawn_for_each_class():
    labels = torch.arange(60) % 3
    for train, n in ((None, 16), (5, 5)):
        first, aside = shots(labels, train, 4, 0)
        assert labels[first].bincount().tolist() == [n] * 3 and labels[aside].bincount().tolist() == [4] * 3
        assert not set(first.tolist()) & set(aside.tolist())
        assert torch.equal(aside, shots(labels, None, 4, 0)[1]) and not torch.equal(aside, shots(labels, None, 4, 1)[1])
    with pytest.raises(RPLibError, match="class 0 has 20 training images, too few for 17 to train and 4"):
        shots(labels, 17, 4, 0)


def test_ten_thousand_of_fifty_thousand_are_ten_of_each_class():
    labels = torch.arange(50_000) % 1000
    assert labels[draw(labels, 50_000, 10_000, 0)].bincount().tolist() == [10] * 1000
    uneven = torch.repeat_interleave(torch.arange(3), torch.tensor([600, 300, 100]))
    counts = uneven[draw(uneven, 1000, 100, 0)].bincount().tolist()
    assert all(abs(n - share) <= 1 for n, share in zip(counts, (60, 30, 10), strict=True)) and sum(counts) == 100
    plain = [draw(None, 1000, 100, seed) for seed in (0, 0, 1)]
    assert torch.equal(plain[0], plain[1]) and not torch.equal(plain[0], plain[2])
    assert len(plain[0].unique()) == 100 and plain[0].tolist() == sorted(plain[0].tolist())


# Names ----------------------------------------------------------------------------------------------------


def test_names_stand_in_the_order_of_the_wordnet_ids():
    info = ImageNetInfo()
    words = [set(re.findall("[a-z]+", info.label_name_to_description(wnid).lower())) for wnid in WNIDS]
    names = [set(re.findall("[a-z]+", name.lower())) for name in imagenet_class_names()]
    alike = sum(bool(a & b) for a, b in zip(words, names, strict=True))
    shifted = sum(bool(a & b) for a, b in zip(words, names[1:], strict=False))
    assert alike > 900 and shifted < 300
    assert (WNIDS[0], WNIDS[-1], len(WNIDS)) == ("n01440764", "n15075141", 1000)  # tench, toilet tissue


def test_two_pairs_of_classes_share_openais_names():
    repeated = [i for i, name in enumerate(IMAGENET_CLASSNAMES) if IMAGENET_CLASSNAMES.count(name) > 1]
    assert repeated == [657, 744, 836, 837]
    names = imagenet_class_names()
    assert len({" ".join(name.casefold().split()) for name in names}) == 1000
    assert [i for i, name in enumerate(names) if name != IMAGENET_CLASSNAMES[i]] == [744, 836]
    assert [names[i] for i in repeated] == ["missile", "projectile", "sunglass", "sunglasses"]


def test_the_released_names_are_998_prompts():
    tokens = SimpleTokenizer()
    for template, names in (("a photo of a {}", "as_released"), ("a photo of a {}.", "as_released")):
        prompts = tokens([template.format(name) for name in imagenet_class_names(names)])
        assert len(prompts.unique(dim=0)) == 998
        assert torch.equal(prompts[657], prompts[744]) and torch.equal(prompts[836], prompts[837])
    assert len(tokens([f"a photo of a {name}." for name in imagenet_class_names()]).unique(dim=0)) == 1000


# What does not fit ----------------------------------------------------------------------------------------


@contextmanager
def moved(path, to):
    path.rename(to)
    try:
        yield
    finally:
        to.rename(path)


V2 = "imagenet-v2/imagenetv2-matched-frequency-format-val"


@pytest.mark.parametrize(
    ("folder", "to", "message"),
    [
        (f"imagenet-1k/val/{WNIDS[7]}", None, f"999 class folders.*there is no {WNIDS[7]}"),
        (f"imagenet-1k/train/{WNIDS[7]}", "imagenet-1k/train/n99999999", "none of ImageNet.*n99999999"),
        (f"imagenet-r/imagenet-r/{WNIDS[OF_R[0]]}", None, "199 class folders instead of 200"),
        (f"{V2}/10", None, "must have the folders 0 to 999; there is no 10"),
        (f"{V2}/10", f"{V2}/1000", "must have the folders 0 to 999; there is no 10"),
        (f"{V2}/10", f"{V2}/ten", "should be numbers"),
        (f"imagenet-sketch/sketch/{WNIDS[0]}", None, f"there is no {WNIDS[0]}"),
    ],
)
def test_folders_that_are_not_imagenets_are_refused_before_anything_is_decoded(
    root, load, tmp_path, monkeypatch, folder, to, message
):
    monkeypatch.setattr("rp_lib.data.splits.load_images", None)
    aside = tmp_path / "aside" if to is None else root / to
    with moved(root / folder, aside), pytest.raises(FolderError, match=message):
        load()


def test_what_is_missing_is_listed_or_left_out(root, load, tmp_path, caplog):
    with ExitStack() as stack:
        for name in ("imagenet-sketch", "sun", "imagenet-a"):
            stack.enter_context(moved(root / name, tmp_path / name))
        with pytest.raises(NotThere) as caught:
            load()
        with caplog.at_level(logging.WARNING):
            own = {"class_names": [f"class {i}" for i in range(1000)], "templates": ["the {}"]}
            benchmark = load(missing="skip", per_class=1, subset=100, **own)
    assert f"./data_download.sh --root {root} imagenet-a sun; imagenet-sketch: follow" in str(caught.value)
    assert tuple(benchmark.shifts) == ("imagenet-v2", "imagenet-r") and "sun" not in benchmark.ood
    assert benchmark.class_names[10] == "class 10" and benchmark.templates == ("the {}",)
    assert "left out: imagenet-a, imagenet-sketch, sun are not in" in caplog.text


def test_imagenet_itself_is_needed(tmp_path):
    with pytest.raises(NotThere, match="imagenet-1k: fetch it with an account"):
        imagenet_benchmark(tmp_path, missing="skip")


def test_every_set_of_the_group_is_read():
    members = {name for name, data in load_sources().data.items() if "imagenet" in data.groups}
    assert members == {"imagenet-1k", *SHIFTS, *OOD_FOLDERS}


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"class_names": "openai"}, UnknownName), ({"templates": "x"}, UnknownName), ({"missing": "x"}, UnknownName),
        ({"subset": -1}, RPLibError), ({"val_per_class": 2}, RPLibError), ({"class_names": ["a", "b"]}, RPLibError),
    ],
)  # fmt: skip
def test_options_that_do_not_fit_are_refused(load, options, error):
    with pytest.raises(error):
        load(**options)
