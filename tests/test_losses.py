import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from rp_lib.losses import FOCAL_ALPHA, FOCAL_GAMMA, LOSSES, OBJECTIVES, reprogramming_loss
from rp_lib.utils.errors import UnknownName

N, C = 12, 5
LABELS = torch.tensor([0, 0, 0, 1, 1, 3, 3, 3, 3, 0, 1, 3])  # classes 2 and 4 do not occur


def logits(seed: int = 0) -> torch.Tensor:
    return (
        (3 * torch.randn(N, C, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))
        .float()
        .requires_grad_()
    )


def reduce(p: torch.Tensor, loss: str) -> torch.Tensor:
    """Of probabilities, by the textbook."""
    weight = FOCAL_ALPHA * (1 - p) ** FOCAL_GAMMA if loss == "focal" else 1
    return (weight * -p.log()).mean()


def explicit(values: torch.Tensor, labels: torch.Tensor, kind: str, loss: str) -> torch.Tensor:
    """The same from the n x n matrix of images against the batch's prompts, one prompt per image."""
    square = values.double()[:, labels]  # column j is image j's own copy of its prompt
    rows, columns = square.softmax(1), square.softmax(0)
    same = labels[:, None] == labels[None, :]
    if kind == "contrastive-identity":
        return (reduce(rows.diagonal(), loss) + reduce(columns.diagonal(), loss)) / 2
    to_text = reduce((rows * same).sum(1), loss)
    if loss == "focal":
        return (to_text + reduce((columns * same).sum(0), loss)) / 2
    # Cross-entropy against the uniform target over the positives, less that target's entropy.
    target = same / same.sum(0, keepdim=True)
    cross = -(target * columns.log()).sum(0)
    entropy = -torch.where(same, target * target.clamp(min=1e-30).log(), 0).sum(0)
    return (to_text + (cross - entropy).mean()) / 2


@pytest.mark.parametrize("kind", ["contrastive", "contrastive-identity"])
@pytest.mark.parametrize("loss", LOSSES)
def test_against_the_explicit_matrix(kind: str, loss: str):
    x = logits()
    ours = reprogramming_loss(x, LABELS, kind, loss)
    theirs = explicit(x, LABELS, kind, loss)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    (a,), (b,) = torch.autograd.grad(ours, x), torch.autograd.grad(theirs, x)
    assert torch.isfinite(a).all() and (a - b).abs().max() < 1e-5 * max(1, float(b.abs().max()))


def test_class_cross_entropy_is_torchs():
    x = logits()
    assert torch.allclose(reprogramming_loss(x, LABELS, "class"), F.cross_entropy(x, LABELS))
    p = x.softmax(1)[torch.arange(N), LABELS]
    assert torch.allclose(reprogramming_loss(x, LABELS, "class", "focal"), (0.8 * (1 - p) ** 4 * -p.log()).mean())


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, C - 1), min_size=2, max_size=16), st.integers(0, 10_000))
def test_identity_targets_differ_by_a_constant_with_cross_entropy(labels: list[int], seed: int):
    y = torch.tensor(labels)
    counts = torch.bincount(y)[y].double()
    differences = []
    for s in (seed, seed + 1):
        x = torch.randn(len(y), C, generator=torch.Generator().manual_seed(s)).mul(5).requires_grad_()
        one, two = reprogramming_loss(x, y, "contrastive"), reprogramming_loss(x, y, "contrastive-identity")
        (a,), (b,) = torch.autograd.grad(one, x), torch.autograd.grad(two, x)
        assert (a - b).abs().max() < 1e-5
        differences.append(float(two.detach() - one.detach()))
    assert differences == pytest.approx([float(counts.log().mean())] * 2, abs=1e-4)


def test_focal_is_not_benign():
    x = logits()
    one, two = (reprogramming_loss(x, LABELS, kind, "focal") for kind in ("contrastive", "contrastive-identity"))
    (a,), (b,) = torch.autograd.grad(one, x), torch.autograd.grad(two, x)
    assert (a / a.norm() - b / b.norm()).abs().max() > 1e-2
    perfect = 50 * F.one_hot(LABELS, C).float()
    assert reprogramming_loss(perfect, LABELS, "contrastive", "focal") < 1e-6
    assert reprogramming_loss(perfect, LABELS, "contrastive-identity", "focal") > 0.1  # never falls to 0


def test_absent_classes_count_nothing():
    x = logits()
    moved = x.detach().clone()
    moved[:, [2, 4]] += 100
    for kind, changes in (("contrastive", False), ("contrastive-identity", False), ("class", True)):
        for loss in LOSSES:
            same = torch.allclose(
                reprogramming_loss(x, LABELS, kind, loss), reprogramming_loss(moved, LABELS, kind, loss)
            )
            assert same != changes


def test_half_precision_logits_and_unknown_names():
    assert reprogramming_loss(logits().bfloat16(), LABELS).dtype == torch.float32
    with pytest.raises(UnknownName, match="did you mean contrastive"):
        reprogramming_loss(logits(), LABELS, "contrastiv")
    for kind in OBJECTIVES:
        with pytest.raises(UnknownName, match="did you mean focal"):
            reprogramming_loss(logits(), LABELS, kind, "focall")
