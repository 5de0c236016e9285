"""Decoding as CLIP does it, and a cache that is whole or not there, whatever happens."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import os
import random
import shutil
import signal
import struct
import sys
import time
import traceback
import tracemalloc
import warnings
import zlib
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torch import Tensor

from rp_lib.benchmark import ImageSet
from rp_lib.data import BrokenImages, from_folders, load_images
from rp_lib.data import pixel_cache as cache
from rp_lib.data import pixel_cache as digests
from rp_lib.data import pixel_cache as mapped
from rp_lib.data.pixel_cache import BrokenImage, decode, quiet_pillow
from rp_lib.data.sources import NoSpace
from rp_lib.utils.errors import RPLibError
from rp_lib.utils.preparation import Preparation


def picture(seed: int, width: int = 40, height: int = 30) -> Image.Image:
    """Blurred noise: neighbouring pixels are alike, as in a photograph."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def photos(folder: Path, n: int = 12, **options) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i:03}.jpg" for i in range(n)]
    for i, path in enumerate(paths):
        picture(i, **options).save(path, quality=90)
    return paths


def pixels(data: bytes, size: int = 16) -> np.ndarray:
    return decode(data, size).pixels.astype(int)


@pytest.fixture
def paths(tmp_path) -> list[Path]:
    return photos(tmp_path / "photos")


@pytest.fixture
def store(tmp_path) -> Path:
    return tmp_path / "cache"


# Decoding


@pytest.mark.parametrize("shape", [(40, 30), (31, 77), (16, 16), (9, 13), (300, 201)])
@pytest.mark.parametrize("size", [16, 25])
def test_as_open_clip(shape, size):
    transform = open_clip.image_transform(size, is_train=False, mean=(0, 0, 0), std=(1, 1, 1))
    image = picture(3, *shape)
    reference = (transform(image) * 255).round().int().numpy()
    assert np.abs(pixels(encoded(image), size) - reference).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation):
    upright = picture(1, 32, 32)
    # How the camera stores it: what the orientation undoes (EXIF 2.32, table of Orientation).
    stored = {
        1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2), 6: lambda a: np.rot90(a, 1), 7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }[orientation](np.asarray(upright))  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(np.ascontiguousarray(stored)), exif=exif)
    assert np.array_equal(pixels(data, 32), np.asarray(upright).transpose(2, 0, 1))


@pytest.mark.parametrize("mode", ["L", "1", "LA", "P", "RGBA", "CMYK", "RGB"])
def test_modes_become_rgb(mode):
    image = picture(2, 32, 32).convert(mode)
    kind = "TIFF" if mode == "CMYK" else "PNG"
    found = decode(encoded(image, kind), 32)
    assert found.greyscale == (mode in ("L", "1", "LA"))
    assert found.pixels.shape == (3, 32, 32) and found.pixels.dtype == np.uint8
    assert np.array_equal(found.pixels, np.asarray(image.convert("RGB")).transpose(2, 0, 1))
    assert found.sha256 == hashlib.sha256(found.pixels.tobytes()).digest()


def test_palette_with_transparency_gives_no_warning():
    image = picture(2, 32, 32).quantize(16)
    opaque = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(pixels(encoded(image, transparency=bytes([255] * 16)), 32), opaque)
        faint = pixels(encoded(image, transparency=bytes(range(16))), 32)
    assert faint.min() > 230  # nearly transparent: nearly the white below


def see_through(mode: str) -> bytes:
    """A black disc on a transparent ground, below which the file keeps black."""
    y, x = np.mgrid[:32, :32]
    disc = np.where(np.hypot(y - 16, x - 16) < 8, 255, 0).astype(np.uint8)
    image = Image.fromarray(np.dstack([np.zeros((32, 32, 3), np.uint8), disc]))
    if mode == "RGBA":
        return encoded(image)
    if mode == "LA":
        return encoded(image.convert("LA"))
    two = Image.fromarray((disc // 255).astype(np.uint8))  # 0: the ground
    if mode == "P":
        two.putpalette([0, 200, 0, 0, 0, 0])
        return encoded(two, transparency=0)
    grey = Image.fromarray(np.where(disc, 0, 7).astype(np.uint8))
    if mode == "L":
        return encoded(grey, transparency=7)
    return encoded(Image.merge("RGB", [grey] * 3), transparency=(7, 7, 7))  # "RGB" with one colour that is none


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "RGB"])
def test_transparent_pixels_are_white_as_in_a_viewer(mode: str):
    found = decode(see_through(mode), 32)
    assert (found.pixels[:, 0, 0] == 255).all() and (found.pixels[:, 16, 16] == 0).all()
    assert found.greyscale == (mode in ("LA", "L"))


@pytest.mark.parametrize(("top", "message"), [(255, "up to 255"), (4095, "up to 4095")])
def test_twelve_bits_in_sixteen_are_not_black(top: int, message: str):
    values = (np.arange(1024).reshape(32, 32) % (top + 1)).astype(np.uint16)
    values[0, 0] = top
    with pytest.raises(BrokenImage, match=f"16-bit pixels, of which only values {message}"):
        decode(encoded(Image.fromarray(values)), 32)
    assert not decode(encoded(Image.fromarray(np.zeros((32, 32), np.uint16))), 32).pixels.any()  # black is black


@pytest.mark.parametrize("size", [(4_000, 4), (4, 4_000), (640, 8)])
def test_a_long_strip_costs_no_memory_and_shows_its_middle(size):
    width, height = size
    values = np.zeros((height, width, 3), np.uint8)
    long, short = max(size), min(size)
    middle = slice((long - 2 * short) // 2, (long + 2 * short) // 2)
    values[(slice(None), middle) if width > height else (middle, slice(None))] = (250, 120, 30)
    data = encoded(Image.fromarray(values))
    tracemalloc.start()
    found = pixels(data, 32)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (found == np.array([250, 120, 30])[:, None, None]).all() and peak < 20e6


def test_a_named_pipe_is_no_picture(tmp_path):
    os.mkfifo(tmp_path / "a.jpg")
    picture(1).save(tmp_path / "b.png")
    with pytest.raises(BrokenImages, match=r"a\.jpg: no regular file"):
        load_images([tmp_path / "a.jpg", tmp_path / "b.png"], 16, cache=tmp_path / "cache")


def test_sixteen_bits_keep_the_upper_eight():
    values = np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)
    found = decode(encoded(Image.fromarray(values)), 32)
    assert found.greyscale and np.array_equal(found.pixels, np.stack([values >> 8] * 3))


DISC = np.hypot(*(np.mgrid[:32, :32] - 16)) < 8


def raw_png(values: np.ndarray, depth: int, colour: int, clear: bytes = b"") -> bytes:
    """A PNG file of the kinds that Pillow reads and does not write: 16 bits a channel, one value transparent."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = values.astype(">u2") if depth == 16 else np.packbits(values.astype(np.uint8), axis=1)
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], depth, colour, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    parts = [(b"IHDR", head), *([(b"tRNS", clear)] if clear else []), (b"IDAT", body), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def painted(kind: str) -> tuple[bytes, int]:
    """A disc on a transparent ground below which the file keeps black, and the disc's first channel (of 8 bits)."""
    grey, opaque = np.where(DISC, 30_000, 0), np.where(DISC, 65_535, 0)
    red = np.zeros((32, 32, 4), np.uint8)
    red[DISC] = 200, 0, 0, 255
    palette = Image.fromarray(DISC.astype(np.uint8))
    palette.putpalette([0, 0, 0, 200, 0, 0])
    return {
        "16-bit grey, one value": lambda: (raw_png(grey, 16, 0, struct.pack(">H", 0)), 117),
        "16-bit RGB, one colour": lambda: (raw_png(np.stack([grey] * 3, -1), 16, 2, struct.pack(">HHH", 0, 0, 0)), 117),
        "16-bit grey and alpha": lambda: (raw_png(np.stack([grey, opaque], -1), 16, 4), 117),
        "16-bit RGBA": lambda: (raw_png(np.stack([grey] * 3 + [opaque], -1), 16, 6), 117),
        "1 bit, one value": lambda: (raw_png(~DISC, 1, 0, struct.pack(">H", 1)), 0),
        "WebP": lambda: (encoded(Image.fromarray(red), "WEBP", lossless=True, exact=True), 200),
        "TIFF": lambda: (encoded(Image.fromarray(red), "TIFF"), 200),
        "GIF": lambda: (encoded(palette, "GIF", transparency=0), 200),
    }[kind]()


@pytest.mark.parametrize(
    "kind",
    [
        "16-bit grey, one value", "16-bit RGB, one colour", "16-bit grey and alpha", "16-bit RGBA", "1 bit, one value",
        "WebP", "TIFF", "GIF",
    ],
)  # fmt: skip
def test_every_way_to_be_transparent_is_white(kind):
    data, disc = painted(kind)
    found = pixels(data, 32)
    assert (found[:, ~DISC] == 255).all() and (found[0, DISC] == disc).all()


def test_twelve_bits_beside_a_transparent_value():
    values = np.where(DISC, 3_000, 65_535)
    with pytest.raises(BrokenImage, match="up to 3000"):
        decode(raw_png(values, 16, 0, struct.pack(">H", 65_535)), 16)


@pytest.mark.parametrize(("low", "high"), [(-5, 100), (0, 65_536), (-1, 0), (7, 2**31 - 1)])
def test_whole_numbers_beyond_16_bits_are_refused(low, high):
    image = Image.fromarray(np.where(DISC, high, low).astype(np.int32))
    with pytest.raises(BrokenImage, match="32-bit pixels"):
        decode(encoded(image, "TIFF"), 16)


@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_sixteen_bits_of_either_byte_order(order):
    image = Image.fromarray(np.where(DISC, 60_000, 0).astype(order))
    found = pixels(encoded(image, "TIFF"), 32)
    assert (found[:, DISC] == 234).all() and (found[:, ~DISC] == 0).all()


def test_floating_point_is_refused():
    with pytest.raises(BrokenImage, match="floating-point"):
        decode(encoded(Image.fromarray(np.zeros((8, 8), np.float32)), "TIFF"), 8)


def test_malformed_exif_is_ignored():
    data = encoded(picture(4), "JPEG", exif=b"Exif\0\0MM\0*\0\0\xff\xff garbage")
    with quiet_pillow():
        assert decode(data, 16).pixels.shape == (3, 16, 16)


# Broken files


def test_all_broken_files_are_named(paths, store, monkeypatch):
    whole = paths[0].read_bytes()
    for i, data in {1: b"", 2: whole[:-60], 3: b"no image at all", 4: b"GIF89a"}.items():
        paths[i].write_bytes(data)
    paths[5].unlink()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    picture(0, 50, 50).save(paths[6])  # Pillow warns
    picture(0, 80, 80).save(paths[7])  # Pillow raises
    with pytest.raises(BrokenImages) as caught:
        load_images(paths, 16, cache=store)
    text = str(caught.value)
    assert "7 of 12" in text and sorted(caught.value.broken) == paths[1:8]
    assert all(str(path) in text for path in paths[1:8]) and str(paths[0]) not in text
    assert "empty" in text and "truncated" in text and "No such file" in text and text.count("bomb") == 2
    assert not any((store / "pixels").glob("*")) and not any((store / "building").glob("*"))


def test_broken_files_without_a_missing_one(paths, store):
    paths[3].write_bytes(b"")
    paths[8].write_bytes(b"x" * 100)
    with pytest.raises(BrokenImages, match="2 of 12"):
        load_images(paths, 16, cache=store)
    assert not any((store / "pixels").glob("*")) and not any((store / "building").glob("*"))


def test_ten_are_shown_and_all_counted(paths, store):
    for path in paths:
        path.write_bytes(b"")
    with pytest.raises(BrokenImages, match=r"12 of 12.*; and 2 more") as caught:
        load_images(paths, 16, cache=store)
    assert str(caught.value).count(".jpg") == 10 and len(caught.value.broken) == 12


@pytest.mark.parametrize(("n", "size", "message"), [(0, 16, "no images"), (2, 0, "size"), (2, 16.0, "size")])
def test_bad_arguments(paths, store, n, size, message):
    with pytest.raises(RPLibError, match=message):
        load_images(paths[:n], size, cache=store)


# The cache


def undecodable(monkeypatch):
    def fail(*args):
        raise AssertionError("an image was decoded")

    monkeypatch.setattr(cache, "decode", fail)


def test_pixels_stand_in_order_and_are_reused(paths, store, monkeypatch):
    first = load_images(paths, 16, cache=store, workers=3)
    expected = np.stack([decode(path.read_bytes(), 16).pixels for path in paths])
    assert first.images.dtype == torch.uint8 and np.array_equal(first.images.numpy(), expected)
    assert first.files[2].tobytes() == hashlib.sha256(paths[2].read_bytes()).digest()
    assert first.pixels[2].tobytes() == hashlib.sha256(expected[2].tobytes()).digest()
    undecodable(monkeypatch)
    again = load_images(paths, 16, cache=store)
    assert torch.equal(again.images, first.images) and again.content == first.content


def test_many_chunks_stay_in_order(tmp_path, store, monkeypatch):
    monkeypatch.setattr(cache, "_AT_ONCE", 2)
    paths = photos(tmp_path / "many", 30)
    slow = random.Random(0)
    real = cache.decode

    def late(data, size):
        time.sleep(slow.random() / 200)
        return real(data, size)

    monkeypatch.setattr(cache, "decode", late)
    images = load_images(paths, 8, cache=store, workers=4).images
    assert np.array_equal(images.numpy(), np.stack([real(p.read_bytes(), 8).pixels for p in paths]))


def test_key_is_content_not_name(paths, store, tmp_path, monkeypatch):
    first = load_images(paths, 16, cache=store)
    moved = [tmp_path / "elsewhere" / f"{i}-x.JPEG" for i in range(len(paths))]
    moved[0].parent.mkdir()
    for old, new in zip(paths, moved, strict=True):
        shutil.copyfile(old, new)
    with monkeypatch.context() as m:
        undecodable(m)
        assert load_images(moved, 16, cache=store).content == first.content
    contents = {
        first.content,
        load_images(paths, 17, cache=store).content,
        load_images(paths[::-1], 16, cache=store).content,
        load_images(paths[:-1], 16, cache=store).content,
    }
    picture(99).save(paths[5], quality=90)
    contents.add(load_images(paths, 16, cache=store).content)
    assert len(contents) == 5
    assert len(list((store / "pixels").iterdir())) == 5  # side by side


def counted(monkeypatch) -> list[bytes]:
    """The files that are decoded from now on."""
    seen: list[bytes] = []
    original = cache.decode

    def count(data, size):
        seen.append(data)
        return original(data, size)

    monkeypatch.setattr(cache, "decode", count)
    return seen


@pytest.mark.parametrize("change", ["one more", "one less", "another order", "one changed", "renamed"])
def test_only_new_pictures_are_decoded(paths, store, tmp_path, monkeypatch, change):
    Image.open(paths[2]).convert("L").save(paths[2])
    load_images(paths, 16, cache=store)
    if change == "one more":
        wanted = [*photos(tmp_path / "more", 13)[12:], *paths]
    elif change == "one changed":
        picture(77).save(paths[5])
        wanted = paths
    elif change == "renamed":
        wanted = [path.rename(path.with_name(f"new-{path.name}")) for path in paths[1:]]
    else:
        wanted = paths[1:] if change == "one less" else paths[::-1]
    seen = counted(monkeypatch)
    found = load_images(wanted, 16, cache=store)
    assert len(seen) == (1 if change in ("one more", "one changed") else 0)
    fresh = load_images(wanted, 16, cache=tmp_path / "other")
    assert torch.equal(found.images, fresh.images) and found.content == fresh.content
    assert np.array_equal(found.greyscale, fresh.greyscale) and found.greyscale.sum() == 1
    assert np.array_equal(found.pixels, fresh.pixels)


@pytest.mark.parametrize(
    "damage", ["pixels", "no pixels", "no description", "size", "resize mode", "interpolation", "decoder"]
)
def test_what_is_damaged_or_was_made_otherwise_is_decoded(paths, store, tmp_path, monkeypatch, damage):
    load_images(paths, 16, cache=store)
    (place,) = (store / "pixels").iterdir()
    if damage == "pixels":
        data = bytearray((place / "pixels.u8").read_bytes())
        data[4 * 768] ^= 1  # the fifth picture
        (place / "pixels.u8").write_bytes(data)
    elif damage == "no pixels":
        (place / "pixels.u8").unlink()
    elif damage == "no description":
        (place / "about.safetensors").write_bytes(b"nothing")
    elif damage == "decoder":
        monkeypatch.setattr(cache, "DECODER_VERSION", 99)
    size = {
        "size": 17, "resize mode": Preparation(16, resize_mode="squash"),
        "interpolation": Preparation(16, interpolation="bilinear"),
    }.get(damage, 16)  # fmt: skip
    seen = counted(monkeypatch)
    found = load_images(paths[1:], size, cache=store)
    assert len(seen) == (1 if damage == "pixels" else 11)
    assert torch.equal(found.images, load_images(paths[1:], size, cache=tmp_path / "other").images)


def test_decoder_version_is_in_the_key(paths, store, monkeypatch):
    load_images(paths, 16, cache=store)
    monkeypatch.setattr(cache, "DECODER_VERSION", -1)
    load_images(paths, 16, cache=store)
    assert len(list((store / "pixels").iterdir())) == 2


def test_same_size_and_time_but_other_content(paths, store, monkeypatch):
    monkeypatch.setattr(digests, "_SETTLED_NS", 0)
    time.sleep(0.05)
    first = load_images(paths, 16, cache=store)
    data, stat = paths[0].read_bytes(), paths[0].stat()
    paths[0].write_bytes(data[:-40] + bytes(b ^ 5 for b in data[-40:-38]) + data[-38:])
    os.utime(paths[0], ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert load_images(paths, 16, cache=store).files.tolist() != first.files.tolist()


@pytest.mark.parametrize(("seconds", "again"), [(1.9, True), (2.1, False)])
def test_fresh_files_are_read_again(paths, store, monkeypatch, seconds, again):
    """A file that was written a moment before it was hashed may change within the same tick of the clock."""
    written = max(path.stat().st_ctime_ns for path in paths)
    monkeypatch.setattr(digests, "time", SimpleNamespace(time_ns=lambda: written + int(seconds * 1e9)))
    load_images(paths, 16, cache=store)
    read, real = [], digests.file_sha256
    monkeypatch.setattr(digests, "file_sha256", lambda path: read.append(path) or real(path))
    load_images(paths, 16, cache=store)
    assert (paths[np.argmax([p.stat().st_ctime_ns for p in paths])] in read) == again


def test_unchanged_files_are_not_read_again(paths, store, monkeypatch):
    monkeypatch.setattr(digests, "_SETTLED_NS", 0)
    time.sleep(0.05)
    first = load_images(paths, 16, cache=store)
    read = []
    real = digests.file_sha256
    monkeypatch.setattr(digests, "file_sha256", lambda path: read.append(path) or real(path))
    assert load_images(paths, 16, cache=store).files.tolist() == first.files.tolist() and read == []
    picture(50).save(paths[4], quality=80)
    time.sleep(0.05)
    for _ in range(2):  # the others are still known afterwards
        load_images(paths, 16, cache=store)
        assert read == [paths[4]]
    (kept,) = (store / "hashes").glob("*.safetensors")
    kept.write_bytes(b"nonsense")
    load_images(paths, 16, cache=store)
    assert sorted(read[1:]) == paths


def test_copy_on_write(paths, store):
    first = load_images(paths, 16, cache=store)
    before = first.images.clone()
    first.images.zero_()
    assert torch.equal(load_images(paths, 16, cache=store).images, before)


@pytest.mark.skipif(sys.platform != "linux", reason="sparse files and memory limits as Linux has them")
def test_larger_than_memory_is_mapped(tmp_path):
    path = tmp_path / "sparse"
    length = 2 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with path.open("wb") as file:
        file.truncate(length)
    with path.open("rb") as file:
        tensor = mapped._mapped(file.fileno(), length)
    tensor[-1] = 7
    assert tensor[-2:].tolist() == [0, 7] and len(tensor) == length


@pytest.mark.parametrize("damage", ["flip", "truncate", "extend", "no pixels", "no description", "description", "swap"])
@pytest.mark.parametrize("sampled", [False, True])
def test_damage_is_found_and_mended(paths, store, monkeypatch, caplog, damage, sampled):
    if sampled:  # as for a large cache; all of it is verified since its time is not as it was
        monkeypatch.setattr(mapped, "VERIFY_BYTES", 0)
        monkeypatch.setattr(mapped, "VERIFY_IMAGES", 2)
    first = load_images(paths, 16, cache=store)
    before = first.images.clone()
    (place,) = (store / "pixels").iterdir()
    file, about = place / "pixels.u8", place / "about.safetensors"
    data = bytearray(file.read_bytes())
    if damage == "flip":
        data[5 * 768 + 3] ^= 1
        file.write_bytes(data)
    elif damage == "truncate":
        os.truncate(file, len(data) - 1)
    elif damage == "extend":
        os.truncate(file, len(data) + 5)
    elif damage == "no pixels":
        file.unlink()
    elif damage == "no description":
        about.unlink()
    elif damage == "description":
        raw = bytearray(about.read_bytes())
        raw[-20] ^= 1
        about.write_bytes(raw)
    else:
        file.write_bytes(data[768:1536] + data[:768] + data[1536:])
    with caplog.at_level(logging.WARNING):
        again = load_images(paths, 16, cache=store)
    assert torch.equal(again.images, before) and again.content == first.content
    assert again.greyscale.tolist() == [False] * len(paths)
    assert "damaged" in caplog.text
    assert file.read_bytes() == before.numpy().tobytes()


def test_a_copied_cache_is_verified_once(paths, store, tmp_path, monkeypatch):
    monkeypatch.setattr(mapped, "VERIFY_BYTES", 0)
    monkeypatch.setattr(mapped, "VERIFY_IMAGES", 2)
    load_images(paths, 16, cache=store)
    shutil.copytree(store, tmp_path / "copy", copy_function=shutil.copyfile)  # without times
    undecodable(monkeypatch)
    load_images(paths, 16, cache=tmp_path / "copy")
    (file,) = (tmp_path / "copy" / "pixels").glob("*/pixels.u8")
    assert file.stat().st_mtime_ns == next((store / "pixels").glob("*/pixels.u8")).stat().st_mtime_ns


def test_full_disk_is_reported_before_it_happens(paths, store, monkeypatch):
    monkeypatch.setattr("rp_lib.data.download.free_bytes", lambda folder: 100_000_000)
    undecodable(monkeypatch)
    with pytest.raises(NoSpace, match=r"12 images of 2000 x 2000 pixels need 144\.0 MB.*100\.0 MB are free"):
        load_images(paths, 2000, cache=store)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_disk_that_fills_while_writing(paths, store, monkeypatch):
    real = Path.open
    monkeypatch.setattr(
        Path, "open", lambda self, *a, **k: real(Path("/dev/full") if self.name == "pixels.u8" else self, *a, **k)
    )
    with pytest.raises(NoSpace, match="is full"):
        load_images(paths, 16, cache=store)
    assert not any((store / "building").glob("*"))


def test_folder_that_cannot_be_written(paths, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RPLibError, match="choose another"):
        load_images(paths, 16, cache=tmp_path / "file")


def test_a_file_that_changes_between_hash_and_decoding(paths, store, monkeypatch):
    real = cache.hash_files

    def hash_then_change(*args, **options):
        result = real(*args, **options)
        picture(77).save(paths[2], quality=70)
        return result

    monkeypatch.setattr(cache, "hash_files", hash_then_change)
    with pytest.raises(BrokenImages, match=r"002\.jpg: changed while it was read"):
        load_images(paths, 16, cache=store)


def test_default_place(paths, tmp_path, monkeypatch):
    monkeypatch.setenv("RP_CACHE", str(tmp_path / "by-variable"))
    load_images(paths, 16)
    assert len(list((tmp_path / "by-variable" / "pixels").iterdir())) == 1


# Several processes, and processes that die

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")


def forked(work) -> tuple[int, io.TextIOWrapper]:
    """Run ``work(say)`` in a process of its own, without importing everything anew: its id and what it says."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(reader)
            with os.fdopen(writer, "w", buffering=1) as out:
                work(lambda text: print(text, file=out, flush=True))
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writer)
    return child, os.fdopen(reader)


def loader(paths: list[Path], store: Path, seconds: float):
    """Work that says d for every image it decodes, and the content in the end."""

    def work(say) -> None:
        real = cache.decode

        def slow(data, size):
            say("d")
            time.sleep(seconds)
            return real(data, size)

        cache.decode = slow
        found = load_images(paths, 16, cache=store, workers=2)
        say(f"{found.content} {int(found.images.long().sum())}")

    return work


@needs_fork
def test_two_processes_decode_once(paths, store, tmp_path):
    both = [forked(loader(paths, store, 0.02)) for _ in range(2)]
    lines = [reader.read().split() for _, reader in both]
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child, _ in both] == [0, 0]
    assert sorted(line.count("d") for line in lines) == [0, len(paths)]
    alone = load_images(paths, 16, cache=tmp_path / "alone")
    assert [line[-2:] for line in lines] == [[alone.content, str(int(alone.images.long().sum()))]] * 2


@needs_fork
def test_killed_at_any_moment(paths, store, tmp_path):
    """SIGKILL while it is at work: after each, what is published is whole, and the end is the same."""
    undisturbed = load_images(paths, 16, cache=tmp_path / "undisturbed")
    draw, died = random.Random(0), 0
    for _ in range(20):
        child, reader = forked(loader(paths, store, 0.003))
        for _ in range(draw.randint(0, len(paths))):
            reader.readline()
        time.sleep(draw.random() / 100)
        os.kill(child, signal.SIGKILL)
        died += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        reader.close()
        for place in (store / "pixels").glob("*"):
            assert mapped.open_cache(place, undisturbed.files, 16) is not None
            shutil.rmtree(store)  # it got through: from the beginning
    assert died > 5
    found = load_images(paths, 16, cache=store)
    assert found.content == undisturbed.content and torch.equal(found.images, undisturbed.images)
    assert not any((store / "building").glob("*"))


@needs_fork
@pytest.mark.parametrize(("owner", "step"), [(os, "fsync"), (cache, "save_tensors"), (Path, "rename")])
def test_killed_around_publishing(paths, store, tmp_path, owner, step):
    """The process dies right before a step of the publication."""
    undisturbed = load_images(paths, 16, cache=tmp_path / "undisturbed")

    def work(say) -> None:
        real = getattr(owner, step)

        def die(*args, **options):
            if sys._getframe(1).f_code.co_name == "_build":
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **options)

        setattr(owner, step, die)
        load_images(paths, 16, cache=store)

    child, reader = forked(work)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    reader.close()
    assert any((store / "building").iterdir()) and not any((store / "pixels").glob("*"))
    found = load_images(paths, 16, cache=store)
    assert found.content == undisturbed.content and not any((store / "building").iterdir())


def test_leftovers_of_others_are_removed_unless_locked(paths, store):
    for name in ("dead", "alive"):
        (store / "building" / name).mkdir(parents=True)
        (store / "building" / name / "pixels.u8").write_bytes(b"half")
    with cache._lock(store, "alive"):
        load_images(paths, 16, cache=store)
    assert [path.name for path in (store / "building").iterdir()] == ["alive"]


def test_memory_is_bounded(tmp_path, store, monkeypatch):
    """Not more than a few images for each worker are decoded ahead of what is on disk."""
    monkeypatch.setattr(cache, "_AT_ONCE", 4)
    paths = photos(tmp_path / "many", 100, width=8, height=8)
    files, _ = cache.hash_files(paths, cache=store)
    real, ahead = cache._decode_file, []
    monkeypatch.setattr(cache, "_decode_file", lambda *args: ahead.append(1) or real(*args))
    with contextlib.closing(cache._decoded(paths, files, Preparation(8), 2, None, {})) as results:
        next(results)
        time.sleep(0.5)  # the disk is slow; the workers are not
        assert 4 <= len(ahead) <= 7 * 4
        assert len(list(results)) == 99 and len(ahead) == 100


# Image sets of a cache


def test_image_sets_take_the_content(paths, store):
    found = load_images(paths, 16, cache=store)
    labels = torch.arange(len(paths)) % 3

    def make(content=found.content, labels=labels):
        return ImageSet("train", "train", found.images, labels, content=content)

    assert make().fingerprint == make().fingerprint
    other = make(labels=labels.flip(0))
    part, rest = make().subset([1, 5]), make().subset([5, 1])
    fingerprints = [s.fingerprint for s in (make(), make(None), make("0" * 64), other, part, rest)]
    assert len(set(fingerprints)) == 6
    mask = torch.zeros(len(paths), dtype=torch.bool)
    mask[[1, 5]] = True
    assert make().subset(mask).content == part.content == make().subset([1, 5 - len(paths)]).content
    assert len({found.content, part.content, rest.content}) == 3
    assert part.content != make("0" * 64).subset([1, 5]).content
    assert torch.equal(part.images, found.images[[1, 5]])


def test_fingerprint_does_not_read_the_pixels(paths, store):
    found = load_images(paths, 16, cache=store)
    labels = torch.zeros(len(paths), dtype=torch.int64)
    Meta = namedtuple("Meta", "dtype ndim shape")

    class Unreadable(Meta):
        def __len__(self):
            return self.shape[0]

    unreadable = Unreadable(torch.uint8, 4, tuple(found.images.shape))
    kept = ImageSet("train", "train", found.images, labels, content=found.content)
    blind = ImageSet("train", "train", found.images, labels, content=found.content)
    object.__setattr__(blind, "images", unreadable)
    assert blind.fingerprint == kept.fingerprint


def test_a_cache_says_what_it_takes_and_can_be_cleared(tmp_path, monkeypatch, capsys):
    from rp_lib import cli

    monkeypatch.setenv("RP_CACHE", str(tmp_path / "cache"))
    assert cache.cache_usage() == (0, 0) and cache.clear_cache() == 0
    paths = []
    for i in range(3):
        picture(i).save(tmp_path / f"{i}.png")
        paths.append(tmp_path / f"{i}.png")
    first, second = load_images(paths, 16), load_images(paths[:2], 16)
    sets, used = cache.cache_usage()
    assert sets == 2 and 5 * 3 * 16**2 < used < 100_000
    assert cli.main(["info", "--clear-cache"]) == 0 and str(tmp_path / "cache") in capsys.readouterr().out
    assert cache.cache_usage()[0] == 0
    assert first.images.float().mean() > 0  # what is mapped stays readable
    assert torch.equal(load_images(paths[:2], 16).images, second.images)


def test_a_set_that_grew_replaces_the_one_before(paths, store, monkeypatch):
    before = load_images(paths[:-1], 16, cache=store, progress="train")
    other_size = load_images(paths[:-1], 8, cache=store)
    decoded, decode = [], cache._decode_file
    monkeypatch.setattr(cache, "_decode_file", lambda path, *rest: decoded.append(path) or decode(path, *rest))
    after = load_images(paths, 16, cache=store, progress="train")
    assert decoded == paths[-1:] and torch.equal(after.images[:-1], before.images)  # still mapped
    assert cache.cache_usage(store)[0] == 2 and len(other_size.images) == len(paths) - 1
    load_images(paths[1:3], 16, cache=store)  # a part that is asked for later stands next to it
    assert cache.cache_usage(store)[0] == 3 and decoded == paths[-1:]


def test_other_splits_of_a_folder_and_added_photos_leave_one_copy_of_each_picture(tmp_path, store, monkeypatch):
    root = tmp_path / "own"
    for i in range(40):
        (root / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        picture(i).save(root / "ab"[i % 2] / f"{i}.png")
    decoded, decode = [], cache._decode_file
    monkeypatch.setattr(cache, "_decode_file", lambda path, *rest: decoded.append(path) or decode(path, *rest))

    def held(seed: int, subset: int | None = None) -> tuple[int, Tensor]:
        data = from_folders(train=root, size=16, cache=store, seed=seed, subset=subset, progress=False)
        return sum(path.stat().st_size for path in store.rglob("pixels.u8")) // (3 * 16**2), data.train.images

    (count, first), (again, _), (_, back) = held(0), held(1), held(0)
    assert count == again == len(decoded) == 40 and torch.equal(first, back)
    picture(40).save(root / "a" / "40.png")
    assert held(0)[0] == len(decoded) == 41  # only the new picture is decoded, whatever the split
    assert held(0, subset=2)[0] == 41 + 4 and held(0)[0] == 41


def test_a_link_to_nothing_is_called_that(tmp_path, store):
    (tmp_path / "a.png").symlink_to("nowhere.png")
    with pytest.raises(BrokenImages, match=r"a\.png: a link to a file that is not there"):
        load_images([tmp_path / "a.png"], 16, cache=store)
