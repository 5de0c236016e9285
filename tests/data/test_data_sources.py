"""The table of sources against what the libraries themselves know, and entries that must not pass."""

import json
import re
from pathlib import Path

import pytest

from rp_lib.data import load_sources
from rp_lib.data.sources import TABLE, check_url
from rp_lib.utils.errors import UnknownName

SOURCES = load_sources()


def file(name: str):
    (only,) = SOURCES[name].files
    return only


def test_torchvision_knows_the_same():
    from torchvision.datasets import CIFAR10, DTD, STL10, SVHN, Places365
    from torchvision.datasets.imagenet import ARCHIVE_META

    for name, cls in (("cifar10", CIFAR10), ("stl10", STL10)):
        ours = file(name)
        assert (ours.name, ours.urls[0], ours.hashes) == (cls.filename, cls.url, {"md5": cls.tgz_md5})
        inside = {f"{cls.base_folder}/{n}": md5 for n, md5 in cls.train_list + cls.test_list}
        if cls is CIFAR10:
            inside[f"{cls.base_folder}/{cls.meta['filename']}"] = cls.meta["md5"]
        assert SOURCES[name].expected.md5 == inside
    svhn = file("svhn")
    assert [svhn.urls[0], svhn.name, svhn.hashes["md5"]] == SVHN.split_list["test"]
    assert (file("textures").urls[0], file("textures").hashes) == (DTD._URL, {"md5": DTD._MD5})
    wanted = [Places365._DEVKIT_META["standard"], Places365._IMAGES_META["val", True]]
    places = SOURCES["places365"]
    assert [(f.name, f.hashes["md5"]) for f in places.files] == wanted
    assert [f.urls[0] for f in places.files] == [Places365._BASE_URL + name for name, _ in wanted]
    assert places.expected.md5 == dict([Places365._CATEGORIES_META, Places365._FILE_LIST_META["val"]])
    assert SOURCES["imagenet-1k"].expected.md5 == dict([ARCHIVE_META["devkit"]])


def test_pytorch_ood_knows_the_same():
    img = pytest.importorskip("pytorch_ood.dataset.img")
    for name, cls in {
        "lsun-crop": img.LSUNCrop,
        "lsun-resize": img.LSUNResize,
        "imagenet-r": img.ImageNetR,
        "imagenet-a": img.ImageNetA,
    }.items():
        ours = file(name)
        assert (ours.name, ours.urls[0], ours.hashes) == (cls.filename, cls.url, {"md5": cls.tgz_md5})
        assert ours.keep, "its class looks for the archive beside the images"
        assert cls.base_folder.strip("/") in SOURCES[name].expected.paths
    assert SOURCES["inaturalist"].licence == img.iNaturalist.info.license


def test_every_set_of_both_benchmarks_is_there():
    by_role = {}
    for data in SOURCES.data.values():
        by_role.setdefault(data.role, set()).add(data.name)
    assert by_role["ID"] == {"cifar10", "imagenet-1k"}
    names = {group: [d.name for d in SOURCES.select([group])] for group in SOURCES.groups}
    assert names["cifar-shifts"] == ["cifar10.1", "cifar10.2", "stl10"]
    assert names["cifar-ood"] == ["svhn", "textures", "lsun-crop", "lsun-resize", "isun", "places365"]
    assert set(names["cifar"]) == {"cifar10", *names["cifar-shifts"], *names["cifar-ood"]}
    assert names["imagenet-shifts"] == ["imagenet-v2", "imagenet-r", "imagenet-a", "imagenet-sketch"]
    assert names["mos"] == ["inaturalist", "sun", "places"]
    assert set(names["imagenet-ood"]) == {*names["mos"], "textures"}
    assert set(names["imagenet"]) == {"imagenet-1k", *names["imagenet-shifts"], *names["imagenet-ood"]}
    assert set(names["ood"]) == by_role["OOD"] and set(names["shifts"]) == by_role["shift"]


def test_a_licence_comes_with_the_place_that_states_it():
    stated = {name: data.licence for name, data in SOURCES.data.items() if data.licence}
    assert len(stated) == len(SOURCES.data) == 18
    assert {name for name, words in stated.items() if words.startswith("MIT")} == {
        "cifar10.1", "imagenet-v2", "imagenet-r", "imagenet-a", "imagenet-sketch",
    }  # fmt: skip
    assert all("(" in words for name, words in stated.items() if name != "imagenet-1k")


def test_a_size_is_known_or_the_pages_are_named_where_it_was_looked_for():
    for data in load_sources().data.values():
        stated = bool(data.by_hand) or all(file.size for file in data.files)
        assert stated or data.sizes_from, data.name
        assert stated or data.size or "(read: README of github.com/" in data.sizes_from, data.name


def test_only_the_mos_subsets_have_no_published_hash():
    assert {d.name for d in SOURCES.data.values() for f in d.files if not f.hashes} == {"inaturalist", "sun", "places"}
    assert SOURCES["cifar10.1"].size == 6_144_128 + 8_128 and SOURCES["cifar10.2"].size == 6_393_664


def test_selection():
    chosen = SOURCES.select(["mos", "cifar10", "places"])
    assert [d.name for d in chosen] == ["cifar10", "inaturalist", "sun", "places"]
    assert len(SOURCES.select(["all"])) == len(SOURCES.data) and SOURCES.select([]) == []
    with pytest.raises(UnknownName, match=r"did you mean .*imagenet-r"):
        SOURCES.select(["imagenetr"])


def test_urls():
    assert check_url("http://127.0.0.1:1/x") == "http://127.0.0.1:1/x"
    for url in ("file:///etc/passwd", "ftp://x/y", "example.org/x", "http://x/a b", ""):
        with pytest.raises(ValueError, match="http"):
            check_url(url)


DIGITS = {"sha256": 64, "md5": 32, "git_blob": 40}


def faults(sources) -> list[str]:
    """What a table holds that the downloader cannot honour."""
    found = []
    for name, data in sources.data.items():
        plain = [name, *(f.name for f in data.files)]
        checks = {
            "role": data.role in ("ID", "shift", "OOD"),
            "group": set(data.groups) <= set(sources.groups) and name not in (*sources.groups, "all"),
            "name": all(n == Path(n).name and not n.startswith(".") for n in plain),
            "files or by_hand": bool(data.files) != bool(data.by_hand),
            "digest": all(re.fullmatch(f"[0-9a-f]{{{DIGITS[k]}}}", v) for f in data.files for k, v in f.hashes.items()),
            "address": all(f.urls and all(re.match(r"https?://\S+$", url) for url in f.urls) for f in data.files),
        }
        found += [f"{name}: {what}" for what, good in checks.items() if not good]
    return found


def test_every_row_of_the_table_can_be_honoured():
    assert faults(SOURCES) == []


@pytest.mark.parametrize(
    ("name", "change", "fault"),
    [
        ("x", {"role": "train"}, "role"),
        ("x", {"groups": ["nosuch"]}, "group"),
        ("g", {}, "group"),
        ("all", {}, "group"),
        ("../x", {}, "name"),
        (".rp-data", {}, "name"),
        ("x", {"by_hand": "ask"}, "files or by_hand"),
        ("x", {"files": [{"name": "../f", "urls": ["http://h/f"]}]}, "name"),
        ("x", {"files": [{"name": "f", "urls": []}]}, "address"),
        ("x", {"files": [{"name": "f", "urls": ["file:///f"]}]}, "address"),
        ("x", {"files": [{"name": "f", "urls": ["http://h/f"], "sha256": "ab" * 16}]}, "digest"),
    ],
)
def test_rows_that_cannot_be_honoured_are_seen(tmp_path, name, change, fault):
    row = {"title": "X", "role": "OOD", "groups": ["g"], "homepage": "http://h",
           "files": [{"name": "f", "urls": ["http://h/f"]}]}  # fmt: skip
    path = tmp_path / "table.json"
    path.write_text(json.dumps({"groups": {"g": "text"}, "data": {"y": row, name: row | change}}))
    assert load_sources(path)["y"].files[0].hashes == {} and faults(load_sources(path)) == [f"{name}: {fault}"]


def test_the_table_says_nothing_twice_and_ships():
    pairs = json.loads(TABLE.read_text(encoding="utf-8"), object_pairs_hook=lambda items: items)

    def names(items):
        keys = [k for k, _ in items]
        assert len(keys) == len(set(keys)), keys
        for _, value in items:
            if isinstance(value, list) and value and isinstance(value[0], tuple):
                names(value)

    names(pairs)
    assert TABLE.suffix == ".json" and TABLE.parent.name == "data"
