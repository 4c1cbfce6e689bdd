"""Checks that a unit has not changed its arguments: all arrays of a record, by their place in
it.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray


def arrays(value: Any, path: str) -> Iterator[tuple[str, NDArray]]:
    """(place, array) of every array in a record, such as ``trace.tape.layers[0].gates``."""
    if isinstance(value, np.ndarray):
        yield path, value
    elif is_dataclass(value):
        for field in fields(value):
            yield from arrays(getattr(value, field.name), f"{path}.{field.name}")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from arrays(item, f"{path}[{key!r}]")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from arrays(item, f"{path}[{index}]")


@contextmanager
def unchanged(function: str, **records: Any) -> Iterator[None]:
    """Fails, and says where, if the function has written to a record."""
    original = {path: array.copy() for name, record in records.items() for path, array in arrays(record, name)}
    yield
    current = {path: array for name, record in records.items() for path, array in arrays(record, name)}
    written = [path for path, array in original.items() if path not in current or differ(array, current[path])]
    if written or len(current) != len(original):
        places = ", ".join(written[:5]) or "the number of its arrays"
        pytest.fail(f"{function} has written to what it was given: {places}; it must make new arrays")


def differ(left: NDArray, right: NDArray) -> bool:
    """Do two arrays differ in type, shape or any bit?"""
    return left.dtype != right.dtype or left.shape != right.shape or left.tobytes() != right.tobytes()


def first_difference(left: Any, right: Any, path: str) -> str | None:
    """The place of the first difference between two records; None where all bits are equal."""
    one_side, other_side = dict(arrays(left, path)), dict(arrays(right, path))
    if one_side.keys() != other_side.keys():
        return path
    return next((place for place, array in one_side.items() if differ(array, other_side[place])), None)
