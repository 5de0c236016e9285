"""LoCoOp and GL-MCM, which read the features of an image's patches beside those of the image.

Miyai et al. 2023, LoCoOp, arXiv 2306.01293; Miyai et al. 2023, GL-MCM, arXiv 2304.04521.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from rp_lib.benchmark import ImageSet
from rp_lib.clip import FrozenCLIP
from rp_lib.features import FeatureStore
from rp_lib.methods.base import Method
from rp_lib.methods.baselines.prompts import CoOp
from rp_lib.towers import encode_patches, vision_part
from rp_lib.utils.arguments import checked
from rp_lib.utils.device import computing, in_float32
from rp_lib.utils.distributed import gather
from rp_lib.utils.errors import RPLibError


class PatchEncoder:
    """Encodes an image and its patches with a frozen CLIP, as one row of features.

    Raises:
        RPLibError: The image tower is no plain vision transformer.

    Example:
        >>> PatchEncoder(clip).encode(images).shape  # 16 patches, features of 256 numbers  # doctest: +SKIP
        torch.Size([8, 4352])
    """

    def __init__(self, clip: FrozenCLIP) -> None:
        vision_part(clip.model)  # refused now, not when training begins
        self.clip = clip

    def encode(self, images: Tensor) -> Tensor:
        """Encode uint8 or float images (n, 3, h, w): float32 (n, (1 + p) d), features of unit length in a row.

        The first d numbers are those of :meth:`rp_lib.clip.FrozenCLIP.encode`; those of the p patches follow.
        """
        with computing(self.clip.device):
            pixels = self.clip.normalize(self.clip.prepare(images))
            rows = encode_patches(vision_part(self.clip.model), pixels)  # (n, 1 + p, d)
            return F.normalize(rows.float(), dim=-1).flatten(1)


@dataclass(kw_only=True, eq=False, repr=False)
class LoCoOp(CoOp):
    """CoOp whose prompts learn from the background, too: patches that look like other classes become uncertain.

    To the cross-entropy over the images' own features comes ``-strength`` times the mean entropy over classes of the
    patches whose ``share`` of most probable classes does not hold the image's class. The features of all patches of
    the training set are kept in memory; the authors train on 16 images a class.

    Args:
        strength: The authors' lambda, at least 0; 0 is :class:`CoOp`.
        share: Of the classes, in (0, 1]. The authors take 200 of ImageNet's 1,000 (their K).
        n_context, start, class_specific, lr, weight_decay, epochs, batch_size, warmup_steps, seed, precision: See
            :class:`CoOp`; the published batch has 32 images.

    Raises:
        RPLibError: The image tower is no plain vision transformer.

    Example:
        >>> locoop = LoCoOp(clip, class_names, templates, n_context=4).fit(train_set)  # doctest: +SKIP
    """

    name = "locoop"

    strength: float = 0.25
    share: float = 0.2
    batch_size: int = 32

    def __post_init__(self) -> None:
        self._patches = PatchEncoder(self.clip)
        super().__post_init__()

    def training_inputs(self, train_set: ImageSet, store: FeatureStore) -> Tensor:
        """Return the features of images and patches, float32 (n, (1 + p) d)."""
        return store.get(self._patches, train_set)

    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Compute the cross-entropy minus the entropy of the background, a scalar; see :meth:`Method.loss`."""
        prompts = self.prompt_embeddings()
        features = gather(inputs, len(labels)).unflatten(1, (-1, prompts.shape[1]))  # (n, 1 + p, d)
        with in_float32(self.device):
            logits = self.clip.logit_scale * features @ prompts.T  # (n, 1 + p, C)
            probable = logits[:, 1:].softmax(-1)
            best = probable.topk(max(1, round(self.share * len(prompts))), dim=-1).indices
            background = ~(best == labels[:, None, None]).any(-1)  # (n, p)
            entropy = -(probable * (probable + 1e-5).log()).sum(-1)  # the authors' guard against log 0
            mean = (entropy * background).sum() / background.sum().clamp(min=1)
            return F.cross_entropy(logits[:, 0], labels) - self.strength * mean


@checked
def gl_mcm(method: Method, rows: Tensor, temperature: float = 1.0) -> np.ndarray:
    """Score how much images look like ID, as a whole and in their best patch (GL-MCM).

    The score is max_c softmax_c(cos / T) of the image plus the maximum over patches of the same.

    Args:
        method: Compares the untouched CLIP's image features with class embeddings, as zero-shot and CoOp do.
        rows: Of :class:`PatchEncoder` with the method's backbone, float32 (n, (1 + p) d).
        temperature: T, above 0.

    Returns:
        float64 (n,), in (0, 2]; higher is more like ID.

    Raises:
        RPLibError: The method has other image features or no class embeddings.

    Example:
        >>> gl_mcm(locoop, encode_all(PatchEncoder(clip), test.images)).shape  # doctest: +SKIP
        (400,)
    """
    if method.encoders != (method.clip,) or not hasattr(method, "class_embeddings"):
        raise RPLibError(
            f"GL-MCM compares the untouched CLIP's features with class embeddings; {method.name!r} has others"
        )
    features = rows.unflatten(1, (-1, method.clip.embed_dim))  # (n, 1 + p, d)
    cosines = method.head(features).double() / method.clip.logit_scale  # (n, 1 + p, C)
    best = (cosines / temperature).softmax(-1).amax(-1)
    return (best[:, 0] + best[:, 1:].amax(1)).detach().numpy()
