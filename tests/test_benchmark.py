"""Image sets, benchmarks, and the facts about the one that ships."""

from __future__ import annotations

import re
import shutil

import pytest
import torch
from rp_course.mini_world.classes import ID_WORDS
from rp_course.mini_world.families import PRETRAINING

from rp_lib.benchmark import Benchmark, ImageSet
from rp_lib.mini import load_benchmark
from rp_lib.mini.benchmark import REAL_SHIFTS
from rp_lib.mini.sheets import FOLDER, read_benchmark
from rp_lib.mini.shifts import SHIFTS
from rp_lib.utils.errors import RPLibError, UnknownName

IMAGES = torch.arange(6 * 3 * 8 * 8).reshape(6, 3, 8, 8).to(torch.uint8)
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


def image_set(role="train", images=IMAGES, labels=LABELS, **more):
    return ImageSet(role, role, images, None if role.endswith("ood") else labels, **more)


def benchmark(**changes):
    parts = {
        "name": "toy", "class_names": ("a", "b", "c"), "templates": ("a {}",), "train": image_set(),
        "val": image_set("val"), "test": image_set("test"), "shifts": {"s": image_set("shift")},
        "ood": {"o": image_set("far-ood")},
    }  # fmt: skip
    return Benchmark(**parts | changes)


@pytest.fixture(scope="module")
def mini(mini_benchmark):
    return mini_benchmark


@pytest.fixture(scope="module")
def stored():
    return read_benchmark(FOLDER)


@pytest.mark.parametrize(("part", "role"), [("ood", "near-ood"), ("shifts", "shift")])
def test_a_set_counts_once_whatever_it_is_called(part, role):
    twin, other = image_set(role, IMAGES), image_set(role, IMAGES.clone().flip(3))
    assert len(getattr(benchmark(**{part: {"one": image_set(role), "flipped": other}}), part)) == 2
    with pytest.raises(RPLibError, match="'one' and 'two' of benchmark 'toy' are the same set, which would count"):
        benchmark(**{part: {"one": image_set(role), "flipped": other, "two": twin}})


def test_subset_keeps_everything_together():
    images = image_set(groups=torch.tensor([5, 5, 6, 6, 7, 7]), styles=list("uvwxyz"))
    for index in (torch.tensor([4, 1]), [4, 1]):
        part = images.subset(index)
        assert torch.equal(part.images, IMAGES[[4, 1]]) and part.labels.tolist() == [1, 1]
        assert part.groups.tolist() == [7, 5] and part.styles == ["y", "v"] and part.name == "train"
    mask = images.subset(LABELS == 2)
    assert mask.labels.tolist() == [2, 2] and mask.styles == ["w", "z"] and len(mask) == 2
    for beyond in ([len(IMAGES)], [-len(IMAGES) - 1], [[0, 1]]):
        with pytest.raises(RPLibError, match=r"positions are 1-D|index of ImageSet\.subset must be"):
            images.subset(beyond)
    with pytest.raises(RPLibError, match="mask"):
        images.subset(torch.ones(3, dtype=torch.bool))


def test_subsamples_are_evenly_spaced():
    assert image_set().subsample(3).groups.tolist() == [0, 2, 4]
    assert image_set().subsample(4).groups.tolist() == [0, 1, 3, 4] and len(image_set().subsample(7)) == 6


def test_every_image_is_its_own_group_by_default():
    assert image_set().groups.tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": IMAGES.float()}, "uint8"),
        ({"images": IMAGES[:, :1]}, "shape"),
        ({"labels": LABELS.int()}, "int64"),
        ({"labels": LABELS[:5]}, "labels"),
        ({"labels": None}, "needs labels"),
        ({"groups": LABELS[:2]}, "groups"),
        ({"styles": ["line"]}, "styles"),
        ({"labels": LABELS - 1}, "class numbers from 0, got -1 to 1"),
        ({"class_names": ("a", "b")}, "class numbers from 0, got 0 to 2"),
        ({"labels": LABELS.tolist()}, "labels of ImageSet must be .*Tensor"),
        ({"styles": "uvwxyz"}, "styles of ImageSet must be list"),
    ],
)
def test_bad_image_sets(changes, message):
    with pytest.raises(RPLibError, match=message):
        image_set(**changes)


def test_ood_takes_no_labels_and_roles_are_known():
    with pytest.raises(RPLibError, match="OOD"):
        ImageSet("o", "near-ood", IMAGES, LABELS)
    with pytest.raises(UnknownName, match="shift"):
        ImageSet("o", "shfit", IMAGES, LABELS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_names": ("a", "b", "b")}, "'b' twice"),
        ({"class_names": ("a", "b")}, "labels 0 to 2"),
        ({"class_names": ("a", "b", "c", "d")}, "'d'.*no training image"),
        ({"templates": ("no place",)}, "template"),
        ({"templates": ()}, "template"),
        ({"val": image_set("test")}, "role 'val'"),
        ({"shifts": {"s": image_set("test")}}, "role 'shift'"),
        ({"ood": {"o": image_set("shift")}}, "near-ood"),
    ],
)
def test_bad_benchmarks(changes, message):
    with pytest.raises(RPLibError, match=message):
        benchmark(**changes)


def test_fingerprint_follows_the_data():
    assert benchmark().fingerprint == benchmark().fingerprint
    images = IMAGES.clone()
    images[0, 0, 0, 0] += 1
    changed = [
        benchmark(test=image_set("test", images=images)),
        benchmark(test=image_set("test", labels=LABELS.flip(0))),
        benchmark(test=image_set("test", groups=LABELS)),
        benchmark(templates=("the {}",)),
        benchmark(class_names=("a", "b", "d")),
    ]
    assert len({b.fingerprint for b in [benchmark(), *changed]}) == 6


def test_describe():
    table = benchmark(test=image_set("test", groups=LABELS)).describe()
    assert list(table["set"]) == ["train", "val", "test", "shift", "far-ood"]
    assert list(table.loc[2, ["n", "classes", "families"]]) == [6, 3, 3]
    assert table.loc[4, "classes"] == 0


def test_it_prints_as_a_card_of_its_sets():
    card = repr(benchmark(templates=("a {}", "the {}"))).splitlines()
    assert card[0] == "Benchmark 'toy': 3 classes, prompts 'a {}' and 1 more"
    assert [line.split() for line in card[1:4]] == [[r, r, "6"] for r in ("train", "val", "test")]
    assert card[-1].split() == ["far-ood", "far-ood", "6"] and len(card) == 6
    assert repr(image_set("far-ood")) == "ImageSet('far-ood', role='far-ood', 6 images of 8 x 8 pixels)"


def test_shipped_sizes(mini):
    assert 25 <= len(mini.class_names) <= 50
    assert mini.templates == ("an icon of a {}",)
    assert len(mini.test) >= 1500
    assert all(len(images) >= 300 for images in mini.shifts.values())
    assert torch.bincount(mini.test.labels, minlength=len(mini.class_names)).min() >= 8
    assert set(mini.shifts) == {*REAL_SHIFTS, *SHIFTS}
    assert set(mini.controls) == set("second-draw duotone dark corrupted-1 corrupted-3 corrupted-5".split())
    assert sorted(mini.ood) == ["characters", "flags", "logos", "near", "signs"]
    assert len(mini.ood["near"]) >= 1000 and mini.ood["near"].role == "near-ood"


def test_the_card_says_what_is_there(mini):
    card = (FOLDER / "DATA_CARD.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| ([\w-]+) \| [^|]+ \| (\d+) \|", card.split("## Pictures of each class")[0], re.M))
    derived = ("dark", "corrupted", *SHIFTS)
    stored = {images.name: len(images) for images in mini.sets if not images.name.startswith(derived)}
    assert {name: int(n) for name, n in rows.items()} == stored


def test_families_stand_on_one_side(stored):
    def families(*names):
        return {stored.families[g] for name in names for g in stored.sets[name].groups.tolist()}

    sides = [
        families("train"),
        families("val"),
        families("test", "duotone"),
        families("second-draw", "emoji", "other-hands"),
    ]
    for i, one in enumerate(sides):
        assert not one & PRETRAINING
        assert all(not one & other for other in sides[i + 1 :])
    ood = families("near", "logos", "flags", "characters", "signs")
    assert not ood & (families("train", "val") | PRETRAINING)


def test_ood_names_name_no_class(stored):
    for name in ("near", "logos", "flags", "characters", "signs"):
        for icon in stored.sets[name].icons:
            assert not set(icon.split(":")[1].split("-")) & ID_WORDS, icon


def test_every_picture_is_used_once(stored):
    icons = [icon for s in stored.sets.values() for icon in s.icons]
    assert len(icons) == len(set(icons))


def test_duotone_is_a_shift_not_id(stored):
    assert set(stored.sets["duotone"].styles) == {"duotone"}
    for name in ("train", "val", "test", "second-draw"):
        assert set(stored.sets[name].styles) == {"line", "filled"}


def test_derived_shifts(mini):
    assert torch.equal(mini.controls["dark"].images, 255 - mini.test.images)
    corrupted = mini.controls["corrupted-3"]
    assert len(corrupted) == 1200 and len(corrupted.styles) == 1200
    assert torch.equal(corrupted.labels.reshape(4, 300), corrupted.labels[:300].repeat(4, 1))
    assert torch.equal(mini.controls["corrupted-1"].labels, corrupted.labels)
    for name in ("labels", "groups"):
        assert torch.equal(getattr(mini.test, name)[corrupted.sources], getattr(corrupted, name))
    assert len(set(corrupted.sources.tolist())) == 300


def test_a_subsample_keeps_derived_images_with_their_sources(mini):
    few = mini.subsample(test=100, other=50)
    assert len(few.test) == 100 and len(few.shifts["emoji"]) == len(few.ood["near"]) == 50
    assert few.train is mini.train and few.val is mini.val
    assert torch.equal(few.controls["dark"].images, 255 - few.test.images)
    corrupted = set(few.controls["corrupted-3"].sources.tolist())
    assert corrupted and corrupted <= set(few.test.sources.tolist())


def test_attribution_names_every_set(stored):
    text = (FOLDER / "ATTRIBUTION.md").read_text(encoding="utf-8")
    for prefix in {icon.split(":")[0] for s in stored.sets.values() for icon in s.icons}:
        assert f"\n| {prefix} |" in text
    assert "\n| fa7-solid |" in text  # of pre-training


def test_size_in_git():
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 8e6
    assert (FOLDER / "contact_sheet.png").stat().st_size < 400_000


@pytest.mark.parametrize(
    "damage", ["missing", "truncated", "altered", "index missing", "index altered", "index truncated"]
)
def test_damaged_files(tmp_path, damage):
    folder = tmp_path / "benchmark"
    shutil.copytree(FOLDER, folder)
    path = folder / ("index.json" if damage.startswith("index") else "val.png")
    data = path.read_bytes()
    if damage.endswith("missing"):
        path.unlink()
    elif damage.endswith("truncated"):
        path.write_bytes(data[: len(data) // 2])
    elif damage == "index altered":
        path.write_bytes(data.replace(b'"airplane"', b'"airplant"', 1))
    else:
        path.write_bytes(data[:1000] + bytes([data[1000] ^ 1]) + data[1001:])
    with pytest.raises(
        RPLibError, match=r"(missing|truncated or altered).*reinstall rp_lib, or .*python -m rp_course mini benchmark"
    ):
        load_benchmark(folder)
