"""A slider over pictures: live where a kernel runs, a picture elsewhere, the same facts for code."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rp_course.show import picture, png, widget_view
from rp_lib.utils.errors import RPLibError

if TYPE_CHECKING:
    from matplotlib.figure import Figure
import io

import numpy as np
import pandas as pd
import torch
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from PIL import Image
from torch import Tensor

from rp_course.show import DPI
from rp_lib.figures import AXES, STYLE
from rp_lib.metrics import ood_metrics
from rp_lib.programs import ImageProgram
from rp_lib.utils.arrays import check_array

Facts = dict[str, Any]
BEFOREHAND = 40  # up to so many frames are drawn when the widget is made


class Value:
    """Stands in for a control of ipywidgets where that is not installed: a value that can be observed."""

    def __init__(self, value: Any, options: Sequence[Any] = ()) -> None:
        self._value, self.options, self._observers = value, tuple(options), []

    @property
    def value(self) -> Any:
        """What is chosen, or shown."""
        return self._value

    @value.setter
    def value(self, value: Any) -> None:
        old, self._value = self._value, value
        for observer in self._observers if old != value else ():
            observer({"name": "value", "old": old, "new": value})

    def observe(self, observer: Callable[[dict[str, Any]], None], names: str = "value") -> None:
        """Call ``observer`` with a dict of ``old`` and ``new`` at every change."""
        self._observers.append(observer)


class Slides:
    """A slider whose stops each have a picture and facts.

    Attributes:
        slider: a ``SelectionSlider``; its ``value`` is the stop. image: an ``Image``; its ``value`` is a PNG.
        stops: values that the slider takes.
    """

    def __init__(
        self,
        label: str,
        stops: Sequence[Any],
        frame: Callable[[Any], bytes],
        facts: Callable[[Any], Facts],
        alt: str,
        *,
        start: Any = None,
        names: Sequence[str] | None = None,
        say: Callable[[Facts], Mapping[str, Any]] = dict,
    ) -> None:
        self.stops = tuple(stops)
        if len(self.stops) < 2:
            raise RPLibError(f"a slider needs at least two stops, got {len(self.stops)}")
        start = self.stops[0] if start is None else start
        self._check(start)
        self._frame, self._facts, self._say, self._drawn = frame, facts, say, dict[Any, bytes]()
        self._still, self._metadata = picture(self._draw(start), alt)
        names = [f"{s:g}" if isinstance(s, float) else str(s) for s in self.stops] if names is None else names
        self.slider, self.image, self.caption = self._controls(label, start, list(names))
        self.slider.observe(lambda change: self.refresh(), "value")
        self.refresh()

    def at(self, stop: Any) -> Facts:
        """Move the slider there; the facts that it then shows.

        Raises:
            RPLibError: no such stop.
        """
        self._check(stop)
        self.slider.value = stop
        return self._facts(stop)

    def drive(self) -> list[Facts]:
        """Move the slider through every stop and back to where it stood; the facts of all stops, in order."""
        stood = self.slider.value
        driven = [self.at(stop) for stop in self.stops]
        self.slider.value = stood
        return driven

    def draw_all(self) -> None:
        """Draw every frame now, so that no move waits."""
        for stop in self.stops:
            self._draw(stop)

    def refresh(self) -> None:
        """Show the frame and the facts of where the slider stands."""
        self.image.value = self._draw(self.slider.value)
        self.caption.value = caption(self._say(self._facts(self.slider.value)))

    def controls(self) -> tuple[Any, ...]:
        """The widgets shown, from the top."""
        return self.slider, self.image, self.caption

    def key(self, stop: Any) -> Any:
        """What a frame depends on."""
        return stop

    def _draw(self, stop: Any) -> bytes:
        key = self.key(stop)
        if key not in self._drawn:
            self._drawn[key] = self._frame(stop)
        return self._drawn[key]

    def _check(self, stop: Any) -> None:
        if stop not in self.stops:
            raise RPLibError(f"{stop!r} is no stop of this slider; its stops: {', '.join(map(str, self.stops[:30]))}")

    def _controls(self, label: str, start: Any, names: list[str]) -> tuple[Any, Any, Any]:
        try:
            from ipywidgets import HTML, Image, SelectionSlider
        except ImportError:
            return Value(start, self.stops), Value(b""), Value("")
        options = list(zip(names, self.stops, strict=True))
        wide = {"width": "min(600px, 95%)"}
        slider = SelectionSlider(
            options=options, value=start, description=label, layout=wide, style={"description_width": "initial"}
        )
        # At its own size: stretched over a wide window it would be blurred.
        return slider, Image(format="png", layout={"max_width": "100%", "align_self": "flex-start"}), HTML()

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        data: dict[str, Any] = dict(self._still)
        if not isinstance(self.slider, Value):
            from ipywidgets import VBox

            data |= widget_view(VBox(self.controls()))
        return data, self._metadata

    def __repr__(self) -> str:
        return self._still["text/plain"]


def caption(facts: Mapping[str, Any]) -> str:
    """Facts as HTML, one line per entry, nearer to each other than the rows of ipywidgets."""

    def said(value: Any) -> str:
        if isinstance(value, Mapping):
            return ", ".join(f"{k} {said(v)}" for k, v in value.items())
        if isinstance(value, list | tuple):
            return ", ".join(map(said, value))
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    lines = (f"{html.escape(str(k))}: {html.escape(said(v))}" for k, v in facts.items())
    return f'<div style="line-height: 1.5">{"<br>".join(lines)}</div>'


def slider_widget(
    label: str,
    stops: Sequence[Any],
    draw: Callable[[Any], Figure],
    facts: Callable[[Any], Facts],
    *,
    alt: str,
    start: Any = None,
) -> Slides:
    """A slider over pictures of your own; all are drawn beforehand if there are few.

    Args:
        label: what the slider changes. stops: its values, hashable, at least two.
        draw: gives the matplotlib figure of a stop. facts: gives what the figure shows, as data, by name.
        alt: text alternative of the still picture that stands where no kernel runs.
        start: stop at the beginning; default: the first.
    """

    def frame(stop: Any) -> bytes:
        return png(draw(stop))

    slides = Slides(label, stops, frame, facts, alt, start=start)
    if len(slides.stops) <= BEFOREHAND:
        slides.draw_all()
    return slides


# Fast frames: what stands still in a figure is drawn once, what moves is painted over it.


class Stage:
    """A figure with a few moving artists; a frame costs some milliseconds instead of a whole drawing.

    Args:
        figure: of matplotlib, complete; it takes the dpi of :func:`rp_course.show`.
        moving: artists of it that change between frames, in the order in which they are painted.
    """

    def __init__(self, figure: Figure, moving: Sequence[Artist]) -> None:
        figure.set_dpi(DPI)
        frames = [spine for a in moving if isinstance(a, AxesImage) for spine in a.axes.spines.values()]
        self._figure, self._moving = figure, [*moving, *frames]  # an image would cover the frame of its panel
        for artist in self._moving:
            artist.set_animated(True)
        self._canvas = FigureCanvasAgg(figure)
        self._canvas.draw()
        self._still = self._canvas.copy_from_bbox(figure.bbox)

    def png(self) -> bytes:
        """The figure as it is now."""
        self._canvas.restore_region(self._still)
        for artist in self._moving:
            self._figure.draw_artist(artist)
        buffer = io.BytesIO()
        # A picture of few colours compresses well enough at a low level, and that in a third of the time.
        Image.fromarray(np.asarray(self._canvas.buffer_rgba())).convert("RGB").save(buffer, "png", compress_level=3)
        return buffer.getvalue()


# The share of zero-shot, along recorded frontiers.

PANELS = ((0, 1), (3, 1))  # numbers in AXES of the horizontal and the vertical axis


def alpha_widget(records: pd.DataFrame) -> Slides:
    """Slider over alpha: where each mixture stands on its frontier, ID accuracy and FPR95 against accuracy under shift.

    ``.at(alpha)`` gives, by method, the fractions of :data:`rp_lib.figures.AXES` by their labels.

    Args:
        records: of the experiment ``frontier``, or any with the columns alpha, method, set, metric, value.

    Raises:
        RPLibError: no method has two values of alpha, or an axis is missing.
    """
    sweep = _sweep(records)
    stops = sorted(float(a) for a in sweep.index.get_level_values("alpha").unique())
    methods = list(dict.fromkeys(sweep.index.get_level_values("method")))
    if len(stops) < 2:
        raise RPLibError("the records hold no sweep: at least two values of alpha are needed")

    figure = Figure(figsize=(8, 3.8))
    markers = {}
    for i, (across, up) in enumerate(PANELS):
        panel = figure.add_axes((0.08 + 0.5 * i, 0.21, 0.4, 0.69))
        for method in methods:
            colour, marker, name = STYLE.get(method, ("#444444", "o", method))
            line = 100 * sweep.xs(method, level="method")[[across, up]]
            panel.plot(line[across], line[up], color=colour, marker=marker, markersize=4, linewidth=1, label=name)
            (markers[i, method],) = panel.plot([], [], color=colour, marker=marker, markersize=13, markeredgecolor="k")
        if (1.0, methods[0]) in sweep.index:  # where all curves end
            end = 100 * sweep.loc[(1.0, methods[0]), [across, up]]
            panel.annotate("alpha = 1: zero-shot", tuple(end), (-14, 20), textcoords="offset points", ha="center",
                           fontsize=8, arrowprops={"arrowstyle": "-", "color": "#555555"})  # fmt: skip
        panel.set_xlabel(AXES[across][2], fontsize=9)
        panel.set_ylabel(AXES[up][2], fontsize=9)
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(color="#e5e5e5", linewidth=0.8)
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="lower center", ncols=len(names), fontsize=8, frameon=False, markerscale=2)
    figure.axes[1].invert_xaxis()  # better is to the right in both

    title = figure.text(0.5, 0.96, "", ha="center", va="center", fontsize=10)
    stage = Stage(figure, [*markers.values(), title])

    def frame(alpha: float) -> bytes:
        for (i, method), marker in markers.items():
            row = 100 * sweep.loc[(alpha, method)] if (alpha, method) in sweep.index else None
            marker.set_data(*([[], []] if row is None else [[row[PANELS[i][0]]], [row[PANELS[i][1]]]]))
        title.set_text(f"alpha = {alpha:g}: {alpha:.0%} of the features, weights or logits are zero-shot's")
        return stage.png()

    def facts(alpha: float) -> Facts:
        rows = sweep.xs(alpha, level="alpha")
        found = {m: {AXES[i][2].removesuffix(" (%)"): float(v) for i, v in rows.loc[m].items()} for m in rows.index}
        return {"alpha": alpha, **found}

    def words(facts: Facts) -> Facts:
        rows = {STYLE[m][2] if m in STYLE else m: row for m, row in facts.items() if m != "alpha"}
        return {
            name: ", ".join(f"{axis} {100 * value:.1f} %" for axis, value in row.items()) for name, row in rows.items()
        }

    alt = f"Two plots with a curve over alpha for each of {', '.join(methods)}: accuracy under shift against "
    return Slides(
        "alpha, share of zero-shot", stops, frame, facts, alt + "ID accuracy and FPR95; large markers at one alpha",
        start=min(stops, key=lambda a: abs(a - 0.5)), say=words,
    )  # fmt: skip


def _sweep(records: pd.DataFrame) -> pd.DataFrame:
    """Fractions by (alpha, method), one column for each of AXES that the panels show."""
    missing = [c for c in ("alpha", "method", "set", "metric", "value") if c not in records.columns]
    if missing:
        raise RPLibError(f"the records have no column {', '.join(missing)}")
    rows = records[records["alpha"].notna()]
    for column, keep in (
        ("versus", rows.get("versus", pd.Series(dtype=object)).isna()),
        ("rule", rows.get("rule") == "grid"),
    ):
        rows = rows[keep.reindex(rows.index, fill_value=True)] if column in rows else rows
    columns = {}
    for i in sorted({i for pair in PANELS for i in pair}):
        data, metric = AXES[i][:2]
        found = rows[(rows["set"] == data) & (rows["metric"] == metric)]
        if found.empty:
            raise RPLibError(f"the records hold no {metric} of {data!r}")
        columns[i] = found.groupby(["alpha", "method"], sort=False)["value"].mean()
    return pd.DataFrame(columns).dropna().sort_index(level="alpha", sort_remaining=False)


# The geometry of the image program, live: how much of its input the picture keeps.

TITLES = ("U(x): shrunk, zero-padded", "M: 1 where W acts", "ψ(x) with a random border")


class PaddingSlides(Slides):
    """:class:`Slides` with a second selector.

    Attributes:
        selector: a ``Dropdown``; its ``value`` is the number of the picture, from 0.
    """

    def __init__(self, images: Tensor, image_size: int, names: Sequence[str]) -> None:
        self._images = images.float() / 255 if images.dtype == torch.uint8 else images.float()
        self._size = image_size
        self.selector = _selector(names)
        figure = Figure(figsize=(7.5, 2.8))
        self._artists = []
        for i, title in enumerate(TITLES):
            panel = figure.add_axes((0.01 + 0.33 * i, 0.02, 0.31, 0.83), xticks=(), yticks=())
            panel.set_title(title, fontsize=9)
            blank = np.zeros((image_size, image_size, 3), dtype=np.float32)
            self._artists.append(panel.imshow(blank, interpolation="nearest"))
        self._stage = Stage(figure, self._artists)
        stops = range(0, image_size // 2, max(1, image_size // 32))
        alt = "Three squares: the picture shrunk inside a black margin, the white mask of that margin, and the picture "
        super().__init__(
            "padding, pixels on each side", stops, self._geometry, self._measures,
            alt + "inside a border of random colours", start=stops[len(stops) // 4], say=self._words,
        )  # fmt: skip
        self.selector.observe(lambda change: self.refresh(), "value")

    def program(self, padding: int) -> ImageProgram:
        """With this padding and the released random start."""
        return ImageProgram(self._size, padding)

    def key(self, stop: Any) -> Any:
        """Padding and picture."""
        return stop, self.selector.value

    def controls(self) -> tuple[Any, ...]:
        """The selector above the rest."""
        return self.selector, *super().controls()

    def _measures(self, padding: int) -> Facts:
        mask = self.program(padding).M
        border = int(mask.sum())
        return {
            "padding": padding, "inner": self._size - 2 * padding,
            "border pixels": border, "trained values": 3 * border, "border share": border / mask.numel(),
        }  # fmt: skip

    def _words(self, facts: Facts) -> Facts:
        inner, border = facts["inner"], facts["border pixels"]
        return {
            "picture": f"{inner} x {inner} of {self._size} x {self._size} pixels",
            "border": f"{border} pixels ({facts['border share']:.0%}), {facts['trained values']} trained values",
        }

    @torch.no_grad()
    def _geometry(self, padding: int) -> bytes:
        program = self.program(padding)
        image = self._images[self.selector.value][None]
        shown = [
            program.place(image)[0].clamp(0, 1),
            program.M.expand(3, -1, -1),
            program(image)[0],
        ]
        arrays = [s.permute(1, 2, 0).numpy() for s in shown]
        for artist, array in zip(self._artists, arrays, strict=True):
            artist.set_data(array)
        return self._stage.png()


def _selector(names: Sequence[str]) -> Any:
    try:
        from ipywidgets import Dropdown
    except ImportError:
        return Value(0, range(len(names)))
    return Dropdown(options=[(n, i) for i, n in enumerate(names)], value=0, description="picture")


def padding_widget(images: Tensor, image_size: int, names: Sequence[str] | None = None) -> PaddingSlides:
    """Slider over the padding, selector over pictures: U(x), the mask M, and ψ(x) with the released random start.

    Args:
        images: uint8 or float in [0, 1], (n, 3, h, w). image_size: of the encoder's input, pixels.
        names: of the images, in the selector; default: numbers.

    Raises:
        RPLibError: shapes that do not fit.
    """
    if images.ndim != 4 or images.shape[1] != 3 or not len(images):
        raise RPLibError(f"images must be (n, 3, h, w) with n >= 1, got {tuple(images.shape)}")
    names = [f"picture {i + 1}" for i in range(len(images))] if names is None else list(names)
    if len(names) != len(images):
        raise RPLibError(f"{len(names)} names for {len(images)} images")
    return PaddingSlides(images, image_size, names)


# A map of features whose points show their picture.

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


# The detection threshold on score histograms.

STOPS = (*(round(0.05 * i, 2) for i in range(1, 20)), 0.99, 1.0)
ID_COLOUR, OOD_COLOUR = "#0072B2", "#D55E00"


def threshold_widget(id_scores: Any, ood_scores: Any, score: str = "confidence") -> Slides:
    """Slider over the share of ID images to accept (TPR): the threshold, and the share of OOD images that pass (FPR).

    ``.at(tpr)`` gives ``threshold`` in the unit of the scores, and the fractions ``tpr`` and ``fpr`` that it reaches
    (convention ``id-positive``: accept score >= threshold).

    Args:
        id_scores: shape (n,), higher = more ID. ood_scores: shape (m,). score: its name, on the axis.

    Raises:
        ValueError: empty or NaN scores.
    """
    known, alien = check_array(id_scores, "id_scores"), check_array(ood_scores, "ood_scores")
    found = {stop: ood_metrics(known, alien, tpr=stop) for stop in STOPS}
    figure = Figure(figsize=(7, 3))
    panel = figure.add_axes((0.09, 0.16, 0.88, 0.7))
    finite = np.concatenate([known, alien])
    finite = finite[np.isfinite(finite)]
    bins = np.linspace(finite.min(), finite.max(), 41) if finite.size and np.ptp(finite) > 0 else 10
    for values, colour, hatch, label in ((known, ID_COLOUR, "", "ID"), (alien, OOD_COLOUR, "///", "OOD")):
        weights = np.full(len(values), 100 / len(values))
        panel.hist(
            values, bins, weights=weights, color=colour, alpha=0.55, hatch=hatch, label=f"{label} (n = {len(values)})"
        )
    line = panel.axvline(0, color="black", linewidth=2)
    shade = panel.axvspan(0, 0, color="#009E73", alpha=0.12)
    panel.set_xlabel(f"{score} (higher: more in-distribution)", fontsize=9)
    panel.set_ylabel("share of images, %", fontsize=9)
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(fontsize=8, frameon=False, loc="best")
    left, right = panel.get_xlim()
    title = figure.text(0.53, 0.93, "", ha="center", va="center", fontsize=10)
    stage = Stage(figure, [shade, line, title])

    def facts(stop: float) -> Facts:
        threshold = found[stop]["threshold"]
        return {"threshold": threshold, "tpr": float((known >= threshold).mean()), "fpr": found[stop]["fpr"]}

    def frame(stop: float) -> bytes:
        at = facts(stop)
        threshold = float(np.clip(at["threshold"], left, right))
        line.set_xdata([threshold, threshold])
        shade.set_x(threshold)
        shade.set_width(right - threshold)
        title.set_text(
            f"accept scores from {at['threshold']:.3g}: {at['tpr']:.0%} of ID (TPR), {at['fpr']:.0%} of OOD (FPR)"
        )
        return stage.png()

    alt = (
        f"Histograms of the {score} of ID and of OOD images with a vertical line at the threshold, accepted side shaded"
    )
    names = [f"{stop:.0%}" for stop in STOPS]

    def words(facts: Facts) -> Facts:
        return {
            "threshold": facts["threshold"],
            "ID images accepted (TPR)": f"{facts['tpr']:.1%}", "OOD images accepted (FPR)": f"{facts['fpr']:.1%}",
        }  # fmt: skip

    return Slides("ID images to accept", STOPS, frame, facts, alt, start=0.5, names=names, say=words)


# All widgets: each has ``.slider``, ``.image``, ``.stops``, ``.at(stop)``, and is a picture where no kernel runs.

__all__ = ["alpha_widget", "padding_widget", "points_widget", "slider_widget", "threshold_widget"]
