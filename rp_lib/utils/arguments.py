"""Check what a caller passes by the annotations of what is called: one validator for the whole public interface."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import numbers
import operator
import os
import re
import reprlib
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any

from rp_lib.utils.errors import RPLibError

# Ranges of numbers by the name of the argument; others are at least 0, and all are finite.
RANGES: dict[str, dict[str, float]] = {
    "dropout": {"ge": 0, "lt": 1}, "padding": {"ge": 0, "lt": 0.5},
    **{key: {"ge": 0, "le": 1} for key in ("alpha", "balance")},
    **{key: {"gt": 0, "le": 1} for key in ("train_resolution", "eval_resolution", "tpr", "share")},
    **{key: {"gt": 0} for key in ("lr", "probe_lr", "image_lr", "text_lr", "temperature")},
    **{key: {"ge": 1} for key in "batch_size n_context n_prompts depth".split()},
    **{key: {"ge": 1} for key in "n_resamples bins n_texts length rank nearest".split()},
}  # fmt: skip
_LIMITS = {"ge": ("at least", operator.ge), "gt": ("above", operator.gt),
           "le": ("at most", operator.le), "lt": ("below", operator.lt)}  # fmt: skip
_MISFIT = object()


class WrongArgument(RPLibError, TypeError, ValueError):
    """An argument of another type or range than the one that is meant."""


def checked(target: Any) -> Any:
    """Refuse arguments that do not fit their annotations, and numbers outside :data:`RANGES`.

    A boolean is no number. Numpy's numbers become Python's, text a path where one is meant, arrays become lists.

    Args:
        target: A function, a method, or a class, whose constructor is then checked.

    Example:
        >>> @checked
        ... def train(epochs: int, lr: float = 0.1) -> None: ...
        >>> train(True)
        Traceback (most recent call last):
        rp_lib.utils.arguments.WrongArgument: epochs of train must be int, got True (bool)
    """
    if inspect.isclass(target):
        target.__init__ = checked(target.__init__)
        return target
    signature = inspect.signature(target)

    @functools.wraps(target)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError:
            return target(*args, **kwargs)  # Python says what is missing or unknown
        where = type(args[0]).__name__ if target.__name__ == "__init__" else target.__qualname__
        for name, given in bound.arguments.items():
            if name in (hints := _hints(target)):
                bound.arguments[name] = _check(given, hints[name], name, where)
        return target(*bound.args, **bound.kwargs)

    return call


def after_checked_fields(post_init: Any) -> Any:
    """Check the fields of a dataclass, as :func:`checked` does arguments, before its ``__post_init__`` uses them."""

    @functools.wraps(post_init)
    def call(self: Any) -> None:
        hints, where = _class_hints(type(self)), type(self).__name__
        for name in (field.name for field in dataclasses.fields(self)):
            setattr(self, name, _check(getattr(self, name), hints[name], name, where))
        post_init(self)

    return call


_class_hints = functools.cache(typing.get_type_hints)


@functools.cache
def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Types of the arguments by name, those of ``*args`` and ``**kwargs`` aside."""
    try:
        hints = typing.get_type_hints(inspect.unwrap(function))
    except NameError:
        import pandas as pd  # which modules of the library name for type checkers alone

        hints = typing.get_type_hints(inspect.unwrap(function), localns={"pd": pd})
    parameters = inspect.signature(function).parameters.values()
    return {p.name: hints[p.name] for p in parameters if p.name in hints and not p.kind.name.startswith("VAR_")}


def _check(given: Any, hint: Any, name: str, where: str) -> Any:
    if (value := _fit(given, hint)) is _MISFIT:
        if typing.get_origin(hint) is Sequence and isinstance(given, list | tuple):
            given = next(item for item in given if _fit(item, typing.get_args(hint)[0]) is _MISFIT)
        wanted = re.sub(r"\b(\w+\.)+", "", inspect.formatannotation(hint))  # without the modules
        got = f"{reprlib.repr(given)} ({type(given).__name__})"
        raise WrongArgument(f"{name} of {where} must be {wanted}, got {got}")
    for key, limit in RANGES.get(name, {"ge": 0}).items() if type(value) in (int, float) else ():
        words, holds = _LIMITS[key]
        if not holds(value, limit) or not math.isfinite(value):
            raise WrongArgument(f"{name} of {where} must be {words} {limit:g} and finite, got {value!r}")
    return value


def _fit(value: Any, hint: Any) -> Any:
    """Return a value as its hint wants it, or the mark that it is something else."""
    origin, args = typing.get_origin(hint) or hint, typing.get_args(hint)
    if origin in (typing.Union, UnionType):
        fits = (_fit(value, kind) for kind in sorted(args, key=lambda kind: type(value) is not kind))
        return next((fit for fit in fits if fit is not _MISFIT), _MISFIT)
    if origin is typing.Literal:
        return value if value in args else _MISFIT
    if origin in (int, float):
        whole = isinstance(value, numbers.Integral) or origin is float
        if type(value) in (int, float):
            return value if whole else _MISFIT
        return origin(value) if whole and type(value) is not bool and isinstance(value, numbers.Real) else _MISFIT
    if origin is Path and isinstance(value, str | os.PathLike):
        return Path(value)
    if origin in (Mapping, dict) and isinstance(value, Mapping):
        items = {key: _fit(item, args[1]) for key, item in value.items()}
        return _MISFIT if any(item is _MISFIT for item in items.values()) else items
    if origin in (Sequence, Iterable, Collection, tuple) and isinstance(value, Iterable):
        if isinstance(value, str | bytes | Mapping) or (isinstance(value, set) and origin is not Collection):
            return _MISFIT
        items = [_fit(item, args[0]) for item in (value.tolist() if hasattr(value, "tolist") else value)]
        if any(item is _MISFIT for item in items):
            return _MISFIT
        return tuple(items) if tuple in (origin, type(value)) else items
    unknown = not isinstance(origin, type) or origin is Any or getattr(origin, "_is_protocol", False)
    return value if unknown or isinstance(value, origin) else _MISFIT
