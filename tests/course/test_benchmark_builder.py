"""The builder on a small made-up corpus: splits, near-duplicates, names, and the same bytes twice."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
from rp_course.mini_world import benchmark_builder
from rp_course.mini_world.benchmark_builder import build_benchmark
from rp_course.mini_world.classes import ID_CLASSES
from rp_course.mini_world.exclusions import is_excluded
from rp_course.mini_world.selection import (
    Icon,
    deal_families,
    is_character,
    measured_style,
    mentions_id,
    ood_place,
    spread,
)
from rp_course.mini_world.stored import encode_sheet, quantize

from rp_lib.mini.sheets import decode_sheet, read_benchmark
from rp_lib.utils.errors import RPLibError

CLASSES = ("bell", "car", "house")
COPIED = "bell-77"


def drawing(rng, coloured=False):
    """A picture unlike every other: random blocks."""
    blocks = (rng.random((8, 8)) < 0.5).astype(np.uint8) * 255
    blocks[0, 0] = blocks[7, 7] = 255
    ink = np.kron(blocks, np.ones((8, 8), np.uint8))
    if not coloured:
        return ink
    colour = np.kron(rng.integers(0, 200, (3, 8, 8), dtype=np.uint8), np.ones((1, 8, 8), np.uint8))
    return np.concatenate([colour, ink[None]])


def write_set(folder, prefix, family, pictures, category="UI 24px", coloured=False):
    names = list(pictures)
    np.save(folder / f"{prefix}.npy", np.stack([pictures[n] for n in names]))
    icons = [[n, n.replace("-", " ").rstrip("0123456789 "), [], []] for n in names]
    meta = {
        "set": prefix, "family": family, "coloured": coloured, "category": category, "title": prefix.title(),
        "author": {"name": family, "url": "https://example.org"}, "license": {"title": "MIT", "spdx": "MIT"}, "icons": icons,
    }  # fmt: skip
    (folder / f"{prefix}.json").write_text(json.dumps(meta))


@pytest.fixture(scope="module", autouse=True)
def small_targets():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark_builder, "TARGETS", {"test": 60, "train": 50, "second-draw": 20, "val": 20})
        yield


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("corpus"), np.random.default_rng(0)

    def some(n, *names):
        return {f"{name}-{i}": drawing(rng) for name in names or CLASSES for i in range(n)}

    copy = drawing(rng)
    write_set(folder, "pre", "fontawesome", {**some(2), "something": copy})
    write_set(
        folder, "solar", "solar", {**some(12), COPIED: copy, **some(3, "anchor", "close"), "anchor-car": drawing(rng)}
    )
    for i in range(12):
        write_set(folder, f"small{i}", f"by-small-{i}", some(3))
    shared = drawing(rng)
    write_set(folder, "one", "by-one", {**some(4), "house-90": shared})
    write_set(folder, "two", "by-abhimanyu-rana", {**some(2), "house-91": shared, "number-5": drawing(rng)})
    write_set(folder, "picon", "by-picon-contributors", some(2))
    emoji = {f"{c}-{i}": drawing(rng, True) for c in CLASSES for i in range(2)}
    write_set(folder, "noto", "noto", emoji, "Emoji", True)
    flags = {n: drawing(rng, True) for n in ("fr", "it", "tr")}
    write_set(folder, "flagpack", "by-yummygum", flags, "Flags / Maps", True)
    logos = {**some(1, "acme", "bolt"), "looks-like-a-house": copy}
    write_set(folder, "simple-icons", "by-simple-icons-collaborators", logos, "Logos")
    write_set(folder, "seen-bell", "icons8", {"bell": copy})
    (folder / "ATTRIBUTION.md").write_text("written last")
    return folder


@pytest.fixture(scope="module")
def built(corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    build_benchmark(corpus, out)
    return out, read_benchmark(out)


def icons_of(stored, *names):
    return {icon for name in names or stored.sets for icon in stored.sets[name].icons}


def test_labels_and_classes(built):
    _, stored = built
    assert stored.class_names == CLASSES and stored.templates == ("an icon of a {}",)
    for s in stored.sets.values():
        for icon, label in zip(s.icons, [] if s.labels is None else s.labels.tolist(), strict=False):
            assert icon.split(":")[1].startswith(stored.class_names[label])


def test_families_are_dealt_whole(built):
    _, stored = built
    sides = {}
    for name in ("train", "val", "test", "second-draw"):
        for group in stored.sets[name].groups.tolist():
            assert sides.setdefault(stored.families[group], name) == name
    assert sides["solar"] == "test" and "fontawesome" not in sides
    assert set(sides.values()) == {"train", "val", "test", "second-draw"}


def test_near_duplicates_leave(built):
    out, stored = built
    assert f"solar:{COPIED}" not in icons_of(stored)
    # The same picture by two families stays once.
    assert len({"two:house-91", "one:house-90"} & icons_of(stored)) == 1
    card = (out / "DATA_CARD.md").read_text(encoding="utf-8")
    assert "| id | near-duplicate of a pre-training picture | 1 |" in card


def test_ood_is_checked_by_name_and_by_picture(built):
    _, stored = built
    assert icons_of(stored, "near") == {"solar:anchor-0", "solar:anchor-1", "solar:anchor-2"}
    assert icons_of(stored, "signs") == {"solar:close-0", "solar:close-1", "solar:close-2"}
    assert icons_of(stored, "characters") == {"two:number-5"}
    assert icons_of(stored, "flags") == {"flagpack:fr", "flagpack:it"}  # tr shows a star and a moon
    # The third logo nearly equals a bell of pre-training.
    assert icons_of(stored, "logos") == {"simple-icons:acme-0", "simple-icons:bolt-0"}


def test_same_bytes_again_and_over_an_interrupted_build(built, corpus, tmp_path):
    out, _ = built

    def hashes(folder):
        return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}

    (tmp_path / "test.png").write_bytes(b"half")
    build_benchmark(corpus, tmp_path)
    assert hashes(tmp_path) == hashes(out)
    assert {"index.json", "DATA_CARD.md", "ATTRIBUTION.md", "contact_sheet.png"} <= hashes(out).keys()


def test_pictures_survive_storage(built, corpus):
    _, stored = built
    s = stored.sets["test"]
    place = s.icons.index("two:house-0")
    meta = json.loads((corpus / "two.json").read_text())
    row = [icon[0] for icon in meta["icons"]].index("house-0")
    assert np.array_equal(s.images[place].numpy(), np.broadcast_to(255 - np.load(corpus / "two.npy")[row], (3, 64, 64)))


def test_no_corpus(tmp_path):
    with pytest.raises(RPLibError, match="python -m rp_course mini corpus"):
        build_benchmark(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_sheets_hold_any_number_of_pictures():
    rng = np.random.default_rng(1)
    for n in (1, 40, 41, 83):
        grey = quantize(rng.integers(0, 256, (n, 64, 64), dtype=np.uint8))
        assert np.array_equal(decode_sheet(encode_sheet(grey), n), np.repeat(grey[:, None], 3, 1))
        rgb = rng.integers(0, 256, (n, 3, 64, 64), dtype=np.uint8)
        assert np.array_equal(decode_sheet(encode_sheet(rgb), n), rgb)


def test_quantize_has_16_levels_and_errs_by_half_a_step():
    ramp = np.arange(256, dtype=np.uint8).repeat(16).reshape(1, 64, 64)
    grey = quantize(ramp)
    assert len(np.unique(grey)) == 16
    assert np.abs(255 - grey.astype(int) - ramp).max() <= 8


def test_deal_goes_to_the_split_that_lacks_most():
    sizes = {"solar": 50, "a": 40, "b": 30, "c": 20, "d": 10, "by-praveen-juge": 5}
    sides = deal_families(sizes, {"test": 60, "train": 60, "second-draw": 30, "val": 5})
    expected = {
        "solar": "test",
        "by-praveen-juge": "second-draw",
        "a": "train",
        "b": "second-draw",
        "c": "train",
        "d": "test",
    }
    assert sides == expected


def icon(name, concept=None, others=(), label=-1, family="by-x", prefix="x", coloured=False):
    return Icon(prefix, 0, family, name, concept or name.replace("-", " "), tuple(others), label, coloured)


def test_names_that_mention_a_class():
    assert mentions_id(icon("car-wash")) and mentions_id(icon("chapel", others=("wedding bell",)))
    assert mentions_id(icon("house2")) and mentions_id(icon("thing", label=0))
    assert not mentions_id(icon("carrot")) and not mentions_id(icon("letter-t"))


def test_ood_places():
    assert ood_place(icon("anchor"), "UI 24px") == "near"
    assert ood_place(icon("anchor", family="fontawesome"), "UI 24px") is None
    assert ood_place(icon("arrow-down"), "UI 24px") is None  # "down" is no sign word
    assert ood_place(icon("arrow-circle"), "UI 24px") == "signs"
    assert ood_place(icon("acme"), "Logos") == "logos" and ood_place(icon("starbucks"), "Logos") is None
    assert ood_place(icon("tr-4x3", prefix="flag", coloured=True), "Flags / Maps") is None
    assert ood_place(icon("flag-for-france", family="noto", coloured=True), "Emoji") == "flags"


@pytest.mark.parametrize(
    "name", ["letter-a", "a-circle", "number-circle-five", "3-square", "keycap-7", "letter-x", "nine-solid"]
)
def test_characters(name):
    assert is_character(name)


@pytest.mark.parametrize("name", ["x-circle", "box-2", "circle-3", "shield-x", "arrow-a", "o", "letter-ab"])
def test_not_characters(name):
    assert not is_character(name)


def test_spread_takes_turns():
    icons = [icon(f"a{i}", "a") for i in range(20)] + [icon("b", "b"), icon("c", "c")]
    chosen = spread(icons, lambda i: i.concept, 5)
    assert sorted(i.concept for i in chosen) == ["a", "a", "a", "b", "c"]
    assert chosen == spread(icons[::-1], lambda i: i.concept, 5)


def test_styles():
    line = np.zeros((64, 64), np.uint8)
    line[8:56, 8:12] = line[8:56, 52:56] = line[8:12, 8:56] = line[52:56, 8:56] = 255
    filled, duotone = line.copy(), line.copy()
    filled[8:56, 8:56] = 255
    duotone[12:52, 12:52] = 76
    assert measured_style(np.stack([line, filled, duotone])) == ["line", "filled", "duotone"]


def test_class_names_and_synonyms_are_unique():
    names = [name for first, more in ID_CLASSES.items() for name in (first, *more)]
    assert len(names) == len(set(names))


def test_exclusions():
    assert is_excluded("reicon:plane") and not is_excluded("reicon:airplane")
    assert not is_excluded("x:tinder") and is_excluded("x:tinder", logo=True)
