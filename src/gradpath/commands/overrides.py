"""Checks KEY=VALUE as people write it, before Hydra acts on it."""

import dataclasses
import shlex
import typing
from collections.abc import Sequence
from pathlib import Path

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException

from gradpath.commands import messages
from gradpath.commands.choices import options
from gradpath.commands.grammar import SEARCHPATH, folders, parse
from gradpath.commands.keys import as_written
from gradpath.commands.report_settings import Report
from gradpath.commands.units import CHOSEN, GROUPS, SEVERAL
from gradpath.schema.settings import ConfigError
from gradpath.training.experiment import Tracking


def read(overrides: Sequence[str]) -> list[str]:
    """The overrides of one point in Hydra's form, each of them checked; raises ConfigError."""
    ready = [_as_text(override) for override in overrides]
    for override in ready:
        parsed = parse(override)
        if parsed.is_sweep_override():
            raise ConfigError(f"{override}: {_multiple_values(override, parsed)}")
        _check(override, parsed, ready)
    return ready


def read_sweep(
    overrides: Sequence[str], loader: ConfigLoader, intervals: bool = False
) -> tuple[list[str], list[Override]]:
    """The overrides of a sweep: Hydra's own, which are the same at every point, and the others,
    parsed. ``intervals``: of a search, which takes those too.
    """
    ready = [_as_text(override) for override in overrides]
    hydra_overrides, point_overrides = [], []
    for override in ready:
        parsed = parse(override)
        if parsed.is_sweep_override():
            if parsed.is_hydra_override():
                raise ConfigError(f"{override}: Hydra's own settings are the same for every point of a sweep")
            if not (intervals or parsed.is_discrete_sweep()):
                raise ConfigError(f"{override}: an interval has no points to run; give values, as in range(0,10)")
            if parsed.key_or_group == "experiment":
                raise ConfigError(f"{override}: one study at a time, each with the sweep of its own")
            parsed = OverridesParser.create(config_loader=loader).parse_overrides([override])[0]
        else:
            _check(override, parsed, ready)
        if parsed.is_hydra_override():
            hydra_overrides.append(override)
        else:
            point_overrides.append(parsed)
    return hydra_overrides, point_overrides


def _text_keys() -> set[str]:
    """The keys that take text, for which a person may write 1e5 or größe."""
    keys = {f"tracking.{field.name}" for field in dataclasses.fields(Tracking)}
    hints = typing.get_type_hints(Report)
    return keys | {field.name for field in dataclasses.fields(Report) if hints[field.name] == str | None}


TEXT = _text_keys()
BRACKETED = {"figures": "figures=[norm_by_lag,gates]", "formats": "formats=[png,svg]"}
"""Keys of a report that take a list, with an example."""


def _as_text(override: str) -> str:
    """The override, in quotes if its value is meant as text but the grammar would read a number or
    fail.
    """
    key, _, value = override.partition("=")
    if key not in TEXT or not value:
        return override
    try:
        parsed = OverridesParser.create().parse_override(override)
    except (HydraException, AssertionError):
        if value[0] in "\"'[{" or "${" in value:  # the value begins as the grammar requires, but does not end so
            return override
        parts = [value] if set(value) & set("\"'()[]{}") else value.split(",")
        return f"{key}={','.join(QuotedString(part, Quote.double).with_quotes() for part in parts)}"
    number = not parsed.is_sweep_override() and isinstance(parsed.value(), int | float)
    return f'{key}="{value}"' if number else override


def _multiple_values(override: str, parsed: Override) -> str:
    """The message where several values are given and one is expected."""
    if (key := str(parsed.key_or_group)) in TEXT and not key.startswith("tracking."):
        return f"must be a single value; a comma in it goes into quotes: '{key}=\"…\"'"
    if key in BRACKETED:
        return f"several go into brackets, as in {BRACKETED[key]}"
    return f"several values make a sweep, which is gradpath run -m {shlex.quote(override)}"


def _check(override: str, parsed: Override, overrides: Sequence[str]) -> None:
    """Refuses overrides that Hydra would refuse in its own words or misunderstand."""
    key = str(parsed.key_or_group)
    if key == SEARCHPATH:
        for folder in folders([override]):
            if ":" in folder or not Path(folder).is_dir():
                raise ConfigError(f"{override}: must be a list of folders; {folder} is none")
        return
    if key not in CHOSEN or parsed.package is not None or parsed.is_delete():
        return
    value = parsed.value()
    if isinstance(value, dict) or "${" in override:
        return
    if isinstance(value, list) and key not in SEVERAL:
        sweep = f"; a sweep over several is gradpath run -m {key}={','.join(map(str, value))}" if value else ""
        raise ConfigError(f"{override}: must be one name{sweep if key != 'experiment' else ''}")
    for name in value if isinstance(value, list) else [value]:
        if str(name) not in options(key, overrides):
            raise ConfigError(messages.no_such_name(key, str(as_written(name)), overrides))
    if key == "experiment" and not parsed.is_add() and not parsed.is_force_add():
        raise ConfigError(f"{override}: a study is added: +{override}")
    if key in GROUPS and parsed.is_add() and key not in SEVERAL:
        raise ConfigError(f"{override}: {key} is chosen already; choose another by {override.lstrip('+')}")
