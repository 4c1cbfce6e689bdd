"""The YAML file, of those that overrides choose, that a value of a configuration comes from."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gradpath.commands.choices import searched
from gradpath.commands.grammar import parse
from gradpath.commands.plugin_files import content
from gradpath.commands.units import CHOSEN, PRESETS, SEVERAL
from gradpath.schema.settings import ConfigError


def interpolation(key: str, overrides: Sequence[str]) -> tuple[Path, str] | None:
    """The file that sets a key to an interpolation, and that; None where none does."""
    for group, file in _chosen(overrides):
        section = "" if group in PRESETS else f"{group}.{file.stem}." if group in SEVERAL else f"{group}."
        if not key.startswith(section):
            continue
        value: Any = content(file)
        for name in key.removeprefix(section).split("."):
            value = value.get(name) if isinstance(value, dict) else None
        if isinstance(value, str) and "${" in value:
            return file, value
    return None


def choosing(group: str, name: str, overrides: Sequence[str]) -> Path | None:
    """The arm or study whose file chooses this unit; None where none does."""
    for preset, file in _chosen(overrides):
        if preset in PRESETS and (group, name) in _defaults(file):
            return file
    return None


def _chosen(overrides: Sequence[str]) -> Iterator[tuple[str, Path]]:
    """Group and file of each unit and preset that overrides choose, and of the units that a preset
    chooses.
    """
    for override in overrides:
        try:
            parsed = parse(override)
        except ConfigError:  # of which others speak
            continue
        if parsed.is_sweep_override():
            continue
        for group, name in _names(str(parsed.key_or_group), parsed.value()):
            for file in _files(group, name, overrides):
                yield group, file
                for unit in _defaults(file) if group in PRESETS else ():
                    yield from ((unit[0], f) for f in _files(*unit, overrides))


def _names(group: str, value: Any) -> list[tuple[str, str]]:
    names = value if isinstance(value, list) else [value]
    return [(group, str(name)) for name in names] if group in CHOSEN else []


def _files(group: str, name: str, overrides: Sequence[str]) -> list[Path]:
    files = [folder / group / f"{name}.yaml" for folder in searched(overrides)]
    return [file for file in files if file.is_file()]


def _defaults(file: Path) -> list[tuple[str, str]]:
    """Group and name of each unit that the defaults list of a file chooses."""
    entries = content(file).get("defaults")
    entries = [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    return [unit for entry in entries for key, value in entry.items() for unit in _names(_group(key), value)]


def _group(key: Any) -> str:
    """``override /cell`` → ``cell``."""
    return str(key).rpartition("/")[2]
