"""The door: from what the user wrote to a checked Experiment. The one module that composes Hydra's
configuration.

Types are checked by OmegaConf against each unit's dataclass, ranges by the dataclass itself, names
and the grammar in ``overrides.py``, what Hydra would execute in ``trust.py``; whatever refuses, the
user reads one line (``messages.py``) that names the key, what was given and what is allowed.
"""

import copy
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from gradpath.commands import messages, overrides, trust
from gradpath.commands.hydra_internals import apply_overrides, split_arguments
from gradpath.commands.messages import as_written, no_such_key, settable, written
from gradpath.commands.report import Report
from gradpath.commands.units import GROUPS, options
from gradpath.schema import locations
from gradpath.schema.discovery import discover
from gradpath.schema.settings import ConfigError, SettingError
from gradpath.training.experiment import Experiment, Replicates
from gradpath.training.threads import cores

__all__ = ["GROUPS", "ConfigError", "options", "settable"]


@cache
def register() -> None:
    """Makes every unit's dataclass the schema of its YAML file, under the YAML's name with a ``_``
    before it.
    """
    store = ConfigStore.instance()
    store.store(name="_experiment", node=Replicates)
    store.store(name="_report", node=Report)
    for group, base in GROUPS.items():
        units: dict[str, type] = discover(base)
        for name, unit in units.items():
            store.store(group=group, name=f"_{name}", node=unit)
    OmegaConf.register_new_resolver("gradpath_home", lambda: str(locations.home()))
    # A variable that is set to nothing says nothing.
    OmegaConf.register_new_resolver(
        "gradpath_experiment", lambda: os.environ.get("MLFLOW_EXPERIMENT_NAME") or "gradpath"
    )


@contextmanager
def hydra() -> Iterator[Any]:
    """Hydra with the folder conf/, for as long as the outermost of such blocks runs."""
    register()
    if GlobalHydra.instance().is_initialized():
        yield GlobalHydra.instance().hydra
        return
    with initialize_config_dir(str(locations.conf()), job_name="gradpath", version_base="1.3"):
        yield GlobalHydra.instance().hydra


def composed(name: str, given: Sequence[str]) -> DictConfig:
    """A configuration with Hydra's own node in it, as composed: nothing checked."""
    with hydra():
        return compose(name, list(given), return_hydra_config=True)


def trusted(name: str, given: Sequence[str]) -> DictConfig:
    """The same, once it is sure that nothing in it would be executed."""
    config = composed(name, given)
    trust.check(config)
    return config


class Composer:
    """Composes configurations. What decides which files are read, the units and the presets, is
    composed once for each combination; plain ``key=value`` are set on a copy of it, as Hydra itself
    does, which takes a fiftieth of the time.
    """

    def __init__(self, name: str = "config") -> None:
        self._name = name
        self._bases: dict[tuple[str, ...], DictConfig] = {}

    def __call__(self, given: Sequence[str]) -> DictConfig:
        """The configuration that overrides describe; raises ConfigError."""
        ready = overrides.read(given)
        config: DictConfig = messages.explained(given, lambda: self._compose(ready))
        return config

    def _compose(self, ready: Sequence[str]) -> DictConfig:
        plain = [o for o in ready if self._is_plain(o)]
        rest = tuple(o for o in ready if not self._is_plain(o))
        if any("${" in o or (o.startswith(("+", "~")) and "." in o.partition("=")[0]) for o in rest):
            plain, rest = [], tuple(ready)  # the order counts
        if rest not in self._bases:
            base = trusted(self._name, rest)
            with open_dict(base):
                del base["hydra"]
            self._bases[rest] = base
        config = copy.deepcopy(self._bases[rest])
        apply_overrides([overrides.parse(o) for o in plain], config)
        return config

    @staticmethod
    def _is_plain(override: str) -> bool:
        key = override.partition("=")[0]
        dotted = "." in key and not key.startswith("hydra.")
        return (key == "seed" or dotted) and not set(key) & set("+~@/") and "${" not in override


@cache
def _shared(name: str) -> Composer:
    """A composer for the whole process: whoever describes many experiments reads the files once."""
    return Composer(name)


def load(name: str, given: Sequence[str]) -> DictConfig:
    """The one configuration that overrides describe; raises ConfigError."""
    return _shared(name)(given)


def experiments(given: Sequence[str]) -> list[Experiment]:
    """The experiments that a list of overrides describes, one a seed; raises ConfigError."""
    config = load("config", given)
    made: Replicates = messages.explained(given, lambda: build(config, given))
    return made.experiments()


def experiment(given: Sequence[str]) -> Experiment:
    """The one experiment that a list of overrides describes; raises ConfigError."""
    one, *others = experiments(given)
    if others:
        raise ConfigError(f"{written('seed', given)}: must be a single seed here")
    return one


def report(given: Sequence[str]) -> Report:
    """The report that a list of overrides describes; raises ConfigError."""
    config = load("report", given)
    made: Report = messages.explained(given, lambda: build(config, given))
    return made


def points(given: Sequence[str]) -> list[list[str]]:
    """The overrides of every point of a sweep, as Hydra's sweeper expands ``a=1,2`` and a study's
    own parameters, in its order; Hydra's own overrides, which are those of all points, are left
    out.
    """

    def expand() -> list[list[str]]:
        with hydra() as running:
            loader = running.config_loader
            own, parsed = overrides.read_sweep(given, loader)
            # Only for the study's sweep: other overrides may need a cell or task that the sweep
            # itself chooses.
            studies = [str(p.input_line) for p in parsed if p.key_or_group == "experiment"]
            base = trusted("config", own + studies)
            study = [f"{key}={value}" for key, value in (base.hydra.sweeper.params or {}).items()]
            parameters, theirs = overrides.read_sweep(study, loader)
            if parameters:
                raise ConfigError(f"{parameters[0]}: Hydra's own settings are the same for every point of a sweep")
            batches = split_arguments(theirs + parsed, None)
        return [list(point) for batch in batches for point in batch]

    found: list[list[str]] = messages.explained(given, expand)
    if not found:
        raise ConfigError(f"{' '.join(given)}: a sweep of no points")
    return found


def jobs_at_once() -> int:
    """How many jobs of the sweep run beside each other, this one included: ``n_jobs`` of a launcher
    that has it, as joblib's, in which -1 is all cores.
    """
    jobs = int(HydraConfig.get().launcher.get("n_jobs") or 1)
    return jobs if jobs > 0 else max(1, cores() + 1 + jobs)


def build(config: DictConfig, given: Sequence[str] = ()) -> Any:
    """The object a composed configuration describes; raises ConfigError."""

    def known(node: DictConfig, path: tuple[str, ...]) -> None:
        """+key=value adds what the schema does not have, and OmegaConf would take it."""
        names = messages.fields_by_name(OmegaConf.get_type(node))
        for key in map(str, node):
            name = ".".join((*path, key))
            if names and key not in names:
                value = as_written(_raw(node)[key])
                raise ConfigError(f"{name}={value}: {no_such_key(name, list(names))}")
            if OmegaConf.is_missing(node, key):
                raise ConfigError(f"{name}: nothing chosen{messages.choices(key)}")
            if OmegaConf.is_dict(node[key]):
                known(node[key], (*path, key))

    def in_range(node: DictConfig, path: tuple[str, ...]) -> None:
        for key in map(str, node):
            if OmegaConf.is_dict(node[key]):
                in_range(node[key], (*path, key))
        try:
            OmegaConf.to_object(node)
        except SettingError as error:
            name = ".".join((*path, error.name))
            raise ConfigError(f"{_given(name, error.value, given)}: must be {error.allowed}") from None

    known(config, ())
    try:
        return OmegaConf.to_object(config)
    except SettingError:  # now for its whole key, from the leaves up
        in_range(config, ())
        raise


def _raw(node: DictConfig) -> dict[str, Any]:
    return OmegaConf.to_container(node, resolve=False)  # type: ignore[return-value]


def _given(key: str, value: Any, given: Sequence[str]) -> str:
    """``key=value`` as it was written where that was the value taken (seed=1e3), as it was taken
    otherwise.
    """
    as_given = written(key, given)
    if as_given.startswith(f"{key}=") and "${" not in as_given:
        (ready,) = overrides.read([as_given])
        if type(overrides.parse(ready).value()) is type(value):
            return as_given
    return f"{key}={as_written(value)}"


@cache
def default_keys() -> dict[str, str]:
    """What each key of the configuration with nothing overridden takes, in words."""
    return {key: takes for name in ("config", "report") for key, _, takes, _ in settable(load(name, []))}
