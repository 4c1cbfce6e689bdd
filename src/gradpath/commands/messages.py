"""What the user is told: one line that names the key, what was given and what is allowed.

Hydra, its parser and OmegaConf speak of their own insides; whatever they raise becomes words of
gradpath here.
"""

import difflib
import re
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import Field, fields, is_dataclass
from enum import Enum
from typing import Any

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException

from gradpath.commands.units import group_of, options
from gradpath.schema.settings import ConfigError, allowed

ALIASES = {
    "T": "task.length",
    "B": "train.batch_size",
    "H": "cell.hidden_size",
    "learning_rate": "optimizer.lr",
    "epochs": "train.steps",
    "model": "arm",
    "study": "+experiment",
    "name": "tracking.experiment",
    "sweep": "tracking.sweep_id",
}
"""What people call a key whose own name is another."""
INSIDES = re.compile(r"\b[A-Z]\w*(Exception|Error|Config|Node|Container)\b|NoneType|expecting \{|<EOF>|<class")
"""Words of Hydra and OmegaConf that say nothing to whoever has not read their sources."""


def explained(overrides: Sequence[str], action: Callable[[], Any]) -> Any:
    """Runs ``action``, turning whatever is raised on the way into one line for the user."""
    try:
        return action()
    except (ConfigError, MemoryError):
        raise
    except MissingConfigException as error:
        raise ConfigError(_unknown_name(error, overrides)) from None
    except OverrideParseException as error:
        raise ConfigError(unreadable(error.override)) from None
    except OmegaConfBaseException as error:
        raise ConfigError(_refused(error, overrides)) from None
    except HydraException as error:
        if isinstance(error.__cause__, OmegaConfBaseException):
            raise ConfigError(_refused(error.__cause__, overrides)) from None
        raise ConfigError(_said(error, overrides)) from None
    except RecursionError:
        raise ConfigError(f"{suspects(overrides)}: refers to itself, or is nested too deeply") from None
    except Exception as error:  # An assertion of Hydra's, a name that is too long for a file, …
        raise ConfigError(_said(error, overrides)) from None


def unreadable(override: str) -> str:
    """What is wrong with an override that Hydra's grammar has no reading for."""
    key, equals, value = override.partition("=")
    name = key.lstrip("+~").strip()
    if not equals or not name:
        return f"{override}: must be KEY=VALUE"
    if not re.fullmatch(r"[A-Za-z_$][\w/$-]*([.:][\w$-]+)*(@[\w.:$-]*)?", name, re.ASCII):
        return f"{override}: {name} is no key; keys are words joined by dots, as in cell.hidden_size=64"
    if value.count("${") > 1:
        return f"{override}: an interpolation with another one in it goes into quotes: '{key}=\"…\"'"
    if name in takes() and not takes()[name].startswith("text"):
        return f"{override}: must be {takes()[name]}"
    unclosed = any(value.count(a) != value.count(b) for a, b in ("[]", "{}", "()")) or value.count('"') % 2
    if unclosed or value.count("'") % 2:
        return f"{override}: a bracket or a quote is not closed"
    return f"{override}: the value cannot be read; put text with special characters into quotes: '{key}=\"…\"'"


def takes() -> dict[str, str]:
    """What each key of the configuration that nobody has changed takes, in words."""
    from gradpath.commands import compose

    return compose.default_keys()


def describe(field: Field[Any], annotation: Any) -> str:
    """What a field takes, in words: ``an integer ≥ 1 or null``."""
    if said := field.metadata.get("takes"):
        return str(said)
    words = []
    several = isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union
    for option in typing.get_args(annotation) if several else (annotation,):
        if option is type(None):
            words.append("null")
        elif isinstance(option, type) and issubclass(option, Enum):
            words.append("one of " + ", ".join(option.__members__))
        else:
            kinds = {int: "an integer", float: "a number", bool: "true or false", str: "text", list: "a list"}
            kind = kinds.get(typing.get_origin(option) or option, "a section")
            bounds = field.metadata.get("bounds", {})
            words.append(f"{kind} {allowed(bounds)}" if bounds else kind)
    return " or ".join(words)


def settable(config: DictConfig, path: str = "") -> Iterator[tuple[str, Any, str, str]]:
    """Every key that can be set in a composed configuration: (key, value, what it takes, what it
    means).
    """
    schema = OmegaConf.get_type(config)
    known = fields_by_name(schema)
    annotations = typing.get_type_hints(schema) if known else {}
    for name in map(str, config):
        key = f"{path}{name}"
        if OmegaConf.is_dict(config[name]):
            yield from settable(config[name], key + ".")
        else:
            field = known[name]
            yield key, as_written(config[name]), describe(field, annotations[name]), field.metadata.get("help", "")


def as_written(value: Any) -> Any:
    """A value as a person writes it on the command line."""
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{as_written(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return f"[{','.join(str(as_written(item)) for item in value)}]"
    return {None: "null", True: "true", False: "false"}[value] if value is None or isinstance(value, bool) else value


def fields_by_name(schema: Any) -> dict[str, Field[Any]]:
    """The fields of a section's dataclass; none for a section without one."""
    return {f.name: f for f in fields(schema)} if is_dataclass(schema) else {}


def no_such_key(key: str, names: Sequence[str]) -> str:
    return f"no such key; there are {', '.join(names)}{_meant(key, names)}"


def choices(group: str, overrides: Sequence[str] = ()) -> str:
    """What can be chosen in a configuration group, as the end of a sentence."""
    names = options(group, overrides)
    return f"; there are {', '.join(names)}" if names else ""


def no_such_name(group: str, name: str, overrides: Sequence[str] = ()) -> str:
    names = options(group, overrides)
    return f"{group}={name}: no such name{choices(group, overrides)}{_close(name, names)}"


def written(key: str, overrides: Sequence[str]) -> str:
    """The override as the user wrote it, or the one for a section that the key is in."""
    names = [key.rsplit(".", cut)[0] for cut in range(key.count(".") + 1)]
    given = {o.lstrip("+~").split("=")[0].split("@")[0]: o for o in overrides}
    return next((given[name] for name in names if name in given), key)


def suspects(overrides: Sequence[str]) -> str:
    """The overrides that hold an interpolation, which alone can go round in circles, or else all of
    them.
    """
    return " ".join([o for o in overrides if "${" in o] or overrides)


def _meant(key: str, names: Sequence[str]) -> str:
    """The key that somebody who wrote ``key`` may have had in mind: the same word deeper down, an
    alias, or close.
    """
    known, name = takes(), key.rpartition(".")[2]
    if (alias := ALIASES.get(name)) and alias not in names:
        return f" (did you mean {alias}?)"
    deeper = [other for other in known if other.rpartition(".")[2] == name and other not in (name, key)]
    if len(deeper) == 1:
        return f" (did you mean {deeper[0]}?)"
    return _close(name, names, key.removesuffix(name))


def _close(word: str, names: Sequence[str], section: str = "") -> str:
    match = difflib.get_close_matches(word[:80], names, 1)
    return f" (did you mean {section}{match[0]}?)" if match else ""


def _unknown_name(error: MissingConfigException, overrides: Sequence[str]) -> str:
    missing = str(error.missing_cfg_file)
    if missing.startswith("hydra/"):
        group, _, name = missing.rpartition("/")
        there = [str(option) for option in error.options or () if not str(option).startswith("_")]
        names = f"; there are {', '.join(there)}" if there else ""
        return f"{group}={name}: no such name, or its plugin is not installed{names}"
    group = group_of(missing)
    return (
        no_such_name(group, missing.removeprefix(group).removeprefix("/"), overrides)
        if group
        else (f"{suspects(overrides)}: there is no file {missing} to read")
    )


def _said(error: Exception, overrides: Sequence[str]) -> str:
    """What Hydra says, where a person can read it: without its line breaks, links, search paths and
    insides.
    """
    given = " ".join(overrides)
    said = " ".join(re.split(r"See https|Config search path:|Search path:", str(error))[0].split())
    if not isinstance(error, HydraException | ValueError) or not said or INSIDES.search(said):
        return f"{suspects(overrides)}: cannot be what these keys take; see gradpath run --help"
    return said if any(o in said for o in overrides) else f"{given}: {said}"


def _refused(error: OmegaConfBaseException, overrides: Sequence[str]) -> str:
    schema, key, name = error.object_type, str(error.full_key or error.key or ""), str(error.key)
    if not key:
        return f"{suspects(overrides)}: cannot be what these keys take; see gradpath run --help"
    where = written(key, overrides)
    if where == key and "." not in key:  # OmegaConf knows the last word of it only
        where = next((o for o in overrides if o.partition("=")[0].endswith(f".{key}")), key)
        key = where.partition("=")[0].lstrip("+~")
    known = fields_by_name(schema)
    if isinstance(error, InterpolationResolutionError) and name not in known:
        return f"{where}: the interpolation leads nowhere"
    if name in known:
        return f"{where}: must be {describe(known[name], typing.get_type_hints(schema)[name])}"
    if known:
        return f"{where}: {no_such_key(key, list(known))}"
    if key in takes():
        return f"{where}: must be {takes()[key]}"
    return f"{where}: no such key{choices(key.partition('.')[0])}{_meant(key, ())}"
