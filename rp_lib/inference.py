"""Apply fitted methods to all images of a benchmark, so that everything after it is arithmetic on their outputs."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from rp_lib.benchmark import Benchmark, ImageSet
from rp_lib.device import evaluating
from rp_lib.errors import RPLibError
from rp_lib.features import FeatureStore
from rp_lib.methods import Method, ResidualReprogrammer
from rp_lib.negative_words import NegativeWords
from rp_lib.outputs import FORMAT, Head, MethodOutputs, Outputs


@torch.no_grad()
@evaluating()
def compute_outputs(
    method: Method,
    benchmark: Benchmark,
    *,
    seed: int,
    store: FeatureStore | None = None,
    roles: Collection[str] | None = None,
    others: Mapping[str, Method] | None = None,
    negatives: NegativeWords | None = None,
    progress: bool = False,
) -> MethodOutputs:
    """Features and logits of a fitted method for a benchmark; every encoder sees every image once.

    Args:
        method: fitted. benchmark: the images. seed: what it was fitted with. store: features already there.
        roles: of the sets to compute, default all.
        others: fitted methods whose logits detectors need beside the method's own, by name; COOkeD takes
            ``zero-shot`` and ``linear-probe``.
        negatives: negative words, from :func:`rp_lib.negative_words.mine_negative_words`.
        progress: show bars.

    Raises:
        RPLibError: two image sets have the same name.
    """
    store = store or FeatureStore()
    seen = method.for_detection()
    config = getattr(getattr(method, "rp", method), "config", None)
    # Row 6 of the ledger: the released script prints RP's accuracy in RRP's column.
    judged = method.rp if isinstance(method, ResidualReprogrammer) and config.report_rp_as_rrp else method
    images = [s for s in benchmark.sets if roles is None or s.role in roles]
    if len({s.name for s in images}) != len(images):
        raise RPLibError(f"two image sets of benchmark {benchmark.name!r} have the same name; rename one")

    def said(by: Method, data: ImageSet) -> tuple[Tensor, Tensor]:
        label = f"{by.name}: {data.name}" if progress else None
        features = by.combine(*(store.get(e, data, label) for e in by.encoders))
        return features, by.logits_from(features)

    features = {data.name: said(seen, data) for data in images}
    head = _head(seen, next(iter(features.values())), negatives, bool(getattr(config, "half_precision_detection", 0)))
    sets = {}
    for data in images:
        reported = None if (judged is seen or data.role not in ("test", "shift")) else said(judged, data)[1]
        sets[data.name] = Outputs(
            data.name, data.role, *features[data.name], data.labels, data.sources, data.groups, head,
            derived=data.derived_from is not None, reported_logits=reported,
            others={name: said(other, data)[1] for name, other in (others or {}).items()}, among=data.among,
        )  # fmt: skip
    if seen is not method:
        for encoder in seen.encoders:
            if encoder is not method.clip:
                store.forget(encoder)
    about = {
        **method.metadata(), "format": FORMAT, "seed": seed, "alpha": getattr(method, "alpha", None),
        "convention": getattr(config, "convention", "id-positive"), "logit_scale": head.logit_scale,
        "half_precision": head.half_precision, "benchmark": benchmark.name, "benchmark_sha256": benchmark.fingerprint,
        "others": sorted(others or {}), "negative_words": None if negatives is None else negatives.about(),
    }  # fmt: skip
    return MethodOutputs(json.loads(json.dumps(about)), sets)


def _head(method: Method, said: tuple[Tensor, Tensor], negatives: NegativeWords | None, half: bool) -> Head:
    """Weight and bias from what the method makes of the zero and of the unit vectors, if its logits are linear."""
    features, logits = said
    bias = method.logits_from(torch.zeros(1, features.shape[1]))[0]
    weight = (method.logits_from(torch.eye(features.shape[1])) - bias).T.contiguous()
    error = (features @ weight.T + bias - logits).abs().max()
    linear = bool(error <= 2e-3 * logits.abs().max())  # half precision keeps three digits
    embeddings = None if negatives is None else negatives.embeddings
    parts = (weight, bias) if linear else (None, None)
    return Head(*parts, logit_scale=method.clip.logit_scale, negatives=embeddings, half_precision=half)
