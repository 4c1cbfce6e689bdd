"""What a search draws from, in Hydra's grammar: ``cell.hidden_size=range(8,65,8)``."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.types import Override, Transformer

from gradpath.schema.settings import ConfigError


@dataclass(frozen=True)
class Numbers:
    """Numbers from ``low`` to ``high``, both included, a ``step`` apart if there is one."""

    low: float
    high: float
    step: float | None = None
    log: bool = False
    integer: bool = False

    def suggest(self, trial: Any, key: str) -> None:
        if self.integer:
            trial.suggest_int(key, int(self.low), int(self.high), step=int(self.step or 1), log=self.log)
        else:
            trial.suggest_float(key, self.low, self.high, step=self.step, log=self.log)

    @property
    def ends(self) -> tuple[Any, Any]:
        return (int(self.low), int(self.high)) if self.integer else (float(self.low), float(self.high))


@dataclass(frozen=True)
class Choices:
    """One of several values, as they are written."""

    values: tuple[str, ...]

    def suggest(self, trial: Any, key: str) -> None:
        trial.suggest_categorical(key, self.values)

    @property
    def ends(self) -> tuple[Any, ...]:
        return self.values


@dataclass(frozen=True)
class Space:
    """The keys that are searched, and the overrides that are the same for every trial."""

    keys: Mapping[str, Numbers | Choices]
    fixed: tuple[str, ...]

    def suggest(self, trial: Any) -> None:
        """Has a trial draw every key."""
        for key, values in self.keys.items():
            values.suggest(trial, key)

    def point(self, drawn: Mapping[str, Any]) -> list[str]:
        """The overrides of one trial."""
        return [*self.fixed, *self._assignments(drawn)]

    def values(self, drawn: Mapping[str, Any]) -> str:
        """What a trial has drawn, for a person."""
        return " ".join(self._assignments(drawn))

    def _assignments(self, drawn: Mapping[str, Any]) -> list[str]:
        return [f"{key}={drawn[key]}" for key in self.keys if key in drawn]

    def corners(self) -> list[list[str]]:
        """Points that have every end of every key."""
        first = {key: values.ends[0] for key, values in self.keys.items()}
        corners = [first, *[first | {key: end} for key, values in self.keys.items() for end in values.ends[1:]]]
        return [self.point(corner) for corner in corners]

    def described(self) -> str:
        """The keys in words that are equal for equal ones."""
        return json.dumps({key: repr(values) for key, values in self.keys.items()})


def read(overrides: Sequence[Override]) -> Space:
    """The space that overrides describe; raises ConfigError. Of two for one key the later holds."""
    keys: dict[str, Numbers | Choices] = {}
    fixed: dict[str, str] = {}
    for override in overrides:
        key = override.get_key_element()
        keys.pop(key, None)
        fixed.pop(key, None)
        if override.is_sweep_override():
            keys[key] = _values(override)
        else:
            fixed[key] = str(override.input_line)
    if not keys:
        raise ConfigError("hydra/sweeper=optuna: nothing to search, as optimizer.lr=interval(0.001,0.1) would be")
    return Space(keys, tuple(fixed.values()))


def _values(override: Override) -> Numbers | Choices:
    value: Any = override.value()
    if override.is_choice_sweep() or getattr(value, "shuffle", False):
        return Choices(tuple(str(text) for text in override.sweep_iterator(transformer=Transformer.encode)))
    log = "log" in value.tags
    if override.is_range_sweep():
        drawn = list(value.range())
        if not drawn:
            raise ConfigError(f"{override.input_line}: a range of no values")
        low, high = min(drawn), max(drawn)
        integer = all(isinstance(number, int) for number in drawn)
        step = None if log else abs(value.step)
    else:
        low, high, step = value.start, value.end, None
        integer = "int" in value.tags or isinstance(low, int)
    if not (low < high or (override.is_range_sweep() and low == high)) or (log and low <= 0):
        allowed = "both above 0, the lower first" if log else "the lower first"
        raise ConfigError(f"{override.input_line}: must have two ends, {allowed}")
    return Numbers(low, high, step, log, integer)
