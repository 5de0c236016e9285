"""A reader's own folders as a benchmark: what it makes of them, and what it refuses."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder

from rp_lib.benchmark import Benchmark
from rp_lib.data import (
    BrokenImages,
    FolderError,
    SharedImages,
    from_folders,
    image_files,
    image_folder,
    load_images,
)
from rp_lib.data.own_folders import split_classes
from rp_lib.data.splits import name_classes
from rp_lib.utils.errors import RPLibError

CLASSES = ("cat", "guinea_pig", "zebra")


def draw(path: Path, seed: int, mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((20, 16), Image.Resampling.BICUBIC).convert(mode).save(path)
    return path


def fill(root: Path, classes=CLASSES, n: int = 4, start: int = 0) -> Path:
    for c, name in enumerate(classes):
        for i in range(n):
            draw(root / name / f"{i:02}.png", start + 100 * c + i)
    return root


@pytest.fixture
def world(tmp_path) -> dict[str, Path]:
    """Train, test, val, one shift and one OOD set; no picture twice."""
    return {
        "train": fill(tmp_path / "train", n=6),
        "test": fill(tmp_path / "test", n=3, start=1000),
        "val": fill(tmp_path / "val", n=2, start=2000),
        "sketch": fill(tmp_path / "sketch", n=2, start=3000),
        "textures": fill(tmp_path / "textures", ("dots", "lines"), n=2, start=4000),
        "cache": tmp_path / "cache",
    }


def make(world, *, drop=(), **changes) -> Benchmark:
    options = {
        "train": world["train"], "test": world["test"], "val": world["val"], "shifts": {"sketch": world["sketch"]},
        "ood": {"textures": world["textures"]}, "size": 16, "cache": world["cache"], "progress": False,
    } | changes  # fmt: skip
    return from_folders("pets", **{key: value for key, value in options.items() if key not in drop})


# Listing


def test_order_of_torchvision(tmp_path):
    root = tmp_path / "x"
    for i, name in enumerate(
        ["b/10.png", "b/9.JPG", "B/x.png", "a10/1.png", "a9/sub/2.png", "a9/1.png", "a9/tub/0.bmp"]
    ):
        draw(root / name, i)
    draw(root / "a9" / "z.jpeg", 77)
    reference, found = ImageFolder(root), image_folder(root)
    assert [str(path) for path in found.paths] == [path for path, _ in reference.samples]
    assert found.labels.tolist() == reference.targets and list(found.classes) == reference.classes
    assert found.labels.dtype == torch.int64


def test_hidden_and_other_files_are_ignored(tmp_path):
    root = fill(tmp_path / "x")
    before = image_folder(root).paths
    (root / "cat" / ".hidden.png").write_bytes(b"")
    (root / "cat" / "._00.png").write_bytes(b"")
    (root / "cat" / "notes.txt").write_text("")
    (root / "README.md").write_text("")
    (root / ".DS_Store").write_text("")
    draw(root / ".thumbnails" / "a.png", 1)
    draw(root / "cat" / ".cache" / "a.png", 1)
    assert image_folder(root).paths == before == image_files(root)


def test_a_link_to_a_folder_above_ends(tmp_path):
    root = fill(tmp_path / "x")
    (root / "cat" / "again").symlink_to(root / "cat", target_is_directory=True)
    assert len(image_folder(root).paths) == 12


def test_numeric_order(tmp_path):
    root = fill(tmp_path / "x", ("10", "9", "0"), n=1)
    assert image_folder(root, numeric=True).classes == ("0", "9", "10")
    assert image_folder(root).classes == ("0", "10", "9")
    draw(root / "09" / "a.png", 7)
    with pytest.raises(FolderError, match="more than one class folder for the number 9"):
        image_folder(root, numeric=True)
    shutil.rmtree(root / "09")
    draw(root / "ten" / "a.png", 7)
    with pytest.raises(FolderError, match="should be numbers, but there is ten"):
        image_folder(root, numeric=True)


def test_bad_class_folders(tmp_path):
    root = fill(tmp_path / "x")
    (root / "dog").mkdir()
    (root / "emu" / ".x").mkdir(parents=True)
    with pytest.raises(FolderError, match="no image in the class folders dog, emu"):
        image_folder(root)
    draw(root / "stray.PNG", 5)
    with pytest.raises(FolderError, match=r"stray\.PNG lies in .* beside the class folders"):
        image_folder(root)
    with pytest.raises(FolderError, match="does not exist"):
        image_folder(tmp_path / "nowhere")
    with pytest.raises(FolderError, match="no class folders"):
        image_folder(tmp_path / "x" / "dog")
    with pytest.raises(FolderError, match="holds no image"):
        image_files(tmp_path / "x" / "dog")
    with pytest.raises(FolderError, match="is no folder"):
        image_files(root / "stray.PNG")


def test_pictures_that_are_not_read_are_not_lost(tmp_path):
    root = fill(tmp_path / "x")
    (root / "cat" / "phone.HEIC").write_bytes(b"x")
    with pytest.raises(FolderError, match=r"phone\.HEIC.*convert"):
        image_folder(root)


# What it makes


def test_everything_in_its_place(world):
    found = make(world)
    assert found.name == "pets" and found.class_names == ("cat", "guinea pig", "zebra")
    assert found.templates == ("a photo of a {}.",)
    table = found.describe().set_index("set")
    assert table["n"].to_dict() == {"train": 18, "val": 6, "test": 9, "sketch": 6, "textures": 4}
    assert table["role"].to_dict() == {
        "train": "train", "val": "val", "test": "test", "sketch": "shift", "textures": "far-ood",
    }  # fmt: skip
    assert found.test.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    expected = load_images(image_folder(world["test"]).paths, 16, cache=world["cache"])
    assert torch.equal(found.test.images, expected.images) and found.test.content == expected.content
    assert found.fingerprint == make(world).fingerprint
    assert found.shifts["sketch"].class_subset is None


def test_as_many_lines_as_promised(world, monkeypatch):
    monkeypatch.setenv("RP_CACHE", str(world["cache"]))
    found = from_folders(
        train=world["train"],
        shifts={"sketch": world["sketch"]},
        ood={"textures": world["textures"]},
    )
    assert found.train.images.shape[1:] == (3, 224, 224)


def test_shift_folders_are_matched_by_name(world):
    """Its classes are fewer, so that positions in its own order would be other classes."""
    shutil.rmtree(world["sketch"] / "cat")
    found = make(world, missing="all").shifts["sketch"]
    assert found.labels.tolist() == [1, 1, 2, 2] and found.class_subset is None
    assert make(world, missing="among").shifts["sketch"].class_subset == (1, 2)


def test_given_names(world):
    mapping = {"cat": "tabby", "guinea_pig": "cavy", "zebra": "zebra", "unused": "x"}
    assert make(world, class_names=mapping).class_names == ("tabby", "cavy", "zebra")
    assert make(world, class_names=["tabby", "cavy", "zebra"]).class_names == ("tabby", "cavy", "zebra")


def test_numeric_classes(tmp_path, world):
    train = fill(tmp_path / "n", ("10", "9"), n=4, start=7000)
    found = make(world, train=train, numeric=True, class_names=["nine", "ten"], drop=("test", "val", "shifts"))
    assert found.class_names == ("nine", "ten")
    nine = load_images([train / "9" / "00.png"], 16, cache=world["cache"]).images[0]
    everything = [(s.images[i], int(s.labels[i])) for s in (found.train, found.val, found.test) for i in range(len(s))]
    assert [label for image, label in everything if torch.equal(image, nine)] == [0]


def test_ood_straight_in_the_folder(world, tmp_path):
    for i in range(3):
        draw(tmp_path / "flat" / f"{i}.png", 5000 + i)
    draw(world["textures"] / "straight.png", 5100)
    found = make(world, ood={"flat": tmp_path / "flat", "both": world["textures"]}, near=["flat"])
    assert len(found.ood["flat"]) == 3 and found.ood["flat"].role == "near-ood" and found.ood["flat"].names is None
    assert len(found.ood["both"]) == 5 and found.ood["both"].role == "far-ood"


def test_near_ood_says_what_it_shows(world):
    (world["textures"] / "dots").rename(world["textures"] / "polka_dots")
    found = make(world, near=["textures"]).ood["textures"]
    assert found.names == ["lines", "lines", "polka dots", "polka dots"]


def test_copies_within_a_set_share_a_group(world):
    shutil.copyfile(world["test"] / "zebra" / "00.png", world["test"] / "zebra" / "09.png")
    with Image.open(world["test"] / "zebra" / "00.png") as image:
        image.save(world["test"] / "zebra" / "10.bmp")  # other bytes, the same pixels
    assert make(world).test.groups.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 6, 6]


# Splits


def identities(found) -> list[bytes]:
    return [image.numpy().tobytes() for image in found.images]


def test_split_of_train(world, capsys):
    found = make(world, val_fraction=0.2, test_fraction=0.3, drop=("val", "test"), progress=True)
    assert [torch.bincount(s.labels).tolist() for s in (found.train, found.val, found.test)] == [
        [3] * 3,
        [1] * 3,
        [2] * 3,
    ]
    parts = [identities(s) for s in (found.train, found.val, found.test)]
    whole = load_images(image_folder(world["train"]).paths, 16, cache=world["cache"])
    assert sorted(parts[0] + parts[1] + parts[2]) == sorted(image.numpy().tobytes() for image in whole.images)
    assert "0.2 of every class, seed 0" in capsys.readouterr().out
    again = make(world, val_fraction=0.2, test_fraction=0.3, drop=("val", "test"))
    other = make(world, val_fraction=0.2, test_fraction=0.3, drop=("val", "test"), seed=1)
    assert again.fingerprint == found.fingerprint != other.fingerprint


def test_only_what_is_not_given_is_split(world):
    found = make(world, drop=("val",))
    assert [len(s) for s in (found.train, found.val, found.test)] == [15, 3, 9]
    found = make(world, drop=("test",))
    assert [len(s) for s in (found.train, found.val, found.test)] == [15, 6, 3]


def test_copies_stay_on_one_side(world):
    for i in range(6):
        for j in (10, 20, 30):
            shutil.copyfile(world["train"] / "cat" / f"{i:02}.png", world["train"] / "cat" / f"{i + j:02}.png")
    for seed in range(5):
        found = make(world, drop=("val", "test"), seed=seed)
        parts = [set(identities(s)) for s in (found.train, found.val, found.test)]
        assert not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]
        assert len(found.train) + len(found.val) + len(found.test) == 36


def test_recoded_copies_stay_on_one_side(world):
    for i in range(6):
        with Image.open(world["train"] / "cat" / f"{i:02}.png") as image:
            image.save(world["train"] / "cat" / f"{i:02}.bmp")
    for seed in range(4):
        found = make(world, drop=("val", "test"), seed=seed, val_fraction=0.3, test_fraction=0.3)
        parts = [set(identities(s)) for s in (found.train, found.val, found.test)]
        assert not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]
        assert [len(s) for s in (found.train, found.val, found.test)] == [8, 8, 8]


def test_too_few_to_split(world):
    for i in range(2, 6):
        (world["train"] / "zebra" / f"{i:02}.png").unlink()
    shutil.copyfile(world["train"] / "zebra" / "00.png", world["train"] / "zebra" / "02.png")
    with pytest.raises(RPLibError, match="keep val and test aside: 'zebra' has 2; add images"):
        make(world, drop=("val", "test"))
    labels = torch.zeros(4, dtype=torch.int64)
    with pytest.raises(RPLibError, match="nothing is left to train on"):
        split_classes(labels, [b"0", b"1", b"2", b"3"], {"val": 0.6, "test": 0.39}, ["only"], 0)


# What it refuses


def test_unknown_and_missing_class_folders(world):
    (world["sketch"] / "zebra").rename(world["sketch"] / "zebras")
    (world["sketch"] / "cat").rename(world["sketch"] / "Cat")
    with pytest.raises(
        FolderError, match=r"'sketch'.*'Cat' \(did you mean 'cat'\?\), 'zebras' \(did you mean 'zebra'\?\)"
    ):
        make(world, missing="all")
    shutil.rmtree(world["sketch"])
    fill(world["sketch"], CLASSES[:1], n=2, start=3000)
    with pytest.raises(
        FolderError, match=r"'sketch'.*no folder for 2 of 3 classes: guinea_pig, zebra.*missing='among'"
    ):
        make(world)


def test_classes_of_test_and_val(world):
    shutil.rmtree(world["test"] / "cat")
    with pytest.raises(FolderError, match=r"'test'.*cat"):
        make(world)
    fill(world["test"], ("cat", "dog"), n=1, start=8000)
    with pytest.raises(FolderError, match=r"'test'.*does not have: 'dog'"):
        make(world)


def test_numbered_shift_of_named_classes(world, tmp_path):
    shift = fill(tmp_path / "v2", ("0", "1", "2"), n=1, start=9000)
    with pytest.raises(FolderError, match=r"does not have: '0', '1', '2'. Its classes are cat, guinea_pig, zebra"):
        make(world, shifts={"v2": shift})


def test_empty_class(world):
    shutil.rmtree(world["sketch"] / "zebra")
    (world["sketch"] / "zebra").mkdir()
    with pytest.raises(FolderError, match="sketch has no image in the class folder zebra"):
        make(world, missing="all")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a", "b"], "2 names for 3 class folders"),
        ("cat", "class_names of from_folders must be Mapping"),
        (["zebra", "cat", "guinea pig"], r"gives 'zebra' to the folder 'cat', but there is a folder 'zebra'.*order"),
        (["Guinea Pig", "cavy", "zebra"], r"gives 'Guinea Pig' to the folder 'cat'"),
        ({"cat": "a", "guinea_pgi": "b", "zebra": "c"}, r"'guinea_pig' \(did you mean 'guinea_pgi'\?\)"),
        (["a", "A ", "b"], "'cat' and 'guinea_pig' give the same prompt 'a photo of a A .'"),
        (["a", " ", "b"], "texts that are not empty, got ' '"),
        ({"cat": "a", "guinea_pig": None, "zebra": "c"}, "class_names of from_folders must be Mapping"),
    ],
)
def test_bad_names(world, names, message):
    with pytest.raises(RPLibError, match=message):
        make(world, class_names=names)


def test_folders_that_give_the_same_prompt(world):
    draw(world["train"] / "guinea pig" / "a.png", 9)
    with pytest.raises(RPLibError, match=r"'guinea pig' and 'guinea_pig' give the same prompt 'a photo of a guinea pig.'"):
        make(world)


def test_bad_templates(world):
    with pytest.raises(RPLibError, match=r"'A \{\}' stands twice"):
        make(world, templates=["a {}", "A {}"])
    for templates in (["no place"], [], ["{} and {}"]):
        with pytest.raises(RPLibError, match=r"needs exactly one \{\}|one prompt template"):
            make(world, templates=templates)
    assert not world["cache"].exists()  # before anything is decoded
    assert make(world, templates="a {}").templates == ("a {}",)


def test_ood_that_is_named_like_a_class(world):
    draw(world["textures"] / "Guinea Pig" / "a.png", 9)
    with pytest.raises(FolderError, match=r"OOD set 'textures'.*named like classes: Guinea Pig"):
        make(world)


@pytest.mark.parametrize("source", ["train", "val", "test", "sketch"])
@pytest.mark.parametrize("way", ["same file", "same pixels"])
def test_ood_that_shares_images(world, source, way):
    original, copy = (
        world[source] / "zebra" / "01.png",
        world["textures"] / "dots" / f"copy{'.png' if way == 'same file' else '.bmp'}",
    )
    if way == "same file":
        shutil.copyfile(original, copy)
    else:
        with Image.open(original) as image:
            image.save(copy)
    message = (
        rf"OOD set 'textures' shares 1 of its 5 images with '{source}': {re.escape(f'{copy} = {original}')} .*{way}"
    )
    with pytest.raises(SharedImages, match=message):
        make(world)
    dropped = make(world, duplicates="drop")
    assert len(dropped.ood["textures"]) == 4 and len(dropped.train) == 18
    shutil.os.remove(copy)
    assert dropped.fingerprint == make(world).fingerprint


@pytest.mark.parametrize(
    ("earlier", "later"), [("train", "val"), ("train", "test"), ("val", "test"), ("test", "sketch")]
)
def test_leakage(world, earlier, later):
    shutil.copyfile(world[earlier] / "cat" / "00.png", world[later] / "cat" / "leak.png")
    with pytest.raises(SharedImages, match=rf"^'{later}' shares 1 .* with '{earlier}': .*leak\.png = .*00\.png"):
        make(world)
    sets = {s.name: s for s in make(world, duplicates="drop").sets}
    assert not set(identities(sets[earlier])) & set(identities(sets[later]))
    assert len(sets["train"]) == 18


def test_dropping_must_leave_every_class(world):
    shutil.rmtree(world["test"] / "cat")
    shutil.copytree(world["train"] / "cat", world["test"] / "cat")
    with pytest.raises(FolderError, match="'test' has no image of cat but copies"):
        make(world, duplicates="drop")
    with pytest.raises(FolderError, match="every image of 'same'"):
        make(world, ood={"same": world["train"] / "zebra"}, duplicates="drop")


def test_a_picture_in_two_classes(world):
    shutil.copyfile(world["train"] / "cat" / "00.png", world["train"] / "zebra" / "copy.png")
    for options in ({}, {"duplicates": "drop"}, {"drop": ("val", "test")}):
        with pytest.raises(
            SharedImages, match=r"cat/00\.png \('cat'\) and .*copy\.png \('zebra'\)|copy\.png \('zebra'\) and"
        ):
            make(world, **options)
    (world["train"] / "zebra" / "copy.png").unlink()
    shutil.copyfile(world["train"] / "cat" / "00.png", world["sketch"] / "zebra" / "copy.png")
    with pytest.raises(SharedImages, match="1 pictures stand in two classes"):
        make(world, duplicates="drop")


def test_two_ood_sets_may_share(world, tmp_path):
    shutil.copytree(world["textures"], tmp_path / "again")
    both = {"a": world["textures"], "b": tmp_path / "again"}
    with pytest.raises(RPLibError, match="'a' and 'b' hold the same images"):
        make(world, ood=both)
    next((tmp_path / "again").rglob("*.png")).unlink()
    assert len(make(world, ood=both).ood["b"]) == 3


def test_greyscale(world):
    grey = [draw(world["train"] / "cat" / "90.png", 9000, "L"), draw(world["textures"] / "dots" / "91.png", 9001, "LA")]
    with pytest.raises(RPLibError, match=r"2 images are greyscale \(1 of 'train', 1 of 'textures'\)") as caught:
        make(world)
    assert all(str(path) in str(caught.value) for path in grey) and "greyscale='convert'" in str(caught.value)
    found = make(world, greyscale="convert")
    image = found.train.images[6]
    assert len(found.train) == 19 and torch.equal(image[0], image[1]) and torch.equal(image[0], image[2])


def test_broken_files_of_all_sets(world):
    broken = [
        world["train"] / "cat" / "00.png",
        world["sketch"] / "zebra" / "01.png",
        world["textures"] / "dots" / "00.png",
    ]
    for path in broken:
        path.write_bytes(path.read_bytes()[:200])
    broken[0].write_bytes(b"")
    with pytest.raises(BrokenImages, match="3 of 43 images") as caught:
        make(world)
    assert all(str(path) in str(caught.value) for path in broken)
    with pytest.raises(BrokenImages, match="3 of 28"):
        make(world, drop=("val", "test"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"missing": "allow"}, r"missing of from_folders must be Literal\['refuse', 'among', 'all'\], got 'allow'"),
        ({"duplicates": "keep"}, "duplicates of from_folders must be"),
        ({"greyscale": "no"}, "greyscale of from_folders must be"),
        ({"near": ["texture"]}, "did you mean textures"),
    ],
)
def test_unknown_options(world, options, message):
    with pytest.raises(RPLibError, match=message):
        make(world, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"near": "textures"}, "near of from_folders must be Collection"),
        ({"val_fraction": 0.0}, "fraction"),
        ({"val_fraction": 0.5, "test_fraction": 0.5}, "fraction"),
        ({"train": "nowhere"}, "nowhere does not exist"),
    ],
)
def test_bad_options(world, options, message):
    with pytest.raises(RPLibError, match=message):
        make(world, **options)


def test_set_names_are_distinct(world):
    with pytest.raises(RPLibError, match="'test' stands for two"):
        make(world, shifts={"test": world["sketch"]})
    with pytest.raises(RPLibError, match="'x' stands for two"):
        make(world, shifts={"x": world["sketch"]}, ood={"x": world["textures"]})


def test_nothing_is_decoded_before_the_folders_are_right(world, monkeypatch):
    from rp_lib.data import own_folders as assemble

    def fail(*args, **options):
        raise AssertionError("loaded")

    monkeypatch.setattr(assemble, "load_images", fail)
    with pytest.raises(FolderError, match="nowhere"):
        make(world, ood={"textures": world["textures"], "other": "nowhere"})


def test_the_name_of_a_file_may_be_no_text(world):
    path = Path(os.fsdecode(os.fsencode(world["train"] / "cat") + b"/\xff\xfe.png"))
    path.write_bytes(draw(world["cache"] / "x.png", 4711).read_bytes())
    assert len(make(world).train) == 19


# Draws, and OOD sets of several folders


def test_a_draw_is_part_of_the_whole_and_keeps_its_split(world):
    whole, small = make(world, drop=("val",)), make(world, drop=("val",), subset=4, per_class=2)
    assert [len(s) for s in small.sets] == [6, 3, 4, 4, 4]
    assert small.train.labels.bincount().tolist() == [2, 2, 2]
    assert small.test.labels.bincount().max() <= 2 and len(whole.train) == 15  # one of each class is kept aside
    for part, all_of_it in zip(small.sets, whole.sets, strict=True):
        known = {bytes(image.numpy().tobytes()): i for i, image in enumerate(all_of_it.images)}
        at = [known[bytes(image.numpy().tobytes())] for image in part.images]
        assert at == sorted(at) and len(set(at)) == len(at)
        if part.labels is not None:
            assert part.labels.tolist() == all_of_it.labels[at].tolist()
    drawn = [make(world, subset=6, seed=seed).test for seed in range(4)]
    assert all(s.labels.bincount().tolist() == [2, 2, 2] for s in drawn)  # classes keep their shares
    assert len({s.fingerprint for s in drawn}) > 1
    assert make(world, subset=4).test.fingerprint == make(world, subset=4).test.fingerprint
    with pytest.raises(RPLibError, match="per_class must be a whole number of at least 1, got 0"):
        make(world, per_class=0)


def test_a_draw_does_not_narrow_what_predictions_are_made_among(world):
    shutil.rmtree(world["sketch"] / "zebra")
    drawn = make(world, missing="among", subset=1)
    assert len(drawn.shifts["sketch"]) == 1 and drawn.shifts["sketch"].class_subset == (0, 1)
    assert drawn.test.class_subset is None and len(drawn.test) == 1


def test_a_draw_does_not_hide_what_is_wrong(world):
    shutil.copy(world["train"] / "cat" / "00.png", world["test"] / "cat" / "copy.png")
    with pytest.raises(SharedImages):
        make(world, subset=1, per_class=1)


def test_an_ood_set_of_several_folders(world):
    one = make(world, ood={"textures": [world["textures"] / "dots", world["textures"] / "lines"]})
    assert torch.equal(one.ood["textures"].images, make(world).ood["textures"].images)
    near = make(world, ood={"textures": [world["textures"] / "dots", world["textures"] / "lines"]}, near=["textures"])
    assert near.ood["textures"].names == ["dots", "dots", "lines", "lines"]
    assert make(world, near=["textures"]).ood["textures"].names == ["dots", "dots", "lines", "lines"]
    with pytest.raises(FolderError, match="at least one folder"):
        make(world, ood={"textures": []})
    with pytest.raises(FolderError, match="named like classes: cat"):
        make(world, ood={"textures": [world["textures"], fill(world["cache"].parent / "more", ("cat",), start=5000)]})


def test_a_level_too_high_is_refused(tmp_path):
    def refused(message, *folders, **options):
        root = tmp_path / str(len(list(tmp_path.iterdir())))
        for i, folder in enumerate(folders):
            (root / folder).mkdir(parents=True)
            for j in range(5):
                draw(root / folder / f"{j}.png", 100 * i + j)
        with pytest.raises(FolderError, match=message):
            from_folders(train=root, size=16, cache=tmp_path / "cache", progress=False, **options)
        return root

    refused(
        "one class folder, 'images'; the images lie in folders below, such as .*images/back_pack",
        "images/back_pack",
        "images/bike",
    )
    refused("one class folder, '101_ObjectCategories'", "101_ObjectCategories/ant", "101_ObjectCategories/barrel")
    refused("one class folder, 'cat': at least two", "cat")
    refused(
        r"a data set with its parts.*Pass its parts, such as train=.*test",
        "train/cat",
        "train/dog",
        "test/cat",
        "test/dog",
    )
    refused("a data set with its parts", "Train/cat", "Val/cat")
    refused("no class folder of .* holds an image itself", "photo/dog", "photo/horse", "sketch/dog", "sketch/horse")
    root = refused("no class folder of .* holds an image itself", "a/abbey", "a/airport", "b/bakery", "b/bank")
    # Who says that these are the classes is believed.
    found = from_folders(
        train=root, class_names={"a": "first", "b": "second"}, size=16, cache=tmp_path / "cache", progress=False
    )
    assert found.class_names == ("first", "second")


def test_a_class_called_train_is_a_class(tmp_path):
    fill(tmp_path / "own", ("bicycle", "bus", "train"), n=5)
    assert from_folders(train=tmp_path / "own", size=16, progress=False, cache=tmp_path / "c").class_names[2] == "train"


@pytest.mark.parametrize("pattern", ["{}", "class_{}", "n{} x"])
def test_a_list_of_names_for_numbered_folders_is_ambiguous(tmp_path, pattern):
    folders = [pattern.format(i) for i in range(11)]
    fill(tmp_path / "own", folders, n=4)
    names = [f"thing {chr(97 + i)}" for i in range(11)]

    def made(**options):
        return from_folders(train=tmp_path / "own", size=16, progress=False, cache=tmp_path / "c", **options)

    with pytest.raises(RPLibError, match=r"a list of class_names is ambiguous here.*mapping from folder to name"):
        made(class_names=names)
    by_name = made(class_names=dict(zip(folders, names, strict=True)))
    assert by_name.class_names[:3] == ("thing a", "thing b", "thing k")  # 0, 1, 10: by folder
    assert made(class_names=sorted(folders)).class_names[2] == pattern.format(
        10
    )  # the folders' own names, in their order
    if pattern == "{}":
        assert made(class_names=names, numeric=True).class_names == tuple(names)
    fill(tmp_path / "few", [pattern.format(i) for i in range(3)], n=5)
    assert from_folders(train=tmp_path / "few", class_names=names[:3], size=16, progress=False, cache=tmp_path / "c")


def test_numbers_in_place_of_names_are_said(caplog):
    for folders in (("0", "1", "10"), ("n01440764", "n01443537")):
        caplog.clear()
        assert name_classes(folders, None) == folders
        assert f"numbers ({folders[0]}, " in caplog.text and "pass class_names={folder: name}" in caplog.text
    caplog.clear()
    assert name_classes(("7_up", "10"), None) == ("7 up", "10")
    assert name_classes(("0", "1"), {"0": "cat", "1": "dog"}) == ("cat", "dog")
    assert not caplog.records


@pytest.mark.parametrize("name", ["photo", "photo.jpg_large", "photo.jpeg-1", "photo.PNG.orig", "photo.heif2"])
def test_pictures_with_rare_or_no_endings_are_named_and_not_lost(world, name):
    kind = "PNG" if "PNG" in name else "JPEG"
    draw(world["train"] / CLASSES[0] / "x.png", 77)
    Image.open(world["train"] / CLASSES[0] / "x.png").save(world["train"] / CLASSES[0] / name, kind)
    (world["train"] / CLASSES[0] / "x.png").unlink()
    (world["train"] / CLASSES[0] / "notes.txt").write_text("about these pictures")
    with pytest.raises(FolderError, match=rf"{re.escape(name)}: pictures that would be left out"):
        make(world)


def test_a_folder_counts_once(world, tmp_path):
    fill(tmp_path / "scenes", ("sea", "sky"), n=2, start=900)
    with pytest.raises(FolderError, match="is named twice in one image set"):
        make(world, ood={"scenes": [tmp_path / "scenes", tmp_path / "scenes" / ".." / "scenes"]})
    (tmp_path / "link").symlink_to(tmp_path / "scenes" / "sea")
    for inner in (tmp_path / "scenes" / "sea", tmp_path / "link"):
        for both in ([tmp_path / "scenes", inner], [inner, tmp_path / "scenes"]):
            with pytest.raises(FolderError, match=rf"{inner} lies in .*scenes, which is named in the same image set"):
                make(world, ood={"scenes": both})
    with pytest.raises(FolderError, match="is both 'one' and 'two'"):
        make(world, ood={"one": tmp_path / "scenes", "two": tmp_path / "scenes"})
