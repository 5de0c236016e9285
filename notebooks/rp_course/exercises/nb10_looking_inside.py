"""Exercises of notebook 10: how alike two representations are, and what neighbours say."""

from __future__ import annotations

import torch
from torch import Tensor

from rp_course.exercise import Case, Exercise, Mistake


def linear_cka(first: Tensor, second: Tensor) -> Tensor:
    """Linear CKA in [0, 1] of float (n, d) and (n, e) features of the same n pictures."""
    x, y = first - first.mean(0), second - second.mean(0)
    return (y.T @ x).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm())


def _not_centred(first: Tensor, second: Tensor) -> Tensor:
    x, y = first, second
    return (y.T @ x).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm())


def _not_squared(first: Tensor, second: Tensor) -> Tensor:
    x, y = first - first.mean(0), second - second.mean(0)
    return (y.T @ x).norm() / ((x.T @ x).norm() * (y.T @ y).norm()).sqrt()


def _centred_by_picture(first: Tensor, second: Tensor) -> Tensor:
    x, y = first - first.mean(1, keepdim=True), second - second.mean(1, keepdim=True)
    return (y.T @ x).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm())


def _cka_cases() -> tuple[Case, ...]:
    g = torch.Generator().manual_seed(10)
    x = torch.randn(30, 5, generator=g)
    turn = torch.linalg.qr(torch.randn(5, 5, generator=g)).Q
    return (
        Case("a little noise added", (x + 1, x + 1 + 0.5 * torch.randn(30, 5, generator=g))),
        Case("rotated, scaled and moved", (x, 3 * x @ turn + 2)),
        Case("unrelated features of another width", (x, torch.randn(30, 8, generator=g) - 1)),
    )


def neighbour_purity(features: Tensor, labels: Tensor, k: int) -> Tensor:
    """Mean share of the k nearest neighbours, itself left out, that have a picture's label; scalar in [0, 1].

    features float (n, d), labels int (n,); nearest by Euclidean distance.
    """
    distance = torch.cdist(features, features)
    distance.fill_diagonal_(float("inf"))
    nearest = distance.topk(k, largest=False).indices
    return (labels[nearest] == labels[:, None]).float().mean()


def _itself_counted(features: Tensor, labels: Tensor, k: int) -> Tensor:
    nearest = torch.cdist(features, features).topk(k, largest=False).indices
    return (labels[nearest] == labels[:, None]).float().mean()


def _farthest(features: Tensor, labels: Tensor, k: int) -> Tensor:
    nearest = torch.cdist(features, features).topk(k).indices
    return (labels[nearest] == labels[:, None]).float().mean()


def _all_must_agree(features: Tensor, labels: Tensor, k: int) -> Tensor:
    distance = torch.cdist(features, features)
    distance.fill_diagonal_(float("inf"))
    nearest = distance.topk(k, largest=False).indices
    return (labels[nearest] == labels[:, None]).all(1).float().mean()


def _purity_cases() -> tuple[Case, ...]:
    g = torch.Generator().manual_seed(11)
    labels = torch.arange(24) % 3
    centres = torch.randn(3, 4, generator=g)
    return (
        Case("clusters that overlap", (centres[labels] + 0.8 * torch.randn(24, 4, generator=g), labels, 5)),
        Case("labels without any pattern", (torch.randn(24, 4, generator=g), labels, 3)),
        Case("clusters far apart", (20 * centres[labels] + torch.randn(24, 4, generator=g), labels, 4)),
    )


EXERCISES = (
    Exercise(
        reference=linear_cka,
        minutes=7,
        cases=_cka_cases,
        hints=(
            "Centre every column of both: subtract the mean over pictures.",
            "The numerator is the squared Frobenius norm of Y^T X, a matrix (e, d): .square().sum().",
            "The denominator is the product of two Frobenius norms, of X^T X and of Y^T Y: .norm() of each.",
        ),
        mistakes=(
            Mistake(_not_centred, "subtract the mean over pictures first: a common offset makes everything look alike"),
            Mistake(_not_squared, "square the norm of Y^T X, and do not take a root below: this is the root of CKA"),
            Mistake(_centred_by_picture, "the mean is over pictures (dim 0), one for each feature, not over features"),
        ),
    ),
    Exercise(
        reference=neighbour_purity,
        minutes=6,
        cases=_purity_cases,
        hints=(
            "torch.cdist gives all distances, (n, n); a picture is at distance 0 from itself and must not count.",
            "Put infinity on the diagonal, then .topk(k, largest=False).indices: (n, k) positions of neighbours.",
            "labels[nearest] == labels[:, None] is (n, k); its mean is the answer.",
        ),
        mistakes=(
            Mistake(_itself_counted, "every picture is its own nearest neighbour: leave it out"),
            Mistake(_farthest, "these are the k farthest pictures: topk takes the largest unless told otherwise"),
            Mistake(_all_must_agree, "count each neighbour for itself: the share that agrees, not whether all agree"),
        ),
    ),
)
