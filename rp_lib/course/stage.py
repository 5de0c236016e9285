"""Fast frames: what stands still in a figure is drawn once, what moves is painted over it."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from PIL import Image

from rp_lib.course.show import DPI


class Stage:
    """A figure with a few moving artists; a frame costs some milliseconds instead of a whole drawing.

    Args:
        figure: of matplotlib, complete; it takes the dpi of :func:`rp_lib.course.show`.
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
