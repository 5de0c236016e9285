"""The drawing of the methods: what it says, and that the README shows what the code draws."""

import io

import numpy as np
import pytest
from PIL import Image
from rp_course import show_drawing
from rp_course.drawing import ALTS, FONT, _png, alt, drawing

from rp_lib.utils.errors import UnknownName
from tests.course.test_notebooks import FOLDER


def words(*methods):
    return [text.get_text() for text in drawing(methods).axes[0].texts]


def test_each_method_shows_its_parts_and_only_rp_a_gradient():
    assert "ψ" not in words("clip") and {"CLIP", "cosine"} <= set(words("clip"))
    assert {"ψ", "Φ", "gradient"} <= set(words("rp"))
    assert {"ψ", "Φ", "α", "1 − α"} <= set(words("rrp")) and "gradient" not in words("rrp")
    assert words("clip", "rp", "rrp") == words("clip") + words("rp") + words("rrp")


def test_it_is_legible_at_half_width_and_on_dark_pages():
    figure = drawing()
    sizes = [text.get_fontsize() for text in figure.axes[0].texts]
    assert min(sizes) >= FONT - 1 and min(sizes) / figure.get_figwidth() >= 1.6  # 8 pixels at a width of 360
    assert figure.get_facecolor() == (1, 1, 1, 1)


def test_notebook_shows_it_with_its_text_alternative(capsys):
    show_drawing("rp")
    assert (
        capsys.readouterr().out
        == f"figure:\n{ALTS['rp']}\nRP   trains the border W, the word vectors Theta and the position bias b\n"
    )
    with pytest.raises(UnknownName, match="method"):
        drawing(["rpp"])


def test_readme_shows_what_the_code_draws():
    stored, drawn = (
        Image.open(f).convert("L") for f in (FOLDER / "pages" / "drawing.png", io.BytesIO(_png(tuple(ALTS))))
    )
    assert stored.size == drawn.size
    assert (
        np.abs(np.asarray(stored, float) - np.asarray(drawn, float)).mean() < 3
    )  # fonts differ a little between machines
    assert f"![{alt()}](notebooks/pages/drawing.png)" in (FOLDER.parent / "README.md").read_text("utf-8")
