"""A loop over time whose body is recorded once and replayed in compiled code, where that is built.

At the sizes of recurrent networks a NumPy call costs more in Python than in arithmetic. A body that
calls ufuncs alone, and the same ones at every timestep, is a list of (inner loop, addresses) in
which only the addresses move, by one row a step. :class:`Loop` records that list by running the
body once on arrays that record their ufunc calls, and ``_replay.c`` goes through it for every t,
calling NumPy's own inner loops. So the body is plain NumPy, is written once, and gives the same
bits with and without the compiled module; a recording is used only after it has given the bits of
the body itself. A body that cannot be recorded, because it calls anything but ufuncs or
branches on the data, runs in Python.
"""

from collections.abc import Callable, Sequence
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradpath.engine import compiled
from gradpath.engine.partition import released
from gradpath.engine.recording import ARRAYS, Body, CannotRecordError, recorded

__all__ = ["Body", "Loop", "layout"]

_replay = compiled.CHOICE.module


class Loop:
    """``body([a[t] for a in arrays])`` for one t after the other.

    ``arrays`` have the time axis in front (constant ones are broadcast along it); ``guarded`` are
    the indices of the arrays whose rows (…, H) must stay between two bounds. Recorded at step
    ``t``. Raises IndexError where an array has no such step, ReplayError where the loop cannot run
    as ``GRADPATH_REPLAY`` asks.
    """

    def __init__(self, body: Body, arrays: Sequence[NDArray], t: int, guarded: Sequence[int] = ()) -> None:
        compiled.check()
        _check_steps(arrays, t, t + 1)
        self.body, self._guarded = body, guarded
        self.python_lock: Lock | None = None
        self._recording: Any = None
        self.reason = ""
        """The reason for which the loop runs in Python; empty if it runs compiled."""
        if _replay is None:
            self.reason = compiled.CHOICE.reason or "not built"
            return
        try:
            self._recording = self._record(arrays, t)
        except CannotRecordError as error:
            self.reason = f"{compiled.name(body, error)}: {error}"
            compiled.refuse(self.reason)

    @property
    def calls(self) -> int | None:
        """Number of calls of one step; None where the loop runs in Python."""
        return None if self._recording is None else len(self._recording)

    def run(
        self, arrays: Sequence[NDArray], first: int, last: int, low: float = 0.0, high: float = np.inf
    ) -> tuple[int, bool]:
        """Runs t = first, … up or down to ``last``, which is excluded, or until the largest element
        of a guarded row is neither 0 nor within the bounds. Returns the t after the last step done,
        and whether all rows were within the bounds. Raises IndexError, before anything is done,
        where an array has too few steps.
        """
        reason = self.reason
        if self._recording is not None:
            try:
                with released(self.python_lock):
                    return _replay.run(self._recording, (*arrays,), first, last, low, high)
            except _replay.UnprovedError as error:
                reason = f"{compiled.name(self.body)}: {error}"
                compiled.refuse(reason)
        compiled.note(reason)
        _check_steps(arrays, first, last)
        t, in_bounds = first, True
        while t != last and in_bounds:
            rows = [array[t] for array in arrays]
            self._silently(rows)
            guarded = [np.abs(rows[index]).max(axis=-1, initial=0) for index in self._guarded]
            if guarded:
                largest = np.max(guarded, axis=0)
                in_bounds = bool((((largest >= low) & (largest <= high)) | (largest == 0)).all())
            t += 1 if last > first else -1
        return t, in_bounds

    def _silently(self, rows: Sequence[NDArray]) -> None:
        """Runs the body without floating-point warnings, as the compiled code does."""
        with np.errstate(all="ignore"):
            self.body(rows)

    def _record(self, arrays: Sequence[NDArray], t: int) -> Any:
        """The recording of step ``t``, checked to give the bits of the body; or raises
        CannotRecordError.
        """
        if len(arrays) > ARRAYS:
            raise CannotRecordError(f"has more than {ARRAYS} arrays")
        if any(array.ndim == 1 for array in arrays):
            raise CannotRecordError("has rows that are single numbers")
        rows = [array[t] for array in arrays]
        initial = [row.copy() for row in rows]

        def restore() -> None:
            for row, value in zip(rows, initial, strict=True):
                if row.flags.writeable:
                    row[...] = value

        def result(work: Callable[[], Any]) -> list[bytes]:
            """The contents of the rows after ``work``; restores the rows."""
            try:
                work()
                return [row.tobytes() for row in rows]
            finally:
                restore()

        try:
            calls = recorded(self.body, rows, self._guarded)
            recording = _replay.record(calls.ufuncs, calls.table, (*arrays,), t, calls.kept)
            restore()  # undoes what the body computed without the recording arrays; the comparison detects it
            expected = result(lambda: self._silently(rows))
            replayed = result(lambda: _replay.run(recording, (*arrays,), t, t + 1, 0.0, np.inf))
        except ValueError as error:  # from _replay.c, which refuses some calls that NumPy allows
            raise CannotRecordError(str(error)) from error
        finally:
            restore()
        if replayed != expected:
            raise CannotRecordError("computes what its calls of ufuncs do not")
        return recording


def _check_steps(arrays: Sequence[NDArray], first: int, last: int) -> None:
    """Raises IndexError where one of the arrays lacks a step from ``first`` to before ``last``."""
    for index, array in enumerate(arrays):
        if not isinstance(array, np.ndarray) or not array.ndim:
            raise TypeError(f"arrays[{index}]: must be an array with a time axis, not {type(array).__name__}")
    steps = min((len(array) for array in arrays), default=0)
    lowest, highest = (first, last - 1) if last > first else (last + 1, first)
    if first != last and not 0 <= lowest <= highest < steps:
        raise IndexError(f"t = {lowest} … {highest}: the arrays have {steps} steps")


def layout(arrays: Sequence[NDArray]) -> bytes:
    """All that a recording depends on except the arrays' values: their types, shapes and strides,
    and which of them overlap. Empty where nothing is recorded.
    """
    if _replay is None or len(arrays) > ARRAYS:
        return b""
    rows = tuple(arrays)
    return _replay.layout(rows) + _replay.aliasing(rows)
