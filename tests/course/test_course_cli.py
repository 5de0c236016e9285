"""The commands of the course: bad input says what to do, and a reader who has seen enough is no error."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from rp_course import cli

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mini", "pretrain", "--recipe", "polsh"], "did you mean polish"),
        (["mini", "pretrain", "--recipe", "polish"], "--start"),
        (["mini", "release", "--keep", "abc"], "fractions such as"),
        (["mini", "release", "--run", "/nowhere"], "holds no pre-training run"),
        (["mini", "corpus", "--iconify", "/nowhere", "--out", "corpus"], "collections.json"),
        (["mini", "pretrain", "--corpus", "/nowhere"], "python -m rp_course mini corpus"),
    ],
)
def test_bad_input_says_what_to_do_and_fails(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 2
    said = capsys.readouterr()
    assert message in said.err and "Traceback" not in said.err


def test_a_reader_that_has_seen_enough_is_no_error(monkeypatch, capsys):
    """As ``rp-lib``, which is tested in a process of its own."""
    reader, writer = os.pipe()
    os.close(reader)  # before anything is written
    with os.fdopen(writer, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert cli.main(["experiment", "--list"]) == 0
    assert capsys.readouterr().err == ""


def test_notebooks_are_copied_and_never_over_what_is_there(tmp_path, capsys):
    assert cli.main(["notebooks", "00", "12", "--folder", str(FOLDER), "--copy", str(tmp_path / "mine")]) == 0
    assert "2 notebooks copied" in capsys.readouterr().out
    copied = sorted(path.name for path in (tmp_path / "mine").iterdir())
    assert copied == ["00_tour.ipynb", "12_your_own_data.ipynb"]
    assert (tmp_path / "mine" / copied[0]).read_bytes() == (FOLDER / copied[0]).read_bytes()
    assert cli.main(["notebooks", "00", "--folder", str(FOLDER), "--copy", str(tmp_path / "mine")]) != 0
    assert "there already" in capsys.readouterr().err
