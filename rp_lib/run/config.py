"""Configurations of ``rp-lib run``: TOML files, checked completely before anything is loaded.

A file says which data, backbone, methods, seeds and settings; what the command line says wins over it. A method's
hyper-parameters have a table of their own, ``[settings.NAME]``; those of the reprogrammers change a preset.
``rp_lib/configs`` holds the shipped files.
"""

from __future__ import annotations

import logging
import re
import tomllib
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model

from rp_lib.config import PRESETS, RPConfig, preset
from rp_lib.detectors import DETECTORS
from rp_lib.losses import LOSSES, OBJECTIVES
from rp_lib.methods import BASES, METHODS, Reprogrammer, ResidualReprogrammer
from rp_lib.methods.baselines.prompts import STARTS
from rp_lib.metrics import CONVENTIONS
from rp_lib.programs import BORDER_INITS, PLACEMENTS, TEXT_ROWS
from rp_lib.run import CONFIGS, shipped
from rp_lib.run.search import tuned_settings
from rp_lib.trainer import SCHEDULES
from rp_lib.utils.arguments import RANGES
from rp_lib.utils.device import PRECISIONS
from rp_lib.utils.errors import RPLibError, UnknownName
from rp_lib.utils.io import write_atomically

TUNED = "tuned"  # the preset of the mini world: what the recorded search chose
MOST_SEEDS = 1000  # a seed that was meant as one would otherwise be as many trainings

log = logging.getLogger(__name__)


class ConfigError(RPLibError):
    """A configuration that cannot be what was meant; the message names every fault and its place."""


class _Table(BaseModel):
    """A table of a configuration: no other keys, and no value of another type than the one that is meant."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def seed_list(value: Any) -> Any:
    """Make a list of a number of seeds."""
    if type(value) is int and 1 <= value <= MOST_SEEDS:
        return list(range(1, value + 1))
    if type(value) is int and value > MOST_SEEDS:
        raise ValueError(f"should be at most {MOST_SEEDS:,} seeds; the one seed {value} is the list [{value}]")
    if not isinstance(value, list) or not value or len(set(map(str, value))) < len(value):
        raise ValueError("should be a number of seeds of at least 1, or a list of distinct whole numbers")
    return value


def _expecting(kinds: tuple[type, ...], words: str) -> BeforeValidator:
    """Say in one sentence what a value of several possible types should be."""

    def check(value: Any) -> Any:
        if not isinstance(value, kinds) or not value:
            raise ValueError(f"should be {words}")
        return value

    return BeforeValidator(check)


Text = Annotated[str, Field(min_length=1)]
Texts = Annotated[list[Text], Field(min_length=1)]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Seeds = Annotated[tuple[Seed, ...], Field(strict=False), BeforeValidator(seed_list)]
Prompts = Annotated[Text | Texts, _expecting((str, list), "the name of a list of prompts, or a list of them")]
Folders = Annotated[Text | Texts, _expecting((str, list), "FOLDER, or [FOLDER, FOLDER, ...]")]
Names = Annotated[
    Text | Texts | dict[str, Text],
    _expecting((str, list, dict), "a list of names, the name of such a list, or a table of FOLDER = NAME"),
]


def _several(known: Iterable[str]) -> Any:
    """The type of a list of distinct known names, not empty."""
    return Annotated[
        tuple[Literal[tuple(known)], ...],
        Field(strict=False), _expecting((list,), "a list of names, not empty"), AfterValidator(_distinct),
    ]  # fmt: skip


def _distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


def _table(name: str, fields: Mapping[str, Any], needed: Iterable[str] = ()) -> type[_Table]:
    kinds = {key: (kind, ... if key in needed else None) for key, kind in fields.items()}
    return create_model(name, __base__=_Table, **kinds)


# Arguments of rp_lib.data.cifar.cifar10_benchmark and rp_lib.data.imagenet.imagenet_benchmark.
_DRAWN = {
    "root": Text, "subset": Count, "per_class": Count, "val_per_class": Count, "size": Count, "templates": Prompts,
    "cache": Text, "seed": Seed,
}  # fmt: skip
_PUBLISHED = {**_DRAWN, "missing": Literal["error", "skip"]}
DATA: dict[str, type[_Table]] = {
    "mini": _table("mini", {"root": Text}),
    "cifar10": _table("cifar10", {**_PUBLISHED, "stl10_order": Text}),
    "imagenet": _table("imagenet", {**_PUBLISHED, "class_names": Names, "score_among_all_classes": bool}),
    # Arguments of rp_lib.data.cifar.cifar10_from_folders and rp_lib.data.own_folders.from_folders, below root.
    "cifar10-folders": _table(
        "cifar10-folders",
        {**_DRAWN, "train": Text, "test": Text, "tiny_imagenet": Text, "ood": dict[str, Folders]},
        needed=("train", "test"),
    ),
    "folders": _table(
        "folders",
        {
            "root": Text, "name": Text, "train": Text, "test": Text, "val": Text, "shifts": dict[str, Text],
            "ood": dict[str, Folders], "subset": Count, "per_class": Count, "class_names": Names, "templates": Texts,
            "size": Count, "cache": Text, "near": Texts, "numeric": bool, "missing": Literal["refuse", "among", "all"],
            "duplicates": Literal["refuse", "drop"], "greyscale": Literal["refuse", "convert"], "val_fraction": Share,
            "test_fraction": Share, "seed": Seed,
        },
        needed=("train",),
    ),
}  # fmt: skip
BACKBONE = _table(
    "backbone", {"name": Text, "pretrained": Text, "channels_last": bool, "compile": bool}, needed=("name",)
)
# Choices and ranges of hyper-parameters, by key; other numbers are at least 0.
CHOICES = {
    "schedule": SCHEDULES, "start": STARTS, "placement": PLACEMENTS, "objective": OBJECTIVES, "loss": LOSSES,
    "text_rows": TEXT_ROWS, "border_init": BORDER_INITS, "convention": CONVENTIONS,
}  # fmt: skip


def accepted(name: str) -> dict[str, Any]:
    """Return the hyper-parameters that a method takes in a configuration, with their types.

    Seed and precision are the run's own and are not among them.
    """
    if issubclass(METHODS[name], (Reprogrammer, ResidualReprogrammer)):
        hints = typing.get_type_hints(RPConfig)
    else:
        method = METHODS[BASES.get(name, name)]
        known = typing.get_type_hints(method)
        hints = {key: known[key] for key in method.parameter_names()} | ({"alpha": float} if name in BASES else {})
    return {key: _kind(key, hint) for key, hint in hints.items() if key not in ("seed", "precision")}


def _kind(key: str, hint: Any) -> Any:
    """The type of a hyper-parameter with its range; TOML has no None."""
    if key in CHOICES:
        return Literal[CHOICES[key]]
    kind = next(h for h in typing.get_args(hint) or (hint,) if h in (int, float, bool, str))
    if kind in (bool, str):
        return kind
    finite = {"allow_inf_nan": False} if kind is float else {}
    return Annotated[kind, Field(**RANGES.get(key, {"ge": 0}), **finite)]


class RunConfig(_Table):
    """A checked configuration.

    Args:
        source: Where it came from, for messages.
        preset: ``paper``, ``as_released`` or ``tuned``.
        methods: Names of methods.
        seeds: Of every trained method; in a file also their number.
        out: Folder for the results.
        data: ``id``, and what belongs to it.
        backbone: ``name``, ``pretrained`` (``random``: no weights), ``channels_last``, ``compile``.
        tables: Hyper-parameters by method, as the tables ``[settings.NAME]`` have them; see :meth:`settings_of`.
        about: One sentence.
        device: See :func:`rp_lib.utils.device.pick_device`.
        precision: Of training, see :func:`rp_lib.utils.device.autocast_dtype`.
        detectors: Names of OOD detectors.
    """

    source: Annotated[str, Field(exclude=True)]
    about: str = ""
    preset: Literal[(*PRESETS, TUNED)]
    methods: _several(METHODS)
    seeds: Seeds
    out: Annotated[Path, Field(strict=False), _expecting((str,), "a folder")]
    device: Text = "auto"
    precision: Literal[PRECISIONS] = "auto"
    detectors: _several(DETECTORS) = ("msp",)
    data: dict[str, Any]
    backbone: dict[str, Any]
    tables: Annotated[dict[str, dict[str, Any]], Field(alias="settings")] = {}

    def settings(self) -> dict[str, dict[str, Any]]:
        """Keyword arguments of every method of this run, as :func:`rp_lib.build_method` takes them.

        Raises:
            ConfigError: A method has no settings.
        """
        return {name: self.settings_of(name) for name in self.methods}

    def all_settings(self) -> dict[str, dict[str, Any]]:
        """Those of every method of the library that this configuration has some for."""
        return {name: self.settings_of(name) for name in METHODS if self._has_settings(name)}

    def _has_settings(self, name: str) -> bool:
        tuned = tuned_settings() if self.preset == TUNED else {}
        programmed = issubclass(METHODS[name], (Reprogrammer, ResidualReprogrammer))
        # One that takes more than a configuration, such as descriptions of the classes, is not run unasked.
        trained_by_config = programmed and {"config", "seed", "precision"}.issuperset(METHODS[name].parameter_names())
        named = {name, BASES.get(name, name)} & self.tables.keys()
        return trained_by_config or name in ("zero-shot", *tuned) or bool(named)

    def settings_of(self, name: str) -> dict[str, Any]:
        """Those of one method; a mixture with zero-shot takes those of the method it is made of, and its own.

        A method that the file has no table for runs with the library's defaults, and a warning says so.
        """
        own = {**self.tables.get(BASES.get(name, ""), {}), **self.tables.get(name, {})}
        tuned = tuned_settings() if self.preset == TUNED else {}
        if issubclass(METHODS[name], (Reprogrammer, ResidualReprogrammer)):
            start = tuned[name]["config"] if name in tuned else preset("paper" if tuned else self.preset)
            return {"config": start.changed(**own)}
        if not self._has_settings(name):
            log.warning(
                "%s has no settings for %r, which runs with the library's defaults: a table [settings.%s] takes %s",
                self.source, name, name, ", ".join(sorted(accepted(name))),
            )  # fmt: skip
        return {**tuned.get(name, {}), **own}

    def as_dict(self) -> dict[str, Any]:
        """The whole configuration as plain data, defaults included; read again it gives the same run."""
        table = self.model_dump(by_alias=True) | {"out": str(self.out)}
        return {key: value for key, value in table.items() if value not in ("", {})}

    def write(self, path: Path) -> None:
        """Write it as TOML, atomically."""
        write_atomically(path, lambda partial: partial.write_text(tomli_w.dumps(self.as_dict()), encoding="utf-8"))


def read_config(name: str | Path, changes: Mapping[str, Any] | None = None) -> RunConfig:
    """Read and check a configuration.

    Args:
        name: A shipped one's name, or a file.
        changes: Values by dotted key (``"data.subset"``) that win over the file; None takes a key out.

    Raises:
        UnknownName: No such file and no shipped configuration of that name.
        ConfigError: No TOML, or unknown keys, values of another type or out of range; all of them are named.
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
    return check_config(table, path.stem if path.parent == CONFIGS else str(path), changes)


def check_config(table: Mapping[str, Any], source: str, changes: Mapping[str, Any] | None = None) -> RunConfig:
    """Check a configuration given as plain data; see :func:`read_config`."""
    table = _changed(table, changes or {})
    faults = _faults(RunConfig, {**table, "source": source})
    data, backbone, settings = (table.get(key) for key in ("data", "backbone", "settings"))
    if isinstance(data, Mapping):
        name = str(data.get("id", ""))
        if name not in DATA:
            faults.append(str(UnknownName("id in [data]", name, DATA)))
        else:
            faults += _faults(DATA[name], {key: value for key, value in data.items() if key != "id"}, "data")
    if isinstance(backbone, Mapping):
        faults += _faults(BACKBONE, backbone, "backbone")
    if isinstance(settings, Mapping):
        for name, values in settings.items():
            if name not in METHODS:
                faults.append(str(UnknownName("method in [settings]", name, METHODS)))
            elif isinstance(values, Mapping):
                faults += _faults(_table(name, accepted(name)), values, f"settings.{name}")
    if not faults and table["preset"] == TUNED and (data["id"], backbone["name"]) != ("mini", "mini"):
        faults.append(
            f"the preset {TUNED!r} holds what was searched for on the mini benchmark with the mini CLIP; for other "
            f"data or another backbone take {' or '.join(PRESETS)}"
        )
    if faults:
        text = faults[0] if len(faults) == 1 else "\n  ".join([f"{len(faults)} faults", *faults])
        raise ConfigError(f"{source}: {text}")
    config = RunConfig(**table, source=source)
    config.settings()  # a method without settings is named now, not after the others are trained
    return config


def _faults(kind: type[_Table], table: Mapping[str, Any], place: str = "") -> list[str]:
    """All that is wrong with a table, one sentence each."""
    try:
        kind.model_validate(table)
        return []
    except ValidationError as error:
        found = error.errors(include_url=False)
    faults = {}
    for fault in found:
        # pydantic also names the member of a union that it tried: no key of the table.
        parts = [str(part) for part in fault["loc"] if not re.match(r"(constrained-|list\[|dict\[|tuple\[)", str(part))]
        key, got = ".".join(([place] if place else []) + parts), fault["input"]
        if fault["type"] == "extra_forbidden":
            known = [field.alias or name for name, field in kind.model_fields.items() if name != "source"]
            faults[key] = str(UnknownName(f"key in [{place}]" if place else "key", parts[-1], known))
        elif fault["type"] == "missing":
            faults[key] = f"{key} is missing"
        elif fault["type"] == "literal_error":
            known = re.findall("'([^']*)'", fault["ctx"]["expected"])
            faults[key] = f"{key}: {UnknownName('choice', str(got), known)}"
        else:
            text = re.sub(r"^(Value error, |Input |String |List )", "", fault["msg"]).replace("dictionary", "table")
            faults[key] = f"{key} {text}, got {got!r}"
    return list(faults.values())


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
