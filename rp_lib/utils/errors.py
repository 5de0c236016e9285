"""Errors that say what to do. Everything a user can cause derives from :class:`RPLibError`."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RPLibError(Exception):
    """Base class; the command line prints its message without a traceback and exits with ``exit_code``."""

    exit_code = 2


class MissingDependency(RPLibError):
    """An optional program or package is not installed."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(f"{what} is needed for this and is not installed: {remedy}")


class UnknownName(RPLibError):
    """A name that is not known, with the nearest known ones."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        known = sorted(known)
        near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.4)
        hint = f"did you mean {', '.join(near)}?" if near else f"known: {', '.join(known[:30])}"
        super().__init__(f"unknown {kind} {name!r}; {hint}")
