"""The aggregate of three axes, and mean ranks, by hand."""

import numpy as np
import pytest
from rp_course.experiments.aggregate import PARTS, aggregate, mean_ranks

from rp_lib.comparison import AXES, PairedDraws
from rp_lib.stats import Design
from rp_lib.utils.errors import RPLibError


def drawn(methods, axes, values, resampled) -> PairedDraws:
    """Of one seed and many pictures: values (k, a) of the data, (r, k, a) of resamples."""
    numbers = np.concatenate([values[None], resampled]).transpose(1, 0, 2)[:, None]
    return PairedDraws(methods, axes, numbers, (Design(),) * len(axes))


def test_the_aggregate_is_the_mean_of_its_three_parts():
    rng = np.random.default_rng(0)
    draws = drawn(("x", "y"), AXES, rng.random((2, 4)), rng.random((50, 2, 4)))
    total = aggregate(draws)
    assert total.axes == ("aggregate",) and total.designs == draws.designs[:1] and total.resampled.shape == (50, 2, 1)
    np.testing.assert_allclose(total.values[:, 0], draws.values[:, :3].mean(1))  # FPR is not in it
    np.testing.assert_allclose(total.resampled[:, :, 0], draws.resampled[:, :, :3].mean(2))
    assert PARTS == ("id accuracy", "shift accuracy", "auroc")
    with pytest.raises(RPLibError, match="auroc was not measured"):
        aggregate(drawn(("x", "y"), AXES[:2], np.zeros((2, 2)), np.zeros((5, 2, 2))))


def test_mean_ranks_by_hand():
    values = np.array([[0.9, 0.9, 0.5, 0.0], [0.8, 0.9, 0.7, 0.0], [0.7, 0.1, 0.6, 0.0]])
    draws = drawn(("x", "y", "z"), AXES, values, np.stack([values, values[::-1]]))
    found = mean_ranks(draws).set_index("method")
    assert found["rank"].tolist() == pytest.approx([(1 + 1.5 + 3) / 3, (2 + 1.5 + 1) / 3, (3 + 3 + 2) / 3])
    assert found["best"].tolist() == [0, 1, 0]
    assert found.loc["x", "low"] < found.loc["x", "rank"] + 0.3 < found.loc["x", "high"]
