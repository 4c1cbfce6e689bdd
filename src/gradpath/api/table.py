"""Readings of runs as tidy tables, with a row for each number."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gradpath.api.columns import Entry, entries
from gradpath.api.reading import Reading, reading
from gradpath.schema.settings import ConfigError

if TYPE_CHECKING:
    from pandas import DataFrame

    from gradpath.tracking.stored_run import Run

WHOLE_NUMBERS = ("layer", "index", "loss_t")
"""Columns of whole numbers in which values may be missing."""


def table(run: "Run", instrument: str, settings: dict[str, Any] | None = None) -> "DataFrame":
    """One instrument's readings, with ``settings`` as further columns after the seed; ``loss`` and
    ``evaluation`` are accepted as instruments too. KeyError where there are no readings.
    """
    from pandas import DataFrame

    labels, numbers = _training(run, instrument) or _readings(run, reading(run, instrument))
    rows = len(next(iter(numbers.values())))
    run_columns = {"arm": run.arm, "seed": run.seed, **(settings or {})}
    columns = {name: _repeated(value, rows) for name, value in run_columns.items()} | labels | numbers
    frame = DataFrame(columns)
    return frame.astype({name: "Int64" for name in WHOLE_NUMBERS if name in frame})


def tables(runs: Sequence["Run"], instrument: str) -> "DataFrame":
    """The tables of several runs, one below the other, with a column for every setting in which
    runs of the same arm differ, except the seed.
    """
    import pandas

    if not runs:
        raise ConfigError("no runs to read")
    differing = settings_apart(runs)
    parts = [table(run, instrument, settings) for run, settings in zip(runs, differing, strict=True)]
    return pandas.concat(parts, ignore_index=True)


def settings_apart(runs: Sequence["Run"]) -> list[dict[str, Any]]:
    """For each run its value of every setting (``cell.forget_bias``) in which runs of one arm
    differ, without the seed and the instruments.
    """
    flat = [dict(_settings(run.config)) for run in runs]
    by_arm: dict[str, list[dict[str, Any]]] = {}
    for run, settings in zip(runs, flat, strict=True):
        by_arm.setdefault(run.arm, []).append(settings)
    keys = {
        key
        for members in by_arm.values()
        for key in set().union(*members)
        if len({repr(settings.get(key)) for settings in members}) > 1
    }
    return [{key: settings.get(key) for key in sorted(keys)} for settings in flat]


def _settings(tree: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if f"{path}{key}" in ("seed", "instruments"):
            continue
        if isinstance(value, dict):
            yield from _settings(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def _training(run: "Run", name: str) -> tuple[dict[str, NDArray], dict[str, NDArray]] | None:
    """Loss and evaluations over training."""
    if name == "loss":
        return {"step": run.loss.steps}, {"loss": run.loss.values}
    if name == "evaluation":
        loss, score, solved = run.evaluation.values.T
        return {"step": run.evaluation.steps}, {"loss": loss, "score": score, "solved": solved.astype(bool)}
    return None


def _readings(run: "Run", read: Reading) -> tuple[dict[str, NDArray], dict[str, NDArray]]:
    """The columns of labels and those of numbers, over every step, every timestep or row, and every
    entry, in this order.
    """
    rows = entries(read.instrument, read.names, run.roles)
    values = read.values if read.values.ndim == 3 else read.values[:, None]
    steps, times, count = len(values), values.shape[1], len(rows)
    labels = {name: np.tile(_objects([row.labels[name] for row in rows]), steps * times) for name in rows[0].labels}
    if read.lag is not None:
        labels["lag"] = np.tile(np.repeat(read.lag, count), steps)
    labels["step"] = np.repeat(read.steps, times * count)
    numbers = {name: _numbers(values, rows, name) for name in rows[0].places}
    return labels, numbers


def _numbers(values: NDArray, rows: Sequence[Entry], column: str) -> NDArray:
    """One column of numbers, NaN where an entry has none."""
    absent = np.full(values.shape[:2], np.nan)
    places = [row.places.get(column) for row in rows]
    return np.stack([absent if place is None else values[..., place] for place in places], axis=-1).ravel()


def _objects(values: Sequence[Any]) -> NDArray:
    """Labels as an array; whole numbers stay numbers where none is missing."""
    if all(type(value) is int for value in values):
        return np.array(values)
    array = np.empty(len(values), object)
    array[:] = values
    return array


def _repeated(value: Any, rows: int) -> NDArray:
    array = _objects([value])
    return np.repeat(array, rows)
