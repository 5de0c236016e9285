"""environment.yml and the packaging in pyproject.toml: what a conda user, and whoever installs a wheel, will get."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
PROJECT = PYPROJECT["project"]
ENVIRONMENT = yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))
EDITABLE = re.compile(r"-e (?P<folder>\.[^\[]*)\[(?P<extras>[\w,-]+)\]")


def conda_part():
    return [line for line in ENVIRONMENT["dependencies"] if isinstance(line, str)]


def pip_part():
    (pip,) = (line["pip"] for line in ENVIRONMENT["dependencies"] if isinstance(line, dict))
    return pip


def names(requirements):
    return [canonicalize_name(Requirement(r).name) for r in requirements]


def test_it_is_an_environment_file():
    assert set(ENVIRONMENT) == {"name", "channels", "dependencies"} and ENVIRONMENT["name"] == PROJECT["name"]
    assert ENVIRONMENT["channels"] == ["conda-forge"]
    assert "pip" in conda_part()  # else conda warns, and adds one by itself


def test_its_python_is_one_that_the_project_supports():
    (version,) = (line.removeprefix("python=") for line in conda_part() if line.startswith("python"))
    # `python=3.12` takes the newest 3.12, so a lower bound within 3.12 would not matter; its first release is the strict case.
    assert SpecifierSet(PROJECT["requires-python"]).contains(f"{version}.0")


def test_its_pip_part_is_this_folder_with_extras_that_exist():
    (line,) = pip_part()
    found = EDITABLE.fullmatch(line)
    # conda, mamba and micromamba run pip in the folder of the environment file, so a relative folder counts from there.
    assert (ROOT / found["folder"]).resolve() == ROOT
    extras = found["extras"].split(",")
    assert set(extras) == {"notebooks", "test"} <= set(PROJECT["optional-dependencies"])
    assert len(extras) == len(set(extras))


def test_nothing_is_listed_twice():
    everywhere = [re.split(r"[=<>~! ]", line)[0] for line in conda_part()]
    assert len(everywhere) == len(set(everywhere)) == 2
    ours = names(PROJECT["dependencies"])
    assert len(ours) == len(set(ours)) and not set(ours) & set(everywhere)
    for extra, requirements in PROJECT["optional-dependencies"].items():
        assert len(names(requirements)) == len(set(names(requirements))), extra


def test_extras_of_extras_exist():
    for requirements in PROJECT["optional-dependencies"].values():
        for requirement in map(Requirement, requirements):
            if canonicalize_name(requirement.name) == PROJECT["name"]:
                assert requirement.extras <= set(PROJECT["optional-dependencies"])


def test_the_readme_names_the_file():
    assert "conda env create -f environment.yml" in (ROOT / "README.md").read_text("utf-8")


@pytest.fixture
def files():
    """Of both packages, below ROOT, apart from what Python leaves behind."""
    folders = (ROOT / "rp_lib", ROOT / "notebooks" / "rp_course")
    found = (p for f in folders for p in f.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    return {p for p in found if not p.name.endswith(".partial") and p.name != ".DS_Store"}


def test_every_module_lies_in_a_package_that_the_wheel_takes(files):
    find = PYPROJECT["tool"]["setuptools"]["packages"]["find"]
    assert find["where"] == [".", "notebooks"]
    assert find["include"] == ["rp_lib", "rp_lib.*", "rp_course", "rp_course.*"]
    for folder in {p.parent for p in files if p.suffix == ".py"}:
        assert (folder / "__init__.py").is_file(), f"{folder} has modules and is no package"
        assert all(part.isidentifier() for part in folder.relative_to(ROOT).parts)


def test_every_other_file_is_package_data(files):
    taken = set()
    for package, patterns in PYPROJECT["tool"]["setuptools"]["package-data"].items():
        folder = ROOT.joinpath("notebooks" if package.startswith("rp_course") else ".", *package.split("."))
        taken |= {p for pattern in patterns for p in folder.glob(pattern)}
    missing = {str(p.relative_to(ROOT)) for p in files if p.suffix != ".py"} - {str(p.relative_to(ROOT)) for p in taken}
    assert not missing


def test_a_source_distribution_holds_what_its_tests_read():
    kept = (ROOT / "MANIFEST.in").read_text("utf-8")
    grafted = re.findall(r"^graft (\S+)$", kept, flags=re.M)
    included = " ".join(re.findall(r"^include (.+)$", kept, flags=re.M)).split()
    assert set(grafted) == {"notebooks", "tests"}  # tests/test_*.py alone would come without a conftest
    assert {"CONTRIBUTING.md", "CITATION.cff", "data_download.sh", "environment.yml", ".ci/run"} <= set(included)
    for path in (*grafted, *included):
        assert (ROOT / path).exists(), path
