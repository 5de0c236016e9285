"""Do programmed features cluster more tightly, and does that explain detection? UMAP, with numbers beside the picture.

UMAP shows what its authors' method makes of the neighbours of each picture; it proves nothing. So the same neighbours
are measured in the features themselves: how many nearest neighbours share the class, how well silhouettes separate, how
well the distance to ID pictures tells OOD ones, and how faithful the map is (trustworthiness).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from rp_lib.benchmark import Benchmark, ImageSet
from rp_lib.errors import MissingDependency
from rp_lib.experiments.base import (
    COLUMNS,
    FAILS,
    HOLDS,
    SHIPPED,
    UNDECIDED,
    Drawing,
    Experiment,
    Verdict,
    over_seeds,
    row,
)
from rp_lib.experiments.world import World
from rp_lib.metrics import ood_metrics
from rp_lib.storage import StorageError, write_atomically
from rp_lib.subsets import evenly

NAMES = ("zero-shot", "fine-tune", "rp", "rrp")
PICTURES, NEIGHBOURS, RESAMPLES = 240, 10, 200


def measure(world: World, parts: Path) -> pd.DataFrame:
    """Neighbourhood measures of features and of their UMAP; the map's points are left in ``parts/points.csv``."""
    clip, benchmark = world.backbone(), world.judged
    shift, ood = next(iter(benchmark.shifts.values())), next(iter(benchmark.ood.values()))
    sets = [s.subset(evenly(len(s), PICTURES // (3 if world.quick else 1))) for s in (benchmark.test, shift, ood)]
    store, rows, points = world.store(clip), [], []
    for seed in world.seeds:
        fitted = {}
        for name in NAMES:
            method = fitted[name] = world.fit(name, seed, benchmark, clip, fitted=fitted.values())
            features = [
                F.normalize(method.combine(*(store.get(e, s) for e in method.encoders)), dim=1).numpy() for s in sets
            ]
            flat = np.split(umap(np.concatenate(features), seed), np.cumsum([len(f) for f in features])[:-1])
            rows += _measures(name, seed, features, sets, "features")
            rows += _measures(name, seed, flat, sets, "UMAP")
            trust = _trust(np.concatenate(features), np.concatenate(flat))
            rows.append((name, seed, "UMAP", "trustworthiness", *trust))
            if seed == world.seeds[0]:
                points += _points(name, flat, sets)
        world.forget(*fitted.values())
    table = pd.DataFrame(points, columns=["method", "set", "role", "label", "source", "x", "y"])
    write_atomically(parts / "points.csv", lambda p: table.to_csv(p, index=False, float_format="%.3f"))
    records = pd.DataFrame(rows, columns=["method", "seed", "space", "metric", "value", "low", "high", "n"])
    table = records.groupby(["space", "method", "metric"], sort=False).apply(over_seeds, include_groups=False)
    names = f"test, {shift.name}, {ood.name}"
    table = table.reset_index().assign(versus=None, p_holm=np.nan, set=names, n_ood=len(sets[2]), detector="")
    return table[["space", *COLUMNS]]


def umap(features: np.ndarray, seed: int) -> np.ndarray:
    """float32 (n, 2) map of unit features (n, d), by umap-learn with cosine distance; the seed makes it repeatable.

    Raises:
        MissingDependency: umap-learn is not installed.
    """
    import warnings

    try:
        with warnings.catch_warnings():  # of tensorflow, which is not there and not needed
            warnings.simplefilter("ignore")
            from umap import UMAP
    except ImportError as error:
        raise MissingDependency("umap-learn", 'pip install -e ".[notebooks]"') from error
    neighbours = min(15, len(features) - 1)
    with warnings.catch_warnings():  # that one seed means one thread, which is what is wanted
        warnings.simplefilter("ignore")
        return UMAP(n_neighbors=neighbours, metric="cosine", random_state=seed, n_jobs=1).fit_transform(features)


def nearest(queries: np.ndarray, references: np.ndarray, k: int, same: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Distances and positions, (n, k) each, of the k nearest references; ``same``: a point is not its own neighbour."""
    from sklearn.neighbors import NearestNeighbors

    k = min(k, len(references) - same)
    found = NearestNeighbors(n_neighbors=k).fit(references)
    return found.kneighbors(None if same else queries)


def _measures(
    name: str, seed: int, spaces: list[np.ndarray], sets: list[ImageSet], space: str
) -> list[tuple[object, ...]]:
    from sklearn.metrics import silhouette_samples

    test, shift, ood = spaces
    labels, shifted = (s.labels.numpy() for s in sets[:2])
    rng = np.random.default_rng(seed)
    rows: list[tuple[object, ...]] = []

    def add(metric: str, values: np.ndarray) -> None:
        means = values[rng.integers(0, len(values), (RESAMPLES, len(values)))].mean(1)
        rows.append((name, seed, space, metric, values.mean(), *np.quantile(means, (0.025, 0.975)), len(values)))

    own = labels[nearest(test, test, NEIGHBOURS, same=True)[1]]
    add("ID neighbours of the same class", (own == labels[:, None]).mean(1))
    across = labels[nearest(shift, test, NEIGHBOURS)[1]]
    add("ID neighbours of a shifted picture that share its class", (across == shifted[:, None]).mean(1))
    several = np.isin(labels, np.flatnonzero(np.bincount(labels) > 1))
    add("silhouette of ID classes", silhouette_samples(test[several], labels[several]))
    id_near = nearest(test, test, NEIGHBOURS, same=True)[0].mean(1)
    ood_near = nearest(ood, test, NEIGHBOURS)[0].mean(1)
    drawn = []
    for _ in range(RESAMPLES):
        one, two = (v[rng.integers(0, len(v), len(v))] for v in (id_near, ood_near))
        drawn.append(ood_metrics(-one, -two)["auroc"])
    auroc = ood_metrics(-id_near, -ood_near)["auroc"]
    rows.append(
        (name, seed, space, "AUROC of the distance to ID", auroc, *np.quantile(drawn, (0.025, 0.975)), len(test))
    )
    return rows


def _trust(features: np.ndarray, flat: np.ndarray) -> tuple[float, float, float, int]:
    from sklearn.manifold import trustworthiness

    value = float(trustworthiness(features, flat, n_neighbors=min(NEIGHBOURS, (len(flat) - 1) // 2), metric="cosine"))
    return value, value, value, len(flat)


def _points(name: str, flat: list[np.ndarray], sets: list[ImageSet]) -> list[tuple[object, ...]]:
    found: list[tuple[object, ...]] = []
    for where, images in zip(flat, sets, strict=True):
        labels = torch.full((len(images),), -1) if images.labels is None else images.labels
        columns = zip(labels.tolist(), images.sources.tolist(), where.tolist(), strict=True)
        found += [(name, images.name, images.role, label, source, x, y) for label, source, (x, y) in columns]
    return found


def shipped_points(path: Path = SHIPPED / "neighbours-points.csv") -> pd.DataFrame:
    """The map that ships: ``method, set, role, label`` (-1: OOD), ``source`` (position in its image set), ``x, y``.

    Raises:
        StorageError: it is missing.
    """
    if not path.is_file():
        raise StorageError(f"{path} is missing; install rp_lib again, or run `rp-lib experiment neighbours`")
    return pd.read_csv(path)


def pictures_of(points: pd.DataFrame, benchmark: Benchmark) -> torch.Tensor:
    """uint8 (n, 3, h, w): the pictures behind points of the map, from the whole benchmark that it was made of."""
    sets = {s.name: s for s in benchmark.sets}
    return torch.stack([sets[name].images[i] for name, i in zip(points["set"], points["source"], strict=True)])


def judge(records: pd.DataFrame) -> list[Verdict]:
    """What the neighbours say, in the features and in the map."""
    claims = [
        ("programmed ID features cluster more tightly than zero-shot's", "silhouette of ID classes", "rp", "zero-shot"),
        ("RP brings shifted pictures nearer to ID pictures of their class than zero-shot",
         "ID neighbours of a shifted picture that share its class", "rp", "zero-shot"),
        ("RRP brings shifted pictures nearer to ID pictures of their class than fine-tuning",
         "ID neighbours of a shifted picture that share its class", "rrp", "fine-tune"),
        ("the distance to ID pictures tells OOD better in RP's features than in zero-shot's",
         "AUROC of the distance to ID", "rp", "zero-shot"),
    ]  # fmt: skip
    verdicts = []
    for claim, metric, first, second in claims:
        one, two = (row(records, space="features", metric=metric, method=m) for m in (first, second))
        outcome = HOLDS if one["low"] > two["high"] else FAILS if one["high"] < two["low"] else UNDECIDED
        numbers = [f"{m} {r['value']:.3f} [{r['low']:.3f}, {r['high']:.3f}]" for m, r in ((first, one), (second, two))]
        size = f"n = {int(one['n'])}, {int(one['seeds'])} seeds"
        verdicts.append(Verdict(claim, outcome, f"{metric}: {numbers[0]}, {numbers[1]}, {size}"))
    return verdicts


def _figures() -> Mapping[str, Drawing]:
    from rp_lib.experiments.drawings.measures import NEIGHBOURS_DRAWINGS

    return NEIGHBOURS_DRAWINGS


EXPERIMENT = Experiment(
    "neighbours", "Do programmed features cluster more tightly, and does that explain detection?", ("space",), measure,
    judge, 3,
    figures=_figures,
)  # fmt: skip
