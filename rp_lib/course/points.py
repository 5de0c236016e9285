"""A map of features whose points show their picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, OffsetImage

from rp_lib.course.slides import Facts, Slides
from rp_lib.course.stage import Stage
from rp_lib.errors import RPLibError

OVERVIEW = "overview"
NEIGHBOURS = 5
MOST = 120  # stops; of more points an even selection


def points_widget(xy: Any, images: Any, labels: Sequence[Any], title: str = "") -> Slides:
    """Slider over points, label by label: the point's picture and those of its five nearest neighbours on the map.

    Stops are ``"overview"`` (some pictures on the map) and numbers of points. ``.at(stop)`` gives ``point``, ``label``,
    ``neighbours`` (numbers of points) and ``alike`` (how many of these have its label); of the overview ``points`` and
    ``labels``, their numbers.

    Args:
        xy: (n, 2), for example of UMAP. images: uint8 or float in [0, 1], (n, 3, h, w). labels: n texts or numbers.
        title: of the map.

    Raises:
        RPLibError: lengths that do not fit, or fewer points than a neighbourhood needs.
    """
    xy, images = np.asarray(xy, dtype=np.float64), torch.as_tensor(images)
    names = [str(label) for label in (labels.tolist() if hasattr(labels, "tolist") else labels)]
    n = len(names)
    if xy.shape != (n, 2) or images.ndim != 4 or len(images) != n:
        raise RPLibError(
            f"xy {xy.shape} and images {tuple(images.shape)} must be (n, 2) and (n, 3, h, w), n = {n} labels"
        )
    if n <= NEIGHBOURS:
        raise RPLibError(f"at least {NEIGHBOURS + 1} points are needed, got {n}")
    atlas = _Map(xy, images, names, title)
    order = sorted(range(n), key=lambda i: (names[i], i))
    stops = [OVERVIEW, *(order[i] for i in np.unique(np.linspace(0, n - 1, min(n, MOST)).astype(int)))]
    shown = [OVERVIEW, *(f"{names[i]} (point {i})" for i in stops[1:])]
    alt = f"Map of {n} points in two dimensions with small pictures at some of them" + (f": {title}" if title else "")
    return Slides("point", stops, atlas.frame, atlas.facts, alt, start=OVERVIEW, names=shown, say=_words)


def _words(facts: Facts) -> Facts:
    if "point" not in facts:
        return facts
    return {"label": facts["label"], "neighbours with this label": f"{facts['alike']} of {len(facts['neighbours'])}"}


class _Map:
    def __init__(self, xy: np.ndarray, images: torch.Tensor, names: list[str], title: str) -> None:
        self.xy, self.names, self.title = xy, np.array(names), title
        self.images = images.float() / 255 if images.dtype == torch.uint8 else images.float()
        figure = Figure(figsize=(8, 4.2))
        panel = self._map(figure, 0.62)
        self.alike = panel.scatter([], [], s=16, color="#0072B2", marker="s", linewidths=0)
        self.near = panel.scatter([], [], s=40, facecolors="none", edgecolors="#E69F00", linewidths=1.2)
        (self.ring,) = panel.plot([], [], "o", markersize=17, fillstyle="none", color="#D55E00", markeredgewidth=2)
        places = [(0.68, 0.34, 0.28, 0.54), *((0.645 + 0.07 * i, 0.1, 0.065, 0.13) for i in range(NEIGHBOURS))]
        self.pictures = [figure.add_axes(p, xticks=(), yticks=()).imshow(self._picture(0)) for p in places]
        figure.text(0.82, 0.26, "its nearest neighbours on the map (orange)", ha="center", fontsize=8)
        self.name = figure.text(0.82, 0.92, "", ha="center", fontsize=9)
        self.stage = Stage(figure, [self.alike, self.near, self.ring, *self.pictures, self.name])

    def _map(self, figure: Figure, width: float) -> Axes:
        panel = figure.add_axes((0.01, 0.02, width, 0.88), xticks=(), yticks=())
        panel.set_title(self.title, fontsize=10)
        panel.scatter(*self.xy.T, s=9, color="#bbbbbb", linewidths=0)
        return panel

    def _picture(self, i: int) -> np.ndarray:
        return self.images[i].clamp(0, 1).permute(1, 2, 0).numpy()

    def _overview(self) -> bytes:
        figure = Figure(figsize=(8, 4.2))
        panel = self._map(figure, 0.98)
        for i in self._spread(24):
            box = OffsetImage(self._picture(i), zoom=26 / self.images.shape[-1])
            panel.add_artist(AnnotationBbox(box, tuple(self.xy[i]), pad=0.1, bboxprops={"edgecolor": "#888888"}))
        return Stage(figure, []).png()

    def _spread(self, count: int) -> list[int]:
        """Points far from each other: each is the one farthest from those before it."""
        scaled = (self.xy - self.xy.mean(0)) / (self.xy.std(0) + 1e-12)
        chosen = [0]
        gap = np.linalg.norm(scaled - scaled[0], axis=1)
        while len(chosen) < min(count, len(scaled)):
            chosen.append(int(gap.argmax()))
            gap = np.minimum(gap, np.linalg.norm(scaled - scaled[chosen[-1]], axis=1))
        return chosen

    def neighbours(self, i: int) -> list[int]:
        gap = ((self.xy - self.xy[i]) ** 2).sum(axis=1)
        gap[i] = -1
        return [int(j) for j in np.argsort(gap, kind="stable")[1 : NEIGHBOURS + 1]]

    def facts(self, stop: Any) -> Facts:
        if stop == OVERVIEW:
            return {"points": len(self.names), "labels": len(set(self.names.tolist()))}
        near = self.neighbours(stop)
        alike = int((self.names[near] == self.names[stop]).sum())
        return {"point": stop, "label": str(self.names[stop]), "neighbours": near, "alike": alike}

    def frame(self, stop: Any) -> bytes:
        if stop == OVERVIEW:
            return self._overview()
        near = self.neighbours(stop)
        self.alike.set_offsets(self.xy[self.names == self.names[stop]])
        self.near.set_offsets(self.xy[near])
        self.ring.set_data(*self.xy[[stop]].T)
        self.name.set_text(f"{self.names[stop]} (blue on the map)")
        for artist, i in zip(self.pictures, (stop, *near), strict=True):
            artist.set_data(self._picture(i))
        return self.stage.png()
