"""What must be true of every notebook as it is stored; each check says what is wrong, in words."""

from __future__ import annotations

import ast
import copy
import re
import statistics
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rp_course.authoring.notebooks import IGNORE, SETUP_ID, as_text, prepare, read, repository
from rp_course.show import WIDGET_VIEW, WIDTH
from rp_lib.utils.errors import RPLibError

MAX_BYTES = 600_000
MAX_LINES, LONG_SHARE, MEAN_LINES, LIMIT_LINES = 20, 0.25, 15, 36
MAX_COLUMNS = 100  # of code: more would scroll sideways in JupyterLab at 1,280 pixels
MAX_UNCOMPARED, MIN_COMPARED = 4, 5
EXCEPTIONS = "exceptions.toml"
# Measured numbers look like these; what is a definition or a citation is taken out before, or listed with its reason.
NUMBERS = re.compile(
    r"\d[\d,]*(?:\.\d+)?\s?(?:%|percent\b|points?\b|times\b|-?fold\b)|(?<![\w.,])\d+\.\d+\b|(?<![\w.,-])\d{1,3}(?:,\d{3})+\b|(?<![\w.,-])\d{3,}\b"
)
NO_PROSE = re.compile(
    r"```.*?```|\$\$.*?\$\$|`[^`]*`|\$[^$\n]*\$|\]\([^)]*\)|https?://\S+|<[^>]+>|arXiv[: ]?\d{4}\.\d{4,5}(?:v\d+)?"
    r"|\b(?:19\d\d|20[0-4]\d)[a-z]?\b|ViT-\w+/\d+|CIFAR-10[.\d]*",
    re.DOTALL,
)  # fmt: skip
PLACES = re.compile(r"(?<![\w.])/(?:work|tmp|root|home|Users|opt|usr)/\w")


def findings(path: Path, address: str | None = None) -> list[str]:
    """Everything that is wrong with a notebook; an empty list if nothing is.

    Args:
        path: of the notebook; links, the next notebook and ``exceptions.toml`` are looked for beside it.
        address: of the repository, that the badge must name; default: of pyproject.toml.
    """
    notebook = read(path)
    if not notebook.cells:
        return ["it has no cells"]
    known = exceptions(path.parent)
    return [
        *_stored(notebook, path, address or repository(path.parent)),
        *_executed(notebook),
        *_outputs(notebook),
        *_figures(notebook),
        *_code(notebook),
        *_compared(notebook, known["uncompared"].get(path.stem, {})),
        *_links(notebook, path.parent),
        *_prose(notebook, known["numbers"].get("everywhere", {}), known["numbers"].get(path.stem, {})),
        *_structure(notebook, path),
        *_doing(notebook, path.stem[:2]),
    ]


def exceptions(folder: Path) -> dict[str, dict[str, dict[str, str]]]:
    """``exceptions.toml``: by kind and notebook, pieces of text with the reason why they are allowed."""
    path = folder / EXCEPTIONS
    try:
        found = tomllib.loads(path.read_text("utf-8")) if path.is_file() else {}
    except tomllib.TOMLDecodeError as error:
        raise RPLibError(f"{path} cannot be read: {error}") from error
    return {"uncompared": {}, "numbers": {}} | found


def code_cells(notebook: Any, setup: bool = False) -> list[Any]:
    """Code cells, without the set-up cell unless asked for."""
    return [c for c in notebook.cells if c.cell_type == "code" and (setup or c.get("id") != SETUP_ID)]


def is_ignored(cell: Any) -> bool:
    """Whether nbval runs the cell without comparing its outputs."""
    return IGNORE in cell.metadata.get("tags", ())


def printed(cell: Any) -> str:
    """What the cell printed."""
    return "".join(o.text for o in cell.outputs if o.output_type == "stream" and o.name == "stdout")


def _first(text: str) -> str:
    return next((line for line in text.splitlines() if line.strip()), "")[:60]


def _stored(notebook: Any, path: Path, address: str) -> Iterator[str]:
    if (size := path.stat().st_size) >= MAX_BYTES:
        yield f"{size} bytes; {MAX_BYTES} are too many: fewer or smaller figures"
    try:
        ready = as_text(prepare(copy.deepcopy(notebook), path.stem, address))
    except RPLibError as error:
        yield str(error)
        return
    if ready != path.read_text("utf-8"):
        yield "badge, set-up cell or metadata are not in order: run `python -m rp_course notebooks`"
    if "widgets" in notebook.metadata:
        yield "widget state is saved in it"


def _executed(notebook: Any) -> Iterator[str]:
    counts = [c.execution_count for c in code_cells(notebook, setup=True)]
    if counts != list(range(1, len(counts) + 1)):
        yield f"execution counts are {counts}: run `python -m rp_course notebooks --execute`"
    for cell in code_cells(notebook):
        if not cell.source.strip():
            yield "it has an empty code cell"


def _outputs(notebook: Any) -> Iterator[str]:
    for cell in code_cells(notebook, setup=True):
        where = f"cell {cell.execution_count}"
        for output in cell.outputs:
            if output.output_type == "error":
                yield f"{where} stores an error, {output.ename}"
            if output.output_type == "stream" and output.name == "stderr":
                yield f"{where} stores stderr: {_first(output.text)}"
            if WIDGET_VIEW in output.get("data", {}):
                yield f"{where} stores the view of a widget"
            data = output.get("data", {})
            text = output.get("text", "") + data.get("text/plain", "") + data.get("text/html", "")
            if re.search(r"0x[0-9a-f]{6,}", text):
                yield f"{where} prints an address in memory"
            if place := PLACES.search(text + cell.source):
                yield f"{where} names a folder of one machine: {place.group()}"
        if (widest := max(map(len, printed(cell).splitlines()), default=0)) > WIDTH:
            yield f"{where} prints a line of {widest} characters, which JupyterLab breaks within a word: use say(...)"
        if cell.get("id") == SETUP_ID and cell.outputs:
            yield "the set-up cell has outputs"


def _figures(notebook: Any) -> Iterator[str]:
    cells = code_cells(notebook)
    for cell, following in zip(cells, [*cells[1:], None], strict=True):
        pictures = [o for o in cell.outputs if "image/png" in o.get("data", {})]
        for output in pictures:
            alt = output.metadata.get("image/png", {}).get("alt", "")
            if len(alt.split()) < 3:
                yield f"cell {cell.execution_count} has a figure without alt text: use show(figure, alt=...)"
            elif output.data.get("text/plain") != f"figure:\n{alt}":
                yield f"cell {cell.execution_count} has a figure whose plain text is not its alt text"
        facts = printed(cell) + (printed(following) if following is not None else "")
        if pictures and not facts.strip():
            yield f"cell {cell.execution_count} has a figure; neither it nor the next cell prints a fact about its data"


def _code(notebook: Any) -> Iterator[str]:
    cells = code_cells(notebook)
    lengths = [len(c.source.splitlines()) for c in cells]
    if lengths and statistics.mean(lengths) > MEAN_LINES:
        yield f"code cells have {statistics.mean(lengths):.1f} lines on average, {MEAN_LINES} are allowed"
    if sum(n > MAX_LINES for n in lengths) > LONG_SHARE * len(lengths):
        yield f"{sum(n > MAX_LINES for n in lengths)} of {len(lengths)} code cells have more than {MAX_LINES} lines"
    for cell in code_cells(notebook, setup=True):
        if (widest := max(map(len, cell.source.splitlines()), default=0)) > MAX_COLUMNS:
            yield f"cell {cell.execution_count} has a line of {widest} characters; {MAX_COLUMNS} are allowed"
    for cell, length in zip(cells, lengths, strict=True):
        where = f"cell {cell.execution_count}"
        if length > LIMIT_LINES:
            yield f"{where} has {length} lines"
        if cell.metadata.get("jupyter", {}).get("source_hidden") and not cell.source.startswith("#"):
            yield f"{where} is folded to its first line, which is code: begin it with a comment that tells no answer"
        if re.search(r"^\s*[%!]", cell.source, re.MULTILINE):
            yield f"{where} has a magic or shell line"
        if re.search(r"\bplt\.show\(|NBVAL_|get_ipython|\bdisplay\(", cell.source):
            yield f"{where} displays past show(figure, alt=...), or steers nbval by a comment"
        if strange := set(cell.metadata.get("tags", ())) - {IGNORE}:
            yield f"{where} has the tag {', '.join(sorted(strange))}"


def _compared(notebook: Any, reasons: dict[str, str]) -> Iterator[str]:
    cells = code_cells(notebook)
    ignored = [c for c in cells if is_ignored(c)]
    if len(ignored) > MAX_UNCOMPARED:
        yield f"the outputs of {len(ignored)} cells are not compared; {MAX_UNCOMPARED} are allowed"
    for cell in ignored:
        if sum(piece in cell.source for piece in reasons) != 1:
            yield f"cell {cell.execution_count} is not compared; give a reason in {EXCEPTIONS}: {_first(cell.source)}"
    for piece, reason in reasons.items():
        if sum(piece in c.source for c in ignored) != 1 or len(reason.split()) < 3:
            yield f"{EXCEPTIONS} excuses {piece!r}, which is not exactly one cell that is not compared, with a reason"
    if (count := sum(bool(printed(c).strip()) and not is_ignored(c) for c in cells)) < MIN_COMPARED:
        yield f"only {count} cells print something that is compared"


def _links(notebook: Any, folder: Path) -> Iterator[str]:
    for cell in notebook.cells:
        if cell.cell_type != "markdown":
            continue
        text = re.sub(r"```.*?```|`[^`\n]*`", "", cell.source, flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)\s]*)\)", text):
            if target.startswith("http"):
                if not re.fullmatch(r"https://[\w-]+(\.[\w-]+)+(/[^\s]*)?", target):
                    yield f"the link {target} is malformed, or not https"
            elif target.startswith("#") or not (folder / target.split("#")[0]).exists():
                yield f"the link {target} leads nowhere"
        for image in re.findall(r"!\[([^]]*)\]", text):
            if len(image.split()) < 3:
                yield f"an image in Markdown has the alt text {image!r}"


def _prose(notebook: Any, everywhere: dict[str, str], here: dict[str, str]) -> Iterator[str]:
    used = set()
    for cell in notebook.cells:
        if cell.cell_type != "markdown":
            continue
        text = re.sub(r"^# \d\d · |\b\d\d · |\b\d+(?: to \d+)? minutes", "", NO_PROSE.sub(" ", cell.source), flags=re.M)
        for piece in here:
            if piece in cell.source:
                used.add(piece)
                text = text.replace(piece, "")
        for number in NUMBERS.findall(text):
            if re.sub(r"\s", " ", number.strip()) not in everywhere:
                yield f"prose states the number {number.strip()!r}; let code print it, or give a reason in {EXCEPTIONS}"
    for piece in here.keys() - used:
        yield f"{EXCEPTIONS} allows {piece!r}, which is not in the text"


def _structure(notebook: Any, path: Path) -> Iterator[str]:
    head, tail = notebook.cells[0], notebook.cells[-1]
    if tail.cell_type != "markdown":
        yield "it does not end with a Markdown cell"
    if not re.match(rf"# {path.stem[:2]} · \S", head.source):
        yield f"the title must be `# {path.stem[:2]} · ...`"
    for pattern, what in (
        (r"[Qq]uestion.*\?", "a question"), (r"\d+ minutes", "the minutes it takes"), (r"\blearn", "what one learns"),
    ):  # fmt: skip
        if not re.search(pattern, head.source, re.DOTALL):
            yield f"the first cell does not name {what}"
    for words in ("Key points", "Further reading"):
        if words not in tail.source:
            yield f"the last cell has no {words!r}"
    number, last = int(path.stem[:2]), max(p.stem[:2] for p in path.parent.glob("[0-9][0-9]_*.ipynb"))
    if number < int(last) and not re.search(rf"Next[^\n]*\]\({number + 1:02d}_\w+\.ipynb\)", tail.source):
        yield "the last cell does not link to the next notebook"


def _doing(notebook: Any, number: str) -> Iterator[str]:
    from rp_course.exercise import exercises

    written = {}
    asked = revealed = 0
    for cell in code_cells(notebook):
        try:
            nodes = list(ast.walk(ast.parse(cell.source)))
        except SyntaxError as error:
            yield f"cell {cell.execution_count} does not parse: {error}"
            continue
        written |= {
            n.name: cell
            for n in nodes
            if isinstance(n, ast.FunctionDef) and "exercise" in map(ast.unparse, n.decorator_list)
        }
        calls = [ast.unparse(n.func) for n in nodes if isinstance(n, ast.Call)]
        asked += calls.count("predict")
        revealed += sum(c.endswith(".reveal") for c in calls)
    minutes = {item.name: item.minutes for n, item in exercises() if n == number}
    known = minutes.keys()
    if number != "00" and len(written) < 2:
        yield f"it has {len(written)} exercises, at least two are needed"
    if written.keys() != known:
        yield f"exercises in the notebook and in the registry differ: {', '.join(sorted(written.keys() ^ known))}"
    for name, cell in written.items():
        if name in known and f"({minutes[name]} minutes)" not in cell.source:
            yield f"the exercise {name} does not say that it takes {minutes[name]} minutes"
        if f"{name}: unsolved" not in printed(cell):
            yield f"the exercise {name} is not stored as unsolved"
    if not asked or asked != revealed:
        yield f"{asked} predictions are asked and {revealed} revealed; at least one, and each once"
