"""The artifacts of a run in a store, checked before use: the names, dtypes, shapes and sizes on
which the figures rely. The files may come from anybody; :mod:`gradpath.tracking.decoding` reads
them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradpath.core.roles import Roles
from gradpath.schema.settings import fingerprint
from gradpath.schema.text import printable
from gradpath.tracking import declarations, store
from gradpath.tracking.decoding import INTEGER, NUMBER, TEXT, DamagedError, arrays_of, plain_yaml, refusing

__all__ = ["DamagedError", "Measurements", "Series", "configuration", "measurements"]

SECTIONS = ("task", "cell", "init", "optimizer", "clip", "train")


@dataclass(frozen=True)
class Series:
    """One instrument's readings: ``values`` [probe, T, name] or [probe, name], the ``steps`` of the
    probes, and ``names``.
    """

    names: tuple[str, ...]
    steps: NDArray
    values: NDArray

    def column(self, name: str) -> NDArray:
        """The values of one name, [probe, T] or [probe]."""
        return self.values[..., self.names.index(name)]


@dataclass(frozen=True)
class Measurements:
    """The contents of ``measurements.npz``; see ``Readings.arrays``."""

    lag: NDArray
    loss: Series
    evaluation: Series
    series: dict[str, Series]
    chance_loss: float | None
    longest_lag: int | None
    """The longest lag of the task, from the first input that matters to the output that needs it.
    Version 0.1 stored neither this nor the chance loss; both are then None.
    """
    roles: Roles | None
    """The declarations of the cell; None in a run of version 0.1."""


def measurements(path: Path) -> Measurements:
    """Reads and checks ``measurements.npz``; raises DamagedError."""
    with refusing(path.name):
        return _checked(arrays_of(path))


def configuration(path: Path, identity: str) -> dict[str, Any]:
    """Reads ``config.yaml`` and checks that it has the sections and keys of every run and that it
    is the configuration with this ``config_hash``; raises DamagedError.
    """
    with refusing(path.name):
        config = plain_yaml(path)
        for section in SECTIONS:
            if not isinstance(config, dict) or not isinstance(config.get(section), dict):
                raise DamagedError(f"has no section {section}")
        for section in SECTIONS[:4]:
            if not isinstance(config[section].get("name"), str):
                raise DamagedError(f"holds a {section}.name that is no text")
        cell, length = config["cell"], config["task"].get("length")
        integers = {"cell.hidden_size": cell.get("hidden_size"), "cell.layers": cell.get("layers")}
        for key, value in (integers | {"task.length": length, "seed": config.get("seed")}).items():
            least = int(key != "seed")
            if type(value) is not int or not least <= value < 2**63:
                raise DamagedError(f"holds a {key} that is no integer ≥ {least}")
        if fingerprint(config) != identity:
            raise DamagedError(f"is not the configuration of the run, whose config_hash is {identity}")
        return config


def _checked(arrays: Mapping[str, NDArray]) -> Measurements:
    """The arrays checked against the schema of the artifact."""
    version = _get(arrays, "schema_version", INTEGER, 0)
    if version != store.SCHEMA_VERSION:
        raise DamagedError(f"has schema version {version}; this gradpath reads {store.SCHEMA_VERSION}")
    lag = _get(arrays, "lag", INTEGER, 1)
    longest = int(_get(arrays, "longest_lag", INTEGER, 0)) if "longest_lag" in arrays else None
    if not lag.size or not np.array_equal(lag, np.arange(lag.size)[::-1]):
        raise DamagedError("holds a lag that does not count down to 0")
    if longest is not None and not 0 <= longest <= lag.size:
        raise DamagedError(f"has a longest lag of {longest} in a sequence of {lag.size} steps")
    instruments = [key.removesuffix("/names") for key in arrays if key.endswith("/names")]
    series = {}
    for name in instruments:
        names = tuple(printable(text, 100) for text in _get(arrays, f"{name}/names", TEXT, 1).tolist())
        if not names or len(set(names)) < len(names):
            raise DamagedError(f"holds no names, or one name twice, in {printable(name, 80)}")
        series[printable(name, 80)] = _series(arrays, name, names, (2, 3))
        if not series[printable(name, 80)].steps.size:
            raise DamagedError(f"holds no reading of {printable(name, 80)}")
    return Measurements(
        lag=lag.astype(np.int64),
        loss=_series(arrays, "loss", ("loss",), (1,)),
        evaluation=_series(arrays, "evaluation", ("loss", "score", "solved"), (2,)),
        series=series,
        chance_loss=float(_get(arrays, "chance_loss", NUMBER, 0)) if "chance_loss" in arrays else None,
        longest_lag=longest,
        roles=declarations.from_text(str(_get(arrays, "roles", TEXT, 0))) if "roles" in arrays else None,
    )


def _series(arrays: Mapping[str, NDArray], name: str, names: tuple[str, ...], ndims: tuple[int, ...]) -> Series:
    """``NAME/steps`` and ``NAME/values``, whose first axis is the steps and whose last is the
    names.
    """
    values = _get(arrays, f"{name}/values", NUMBER, *ndims).astype(np.float64)
    steps = _get(arrays, f"{name}/steps", NUMBER, 1)
    fits = len(values) == len(steps) and (values.ndim == 1 or values.shape[-1] == len(names))
    if not fits:
        shapes = f"{values.shape} for {len(steps)} steps and {len(names)} names"
        raise DamagedError(f"holds {printable(name, 80)}/values of shape {shapes}")
    # NumPy's type for an empty array is float.
    counts_up = not steps.size or (
        steps.dtype.kind in INTEGER and steps[0] >= 0 and steps[-1] < 2**53 and (steps[1:] > steps[:-1]).all()
    )
    if not counts_up:
        raise DamagedError(f"holds {printable(name, 80)}/steps that do not count up")
    return Series(names, steps.astype(np.int64), values)


def _get(arrays: Mapping[str, NDArray], name: str, kinds: str, *ndims: int) -> NDArray:
    """An array, checked for its kind and its number of axes."""
    if name not in arrays:
        raise DamagedError(f"holds no {printable(name, 80)}")
    array = arrays[name]
    if array.dtype.kind not in kinds or array.ndim not in ndims:
        raise DamagedError(f"holds {printable(name, 80)} with dtype {array.dtype} and {array.ndim} axes")
    return array
