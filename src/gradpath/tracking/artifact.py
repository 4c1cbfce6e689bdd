"""The door for what a store holds: the artifacts of a run, which anybody may have written, checked
before use.

Nothing here trusts a byte. What comes out of ``measurements`` and ``configuration`` has the names,
dtypes, shapes and sizes that the figures rely on; whatever else a file holds is one
``DamagedError`` that says what is wrong with it.
"""

import io
import math
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from gradpath.core.roles import Roles
from gradpath.schema.settings import fingerprint
from gradpath.schema.text import printable
from gradpath.tracking import declarations, store

LARGEST_ARRAYS = 2 << 30
"""Bytes of ``measurements.npz`` that are read. Ours lies uncompressed, so that a file never unfolds
in memory.
"""
LARGEST_CONFIG = 200_000
"""Bytes of ``config.yaml``, of which a real one has 3 000."""
SECTIONS = ("task", "cell", "init", "optimizer", "clip", "train")
INTEGER, NUMBER, TEXT = "iu", "iufb", "U"
"""Kinds of NumPy dtypes."""


class DamagedError(Exception):
    """An artifact does not hold what gradpath writes; the message says what is wrong, in a few
    words.
    """


@dataclass(frozen=True)
class Series:
    """One instrument's readings: ``values`` [probe, T, name] or [probe, name], ``steps`` of the
    probes, ``names``.
    """

    names: tuple[str, ...]
    steps: NDArray
    values: NDArray

    def column(self, name: str) -> NDArray:
        """[probe, T] or [probe] of one name."""
        return self.values[..., self.names.index(name)]


@dataclass(frozen=True)
class Measurements:
    """What ``measurements.npz`` holds; see ``Readings.arrays``."""

    lag: NDArray
    loss: Series
    evaluation: Series
    series: dict[str, Series]
    chance_loss: float
    longest_lag: int
    roles: Roles | None
    """What the cell declares of itself; None in what version 0.1 stored."""


def measurements(path: Path) -> Measurements:
    """Reads and checks ``measurements.npz``; raises DamagedError."""
    with _refusing(path.name):
        return _checked(_arrays(path))


def configuration(path: Path, identity: str) -> dict[str, Any]:
    """Reads and checks ``config.yaml``: the sections and keys that every run has, and that it is
    the configuration with that ``config_hash``; raises DamagedError.
    """
    with _refusing(path.name):
        with path.open("rb") as file:
            content = file.read(LARGEST_CONFIG + 1)
        if len(content) > LARGEST_CONFIG:
            raise DamagedError(f"is larger than {LARGEST_CONFIG} bytes")
        config = _plain(yaml.load(content.decode(), _Loader), "")
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


@contextmanager
def _refusing(name: str) -> Iterator[None]:
    """Whatever goes wrong is the file's fault: what decoders raise at a hostile file has no end
    (struct.error, RecursionError, MemoryError, …).
    """
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    except DamagedError as error:
        raise DamagedError(f"damaged artifact: {name} {error}") from None
    except Exception as error:
        raise DamagedError(f"damaged artifact: {name} cannot be read: {_error_text(error)}") from error


def _error_text(error: Exception) -> str:
    message = str(error).strip().split("\n")[0]
    return printable(f"{type(error).__name__}: {message}" if message else type(error).__name__, 200)


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """YAML without aliases: gradpath writes none, and a few lines of them unfold to any size."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise DamagedError("holds a YAML alias")
        return super().compose_node(parent, index)


def _plain(value: Any, key: str) -> Any:
    """A tree of dicts with text keys, lists, text, numbers, booleans and None, its text made
    printable.
    """
    if isinstance(value, dict):
        if unfit := next((k for k in value if not isinstance(k, str)), None):
            raise DamagedError(f"has the key {printable(unfit, 40)}, no text")
        return {printable(k): _plain(v, f"{key}.{k}") for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(item, key) for item in value]
    if isinstance(value, str):
        return printable(value, LARGEST_CONFIG)
    if value is None or isinstance(value, bool | int | float):
        return value
    raise DamagedError(f"holds a {type(value).__name__} at {printable(key[1:], 80)}")


def _arrays(path: Path) -> dict[str, NDArray]:
    """The arrays of an npz. Each header is held against the bytes that are there before memory is
    asked for, since a header of 80 bytes can declare an exabyte.
    """
    if path.stat().st_size > LARGEST_ARRAYS:
        raise DamagedError(f"is larger than {LARGEST_ARRAYS >> 30} GiB")
    arrays: dict[str, NDArray] = {}
    with _Listed(io.FileIO(path)) as file, zipfile.ZipFile(file) as archive:
        file.largest = LARGEST_ARRAYS
        members = archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise DamagedError("is compressed, which gradpath's are not")
        if sum(member.file_size for member in members) > path.stat().st_size:
            raise DamagedError("declares more than it holds")
        for member in members:
            name = member.filename.removesuffix(".npy")
            if name in arrays:
                raise DamagedError(f"holds {printable(name, 80)} twice")
            arrays[name] = _array(archive, member)
    return arrays


class _Listed(io.BufferedReader):
    """A file whose list of members must be short: ``zipfile`` keeps 500 bytes for each of a list's
    46.
    """

    largest = 1 << 20

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > self.largest:
            raise DamagedError("lists more arrays than gradpath writes")
        return super().read(size)


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> NDArray:
    name = printable(member.filename, 80)
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        elif version == (2, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
        else:
            raise DamagedError(f"holds {name} in a format that gradpath does not write")
        if dtype.kind not in NUMBER + TEXT:
            raise DamagedError(f"holds {name} of dtype {printable(dtype, 80)}")
        content = file.read()
    if any(n < 0 for n in shape) or math.prod(shape) * dtype.itemsize != len(content):
        raise DamagedError(f"holds {name} with {len(content)} bytes for shape {printable(shape, 80)}")
    flat = np.frombuffer(content, dtype) if content else np.empty(0, dtype)
    return flat.reshape(shape, order="F" if fortran else "C").astype(dtype.newbyteorder("="))


def _checked(arrays: Mapping[str, NDArray]) -> Measurements:
    """The schema of the artifact."""
    version = _get(arrays, "schema_version", INTEGER, 0)
    if version != store.SCHEMA_VERSION:
        raise DamagedError(f"has schema version {version}; this gradpath reads {store.SCHEMA_VERSION}")
    lag = _get(arrays, "lag", INTEGER, 1)
    longest = _get(arrays, "longest_lag", INTEGER, 0)
    if not lag.size or not np.array_equal(lag, np.arange(lag.size)[::-1]):
        raise DamagedError("holds a lag that does not count down to 0")
    if not 0 <= longest <= lag.size:
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
        chance_loss=float(_get(arrays, "chance_loss", NUMBER, 0)),
        longest_lag=int(longest),
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
    # An empty array of steps is one of floats: NumPy's choice.
    counts_up = not steps.size or (
        steps.dtype.kind in INTEGER and steps[0] >= 0 and steps[-1] < 2**53 and (steps[1:] > steps[:-1]).all()
    )
    if not counts_up:
        raise DamagedError(f"holds {printable(name, 80)}/steps that do not count up")
    return Series(names, steps.astype(np.int64), values)


def _get(arrays: Mapping[str, NDArray], name: str, kinds: str, *ndims: int) -> NDArray:
    """An array of the kind and the number of axes that it must have."""
    if name not in arrays:
        raise DamagedError(f"holds no {printable(name, 80)}")
    array = arrays[name]
    if array.dtype.kind not in kinds or array.ndim not in ndims:
        raise DamagedError(f"holds {printable(name, 80)} with dtype {array.dtype} and {array.ndim} axes")
    return array
