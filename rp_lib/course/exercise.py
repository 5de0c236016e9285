"""Exercises in place: the reader completes a function, its behaviour is checked, the notebook goes on either way."""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import pkgutil
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rp_lib.course.checking import Function, Outcome, complaint, is_empty, is_unanswered, run, same
from rp_lib.course.show import say
from rp_lib.errors import RPLibError, UnknownName

UNSOLVED, WRONG, SOLVED = "unsolved", "wrong", "solved"


@dataclass(frozen=True)
class Case:
    """One input on which functions are compared.

    Attributes:
        name: what is special about it, in the reader's words ("one class", "features of length 2").
        args: positional arguments; every call gets copies. kwargs: the same by keyword.
    """

    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Mistake:
    """A plausible wrong answer, and what to tell who gives it."""

    function: Function
    message: str


@dataclass(frozen=True)
class Exercise:
    """A function for the reader to write.

    Attributes:
        reference: the solution; its name is the exercise's, unique over the course, its parameters are the reader's.
        minutes: that a reader needs.
        cases: gives at least three seeded inputs when called.
        hints: from the first nudge to nearly all.
        mistakes: at least two, told apart by the cases.
        tolerance: numbers a and b are equal if abs(a - b) <= tolerance * max(1, abs(a)).
    """

    reference: Function
    minutes: int
    cases: Callable[[], Sequence[Case]]
    hints: tuple[str, ...]
    mistakes: tuple[Mistake, ...]
    tolerance: float = 1e-5

    @property
    def name(self) -> str:
        """Of the function to write."""
        return self.reference.__name__

    @property
    def solution(self) -> str:
        """Source of the reference, without the types in its first line, which a notebook may not know."""
        source = textwrap.dedent(inspect.getsource(self.reference)).strip()
        definition = ast.parse(source).body[0]
        body = "\n".join(source.splitlines()[definition.body[0].lineno - 1 :])
        for parameter in ast.walk(definition.args):
            if isinstance(parameter, ast.arg):
                parameter.annotation = None
        return f"def {self.name}({ast.unparse(definition.args)}):\n{body}"

    def cell(self, scope: Mapping[str, Any]) -> str:
        """The solution as a notebook's cell, with imports of what these names lack."""
        known = inspect.getmodule(self.reference).__dict__
        used = {node.id for node in ast.walk(ast.parse(self.solution)) if isinstance(node, ast.Name)}
        imports = [_import(name, known[name]) for name in sorted(used & known.keys() - scope.keys())]
        return "\n".join([*imports, *([""] * bool(imports)), "@exercise", self.solution])

    def check(self, function: Function) -> tuple[str, str]:
        """Compare a function with the reference.

        Returns:
            Status ("unsolved", "wrong", "solved") and a message, empty for an untouched stub and for a solution.
        """
        if is_empty(function):
            return UNSOLVED, ""
        if wrong := self._wrong_parameters(function):
            return WRONG, wrong
        cases = tuple(self.cases())
        got = self._run(function, cases)
        if all(map(is_unanswered, got)):
            silent = all(o.error is None and o.value is None for o in got)
            return UNSOLVED, "the function returns None; is its `return` missing?" if silent else ""
        expected = self._run(self.reference, cases)
        complaints = [complaint(e, g, self.tolerance) for e, g in zip(expected, got, strict=True)]
        if not any(complaints):
            return SOLVED, ""
        for mistake in self.mistakes:
            if self._alike(self._run(mistake.function, cases), got):
                return WRONG, mistake.message
        case, text = next((c, t) for c, t in zip(cases, complaints, strict=True) if t)
        return WRONG, f'on case "{case.name}" your function {text}'

    def _run(self, function: Function, cases: Sequence[Case]) -> list[Outcome]:
        return [run(function, case.args, case.kwargs, seed) for seed, case in enumerate(cases)]

    def _alike(self, a: Sequence[Outcome], b: Sequence[Outcome]) -> bool:
        return all(same(x, y, self.tolerance) for x, y in zip(a, b, strict=True))

    def _wrong_parameters(self, function: Function) -> str:
        theirs, ours = (tuple(inspect.signature(f).parameters) for f in (function, self.reference))
        return "" if theirs == ours else f"it takes ({', '.join(theirs)}), but must take ({', '.join(ours)})"


def _import(name: str, thing: Any) -> str:
    if inspect.ismodule(thing):
        return f"import {thing.__name__}" + (f" as {name}" if thing.__name__ != name else "")
    return f"from {thing.__module__} import {name}"


class Attempt:
    """What :func:`exercise` makes of the reader's function: that function if it is right, else the reference.

    Attributes:
        status: "unsolved", "wrong" or "solved".
    """

    _shown: dict[str, int] = {}  # noqa: RUF012  (hints given so far, by exercise: running a cell again takes none back)

    def __init__(self, exercise: Exercise, function: Function) -> None:
        self.exercise = exercise
        self.status, self.message = exercise.check(function)
        self._chosen = function if self.status == SOLVED else exercise.reference
        functools.update_wrapper(self, function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the reader's function if it is right, else the reference."""
        return self._chosen(*args, **kwargs)

    def hint(self) -> None:
        """Print the next hint."""
        name, hints = self.exercise.name, self.exercise.hints
        number = self._shown.get(name, 0)
        if number == len(hints):
            say(f"These were all {number} hints; {name}.solution() shows one way to write it. From the first again:")
            number = 0
        self._shown[name] = number + 1
        say(f"Hint {number + 1} of {len(hints)}: {hints[number]}")

    def solution(self) -> None:
        """Print one way to write it, ready to be pasted into the cell."""
        print(self.exercise.cell(inspect.unwrap(self).__globals__))

    def report(self) -> str:
        """Status in one line."""
        name, count = self.exercise.name, len(self.exercise.hints)
        if self.status == SOLVED:
            return f"{name}: solved"
        more = f"{name}.hint() gives the first of {count} hints"
        if self.status == WRONG:
            end = "" if self.message.endswith((".", "?")) else "."
            return f"{name}: not yet: {self.message}{end} The notebook goes on with the reference; {more}"
        note = f" ({self.message})" if self.message else ""
        return f"{name}: unsolved{note} - the notebook goes on with the reference; {more}"

    def __repr__(self) -> str:
        return f"<exercise {self.exercise.name}: {self.status}>"


def exercise(function: Function) -> Attempt:
    """Decorator of a reader's function: check it, print how it fares, and hand on a function that works.

    Raises:
        UnknownName: the course has no exercise of this name.
        RPLibError: what is decorated is no function.
    """
    if not inspect.isfunction(function):
        raise RPLibError(f"@exercise stands above a `def`, not above {type(function).__name__}")
    attempt = Attempt(find(function.__name__), function)
    say(attempt.report())
    return attempt


def find(name: str) -> Exercise:
    """The exercise of this name.

    Raises:
        UnknownName: there is none.
    """
    known = []
    for _, item in exercises():
        if item.name == name:
            return item
        known.append(item.name)
    raise UnknownName("exercise", name, known)


def exercises() -> Iterator[tuple[str, Exercise]]:
    """All exercises in the order of the course, each with the number of its notebook ("01")."""
    package = importlib.import_module("rp_lib.course.exercises")
    for module in sorted(m.name for m in pkgutil.iter_modules(package.__path__)):
        found = importlib.import_module(f"{package.__name__}.{module}").EXERCISES
        yield from ((module.removeprefix("n"), item) for item in found)
