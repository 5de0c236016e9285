"""Figures with text alternatives, and predictions."""

import base64
import io
import sys

import matplotlib

matplotlib.use("agg")

import pytest
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from PIL import Image
from rp_course import home, predict, show
from rp_course.home import REPOSITORY, repository
from rp_course.predict import Prediction
from rp_course.show import WIDGET_VIEW, picture, png, say

from rp_lib.utils.errors import RPLibError, UnknownName

ALT = "One line that rises from left to right"
OPTIONS = {"a": "emoji", "b": "dark <icons>"}


def line():
    figure = Figure(figsize=(4, 2))
    figure.subplots().plot([0, 1])
    return figure


@pytest.fixture
def published(monkeypatch):
    """Stands for a notebook: what was displayed, as (data, metadata)."""
    found = []
    monkeypatch.setattr("IPython.get_ipython", lambda: object())
    monkeypatch.setattr("IPython.display.display", lambda data, metadata, raw: found.append((data, metadata)))
    return found


def test_show_publishes_a_png_with_its_alternative(published):
    show(line(), ALT)
    ((data, metadata),) = published
    assert set(data) == {"image/png", "text/plain"} and data["text/plain"] == f"figure:\n{ALT}"
    assert metadata == {"image/png": {"alt": ALT}}
    image = Image.open(io.BytesIO(base64.b64decode(data["image/png"])))
    assert image.format == "PNG" and 250 < image.width < 400


def test_png_is_the_same_at_every_run_and_carries_no_version():
    image = Image.open(io.BytesIO(png(line())))
    image.load()
    assert png(line()) == png(line()) and not {"Software", "Creation Time"} & set(image.info)


def test_show_closes_the_figure(capsys):
    figure, axes = plt.subplots()
    axes.plot([1])
    other = plt.figure()
    show(figure, ALT)
    assert plt.get_fignums() == [other.number]
    plt.close(other)


def test_outside_a_notebook_the_alternative_is_printed(capsys):
    show(line(), ALT)
    assert capsys.readouterr().out == f"figure:\n{ALT}\n"


@pytest.mark.parametrize("alt", ["", "a figure"])
def test_empty_alternatives_are_refused(alt):
    with pytest.raises(RPLibError, match="says too little"):
        show(line(), alt)
    with pytest.raises(TypeError):
        show(line())


def test_picture_is_base64_in_one_line():
    assert "\n" not in picture(png(line()), ALT)[0]["image/png"]


def test_nbconvert_uses_the_alternative():
    """Its classic template does; the one called lab, and JupyterLab itself, do not yet."""
    pytest.importorskip("nbconvert")
    import nbformat
    from nbconvert import HTMLExporter

    data, metadata = picture(png(line()), ALT)
    output = nbformat.v4.new_output("display_data", data, metadata=metadata)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("show()", outputs=[output])])
    assert f'alt="{ALT}"' in HTMLExporter(template_name="classic").from_notebook_node(notebook)[0]


# --- predictions


def test_the_default_stands_when_nobody_chooses(capsys):
    guess = predict("What costs more?", OPTIONS, default="a")
    assert capsys.readouterr().out == "Your prediction: What costs more?\n  a: emoji\n  b: dark <icons>\n"
    guess.reveal("b", "because they are inverted.")
    guess.reveal("a", "they are coloured")
    assert capsys.readouterr().out.splitlines() == [
        "The default said a: emoji.",
        "The run says b: dark <icons>, because they are inverted.",
        "The default said a: emoji.",
        "The run agrees, because they are coloured.",
    ]
    assert guess.choice == "a" and not guess.chosen


def test_a_click_counts_even_if_it_confirms_nothing_else(capsys):
    pytest.importorskip("ipywidgets")
    guess = predict("What costs more?", OPTIONS, default="a")
    guess.buttons.value = "b"
    capsys.readouterr()
    guess.reveal("b", "they are inverted")
    assert capsys.readouterr().out == "You said b: dark <icons>.\nThe run agrees, because they are inverted.\n"
    assert list(guess.buttons.options) == [("a: emoji", "a"), ("b: dark <icons>", "b")]


def test_no_answer_is_pressed_so_that_pressing_the_default_counts(capsys):
    pytest.importorskip("ipywidgets")
    guess = predict("What costs more?", OPTIONS, default="a")
    assert guess.buttons.value is None and guess.choice == "a"
    guess.buttons.value = "a"
    capsys.readouterr()
    guess.reveal("a", "they are coloured")
    assert capsys.readouterr().out == "You said a: emoji.\nThe run agrees, because they are coloured.\n"


def test_long_sentences_are_broken_between_words(capsys):
    say("short\n" + "word, " * 40 + "a-long-name.hint()")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "short" and len(lines) == 4 and max(map(len, lines)) <= 100
    assert " ".join(lines[1:]) == "word, " * 40 + "a-long-name.hint()"
    say("two", 2, "words")  # as print does
    assert capsys.readouterr().out == "two 2 words\n"


def test_plain_text_and_html_do_not_depend_on_the_choice(published):
    guess = predict("Which?", OPTIONS, default="a")
    guess.choose("b")
    before, after = published[0][0], guess.bundle()
    for kind in ("text/plain", "text/html"):
        assert before[kind] == after[kind]
    assert "dark &lt;icons&gt;" in before["text/html"] and set(before[WIDGET_VIEW]) >= {"model_id"}


def test_without_ipywidgets_a_prediction_is_text(monkeypatch, published):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    guess = predict("Which?", OPTIONS, default="b")
    assert guess.buttons is None and set(published[0][0]) == {"text/plain", "text/html"}
    assert "b" in repr(guess)


def test_internal_keys_are_not_shown_and_letters_are_taken(capsys):
    pytest.importorskip("ipywidgets")
    guess = predict("Which?", {"holds": "it falls", "fails": "it rises"}, default="holds")
    assert [text for text, _ in guess.buttons.options] == ["a: it falls", "b: it rises"]
    guess.choose("b")
    guess.reveal("holds", "it was seen")
    assert guess.choice == "fails" and "holds" not in str(guess.bundle())
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "You said b: it rises.",
        "The run says a: it falls, because it was seen.",
    ]


def test_a_question_of_two_lines_is_set_as_one_paragraph(monkeypatch):
    ipywidgets = pytest.importorskip("ipywidgets")
    texts, made = [], ipywidgets.HTML
    monkeypatch.setattr(ipywidgets, "HTML", lambda text: texts.append(text) or made(text))
    Prediction("Which <one>? " * 20, OPTIONS, "a").bundle()
    assert len(texts) == 1 and "line-height: 1.5" in texts[0] and "&lt;one&gt;" in texts[0]


def test_unknown_options_are_refused():
    with pytest.raises(UnknownName, match="option 'c'"):
        Prediction("Which?", OPTIONS, "c")
    guess = Prediction("Which?", OPTIONS, "a")
    for wrong in (lambda: guess.choose("x"), lambda: guess.reveal("x", "y")):
        with pytest.raises(UnknownName):
            wrong()


def test_home_is_where_colab_finds_the_notebook():
    address = home("00_tour.ipynb", "https://github.com/a/b", "v1")
    assert address == "https://colab.research.google.com/github/a/b/blob/v1/notebooks/00_tour.ipynb"
    assert home("00_tour", "https://github.com/a/b", "v1") == address
    assert repository().startswith("https://github.com/") and REPOSITORY.removeprefix("https://github.com/") in home(
        "x"
    )
