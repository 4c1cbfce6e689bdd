"""Keyword arguments as the KEY=VALUE of the command line."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import Enum
from typing import Any

from gradpath.schema.settings import ConfigError

UNITS = ("task", "cell", "init", "optimizer")
"""The sections for which a unit is chosen: the unit's name goes as ``name`` into a dict of its
settings.
"""
LISTS = ("instruments", "figures")
"""The keys whose value is a list of units: in a sweep, a list of such lists."""
WORD = re.compile(r"(?!(?:null|true|false|nan|inf)$)[A-Za-z_][\w./-]*", re.ASCII | re.IGNORECASE)
"""A text that Hydra's grammar reads as exactly this text without quotes."""


def assignments(overrides: Iterable[str], settings: Mapping[str, Any], sweep: bool = False) -> list[str]:
    """Overrides unchanged, followed by keyword arguments as overrides.

    A dict sets the keys of its section (``task={"length": 50}`` is ``task.length=50``), and with
    ``name`` chooses its unit. In a sweep a list, tuple or range gives the values to choose from;
    otherwise it is a list. Raises ConfigError for a value that cannot be written as KEY=VALUE, and
    in a sweep for a plain list of units where each point has a list of them.
    """
    written = list(overrides)
    for override in written:
        if not isinstance(override, str):
            raise ConfigError(f"{override!r}: must be text, KEY=VALUE")
        if override.startswith("-"):
            raise ConfigError(f"{override}: KEY=VALUE is taken here, and no options")
    for key, value in settings.items():
        written += _flat(key, value, sweep)
    return written


def _flat(key: str, value: Any, sweep: bool) -> Iterator[str]:
    """The overrides of one keyword argument."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            chosen = key in UNITS and name == "name"
            yield from _flat(key if chosen else f"{key}.{name}", item, sweep)
        return
    values = _items(value) if sweep else None
    if values is not None and not values:
        raise ConfigError(f"{key}={value}: a sweep of no values")
    if values is not None and key in LISTS and any(_items(item) is None for item in values):
        items = ",".join(written(key, item) for item in values)
        raise ConfigError(
            f"{key}=[{items}]: is a list of its own at every point; in a sweep it goes into another: {key}=[[{items}]]"
        )
    text = ",".join(written(key, item) for item in values) if values is not None else written(key, value)
    yield f"{'+' if key == 'experiment' else ''}{key}={text}"


def _items(value: Any) -> Sequence[Any] | None:
    """The items of a list, tuple, range or array; None for any other value."""
    if hasattr(value, "tolist"):  # an array of NumPy
        value = value.tolist()
    return value if isinstance(value, list | tuple | range) else None


def written(key: str, value: Any) -> str:
    """A value in Hydra's grammar, with text in quotes where it would be read as another value;
    raises ConfigError for a type that has no form there.
    """
    if hasattr(value, "tolist"):
        value = value.tolist()
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Enum):
        return str(value.name)
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return value if WORD.fullmatch(value) else _quoted(value)
    if (items := _items(value)) is not None:
        return f"[{','.join(written(key, item) for item in items)}]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{written(key, str(k))}:{written(key, item)}" for k, item in value.items()) + "}"
    if hasattr(value, "__fspath__"):
        return written(key, value.__fspath__())
    raise ConfigError(f"{key}={value!r}: must be a number, text, None, a list or a dict")


def _quoted(text: str) -> str:
    """Text in the double quotes of Hydra's grammar."""
    from hydra.core.override_parser.types import Quote, QuotedString

    return QuotedString(text, Quote.double).with_quotes()
