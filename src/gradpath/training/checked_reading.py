"""What an instrument has returned, checked before it is stored."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from gradpath.core.trace import Measurement, Trace
from gradpath.instruments import Instrument

LONGEST_KEY = 238
"""MLflow takes 250 characters, and a curve over the lag may get ``_last_finite``."""
KEYS = f"at most {LONGEST_KEY} letters, digits, _ - . / : and spaces, and no empty name beside a /"


def checked(name: str, instrument: Instrument, read: Any, trace: Trace, first: bool) -> Measurement:
    """A reading of the instrument ``name``, its ``first`` or not; raises TypeError where it is no
    measurement of numbers, ValueError where its shape is not that of its names or MLflow refuses a
    key of its ``metric``.
    """
    if not isinstance(read, Measurement):
        raise TypeError(f"instruments.{name}: measure must return a Measurement, it returned {type(read).__name__}")
    if not read.names or len(set(read.names)) < len(read.names):
        raise ValueError(f"instruments.{name}: names are {read.names}; there must be one, and each once")
    values: Any = read.values
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiub":
        kind = f"an array of {values.dtype}" if isinstance(values, np.ndarray) else type(values).__name__
        raise TypeError(f"instruments.{name}: values must be a NumPy array of real numbers, they are {kind}")
    shape = values.shape
    if instrument.per_timestep and shape != (expected := (trace.tape.length, len(read.names))):
        raise ValueError(f"instruments.{name}: values of shape {shape}; per_timestep, they are (T, names) = {expected}")
    if len(shape) not in (1, 2) or shape[-1] != len(read.names):
        raise ValueError(
            f"instruments.{name}: values of shape {shape} with {len(read.names)} names; "
            "the last axis must be that of the names"
        )
    if first:
        _check_keys(name, instrument, read.names)
    return read


def _check_keys(name: str, instrument: Instrument, columns: Sequence[str]) -> None:
    for column in columns:
        key: Any = instrument.metric(column)
        if key is not None and not valid_key(key):
            raise ValueError(f"instruments.{name}: metric({column!r}) is {key!r}; MLflow takes {KEYS}")


def valid_key(key: Any) -> bool:
    """Does MLflow take this as the key of a metric?"""
    if not isinstance(key, str) or not re.fullmatch(r"[\w.\-/ :]+", key) or len(key) > LONGEST_KEY:
        return False
    return key.strip() != "" and not {"", ".", ".."} & set(key.split("/"))
