"""Near-duplicates: blind to place and size, not to shape."""

from __future__ import annotations

import numpy as np
import torch
from rp_course.mini_world.near_duplicates import THRESHOLD, coverage, first_of_each, nearest, signature


def picture(top=10, left=10, height=30, width=30, hole=0):
    ink = np.zeros((64, 64), np.uint8)
    ink[top : top + height, left : left + width] = 255
    ink[top : top + hole, left : left + hole] = 0
    return ink


def test_equal_up_to_place_and_size():
    same = signature(np.stack([picture(hole=15), picture(2, 30, hole=15), picture(0, 0, 60, 60, hole=30)]))
    assert torch.allclose(same.norm(dim=1), torch.ones(3))
    assert (same @ same.T > THRESHOLD).all()


def test_other_shapes_differ():
    other = signature(np.stack([picture(hole=15), picture(height=15), picture(hole=15)[::-1].copy()]))
    assert ((other @ other.T).fill_diagonal_(0) < THRESHOLD).all()


def test_nearest_is_the_brute_force_maximum_whatever_the_chunk():
    generator = torch.Generator().manual_seed(0)
    queries, references = torch.randn(7, 5, generator=generator), torch.randn(23, 5, generator=generator)
    value, index = (queries @ references.T).max(1)
    for chunk in (1, 4, 100):
        found, where = nearest(queries, references, chunk)
        assert torch.allclose(found, value) and torch.equal(where, index)


def test_first_of_each_keeps_the_first_and_only_it():
    pictures = np.stack([picture(hole=15), picture(height=12), picture(20, 5, hole=15), picture(height=12)])
    assert first_of_each(signature(pictures)).tolist() == [True, True, False, False]


def test_a_dropped_picture_drops_no_other():
    vectors = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.28, 0.96]])
    assert first_of_each(vectors, threshold=0.75).tolist() == [True, False, True]


def test_first_of_each_across_blocks():
    vectors = torch.nn.functional.normalize(torch.randn(1500, 64, generator=torch.Generator().manual_seed(0)), dim=1)
    vectors[1400] = vectors[3]
    keep = first_of_each(vectors)
    assert not keep[1400] and keep.sum() == 1499


def test_coverage_of_colour_is_its_alpha_and_light_parts_count_less():
    rgba = np.zeros((1, 4, 64, 64), np.uint8)
    rgba[:, 3, :32] = 255
    rgba[:, :3, :16] = 255
    ink = coverage(rgba)
    assert ink.shape == (1, 64, 64) and (ink[0, 32:] == 0).all()
    assert ink[0, 0, 0] == 127 and ink[0, 20, 0] == 255
    mono = np.zeros((2, 64, 64), np.uint8)
    assert coverage(mono) is mono


def test_no_pictures():
    assert signature(np.zeros((0, 64, 64), np.uint8)).shape == (0, 1024)
