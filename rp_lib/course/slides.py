"""A slider over pictures: live where a kernel runs, a picture elsewhere, the same facts for code."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rp_lib.course.show import picture, png, widget_view
from rp_lib.errors import RPLibError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
