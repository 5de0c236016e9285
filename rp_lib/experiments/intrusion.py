"""What makes reprogramming less intrusive, and how does one measure it? Features and words after each adaptation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from rp_lib.benchmark import ImageSet
from rp_lib.experiments.base import COLUMNS, FAILS, HOLDS, UNDECIDED, Drawing, Experiment, Verdict, over_seeds, row
from rp_lib.experiments.world import World
from rp_lib.intervals import bootstrap_ci
from rp_lib.intrusion import cluster_tightness, cosine_drift, linear_cka
from rp_lib.methods import BASES, Method

NAMES = ("zero-shot", "fine-tune", "l2-sp", "wise-ft", "coop", "rp-image", "rp-text", "rp", "rrp")
QUICK = ("zero-shot", "fine-tune", "rp", "rrp")
# Halves of the pictures for the measures that need all of them at once, which are slow; and only on the first set of
# each role.
HALVES = 20


def measure(world: World, parts: Path) -> pd.DataFrame:
    """CKA and drift against zero-shot, tightness of classes, and accuracy on classes that the task never named."""
    clip, benchmark = world.backbone(), world.judged
    names = QUICK if world.quick else NAMES
    sets = [benchmark.test, *benchmark.shifts.values(), *benchmark.ood.values()]
    whole = {s.name for s in (benchmark.test, *list(benchmark.shifts.values())[:1], *list(benchmark.ood.values())[:1])}
    zero_shot = world.fit("zero-shot", 0, benchmark, clip)
    store = world.store(clip)
    rows = []
    for seed in world.seeds:
        fitted: dict[str, Method] = {"zero-shot": zero_shot}
        for name in names:
            if name in BASES and BASES[name] not in fitted:
                fitted[BASES[name]] = world.fit(BASES[name], seed, benchmark, clip)
            if name not in fitted:
                fitted[name] = world.fit(name, seed, benchmark, clip, fitted=fitted.values())
            method = fitted[name]
            for images in sets:
                features = method.combine(*(store.get(e, images) for e in method.encoders))
                rows += _of_set(name, seed, images, features, store.get(clip, images), images.name in whole)
            for images in sets:
                if images.names is not None:
                    rows.append(_open_vocabulary(name, seed, images, method, store))
        world.forget(*fitted.values())
    table = pd.DataFrame(rows)
    keys = ["method", "set", "metric"]
    return table.groupby(keys, sort=False).apply(over_seeds, include_groups=False).reset_index().assign(
        space="features", versus=None, p_holm=float("nan"), n_ood=None, detector=""
    )[["space", *COLUMNS]]  # fmt: skip


def _of_set(
    name: str, seed: int, images: ImageSet, features: torch.Tensor, before: torch.Tensor, whole: bool
) -> list[dict]:
    rows = [_row(name, seed, images, "cosine drift", bootstrap_ci(cosine_drift(features, before), seed=seed))]
    if not whole:
        return rows
    rows.append(_row(name, seed, images, "linear CKA", halves_ci(linear_cka, (features, before), seed)))
    if images.labels is not None:
        for which, metric in enumerate(("within-class spread", "between-class spread")):
            spread = lambda x, y, k=which: cluster_tightness(x, y)[k]  # noqa: E731
            rows.append(_row(name, seed, images, metric, halves_ci(spread, (features, images.labels), seed)))
    return rows


def halves_ci(
    statistic: Callable[..., float], tensors: Sequence[torch.Tensor], seed: int
) -> tuple[float, float, float]:
    """A statistic of n pictures and its 95 % interval from the spread over halves of them, drawn without replacement.

    The delete-half jackknife (Efron and Tibshirani 1993, ch. 11): of a mean, the variance over such halves is
    (1 - 1/2) s^2 / (n / 2) = s^2 / n, the squared standard error. A bootstrap would draw pictures twice, which biases
    CKA and spreads.
    """
    n, g = len(tensors[0]), torch.Generator().manual_seed(seed)
    drawn = [torch.randperm(n, generator=g)[: n // 2] for _ in range(HALVES)]
    values = np.array([statistic(*(t[half] for t in tensors)) for half in drawn])
    value, half = statistic(*tensors), 1.96 * values.std(ddof=1)
    return value, value - half, value + half


def _open_vocabulary(name: str, seed: int, images: ImageSet, method: Method, store: object) -> dict:
    """Accuracy over the words of an image set that shows none of the task's classes."""
    words = sorted(set(images.names))
    features = method.combine(*(store.get(e, images) for e in method.encoders))
    guess = (features @ method.word_embeddings(words).T).argmax(1)
    correct = np.array([words[g] == w for g, w in zip(guess.tolist(), images.names, strict=True)], float)
    return _row(name, seed, images, "open-vocabulary accuracy", bootstrap_ci(correct, seed=seed))


def _row(name: str, seed: int, images: ImageSet, metric: str, interval: tuple[float, float, float]) -> dict:
    value, low, high = interval
    return {"method": name, "seed": seed, "set": images.name, "metric": metric, "value": value, "low": low,
            "high": high, "n": len(images)}  # fmt: skip


def judge(records: pd.DataFrame) -> list[Verdict]:
    """Whether the residual and the programs keep more of CLIP than fine-tuning does."""
    claims = [
        ("RP moves ID features less than fine-tuning", "test", "cosine drift", "rp", "fine-tune", "lower"),
        ("RRP moves ID features less than fine-tuning", "test", "cosine drift", "rrp", "fine-tune", "lower"),
        ("RP keeps the geometry of ID features better than fine-tuning", "test", "linear CKA", "rp", "fine-tune",
         "higher"),
        ("RRP keeps the geometry of ID features better than fine-tuning", "test", "linear CKA", "rrp", "fine-tune",
         "higher"),
        ("RP keeps more open-vocabulary accuracy than fine-tuning", "near", "open-vocabulary accuracy", "rp",
         "fine-tune", "higher"),
        ("RRP keeps more open-vocabulary accuracy than fine-tuning", "near", "open-vocabulary accuracy", "rrp",
         "fine-tune", "higher"),
        ("fine-tuning costs open-vocabulary accuracy", "near", "open-vocabulary accuracy", "fine-tune", "zero-shot",
         "lower"),
        ("RP tightens ID classes against zero-shot", "test", "within-class spread", "rp", "zero-shot", "lower"),
    ]  # fmt: skip
    there = set(records["set"])
    return [_apart(records, *claim) for claim in claims if claim[1] in there]


def _apart(records: pd.DataFrame, claim: str, data: str, metric: str, first: str, second: str, want: str) -> Verdict:
    one, two = (row(records, set=data, metric=metric, method=m) for m in (first, second))
    lower, higher = one["high"] < two["low"], one["low"] > two["high"]
    outcome = UNDECIDED if not (lower or higher) else HOLDS if (lower if want == "lower" else higher) else FAILS
    numbers = [f"{m} {r['value']:.3f} [{r['low']:.3f}, {r['high']:.3f}]" for m, r in ((first, one), (second, two))]
    return Verdict(claim, outcome, f"{metric} on {data}: {numbers[0]}, {numbers[1]}, n = {int(one['n'])} (unpaired)")


def _figures() -> Mapping[str, Drawing]:
    from rp_lib.experiments.drawings.measures import INTRUSION_DRAWINGS

    return INTRUSION_DRAWINGS


EXPERIMENT = Experiment(
    "intrusion", "What makes reprogramming less intrusive, and how does one measure it?", ("space",), measure, judge, 5,
    figures=_figures,
)  # fmt: skip
