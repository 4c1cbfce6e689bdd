"""The user's error messages: one line that names the key, the given value and the allowed ones.

Exceptions of Hydra, its parser and OmegaConf mention their internals; this module translates them
into gradpath's terms.
"""

import re
import traceback
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException
from yaml import YAMLError

from gradpath.commands import sources
from gradpath.commands.choices import options, searched
from gradpath.commands.grammar import unreadable
from gradpath.commands.hydra_config import default_keys
from gradpath.commands.keys import describe, fields_by_name
from gradpath.commands.reasons import unit_folders
from gradpath.commands.units import SEVERAL, group_of
from gradpath.schema import plugins
from gradpath.schema.settings import ConfigError, SettingError
from gradpath.schema.text import did_you_mean

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
"""The keys of settings that people often call by another name."""
INSIDES = re.compile(r"\b[A-Z]\w*(Exception|Error|Config|Node|Container)\b|NoneType|expecting \{|<EOF>|<class")
"""Words of Hydra and OmegaConf that mean nothing to a reader who does not know their sources."""


def explained(overrides: Sequence[str], action: Callable[[], Any]) -> Any:
    """Runs ``action``, and turns any exception from it into one line for the user."""
    try:
        return action()
    except (ConfigError, MemoryError):
        raise
    except Exception as error:
        raise ConfigError(_fault(error) or _explanation(error, overrides)) from error


def _explanation(error: Exception, overrides: Sequence[str]) -> str:
    """What is wrong with the overrides."""
    match error:
        case MissingConfigException():
            return _unknown_name(error, overrides)
        case OverrideParseException():
            return unreadable(error.override)
        case OmegaConfBaseException():
            return _omegaconf_message(error, overrides)
        case YAMLError():
            mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
            return f"{mark.name}, line {mark.line + 1}: {problem}" if mark else str(error)
        case HydraException() if isinstance(cause := error.__cause__ or error.__context__, OmegaConfBaseException):
            return _file_message(error, cause, overrides) or _omegaconf_message(cause, overrides)
        case RecursionError():
            return f"{suspects(overrides)}: refers to itself, or is nested too deeply"
        case _:  # An assertion of Hydra's, a name that is too long for a file, …
            return _hydra_message(error, overrides)


def _fault(error: BaseException) -> str | None:
    """An exception from a unit's code, in one line; None where the overrides themselves are
    wrong.
    """
    folders = unit_folders()
    raised: BaseException | None = error
    while raised is not None:
        files = [Path(frame.filename) for frame in traceback.extract_tb(raised.__traceback__)]
        if not isinstance(raised, SettingError) and any(f.is_relative_to(folder) for f in files for folder in folders):
            return plugins.failure(raised, *folders)
        raised = raised.__cause__ or raised.__context__
    return None


def no_such_key(key: str, names: Sequence[str]) -> str:
    return f"no such key; there are {', '.join(names)}{_suggestion(key, names)}"


def choices(group: str, overrides: Sequence[str] = ()) -> str:
    """The names that can be chosen in a configuration group, as the end of a sentence."""
    names = options(group, overrides)
    return f"; there are {', '.join(names)}" if names else ""


def no_such_name(group: str, name: str, overrides: Sequence[str] = ()) -> str:
    names = options(group, overrides)
    names_here = {file.stem for file in Path("conf", group).glob("*.yaml")}
    hint = "; one lies in this folder: add --plugin ." if name in names_here else ""
    return f"{group}={name}: no such name{choices(group, overrides)}{hint or did_you_mean(name, names)}"


def written(key: str, overrides: Sequence[str]) -> str:
    """The override as the user wrote it, or the override of a section that contains the key."""
    names = [key.rsplit(".", cut)[0] for cut in range(key.count(".") + 1)]
    by_key = {o.lstrip("+~").split("=")[0].split("@")[0]: o for o in overrides}
    return next((by_key[name] for name in names if name in by_key), key)


def suspects(overrides: Sequence[str]) -> str:
    """The overrides that hold an interpolation, since only these can be circular; all overrides
    where none does.
    """
    return " ".join([o for o in overrides if "${" in o] or overrides)


def _suggestion(key: str, names: Sequence[str]) -> str:
    """The key that a user who wrote ``key`` may have meant: the same word at a deeper level, an
    alias, or a similar key.
    """
    keys, name = default_keys(), key.rpartition(".")[2]
    if (alias := ALIASES.get(name)) and alias not in names:
        return f" (did you mean {alias}?)"
    deeper = [candidate for candidate in keys if candidate.rpartition(".")[2] == name and candidate not in (name, key)]
    if len(deeper) == 1:
        return f" (did you mean {deeper[0]}?)"
    return did_you_mean(name, names, key.removesuffix(name))


def _unknown_name(error: MissingConfigException, overrides: Sequence[str]) -> str:
    missing = str(error.missing_cfg_file)
    if missing.startswith("hydra/"):
        group, _, name = missing.rpartition("/")
        available = [str(option) for option in error.options or () if not str(option).startswith("_")]
        names = f"; there are {', '.join(available)}" if available else ""
        return f"{group}={name}: no such name, or its plugin is not installed{names}"
    group = group_of(missing)
    if not group:
        return f"{suspects(overrides)}: there is no file {missing} to read"
    name = missing.removeprefix(group).removeprefix("/")
    file = sources.choosing(group, name, overrides)
    return (f"{file}: " if file else "") + no_such_name(group, name, overrides)


def _hydra_message(error: Exception, overrides: Sequence[str]) -> str:
    """Hydra's message in readable form: without its line breaks, links, search paths and
    internals.
    """
    joined = " ".join(overrides)
    text = " ".join(re.split(r"See https|Config search path:|Search path:", str(error))[0].split())
    if not isinstance(error, HydraException | ValueError) or not text or INSIDES.search(text):
        return f"{suspects(overrides)}: cannot be what these keys take; see gradpath run --help"
    return text if any(o in text for o in overrides) else f"{joined}: {text}"


def _file_message(error: HydraException, cause: OmegaConfBaseException, overrides: Sequence[str]) -> str | None:
    """What is wrong in a YAML file that Hydra names; None where the file is in none of the
    groups.
    """
    named = re.match(r"In '([^']+)': \w+ raised while composing config", str(error))
    places = [folder / f"{named[1]}.yaml" for folder in searched(overrides)] if named and group_of(named[1]) else []
    if not (file := next((place for place in places if place.is_file()), None)):
        return None
    key, name = str(cause.full_key or cause.key), str(cause.key)
    schema_fields = fields_by_name(cause.object_type)
    if name in schema_fields:
        return f"{file}: {key}: must be {describe(schema_fields[name], typing.get_type_hints(cause.object_type)[name])}"
    return f"{file}: {key}: {no_such_key(key, list(schema_fields))}"


def _omegaconf_message(error: OmegaConfBaseException, overrides: Sequence[str]) -> str:
    schema, key, name = error.object_type, str(error.full_key or error.key or ""), str(error.key)
    if not key:
        return f"{suspects(overrides)}: cannot be what these keys take; see gradpath run --help"
    override = written(key, overrides)
    if override == key and "." not in key:  # OmegaConf knows only the last word of the key
        override = next((o for o in overrides if o.partition("=")[0].endswith(f".{key}")), key)
        key = override.partition("=")[0].lstrip("+~")
    schema_fields = fields_by_name(schema)
    if source := sources.interpolation(key, overrides):
        override = f"{source[0]}: {key}={source[1]}"
    if isinstance(error, InterpolationResolutionError) and name not in schema_fields:
        return f"{override}: the interpolation leads nowhere"
    if name in schema_fields:
        return f"{override}: must be {describe(schema_fields[name], typing.get_type_hints(schema)[name])}"
    group, _, unit = key.partition(".")
    if any(name.startswith(f"{key}.") for name in default_keys()) or (group in SEVERAL and unit in options(group)):
        return f"{override}: is a section; its keys are set one by one, as {key}.KEY=VALUE"
    if schema_fields:
        return f"{override}: {no_such_key(key, list(schema_fields))}"
    if key in default_keys():
        return f"{override}: must be {default_keys()[key]}"
    return f"{override}: no such key{choices(key.partition('.')[0])}{_suggestion(key, ())}"
