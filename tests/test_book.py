import json
from pathlib import Path

import pytest

from rp_lib import book
from rp_lib.book import WIDGET, build_book
from rp_lib.errors import RPLibError

VIEW = {"model_id": "1"}


@pytest.fixture
def notebooks(tmp_path: Path) -> Path:
    outputs = [
        {"output_type": "display_data", "data": {"image/png": "iVBORw0=", WIDGET: VIEW, "text/plain": ["slider"]},
         "metadata": {"image/png": {"alt": "Two lines that cross"}}},
        {"output_type": "display_data", "data": {WIDGET: VIEW}, "metadata": {}},
    ]  # fmt: skip
    cells = [
        {"cell_type": "markdown", "metadata": {}, "source": ["badge\n", "\n", "# 01 · What CLIP sees\n"]},
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
    assert json.loads((source / "_config.yml").read_text())["execute"] == {"execute_notebooks": "off"}
    (command,) = commands
    assert "-W" in command and str(source) in command


def test_pictures_keep_their_alt_text_and_take_the_place_of_widgets(notebooks, commands, tmp_path):
    build_book(notebooks, tmp_path / "out")
    staged = json.loads((tmp_path / "out" / "source" / "01_sees.ipynb").read_text())["cells"][1]
    assert staged["metadata"] == {"tags": ["x"], "mystnb": {"image": {"alt": "Two lines that cross"}}}
    first, second = (output["data"] for output in staged["outputs"])
    assert WIDGET not in first and "image/png" in first
    assert WIDGET in second  # nothing else stands beside it
    original = json.loads((notebooks / "01_sees.ipynb").read_text())["cells"][1]
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


def test_errors_of_the_renderer_are_shown():
    import sys

    with pytest.raises(RPLibError, match="no such page"):
        book._run([sys.executable, "-c", "import sys; print('no such page'); sys.exit(1)"])
