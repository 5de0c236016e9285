"""Image features: computed once per encoder and image set, then shared by everything that needs them."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from rp_lib.benchmark import ImageSet
from rp_lib.utils import distributed
from rp_lib.utils.arguments import checked
from rp_lib.utils.device import evaluating
from rp_lib.utils.errors import RPLibError


class Encoder(Protocol):
    """Anything that turns images into features."""

    def encode(self, images: Tensor) -> Tensor:
        """Unit float32 (n, d) features of uint8 or float [0, 1] images (n, 3, h, w)."""


def encode_all(encoder: Encoder, images: Tensor, *, batch_size: int = 256, progress: str | None = None) -> Tensor:
    """Unit float32 (n, d) features on the CPU, batch by batch, without gradients and in full precision.

    Several processes share the batches; each gets all features.

    Raises:
        RPLibError: there are no images, or a feature is not finite.
    """
    if not len(images):
        raise RPLibError("there are no images to encode")
    parts = images.split(batch_size)
    # Whole batches are shared out, so that features are those of one process to the bit.
    shares = [parts[distributed.share(len(parts), of)] for of in range(distributed.world_size())]
    hidden = progress is None or not distributed.is_main()
    bar = tqdm(shares[distributed.rank()], desc=progress, unit="batch", disable=hidden, leave=False)
    # Not inference_mode: its tensors could take no part in training.
    with torch.no_grad(), evaluating():
        features = torch.cat([encoder.encode(part).cpu() for part in bar])
        if len(parts) >= len(shares):  # else each has encoded them all
            features = distributed.gather_parts(features, [sum(map(len, mine)) for mine in shares])
    if not bool(torch.isfinite(features).all()):
        bad = int((~torch.isfinite(features)).any(1).nonzero()[0])
        raise RPLibError(f"the features of image {bad} are not finite: the backbone or the trained program is damaged")
    return features


@checked
class FeatureStore:
    """Remember features by (encoder, image set), both by identity; several methods share one backbone's.

    Example:
        >>> store = FeatureStore()
        >>> accuracies = [method.accuracy(data.test, store) for method in (probe, zero_shot)]  # doctest: +SKIP
    """

    def __init__(self, batch_size: int = 256) -> None:
        self.batch_size = batch_size
        self._features: dict[tuple[int, int], tuple[Encoder, ImageSet, Tensor]] = {}

    @checked
    def get(self, encoder: Encoder, image_set: ImageSet, progress: str | None = None) -> Tensor:
        """Unit float32 (n, d) features on the CPU."""
        key = (id(encoder), id(image_set))
        if key not in self._features:
            features = encode_all(encoder, image_set.images, batch_size=self.batch_size, progress=progress)
            # The objects are kept too, so that their ids cannot be given to others.
            self._features[key] = (encoder, image_set, features)
        return self._features[key][2]

    def drop(self, encoder: Encoder) -> None:
        """Drop what an encoder computed, to free memory."""
        self._features = {key: value for key, value in self._features.items() if value[0] is not encoder}
