"""Builds a checked Experiment from the user's overrides; there is no other way to build one.

OmegaConf checks types against each unit's dataclass, and the dataclass checks ranges.
``overrides.py`` checks names, ``grammar.py`` the grammar, and ``trust.py`` refuses what Hydra would
execute. Every refusal reaches the user as one line (``messages.py``) that names the key, the given
value and the allowed ones.
"""

import copy
from collections.abc import Hashable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from gradpath.commands import messages, trust
from gradpath.commands.choices import options
from gradpath.commands.grammar import parse
from gradpath.commands.hydra_config import composed, hydra, register, without_hydra
from gradpath.commands.hydra_internals import apply_overrides, split_arguments
from gradpath.commands.keys import as_written, fields_by_name, settable
from gradpath.commands.messages import no_such_key, written
from gradpath.commands.overrides import read, read_sweep
from gradpath.commands.report_settings import Report
from gradpath.commands.units import GROUPS
from gradpath.schema import locations, plugins
from gradpath.schema.settings import ConfigError, SettingError
from gradpath.training import passes
from gradpath.training.experiment import Experiment, Replicates

__all__ = ["GROUPS", "ConfigError", "composed", "hydra", "options", "register", "settable"]


def trusted(name: str, overrides: Sequence[str]) -> DictConfig:
    """A composed configuration with Hydra's own node, after the check that nothing in it would be
    executed.
    """
    config = composed(name, overrides)
    trust.check(config)
    return config


class Composer:
    """Composes configurations. The overrides that decide which files are read, those of units and
    presets, are composed once for each combination. Plain ``key=value`` overrides are set on a copy
    of the result, as Hydra itself does, which takes a fiftieth of the time.
    """

    def __init__(self, name: str = "config") -> None:
        self._name = name
        self._bases: dict[tuple[str, ...], DictConfig] = {}

    def __call__(self, overrides: Sequence[str]) -> DictConfig:
        """The configuration that overrides describe; raises ConfigError."""
        ready = read(overrides)
        config: DictConfig = messages.explained(overrides, lambda: self._compose(ready))
        return config

    def _compose(self, ready: Sequence[str]) -> DictConfig:
        plain = [o for o in ready if self._is_plain(o)]
        composed_overrides = tuple(o for o in ready if not self._is_plain(o))
        if any("${" in o or (o.startswith(("+", "~")) and "." in o.partition("=")[0]) for o in composed_overrides):
            plain, composed_overrides = [], tuple(ready)  # the order of overrides counts
        if composed_overrides not in self._bases:
            self._bases[composed_overrides] = without_hydra(trusted(self._name, composed_overrides))
        config = copy.deepcopy(self._bases[composed_overrides])
        apply_overrides([parse(o) for o in plain], config)
        return config

    def __len__(self) -> int:
        return len(self._bases)

    @staticmethod
    def _is_plain(override: str) -> bool:
        key = override.partition("=")[0]
        dotted = "." in key and not key.startswith("hydra.")
        return (key == "seed" or dotted) and not set(key) & set("+~@/") and "${" not in override


_composers: dict[tuple[Hashable, ...], Composer] = {}
KEPT = 100
"""Number of composed bases that a process keeps from one call to the next; each takes about a
megabyte.
"""


def forget() -> None:
    """Forgets the files that have changed, so that a long-running process reads them again. Changes
    of files in folders that overrides name are not detected.
    """
    _state.cache_clear()
    if sum(map(len, _composers.values())) > KEPT:
        _composers.clear()


@cache
def _state(active: tuple[plugins.Plugin, ...], named_folders: bool) -> Hashable:
    """A value that is equal between two calls if all YAML files are unchanged."""
    if named_folders:
        return object()
    folders = [locations.conf(), *(plugin.conf for plugin in active)]
    return tuple(_stamp(file) for folder in folders for file in sorted(folder.rglob("*.yaml")))


def _stamp(file: Path) -> tuple[str | int, ...]:
    try:
        status = file.stat()
    except OSError:  # a broken link
        return (str(file),)
    return str(file), status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def load(name: str, overrides: Sequence[str]) -> DictConfig:
    """The one configuration that overrides describe; raises ConfigError. The process keeps one
    composer while the files are unchanged, so that many experiments read them once.
    """
    active = plugins.active()
    key = name, active, _state(active, any("searchpath" in override for override in overrides))
    return _composers.setdefault(key, Composer(name))(overrides)


def experiments(overrides: Sequence[str]) -> list[Experiment]:
    """The experiments that a list of overrides describes, one for each seed; raises ConfigError."""
    config = load("config", overrides)
    replicates: Replicates = messages.explained(overrides, lambda: build(config, overrides))
    return replicates.experiments()


def experiment(overrides: Sequence[str]) -> Experiment:
    """The one experiment that a list of overrides describes; raises ConfigError."""
    first, *remaining = experiments(overrides)
    if remaining:
        raise ConfigError(f"{written('seed', overrides)}: must be a single seed here")
    return first


def report(overrides: Sequence[str]) -> Report:
    """The report that a list of overrides describes; raises ConfigError. Where no figures are
    named, it has gradpath's figures and then the plugins'.
    """
    config = load("report", overrides)
    named = any(override.lstrip("+~").startswith(("figures=", "figures@")) for override in overrides)
    added = [file.stem for plugin in plugins.active() for file in sorted((plugin.conf / "figures").glob("*.yaml"))]
    if added and not named:
        config = load("report", [*overrides, f"figures=[{','.join([*map(str, config.figures), *added])}]"])
    built: Report = messages.explained(overrides, lambda: build(config, overrides))
    return built


def points(overrides: Sequence[str]) -> list[list[str]]:
    """The overrides of every point of a sweep, in the order in which Hydra's sweeper expands
    ``a=1,2`` and a study's own parameters. Hydra's own overrides, which are the same for all
    points, are left out.
    """

    def expand() -> list[list[str]]:
        batches = split_arguments(parameters(overrides)[1], None)
        return [list(point) for batch in batches for point in batch]

    expanded: list[list[str]] = messages.explained(overrides, expand)
    if not expanded:
        raise ConfigError(f"{' '.join(overrides)}: a sweep of no points")
    return expanded


def parameters(overrides: Sequence[str], intervals: bool = False) -> tuple[DictConfig, list[Override]]:
    """Hydra's node for the overrides of a sweep, and those of its points, a study's own first.
    ``intervals``: are they taken, as by a search?
    """
    with hydra() as running:
        loader = running.config_loader
        hydra_overrides, point_overrides = read_sweep(overrides, loader, intervals)
        # Only the study's sweep is read here: the other overrides may need a cell or task that the
        # sweep itself chooses.
        studies = [str(p.input_line) for p in point_overrides if p.key_or_group == "experiment"]
        base = trusted("config", hydra_overrides + studies)
        study = [f"{key}={value}" for key, value in (base.hydra.sweeper.params or {}).items()]
        fixed, study_points = read_sweep(study, loader, intervals)
        if fixed:
            raise ConfigError(f"{fixed[0]}: Hydra's own settings are the same for every point of a sweep")
    return base.hydra, study_points + point_overrides


def jobs_at_once() -> int:
    """The number of jobs of the sweep that run at the same time, this one included: ``n_jobs`` of a
    launcher that has this setting, as joblib's does; -1 means all cores.
    """
    jobs = int(HydraConfig.get().launcher.get("n_jobs") or 1)
    return jobs if jobs > 0 else max(1, passes.cores() + 1 + jobs)


def build(config: DictConfig, overrides: Sequence[str] = ()) -> Any:
    """The object a composed configuration describes; raises ConfigError."""

    def check_names(node: DictConfig, path: tuple[str, ...]) -> None:
        """Refuses unknown keys: +key=value adds keys that the schema does not have, and OmegaConf
        accepts them.
        """
        names = fields_by_name(OmegaConf.get_type(node))
        for key in map(str, node):
            name = ".".join((*path, key))
            if names and key not in names:
                value = as_written(_raw(node)[key])
                raise ConfigError(f"{name}={value}: {no_such_key(name, list(names))}")
            if OmegaConf.is_missing(node, key):
                raise ConfigError(f"{name}: nothing chosen{messages.choices(key)}")
            if OmegaConf.is_dict(node[key]):
                check_names(node[key], (*path, key))

    def in_range(node: DictConfig, path: tuple[str, ...]) -> None:
        for key in map(str, node):
            if OmegaConf.is_dict(node[key]):
                in_range(node[key], (*path, key))
        try:
            OmegaConf.to_object(node)
        except SettingError as error:
            name = ".".join((*path, error.name))
            raise ConfigError(f"{_assignment(name, error.value, overrides)}: must be {error.allowed}") from None

    check_names(config, ())
    try:
        return OmegaConf.to_object(config)
    except SettingError:  # raised again below with the whole key, from the leaves up
        in_range(config, ())
        raise


def _raw(node: DictConfig) -> dict[str, Any]:
    return OmegaConf.to_container(node, resolve=False)  # type: ignore[return-value]


def _assignment(key: str, value: Any, overrides: Sequence[str]) -> str:
    """``key=value`` as the user wrote it if that gave the value (seed=1e3), otherwise with the
    value itself.
    """
    original = written(key, overrides)
    if original.startswith(f"{key}=") and "${" not in original:
        (ready,) = read([original])
        if type(parse(ready).value()) is type(value):
            return original
    return f"{key}={as_written(value)}"
