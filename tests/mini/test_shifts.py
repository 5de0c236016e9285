"""Shifts of drawings: seeded, of the right size, and each of them costs zero-shot what a shift must cost."""

import pytest
import torch

from rp_lib.methods import ZeroShot
from rp_lib.mini.benchmark import LOSS_OF_A_SHIFT, REAL_SHIFTS, SHIFTED_IMAGES
from rp_lib.mini.shifts import CORRUPTIONS, SHIFTS, shift
from rp_lib.utils.errors import RPLibError, UnknownName

DRAW = torch.Generator().manual_seed(0)
SMOOTH = torch.nn.functional.interpolate(
    torch.randint(0, 256, (6, 3, 8, 8), generator=DRAW).float(), size=(64, 64), mode="bicubic"
).clamp(0, 255).to(torch.uint8)  # fmt: skip


@pytest.fixture(scope="module")
def mini(mini_benchmark):
    return mini_benchmark


@pytest.mark.parametrize("name", SHIFTS)
def test_shifts_are_seeded_and_leave_their_input(name):
    images = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    before = images.clone()
    found = shift(images, name, seed=1)
    assert found.dtype == torch.uint8 and found.shape == images.shape and torch.equal(images, before)
    assert torch.equal(found, shift(images, name, seed=1)) and not torch.equal(found, shift(images, name, seed=2))
    assert not torch.equal(found, images) and shift(images[:0], name).shape == (0, 3, 32, 32)


def test_clutter_is_the_darker_of_a_picture_and_a_paler_other():
    white, black = torch.full((1, 3, 8, 8), 255, dtype=torch.uint8), torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    found = shift(torch.cat([white, black]), "cluttered")
    assert (found[0] == round(255 * 0.65)).all() and (found[1] == 0).all()


def test_a_sixth_is_hidden():
    found = shift(torch.zeros(40, 3, 64, 64, dtype=torch.uint8), "hidden")
    assert (found == 128).float().mean((1, 2, 3)).tolist() == pytest.approx([(26 / 64) ** 2] * 40)
    assert len({tuple(picture.nonzero()[0].tolist()) for picture in found}) > 20  # at another place each


@pytest.mark.parametrize("name", ["tilted", "wobbly"])
def test_paper_stays_white_and_ink_stays_inside(name):
    white = torch.full((6, 3, 48, 48), 255, dtype=torch.uint8)
    assert (shift(white, name) == 255).all()
    dot = white.clone()
    dot[:, :, 20:28, 20:28] = 0
    moved = 255 - shift(dot, name).float()
    share = moved.sum((1, 2, 3)) / (255 * 3 * 64)
    assert ((share > 0.2) & (share < 3)).all()
    if name == "tilted":  # corners move inwards, so nothing grows
        assert (share < 1.1).all()


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corruptions_are_seeded_leave_their_input_and_grow_with_severity(name):
    before, damage = SMOOTH.clone(), []
    for severity in (1, 3, 5):
        out = shift(SMOOTH, name, severity, seed=3)
        assert out.dtype == torch.uint8 and out.shape == SMOOTH.shape
        assert torch.equal(out, shift(SMOOTH, name, severity, seed=3))
        damage.append((out.float() - SMOOTH.float()).abs().mean().item())
    assert torch.equal(SMOOTH, before) and damage == sorted(set(damage)), damage
    assert shift(SMOOTH[:0], name, 1).shape == (0, 3, 64, 64)
    assert torch.equal(out, shift(SMOOTH, name, 5, seed=4)) == (name != "gaussian_noise")


def test_noise_and_contrast_have_the_stated_strength():
    grey = torch.full((8, 3, 64, 64), 128, dtype=torch.uint8)
    assert shift(grey, "gaussian_noise", 1).float().std().item() / 255 == pytest.approx(0.08, rel=0.02)
    out = shift(SMOOTH, "contrast", 3).float()
    assert torch.allclose(out.mean((2, 3)), SMOOTH.float().mean((2, 3)), atol=0.5)
    assert torch.allclose(out.std((2, 3)), 0.25 * SMOOTH.float().std((2, 3)), atol=0.5)


def test_blur_keeps_flat_pictures_and_is_a_normal_kernel_along_both_axes():
    flat = torch.full((1, 3, 16, 16), 200, dtype=torch.uint8)
    assert torch.equal(shift(flat, "gaussian_blur", 5), flat)
    point = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    point[..., 32, 32] = 255
    out = shift(point, "gaussian_blur", 3)[0, 0].float()
    assert torch.equal(out, out.T)
    sigma = 0.023 * 64
    assert out[32, 33] / out[32, 32] == pytest.approx(torch.exp(torch.tensor(-0.5 / sigma**2)).item(), abs=0.03)
    assert out[32, 32].item() / 255 == pytest.approx(1 / (2 * torch.pi * sigma**2), rel=0.05)


def test_pixelate_makes_blocks():
    out = shift(SMOOTH[..., :8, :8], "pixelate", 3)  # 3 blocks a side
    assert len({tuple(row) for row in out[0, 0].tolist()}) == 3


def test_bad_input_is_refused():
    with pytest.raises(UnknownName, match="corruption of severity 1 'gausian_blur'; did you mean gaussian_blur"):
        shift(SMOOTH, "gausian_blur", 1)
    with pytest.raises(UnknownName, match="corruption of severity 2 'contrast'"):
        shift(SMOOTH, "contrast", 2)
    with pytest.raises(UnknownName, match="wobbly"):
        shift(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "wobly")
    with pytest.raises(RPLibError, match="uint8 images of shape"):
        shift(torch.zeros(1, 3, 8, 9, dtype=torch.uint8), "hidden")


def test_every_shift_costs_zero_shot_five_points_and_no_control_does(mini, mini_clip):
    method = ZeroShot(mini_clip, mini.class_names, mini.templates)
    top = method.accuracy(mini.test)
    lost = {name: top - method.accuracy(images) for name, images in mini.shifts.items()}
    assert set(lost) == {*REAL_SHIFTS, *SHIFTS} and min(lost.values()) >= LOSS_OF_A_SHIFT
    kept = {n: top - method.accuracy(s.subsample(400)) for n, s in mini.controls.items() if n != "dark"}
    assert max(kept.values()) < LOSS_OF_A_SHIFT


def test_derived_shifts_keep_all_of_their_pictures(mini):
    assert {images.role for images in mini.controls.values()} == {"control"}
    few = mini.subsample(800, 400)
    assert {len(few.shifts[name]) for name in SHIFTS} == {SHIFTED_IMAGES}
    assert set(mini.shifts["hidden"].sources.tolist()) <= set(mini.test.sources.tolist())
