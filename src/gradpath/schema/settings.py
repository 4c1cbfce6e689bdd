"""The settings of a unit: dataclass fields that declare their range and their meaning.

One declaration serves the range check at construction, the error line that names the key, and
``gradpath run --help``.
"""

import hashlib
import json
import math
from dataclasses import field, fields
from typing import Any

from gradpath.schema.text import one_line


class ConfigError(Exception):
    """A configuration is invalid. The message is one line that names the key, the given value and
    the allowed ones.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class SettingError(ValueError):
    """A value outside its range; it carries the field's name, so that the command line can name the
    whole key.
    """

    def __init__(self, name: str, value: object, allowed: str) -> None:
        super().__init__(f"{name}={value}: must be {allowed}")
        self.name, self.value, self.allowed = name, value, allowed


def setting(
    default: Any,
    help: str,
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
) -> Any:
    """A dataclass field with a range: ``ge``/``gt`` lower bound, ``le``/``lt`` upper bound
    (exclusive for gt, lt).
    """
    bounds = {"≥": ge, ">": gt, "≤": le, "<": lt}
    return field(default=default, metadata={"help": help, "bounds": {k: v for k, v in bounds.items() if v is not None}})


_HOLDS = {
    "≥": lambda value, bound: value >= bound,
    ">": lambda value, bound: value > bound,
    "≤": lambda value, bound: value <= bound,
    "<": lambda value, bound: value < bound,
}


def allowed(bounds: dict[str, float]) -> str:
    """The range in words: ``≥ 1``, ``> 0 and < 1``, or ``any finite number``."""
    return " and ".join(f"{sign} {bound}" for sign, bound in bounds.items()) or "a finite number"


class Settings:
    """Base of every dataclass that a user configures: checks the range of each field at
    construction.
    """

    def __post_init__(self) -> None:
        for spec in fields(self):  # type: ignore[arg-type]
            value = getattr(self, spec.name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            bounds = spec.metadata.get("bounds", {})
            if not all(_HOLDS[sign](value, bound) for sign, bound in bounds.items()):
                raise SettingError(spec.name, value, allowed(bounds))
            if not math.isfinite(value):
                raise SettingError(spec.name, value, "finite")


def fingerprint(resolved: dict[str, Any]) -> str:
    """Identity of a resolved configuration: equal for equal configurations."""
    return hashlib.sha256(json.dumps(resolved, sort_keys=True).encode()).hexdigest()[:12]
