import numpy as np
import pytest
import torch
from rp_course.mini_world.restyle import colour_areas, may_be_mirrored, restyle


def ring() -> np.ndarray:
    """A circle drawn as a line: an outside, ink, one enclosed area."""
    y, x = np.mgrid[:64, :64] - 31.5
    radius = np.hypot(y, x)
    return (255 * ((radius > 15) & (radius < 20))).astype(np.uint8)


def batch(n: int = 400) -> tuple[torch.Tensor, torch.Tensor]:
    rgba = torch.zeros(n, 4, 64, 64, dtype=torch.uint8)
    rgba[:, 3] = torch.from_numpy(ring())
    rgba[:, 3, :, :20] = 0  # not symmetric, so that a mirrored one can be told
    mono = torch.arange(n) % 2 == 0
    rgba[~mono, 0] = 200
    return rgba, mono


def test_without_strength_nothing_changes():
    rgba, mono = batch(20)
    out, still = restyle(rgba, mono, torch.ones(20, dtype=torch.bool), 0.0, np.random.default_rng(0))
    assert torch.equal(out, rgba) and torch.equal(still, mono)


def test_same_seed_same_pictures_and_input_is_left_alone():
    rgba, mono = batch()
    before = rgba.clone()
    may = torch.ones(len(rgba), dtype=torch.bool)
    one, two, other = (restyle(rgba, mono, may, 1.0, np.random.default_rng(s))[0] for s in (1, 1, 2))
    assert torch.equal(one, two) and not torch.equal(one, other) and torch.equal(rgba, before)


def test_only_what_may_be_mirrored_is():
    rgba, _ = batch()
    coloured = torch.zeros(len(rgba), dtype=torch.bool)  # their shape changes by mirroring alone
    may = torch.arange(len(rgba)) < 200
    alpha = restyle(rgba, coloured, may, 1.0, np.random.default_rng(0))[0][:, 3]
    mirrored = (alpha == rgba[:, 3].flip(-1)).all((1, 2))
    assert 0.3 < mirrored[:200].float().mean() < 0.5 and not mirrored[200:].any()
    assert ((alpha == rgba[:, 3]).all((1, 2)) | mirrored).all()


@pytest.mark.parametrize(
    ("concept", "category", "allowed"),
    [("house", None, True), ("arrow left", None, False), ("letter b", None, False), ("github", "Logos", False)],
)
def test_direction_and_script_are_never_mirrored(concept, category, allowed):
    assert may_be_mirrored(concept, category) is allowed


def test_enclosed_area_is_coloured_and_the_outside_stays_clear():
    coverage, filled = ring(), 0
    for seed in range(20):
        picture = colour_areas(coverage, np.random.default_rng(seed))
        assert picture.shape == (4, 64, 64) and picture.dtype == np.uint8
        assert picture[3, 0, 0] == 0 and picture[3, 32, 14] == 255  # outside, ink
        if picture[3, 32, 32]:
            filled += 1
            assert picture[3, 32, 32] == 255 and np.abs(picture[:3, 32, 32].astype(int) - picture[:3, 32, 14]).max() > 8
    assert filled >= 14


def test_bolder_pictures_gain_and_finer_lose_ink_but_never_all_of_it():
    rgba, mono = batch()
    out, still = restyle(rgba, torch.ones_like(mono), torch.zeros_like(mono), 1.0, np.random.default_rng(3))
    ink = out[still, 3].float().mean((1, 2)) / rgba[still, 3].float().mean((1, 2))
    assert ink.max() > 1.2 and ink.min() < 0.9 and ink.min() > 0.35
    assert 0.25 < (~still).float().mean() < 0.45  # coloured ones are no longer monochrome
