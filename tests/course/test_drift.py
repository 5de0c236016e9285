import numpy as np
import pytest
import torch
from rp_course.drift import class_spread, cosine_drift, linear_cka

from rp_lib.utils.errors import RPLibError

G = torch.Generator().manual_seed(0)
X = torch.randn(60, 8, generator=G)


def test_cka_is_that_of_the_kernels_and_blind_to_rotation_and_scale():
    y = X @ torch.randn(8, 5, generator=G) + 0.5 * torch.randn(60, 5, generator=G)
    centre = np.eye(60) - 1 / 60  # the definition by kernel matrices (HSIC), independent of the feature form
    k, m = (centre @ (a.double() @ a.double().T).numpy() @ centre for a in (X, y))
    assert linear_cka(X, y) == pytest.approx((k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum()))
    rotation = torch.linalg.qr(torch.randn(8, 8, generator=G)).Q
    assert linear_cka(X, 3 * X @ rotation + 1) == pytest.approx(1, abs=1e-6)
    assert linear_cka(X, torch.randn(60, 8, generator=G)) < 0.5


def test_drift_is_zero_for_the_same_and_two_for_the_opposite():
    assert cosine_drift(X, 2 * X) == pytest.approx(np.zeros(60), abs=1e-7)
    assert cosine_drift(X, -X) == pytest.approx(np.full(60, 2.0))
    assert cosine_drift(torch.eye(2), torch.eye(2).flip(0)) == pytest.approx([1, 1])


def test_tight_classes_are_tight():
    labels = torch.arange(60) % 3
    centres = 5 * torch.eye(8)[:3]
    loose, tight = (class_spread(centres[labels] + s * X, labels) for s in (1.0, 0.1))
    assert tight[0] < 0.05 * loose[0] and tight[1] > loose[1]
    # Against the plain formula on unit features.
    x = torch.nn.functional.normalize((centres[labels] + X).double(), dim=1)
    within = np.mean([float(((x[i] - x[labels == labels[i]].mean(0)) ** 2).sum()) for i in range(60)])
    assert loose[0] == pytest.approx(within)


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(RPLibError, match="same two or more"):
        linear_cka(X, X[:5])
    with pytest.raises(RPLibError, match="all alike"):
        linear_cka(torch.ones(4, 3), torch.ones(4, 3))
    with pytest.raises(RPLibError, match="one space"):
        cosine_drift(X, X[:, :4])
    with pytest.raises(RPLibError, match="no clusters"):
        class_spread(X[:3], torch.arange(3))
