"""Keeps the notebooks as they ship: executed in order, with stable bytes, a Colab badge and a Colab set-up cell."""

from __future__ import annotations

import itertools
import re
import shutil
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rp_course.home import REPOSITORY, home
from rp_course.show import WIDGET_VIEW
from rp_lib._version import __version__
from rp_lib.utils.errors import MissingDependency, RPLibError, UnknownName
from rp_lib.utils.io import write_atomically

BADGE_IMAGE = "https://colab.research.google.com/assets/colab-badge.svg"
SETUP_ID = "colab-setup"
IGNORE = "nbval-ignore-output"
KEPT_TAGS = "tags"
TIMEOUT = 600  # seconds per cell

# Self-contained, because on Colab the library is what it installs. What must not be replaced is named as a requirement:
# pip keeps it, or says why it cannot. Not the extra `notebooks`: JupyterLab would replace parts of Colab.
SETUP = """\
# On Colab this installs the library, next to the torch that is there. Elsewhere it does nothing.
import sys

if "google.colab" in sys.modules:
    import subprocess
    from importlib.metadata import packages_distributions, version

    found = packages_distributions()
    used = {{d: version(d) for name in found if name in sys.modules for d in found[name]}}
    keep = [f"{{d}}=={{version(d)}}" for d in ("torch", "torchvision", "numpy", "ipywidgets")]
    release = "rp-lib[course] @ {repository}/archive/refs/tags/{release}.zip"
    pip = [sys.executable, "-m", "pip", "install", "-q", *keep, release]
    done = subprocess.run(pip, capture_output=True, text=True)
    hint = "If it is not there, write heads/main in place of tags/{release} and run this again."
    assert not done.returncode, f"pip could not install {{release}}. {{hint}}\\n{{done.stderr}}"
    stale = [name for name in used if version(name) != used[name]]
    restart = f"Now choose Runtime > Restart session, then go on: {{stale}} were replaced."
    print(restart if stale else "Ready.")"""


def setup_source(repository: str, release: str = f"v{__version__}") -> str:
    """Source of the set-up cell."""
    return SETUP.format(repository=repository.rstrip("/"), release=release)


def badge(name: str, repository: str, release: str = f"v{__version__}") -> str:
    """The line that opens a notebook on Colab."""
    return f"[![Open in Colab]({BADGE_IMAGE})]({home(name, repository, release)})"


def paths(folder: Path, names: Sequence[str] = ()) -> list[Path]:
    """Notebooks of a folder by their names (``00_tour``, ``00_tour.ipynb`` or ``00``), default all, in order.

    Raises:
        UnknownName: no such notebook. RPLibError: the folder holds none.
    """
    found = {p.stem: p for p in sorted(folder.glob("*.ipynb"))}
    if not found:
        raise RPLibError(f"there are no notebooks in {folder}; run this in the repository, or name a --folder")
    chosen = []
    for name in names:
        stem = Path(name).stem
        fit = [p for s, p in found.items() if s == stem or s.split("_")[0] == stem]
        if not fit:
            raise UnknownName("notebook", name, found)
        chosen += fit
    return chosen or list(found.values())


def copy_notebooks(chosen: Sequence[Path], folder: Path) -> int:
    """Copy notebooks to another folder, and never over a file that is there; returns how many.

    Raises:
        RPLibError: The folder holds one of them already.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for path in chosen:
        if (folder / path.name).exists():
            raise RPLibError(f"{folder / path.name} is there already, perhaps with your answers: name another folder")
    for path in chosen:
        shutil.copyfile(path, folder / path.name)
    return len(chosen)


def repository(folder: Path) -> str:
    """Address in ``[project.urls] Repository`` of the pyproject.toml beside the folder; else a default."""
    path = folder.resolve().parent / "pyproject.toml"
    if not path.is_file():
        return REPOSITORY
    return tomllib.loads(path.read_text("utf-8")).get("project", {}).get("urls", {}).get("Repository", REPOSITORY)


def read(path: Path) -> Any:
    """A notebook of format 4.

    Raises:
        RPLibError: it is none. MissingDependency: nbformat is not installed.
    """
    nbformat = _nbformat()
    try:
        return nbformat.read(path, as_version=4)
    except (ValueError, nbformat.ValidationError, AttributeError) as error:
        raise RPLibError(f"{path} is no notebook ({error})") from error


def as_text(notebook: Any) -> str:
    """A notebook as it is stored."""
    return _nbformat().writes(notebook).rstrip("\n") + "\n"


def write(path: Path, notebook: Any) -> bool:
    """Write a notebook atomically if its bytes change; whether they did."""
    text = as_text(notebook)
    if path.is_file() and path.read_text("utf-8") == text:
        return False
    write_atomically(path, lambda partial: partial.write_bytes(text.encode()))
    return True


def prepare(notebook: Any, name: str, repository: str) -> Any:
    """Badge, set-up cell and stable bytes; the notebook is changed in place and returned.

    Outputs stay. Execution counts are numbered anew if they show that the cells ran in order.
    """
    cells = [c for c in notebook.cells if c.get("id") != SETUP_ID]
    if not cells or cells[0].cell_type != "markdown" or not cells[0].source.startswith("# "):
        raise RPLibError(f"{name} does not begin with a Markdown cell that has a title")
    cells[0].source = _with_badge(cells[0].source, badge(name, repository))
    ran_in_order = _ran_in_order(cells)
    setup = _nbformat().v4.new_code_cell(setup_source(repository), id=SETUP_ID)
    notebook.cells = [cells[0], setup, *cells[1:]]
    if ran_in_order:
        number_cells(notebook)
    return normalise(notebook)


def _with_badge(source: str, line: str) -> str:
    lines = [part for part in source.splitlines() if f"]({BADGE_IMAGE})](" not in part]
    rest = "\n".join(lines[1:]).strip("\n")
    return f"{lines[0]}\n\n{line}\n\n{rest}".rstrip("\n")


def _ran_in_order(cells: Iterable[Any]) -> bool:
    counts = [c.execution_count for c in cells if c.cell_type == "code" and c.source.strip()]
    return None not in counts and all(a < b for a, b in itertools.pairwise(counts))


def number_cells(notebook: Any) -> None:
    """Execution counts 1 ... n, for a notebook whose cells ran in order."""
    for number, cell in enumerate((c for c in notebook.cells if c.cell_type == "code"), 1):
        cell.execution_count = number
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = number


def normalise(notebook: Any) -> Any:
    """Drop what differs from run to run and from machine to machine; changed in place and returned."""
    notebook.metadata = _nbformat().from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    ids = [cell.get("id", "") for cell in notebook.cells]
    if len(set(ids)) < len(ids) or not all(re.fullmatch(r"cell-\d\d|" + SETUP_ID, i) for i in ids):
        numbers = iter(range(len(ids)))
        ids = [i if i == SETUP_ID else f"cell-{next(numbers):02d}" for i in ids]
    for cell, name in zip(notebook.cells, ids, strict=True):
        cell["id"] = name
        cell.metadata = _nbformat().from_dict({k: v for k, v in cell.metadata.items() if k == KEPT_TAGS and v})
        cell.pop("attachments", None)
        cell.source = "\n".join(line.rstrip() for line in cell.source.strip("\n").splitlines())
        if cell.cell_type == "code":
            cell.outputs = _merged(cell.outputs)
            for output in cell.outputs:
                output.get("data", {}).pop(WIDGET_VIEW, None)
    _hide_answers(notebook.cells)
    for cell in notebook.cells:
        if cell["id"] == SETUP_ID:
            cell.metadata["jupyter"] = {"source_hidden": True}  # its first line, a comment, says what it is for
    return notebook


def _hide_answers(cells: Iterable[Any]) -> None:
    """Fold what answers a question, so that a reader can predict before seeing it.

    The stored outputs, from a cell with ``predict`` on until the Markdown behind its ``reveal``: JupyterLab shows of a
    folded output its first line alone, and unfolds it when the cell is run. The source of cells that reveal or that
    only check: their code, their reasons and the text alternatives of their figures tell the answer. A click on the
    folded cell shows it.
    """
    open_questions, folding = 0, False
    for cell in cells:
        if cell.cell_type == "markdown":
            folding = folding and open_questions > 0
            continue
        hidden = {"source_hidden": True} if folding and tells_the_answer(cell.source) else {}
        if folding:
            cell.metadata["jupyter"] = {"outputs_hidden": True, **hidden}
        open_questions += len(re.findall(r"(?<![.\w])predict\(", cell.source)) - len(
            re.findall(r"\.reveal\(", cell.source)
        )
        folding = folding or open_questions > 0


def tells_the_answer(source: str) -> bool:
    """Whether a cell reveals a prediction, or asserts what the run found."""
    return re.search(r"\.reveal\(|^\s*assert ", source, re.MULTILINE) is not None


def _merged(outputs: Sequence[Any]) -> list[Any]:
    """Printed text in one piece, however it arrived."""
    merged: list[Any] = []
    for output in outputs:
        if merged and output.output_type == merged[-1].output_type == "stream" and output.name == merged[-1].name:
            merged[-1].text += output.text
        else:
            merged.append(output)
    return merged


def execute(notebook: Any, name: str, folder: Path) -> Any:
    """Run all cells in a fresh kernel, in ``folder``; changed in place and returned.

    A cell that measures time and whose outputs are not compared keeps the outputs that it has, unless it has none: they
    would differ at every run.

    Raises:
        RPLibError: a cell failed; says which and why. MissingDependency: nbclient is not installed.
    """
    try:
        from nbclient import NotebookClient
        from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
    except ImportError as error:
        raise MissingDependency("nbclient", 'pip install "rp-lib[notebooks]"') from error
    timings = {number: cell.outputs for number, cell in enumerate(notebook.cells) if _measures_time(cell)}
    # With the state of widgets: without it nbclient ends in a KeyError where one of them holds an output.
    client = NotebookClient(
        notebook, timeout=TIMEOUT, kernel_name="python3", store_widget_state=True,
        resources={"metadata": {"path": str(folder)}},
    )  # fmt: skip
    try:
        client.execute()
    except CellExecutionError as error:
        raise RPLibError(f"{name}: a cell failed with {error.ename}: {error.evalue}\n\n{error}") from error
    except (CellTimeoutError, DeadKernelError) as error:
        raise RPLibError(f"{name}: {error}") from error
    _check_widgets(notebook.metadata.pop("widgets", {}), name)
    for number, outputs in timings.items():
        notebook.cells[number].outputs = outputs
    return notebook


def _check_widgets(widgets: Any, name: str) -> None:
    """Raise if a function inside ``interact`` or an ``Output`` widget failed or printed; a cell does not tell of it."""
    state = widgets.get("application/vnd.jupyter.widget-state+json", {}).get("state", {})
    for output in [o for model in state.values() for o in model.get("state", {}).get("outputs", ())]:
        if output.get("output_type") == "error":
            raised = f"{output.get('ename')}: {output.get('evalue')}"
            raise RPLibError(f"{name}: inside `interact` or an Output widget, {raised} was raised")
        shown = output.get("text") or output.get("data", {}).get("text/plain", "")
        raise RPLibError(
            f"{name}: what is shown inside `interact` or an Output widget ({str(shown).strip()[:60]!r}) is not stored "
            "in a cell, so a reader of the file would not see it: write it into a widget's value, or show it outside"
        )


def _measures_time(cell: Any) -> bool:
    """Whether a cell has stored outputs that are not compared and that time went into."""
    ignored = IGNORE in cell.metadata.get("tags", ()) and bool(cell.get("outputs"))
    return ignored and re.search(r"\b(?:perf_counter|process_time|monotonic|timeit)\b", cell.source) is not None


def _nbformat() -> Any:
    try:
        import nbformat
    except ImportError as error:
        raise MissingDependency("nbformat", 'pip install "rp-lib[notebooks]"') from error
    return nbformat
