"""Which keys a configuration of ``rp-lib run`` has, and what their values may be."""

from __future__ import annotations

import contextlib
import inspect
import tomllib
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from rp_lib.config import PRESETS, RPConfig, preset
from rp_lib.detectors import DETECTORS
from rp_lib.methods import BASES, METHODS, Method, Reprogrammer, ResidualReprogrammer
from rp_lib.run import CONFIGS, shipped
from rp_lib.utils.device import PRECISIONS
from rp_lib.utils.errors import RPLibError, UnknownName
from rp_lib.utils.io import write_atomically

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
# Arguments of rp_lib.data.cifar.cifar10_benchmark and rp_lib.data.imagenet.imagenet_benchmark; what the preset
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
    "cifar10-folders": {  # arguments of rp_lib.data.cifar.cifar10_from_folders, below root
        **_DRAWN, "train": _text, "test": _text, "tiny_imagenet": _text, "ood": _many_folders,
    },
    "folders": {  # arguments of rp_lib.data.own_folders.from_folders, below root
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
        hints = typing.get_type_hints(RPConfig)
    else:
        hints = _arguments(METHODS[BASES.get(name, name)]) | ({"alpha": float} if name in BASES else {})
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


# Configuration files of ``rp-lib run``: TOML, strictly checked, the command line on top.
#
# A file says which data, backbone, methods, seeds and settings; a method's hyper-parameters have a table of their own,
# ``[settings.NAME]``, and those of the reprogrammers are switches on top of a preset. ``rp_lib/configs`` holds the
# shipped ones.



class ConfigError(RPLibError):
    """A configuration that cannot be what was meant; the message says where and why."""


@dataclass(frozen=True)
class RunConfig:
    """A checked configuration.

    Attributes:
        source: where it came from, for messages. about: one sentence. preset: ``paper``, ``as_released`` or ``tuned``.
        methods: names. seeds: of every trained method. out: folder for the results.
        data: ``id`` and what belongs to it. backbone: ``name``, ``pretrained`` (``random``: no weights), ...
        tables: hyper-parameters by method, as written. device, precision, detectors: as elsewhere in the library.
    """

    source: str
    preset: str
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    out: Path
    data: Mapping[str, Any]
    backbone: Mapping[str, Any]
    tables: Mapping[str, Mapping[str, Any]]
    about: str = ""
    device: str = "auto"
    precision: str = "auto"
    detectors: tuple[str, ...] = ("msp",)

    def settings(self) -> dict[str, dict[str, Any]]:
        """Keyword arguments of every method of this run, as :func:`rp_lib.build_method` takes them.

        Raises:
            ConfigError: a method has no settings.
        """
        return {name: self.settings_of(name) for name in self.methods}

    def all_settings(self) -> dict[str, dict[str, Any]]:
        """Those of every method of the library that this configuration has some for."""
        known = {}
        for name in METHODS:
            with contextlib.suppress(ConfigError):
                known[name] = self.settings_of(name)
        return known

    def settings_of(self, name: str) -> dict[str, Any]:
        """Those of one method; a mixture with zero-shot takes those of the method it is made of, and its own.

        Raises:
            ConfigError: there are none for it.
        """
        own = {**self.tables.get(BASES.get(name, ""), {}), **self.tables.get(name, {})}
        tuned = _tuned() if self.preset == TUNED else {}
        if issubclass(METHODS[name], (Reprogrammer, ResidualReprogrammer)):
            start = tuned[name]["config"] if name in tuned else preset("paper" if tuned else self.preset)
            return {"config": start.changed(**own)}
        if name == "zero-shot" or {name, BASES.get(name, name)} & self.tables.keys() or name in tuned:
            return {**tuned.get(name, {}), **own}
        known = ", ".join(sorted(accepted(name)))
        raise ConfigError(
            f"{self.source} has no settings for {name!r}: add a table [settings.{name}] (it takes {known}; left empty "
            "it means the defaults of the library), or leave the method out"
        )

    def as_dict(self) -> dict[str, Any]:
        """The whole configuration as plain data, defaults included; read again it gives the same run."""
        top = {
            "about": self.about, "preset": self.preset, "methods": list(self.methods), "seeds": list(self.seeds),
            "out": str(self.out), "device": self.device, "precision": self.precision,
            "detectors": list(self.detectors), "data": dict(self.data), "backbone": dict(self.backbone),
            "settings": {name: dict(table) for name, table in self.tables.items()},
        }  # fmt: skip
        return {key: value for key, value in top.items() if value not in ("", {})}

    def check_folder(self) -> None:
        """Refuse a results folder that holds a run of other data, backbone or settings: its training would be lost.

        Other methods, seeds and detectors may be added to a run.

        Raises:
            ConfigError: the folder's ``config.toml`` differs; the message says in what.
        """
        path = self.out / "config.toml"
        if not path.is_file():
            return
        before, now = tomllib.loads(path.read_text(encoding="utf-8")), tomllib.loads(tomli_w.dumps(self.as_dict()))
        parts = ("preset", "data", "backbone", "settings", "precision")
        changed = [part for part in parts if before.get(part) != now.get(part)]
        if changed:
            raise ConfigError(
                f"{self.out} holds a run with other {', '.join(changed)}: choose another folder with --out, or replace "
                "that run with --fresh"
            )

    def write(self, path: Path) -> None:
        """Write it as TOML, atomically."""
        write_atomically(path, lambda partial: partial.write_text(tomli_w.dumps(self.as_dict()), encoding="utf-8"))


def read_config(name: str | Path, changes: Mapping[str, Any] | None = None) -> RunConfig:
    """Read and check a configuration.

    Args:
        name: a shipped one's name, or a file. changes: by dotted key (``"data.subset"``), win over the file.

    Raises:
        UnknownName: no such file and no shipped configuration of that name; or an unknown key, method, preset, ...
        ConfigError: no TOML, a value of the wrong type, a key missing.
    """
    known, path = shipped(), Path(name).expanduser()
    if str(name) in known and not path.is_file():
        path = known[str(name)]
    elif not path.is_file():
        if path.suffix == ".toml" or len(path.parts) > 1:
            raise ConfigError(f"the configuration {path} does not exist; shipped ones: {', '.join(known)}")
        raise UnknownName("configuration", str(name), known)
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    source = path.stem if path.parent == CONFIGS else str(path)
    return check_config(table, source, changes)


def check_config(table: Mapping[str, Any], source: str, changes: Mapping[str, Any] | None = None) -> RunConfig:
    """Check a configuration given as plain data; see :func:`read_config`."""
    table = _changed(table, changes or {})
    rest = {key: table.pop(key) for key in ("data", "backbone", "settings") if key in table}
    if unknown := table.keys() - TOP.keys():
        raise UnknownName(f"key in {source}", min(unknown), [*TOP, "data", "backbone", "settings"])
    missing = [key for key in REQUIRED if key not in table] + [key for key in ("data", "backbone") if key not in rest]
    if missing:
        raise ConfigError(f"{source} lacks {', '.join(missing)}")
    top = _checked(table, TOP, source)
    methods = tuple(dict.fromkeys(top.pop("methods")))
    for name in methods:
        _known("method", name, METHODS, source)
    for name in top.get("detectors", ()):
        _known("detector", name, DETECTORS, source)
    data = _data(_table(rest["data"], "data", source), source)
    backbone = _checked(_table(rest["backbone"], "backbone", source), BACKBONE, f"{source} [backbone]")
    if "name" not in backbone:
        raise ConfigError(f"{source} [backbone] lacks name, such as ViT-B-32-quickgelu, or mini")
    if top["preset"] == TUNED and (data["id"], backbone["name"]) != ("mini", "mini"):
        raise ConfigError(
            f"{source}: the preset {TUNED!r} holds what was searched for on the mini benchmark with the mini CLIP; "
            f"for other data or another backbone take {' or '.join(PRESETS)}"
        )
    config = RunConfig(
        source, methods=methods, seeds=tuple(top.pop("seeds")), out=Path(top.pop("out")).expanduser(), data=data,
        backbone=backbone, tables=_tables(_table(rest.get("settings", {}), "settings", source), source),
        detectors=tuple(top.pop("detectors", ("msp",))), **top,
    )  # fmt: skip
    config.settings()  # a method without settings is refused now, not after the others are trained
    return config


def _tables(tables: Mapping[str, Any], source: str) -> dict[str, dict[str, Any]]:
    checked = {}
    for name, table in tables.items():
        _known("method in [settings]", name, METHODS, source)
        where = f"settings.{name}"
        checked[name] = _checked(_table(table, where, source), accepted(name), f"{source} [{where}]")
        if name == "zero-shot" and checked[name]:
            raise ConfigError(f"{source} [{where}]: zero-shot has no settings")
    return checked


def _data(table: dict[str, Any], source: str) -> dict[str, Any]:
    where = f"{source} [data]"
    if "id" not in table:
        raise ConfigError(f"{where} lacks id, one of {', '.join(DATA)}")
    name = table.pop("id")
    if not isinstance(name, str) or name not in DATA:
        raise UnknownName(f"id in {where}", str(name), DATA)
    checked = _checked(table, DATA[name], where)
    if missing := [key for key in NEEDED.get(name, ()) if key not in checked]:
        raise ConfigError(f"{where} lacks {', '.join(missing)}")
    return {"id": name, **checked}


def _checked(table: Mapping[str, Any], kinds: Mapping[str, Kind], where: str) -> dict[str, Any]:
    checked = {}
    for key, value in table.items():
        if key not in kinds:
            raise UnknownName(f"key in {where}", key, kinds)
        try:
            checked[key] = kinds[key](value)
        except ValueError as error:
            raise ConfigError(f"{where}: {key} must be {error}, got {value!r}") from error
        except UnknownName as error:
            raise ConfigError(f"{where}: {key}: {error}") from error
    return checked


def _table(value: Any, name: str, source: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{source}: {name} must be a table [{name}], got {value!r}")
    return dict(value)


def _known(kind: str, name: str, known: Mapping[str, Any], source: str) -> None:
    if name not in known:
        raise ConfigError(f"{source}: {UnknownName(kind, name, known)}")


def _changed(table: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy with values at dotted keys replaced; None takes a key out."""
    copied = {key: dict(value) if isinstance(value, Mapping) else value for key, value in table.items()}
    for key, value in changes.items():
        *path, last = key.split(".")
        place: Any = copied
        for part in path:
            below = place.get(part, {})
            if not isinstance(below, Mapping):
                raise ConfigError(f"{key}: {part} is a value, no table")
            place[part] = dict(below)
            place = place[part]
        if value is None:
            place.pop(last, None)
        else:
            place[last] = value
    return copied


def split_names(text: str) -> list[str]:
    """Names of a comma-separated list, without white space and empty ones."""
    return [name.strip() for name in text.split(",") if name.strip()]


def _tuned() -> dict[str, dict[str, Any]]:
    from rp_lib.run.search import tuned_settings

    return tuned_settings()
