"""Figures with a text alternative, as PNG that is the same at every run; sentences in lines that fit on a page."""

from __future__ import annotations

import base64
import io
import sys
import textwrap
from typing import TYPE_CHECKING, Any

from PIL import Image

from rp_lib.utils.errors import RPLibError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 90
WIDTH = 100  # characters of a printed line: more than a small window shows would be broken within a word
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


def show(figure: Figure, alt: str) -> None:
    """Display a figure as PNG and close it.

    Its text alternative stands in the output's metadata, where nbconvert and screen readers find it, and as plain
    text, which is compared when the notebook is tested.

    Args:
        figure: of matplotlib.
        alt: what the figure shows, in a sentence, for a reader who does not see it. No measured numbers.

    Raises:
        RPLibError: the text says nothing.
    """
    bundle, metadata = picture(png(figure), alt)
    if "matplotlib.pyplot" in sys.modules:  # otherwise a notebook would show it once more
        sys.modules["matplotlib.pyplot"].close(figure)
    display(bundle, metadata)


def png(figure: Figure) -> bytes:
    """Return the figure as PNG of 256 colours, a third of the bytes; no date and no version inside."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, bbox_inches="tight", metadata={"Software": None})
    return few_colours(buffer.getvalue())


def few_colours(image: bytes, colours: int = 256) -> bytes:
    """Write a PNG again with a palette of that many colours."""
    buffer = io.BytesIO()
    palette = Image.open(io.BytesIO(image)).convert("RGB").quantize(colours, dither=Image.Dither.NONE)
    palette.save(buffer, format="png", optimize=True)
    return buffer.getvalue()


def picture(image: bytes, alt: str) -> tuple[dict[str, str], dict[str, Any]]:
    """Display data of a PNG and its metadata."""
    if len(alt.split()) < 3:
        raise RPLibError(f"the text alternative {alt!r} says too little: write a sentence on what the figure shows")
    data = {"image/png": base64.b64encode(image).decode("ascii"), "text/plain": f"figure:\n{alt}"}
    return data, {"image/png": {"alt": alt}}


def display(data: dict[str, str], metadata: dict[str, Any] | None = None) -> None:
    """Publish display data in a notebook; elsewhere print its plain text."""
    try:
        from IPython import get_ipython
        from IPython.display import display as publish
    except ImportError:
        get_ipython = None
    if get_ipython is None or get_ipython() is None:
        print(data["text/plain"])
    else:
        publish(data, metadata=metadata or {}, raw=True)


def say(*texts: object) -> None:
    """Print texts, or what has one (a verdict, say), as ``print`` does, with long lines broken between words."""
    for line in " ".join(map(str, texts)).splitlines():
        print(textwrap.fill(line, WIDTH, break_long_words=False, break_on_hyphens=False))


def widget_view(widget: Any) -> dict[str, Any]:
    """Display data of a widget of ipywidgets, 7 or 8, by which a front end shows it live."""
    return {WIDGET_VIEW: {"version_major": 2, "version_minor": 0, "model_id": widget.model_id}}
