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
        defaults = content(file).get("defaults") if preset in PRESETS else None
        for entry in defaults if isinstance(defaults, list) else []:
            for key, value in entry.items() if isinstance(entry, dict) else ():
                chosen = value if isinstance(value, list) else [value]
                if str(key).rpartition("/")[2] == group and name in map(str, chosen):
                    return file
    return None


def _chosen(overrides: Sequence[str]) -> Iterator[tuple[str, Path]]:
    """Group and file of each unit and preset that overrides choose; without those that cannot be
    read, of which others speak.
    """
    for override in overrides:
        try:
            parsed = parse(override)
        except ConfigError:
            continue
        if (group := str(parsed.key_or_group)) in CHOSEN and not parsed.is_sweep_override():
            value = parsed.value()
            for name in value if isinstance(value, list) else [value]:
                yield from (
                    (group, f) for folder in searched(overrides) if (f := folder / group / f"{name}.yaml").is_file()
                )
