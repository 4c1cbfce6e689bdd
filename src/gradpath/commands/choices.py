"""The names in a configuration group."""

from collections.abc import Sequence
from pathlib import Path

from gradpath.commands.grammar import folders
from gradpath.schema import locations, plugins


def searched(overrides: Sequence[str] = ()) -> list[Path]:
    """The folders of YAML files: gradpath's, the plugins', and those that the overrides add."""
    return [locations.conf(), *(plugin.conf for plugin in plugins.active()), *map(Path, folders(overrides))]


def options(group: str, overrides: Sequence[str] = ()) -> list[str]:
    """The names that can be chosen in a configuration group."""
    if not group:
        return []
    places = [folder / group for folder in searched(overrides)]
    names = {
        path.relative_to(folder).with_suffix("").as_posix() for folder in places for path in folder.rglob("*.yaml")
    }
    return sorted(names)
