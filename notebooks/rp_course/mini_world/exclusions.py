"""Pictures that looking found to be wrong, with the reason (exclusions.toml); no model was asked.

An excluded icon is taken neither as ID nor as OOD. Patterns are those of :mod:`fnmatch` on ``set:name``.
"""

from __future__ import annotations

import fnmatch
import functools
import re
import tomllib
from importlib.resources import files

_LISTS = tomllib.loads((files("rp_course.mini_world") / "exclusions.toml").read_text("utf-8"))
EXCLUDED: dict[str, str] = _LISTS["icons"]
LOGO_EXCLUDED: dict[str, str] = _LISTS["logos"]
FLAG_EMBLEMS: frozenset[str] = frozenset(_LISTS["flags"].split())
VIEWED: dict[str, int] = _LISTS["viewed"]


@functools.cache
def _pattern(logos: bool) -> re.Pattern[str]:
    return re.compile("|".join(fnmatch.translate(pattern) for pattern in (LOGO_EXCLUDED if logos else EXCLUDED)))


def is_excluded(key: str, logo: bool = False) -> bool:
    """Whether an icon, ``set:name``, stands on the list; ``logo`` asks the logos' list too."""
    return bool(_pattern(False).match(key)) or (logo and bool(_pattern(True).match(key.split(":")[1])))
