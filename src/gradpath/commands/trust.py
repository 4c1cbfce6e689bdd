"""Refuses configurations in which an override or a file names something that would be executed.

Hydra instantiates the classes that ``_target_`` names under ``hydra.launcher``, ``hydra.sweeper``
and ``hydra.callbacks``; Python's logging instantiates the ``class`` and ``()`` of a handler or a
formatter; and ``hydra.job.env_set`` decides which ``git`` a run calls. In these sections a
configuration must therefore equal the files of gradpath and of the installed plugins for the names
that were chosen (``hydra/launcher=joblib``), whatever the configuration was composed from. The
values of a launcher or sweeper that are not called are free.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from omegaconf import DictConfig, OmegaConf

from gradpath.commands.hydra_choices import SEARCH
from gradpath.commands.hydra_config import composed
from gradpath.commands.messages import explained
from gradpath.schema.settings import ConfigError

WHOLE = ("callbacks", "hydra_logging", "job_logging", "job.env_set", "job.env_copy")
"""Sections of Hydra's node in which nothing may differ."""
CALLED = ("_target_", "_partial_", "_args_", "_convert_", "_recursive_")
"""Keys that ``hydra.utils.instantiate`` acts upon."""


def check(config: DictConfig) -> None:
    """Raises ConfigError where a composed configuration, Hydra's node included, would execute
    something that neither gradpath nor an installed plugin names.
    """
    chosen = {key: name for key, name in config.hydra.runtime.choices.items() if key.startswith("hydra/")}
    trusted = _trusted(tuple(sorted((key, name) for key, name in chosen.items() if name is not None)))
    for section in WHOLE:
        actual, expected = (OmegaConf.select(node, section, throw_on_missing=False) for node in (config.hydra, trusted))
        if _plain(actual) != _plain(expected):
            raise ConfigError(
                f"hydra.{section}: cannot be set, since it could have anything executed; a plugin that is installed is "
                "chosen by its name, as in hydra/launcher=joblib"
            )
    if chosen.get("hydra/sweeper") not in ("basic", SEARCH):
        raise ConfigError(
            f"hydra/sweeper={chosen.get('hydra/sweeper')}: must be basic, which runs every combination, or {SEARCH}, "
            "which searches"
        )
    for section in ("launcher", "sweeper"):
        expected = dict(_calls(_plain(trusted[section])))
        for node in (_plain(config.hydra)[section], _plain(config.hydra[section], resolve=True)):
            actual = dict(_calls(node))
            if actual != expected:
                path = next(iter(sorted(actual.items() ^ expected.items())))[0]
                raise ConfigError(
                    f"hydra.{section}{path}: cannot be set, since Hydra would call what it names; a plugin that is "
                    f"installed is chosen by its name, as in hydra/{section}=NAME"
                )


@lru_cache(64)
def _trusted(chosen: tuple[tuple[str, str], ...]) -> DictConfig:
    """Hydra's node for the names that were chosen, composed from the files of Hydra and its plugins
    alone. gradpath's own files set nothing in the compared sections except such names.
    """
    overrides = [f"{group}={name}" for group, name in chosen if group in ("hydra/launcher", "hydra/sweeper")]
    overrides += [f"{group}={name}" for group, name in chosen if group.endswith("_logging") or group == "hydra/output"]
    return explained(overrides, lambda: composed(None, overrides)).hydra


def _plain(node: Any, resolve: bool = False) -> Any:
    return OmegaConf.to_container(node, resolve=resolve) if OmegaConf.is_config(node) else node


def _calls(node: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """(path, value) of every key upon which Hydra acts when it instantiates a section."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key in CALLED:
                yield f"{path}.{key}", str(value)
            else:
                yield from _calls(value, f"{path}.{key}")
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _calls(value, f"{path}[{index}]")
    elif path == "":
        yield path, str(node)  # an interpolation to another section in place of this one
