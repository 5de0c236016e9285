"""Every exercise of the course: the stub is unsolved, the solution passes, each mistake is told what it is."""

import ast
import importlib
import inspect
import itertools
import pkgutil
import re

import pytest
import torch
from rp_course import exercises as package
from rp_course.exercise import Attempt, difference, exercises, find, run, same

MODULES = sorted(m.name for m in pkgutil.iter_modules(package.__path__))
ALL = [(number, item) for number, item in exercises()]
NAMED = pytest.mark.parametrize(("number", "item"), ALL, ids=[f"{n}-{e.name}" for n, e in ALL])


def stub(item, body):
    """A function with the exercise's name and parameters, as a reader finds it."""
    names = ", ".join(str(p) for p in _parameters(item))
    scope = {}
    exec(f"def {item.name}({names}):\n    '''What to write.'''\n    {body}", scope)
    return scope[item.name]


def _parameters(item):
    for p in inspect.signature(item.reference).parameters.values():
        default = "" if p.default is p.empty else f"={p.default!r}"
        yield f"{'*' * (p.kind is p.VAR_POSITIONAL)}{p.name}{default}"


def test_modules_are_numbered_and_hold_exercises():
    for name in MODULES:
        assert re.fullmatch(r"nb\d\d_\w+", name), name
        found = importlib.import_module(f"{package.__name__}.{name}").EXERCISES
        assert isinstance(found, tuple) and len(found) >= 2, f"{name}: at least two exercises"


def test_names_are_unique_and_found():
    names = [item.name for _, item in ALL]
    assert len(names) == len(set(names))
    assert all(find(item.name) is item for _, item in ALL)


@NAMED
@pytest.mark.parametrize("body", ["...", "pass", "return None", "raise NotImplementedError", "out = ...; return out"])
def test_stub_is_unsolved_and_the_reference_stands_in(number, item, body, capsys):
    attempt = Attempt(item, stub(item, body))
    assert attempt.status == "unsolved"
    assert attempt.report().startswith(f"{item.name}: unsolved - ")
    case = item.cases()[0]
    got, expected = (run(f, case.args, case.kwargs) for f in (attempt, item.reference))
    assert same(expected, got, item.tolerance)


@NAMED
def test_solution_as_shown_passes(number, item):
    assert item.check(item.reference) == ("solved", "")
    scope = dict(vars(inspect.getmodule(item.reference)))
    exec(item.solution, scope)
    assert item.check(scope[item.name])[0] == "solved"


@NAMED
def test_solution_runs_with_what_a_notebook_has(number, item):
    """Only names that a reader can see: imports and library functions, no private helper of the module."""
    hidden = [n for n in item.reference.__code__.co_names if n.startswith("_") and not n.startswith("__")]
    assert not hidden, f"the solution uses {hidden}"
    scope = {"exercise": lambda function: function}
    exec(item.cell(scope), scope)  # as pasted into a notebook that has imported nothing else
    assert item.check(scope[item.name])[0] == "solved"
    assert item.cell(scope).startswith("@exercise\n"), "what is there is not imported again"
    assert ": " not in item.solution.splitlines()[0], "types"


@NAMED
def test_every_mistake_is_told_what_it_is(number, item):
    assert len(item.mistakes) >= 2
    for mistake in item.mistakes:
        assert item.check(mistake.function) == ("wrong", mistake.message)
    assert len({m.message for m in item.mistakes}) == len(item.mistakes)
    assert all(len(m.message.split()) >= 4 for m in item.mistakes)


@NAMED
def test_mistakes_differ_from_each_other(number, item):
    cases = item.cases()
    outcomes = [[run(m.function, c.args, c.kwargs, s) for s, c in enumerate(cases)] for m in item.mistakes]
    for a, b in itertools.combinations(outcomes, 2):
        assert not all(same(x, y, item.tolerance) for x, y in zip(a, b, strict=True))


@NAMED
def test_cases_are_several_seeded_and_independent_of_the_caller(number, item):
    torch.manual_seed(1)
    first = item.cases()
    torch.manual_seed(2)
    second = item.cases()
    assert len(first) >= 3 and len({c.name for c in first}) == len(first)
    for a, b in zip(first, second, strict=True):
        assert not difference([*a.args, *a.kwargs.values()], [*b.args, *b.kwargs.values()], 0.0), "seed the cases"


@NAMED
def test_no_single_case_decides_by_a_constant(number, item):
    """A function that returns the first case's answer must not pass."""
    cases = item.cases()
    answers = [run(item.reference, c.args, c.kwargs, s) for s, c in enumerate(cases)]
    assert any(not same(answers[0], other, item.tolerance) for other in answers[1:])


@NAMED
def test_hints_help_without_giving_it_away(number, item):
    assert len(item.hints) >= 2 and all(len(h) >= 15 for h in item.hints)
    tree = ast.parse(item.solution).body[0]
    code = "".join(ast.unparse(part) for part in tree.body[1:])  # behind the docstring, without comments
    squeezed = re.sub(r"\W|return", "", code)
    assert squeezed and not any(squeezed in re.sub(r"\W|return", "", hint) for hint in item.hints)
    assert 1 <= item.minutes <= 20


@NAMED
def test_reference_leaves_its_inputs_alone(number, item):
    for seed, case in enumerate(item.cases()):
        outcome = run(item.reference, case.args, case.kwargs, seed)
        assert outcome.error is None or outcome.where, outcome
        assert not outcome.changed


@NAMED
def test_docstring_says_what_to_write(number, item):
    assert len((item.reference.__doc__ or "").split()) >= 5
