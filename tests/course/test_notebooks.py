"""The stored notebooks are in order, and nbval would notice if an output were another."""

import copy
import json
import os
import subprocess
import sys
import types
import xml.etree.ElementTree as ET
from pathlib import Path

import nbformat
import pytest
from rp_course.authoring.checks import MAX_COLUMNS, findings, is_ignored, printed
from rp_course.authoring.notebooks import (
    SETUP_ID,
    as_text,
    badge,
    execute,
    normalise,
    paths,
    prepare,
    read,
    repository,
    setup_source,
    write,
)  # fmt: skip
from rp_course.cli import main
from rp_course.show import WIDGET_VIEW

from rp_lib.utils.errors import RPLibError, UnknownName

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
ADDRESS = "https://github.com/someone/fork"
new = nbformat.v4


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_is_in_order(path):
    assert findings(path) == []


# --- one changed output must make nbval fail


def mutated(notebook):
    """Its code cells up to the first that prints what it computed, in whose stored output one character is changed."""
    cells = [copy.deepcopy(c) for c in notebook.cells if c.cell_type == "code"]
    for number, cell in enumerate(cells):
        if printed(cell).strip() and not is_ignored(cell) and "unsolved" not in printed(cell):
            stream = next(o for o in cell.outputs if o.output_type == "stream")
            stream.text = change(stream.text)
            return cells[: number + 1]
    raise AssertionError("nothing is compared")


def change(text):
    """Another digit where there is one, else another letter."""
    at = next((i for i, c in enumerate(text) if c.isdigit()), next(i for i, c in enumerate(text) if c.isalpha()))
    return text[:at] + ("7" if text[at] != "7" else "3") + text[at + 1 :]


@pytest.fixture(scope="module")
def nbval_results(tmp_path_factory):
    """By notebook: for each of its cells up to the mutated one, what nbval complained about, or None.

    All go into one copy, one after the other: most of the time of a kernel goes into its imports. For the same reason
    the track is opened once.
    """
    folder = tmp_path_factory.mktemp("mutated")
    cells = {path.stem: mutated(read(path)) for path in NOTEBOOKS}
    once = "import functools\nfrom rp_course import tracks\ntracks.open_track = functools.cache(tracks.open_track)"
    everything = [new.new_code_cell(once), *(cell for part in cells.values() for cell in part)]
    for number, cell in enumerate(everything):
        cell["id"] = f"cell-{number}"
    nbformat.write(new.new_notebook(cells=everything), folder / "all.ipynb")
    report = folder / "report.xml"
    command = [
        sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", "-c", os.devnull, "--rootdir", str(folder),
        "--nbval", "-q", f"--junitxml={report}", str(folder),
    ]  # fmt: skip
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "COV_"))}
    done = subprocess.run(command, capture_output=True, text=True, env=clean | {"PYTHONPATH": f"{FOLDER.parent}{os.pathsep}{FOLDER}"})
    assert report.is_file(), done.stdout + done.stderr
    failures = {}
    for case in ET.parse(report).iter("testcase"):
        problem = case.find("failure") if case.find("error") is None else case.find("error")
        failures[int(case.get("name").rsplit(" ", 1)[1])] = None if problem is None else problem.text or ""
    assert failures[0] is None
    found = iter(failures[number] for number in range(1, len(everything)))
    return {stem: [next(found) for _ in part] for stem, part in cells.items()}


@pytest.mark.parametrize("stem", [p.stem for p in NOTEBOOKS])
def test_a_changed_output_fails_and_nothing_else(nbval_results, stem):
    *before, last = nbval_results[stem]
    assert before == [None] * len(before)
    assert last is not None and "mismatch" in last


# --- the checks themselves


def figure(alt="Two lines that cross once"):
    return new.new_output(
        "display_data",
        {"image/png": "iVBORw0KGgo=", "text/plain": f"figure:\n{alt}"},
        metadata={"image/png": {"alt": alt}},
    )


def cell(source, *outputs, text="", tags=(), count=None):
    outputs = ([new.new_output("stream", name="stdout", text=text)] if text else []) + list(outputs)
    return new.new_code_cell(
        source, outputs=outputs, metadata={"tags": list(tags)} if tags else {}, execution_count=count
    )


@pytest.fixture
def course(tmp_path):
    """A folder with a notebook that is in order."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    head = "# 00 · A title\n\n**Question.** What is it?\n\n**What you will learn** (10 minutes): a thing."
    tail = (
        "## Key points\n\n* FPR is read at 95 % TPR.\n\n**Further reading:** [CLIP](https://arxiv.org/abs/2103.00020)"
    )
    cells = [
        new.new_markdown_cell(head),
        cell('guess = predict("which?", {"a": "x", "b": "y"}, default="a")', count=1),
        cell('# The answer\nguess.reveal("a", "so it is")', text="You said a\n", count=2),
        cell("show(figure, alt='Two lines that cross once')", figure(), text="2 lines\n", count=3),
        *(cell(f"print({i})", text=f"{i}\n", count=4 + i) for i in range(3)),
        new.new_markdown_cell(tail),
    ]
    (folder / "exceptions.toml").write_text('[numbers.everywhere]\n"95 %" = "the convention"\n')
    path = folder / "00_title.ipynb"
    write(path, prepare(new.new_notebook(cells=cells), path.stem, ADDRESS))
    return path


def spoil(path, change_):
    notebook = read(path)
    change_(notebook)
    nbformat.write(notebook, path)


def test_good_notebook_passes(course):
    assert findings(course, ADDRESS) == []


SPOILS = {
    "without alt text": lambda n: n.cells[4].outputs[1].metadata.clear(),
    "plain text is not its alt text": lambda n: n.cells[4].outputs[1].data.update({"text/plain": "<Figure>"}),
    "prints a fact about its data": lambda n: (n.cells[4].outputs.pop(0), n.cells[5].outputs.clear()),
    "execution counts are [1, 2, 9": lambda n: n.cells[3].update(execution_count=9),
    "execution counts are [1, 2, None": lambda n: n.cells[3].update(execution_count=None),
    "execution counts are [2, 3": lambda n: [c.update(execution_count=c.execution_count + 1) for c in n.cells if c.cell_type == "code"],
    "prints a line of 101 characters": lambda n: n.cells[5].outputs.append(new.new_output("stream", name="stdout", text="a " * 50 + "b\n")),
    "stores stderr: a warning": lambda n: n.cells[5].outputs.append(new.new_output("stream", name="stderr", text="a warning")),
    "stores an error, ValueError": lambda n: n.cells[5].outputs.append(new.new_output("error", ename="ValueError", evalue="", traceback=[])),
    "stores the view of a widget": lambda n: n.cells[5].outputs.append(new.new_output("display_data", {WIDGET_VIEW: {}, "text/plain": "x"})),
    "widget state is saved": lambda n: n.metadata.update(widgets={}),
    "an address in memory": lambda n: n.cells[5].outputs[0].update(text="<function at 0x7f3a12>"),
    "a folder of one machine: /home/m": lambda n: n.cells[5].update(source="open('/home/me/x')"),
    "badge, set-up cell or metadata are not in order": lambda n: n.cells[1].update(source="pass"),
    "the set-up cell has outputs": lambda n: n.cells[1].outputs.append(new.new_output("stream", name="stdout", text="x")),
    "bytes; 600000 are too many": lambda n: n.cells[4].outputs[1].data.update({"image/png": "A" * 600_000}),
    "has 37 lines": lambda n: n.cells[5].update(source="x = 1\n" * 37),
    "of 6 code cells have more than 20 lines": lambda n: [n.cells[i].update(source="x = 1\n" * 21) for i in (5, 6)],
    "lines on average": lambda n: [n.cells[i].update(source="x = 1\n" * 17) for i in range(2, 8)],
    "a line of 101 characters": lambda n: n.cells[5].update(source="x = " + "1" * 97),
    "is folded to its first line, which is code": lambda n: n.cells[3].update(source='guess.reveal("a", "so it is")'),
    "an empty code cell": lambda n: n.cells[5].update(source=" "),
    "magic or shell line": lambda n: n.cells[5].update(source="if x:\n    !ls"),
    "has a magic": lambda n: n.cells[5].update(source="%pip install x"),
    "displays past show": lambda n: n.cells[5].update(source="plt.show()"),
    "steers nbval by a comment": lambda n: n.cells[5].update(source="# NBVAL_SKIP\nx"),
    "has the tag nbval-skip": lambda n: n.cells[5].metadata.update(tags=["nbval-skip"]),
    "is not compared; give a reason": lambda n: n.cells[5].metadata.update(tags=["nbval-ignore-output"]),
    "the outputs of 5 cells are not compared": lambda n: [n.cells[i].metadata.update(tags=["nbval-ignore-output"]) for i in range(3, 8)],
    "only 3 cells print something": lambda n: [n.cells[i].outputs.clear() for i in (5, 6)],
    "the link gone.ipynb leads nowhere": lambda n: n.cells[-1].update(source=n.cells[-1].source + " [x](gone.ipynb)"),
    "the link http://x.org is malformed": lambda n: n.cells[-1].update(source=n.cells[-1].source + " [x](http://x.org)"),
    "has the alt text 'a b'": lambda n: n.cells[-1].update(source=n.cells[-1].source + " ![a b](00_title.ipynb)"),
    "states the number '91.2 %'": lambda n: n.cells[-1].update(source=n.cells[-1].source + " It reaches 91.2 %."),
    "states the number '3 points'": lambda n: n.cells[-1].update(source=n.cells[-1].source + " Three, no 3 points."),
    "states the number '0.97'": lambda n: n.cells[-1].update(source=n.cells[-1].source + " AUROC 0.97."),
    "states the number '1,547'": lambda n: n.cells[-1].update(source=n.cells[-1].source + " On 1,547 images."),
    "states the number '676'": lambda n: n.cells[-1].update(source=n.cells[-1].source + " On 676 images."),
    "states the number '2.4 times'": lambda n: n.cells[-1].update(source=n.cells[-1].source + " Is 2.4 times as fast."),
    "does not end with a Markdown cell": lambda n: n.cells.pop(),
    "the title must be `# 00 · ": lambda n: n.cells[0].update(source=n.cells[0].source.replace("# 00", "# 01")),
    "does not begin with a Markdown cell": lambda n: n.cells.pop(0),
    "does not name a question": lambda n: n.cells[0].update(source=n.cells[0].source.replace("Question", "")),
    "does not name the minutes": lambda n: n.cells[0].update(source=n.cells[0].source.replace("minutes", "")),
    "does not name what one learns": lambda n: n.cells[0].update(source=n.cells[0].source.replace("learn", "")),
    "has no 'Key points'": lambda n: n.cells[-1].update(source="Further reading"),
    "has no 'Further reading'": lambda n: n.cells[-1].update(source="Key points"),
    "0 predictions are asked and 1 revealed": lambda n: n.cells[2].update(source="x = 1"),
    "1 predictions are asked and 0 revealed": lambda n: n.cells[3].update(source="x = 1"),
    "differ: logits": lambda n: n.cells[5].update(source="@exercise\ndef logits(x): ..."),
    "the exercise logits is not stored as unsolved": lambda n: n.cells[5].update(source="@exercise\ndef logits(x): ..."),
    "does not parse": lambda n: n.cells[5].update(source="def"),
}  # fmt: skip


@pytest.mark.parametrize("words", SPOILS)
def test_each_fault_is_found(course, words):
    spoil(course, SPOILS[words])
    found = findings(course, ADDRESS)
    assert any(words in text for text in found), found


def test_next_notebook_must_be_linked(course):
    (course.parent / "01_next.ipynb").write_bytes(course.read_bytes())
    assert "the last cell does not link to the next notebook" in findings(course, ADDRESS)
    spoil(course, lambda n: n.cells[-1].update(source=n.cells[-1].source + "\n\nNext: [01 · It](01_next.ipynb)"))
    assert findings(course, ADDRESS) == []
    found = findings(course.parent / "01_next.ipynb", ADDRESS)
    assert "it has 0 exercises, at least two are needed" in found
    assert any("differ" in text for text in found)


def test_exceptions_need_a_reason_and_a_use(course):
    spoil(course, lambda n: n.cells[5].metadata.update(tags=["nbval-ignore-output"]))
    spoil(course, lambda n: n.cells[-1].update(source=n.cells[-1].source + " It has 676 images and 0.8 of them."))
    file = course.parent / "exceptions.toml"
    file.write_text(
        '[uncompared.00_title]\n"print(0)" = "it is a test"\n[numbers.everywhere]\n"676" = "x"\n"95 %" = "x"\n'
        '[numbers.00_title]\n"0.8 of them" = "it is a test"\n'
    )
    assert findings(course, ADDRESS) == ["only 4 cells print something that is compared"]
    file.write_text('[uncompared.00_title]\n"print(7)" = "it is a test"\n[numbers.00_title]\n"0.9" = "it is a test"\n')
    found = " ".join(findings(course, ADDRESS))
    assert "excuses 'print(7)'" in found and "allows '0.9'" in found and "give a reason" in found
    file.write_text("[[")
    with pytest.raises(RPLibError, match="cannot be read"):
        findings(course, ADDRESS)


# --- keeping them in order


def test_prepare_is_idempotent_and_keeps_outputs(course):
    before = read(course)
    text = course.read_text()
    assert as_text(prepare(read(course), course.stem, ADDRESS)) == text
    assert [c.get("id") for c in before.cells][:2] == ["cell-00", SETUP_ID]
    assert printed(before.cells[3]) == "You said a\n"
    assert not write(course, before) and course.read_text() == text


def test_badge_moves_to_a_fork(course):
    notebook = prepare(read(course), course.stem, "https://github.com/other/name")
    lines = notebook.cells[0].source.splitlines()
    assert lines[2] == badge(course.stem, "https://github.com/other/name") and lines[4].startswith("**Question.**")
    assert sum("colab-badge" in line for line in lines) == 1
    assert "/github/other/name/blob/v" in lines[2] and lines[2].endswith("/notebooks/00_title.ipynb)")
    assert sum(c.get("id") == SETUP_ID for c in notebook.cells) == 1
    assert "rp-lib[course] @ https://github.com/other/name/archive/refs/tags/v" in notebook.cells[1].source


def test_counts_are_not_invented(course):
    notebook = read(course)
    notebook.cells[4].execution_count = None
    prepared = prepare(notebook, course.stem, ADDRESS)
    assert prepared.cells[4].execution_count is None


def test_normalise_drops_what_varies():
    noisy = new.new_notebook(
        metadata={"widgets": {}, "kernelspec": {"name": "mine", "display_name": "x"}},
        cells=[
            new.new_markdown_cell("# 00 · T \n", id="abc", metadata={"editable": True}),
            cell("x = 1  \n", tags=["nbval-ignore-output"], count=3),
        ],
    )
    code = noisy.cells[1]
    code.metadata["execution"] = {"iopub.execute_input": "2024-01-01"}
    stream = new.new_output("stream", name="stdout", text="a\n")
    view = new.new_output("display_data", {WIDGET_VIEW: {"model_id": "1"}, "text/plain": "y"})
    code.outputs = [stream, new.new_output("stream", name="stdout", text="b\n"), view]
    clean = normalise(noisy)
    assert "widgets" not in clean.metadata and clean.metadata.kernelspec.name == "python3"
    assert [c.id for c in clean.cells] == ["cell-00", "cell-01"] and clean.cells[0].metadata == {}
    assert clean.cells[1].metadata == {"tags": ["nbval-ignore-output"]} and clean.cells[1].source == "x = 1"
    assert [o.get("text") for o in clean.cells[1].outputs] == ["a\nb\n", None]
    assert clean.cells[1].outputs[1].data == {"text/plain": "y"}


def test_stored_answers_are_folded_until_they_are_asked_for():
    sources = [
        "x = model.predict(1)", 'guess = predict("?", {})', "figure()", "# prose", "figure()", "guess.reveal(1)",
        "print(2)", "# prose", "print(3)", 'a, b = predict("?"), predict("!")', "a.reveal(1)", "# prose",
        "b.reveal(1)", "# prose", "print(4)",
    ]  # fmt: skip
    cells = [new.new_markdown_cell(s) if s.startswith("#") else cell(s) for s in sources]
    folded = normalise(new.new_notebook(cells=cells)).cells
    hidden = {i: set(c.metadata["jupyter"]) for i, c in enumerate(folded) if "jupyter" in c.metadata}
    assert list(hidden) == [2, 4, 5, 6, 10, 12] and all("outputs_hidden" in keys for keys in hidden.values())
    # The code that reveals tells the answer too.
    assert [i for i, keys in hidden.items() if "source_hidden" in keys] == [5, 10, 12]
    assert all(not c.metadata for c in folded if c.cell_type == "markdown")
    # What was folded by hand, or by an earlier version, is not.
    cells[0].metadata["jupyter"] = {"outputs_hidden": True}
    assert not normalise(new.new_notebook(cells=cells)).cells[0].metadata


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("widgets.interact(lambda k=3: print(k), k=(0, 5));", r"'3'\) is not stored in a cell"),
        ("widgets.interact(lambda k=3: 1 / 0, k=(0, 5));", "ZeroDivisionError: division by zero was raised"),
        ("out = widgets.Output()\nwith out:\n    display('seen')\nout", "'seen'.* is not stored in a cell"),
        ("out = widgets.Output()\nwith out:\n    raise KeyError('x')\nout", "KeyError: 'x' was raised"),
    ],
)
def test_what_is_hidden_inside_widgets_is_said(body, message, tmp_path, monkeypatch):
    from nbformat import v4 as new

    # On a crowded machine nbclient sometimes waits for a kernel's answer as long as it may.
    monkeypatch.setattr("rp_course.authoring.notebooks.TIMEOUT", 40)
    notebook = new.new_notebook(cells=[new.new_code_cell(f"import ipywidgets as widgets\n{body}")])
    with pytest.raises(RPLibError, match=f"00_t: .*{message}"):
        execute(notebook, "00_t", tmp_path)


def test_widgets_that_hide_nothing_leave_no_state(tmp_path):
    from nbformat import v4 as new

    source = "import ipywidgets as widgets\nwidgets.interactive(lambda k: None, k=(0, 5))"
    assert "widgets" not in execute(new.new_notebook(cells=[new.new_code_cell(source)]), "00_t", tmp_path).metadata


def test_execute_twice_gives_equal_bytes(tmp_path):
    """Including prints that arrive in pieces, a widget, a figure and a result."""
    sources = [
        "import sys, ipywidgets\nfor i in range(5):\n    print(i, flush=True)",
        "ipywidgets.IntSlider()",
        "from matplotlib.figure import Figure\nf = Figure((2, 2))\n_ = f.subplots().plot([0, 1])\nf",
        "3 + 4",
    ]
    notebook = new.new_notebook(cells=[new.new_markdown_cell("# 00 · T"), *map(new.new_code_cell, sources)])
    notebook.cells[0]["id"] = "one"
    texts = []
    for _ in range(2):
        ready = prepare(copy.deepcopy(notebook), "00_t", ADDRESS)
        texts.append(as_text(normalise(execute(ready, "00_t", tmp_path))))
    assert texts[0] == texts[1]
    stored = json.loads(texts[0])
    assert [c["execution_count"] for c in stored["cells"][1:]] == [1, 2, 3, 4, 5]
    assert stored["cells"][1]["outputs"] == []  # the set-up cell does nothing here
    assert stored["cells"][2]["outputs"][0]["text"] == [f"{i}\n" for i in range(5)]
    assert "widget-view" not in texts[0] and stored["cells"][5]["outputs"][0]["data"] == {"text/plain": ["7"]}


def test_timings_stay_unless_their_cell_is_compared_or_new(tmp_path):
    source = "import time\nprint(time.perf_counter() > 0)"
    ignored = ["nbval-ignore-output"]
    cells = [cell(source, text="7 ms\n", tags=ignored), cell(source, text="7 ms\n"), cell(source, tags=ignored)]
    cells.append(cell("print(True)", text="7 ms\n", tags=ignored))
    notebook = execute(new.new_notebook(cells=cells), "00_t", tmp_path)
    assert [printed(c) for c in notebook.cells] == ["7 ms\n", "True\n", "True\n", "True\n"]


def test_failing_cell_is_named_and_nothing_is_written(course, capsys):
    spoil(course, lambda n: n.cells[5].update(source="1 / 0"))
    spoil(course, lambda n: [n.cells[i].update(source="pass") for i in (2, 3, 4)])
    text = course.read_text()
    assert main(["notebooks", "--execute", "--folder", str(course.parent)]) == 2
    assert "ZeroDivisionError" in capsys.readouterr().err and course.read_text() == text


def test_command_prepares_and_checks(course, capsys):
    folder = ["--folder", str(course.parent)]
    assert main(["notebooks", "00", "--repository", "a/b", *folder]) == 0
    assert capsys.readouterr().out == "00_title.ipynb: written\n"
    assert main(["notebooks", "00_title", "--repository", "a/b", *folder]) == 0
    assert capsys.readouterr().out == "00_title.ipynb: unchanged\n"
    assert main(["notebooks", "--check", "--repository", "a/b", *folder]) == 0
    assert main(["notebooks", "--check", "--repository", "a/c", *folder]) == 2
    assert "1 findings" in capsys.readouterr().err
    assert main(["notebooks", "--repository", "nonsense", *folder]) == 2
    assert "OWNER/NAME" in capsys.readouterr().err


def test_names_and_addresses(course, tmp_path):
    assert paths(course.parent) == paths(course.parent, ["00"]) == paths(course.parent, ["00_title.ipynb"]) == [course]
    with pytest.raises(UnknownName, match="00_title"):
        paths(course.parent, ["00_titel"])
    with pytest.raises(RPLibError, match="no notebooks"):
        paths(tmp_path)
    assert repository(FOLDER).startswith("https://github.com/")
    (tmp_path / "pyproject.toml").write_text('[project.urls]\nRepository = "https://github.com/x/y"\n')
    assert repository(course.parent) == "https://github.com/x/y"
    course.write_text("[]")
    with pytest.raises(RPLibError, match="no notebook"):
        read(course)


# --- the set-up cell, on a Colab of cardboard


@pytest.fixture
def colab(monkeypatch):
    """Fake Colab and pip; gives the commands run. ``after`` are versions once pip has run."""
    found = types.SimpleNamespace(commands=[], code=0, after={})
    versions = {
        "torch": "2.9.0+cu126",
        "torchvision": "0.24.0+cu126",
        "numpy": "2.0.2",
        "ipywidgets": "7.7.1",
        "pandas": "2.2.2",
    }

    def pip(command, **options):
        found.commands.append(command)
        versions.update(found.after)
        return types.SimpleNamespace(returncode=found.code, stderr="ERROR: ResolutionImpossible: torch")

    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    monkeypatch.setattr("importlib.metadata.version", lambda name: versions[name])
    monkeypatch.setattr(
        "importlib.metadata.packages_distributions", lambda: {"pandas": ["pandas"], "never_imported": ["x"]}
    )
    monkeypatch.setitem(sys.modules, "pandas", types.ModuleType("pandas"))
    monkeypatch.setattr(subprocess, "run", pip)
    return found


def run_setup():
    exec(compile(setup_source(ADDRESS, "v1.2.3"), "setup", "exec"), {})


def test_setup_installs_the_release_and_keeps_torch(colab, capsys):
    run_setup()
    (command,) = colab.commands
    assert command[:4] == [sys.executable, "-m", "pip", "install"]
    assert command[-1] == f"rp-lib[course] @ {ADDRESS}/archive/refs/tags/v1.2.3.zip"
    assert {"torch==2.9.0+cu126", "torchvision==0.24.0+cu126", "numpy==2.0.2", "ipywidgets==7.7.1"} <= set(command)
    assert not any(flag in command for flag in ("--upgrade", "-U", "--force-reinstall"))
    assert capsys.readouterr().out == "Ready.\n"


def test_setup_says_when_a_restart_is_needed(colab, capsys):
    colab.after = {"pandas": "2.3.0"}
    run_setup()
    assert capsys.readouterr().out == "Now choose Runtime > Restart session, then go on: ['pandas'] were replaced.\n"


def test_setup_says_why_pip_failed(colab):
    colab.code = 1
    with pytest.raises(AssertionError, match=r"v1\.2\.3\.zip\. .*heads/main in place of tags/v1\.2\.3.*\n.*Impossible"):
        run_setup()


def test_setup_does_nothing_elsewhere(monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "google.colab", raising=False)
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: pytest.fail("ran something"))
    run_setup()
    assert capsys.readouterr() == ("", "")
    lines = setup_source(ADDRESS).splitlines()
    assert len(lines) <= 18 and max(map(len, lines)) <= MAX_COLUMNS
