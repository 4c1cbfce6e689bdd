"""The door: from what the user wrote to a checked Experiment. The one module that talks to Hydra's configuration.

Types are checked by OmegaConf against each unit's dataclass, ranges by the dataclass itself, names by Hydra; whatever
refuses, the user reads one line that names the key, what was given and what is allowed.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterator
from enum import Enum
from functools import cache
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gradpath import paths
from gradpath.cells import Cell
from gradpath.discovery import discover
from gradpath.experiment import Experiment, Replicates
from gradpath.figures import Figure
from gradpath.inits import Init
from gradpath.instruments import Instrument
from gradpath.optimizers import Optimizer
from gradpath.report import Report
from gradpath.settings import SettingError, allowed
from gradpath.tasks import Task
from gradpath.threads import cores

GROUPS: dict[str, type] = {
    "task": Task,
    "cell": Cell,
    "init": Init,
    "optimizer": Optimizer,
    "instruments": Instrument,
    "figures": Figure,
}
"""The configuration groups whose entries are units: a folder of conf/, a package of gradpath, a base class."""


class ConfigError(Exception):
    """What the user wrote cannot be: one line that names the key, what was given and what is allowed."""


@cache
def register() -> None:
    """Makes every unit's dataclass the schema of its YAML file, under the YAML's name with a ``_`` before it."""
    store = ConfigStore.instance()
    store.store(name="_experiment", node=Replicates)
    store.store(name="_report", node=Report)
    for group, base in GROUPS.items():
        units: dict[str, type] = discover(base)
        for name, unit in units.items():
            store.store(group=group, name=f"_{name}", node=unit)
    OmegaConf.register_new_resolver("gradpath_home", lambda: str(paths.home()))


def load(config_name: str, overrides: list[str], hydra: bool = False) -> DictConfig:
    """Composes the configuration, with Hydra's own node beside it where ``hydra`` asks for it."""
    register()
    with initialize_config_dir(str(paths.conf()), version_base="1.3"):
        return compose(config_name, overrides, return_hydra_config=hydra)


def experiments(overrides: list[str]) -> list[Experiment]:
    """The experiments that a list of overrides describes, one a seed; raises ConfigError."""
    made: Replicates = _explained(overrides, lambda: build(load("config", overrides)))
    return made.experiments()


def experiment(overrides: list[str]) -> Experiment:
    """The one experiment that a list of overrides describes; raises ConfigError."""
    one, *others = experiments(overrides)
    if others:
        raise ConfigError(f"{_written('seed', overrides)}: must be a single seed here")
    return one


def report(overrides: list[str]) -> Report:
    """The report that a list of overrides describes; raises ConfigError."""
    made: Report = _explained(overrides, lambda: build(load("report", overrides)))
    return made


def points(overrides: list[str]) -> list[list[str]]:
    """The overrides of every point of a sweep, as Hydra's sweeper expands ``a=1,2`` and a study's own parameters."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    def expand() -> list[list[str]]:
        register()
        parser = OverridesParser.create()
        # Only for the study's sweep: other overrides may need a cell or task that the sweep itself chooses.
        studies = [o for o in overrides if o.lstrip("+").startswith(("experiment=", "hydra.", "hydra/"))]
        base = load("config", studies, hydra=True)
        study = [f"{key}={value}" for key, value in (base.hydra.sweeper.params or {}).items()]
        batches = BasicSweeper.split_arguments(parser.parse_overrides(study + overrides), None)
        return [list(point) for batch in batches for point in batch]

    found: list[list[str]] = _explained(overrides, expand)
    if not found:
        raise ConfigError(f"{' '.join(overrides)}: a sweep of no points")
    return found


def jobs_at_once() -> int:
    """How many jobs of the sweep run beside each other, this one included: ``n_jobs`` of a launcher that has it, as
    joblib's, in which -1 is all cores.
    """
    jobs = int(HydraConfig.get().launcher.get("n_jobs", 1))
    return jobs if jobs > 0 else max(1, cores() + 1 + jobs)


def build(config: DictConfig) -> Any:
    """The object a composed configuration describes, from the leaves up, so that an error knows its whole key."""

    def check(node: DictConfig, path: tuple[str, ...]) -> None:
        known = _fields(OmegaConf.get_type(node))
        for key in map(str, node):
            if known and key not in known:  # +key=value adds what the schema does not have
                names = list(known)
                raise ConfigError(f"{'.'.join((*path, key))}={node[key]}: {_no_such_key(key, names)}")
            if OmegaConf.is_missing(node, key):
                raise ConfigError(f"{'.'.join((*path, key))}: nothing chosen{_choices(key)}")
            if OmegaConf.is_dict(node[key]):
                check(node[key], (*path, key))
        try:
            OmegaConf.to_object(node)
        except SettingError as error:
            key = ".".join((*path, error.name))
            raise ConfigError(f"{key}={_as_written(error.value)}: must be {error.allowed}") from None

    check(config, ())
    return OmegaConf.to_object(config)


def describe(field: dataclasses.Field[Any], annotation: Any) -> str:
    """What a field takes, in words: ``an integer ≥ 1 or null``."""
    if takes := field.metadata.get("takes"):
        return str(takes)
    words = []
    for option in typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,):
        if option is type(None):
            words.append("null")
        elif isinstance(option, type) and issubclass(option, Enum):
            words.append("one of " + ", ".join(option.__members__))
        else:
            kind = {int: "an integer", float: "a number", bool: "true or false", str: "text"}.get(option, "a section")
            bounds = field.metadata.get("bounds", {})
            words.append(f"{kind} {allowed(bounds)}" if bounds else kind)
    return " or ".join(words)


def settable(config: DictConfig, path: str = "") -> Iterator[tuple[str, Any, str, str]]:
    """Every key that can be set in a composed configuration: (key, value, what it takes, what it means)."""
    schema = OmegaConf.get_type(config)
    fields = _fields(schema)
    annotations = typing.get_type_hints(schema) if fields else {}
    for name in map(str, config):
        key = f"{path}{name}"
        if OmegaConf.is_dict(config[name]):
            yield from settable(config[name], key + ".")
        else:
            field = fields[name]
            yield key, _as_written(config[name]), describe(field, annotations[name]), field.metadata.get("help", "")


def _as_written(value: Any) -> Any:
    """A value as a person writes it on the command line."""
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, list):
        return f"[{','.join(str(_as_written(item)) for item in value)}]"
    return {None: "null", True: "true", False: "false"}[value] if value is None or isinstance(value, bool) else value


def _explained(overrides: list[str], action: typing.Callable[[], Any]) -> Any:
    """Runs ``action``, turning what Hydra and OmegaConf raise into one line for the user."""
    try:
        return action()
    except MissingConfigException as error:
        raise ConfigError(_unknown_name(error)) from None
    except HydraException as error:
        cause = error.__cause__
        if isinstance(cause, OmegaConfBaseException):
            raise ConfigError(_refused(cause, overrides)) from None
        where = f"{error.override}: " if isinstance(error, OverrideParseException) else ""
        raise ConfigError(where + _one_line(error)) from None
    except OmegaConfBaseException as error:
        raise ConfigError(_refused(error, overrides)) from None
    except ValueError as error:  # Hydra's answer to cell=null and the like
        given = next((o for o in overrides if o.partition("=")[0].lstrip("+") in GROUPS), "")
        where = given or " ".join(overrides)
        raise ConfigError(f"{where}: {_one_line(error)}{_choices(given.partition('=')[0])}") from None


def _fields(schema: Any) -> dict[str, dataclasses.Field[Any]]:
    """The fields of a section's dataclass; none for a section without one."""
    return {f.name: f for f in dataclasses.fields(schema)} if dataclasses.is_dataclass(schema) else {}


def _no_such_key(name: str, names: list[str]) -> str:
    return f"no such key; there are {', '.join(names)}{_close(name, names)}"


def options(group: str) -> list[str]:
    """What can be chosen in a configuration group."""
    folder = paths.conf() / group
    return (
        sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml")) if group else []
    )


def _choices(group: str) -> str:
    """What can be chosen in a configuration group, as the end of a sentence."""
    names = options(group)
    return f"; there are {', '.join(names)}" if names else ""


def _one_line(error: Exception) -> str:
    """What Hydra says, without its line breaks and links."""
    said = str(error).partition("See https")[0]
    return " ".join(said.split()) or type(error).__name__


def _written(key: str, overrides: list[str]) -> str:
    """The override as the user wrote it."""
    return next((o for o in reversed(overrides) if o.lstrip("+~").split("=")[0].split("@")[0] == key), key)


def _close(word: str, names: list[str]) -> str:
    match = difflib.get_close_matches(word, names, 1)
    return f" (did you mean {match[0]}?)" if match else ""


def _unknown_name(error: MissingConfigException) -> str:
    group, _, name = str(error.missing_cfg_file).rpartition("/")
    if not (names := options(group)):
        return _one_line(error)
    return f"{group}={name}: no such name{_choices(group)}{_close(name, names)}"


def _refused(error: OmegaConfBaseException, overrides: list[str]) -> str:
    schema, key = error.object_type, str(error.full_key or error.key)
    name = str(error.key)
    fields = _fields(schema)
    if name in fields:
        kind = describe(fields[name], typing.get_type_hints(schema)[name])
        return f"{_written(key, overrides)}: must be {kind}"
    if fields:
        return f"{_written(key, overrides)}: {_no_such_key(name, list(fields))}"
    return f"{_written(key, overrides)}: no such key{_choices(key.partition('.')[0])}"
