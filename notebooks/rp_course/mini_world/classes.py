"""What the benchmark's classes are called, and which icon names count as showing them (classes.toml).

An icon belongs to a class when its *whole* concept (style words and numbering removed) is one of the
class's names: ``home-outline`` is a house, ``home-heart`` is not. The lists were fixed by looking at
name counts, before any model had seen a picture.
"""

from __future__ import annotations

import tomllib
from importlib.resources import files

_LISTS = tomllib.loads((files("rp_course.mini_world") / "classes.toml").read_text("utf-8"))

# Class name, as it stands in prompts -> further names that mean the same picture.
ID_CLASSES: dict[str, tuple[str, ...]] = {name: tuple(others) for name, others in _LISTS["id"].items()}
# Objects of the same kind and style that show no ID class: near OOD.
NEAR_CLASSES: tuple[str, ...] = tuple(name.replace("_", " ") for name in _LISTS["near"].split())
# Abstract interface signs: far OOD.
SIGN_WORDS = frozenset(_LISTS["signs"].split())
# No picture whose name mentions one of these words, whatever else it shows, may serve as OOD.
ID_WORDS: frozenset[str] = frozenset(
    word for name, others in ID_CLASSES.items() for phrase in (name, *others) for word in phrase.split()
) - frozenset(_LISTS["harmless"].split()) | frozenset(_LISTS["forbidden"].split())
