"""The YAML files of plugins, each beside the Python file of its unit. Faults are reported before
Hydra reads the files.
"""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from gradpath.commands.units import GROUPS, SEVERAL
from gradpath.schema import locations, plugins
from gradpath.schema.discovery import discover, package_of
from gradpath.schema.settings import ConfigError
from gradpath.schema.text import did_you_mean


def check_names(active: tuple[plugins.Plugin, ...]) -> None:
    """Raises ConfigError where two files have the same name, because Hydra would take the first."""
    first: dict[Path, Path] = {}
    for conf in (locations.conf(), *(plugin.conf for plugin in active)):
        for file in sorted(conf.rglob("*.yaml")):
            if namesake := first.get(file.relative_to(conf)):
                raise ConfigError(f"{file}: there is a configuration of that name already, {namesake}; rename it")
            first[file.relative_to(conf)] = file


def check(group: str, units: Mapping[str, type], active: tuple[plugins.Plugin, ...]) -> None:
    """Raises ConfigError where a plugin's unit has no YAML file, a YAML file has no unit, or a YAML
    file does not name the unit whose values it holds.
    """
    for plugin in active:
        folder = package_of(GROUPS[group]).rpartition(".")[2]
        defined = {name: unit for name, unit in units.items() if plugins.owner(Path(inspect.getfile(unit))) == plugin}
        for name, unit in defined.items():
            if group == "figures":
                _check_needs(unit)
            if not (file := plugin.conf / group / f"{name}.yaml").is_file():
                raise ConfigError(f"{inspect.getfile(unit)}: {group}={name} has no configuration; there is no {file}")
        for file in sorted((plugin.conf / group).glob("*.yaml")):
            if file.stem in defined:
                _check_content(file, group)
            elif not _is_unit_of_ours(file, units):
                raise ConfigError(f"{file}: there is no {plugin.folder / folder / file.stem}.py whose values it holds")


def _check_needs(figure: Any) -> None:
    """``needs`` of a figure is a tuple of instruments that there are."""
    file, needs = inspect.getfile(figure), figure.needs
    if not isinstance(needs, tuple | list) or not all(isinstance(need, str) for need in needs):
        raise ConfigError(f'{file}: needs is {needs!r}; expected: a tuple of instruments, as in needs = ("reach",)')
    instruments: dict[str, type] = discover(GROUPS["instruments"])
    for need in needs:
        if need not in instruments:
            names = ", ".join(instruments)
            raise ConfigError(
                f"{file}: needs {need}: no such instrument; there are {names}{did_you_mean(need, instruments)}"
            )


def _is_unit_of_ours(file: Path, units: Mapping[str, type]) -> bool:
    """Does the file hold other values for a unit of another name, as ``_lstm``?"""
    defaults = content(file).get("defaults")
    return isinstance(defaults, list) and any(f"_{name}" in defaults for name in units)


def _check_content(file: Path, group: str) -> None:
    line = f"defaults: [_{file.stem}, _self_]"
    defaults = content(file).get("defaults")
    if not isinstance(defaults, list) or f"_{file.stem}" not in defaults:
        raise ConfigError(f"{file}: must hold the line {line}")
    package = f"# @package {group}.{file.stem}"
    if group in SEVERAL and package not in file.read_text(encoding="utf-8"):
        raise ConfigError(f"{file}: must begin with the line {package}")


def content(file: Path) -> dict[str, Any]:
    """What a YAML file holds; raises ConfigError where it is none."""
    try:
        loaded = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:
        place = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{file}{place}: {error.problem}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: {error}") from None
    return loaded if isinstance(loaded, dict) else {}
