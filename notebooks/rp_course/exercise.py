"""Runs a function on a case without letting it harm anything, and says precisely how two results differ."""

from __future__ import annotations

import ast
import copy
import dis
import functools
import importlib
import inspect
import linecache
import pkgutil
import random
import textwrap
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from rp_course.show import say
from rp_lib.utils.errors import RPLibError, UnknownName

Function = Callable[..., Any]
# All that CPython makes of a body of `...`, `pass` or a docstring.
EMPTY = {"RESUME", "NOP", "LOAD_CONST", "RETURN_CONST", "RETURN_VALUE", "CACHE"}


@dataclass(frozen=True)
class Outcome:
    """What a function did on one case: its value, or its exception, and the argument that it changed in place."""

    value: Any = None
    error: Exception | None = None
    where: str = ""
    changed: str = ""


def run(function: Function, args: Sequence[Any], kwargs: Mapping[str, Any], seed: int = 0) -> Outcome:
    """Call ``function`` on copies of its arguments, with seeded random numbers that leave the caller's alone."""
    before = (*args, *kwargs.values())
    given = [copied(value) for value in before]
    with seeded(seed):
        try:
            value = function(*given[: len(args)], **dict(zip(kwargs, given[len(args) :], strict=True)))
        except Exception as error:
            return Outcome(error=error, where=_where(error, function))
    names = [*list(inspect.signature(function).parameters)[: len(args)], *kwargs]
    changed = [n for n, a, b in zip(names, before, given, strict=True) if _is_plain(a) and difference(a, b, 0.0)]
    return Outcome(value, changed=changed[0] if changed else "")


def copied(value: Any) -> Any:
    """A deep copy; of tensors one that is a leaf and asks for a gradient if the original does."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone().requires_grad_(value.requires_grad)
    if type(value) in (list, tuple):
        return type(value)(copied(v) for v in value)
    if type(value) is dict:
        return {k: copied(v) for k, v in value.items()}
    return copy.deepcopy(value)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """The same random numbers for everyone inside; the generators of Python, NumPy and PyTorch are put back."""
    state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        try:
            yield
        finally:
            random.setstate(state)
            np.random.set_state(numpy_state)


def is_empty(function: Function) -> bool:
    """Whether the body is nothing but ``...``, ``pass``, ``return`` or a docstring."""
    code = getattr(function, "__code__", None)
    return code is not None and {i.opname for i in dis.get_instructions(code)} <= EMPTY and _returns_nothing(code)


def _returns_nothing(code: Any) -> bool:
    returned = [i.argval for i in dis.get_instructions(code) if i.opname in ("RETURN_CONST", "LOAD_CONST")]
    return all(value is None or value is ... for value in returned)


def is_unanswered(outcome: Outcome) -> bool:
    """Whether this is the result of a stub: nothing, an ellipsis, or an error because one was left in the body."""
    if outcome.error is not None:
        return isinstance(outcome.error, NotImplementedError) or "ellipsis" in str(outcome.error)
    return outcome.value is None or _holds_ellipsis(outcome.value)


def _holds_ellipsis(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(map(_holds_ellipsis, value))
    return value is ...


def same(a: Outcome, b: Outcome, tolerance: float) -> bool:
    """Whether two functions did the same on a case: equal values, or errors of one type, and arguments left alone."""
    if a.error is not None or b.error is not None:
        return type(a.error) is type(b.error)
    return bool(a.changed) == bool(b.changed) and not difference(a.value, b.value, tolerance)


def complaint(expected: Outcome, got: Outcome, tolerance: float) -> str:
    """What is wrong with ``got``, in words; empty if nothing is."""
    if same(expected, got, tolerance):
        return ""
    if got.error is not None:
        message = f"raises {type(got.error).__name__}: {got.error}".rstrip(": ")
        return f"{message}{f', in {got.where}' if got.where else ''}"
    if expected.error is not None:
        return f"returns a value, but must raise {type(expected.error).__name__} ({expected.error})"
    if got.value is None:
        return "returns None: is there a branch without `return`?"
    wrong = difference(expected.value, got.value, tolerance)
    if wrong:
        return f"returns {wrong}"
    return f"changes {got.changed} in place; work on a copy" if got.changed else "must change its argument in place"


def difference(expected: Any, got: Any, tolerance: float) -> str:
    """How ``got`` differs from ``expected``: type, shape, dtype, values; empty if it does not.

    Numbers a and b are equal if abs(a - b) <= tolerance * max(1, abs(a)); NaN equals NaN.
    """
    if isinstance(expected, torch.Tensor):
        if not isinstance(got, torch.Tensor):
            return f"{_kind(got)}, a tensor of shape {tuple(expected.shape)} is expected"
        if expected.requires_grad and not got.requires_grad:
            return "a tensor that carries no gradient; the result must depend on what is trained"
        if expected.dtype != got.dtype and expected.shape == got.shape:
            return f"dtype {got.dtype}, {expected.dtype} is expected".replace("torch.", "")
        return _arrays(_numpy(expected), _numpy(got), tolerance)
    if isinstance(expected, np.ndarray):
        if not isinstance(got, np.ndarray):
            return f"{_kind(got)}, an array of shape {expected.shape} is expected"
        if expected.dtype.kind != got.dtype.kind and expected.shape == got.shape:
            return f"dtype {got.dtype}, {expected.dtype} is expected"
        return _arrays(expected, got, tolerance)
    if isinstance(expected, bool | np.bool_ | str) or expected is None:
        scalar = got.item() if isinstance(got, torch.Tensor | np.generic | np.ndarray) and np.size(got) == 1 else got
        return "" if type(scalar) is type(_plain(expected)) and scalar == expected else _instead(expected, got)
    if isinstance(expected, int | float | np.number):
        return _numbers(_plain(expected), got, tolerance)
    if isinstance(expected, Mapping):
        return _mappings(expected, got, tolerance)
    if isinstance(expected, list | tuple):
        return _sequences(expected, got, tolerance)
    return "" if type(expected) is type(got) and bool(expected == got) else _instead(expected, got)


def _arrays(expected: np.ndarray, got: np.ndarray, tolerance: float) -> str:
    if expected.shape != got.shape:
        turned = "; is it transposed?" if got.ndim > 1 and expected.shape == got.shape[::-1] else ""
        return f"shape {got.shape}, {expected.shape} is expected{turned}"
    if not expected.size or np.array_equal(expected, got):
        return ""
    if expected.dtype.kind not in "iufb" or got.dtype.kind not in "iufb":
        return "other values than expected"
    a, b = expected.astype(np.float64), got.astype(np.float64)
    equal = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore"):
        gap = np.where(equal, 0.0, np.abs(a - b))
    gap = np.where(np.isnan(gap), np.inf, gap)
    wrong = gap > tolerance * np.maximum(1, np.nan_to_num(np.abs(a), nan=1.0, posinf=1.0))
    if not wrong.any():
        return ""
    at = np.unravel_index(np.argmax(np.where(wrong, gap, -1)), gap.shape)
    where = f" at [{', '.join(map(str, at))}]" if gap.ndim else ""
    some = f"{int(wrong.sum())} of {gap.size} values differ, most" if gap.size > 1 else "another value"
    return f"the expected shape, but {some}{where}: {b[at]:.4g} instead of {a[at]:.4g}"


def _numbers(expected: float, got: Any, tolerance: float) -> str:
    if isinstance(got, torch.Tensor | np.ndarray | np.generic) and np.size(_numpy(got)) == 1:
        got = _numpy(got).item()
    if isinstance(got, bool) or not isinstance(got, int | float):
        return f"{_kind(got)}, a number is expected"
    return "" if not _arrays(np.array(expected), np.array(got), tolerance) else f"{got:.6g} instead of {expected:.6g}"


def _mappings(expected: Mapping, got: Any, tolerance: float) -> str:
    if not isinstance(got, Mapping):
        return f"{_kind(got)}, a dict is expected"
    if missing := [k for k in expected if k not in got]:
        return f"a dict without the key {missing[0]!r}"
    if extra := [k for k in got if k not in expected]:
        return f"a dict with a key too many, {extra[0]!r}"
    return next((f"at key {k!r}: {d}" for k, v in expected.items() if (d := difference(v, got[k], tolerance))), "")


def _sequences(expected: Sequence, got: Any, tolerance: float) -> str:
    if not isinstance(got, list | tuple):
        return f"{_kind(got)}, a {type(expected).__name__} of {len(expected)} is expected"
    if len(expected) != len(got):
        return f"{len(got)} items, {len(expected)} are expected"
    pairs = enumerate(zip(expected, got, strict=True), 1)
    return next((f"as item {i}: {d}" for i, (e, g) in pairs if (d := difference(e, g, tolerance))), "")


def _is_plain(value: Any) -> bool:
    """Whether a value can be compared by what it holds: objects such as models cannot."""
    if isinstance(value, Mapping):
        return all(map(_is_plain, value.values()))
    if isinstance(value, list | tuple | set):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, torch.Tensor | np.ndarray | np.generic | str | bool | int | float)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _numpy(value: Any) -> np.ndarray:
    if not isinstance(value, torch.Tensor):
        return np.asarray(value)
    value = value.detach().cpu()
    return (value.float() if value.dtype in (torch.bfloat16, torch.float16) else value).numpy()


def _kind(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape}"
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _instead(expected: Any, got: Any) -> str:
    text = repr(got) if isinstance(got, str | bool | int | float) else _kind(got)
    return f"{text} instead of {expected!r}"


def _where(error: Exception, function: Function) -> str:
    """The line of the function where the error arose (or was passed on); empty if it never got into it."""
    file = getattr(getattr(function, "__code__", None), "co_filename", None)
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == file]
    if not lines or lines[-1] is None:
        return ""
    source = linecache.getline(str(file), lines[-1]).strip()
    return f"line {lines[-1]}{f': {source}' if source else ''}"


# Exercises in place: the reader completes a function, its behaviour is checked, the notebook goes on either way.

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
    package = importlib.import_module("rp_course.exercises")
    for module in sorted(m.name for m in pkgutil.iter_modules(package.__path__)):
        found = importlib.import_module(f"{package.__name__}.{module}").EXERCISES
        yield from ((module[2:4], item) for item in found)
