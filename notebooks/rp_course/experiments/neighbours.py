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

from rp_course.experiments.base import COLUMNS, SHIPPED, Drawing, Experiment, Verdict, over_seeds
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
from rp_lib.comparison import draws_over_seeds
from rp_lib.stats import Design, Resamples, auroc_and_fpr, bootstrap_ci, bootstrap_ood, resample_sets
from rp_lib.utils.errors import MissingDependency, RPLibError
from rp_lib.utils.io import load_table, save_table

NAMES = ("zero-shot", "fine-tune", "rp", "rrp")
PICTURES, NEIGHBOURS, PAIRED_RESAMPLES = 240, 10, 5000
SAME, ACROSS, SILHOUETTE, DISTANCE = (
    "ID neighbours of the same class", "ID neighbours of a shifted picture that share its class",
    "silhouette of ID classes", "AUROC of the distance to ID",
)  # fmt: skip
CLAIMS = (
    Claim("programmed ID features cluster more tightly than zero-shot's", SILHOUETTE, "rp", "zero-shot", "higher"),
    Claim("RP brings shifted pictures nearer to ID pictures of their class than zero-shot", ACROSS, "rp", "zero-shot",
          "higher"),
    Claim("RRP brings shifted pictures nearer to ID pictures of their class than fine-tuning", ACROSS, "rrp",
          "fine-tune", "higher"),
    Claim("the distance to ID pictures tells OOD better in RP's features than in zero-shot's", DISTANCE, "rp",
          "zero-shot", "higher"),
)  # fmt: skip


def measure(world: World, parts: Path) -> pd.DataFrame:
    """Neighbourhood measures of features and of their UMAP; the map's points are left in ``parts/points.csv``."""
    clip, benchmark = world.backbone(), world.judged
    shift, ood = next(iter(benchmark.shifts.values())), next(iter(benchmark.ood.values()))
    sets = [s.subsample(PICTURES // (3 if world.quick else 1)) for s in (benchmark.test, shift, ood)]
    store, rows, points = world.store(clip), [], []
    several = _with_company(sets[0].labels.numpy())
    draws = list(resample_sets({s.name: s.groups.numpy() for s in sets}, (), PAIRED_RESAMPLES, (0,)).values())
    compared: dict[str, list[np.ndarray]] = {name: [] for name in NAMES}
    for seed in world.seeds:
        fitted = {}
        for name in NAMES:
            method = fitted[name] = world.fit(name, seed, benchmark, clip, fitted=fitted.values())
            features = [
                F.normalize(method.mix_features(*(store.get(e, s) for e in method.encoders)), dim=1).numpy()
                for s in sets
            ]
            flat = np.split(umap(np.concatenate(features), seed), np.cumsum([len(f) for f in features])[:-1])
            for space, where in (("features", features), ("UMAP", flat)):
                measured = _measures(where, sets)
                rows += _rows(name, seed, space, measured)
                if space == "features" and (name != "zero-shot" or not compared[name]):  # nothing is drawn in zero-shot
                    compared[name].append(_resampled(measured, draws, several))
            trust = _trust(np.concatenate(features), np.concatenate(flat))
            rows.append((name, seed, "UMAP", "trustworthiness", *trust))
            if seed == world.seeds[0]:
                points += _points(name, flat, sets)
        world.forget(*fitted.values())
    table = pd.DataFrame(points, columns=["method", "set", "role", "label", "source", "x", "y"])
    save_table(parts / "points.csv", table, "%.3f")
    records = pd.DataFrame(rows, columns=["method", "seed", "space", "metric", "value", "low", "high", "n"])
    table = records.groupby(["space", "method", "metric"], sort=False).apply(over_seeds, include_groups=False)
    names = f"test, {shift.name}, {ood.name}"
    table = table.reset_index().assign(versus=None, p_holm=np.nan, set=names, n_ood=len(sets[2]), detector="")
    sizes = {ACROSS: len(sets[1]), SILHOUETTE: int(several.sum()), DISTANCE: len(sets[0])}
    test, shifted, outside = ((1.0, s.groups.numpy()) for s in sets)
    designs = [Design.of(pools) for pools in ([shifted], [test], [test, outside])]
    paired = draws_over_seeds(compared, list(sizes), designs)
    differences = claimed_differences(paired, CLAIMS, sizes, len(world.seeds))
    differences = differences.assign(space="features", set=names, n_ood=len(sets[2]))
    return pd.concat([table, differences], ignore_index=True)[["space", *COLUMNS]]


def umap(features: np.ndarray, seed: int) -> np.ndarray:
    """float32 (n, 2) map of unit features (n, d), by umap-learn with cosine distance; the seed makes it repeatable.

    Raises:
        RPLibError: Fewer than four points.
        MissingDependency: umap-learn is not installed.
    """
    import warnings

    if len(features) < 4:
        raise RPLibError(f"a map of neighbours needs at least four pictures, got {len(features)}: give more")

    try:
        with warnings.catch_warnings():  # of tensorflow, which is not there and not needed
            warnings.simplefilter("ignore")
            from umap import UMAP
    except ImportError as error:
        raise MissingDependency("umap-learn", 'pip install -e ".[notebooks]"') from error
    neighbours, threads = min(15, len(features) - 1), torch.get_num_threads()
    try:
        with warnings.catch_warnings():  # that one seed means one thread, which is what is wanted
            warnings.simplefilter("ignore")
            return UMAP(n_neighbors=neighbours, metric="cosine", random_state=seed, n_jobs=1).fit_transform(features)
    finally:
        torch.set_num_threads(threads)  # which compiling changes, for all of the process


def nearest(queries: np.ndarray, references: np.ndarray, k: int, same: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Distances and positions, (n, k) each, of the k nearest references; ``same``: a point is not its own neighbour."""
    from sklearn.neighbors import NearestNeighbors

    k = min(k, len(references) - same)
    found = NearestNeighbors(n_neighbors=k).fit(references)
    return found.kneighbors(None if same else queries)


def _with_company(labels: np.ndarray) -> np.ndarray:
    """Which pictures, bool (n,), are of a class that has another one, so that they have a silhouette."""
    return np.isin(labels, np.flatnonzero(np.bincount(labels) > 1))


def _measures(spaces: list[np.ndarray], sets: list[ImageSet]) -> dict[str, np.ndarray]:
    """One number for each picture: shares of neighbours, silhouettes, and mean distances to ID neighbours."""
    from sklearn.metrics import silhouette_samples

    test, shift, ood = spaces
    labels, shifted = (s.labels.numpy() for s in sets[:2])
    near, own = nearest(test, test, NEIGHBOURS, same=True)
    across = labels[nearest(shift, test, NEIGHBOURS)[1]]
    several = _with_company(labels)
    return {
        SAME: (labels[own] == labels[:, None]).mean(1),
        ACROSS: (across == shifted[:, None]).mean(1),
        SILHOUETTE: silhouette_samples(test[several], labels[several]),
        "ID distance": near.mean(1),
        "OOD distance": nearest(ood, test, NEIGHBOURS)[0].mean(1),
    }


def _rows(name: str, seed: int, space: str, measured: Mapping[str, np.ndarray]) -> list[tuple[object, ...]]:
    """Means over pictures and the AUROC of the distance, each with its bootstrap interval."""
    found = {metric: bootstrap_ci(measured[metric], seed=seed) for metric in (SAME, ACROSS, SILHOUETTE)}
    near, far = -measured["ID distance"], -measured["OOD distance"]
    found[DISTANCE] = bootstrap_ood(near, {"": far}, ("auroc",), seed=seed)[""]["auroc"]
    sizes = {**{metric: len(values) for metric, values in measured.items()}, DISTANCE: len(near)}
    return [(name, seed, space, metric, *interval, sizes[metric]) for metric, interval in found.items()]


def _resampled(measured: Mapping[str, np.ndarray], draws: list[Resamples], several: np.ndarray) -> np.ndarray:
    """float64 (1 + r, 3): ACROSS, SILHOUETTE and DISTANCE of the data and of the same resamples of test, shift, OOD.

    Designers are drawn as queries; whom they may have as neighbours stays.
    """
    test, shift, ood = draws
    silhouette = test.of_members(np.flatnonzero(several)).mean(measured[SILHOUETTE])
    auroc, _ = auroc_and_fpr(-measured["ID distance"], {"": -measured["OOD distance"]}, test, {"": ood})[""]
    return np.stack([shift.mean(measured[ACROSS]), silhouette, auroc], axis=1)


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
    return load_table(path).astype({"label": int})  # a number here, though names elsewhere


def pictures_of(points: pd.DataFrame, benchmark: Benchmark) -> torch.Tensor:
    """uint8 (n, 3, h, w): the pictures behind points of the map, from the whole benchmark that it was made of."""
    sets = {s.name: s for s in benchmark.sets}
    return torch.stack([sets[name].images[i] for name, i in zip(points["set"], points["source"], strict=True)])


def judge(records: pd.DataFrame) -> list[Verdict]:
    """What the neighbours say in the features themselves, method against method on the same pictures and seeds."""
    return verdicts_of(records, CLAIMS)


PANELS = (
    Panel("ID neighbours of the same class", None, "ID neighbours\nof the same class", "higher is tighter"),
    Panel("ID neighbours of a shifted picture that share its class", None,
          "ID neighbours of a shifted\npicture of its class", "higher is better"),
    Panel("silhouette of ID classes", None, "Silhouette of ID classes", "higher is tighter"),
    Panel("AUROC of the distance to ID", None, "AUROC of the\ndistance to ID", "higher is better"),
)  # fmt: skip

DRAWINGS = {
    "": Drawing(
        lambda r: draw_measures(r, PANELS, "Neighbours in the features themselves"),
        lambda r: describe_measures(r, PANELS),
    )
}


EXPERIMENT = Experiment(
    "neighbours", "Do programmed features cluster more tightly, and does that explain detection?", ("space",), measure,
    judge, 3,
    figures=lambda: DRAWINGS,
)  # fmt: skip
