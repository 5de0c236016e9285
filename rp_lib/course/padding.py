"""The geometry of the image program, live: how much of its input the picture keeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from rp_lib.course.slides import Facts, Slides, Value
from rp_lib.course.stage import Stage
from rp_lib.errors import RPLibError
from rp_lib.programs import ImageProgram

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
