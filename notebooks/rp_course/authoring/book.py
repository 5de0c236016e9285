"""The rendered book: the committed notebooks, with their stored outputs, as web pages with search and a dark mode.

Nothing is run. The notebooks are copied, and what a page without a kernel cannot use is taken out of the copies:
widget views give way to the static picture beside them, and links to files of the repository lead to its release.
jupyter-book (the ``book`` extra) does the rest.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rp_course.authoring.notebooks import SETUP_ID
from rp_course.home import repository
from rp_lib._version import __version__
from rp_lib.utils.errors import RPLibError

HERE = Path(__file__).resolve().parent
TITLE = "Adapt CLIP without breaking it"
# jupyter-book has no __main__, and its script need not be on the PATH of a notebook server.
MAIN = "from jupyter_book.cli.main import main; main()"
WIDGET = "application/vnd.jupyter.widget-view+json"
BADGE = re.compile(r"\[!\[([^\]]+)\]\([^)]+\)\]")  # a picture from another server as a link's text
OUTSIDE = re.compile(r"(?<=\]\()\.\./(?=[^)]+\))")  # a link to a file beside the folder of notebooks
PROBLEM = re.compile(r"\b(WARNING|ERROR)\b")
COLUMNS = re.compile(r"^\S.*\S {2,}\S", re.MULTILINE)  # entries set apart by several spaces
WELCOME = f"""# {TITLE}

A course in notebooks on *Model Reprogramming Outperforms Fine-tuning on Out-of-distribution Data in Text-Image
Encoders*
(Geng and Chen 2024, [arXiv 2403.10800](https://arxiv.org/abs/2403.10800)). Every number on these pages was computed by
the notebook that shows it, or read from records that ship with the library; they are the mini world's numbers, not the
paper's. To run, change and break things, open the same notebooks in JupyterLab or on Colab.

"""


def build_book(notebooks: Path, out: Path) -> Path:
    """Render all notebooks of a folder; returns the first page.

    Args:
        notebooks: folder of numbered notebooks with stored outputs. out: folder to build in; made anew.

    Raises:
        RPLibError: no notebooks, jupyter-book is not installed, or it reports an error.
    """
    paths = sorted(notebooks.glob("[0-9][0-9]_*.ipynb"))
    if not paths:
        raise RPLibError(f"{notebooks} holds no numbered notebooks")
    for module in ("jupyter_book", "latex2mathml"):
        if find_spec(module) is None:
            raise RPLibError(f'{module} is not installed: pip install -e ".[book]"')
    source = out / "source"
    shutil.rmtree(source, ignore_errors=True)
    source.mkdir(parents=True)
    titles = [_stage(path, source) for path in paths]
    (source / "_static").mkdir()
    shutil.copyfile(HERE / "book.css", source / "_static" / "book.css")
    shutil.copyfile(HERE / "_config.yml", source / "_config.yml")
    pages = [_stage_page(path, source) for path in sorted((notebooks / "pages").glob("*.md"))]
    # JSON is YAML too, and needs no further package.
    chapters = [{"file": path.stem} for path in paths] + [{"file": name} for name, _ in pages]
    (source / "_toc.yml").write_text(json.dumps({"format": "jb-book", "root": "index", "chapters": chapters}))
    lines = [f"- [{title}]({path.name})" for path, title in zip(paths, titles, strict=True)]
    lines += [f"- [{title}]({name}.md)" for name, title in pages]
    (source / "index.md").write_text(WELCOME + "\n".join(lines) + "\n")
    strict = ["build", "--all", "-W", "-n", "--keep-going"]
    _run([sys.executable, "-c", MAIN, *strict, str(source), "--path-output", str(out)])
    return out / "_build" / "html" / "index.html"


def _stage(path: Path, folder: Path) -> str:
    """Copy a notebook as a page can show it; returns its title."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    notebook["cells"] = [cell for cell in notebook["cells"] if cell.get("id") != SETUP_ID]  # it is for Colab
    for cell in notebook["cells"]:
        if any(COLUMNS.search("".join(output.get("text", ""))) for output in cell.get("outputs", [])):
            cell["metadata"] = {**cell["metadata"], "tags": [*cell["metadata"].get("tags", []), "columns"]}
        folded = cell.get("metadata", {}).get("jupyter", {})
        tags = [
            tag for key, tag in (("outputs_hidden", "hide-output"), ("source_hidden", "hide-input")) if folded.get(key)
        ]
        if tags:  # a page shows a button in their place
            cell["metadata"] = {**cell["metadata"], "tags": [*cell["metadata"].get("tags", []), *tags]}
        if cell["cell_type"] == "markdown":
            cell["source"] = _linked("".join(cell["source"]))
        alts = [alt for output in cell.get("outputs", []) if (alt := _static(output))]
        if alts:
            cell.setdefault("metadata", {})["mystnb"] = {"image": {"alt": " ".join(alts)}}
    (folder / path.name).write_text(json.dumps(notebook), encoding="utf-8")
    first = "".join(notebook["cells"][0]["source"]).splitlines()
    return next((line.lstrip("# ") for line in first if line.startswith("# ")), path.stem)


def _stage_page(path: Path, folder: Path) -> tuple[str, str]:
    """Copy a page of Markdown with its pictures; returns its name and title."""

    def link(found: re.Match[str]) -> str:
        picture, target = found[1], (path.parent / found[2]).resolve()
        if picture:
            shutil.copyfile(target, folder / target.name)
            return f"{picture}({target.name})"
        if target.parent == path.parent.resolve() or target.suffix == ".ipynb":
            return f"]({target.name})"
        return f"]({repository()}/blob/v{__version__}/{target.relative_to(path.resolve().parents[2]).as_posix()})"

    text = path.read_text(encoding="utf-8")
    text = re.sub(r"(!\[[^]]*\])\(([^)]+)\)", link, text)
    text = re.sub(r"()\]\((\.[^)\s]+)\)", link, text)
    (folder / path.name).write_text(text, encoding="utf-8")
    return path.stem, text.splitlines()[0].lstrip("# ")


def _linked(text: str) -> str:
    """Markdown whose links work on a page: the badge is words, files of the repository are at its release."""
    return OUTSIDE.sub(f"{repository()}/blob/v{__version__}/", BADGE.sub(r"[\1]", text))


def _static(output: dict[str, Any]) -> str | None:
    """Drop a widget's view where a picture stands beside it; returns the picture's alt text."""
    data = output.get("data", {})
    if "image/png" in data or "text/html" in data:
        data.pop(WIDGET, None)
    return output.get("metadata", {}).get("image/png", {}).get("alt") if "image/png" in data else None


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "NO_COLOR": "1"})
    if done.returncode:
        said = (done.stdout + done.stderr).splitlines()
        problems = [line for line in said if PROBLEM.search(line)]  # they stand far above the end
        raise RPLibError("jupyter-book reports errors:\n" + "\n".join(problems[-15:] or said[-15:]))
