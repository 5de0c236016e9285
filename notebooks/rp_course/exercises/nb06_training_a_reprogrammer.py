"""Exercises of notebook 06: the loss, its floor, and the cost of a step."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rp_course.exercise import Case, Exercise, Mistake


def image_to_text_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Scalar loss with copies of prompts, without copying: from float (n, C) logits and int (n,) labels."""
    count = torch.bincount(labels, minlength=logits.shape[1]).float()
    own = logits.gather(1, labels[:, None])[:, 0]
    return ((logits + count.log()).logsumexp(dim=1) - own).mean()


def _each_class_once(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels)


def _constant_forgotten(logits: Tensor, labels: Tensor) -> Tensor:
    count = torch.bincount(labels, minlength=logits.shape[1]).float()
    return F.cross_entropy(logits + count.log(), labels)


def _counts_on_logits(logits: Tensor, labels: Tensor) -> Tensor:
    count = torch.bincount(labels, minlength=logits.shape[1]).float()
    own = logits.gather(1, labels[:, None])[:, 0]
    return ((logits * count).logsumexp(dim=1) - own).mean()


def _loss_cases() -> tuple[Case, ...]:
    g = torch.Generator().manual_seed(6)
    return (
        Case("8 images of 3 classes", (torch.randn(8, 3, generator=g), torch.tensor([0, 0, 1, 2, 2, 2, 0, 0]))),
        Case("a class that the batch lacks", (torch.randn(5, 4, generator=g), torch.tensor([0, 3, 3, 1, 0]))),
        Case("at CLIP's scale", (100 * (0.2 + 0.02 * torch.randn(16, 4, generator=g)), torch.arange(16) % 3)),
    )


def loss_floor(labels: Tensor) -> float:
    """The least image-to-text loss of a batch with int (n,) labels when only the own copy of a prompt is right."""
    count = torch.bincount(labels)
    return float(count[labels].float().log().mean())


def _log_of_the_mean(labels: Tensor) -> float:
    return float(torch.bincount(labels)[labels].float().mean().log())


def _mean_over_classes(labels: Tensor) -> float:
    count = torch.bincount(labels).float()
    return float(count[count > 0].log().mean())


def _log_of_the_batch(labels: Tensor) -> float:
    return float(torch.tensor(float(len(labels))).log())


def _floor_cases() -> tuple[Case, ...]:
    g = torch.Generator().manual_seed(7)
    return (
        Case("128 images of 10 classes", (torch.randint(10, (128,), generator=g),)),
        Case("every class once", (torch.tensor([3, 0, 2, 1]),)),
        Case("three of one class, one of another", (torch.tensor([5, 5, 1, 5]),)),
    )


def two_way_loss(image_features: Tensor, text_features: Tensor, labels: Tensor, scale: float) -> Tensor:
    """Contrastive loss of a batch in both directions, a scalar."""
    logits = scale * image_features @ text_features.T
    images, count = torch.arange(len(labels), device=labels.device), torch.bincount(labels, minlength=logits.shape[1])
    log_count = count.float().log()
    image_to_text = (logits + log_count).log_softmax(dim=1)[images, labels]
    text_to_image = logits.log_softmax(dim=0)[images, labels] + log_count[labels]
    return -(image_to_text.mean() + text_to_image.mean()) / 2


def _only_over_classes(image_features: Tensor, text_features: Tensor, labels: Tensor, scale: float) -> Tensor:
    logits = scale * image_features @ text_features.T
    return (
        -(logits + torch.bincount(labels, minlength=logits.shape[1]).float().log())
        .log_softmax(1)[torch.arange(len(labels)), labels]
        .mean()
    )


def _without_the_scale(image_features: Tensor, text_features: Tensor, labels: Tensor, scale: float) -> Tensor:
    return two_way_loss(image_features, text_features, labels, 1.0)


def _without_the_counts(image_features: Tensor, text_features: Tensor, labels: Tensor, scale: float) -> Tensor:
    logits, images = scale * image_features @ text_features.T, torch.arange(len(labels))
    return -(logits.log_softmax(1)[images, labels].mean() + logits.log_softmax(0)[images, labels].mean()) / 2


def _two_way_cases() -> tuple[Case, ...]:
    g = torch.Generator().manual_seed(8)

    def unit(*shape: int) -> Tensor:
        return F.normalize(torch.randn(*shape, generator=g), dim=-1)

    return (
        Case("6 images of 3 classes", (unit(6, 4), unit(3, 4), torch.tensor([0, 1, 2, 2, 0, 0]), 5.0)),
        Case("a class without images", (unit(5, 8), unit(4, 8), torch.tensor([0, 3, 3, 1, 0]), 10.0)),
        Case("gradients reach the features", (unit(4, 6).requires_grad_(), unit(2, 6), torch.arange(4) % 2, 100.0)),
    )


def step_flops(forward: float, trains_pixels: bool, trains_weights: bool) -> float:
    """FLOPs of a training step of a tower whose forward pass costs `forward`."""
    flops = forward
    if trains_pixels or trains_weights:
        flops += forward
    if trains_weights:
        flops += forward
    return flops


def _frozen_is_free(forward: float, trains_pixels: bool, trains_weights: bool) -> float:
    return 3 * forward if trains_weights else forward


def _only_one_backward(forward: float, trains_pixels: bool, trains_weights: bool) -> float:
    return 2 * forward if trains_pixels or trains_weights else forward


def _one_for_each(forward: float, trains_pixels: bool, trains_weights: bool) -> float:
    return forward * (1 + trains_pixels + trains_weights)


def _flop_cases() -> tuple[Case, ...]:
    return (
        Case("nothing is trained", (1.0, False, False)),
        Case("pixels are trained, weights are frozen", (8.7, True, False)),
        Case("weights are trained, pixels are not", (8.7, False, True)),
        Case("both are trained", (2.0, True, True)),
    )


EXERCISES = (
    Exercise(
        image_to_text_loss,
        8,
        _loss_cases,
        (
            "One row of the copied matrix gives -s_own + log(sum over all n columns of exp(s)). Group equal columns.",
            "A class with k columns gives k exp(s) = exp(s + log k), so: (logits + count.log()).logsumexp(dim=1).",
            "torch.bincount(labels, minlength=C) counts; a class that is not there has log 0 = -inf: it adds nothing.",
        ),
        (
            Mistake(
                _each_class_once,
                "this is plain class cross-entropy: in the batch a class has as many columns as images, and none if it "
                "has no image",
            ),
            Mistake(
                _constant_forgotten,
                "the gradient is right, the value is not: only one of the k equal columns counts as right, so log k "
                "is not added to the image's own logit",
            ),
            Mistake(
                _counts_on_logits, "k columns give k exp(s), that is exp(s + log k): add log k, do not multiply by k"
            ),
        ),
    ),
    Exercise(
        loss_floor,
        6,
        _floor_cases,
        (
            "k equal columns share the probability: the best that the own one can get is 1/k, and -log(1/k) = log k.",
            "torch.bincount(labels) counts the classes; indexed with labels it gives each image its class's count.",
            "The mean of the logarithms: count[labels].float().log().mean() with that count.",
        ),
        (
            Mistake(
                _log_of_the_mean, "take the logarithm for each image, then the mean; the mean first gives too much"
            ),
            Mistake(_mean_over_classes, "the loss is a mean over images, so a class of many images counts many times"),
            Mistake(_log_of_the_batch, "that is the loss of guessing; the prompt of another class can be told apart"),
        ),
    ),
    Exercise(
        two_way_loss,
        10,
        _two_way_cases,
        (
            "S.log_softmax(dim=1) runs over the classes, S.log_softmax(dim=0) over the images of the batch.",
            "n_c is torch.bincount(labels, minlength=C); S[torch.arange(n), labels] takes each image's own class.",
            "log(n_y * p) = log n_y + log p, so both directions are a log_softmax and a log count.",
        ),
        (
            Mistake(_only_over_classes, "this is the direction from image to text alone; the other one is missing"),
            Mistake(_without_the_scale, "the cosine similarities must be multiplied by scale before the softmax"),
            Mistake(_without_the_counts, "log n_c is missing: a class counts as often as the batch holds its images"),
        ),
    ),
    Exercise(
        step_flops,
        6,
        _flop_cases,
        (
            "Backward through a layer has two parts, each as dear as forward: gradients of input and of weights.",
            "A frozen layer skips the second part. Can it skip the first, if something in front of it is trained?",
            "forward + (forward if anything is trained) + (forward if weights are trained)",
        ),
        (
            Mistake(
                _frozen_is_free,
                "frozen weights get no gradient, but the border's gradient must still pass through every block",
            ),
            Mistake(
                _only_one_backward,
                "a layer whose weights are trained computes two gradients: of its input, to go on, and of its weights",
            ),
            Mistake(
                _one_for_each,
                "to train weights alone, the gradient must still reach the inputs of all layers but the first",
            ),
        ),
    ),
)
