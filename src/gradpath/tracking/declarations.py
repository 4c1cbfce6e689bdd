"""The roles of a run's cell, as text in its artifact and back. For runs of version 0.1, which did
not store them, they are derived from the configuration.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields, is_dataclass
from enum import Enum
from math import isfinite
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from gradpath.core.cell import Cell
from gradpath.core.roles import Roles
from gradpath.schema.discovery import discover, unit_name
from gradpath.schema.settings import ConfigError
from gradpath.schema.text import printable
from gradpath.tasks import Task
from gradpath.training.experiment import Experiment

LARGEST = 100_000
"""Largest number of characters of stored roles; those of the LSTM take 4 000."""
LONGEST = 100
"""Largest number of characters of a name in the roles."""
STORABLE = f"names and labels must be printable, and of at most {LONGEST} characters"


def check(experiment: Experiment) -> None:
    """Raises ConfigError where the declarations of the units cannot be stored."""
    names = {f"clip={unit_name(experiment.clip)}: label": experiment.clip.label}
    names |= {f"task={unit_name(experiment.task)}: plateaus": name for name in experiment.task.plateaus}
    for place, name in names.items():
        if not isinstance(name, str) or printable(name, LONGEST) != name:
            raise ConfigError(f"{place}: {printable(repr(name), LONGEST)} cannot be stored; {STORABLE}")
    try:
        as_text(experiment.cell.roles)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"cell={unit_name(experiment.cell)}: {error}") from error


def as_text(roles: Roles) -> str:
    """The roles as JSON; ValueError where reading the text would not give equal roles."""
    declared = asdict(roles)
    text = json.dumps(declared, ensure_ascii=False)
    if from_text(text) != roles:
        odd = [name for name in _texts(declared) if printable(name, LONGEST) != name]
        example = printable(repr(odd[0]), LONGEST) if odd else "what it declares"
        raise ValueError(f"{example} cannot be stored; {STORABLE}")
    return text


def _texts(declared: Any) -> Iterator[str]:
    """All text in a declaration, including the keys of dicts."""
    if isinstance(declared, str):
        yield declared
    elif isinstance(declared, Mapping):
        for key, item in declared.items():
            yield from _texts(key)
            yield from _texts(item)
    elif isinstance(declared, list | tuple):
        for item in declared:
            yield from _texts(item)


def from_text(text: str) -> Roles:
    """The roles from the text of ``as_text``; ValueError where the text is not of this form. All
    names are made printable.
    """
    if len(text) > LARGEST:
        raise ValueError(f"longer than {LARGEST} characters")
    roles: Roles = _read(json.loads(text), Roles, "roles")
    colors = (roles.colors or {}).values()
    if not all(len(color) == 7 and color[0] == "#" and set(color[1:]) <= set("0123456789ABCDEF") for color in colors):
        raise ValueError("a colour is not #RRGGBB")
    return roles


def from_configuration(cell: Mapping[str, Any], readings: Mapping[str, tuple[str, ...]]) -> Roles:
    """The roles of a run that was stored without them: the declarations of the cell of that name as
    it is configured. Where the cell is not available, the names of the run's readings give its
    states. ``readings``: columns by instrument.
    """
    cell_type = discover(Cell).get(cell["name"])  # type: ignore[type-abstract]
    if cell_type is not None:
        return cell_type(**_settings(cell_type, cell)).roles
    layers, columns = int(cell["layers"]), readings.get("state_grad_norm", ())
    states = columns[: columns.index(next((c for c in columns if c.startswith("direct/")), columns[-1]))] or (
        "carrier",
    )
    names = tuple(name.rpartition("/")[2] for name in states[: max(1, len(states) // layers)])
    return Roles(cell["name"], "", layers, names, names[0], names[-1], {}, {}, {})


def from_task(configuration: Mapping[str, Any]) -> tuple[float, int]:
    """(chance loss, longest lag) of a run that was stored without them, from the task of that name
    as it is configured.
    """
    task_type = discover(Task)[configuration["name"]]  # type: ignore[type-abstract]
    task = task_type(**_settings(task_type, configuration))
    return task.chance_loss, task.lags[1]


def _settings(unit: type, section: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a unit in a section of a configuration."""
    return {
        field.name: _plain(section[field.name], unit, field.name) for field in fields(unit) if field.name in section
    }


def _plain(value: Any, cls: type, name: str) -> Any:
    """A setting in the cell's type; a configuration holds the names of enumeration members."""
    kind = get_type_hints(cls)[name]
    return kind[value] if isinstance(kind, type) and issubclass(kind, Enum) else value


def _read(value: Any, kind: Any, place: str) -> Any:
    """A JSON value as a type that consists of dataclasses, tuples, dicts, literals, text and
    numbers.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return _read_one_of(value, inner, place)
    if origin is Literal:
        fits = value in inner if isinstance(value, str) else False
    elif is_dataclass(kind):
        hints = get_type_hints(kind)
        if not isinstance(value, dict) or value.keys() != hints.keys():
            raise ValueError(f"{place} has not the keys {', '.join(hints)}")
        return kind(**{name: _read(value[name], hint, f"{place}.{name}") for name, hint in hints.items()})  # type: ignore[operator]
    elif origin is dict and isinstance(value, dict):
        return {printable(key, LONGEST): _read(item, inner[1], f"{place}.{key}") for key, item in value.items()}
    elif origin is tuple and isinstance(value, list):
        kinds = inner[:1] * len(value) if inner[1:] == (...,) else inner
        if len(kinds) == len(value):
            return tuple(_read(item, item_kind, place) for item, item_kind in zip(value, kinds, strict=True))
        fits = False
    elif kind is str and isinstance(value, str):
        return printable(value, LONGEST)
    elif kind is float:
        fits = type(value) in (int, float) and isfinite(value)
    else:
        fits = type(value) is kind
    if not fits:
        raise ValueError(f"{printable(place, LONGEST)} is {printable(value, LONGEST)}")
    return value


def _read_one_of(value: Any, kinds: tuple[Any, ...], place: str) -> Any:
    if value is None and NoneType in kinds:
        return None
    *earlier, last = [kind for kind in kinds if kind is not NoneType]
    for kind in earlier:
        try:
            return _read(value, kind, place)
        except ValueError:
            continue
    return _read(value, last, place)
