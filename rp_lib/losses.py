"""Losses between a batch of images and class prompts.

With C classes and a batch of n images, everything follows from the (n, C) matrix of logits: a prompt that
stands for twelve images of the batch is encoded once, not twelve times.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rp_lib.utils.errors import UnknownName

OBJECTIVES = ("class", "contrastive", "contrastive-identity", "sigmoid")
LOSSES = ("cross-entropy", "focal")
FOCAL_ALPHA, FOCAL_GAMMA = 0.8, 4.0


def reprogramming_loss(
    logits: Tensor,
    labels: Tensor,
    objective: str = "contrastive",
    loss: str = "cross-entropy",
    bias: float = 0.0,
) -> Tensor:
    """Return the loss of a batch of n images against the prompts of all C classes.

    Args:
        logits: Cosine similarities times CLIP's logit scale, shape (n, C).
        labels: Class indices, int64 of shape (n,).
        objective: What is contrasted with what.
            ``"class"``: each image with all C prompts (plain classification).
            ``"contrastive"``: the images of the batch with the prompts of the batch, in both directions, where every
            image of a class is a positive of its prompt. The paper's loss.
            ``"contrastive-identity"``: the same, but image i's only positive is its own copy of the prompt. What the
            released code computes. With cross-entropy this is ``"contrastive"`` plus a constant; with the focal loss
            it is not, because (1 - p) never falls to 0.
            ``"sigmoid"``: each image with each of the C prompts as a decision of its own, their losses added: what
            SigLIP was trained with (Zhai et al. 2023, arXiv 2303.15343), over classes in place of texts.
        loss: ``"cross-entropy"`` or ``"focal"`` (Lin et al. 2017, arXiv 1708.02002).
        bias: Added to the logits of ``"sigmoid"``, CLIP's own logit bias; no other objective depends on it.

    Returns:
        A float32 scalar.

    Example:
        >>> reprogramming_loss(torch.tensor([[9.0, 0.0], [0.0, 9.0]]), torch.tensor([0, 1])).item() < 0.001
        True
    """
    if objective not in OBJECTIVES:
        raise UnknownName("objective", objective, OBJECTIVES)
    logits = logits.float()
    images = torch.arange(len(labels), device=labels.device)
    if objective == "class":
        return _mean_loss(logits.log_softmax(dim=1)[images, labels], loss)
    if objective == "sigmoid":
        sign = 2 * F.one_hot(labels, logits.shape[1]) - 1  # (n, C): 1 for the image's own class, -1 for others
        return logits.shape[1] * _mean_loss(F.logsigmoid(sign * (logits + bias)), loss)

    # n_c = images of class c in the batch, so prompt c is present n_c times.
    log_count = torch.bincount(labels, minlength=logits.shape[1]).float().log()  # (C,), -inf for absent classes

    # Image -> text: adding log n_c to a logit is the same as repeating its column n_c times.
    image_to_text = (logits + log_count).log_softmax(dim=1)[images, labels]  # (n,)
    # Text -> image: the softmax of a prompt runs over the images of the batch.
    over_images = logits.log_softmax(dim=0)  # (n, C)
    text_to_image = over_images[images, labels]  # (n,)

    if objective == "contrastive-identity":
        # One copy of the prompt is the positive, so an image has 1 / n_c of its class's probability.
        image_to_text = image_to_text - log_count[labels]
    elif loss == "cross-entropy":
        # Mean over positives of the log-probability: the gradient of the identity target, without its constant.
        text_to_image = text_to_image + log_count[labels]
    else:
        # The probability of any image of the class, not of this one.
        same = F.one_hot(labels, logits.shape[1]).bool()  # (n, C)
        text_to_image = torch.where(same, over_images, -torch.inf).logsumexp(dim=0)[labels]
    return (_mean_loss(image_to_text, loss) + _mean_loss(text_to_image, loss)) / 2


def _mean_loss(log_p: Tensor, loss: str) -> Tensor:
    """Return the mean of -log p, or of the focal loss -alpha (1 - p)^gamma log p."""
    if loss == "cross-entropy":
        return -log_p.mean()
    if loss == "focal":
        return -(FOCAL_ALPHA * (1 - log_p.exp()).clamp(0, 1) ** FOCAL_GAMMA * log_p).mean()
    raise UnknownName("loss", loss, LOSSES)
