"""Hydra with gradpath's configuration: the schemas, and unchecked configurations as Hydra composes
them.
"""

import inspect
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf, open_dict

from gradpath.commands import hydra_choices, plugin_files
from gradpath.commands.keys import settable
from gradpath.commands.report_settings import Report
from gradpath.commands.units import GROUPS
from gradpath.schema import locations, plugins
from gradpath.schema.discovery import discover
from gradpath.schema.settings import ConfigError
from gradpath.schema.text import one_line
from gradpath.training.experiment import Replicates


def register() -> None:
    """Makes every unit's dataclass the schema of its YAML file, under the name of the YAML file
    with a leading ``_``; raises ConfigError where a plugin's dataclass cannot be a schema.
    """
    _register_settings()
    _register_units(plugins.active())


class PluginFolders(SearchPathPlugin):
    """Makes Hydra look for YAML files in the plugins, after gradpath's own."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for plugin in plugins.active():
            search_path.append(plugin.name, f"file://{plugin.conf}")


@cache
def _register_units(active: tuple[plugins.Plugin, ...]) -> None:
    if active:
        plugin_files.check_names(active)
    store = ConfigStore.instance()
    for group, base in GROUPS.items():
        units: dict[str, type] = discover(base)
        plugin_files.check(group, units, active)
        for name, unit in units.items():
            try:
                store.store(group=group, name=f"_{name}", node=unit)
            except Exception as error:  # OmegaConf has no schema for the type of some field
                file = Path(inspect.getfile(unit))
                if plugins.owner(file) is None:
                    raise
                raise ConfigError(f"{file}: {one_line(str(error))}") from error


@cache
def _register_settings() -> None:
    store = ConfigStore.instance()
    store.store(name="_experiment", node=Replicates)
    store.store(name="_report", node=Report)
    Plugins.instance().register(PluginFolders)
    hydra_choices.store()
    OmegaConf.register_new_resolver("gradpath_home", lambda: str(locations.home()))
    # A variable that is set to the empty text counts as not set.
    OmegaConf.register_new_resolver(
        "gradpath_experiment", lambda: os.environ.get("MLFLOW_EXPERIMENT_NAME") or "gradpath"
    )


@contextmanager
def hydra() -> Iterator[Any]:
    """Hydra with the folder conf/, initialised while the outermost of such blocks runs."""
    register()
    if GlobalHydra.instance().is_initialized():
        yield GlobalHydra.instance().hydra
        return
    with initialize_config_dir(str(locations.conf()), job_name="gradpath", version_base="1.3"):
        yield GlobalHydra.instance().hydra


def composed(name: str | None, overrides: Sequence[str]) -> DictConfig:
    """An unchecked configuration with Hydra's own node in it; without a name, Hydra's node
    alone.
    """
    with hydra():
        return compose(name, list(overrides), return_hydra_config=True)


def without_hydra(config: DictConfig) -> DictConfig:
    """Removes Hydra's own node from a composed configuration, in place."""
    with open_dict(config):
        del config["hydra"]
    return config


def default_keys() -> dict[str, str]:
    """The allowed values of each key of the default configuration, in words."""
    return _default_keys(plugins.active())


@cache
def _default_keys(active: tuple[plugins.Plugin, ...]) -> dict[str, str]:
    configs = [without_hydra(composed(name, [])) for name in ("config", "report")]
    return {key: takes for config in configs for key, _, takes, _ in settable(config)}
