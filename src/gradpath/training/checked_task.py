"""Checks the declarations and the minibatches of a task where they enter, so that a fault in a
user's task becomes one line that names the task, what it returned and what is expected.
"""

import re
from collections.abc import Iterator
from numbers import Real
from typing import Any

import numpy as np
from numpy.random import Generator

from gradpath.core.losses import Loss
from gradpath.core.tape import Batch, Tape
from gradpath.schema.discovery import unit_name
from gradpath.schema.settings import ConfigError
from gradpath.schema.text import printable
from gradpath.tasks import Task

NUMBERS, INTEGERS, BOOL = ("fiu", "numbers"), ("iu", "integers, the symbols"), ("b", "bool")
"""NumPy's kinds of types, and their names in messages."""
NAME = 100
"""Largest number of characters of a name that a store accepts."""


def minibatch(task: Task, rng: Generator, sequences: int) -> Batch:
    """A minibatch from ``task.sample``; raises ConfigError where it is no minibatch of this
    task.
    """
    batch = task.sample(rng, sequences)
    if not isinstance(batch, Batch):
        raise _refusal(task, f"sample returned {type(batch).__name__}; expected: a Batch")
    for fault in _faults(task, batch, sequences):
        raise _refusal(task, f"sample returned {fault}")
    return batch


def scored(task: Task, tape: Tape) -> float:
    """The score of a forward pass by ``task.score``; raises ConfigError where it is no number."""
    value = task.score(tape)
    if not isinstance(value, Real):
        raise _refusal(task, f"score returned {printable(repr(value), NAME)}; expected: a number")
    return float(value)


def check_task(task: Task) -> None:
    """Raises ConfigError where no network can be built or judged by the declarations of a task."""
    rules = {
        "loss": (isinstance(getattr(task, "loss", None), Loss), "a Loss, such as Loss.squared_error"),
        "sizes": (_is_pair(task.sizes, 1), "two whole numbers ≥ 1, inputs and outputs"),
        "timesteps": (_is_count(task.timesteps, 1), "a whole number ≥ 1"),
        "chance_loss": (_is_finite(task.chance_loss), "a finite number"),
        "lags": (_has_lags(task), "two whole numbers from 0 to timesteps, the smaller first"),
        "solved_below": (_is_finite(getattr(task, "solved_below", None)), "a finite number"),
        "metric": (
            _is_name(getattr(task, "metric", None)),
            f"a name of at most {NAME} letters, digits, spaces, _ . or -",
        ),
    }
    for name, (fits, expected) in rules.items():
        if not fits:
            raise _refusal(task, f"{name} is {printable(repr(getattr(task, name, None)), NAME)}; expected: {expected}")


def _faults(task: Task, batch: Batch, sequences: int) -> Iterator[str]:
    """What is wrong with a minibatch; the caller reports the first fault."""
    inputs, outputs = task.sizes
    rows = (task.timesteps, sequences)
    symbols = task.loss is Loss.cross_entropy
    yield from _wrong_array("inputs", batch.inputs, NUMBERS, "(T, B, I)", (*rows, inputs))
    yield from _wrong_array("mask", batch.mask, BOOL, "(T, B)", rows)
    if symbols:
        yield from _wrong_array("targets", batch.targets, INTEGERS, "(T, B)", rows)
    else:
        yield from _wrong_array("targets", batch.targets, NUMBERS, "(T, B, O)", (*rows, outputs))
    if not batch.mask.any():
        yield "a mask that is False everywhere; expected: True where a position is scored"
    if not np.isfinite(batch.inputs).all():
        yield "inputs that are not all finite"
    # Targets of a timestep that is scored nowhere are never read.
    targets = batch.targets[batch.mask.any(axis=1)]
    if not np.isfinite(targets).all():
        yield "targets that are not all finite"
    if symbols and not (targets.min() >= 0 and targets.max() < outputs):
        yield (
            f"targets from {targets.min()} to {targets.max()}; expected: 0 to {outputs - 1}, "
            f"since sizes says that there are {outputs} outputs"
        )


def _wrong_array(name: str, array: Any, kind: tuple[str, str], axes: str, shape: tuple[int, ...]) -> Iterator[str]:
    """Reports that a value is no array, or an array of another type or shape."""
    letters, words = kind
    if not isinstance(array, np.ndarray):
        yield f"{name} of type {type(array).__name__}; expected: a NumPy array of {words}"
    elif array.dtype.kind not in letters:
        yield f"{name} of dtype {array.dtype}; expected: {words}"
    elif array.shape != shape:
        yield f"{name} of shape {array.shape}; expected: {axes} = {shape}"


def _refusal(task: Task, fault: str) -> ConfigError:
    return ConfigError(f"task={unit_name(task)}: {fault}")


def _is_count(value: Any, least: int) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and int(value) >= least


def _is_pair(value: Any, least: int) -> bool:
    return isinstance(value, tuple | list) and len(value) == 2 and all(_is_count(number, least) for number in value)


def _has_lags(task: Task) -> bool:
    return _is_count(task.timesteps, 1) and _is_pair(task.lags, 0) and task.lags[0] <= task.lags[1] <= task.timesteps


def _is_finite(value: Any) -> bool:
    return isinstance(value, Real) and bool(np.isfinite(float(value)))


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= NAME and re.fullmatch(r"[\w .-]+", value) is not None
