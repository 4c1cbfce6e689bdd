"""The names that a configuration group can be chosen by."""

from collections.abc import Sequence
from pathlib import Path

from gradpath.commands.grammar import folders
from gradpath.schema import locations, plugins


def own_folders() -> list[Path]:
    """The folders of YAML files of gradpath and of the plugins."""
    return [locations.conf(), *(plugin.conf for plugin in plugins.active())]


def options(group: str, overrides: Sequence[str] = ()) -> list[str]:
    """What can be chosen in a configuration group: gradpath's, the plugins', and what is in the
    folders that the overrides add.
    """
    if not group:
        return []
    searched = [folder / group for folder in (*own_folders(), *map(Path, folders(overrides)))]
    names = {
        path.relative_to(folder).with_suffix("").as_posix() for folder in searched for path in folder.rglob("*.yaml")
    }
    return sorted(names)
