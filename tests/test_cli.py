import dataclasses
import os
import subprocess
import sys
import types

import pytest

from rp_lib import cli
from rp_lib.utils.errors import RPLibError


def run(*args, **more):
    return subprocess.run([sys.executable, "-m", "rp_lib", *args], capture_output=True, text=True, timeout=300, **more)


def parsers(parser):
    import argparse

    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                yield from parsers(sub)


def test_help_is_complete():
    for parser in parsers(cli.build_parser()):
        for action in parser._actions:
            if action.option_strings and "--help" not in action.option_strings:
                assert action.help, f"{parser.prog} {action.option_strings} has no help"
    done = run("--help")
    assert done.returncode == 0
    for command in ("demo", "info", "search", "run", "data"):
        assert command in done.stdout


def test_info_names_versions_device_checkpoints_and_data(capsys):
    assert cli.main(["info"]) == 0
    said = capsys.readouterr().out
    for word in ("rp_lib", "torch", "device", "checkpoints", "final", "benchmark", "second-draw", "near"):
        assert word in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo", "--methods", "rp,fine-tuen"], "did you mean fine-tune"),
        (["info", "--checkpoint", "fnal"], "did you mean final"),
        (["info", "--checkpoint", "/nowhere/x.safetensors"], "does not exist"),
        (["info", "--device", "cuda:77"], "take auto or cpu"),
        (["info", "--precision", "float23"], "did you mean float32"),
        (["demo", "--seeds", "0"], "seeds should be a number of seeds of at least 1"),
        (["demo", "--methods", ","], "methods should be a list of names, not empty"),
    ],
)
def test_bad_input_says_what_to_do_and_fails(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 2
    said = capsys.readouterr()
    assert message in said.err and "Traceback" not in said.err


def test_demo_prints_a_table_and_writes_its_files(tmp_path, capsys, monkeypatch, mini_benchmark):
    train = mini_benchmark.train
    train = train.subset(train.labels.argsort()[::8])  # some of each class
    few = dataclasses.replace(mini_benchmark.subsample(40, 40), train=train)
    monkeypatch.setattr("rp_lib.run.opening.load_benchmark", lambda *args, **more: few)
    out = tmp_path / "demo"
    arguments = [
        "demo",
        "--quiet",
        "--seeds",
        "1",
        "--methods",
        "zero-shot,linear-probe",
        "--out",
        str(out),
    ]
    assert cli.main(arguments) == 0
    said = capsys.readouterr().out
    for word in ("zero-shot", "linear-probe", "±", "emoji", "logos", "Wrote", "id-positive"):
        assert word in said
    files = {"records.csv", "records.json", "three_axes.png", "trained"}
    assert {p.name for p in out.iterdir() if p.name != ".lock"} == files
    assert cli.main(arguments) == 0
    assert "Reused" in capsys.readouterr().out


def test_output_folder_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    assert cli.main(["demo", "--quiet", "--methods", "zero-shot", "--out", str(tmp_path / "file" / "out")]) == 2
    assert "choose another output folder" in capsys.readouterr().err


def test_interrupt_exits_130_and_says_how_to_go_on(monkeypatch, capsys):
    def interrupted(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_info", interrupted)
    assert cli.main(["info"]) == 130
    assert "run the same command again" in capsys.readouterr().err


def test_an_interrupt_while_commands_are_imported_shows_no_traceback(monkeypatch, capsys):
    from rp_lib.__main__ import main

    class Importing(types.ModuleType):
        def __getattr__(self, name):  # as if Ctrl-C fell into the import of what it imports
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "rp_lib.cli", Importing("rp_lib.cli"))
    assert main() == 130
    assert capsys.readouterr().err == "\nrp-lib: interrupted\n"


def test_errors_of_the_library_become_exit_codes(monkeypatch, capsys):
    def fails(args):
        raise RPLibError("do this instead")

    monkeypatch.setattr(cli, "_info", fails)
    assert cli.main(["info"]) == 2
    assert capsys.readouterr().err == "rp-lib: do this instead\n"


def test_a_reader_that_has_seen_enough_is_no_error():
    command = [sys.executable, "-m", "rp_lib", "run", "--list"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()  # before anything is written
        assert process.wait(120) == 0
        assert process.stderr.read() == ""


@pytest.mark.parametrize(("before", "shown"), [("", b"90.0 ? 2.0"), ("sys.stdout = None", b"")])
def test_a_terminal_of_ascii_alone_or_none_ends_no_run(before, shown):
    code = f"import argparse, sys\nfrom rp_lib import cli\n{before}\nparser = argparse.ArgumentParser()\n"
    code += "parser.set_defaults(run=lambda args: print('90.0 \\xb1 2.0'))\nsys.exit(cli.run_command(parser, []))"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=120, check=False, env=environment)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, shown, b"")


def test_a_backend_that_matplotlib_does_not_know_is_refused_before_training(tmp_path):
    command = [sys.executable, "-m", "rp_lib", "demo", "--out", str(tmp_path / "out"), "--methods", "zero-shot"]
    environment = {**os.environ, "MPLBACKEND": "nonsense"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)
    assert done.returncode == 2 and done.stderr.startswith("rp-lib: matplotlib: ") and "\n" not in done.stderr.strip()
    assert "'nonsense' is not a valid value" in done.stderr and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["run", "--help"], ["run", "--list"], ["data", "--list"], ["frobnicate"],
     ["run", "--track", "full"], ["run"], ["demo", "--seeds", "three"]],
    ids=" ".join,
)  # fmt: skip
def test_words_need_no_torch(arguments):
    code = f"import sys\nfrom rp_lib import cli\ntry:\n    cli.main({arguments!r})\nfinally:\n    print({{'torch', 'pydantic', 'pandas'}} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.splitlines()[-1] == "set()", done.stderr
