"""The rendered book: the committed notebooks, with their stored outputs, as web pages with search and a dark mode.

Nothing is run. The notebooks are copied, and what a page without a kernel cannot use is taken out of the copies:
widget views give way to the static picture beside them. jupyter-book (the ``book`` extra) does the rest.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rp_lib.errors import RPLibError

TITLE = "Adapt CLIP without breaking it"
# jupyter-book has no __main__, and its script need not be on the PATH of a notebook server.
MAIN = "from jupyter_book.cli.main import main; main()"
WIDGET = "application/vnd.jupyter.widget-view+json"
CONFIG = {
    "title": TITLE,
    "author": "The rp_lib authors",
    "copyright": "",
    "only_build_toc_files": True,
    "execute": {"execute_notebooks": "off"},
    "launch_buttons": {"thebe": False},
    "html": {"use_repository_button": False},
    "sphinx": {"config": {"html_show_copyright": False, "html_last_updated_fmt": ""}},
}
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
    if find_spec("jupyter_book") is None:
        raise RPLibError('jupyter-book is not installed: pip install -e ".[book]"')
    source = out / "source"
    shutil.rmtree(source, ignore_errors=True)
    source.mkdir(parents=True)
    titles = [_stage(path, source) for path in paths]
    # JSON is YAML too, and needs no further package.
    (source / "_config.yml").write_text(json.dumps(CONFIG, indent=1))
    chapters = [{"file": path.stem} for path in paths]
    (source / "_toc.yml").write_text(json.dumps({"format": "jb-book", "root": "index", "chapters": chapters}))
    lines = [f"- [{title}]({path.name})" for path, title in zip(paths, titles, strict=True)]
    (source / "index.md").write_text(WELCOME + "\n".join(lines) + "\n")
    _run([sys.executable, "-c", MAIN, "build", "--all", "-W", "-n", str(source), "--path-output", str(out)])
    return out / "_build" / "html" / "index.html"


def _stage(path: Path, folder: Path) -> str:
    """Copy a notebook as a page can show it; returns its title."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        alts = [alt for output in cell.get("outputs", []) if (alt := _static(output))]
        if alts:
            cell.setdefault("metadata", {})["mystnb"] = {"image": {"alt": " ".join(alts)}}
    (folder / path.name).write_text(json.dumps(notebook), encoding="utf-8")
    first = "".join(notebook["cells"][0]["source"]).splitlines()
    return next((line.lstrip("# ") for line in first if line.startswith("# ")), path.stem)


def _static(output: dict[str, Any]) -> str | None:
    """Drop a widget's view where a picture stands beside it; returns the picture's alt text."""
    data = output.get("data", {})
    if "image/png" in data or "text/html" in data:
        data.pop(WIDGET, None)
    return output.get("metadata", {}).get("image/png", {}).get("alt") if "image/png" in data else None


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-15:])
        raise RPLibError(f"jupyter-book reports errors:\n{tail}")
