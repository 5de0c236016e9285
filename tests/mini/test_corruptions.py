"""Corruptions: shapes, seeds, growing strength, and what bad input says."""

from __future__ import annotations

import pytest
import torch

from rp_lib.mini.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from rp_lib.utils.errors import RPLibError, UnknownName

GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.nn.functional.interpolate(
    torch.randint(0, 256, (6, 3, 8, 8), generator=GENERATOR).float(), size=(64, 48), mode="bicubic"
).clamp(0, 255).to(torch.uint8)  # fmt: skip


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_keeps_shape_and_input_and_grows_with_severity(name):
    before = IMAGES.clone()
    damage = []
    for severity in SEVERITIES:
        out = corrupt(IMAGES, name, severity, seed=3)
        assert out.dtype == torch.uint8 and out.shape == IMAGES.shape
        assert torch.equal(out, corrupt(IMAGES, name, severity, seed=3))
        damage.append((out.float() - IMAGES.float()).abs().mean().item())
    assert torch.equal(IMAGES, before)
    assert damage == sorted(damage) and len(set(damage)) == len(damage), damage


def test_another_seed_gives_another_picture():
    assert not torch.equal(corrupt(IMAGES, "gaussian_noise", 3), corrupt(IMAGES, "gaussian_noise", 3, seed=1))


def test_noise_has_the_stated_strength():
    grey = torch.full((8, 3, 64, 64), 128, dtype=torch.uint8)
    assert corrupt(grey, "gaussian_noise", 1).float().std().item() / 255 == pytest.approx(0.08, rel=0.02)


def test_contrast_keeps_the_mean_and_scales_the_spread():
    out = corrupt(IMAGES, "contrast", 3).float()
    assert torch.allclose(out.mean((2, 3)), IMAGES.float().mean((2, 3)), atol=0.5)
    assert torch.allclose(out.std((2, 3)), 0.25 * IMAGES.float().std((2, 3)), atol=0.5)


def test_blur_keeps_flat_pictures_and_is_a_normal_kernel_along_both_axes():
    flat = torch.full((1, 3, 16, 16), 200, dtype=torch.uint8)
    assert torch.equal(corrupt(flat, "gaussian_blur", 5), flat)
    point = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    point[..., 32, 32] = 255
    out = corrupt(point, "gaussian_blur", 3)[0, 0].float()
    assert torch.equal(out, out.T)
    sigma = 0.023 * 64
    assert out[32, 33] / out[32, 32] == pytest.approx(torch.exp(torch.tensor(-0.5 / sigma**2)).item(), abs=0.03)


def test_pixelate_makes_blocks():
    out = corrupt(IMAGES[..., :48, :48], "pixelate", 2)
    assert torch.equal(out[..., ::2, ::2], out[..., 1::2, 1::2])


def test_no_images_stay_no_images():
    for name in CORRUPTIONS:
        assert corrupt(IMAGES[:0], name, 1).shape == (0, 3, 64, 48)


def test_bad_input():
    with pytest.raises(UnknownName, match="gaussian_blur"):
        corrupt(IMAGES, "gausian_blur", 1)
    for severity in (0, 6, 2.5, True):
        with pytest.raises(RPLibError, match="1 to 5"):
            corrupt(IMAGES, "contrast", severity)
    for images in (IMAGES.float(), IMAGES[0], IMAGES[:, :1], IMAGES[..., :4]):
        with pytest.raises(RPLibError, match="uint8 images"):
            corrupt(images, "contrast", 1)
