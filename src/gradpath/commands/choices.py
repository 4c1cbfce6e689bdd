"""The names that a configuration group can be chosen by."""

from collections.abc import Sequence
from pathlib import Path

from gradpath.commands.grammar import folders
from gradpath.schema import locations


def options(group: str, overrides: Sequence[str] = ()) -> list[str]:
    """What can be chosen in a configuration group, here and in the folders
    that the overrides add.
    """
    if not group:
        return []
    searched = [folder / group for folder in (locations.conf(), *map(Path, folders(overrides)))]
    names = {
        path.relative_to(folder).with_suffix("").as_posix() for folder in searched for path in folder.rglob("*.yaml")
    }
    return sorted(names)
