"""KEY=VALUE by Hydra's grammar: parses one override, and explains what is wrong with one that
cannot be parsed.
"""

import re
from collections.abc import Sequence
from functools import lru_cache

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from gradpath.commands.hydra_config import default_keys
from gradpath.schema.settings import ConfigError

SEARCHPATH = "hydra.searchpath"


@lru_cache(4096)
def parse(override: str) -> Override:
    """One override parsed by Hydra's grammar, which takes a millisecond; raises ConfigError."""
    try:
        parsed = OverridesParser.create().parse_override(override)
        if parsed.key_or_group:
            return parsed
    except (HydraException, AssertionError):
        raise ConfigError(unreadable(override)) from None
    except RecursionError:
        raise ConfigError(f"{override}: nested too deeply") from None
    raise ConfigError(unreadable(override))


def is_hydras(override: str) -> bool:
    """Is an override one of Hydra's own settings, which are the same for every point of a sweep?"""
    return override.lstrip("+~").startswith(("hydra.", "hydra/"))


def is_study(override: str) -> bool:
    """Does an override choose a study?"""
    return override.lstrip("+").startswith("experiment=")


def chosen(group: str, overrides: Sequence[str]) -> str:
    """The name that overrides choose of ``hydra/launcher`` or ``hydra/sweeper``."""
    names = [str(parse(o).value()) for o in overrides if o.lstrip("+").startswith(f"{group}=")]
    return names[-1] if names else "basic"


def folders(overrides: Sequence[str]) -> list[str]:
    """The folders of YAML files that the overrides add to those of gradpath."""
    added = []
    for override in overrides:
        if override.startswith(f"{SEARCHPATH}="):
            value = parse(override).value()
            added += [str(folder).removeprefix("file://") for folder in (value if isinstance(value, list) else [value])]
    return added


def unreadable(override: str) -> str:
    """What is wrong with an override that Hydra's grammar cannot parse."""
    key, equals, value = override.partition("=")
    name = key.lstrip("+~").strip()
    if not equals or not name:
        return f"{override}: must be KEY=VALUE"
    if not re.fullmatch(r"[A-Za-z_$][\w/$-]*([.:][\w$-]+)*(@[\w.:$-]*)?", name, re.ASCII):
        return f"{override}: {name} is no key; keys are words joined by dots, as in cell.hidden_size=64"
    if value.count("${") > 1:
        return f"{override}: an interpolation with another one in it goes into quotes: '{key}=\"…\"'"
    if name in default_keys() and not default_keys()[name].startswith("text"):
        return f"{override}: must be {default_keys()[name]}"
    unclosed = any(value.count(a) != value.count(b) for a, b in ("[]", "{}", "()")) or value.count('"') % 2
    if unclosed or value.count("'") % 2:
        return f"{override}: a bracket or a quote is not closed"
    return f"{override}: the value cannot be read; put text with special characters into quotes: '{key}=\"…\"'"
