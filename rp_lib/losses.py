"""Losses between a batch of images and class prompts.

With C classes and a batch of n images, everything follows from the (n, C) matrix of logits: a prompt that
stands for twelve images of the batch is encoded once, not twelve times.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rp_lib.utils.errors import UnknownName

OBJECTIVES = ("class", "contrastive", "contrastive-identity")
LOSSES = ("cross-entropy", "focal")
FOCAL_ALPHA, FOCAL_GAMMA = 0.8, 4.0


def _reduce(log_p: Tensor, loss: str) -> Tensor:
    """Mean of -log p, or of the focal loss -alpha (1 - p)^gamma log p (Lin et al. 2017, arXiv 1708.02002)."""
    if loss == "cross-entropy":
        return -log_p.mean()
    if loss == "focal":
        return -(FOCAL_ALPHA * (1 - log_p.exp()).clamp(0, 1) ** FOCAL_GAMMA * log_p).mean()
    raise UnknownName("loss", loss, LOSSES)


def objective(logits: Tensor, labels: Tensor, kind: str = "contrastive", loss: str = "cross-entropy") -> Tensor:
    """Scalar loss of float (n, C) scaled logits and int (n,) labels.

    * ``class``: each image against all C prompts.
    * ``contrastive``: the batch's images against the batch's prompts, both directions averaged; every image
      of a class is a positive of its prompt (the paper's loss).
    * ``contrastive-identity``: as released, image i's only positive is its own copy of the prompt, so p
      is at most one over the class's count in the batch. With cross-entropy this is ``contrastive`` plus a
      constant; with the focal loss it is not, because (1 - p) never falls to 0.
    """
    if kind not in OBJECTIVES:
        raise UnknownName("objective", kind, OBJECTIVES)
    logits = logits.float()
    own = labels[:, None]
    if kind == "class":
        return _reduce(logits.log_softmax(1).gather(1, own)[:, 0], loss)
    count = torch.bincount(labels, minlength=logits.shape[1]).float()
    # Image to text: the batch holds count[c] copies of prompt c, so its column enters count[c] times.
    to_text = (logits + count.log()).log_softmax(1).gather(1, own)[:, 0]
    # Text to image: a prompt's softmax runs over the images of the batch.
    over_images = logits.log_softmax(0)
    if kind == "contrastive-identity":
        to_text = to_text - count.log()[labels]
        to_image = over_images.gather(1, own)[:, 0]
    elif loss == "cross-entropy":
        # Mean over positives of the log-probability: the gradient of the identity target, without its constant.
        to_image = over_images.gather(1, own)[:, 0] + count.log()[labels]
    else:
        same = F.one_hot(labels, logits.shape[1]).bool()
        to_image = torch.where(same, over_images, -torch.inf).logsumexp(0)[labels]
    return (_reduce(to_text, loss) + _reduce(to_image, loss)) / 2
