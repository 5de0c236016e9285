import json
import re
from pathlib import Path

import pytest
import yaml
from rp_course.authoring import book
from rp_course.authoring.book import WIDGET, build_book
from rp_course.authoring.book_math import mathml
from rp_course.authoring.notebooks import SETUP_ID
from rp_course.home import repository

from rp_lib import __version__
from rp_lib.utils.errors import RPLibError

VIEW = {"model_id": "1"}
BADGE = "[![Open in Colab](https://example.org/badge.svg)](https://example.org/01_sees.ipynb)\n"
CARD = "See the [card](../assets/CARD.md) and [02](02_next.ipynb).\n"
SHIPPED = Path(__file__).parents[2] / "notebooks"
FORMULA = re.compile(r"\$\$(.+?)\$\$|(?<![\\$])\$([^$]+)\$", re.DOTALL)


@pytest.fixture
def notebooks(tmp_path: Path) -> Path:
    outputs = [
        {"output_type": "display_data", "data": {"image/png": "iVBORw0=", WIDGET: VIEW, "text/plain": ["slider"]},
         "metadata": {"image/png": {"alt": "Two lines that cross"}}},
        {"output_type": "display_data", "data": {WIDGET: VIEW}, "metadata": {}},
    ]  # fmt: skip
    cells = [
        {"cell_type": "markdown", "metadata": {}, "source": ["# 01 · What CLIP sees\n", "\n", BADGE, "\n", CARD]},
        {"cell_type": "code", "id": SETUP_ID, "metadata": {}, "source": ["import sys"], "outputs": []},
        {"cell_type": "code", "metadata": {"tags": ["x"]}, "source": ["1"], "outputs": outputs},
    ]
    folder = tmp_path / "notebooks"
    folder.mkdir()
    for name in ("01_sees.ipynb", "draft.ipynb"):
        (folder / name).write_text(json.dumps({"cells": cells, "nbformat": 4, "nbformat_minor": 5, "metadata": {}}))
    return folder


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """jupyter-book is not needed: what would be run is kept."""
    found: list[list[str]] = []
    monkeypatch.setattr(book, "_run", lambda command: found.append(list(command)))
    monkeypatch.setattr(book, "find_spec", lambda name: object())
    return found


def test_pages_take_the_numbered_notebooks_in_order(notebooks, commands, tmp_path):
    page = build_book(notebooks, tmp_path / "out")
    source = tmp_path / "out" / "source"
    assert page == tmp_path / "out" / "_build" / "html" / "index.html"
    assert json.loads((source / "_toc.yml").read_text())["chapters"] == [{"file": "01_sees"}]
    assert "- [01 · What CLIP sees](01_sees.ipynb)" in (source / "index.md").read_text()
    config = yaml.safe_load((source / "_config.yml").read_text())
    assert config["execute"] == {"execute_notebooks": "off"}
    assert "sphinx_thebe" not in config["sphinx"]["config"]["extensions"]
    (command,) = commands
    assert "-W" in command and str(source) in command


def test_pages_of_markdown_follow_with_their_pictures_and_links(notebooks, commands, tmp_path):
    pages = notebooks / "pages"
    pages.mkdir()
    (notebooks / "a.png").write_bytes(b"picture")
    (pages / "speed.md").write_text(
        "# Speed\n\n![a curve of seconds](../a.png) [code](../../rp_lib/x.py) [02](../02_b.ipynb) [web](https://a.org)\n"
    )
    build_book(notebooks, tmp_path / "out")
    source = tmp_path / "out" / "source"
    assert json.loads((source / "_toc.yml").read_text())["chapters"] == [{"file": "01_sees"}, {"file": "speed"}]
    text = (source / "speed.md").read_text()
    assert "![a curve of seconds](a.png)" in text and (source / "a.png").read_bytes() == b"picture"
    assert f"[code]({repository()}/blob/v{__version__}/rp_lib/x.py)" in text
    assert "[02](02_b.ipynb)" in text and "[web](https://a.org)" in text
    assert "- [Speed](speed.md)" in (source / "index.md").read_text()


def test_what_answers_a_question_waits_behind_a_button(notebooks, commands, tmp_path):
    path = notebooks / "01_sees.ipynb"
    notebook = json.loads(path.read_text())
    notebook["cells"][-1]["metadata"]["jupyter"] = {"outputs_hidden": True, "source_hidden": True}
    path.write_text(json.dumps(notebook))
    build_book(notebooks, tmp_path / "out")
    assert staged_cells(tmp_path / "out")[-1]["metadata"]["tags"] == ["x", "hide-output", "hide-input"]


def staged_cells(out):
    return json.loads((out / "source" / "01_sees.ipynb").read_text())["cells"]


def test_links_work_on_a_page_and_nothing_comes_from_another_server(notebooks, commands, tmp_path):
    build_book(notebooks, tmp_path / "out")
    first, *others = staged_cells(tmp_path / "out")
    text = "".join(first["source"])
    assert "[Open in Colab](https://example.org/01_sees.ipynb)" in text and "badge.svg" not in text
    assert f"[card]({repository()}/blob/v{__version__}/assets/CARD.md)" in text and "[02](02_next.ipynb)" in text
    assert all(cell.get("id") != SETUP_ID for cell in others) and len(others) == 1


@pytest.mark.parametrize(
    ("printed", "columns"),
    [
        ("a    0.1  0.2\nb    0.3  0.4\n", True),
        ("One sentence.\n  indented\n", False),
        ("", False),
    ],
)
def test_sentences_are_wrapped_and_columns_are_not(notebooks, commands, tmp_path, printed, columns):
    path = notebooks / "01_sees.ipynb"
    notebook = json.loads(path.read_text())
    notebook["cells"][2]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": [printed]}]
    path.write_text(json.dumps(notebook))
    build_book(notebooks, tmp_path / "out")
    assert ("columns" in staged_cells(tmp_path / "out")[1]["metadata"]["tags"]) is columns
    style = (tmp_path / "out" / "source" / "_static" / "book.css").read_text()
    assert "pre-wrap" in style and ".tag_columns .cell_output pre { white-space: pre; }" in style


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.ipynb")), ids=lambda path: path.stem)
def test_every_formula_of_the_course_can_be_drawn(path):
    cells = json.loads(path.read_text())["cells"]
    texts = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
    formulas = [block or inline for text in texts for block, inline in FORMULA.findall(text)]
    for formula in formulas:
        drawn = mathml(formula, "block")
        assert drawn.startswith("<math") and "merror" not in drawn
        assert "\\" not in re.sub(r'alttext="[^"]*"', "", drawn), formula


def test_a_formula_is_a_fraction_in_its_own_line_or_in_the_text():
    drawn = mathml(r"\frac{a}{b}")
    assert re.search(r"<mfrac>.*<mi>a</mi>.*<mi>b</mi>.*</mfrac>", drawn) and 'display="inline"' in drawn
    assert 'display="block"' in mathml("a", "block")


def test_pictures_keep_their_alt_text_and_take_the_place_of_widgets(notebooks, commands, tmp_path):
    build_book(notebooks, tmp_path / "out")
    staged = staged_cells(tmp_path / "out")[1]
    assert staged["metadata"] == {"tags": ["x"], "mystnb": {"image": {"alt": "Two lines that cross"}}}
    first, second = (output["data"] for output in staged["outputs"])
    assert WIDGET not in first and "image/png" in first
    assert WIDGET in second  # nothing else stands beside it
    original = json.loads((notebooks / "01_sees.ipynb").read_text())["cells"][2]
    assert "mystnb" not in original["metadata"] and WIDGET in original["outputs"][0]["data"]


def test_a_second_book_holds_no_page_of_a_notebook_that_is_gone(notebooks, commands, tmp_path):
    build_book(notebooks, tmp_path / "out")
    (notebooks / "01_sees.ipynb").rename(notebooks / "02_sees.ipynb")
    build_book(notebooks, tmp_path / "out")
    assert not (tmp_path / "out" / "source" / "01_sees.ipynb").exists()


def test_what_is_missing_is_named(notebooks, tmp_path, monkeypatch):
    with pytest.raises(RPLibError, match="no numbered notebooks"):
        build_book(tmp_path, tmp_path / "out")
    monkeypatch.setattr(book, "find_spec", lambda name: None)
    with pytest.raises(RPLibError, match=r"pip install -e \"\.\[book\]\""):
        build_book(notebooks, tmp_path / "out")
    monkeypatch.setattr(book, "find_spec", lambda name: None if name == "latex2mathml" else object())
    with pytest.raises(RPLibError, match="latex2mathml is not installed"):
        build_book(notebooks, tmp_path / "out")


def test_errors_of_the_renderer_are_shown():
    import sys

    with pytest.raises(RPLibError, match="no such page"):
        book._run([sys.executable, "-c", "import sys; print('no such page'); sys.exit(1)"])
    program = "import sys; print('x.ipynb: WARNING: no target'); print('copying\\n' * 40); sys.exit(1)"
    with pytest.raises(RPLibError, match="WARNING: no target") as caught:  # however far above the end it stands
        book._run([sys.executable, "-c", program])
    assert "copying" not in str(caught.value)
