"""Exercises of notebook 01, zero-shot CLIP."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rp_course.exercise import Case, Exercise, Mistake


def contrastive_loss(image_features: Tensor, text_features: Tensor, logit_scale: float) -> Tensor:
    """Loss of n pairs of unit features: picture i belongs to text i."""
    logits = logit_scale * image_features @ text_features.T  # (n, n): row = picture, column = text
    own = torch.arange(len(logits))  # the right answer of row i is column i, and the other way round
    to_text = F.cross_entropy(logits, own)
    to_image = F.cross_entropy(logits.T, own)
    return (to_text + to_image) / 2


def _one_direction(image_features, text_features, logit_scale):
    logits = logit_scale * image_features @ text_features.T
    return F.cross_entropy(logits, torch.arange(len(logits)))


def _unscaled_loss(image_features, text_features, logit_scale):
    return contrastive_loss(image_features, text_features, 1.0)


def _both_added(image_features, text_features, logit_scale):
    return 2 * contrastive_loss(image_features, text_features, logit_scale)


def _pairs_alone(image_features, text_features, logit_scale):
    return -(logit_scale * (image_features * text_features).sum(1)).mean()


def _pairs(n: int, d: int, seed: int, alike: float) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(n, d, generator=generator)
    texts = alike * images + torch.randn(n, d, generator=generator)
    return F.normalize(images, dim=1), F.normalize(texts, dim=1)


def _loss_cases() -> tuple[Case, ...]:
    return (
        Case("six random pairs", (*_pairs(6, 16, 0, 0.0), 10.0)),
        Case("six pairs that fit", (*_pairs(6, 16, 1, 2.0), 10.0)),
        Case("another logit scale", (*_pairs(5, 8, 2, 1.0), 3.0)),
    )


def zero_shot_logits(image_features: Tensor, class_embeddings: Tensor, logit_scale: float) -> Tensor:
    """Logits (n, C) of image features (n, d) of any length and unit class embeddings (C, d)."""
    unit = image_features / image_features.norm(dim=1, keepdim=True)
    return logit_scale * unit @ class_embeddings.T


def _features_as_they_are(image_features, class_embeddings, logit_scale):
    return logit_scale * image_features @ class_embeddings.T


def _cosines(image_features, class_embeddings, logit_scale):
    return F.normalize(image_features, dim=1) @ class_embeddings.T


def _divided(image_features, class_embeddings, logit_scale):
    return F.normalize(image_features, dim=1) @ class_embeddings.T / logit_scale


def _normalised_over_images(image_features, class_embeddings, logit_scale):
    return logit_scale * F.normalize(image_features, dim=0) @ class_embeddings.T


def _logit_cases() -> tuple[Case, ...]:
    generator = torch.Generator().manual_seed(0)
    features = 3 * torch.randn(7, 12, generator=generator)
    classes = F.normalize(torch.randn(5, 12, generator=generator), dim=1)
    return (
        Case("features of length about 10", (features, classes, 100.0)),
        Case("features of length 1, another scale", (F.normalize(features, dim=1), classes, 20.0)),
        Case("one picture, two classes", (features[:1], classes[:2], 47.5)),
    )


def average_templates(prompt_features: Tensor) -> Tensor:
    """Unit class embeddings (C, d) of prompt features (C, T, d): C classes, T templates, any length."""
    unit = F.normalize(prompt_features, dim=-1)  # every template has the same say
    return F.normalize(unit.mean(dim=1), dim=-1)  # a mean of unit vectors is shorter than 1


def _mean_alone(prompt_features):
    return F.normalize(prompt_features, dim=-1).mean(dim=1)


def _long_prompts_win(prompt_features):
    return F.normalize(prompt_features.mean(dim=1), dim=-1)


def _over_classes(prompt_features):
    return F.normalize(F.normalize(prompt_features, dim=-1).mean(dim=0), dim=-1)


def _first_template(prompt_features):
    return F.normalize(prompt_features[:, 0], dim=-1)


def _template_cases() -> tuple[Case, ...]:
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randn(4, 3, 8, generator=generator)
    lengths = torch.tensor([0.5, 1.0, 6.0]).view(1, 3, 1)
    return (
        Case("four classes, three templates", (F.normalize(prompts, dim=-1),)),
        Case("prompts of different lengths", (prompts * lengths,)),
        Case("as many classes as templates", (prompts[:3] * lengths,)),
    )


EXERCISES = (
    Exercise(
        reference=contrastive_loss,
        minutes=8,
        cases=_loss_cases,
        hints=(
            "Start with the (n, n) matrix of cosines times the logit scale; features are of unit length already.",
            "Row i is a classification of picture i among the n texts, and its right answer is i: F.cross_entropy.",
            "Columns are the other direction: cross-entropy of logits.T with the same answers; average the two.",
        ),
        mistakes=(
            Mistake(_one_direction, "this is one direction only: average it with the one from text to picture"),
            Mistake(_unscaled_loss, "the logit scale is missing: logits are cosines times the logit scale"),
            Mistake(_both_added, "both directions are right; average them instead of adding"),
            Mistake(
                _pairs_alone,
                "this only pulls pairs together: a model that maps everything to one point would be perfect. The "
                "softmax over the other texts (cross-entropy) pushes strangers apart",
            ),
        ),
    ),
    Exercise(
        reference=zero_shot_logits,
        minutes=4,
        cases=_logit_cases,
        hints=(
            "Logits are cosine similarities times a number; what is missing for a plain product to be a cosine?",
            "The class embeddings are of unit length; divide every image feature by its own norm (over the last axis).",
            "F.normalize(image_features, dim=1) @ class_embeddings.T has shape (n, C); multiply by logit_scale.",
        ),
        mistakes=(
            Mistake(
                _features_as_they_are,
                "the image features are not of unit length: normalise them, or long features look confident",
            ),
            Mistake(_cosines, "these are the cosines: multiply them by the logit scale"),
            Mistake(_divided, "the logit scale multiplies the cosines (it is one over the temperature)"),
            Mistake(_normalised_over_images, "normalise each picture's feature (dim=1), not each column over pictures"),
        ),
        tolerance=1e-4,
    ),
    Exercise(
        reference=average_templates,
        minutes=5,
        cases=_template_cases,
        hints=(
            "Three steps: unit length, mean over templates, unit length again.",
            "The axes are (class, template, feature): the mean is over dim=1, lengths are over dim=-1.",
            "F.normalize(F.normalize(prompt_features, dim=-1).mean(dim=1), dim=-1)",
        ),
        mistakes=(
            Mistake(
                _mean_alone,
                "the mean of unit vectors is shorter than 1: normalise it, or classes whose templates disagree get "
                "smaller logits",
            ),
            Mistake(_long_prompts_win, "normalise every prompt before the mean, or the longest vectors decide it"),
            Mistake(_over_classes, "average over the templates (dim=1), not over the classes"),
            Mistake(_first_template, "this uses the first template only: average over all of them"),
        ),
    ),
)
