"""Checks the types of arguments from Python; an argument of another type is refused in one line."""

from typing import Any

from gradpath.schema.settings import ConfigError
from gradpath.schema.text import printable

LONGEST = 100
"""Largest number of characters of a value in a message."""


def check(name: str, value: Any, kinds: type | tuple[type, ...], expected: str) -> None:
    """Raises ConfigError where the argument ``name`` has none of the types ``kinds``, which
    ``expected`` names in words.
    """
    if not isinstance(value, kinds):
        raise ConfigError(f"{name}={printable(repr(value), LONGEST)}: must be {expected}")


def check_texts(**arguments: Any) -> None:
    """Raises ConfigError where an argument is neither text nor None."""
    for name, value in arguments.items():
        check(name, value, (str, type(None)), "text or None")
