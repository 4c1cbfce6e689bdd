"""The parts that the contracts of all kinds share: the unit by its name, its settings, and its
plugin.
"""

import math
import os
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import pytest

from gradpath.commands import compose
from gradpath.commands.units import GROUPS
from gradpath.schema import plugins
from gradpath.schema.discovery import discover
from gradpath.schema.settings import ConfigError, SettingError
from gradpath.training.experiment import Experiment

SMALL = ("task.length=10", "cell.hidden_size=4", "train.batch_size=3", "train.eval_size=9", "train.steps=2")
"""Overrides of a run that takes hardly any time."""


def composed(*overrides: str) -> Experiment:
    """The experiment that overrides describe, composed once in a process; raises ConfigError."""
    return _composed(overrides, plugins.active())


@cache
def _composed(overrides: tuple[str, ...], active: tuple[plugins.Plugin, ...]) -> Experiment:
    return compose.experiment(overrides)


class UnitContract:
    """Base of the contracts: the checks that every kind of unit must pass.

    A subclass gives ``name``; ``plugin``, the folder with ``cells/``, ``conf/`` …, unless the unit
    is gradpath's or an installed package's; and ``overrides``, keys as on the command line, where
    the unit needs other settings than those of its YAML file.
    """

    name: ClassVar[str]
    plugin: ClassVar[str | Path | None] = None
    overrides: ClassVar[tuple[str, ...]] = ()
    group: ClassVar[str]
    """The group of the configuration in which the unit is chosen."""

    @pytest.fixture(autouse=True)
    def _plugin(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Adds the plugin while a test runs, so that other tests of the process do not have its
        units.
        """
        if self.plugin is not None:
            listed = [*filter(None, [os.environ.get(plugins.VARIABLE)]), str(Path(self.plugin).resolve())]
            monkeypatch.setenv(plugins.VARIABLE, os.pathsep.join(listed))

    @property
    def unit_class(self) -> Any:
        """The unit's class."""
        units: dict[str, type] = discover(GROUPS[self.group])
        if self.name not in units:
            pytest.fail(f"{self.group}={self.name}: no such unit; there are {', '.join(units)}")
        return units[self.name]

    @property
    def choice(self) -> list[str]:
        """The overrides that choose the unit with the settings of its YAML file."""
        return [f"{self.group}={self.name}"]

    def experiment(self, *overrides: str) -> Experiment:
        """A small experiment with the unit in it."""
        try:
            return composed(*self.choice, *SMALL, *overrides, *self.overrides)
        except ConfigError as error:
            pytest.fail(f"the unit cannot be chosen: {error}")

    def configured(self, *overrides: str) -> Any:
        """The unit in the form in which the command line creates it."""
        return getattr(self.experiment(*overrides), self.group)

    def test_every_setting_says_what_it_means(self) -> None:
        for field in fields(self.unit_class):
            if field.name != "schedule" and not field.metadata.get("help"):
                pytest.fail(f"{self.group}.{field.name}: has no help; declare it with setting(default, help)")

    def test_ranges_hold(self) -> None:
        """A value just outside is refused by a SettingError that names the setting."""
        for field in fields(self.unit_class):
            for sign, bound in field.metadata.get("bounds", {}).items():
                outside = {"≥": bound - 1, ">": bound, "≤": bound + 1, "<": bound}[sign]
                self._is_refused(field.name, outside)
            if isinstance(field.default, float):
                self._is_refused(field.name, math.nan)

    def _is_refused(self, field: str, value: float) -> None:
        try:
            self.unit_class(**{field: value})
        except SettingError as error:
            refusal = error
        else:
            pytest.fail(
                f"{field}={value}: is not refused; a __post_init__ of its own must call super().__post_init__() first"
            )
        assert refusal.name == field, f"{field}={value}: the error is that of {refusal.name}, not of {field}"
        assert "\n" not in str(refusal), f"{field}={value}: the error is longer than a line"

    def test_the_yaml_file_has_the_values_of_the_class(self) -> None:
        """The YAML file has the values of the class; only a schedule may differ."""
        configured, defaults = self._as_in_its_file(), self.unit_class()
        for field in fields(defaults):
            value, default = (getattr(unit, field.name) for unit in (configured, defaults))
            if field.name != "schedule" and value != default:
                pytest.fail(
                    f"conf/{self.group}/{self.name}.yaml sets {field.name} to {value}, the class to {default}: "
                    "whoever makes the unit in Python gets another one"
                )

    def _as_in_its_file(self) -> Any:
        """The unit without ``overrides``."""
        try:
            return getattr(composed(*self.choice), self.group)
        except ConfigError as error:
            pytest.fail(f"the unit cannot be chosen: {error}")

    def test_an_unknown_key_is_refused_in_a_line(self) -> None:
        key = f"{self.group}.{self.name}.no_such_key" if self._is_in_a_list else f"{self.group}.no_such_key"
        with pytest.raises(ConfigError, match="no such key"):
            self._compose([*self.choice, f"{key}=1"])

    _is_in_a_list: ClassVar[bool] = False
    """Is the group a list of units, each with a section of its own?"""

    def _compose(self, overrides: list[str]) -> Any:
        return compose.experiment(overrides)
