"""What makes reprogramming less intrusive, and how does one measure it? Features and words after each adaptation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from rp_course.drift import class_spread, cosine_drift, linear_cka
from rp_course.experiments.base import COLUMNS, Drawing, Experiment, Verdict, over_seeds
from rp_course.experiments.measures import (
    Claim,
    Panel,
    claimed_differences,
    describe_measures,
    draw_measures,
    verdicts_of,
)
from rp_course.experiments.world import World
from rp_lib.benchmark import Benchmark, ImageSet
from rp_lib.clip import FrozenCLIP
from rp_lib.comparison import draws_over_seeds
from rp_lib.features import FeatureStore
from rp_lib.methods import BASES, Method
from rp_lib.stats import Design, Resamples, bootstrap_ci
from rp_lib.towers import cut_padding

NAMES = ("zero-shot", "fine-tune", "l2-sp", "wise-ft", "coop", "rp-image", "rp-text", "rp", "rrp")
QUICK = ("zero-shot", "fine-tune", "rp", "rrp")
# Halves of the pictures for the measures that need all of them at once, which are slow; and only on the first set of
# each role.
HALVES, PAIRED_HALVES = 20, 1000
CONTEXT = 16  # vectors of CoOp as published, where they fit
DRIFT, CKA, WORDS, SPREAD = (
    "cosine drift on test", "linear CKA on test", "open-vocabulary accuracy on near", "within-class spread on test",
)  # fmt: skip
CLAIMS = (
    Claim("RP moves ID features less than fine-tuning", DRIFT, "rp", "fine-tune", "lower"),
    Claim("RRP moves ID features less than fine-tuning", DRIFT, "rrp", "fine-tune", "lower"),
    Claim("RP keeps the geometry of ID features better than fine-tuning", CKA, "rp", "fine-tune", "higher"),
    Claim("RRP keeps the geometry of ID features better than fine-tuning", CKA, "rrp", "fine-tune", "higher"),
    Claim("RP keeps more open-vocabulary accuracy than fine-tuning", WORDS, "rp", "fine-tune", "higher"),
    Claim("RRP keeps more open-vocabulary accuracy than fine-tuning", WORDS, "rrp", "fine-tune", "higher"),
    Claim("fine-tuning costs open-vocabulary accuracy", WORDS, "fine-tune", "zero-shot", "lower"),
    Claim("RP tightens ID classes against zero-shot", SPREAD, "rp", "zero-shot", "lower"),
)
COMPARED = frozenset(m for claim in CLAIMS for m in (claim.first, claim.second))


def measure(world: World, parts: Path) -> pd.DataFrame:
    """CKA and drift against zero-shot, tightness of classes, and accuracy on classes that the task never named."""
    clip, benchmark = world.backbone(), world.judged
    names = QUICK if world.quick else NAMES
    inverted = [images for name, images in benchmark.controls.items() if name == "dark"]  # no shift for CLIP itself
    sets = [benchmark.test, *benchmark.shifts.values(), *inverted, *benchmark.ood.values()]
    whole = {s.name for s in (benchmark.test, *list(benchmark.shifts.values())[:1], *list(benchmark.ood.values())[:1])}
    zero_shot = world.fit("zero-shot", 0, benchmark, clip)
    store = world.store(clip)
    rows, compared = [], {name: [] for name in names if name in COMPARED}
    near = benchmark.ood.get("near")
    sizes = dict.fromkeys((DRIFT, CKA, SPREAD), len(benchmark.test))
    if near is not None and near.names is not None:
        sizes[WORDS] = len(near)
    for seed in world.seeds:
        fitted: dict[str, Method] = {"zero-shot": zero_shot}
        for name in names:
            if name in BASES and BASES[name] not in fitted:
                fitted[BASES[name]] = world.fit(BASES[name], seed, benchmark, clip)
            if name not in fitted:
                settings = with_room(world.tuned(name), near, benchmark, clip) if name == "coop" else None
                fitted[name] = world.fit(name, seed, benchmark, clip, settings=settings, fitted=fitted.values())
            method = fitted[name]
            for images in sets:
                features = method.mix_features(*(store.get(e, images) for e in method.encoders))
                rows += _of_set(name, seed, images, features, store.get(clip, images), images.name in whole)
            for images in sets:
                if images.names is not None:
                    correct = _open_vocabulary(images, method, store)
                    found = bootstrap_ci(correct, seed=seed)
                    rows.append(_row(name, seed, images, "open-vocabulary accuracy", found))
            if name in COMPARED and (name != "zero-shot" or not compared[name]):  # nothing is drawn in zero-shot
                compared[name].append(_on_halves(method, benchmark.test, near if WORDS in sizes else None, store))
        world.forget(*fitted.values())
    table = pd.DataFrame(rows)
    keys = ["method", "set", "metric"]
    own = table.groupby(keys, sort=False).apply(over_seeds, include_groups=False).reset_index().assign(
        versus=None, p_holm=float("nan"), n_ood=None, detector=""
    )  # fmt: skip
    designs = [Design.of([(1.0, s.groups.numpy())]) for s in [benchmark.test] * 3 + [near] * (WORDS in sizes)]
    # Halves drawn without replacement spread by no more than they should: the variance needs no inflation.
    paired = draws_over_seeds(compared, list(sizes), [design._replace(inflation=1.0) for design in designs])
    differences = claimed_differences(paired, CLAIMS, sizes, len(world.seeds))
    return pd.concat([own, differences], ignore_index=True).assign(space="features")[["space", *COLUMNS]]


def with_room(settings: dict, images: ImageSet | None, benchmark: Benchmark, clip: FrozenCLIP) -> dict:
    """CoOp's settings; a context that is to be as long as fits leaves room for the words of an image set, too."""
    if "n_context" in settings:
        return settings
    words = {*benchmark.class_names, *((images and images.names) or ())}
    tokens = clip.tokenize([word + benchmark.templates[0].split("{}")[1] for word in words])
    longest = cut_padding(tokens).shape[1]  # with both marks
    return settings | {"n_context": min(CONTEXT, tokens.shape[1] - longest)}


def _on_halves(method: Method, test: ImageSet, near: ImageSet | None, store: FeatureStore) -> np.ndarray:
    """float64 (1 + r, measures): the measures that are claimed about, of all pictures and as if of r other samples.

    The samples are halves of the designers, the same ones for every method and seed, moved so that their mean is the
    measure of all pictures: half as many pictures bias CKA and spreads, see :meth:`rp_lib.stats.Resamples.halves`.
    """
    features = method.mix_features(*(store.get(e, test) for e in method.encoders))
    before = store.get(method.clip, test)
    drift = cosine_drift(features, before)
    halves = _halves(test)
    columns = [
        halves.mean(drift),
        halves.apply(lambda half: linear_cka(features[half], before[half])),
        halves.apply(lambda half: class_spread(features[half], test.labels[half])[0]),
    ]
    if near is not None:
        columns.append(_halves(near).mean(_open_vocabulary(near, method, store)))
    found = np.stack(columns, 1)
    found[1:] += found[0] - found[1:].mean(0)
    return found


def _halves(images: ImageSet) -> Resamples:
    """Draw half of the designers of an image set; each image counts with its designer."""
    designers, ids = np.unique(images.groups.numpy(), return_inverse=True)
    return Resamples.halves(len(designers), PAIRED_HALVES, seed=0).of_members(ids)


def _of_set(
    name: str, seed: int, images: ImageSet, features: torch.Tensor, before: torch.Tensor, whole: bool
) -> list[dict]:
    rows = [_row(name, seed, images, "cosine drift", bootstrap_ci(cosine_drift(features, before), seed=seed))]
    if not whole:
        return rows
    rows.append(_row(name, seed, images, "linear CKA", halves_ci(linear_cka, (features, before), seed)))
    if images.labels is not None:
        for which, metric in enumerate(("within-class spread", "between-class spread")):
            spread = lambda x, y, k=which: class_spread(x, y)[k]  # noqa: E731
            rows.append(_row(name, seed, images, metric, halves_ci(spread, (features, images.labels), seed)))
    return rows


def halves_ci(
    statistic: Callable[..., float], tensors: Sequence[torch.Tensor], seed: int
) -> tuple[float, float, float]:
    """Compute a statistic of n pictures with its 95 % interval, from the spread over halves of them."""
    halves = Resamples.halves(len(tensors[0]), HALVES, seed)
    value, *drawn = halves.apply(lambda half: statistic(*(t[half] for t in tensors)))
    margin = 1.96 * np.std(drawn, ddof=1)
    return value, value - margin, value + margin


def _open_vocabulary(images: ImageSet, method: Method, store: FeatureStore) -> np.ndarray:
    """float64 (n,), 1 for correct, over the words of an image set that shows none of the task's classes."""
    words = sorted(set(images.names))
    features = method.mix_features(*(store.get(e, images) for e in method.encoders))
    guess = (features @ method.encode_classes(words).T).argmax(1)
    return np.array([words[g] == w for g, w in zip(guess.tolist(), images.names, strict=True)], float)


def _row(name: str, seed: int, images: ImageSet, metric: str, interval: tuple[float, float, float]) -> dict:
    value, low, high = interval
    return {"method": name, "seed": seed, "set": images.name, "metric": metric, "value": value, "low": low,
            "high": high, "n": len(images)}  # fmt: skip


def judge(records: pd.DataFrame) -> list[Verdict]:
    """Whether the residual and the programs keep more of CLIP than fine-tuning does, on the same pictures and seeds."""
    return verdicts_of(records, CLAIMS)


PANELS = (
    Panel("cosine drift", "test", "Cosine drift, ID test", "0: features unmoved"),
    Panel("linear CKA", "test", "Linear CKA, ID test", "1: same geometry"),
    Panel("open-vocabulary accuracy", "near", "Accuracy on classes\nthe task never named", "higher is better"),
    Panel("within-class spread", "test", "Spread within ID classes", "lower: tighter"),
)

DRAWINGS = {
    "": Drawing(
        lambda r: draw_measures(r, PANELS, "How far each adaptation moves CLIP's features and words"),
        lambda r: describe_measures(r, PANELS),
    )
}


EXPERIMENT = Experiment(
    "intrusion", "What makes reprogramming less intrusive, and how does one measure it?", ("space",), measure, judge,
    19,
    figures=lambda: DRAWINGS,
)  # fmt: skip
