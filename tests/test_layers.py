"""The contracts of imports in pyproject.toml are kept, and each would notice a module that breaks it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
COMMAND = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()", "--no-cache"]


def lint(root):
    """Exit code and output of ``lint-imports`` for the checkout in ``root``."""
    path = f"{root}{os.pathsep}{root / 'notebooks'}"
    done = subprocess.run(COMMAND, cwd=root, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_every_import_runs_down():
    code, said = lint(ROOT)
    assert code == 0, said


@pytest.fixture
def copy(tmp_path):
    """The modules alone, to break something in."""
    for path in (ROOT / "pyproject.toml", *ROOT.glob("rp_lib/**/*.py"), *ROOT.glob("notebooks/rp_course/**/*.py")):
        target = tmp_path / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    return tmp_path


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("rp_lib/utils/io.py", "def f():\n    from rp_lib.clip import FrozenCLIP", "rp_lib is built in layers"),
        ("rp_lib/losses.py", "import rp_course.home", "rp_lib does not know the course"),
        ("rp_lib/data/sources.py", "def f():\n    import rp_lib.data.splits", "No module imports itself"),
        ("rp_lib/another.py", "", "rp_lib is built in layers"),
    ],
)
def test_a_planted_import_is_found(copy, module, line, contract):
    if "splits" in line:  # from here on the two modules import each other
        (copy / "rp_lib/data/splits.py").open("a").write("\nimport rp_lib.data.sources\n")
    (copy / module).open("a").write(f"\n{line}\n")
    code, said = lint(copy)
    broken = any(text.startswith(contract) and "BROKEN" in text for text in said.splitlines())
    assert code == 1 and (broken or "another" in said), said
