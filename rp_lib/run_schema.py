"""Which keys a configuration of ``rp-lib run`` has, and what their values may be."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from typing import Any

from rp_lib.device import PRECISIONS
from rp_lib.errors import UnknownName
from rp_lib.methods import BASES, METHODS, Method, Reprogrammer, ResidualReprogrammer
from rp_lib.presets import PRESETS, Reprogramming

TUNED = "tuned"  # the preset of the mini world: what the recorded search chose

# What a value may be: each returns it in the type it is used in, or raises ValueError with what is expected. ----------


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("a text, not empty")
    return value


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError("a whole number")
    return value


def _count(value: Any) -> int:
    if _whole(value) < 1:
        raise ValueError("a whole number of at least 1")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("a number")
    return float(value)


def _switch(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def _texts(value: Any) -> list[str]:
    if not isinstance(value, list) or not value or not all(isinstance(v, str) and v.strip() for v in value):
        raise ValueError("a list of texts, not empty")
    return value


def _folders(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(v, str) and v.strip() for v in value.values()):
        raise ValueError("a table of NAME = FOLDER")
    return value


def _many_folders(value: Any) -> dict[str, str | list[str]]:
    try:
        if isinstance(value, dict):
            return {key: _prompts(folder) for key, folder in value.items()}
    except ValueError:
        pass
    raise ValueError("a table of NAME = FOLDER, or NAME = [FOLDER, FOLDER, ...]")


def _names(value: Any) -> list[str] | dict[str, str]:
    try:
        return _folders(value) if isinstance(value, dict) else _prompts(value)
    except ValueError as error:
        raise ValueError("a list of names, the name of such a list, or a table of FOLDER = NAME") from error


def _prompts(value: Any) -> str | list[str]:
    try:
        return _texts(value) if isinstance(value, list) else _text(value)
    except ValueError as error:
        raise ValueError("the name of a list of prompts, or a list of them") from error


def _seeds(value: Any) -> list[int]:
    if not isinstance(value, bool) and isinstance(value, int) and value > 0:
        return list(range(1, value + 1))
    whole = isinstance(value, list) and value and all(type(v) is int and v >= 0 for v in value)
    if whole and len(set(value)) == len(value):
        return value
    raise ValueError("a number of seeds of at least 1, or a list of distinct whole numbers")


def _one_of(*known: str) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if _text(value) not in known:
            raise UnknownName("choice", value, known)
        return value

    return check


Kind = Callable[[Any], Any]
TOP: dict[str, Kind] = {
    "about": _text, "preset": _one_of(*PRESETS, TUNED), "methods": _texts, "seeds": _seeds, "out": _text,
    "device": _text, "precision": _one_of(*PRECISIONS), "detectors": _texts,
}  # fmt: skip
REQUIRED = ("preset", "methods", "seeds", "out")
BACKBONE: dict[str, Kind] = {"name": _text, "pretrained": _text, "channels_last": _switch, "compile": _switch}
# Arguments of rp_lib.photos.cifar.cifar10_benchmark and rp_lib.photos.imagenet.imagenet_benchmark; what the preset
# says of the data (rows 3, 4 and 13 of the ledger) need not stand here.
_DRAWN: dict[str, Kind] = {
    "root": _text, "subset": _count, "per_class": _count, "val_per_class": _count, "size": _count,
    "templates": _prompts, "cache": _text, "seed": _whole,
}  # fmt: skip
_PUBLISHED: dict[str, Kind] = {**_DRAWN, "missing": _one_of("error", "skip")}
DATA: dict[str, dict[str, Kind]] = {
    "mini": {"root": _text},
    "cifar10": {**_PUBLISHED, "stl10_order": _text},
    "imagenet": {**_PUBLISHED, "class_names": _names, "score_among_all_classes": _switch},
    "cifar10-folders": {  # arguments of rp_lib.photos.cifar.cifar10_from_folders, below root
        **_DRAWN, "train": _text, "test": _text, "tiny_imagenet": _text, "ood": _many_folders,
    },
    "folders": {  # arguments of rp_lib.photos.assemble.from_folders, below root
        "root": _text, "name": _text, "train": _text, "test": _text, "val": _text, "shifts": _folders,
        "ood": _many_folders, "subset": _count, "per_class": _count,
        "class_names": _names, "templates": _texts, "size": _count, "cache": _text, "near": _texts,
        "numeric": _switch, "missing": _one_of("refuse", "among", "all"), "duplicates": _one_of("refuse", "drop"),
        "greyscale": _one_of("refuse", "convert"), "val_fraction": _number, "test_fraction": _number, "seed": _whole,
    },
}  # fmt: skip
NEEDED = {"folders": ("train",), "cifar10-folders": ("train", "test")}


def accepted(name: str) -> dict[str, Kind]:
    """The hyper-parameters that a method takes in a configuration, each with its check.

    Seed and precision are the run's own and are not among them.
    """
    if issubclass(METHODS[name], (Reprogrammer, ResidualReprogrammer)):
        hints = typing.get_type_hints(Reprogramming)
    else:
        hints = (_arguments(METHODS[BASES[name]]) if name in BASES else {}) | _arguments(METHODS[name])
    return {key: _kind_of(hint) for key, hint in hints.items() if key not in ("seed", "precision")}


def _arguments(cls: type[Method]) -> dict[str, Any]:
    """Types of the keyword arguments of a class, and, where it passes ``**settings`` on, of its parents."""
    found: dict[str, Any] = {}
    for owner in cls.__mro__:
        if owner is Method:
            break
        if "__init__" in owner.__dict__:
            parameters = inspect.signature(owner.__init__).parameters.values()
            hints = typing.get_type_hints(owner.__init__)
            found = {p.name: hints[p.name] for p in parameters if p.kind is p.KEYWORD_ONLY} | found
            if not any(p.kind is p.VAR_KEYWORD for p in parameters):
                break
    return found


def _kind_of(hint: Any) -> Kind:
    kinds = {int: _whole, float: _number, bool: _switch, str: _text}
    return next(kinds[h] for h in typing.get_args(hint) or (hint,) if h in kinds)  # int | None: TOML has no None
