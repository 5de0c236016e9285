"""Configuration files of ``rp-lib run``: TOML, strictly checked, the command line on top.

A file says which data, backbone, methods, seeds and settings; a method's hyper-parameters stand in a table of its own,
``[settings.NAME]``, and those of the reprogrammers are switches on top of a preset. ``rp_lib/configs`` holds the
shipped ones.
"""

from __future__ import annotations

import contextlib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from rp_lib.detectors import DETECTORS
from rp_lib.errors import RPLibError, UnknownName
from rp_lib.methods import BASES, METHODS, Reprogrammer, ResidualReprogrammer
from rp_lib.presets import PRESETS, preset
from rp_lib.run_schema import BACKBONE, DATA, NEEDED, REQUIRED, TOP, TUNED, Kind, accepted
from rp_lib.storage import write_atomically

SHIPPED = Path(__file__).resolve().parent / "configs"
FULL_IDS = ("cifar10", "imagenet")


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


def shipped() -> dict[str, Path]:
    """The configurations that come with the package, by name."""
    return {path.stem: path for path in sorted(SHIPPED.glob("*.toml"))}


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
    source = path.stem if path.parent == SHIPPED else str(path)
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
    from rp_lib.demo import tuned_settings

    return tuned_settings()
