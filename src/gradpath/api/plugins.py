"""Folders of units of a user's own."""

import os

from gradpath.api.session import session
from gradpath.schema import discovery, plugins


def add_plugin(path: "str | os.PathLike[str]") -> None:
    """Makes the folder ``path`` a plugin of this process and of those that it starts, as ``--plugin
    PATH`` does for a command.

    Raises ConfigError where it cannot be one, as where a unit of it has the name of another: then
    it is not added, and can be mended and added.
    """
    try:
        plugins.add_plugin(path, "", _registered)
    except BaseException:
        discovery.forget()
        raise


def _registered() -> None:
    """Raises what is wrong with the units."""
    with session():
        from gradpath.commands import hydra_config

        hydra_config.register()
