"""The solutions of the course are right: each agrees with another implementation, on the exercise's own cases."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from open_clip.loss import ClipLoss
from rp_course.exercise import Outcome, complaint, exercises, run
from rp_course.experiments.base import direction
from scipy.stats import norm
from sklearn.metrics import recall_score, roc_auc_score
from sklearn.neighbors import NearestNeighbors

from rp_lib.metrics import ood_metrics
from rp_lib.programs import ImageProgram


def rates_at(id_scores, ood_scores, threshold):
    known = np.r_[np.ones(len(id_scores)), np.zeros(len(ood_scores))]
    accepted = np.r_[id_scores, ood_scores] >= threshold
    return recall_score(known, accepted), 1 - recall_score(known, accepted, pos_label=0)


def auroc_by_pairs(id_scores, ood_scores):
    known = np.r_[np.ones(len(id_scores)), np.zeros(len(ood_scores))]
    return float(roc_auc_score(known, np.r_[id_scores, ood_scores]))


def average_templates(prompt_features):
    p = prompt_features.double().numpy()
    mean = (p / np.linalg.norm(p, axis=2, keepdims=True)).mean(axis=1)
    return torch.tensor(mean / np.linalg.norm(mean, axis=1, keepdims=True)).float()


def l2_sp_penalty(weights, start, strength):
    return strength * sum(0.5 * F.mse_loss(weights[k], start[k], reduction="sum") for k in weights)


def dead_share(placed, W, M):
    W = W.clone().requires_grad_()
    alive = torch.zeros_like(W, dtype=torch.bool)
    for image in placed:
        (grad,) = torch.autograd.grad((image + torch.tanh(W * M)).clamp(0, 1).sum(), W)
        alive |= grad != 0
    border = M.bool().expand_as(W)
    return 1 - alive[border].float().mean().item()


def shrink_factor(rates, decay):
    weight = torch.nn.Parameter(torch.ones((), dtype=torch.float64))
    for rate in rates:
        weight.grad = torch.zeros_like(weight)
        torch.optim.AdamW([weight], lr=rate, weight_decay=decay).step()
    return weight.item()


def one_standard_error(alphas, accuracies, n):
    top = int(np.argmax(accuracies))
    right = accuracies[top] * n
    error = np.sqrt(right * (n - right) / n) / n  # of a binomial count, as a fraction
    return [a for a, acc in sorted(zip(alphas, accuracies, strict=True)) if acc - accuracies[top] >= -error][-1]


def holm(p_values):
    p, m = p_values.tolist(), len(p_values)
    order = sorted(range(m), key=p.__getitem__)
    step = {i: min(1.0, (m - k) * p[i]) for k, i in enumerate(order)}
    return torch.tensor([max(step[j] for j in order[: order.index(i) + 1]) for i in range(m)]).to(p_values.dtype)


def linear_cka(first, second):
    centre = torch.eye(len(first)) - 1 / len(first)
    K, L = (centre @ x @ x.T @ centre for x in (first, second))  # by Gram matrices (Kornblith et al. 2019, eq. 3)
    return (K * L).sum() / (K.norm() * L.norm())


def neighbour_purity(features, labels, k):
    near = NearestNeighbors(n_neighbors=k).fit(features.numpy()).kneighbors(return_distance=False)
    return torch.tensor(np.mean(labels.numpy()[near] == labels.numpy()[:, None]), dtype=torch.float32)


def map_labels(labels, new):
    moved = [new.tolist()[i] for i in labels.tolist()]
    return torch.tensor([m for m in moved if m != -1]), torch.tensor([m != -1 for m in moved])


def two_way_loss(image_features, text_features, labels, scale):
    """With a copy of the prompt for every image, against the diagonal; log n_y is what the copies add to each direction."""
    table, right = scale * (image_features @ text_features.T)[:, labels], torch.arange(len(labels))
    counts = (labels[:, None] == labels).sum(1).float()
    return (F.cross_entropy(table, right) + F.cross_entropy(table.T, right)) / 2 - counts.log().mean()


def mixed_length(cosine, alpha):
    first = torch.stack([torch.ones_like(cosine), torch.zeros_like(cosine)], 1)
    second = torch.stack([cosine, (1 - cosine**2).clamp_min(0).sqrt()], 1)
    return ((1 - alpha) * first + alpha * second).norm(dim=1)


def paired_interval(first, second, draws):
    gap = (first - second).double().numpy()
    means = [gap[d].mean() for d in draws.numpy()]
    return float(gap.mean()), *(float(np.percentile(means, q)) for q in (2.5, 97.5))


def expected_distinct(batch, classes):
    """Draw by draw: the chance of each number of distinct classes so far."""
    chance = np.eye(classes + 1)[0]
    number = np.arange(classes + 1)
    for _ in range(batch):
        new = chance * (1 - number / classes)
        chance = chance - new + np.r_[0, new[:-1]]
    return float(chance @ number)


def pictures_needed(half_width, accuracy):
    z, n = norm.ppf(0.975), 1
    while z * np.sqrt(accuracy * (1 - accuracy) / n) > half_width:
        n += 1
    return n


INDEPENDENT = {
    "contrastive_loss": lambda images, texts, scale: ClipLoss()(images, texts, scale),
    "zero_shot_logits": lambda f, c, scale: scale * F.cosine_similarity(f[:, None], c[None], dim=2),
    "average_templates": average_templates,
    "rates_at": rates_at,
    "auroc_by_pairs": auroc_by_pairs,
    "fpr_at_tpr": lambda known, alien, tpr: ood_metrics(known, alien, tpr=tpr)["fpr"],
    "l2_sp_penalty": l2_sp_penalty,
    "interpolate_weights": lambda zs, ft, alpha: {k: torch.lerp(ft[k], zs[k], alpha) for k in zs},
    "verdict_of": lambda low, high, p: direction({"value": (low + high) / 2, "low": low, "high": high, "p_holm": p}),
    "border_mask": lambda size, padding: ImageProgram(size, padding).M,
    "program_image": lambda placed, W, M: torch.tensor(np.clip(placed.numpy() + np.tanh((W * M).numpy()), 0, 1)),
    "dead_share": dead_share,
    "program_tokens": lambda tokens, Theta, b: F.embedding(tokens, Theta) + F.embedding(torch.arange(tokens.shape[1]), b),
    "seen_tokens": lambda tokens, marks: torch.tensor(sorted(set(tokens.flatten().tolist()) - set(marks.tolist()))),
    "shrink_factor": shrink_factor,
    "image_to_text_loss": lambda logits, labels: F.cross_entropy(logits[:, labels], torch.arange(len(labels))),
    "loss_floor": lambda labels: F.cross_entropy(1e4 * (labels[:, None] == labels).float(), torch.arange(len(labels))).item(),
    "two_way_loss": two_way_loss,
    "step_flops": lambda f, pixels, weights: f * {(0, 0): 1, (1, 0): 2, (0, 1): 3, (1, 1): 3}[pixels, weights],
    "mix_features": lambda rp, zs, alpha: (m := torch.lerp(rp, zs, alpha)) / m.square().sum(1, keepdim=True).sqrt(),
    "mixed_length": mixed_length,
    "one_standard_error": one_standard_error,
    "paired_interval": paired_interval,
    "holm": holm,
    "wrapped": lambda x: torch.tensor((x.numpy() * np.float32(255)).astype(np.int64).astype(np.uint8) / np.float32(255)),
    "map_labels": map_labels,
    "linear_cka": linear_cka,
    "neighbour_purity": neighbour_purity,
    "expected_distinct": expected_distinct,
    "whole_batch_gradient": lambda g, n: torch.tensor(np.average(torch.stack(g).numpy(), axis=0, weights=n)).to(g[0].dtype),
    "leaked": lambda train, test: [i for i, b in enumerate(test) if any(torch.equal(a, b) for a in train)],
    "pictures_needed": pictures_needed,
}  # fmt: skip
CASES = [(item, seed, case) for _, item in exercises() for seed, case in enumerate(item.cases())]


def test_every_exercise_has_an_independent_implementation():
    names = {item.name for _, item in exercises()}
    assert names - INDEPENDENT.keys() == set(), "add another implementation to INDEPENDENT"
    assert INDEPENDENT.keys() - names == set()


@pytest.mark.parametrize(("item", "seed", "case"), CASES, ids=[f"{i.name}-{c.name}" for i, _, c in CASES])
def test_solution_agrees_with_another_implementation(item, seed, case):
    if item.name not in INDEPENDENT:
        pytest.skip("reported above")
    found = run(item.reference, case.args, case.kwargs, seed)
    expected = INDEPENDENT[item.name](*case.args, **case.kwargs)
    if isinstance(found.value, torch.Tensor):
        found, expected = Outcome(found.value.detach()), expected.detach()
    assert complaint(Outcome(expected), found, max(item.tolerance, 1e-5)) == ""


def test_another_implementation_would_notice():
    """The comparison tells every mistake from the truth, for each exercise."""
    for _, item in exercises():
        for mistake in item.mistakes if item.name in INDEPENDENT else ():
            same = []
            for (seed, case), truth in zip(enumerate(item.cases()), itertools.repeat(INDEPENDENT[item.name])):
                found = run(mistake.function, case.args, case.kwargs, seed)
                same.append(
                    complaint(Outcome(truth(*case.args, **case.kwargs)), found, max(item.tolerance, 1e-5)) == ""
                )
            assert not all(same), (item.name, mistake.message)
