"""A loop over time whose body is recorded once and replayed in compiled code, where that is built.

At the sizes of recurrent networks a NumPy call costs more in Python than in arithmetic. A body that
calls ufuncs alone, and the same ones at every timestep, is a list of (inner loop, addresses) in
which only the addresses move, by one row a step. :class:`Loop` records that list by running the
body once on arrays that take note of their ufunc calls, and ``_replay.c`` goes through it for every
t, calling NumPy's own inner loops. So the body stays plain NumPy, is written once, and gives the
same bits with the compiled module and without; a recording is trusted only after it has given the
bits of the body itself. A body that cannot be recorded, because it calls anything but ufuncs or
branches on the data, runs in Python.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from contextvars import copy_context
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradpath.engine import compiled
from gradpath.engine.buffer_pool import Memory
from gradpath.engine.partition import halves
from gradpath.engine.recording import ARRAYS, Body, CannotRecordError, recorded

__all__ = ["Body", "Loop", "Loops", "given_up", "repeated"]

_replay = compiled.CHOICE.module


class Loop:
    """``body([a[t] for a in arrays])`` for one t after the other.

    ``arrays`` have the time axis in front (what is the same at every t is broadcast along it);
    ``guarded`` are the indices of those whose rows (…, H) must stay between two bounds. Recorded at
    step ``t``. Raises IndexError where an array has no such step, ReplayError where
    ``GRADPATH_REPLAY`` is not to be had.
    """

    def __init__(self, body: Body, arrays: Sequence[NDArray], t: int, guarded: Sequence[int] = ()) -> None:
        compiled.check()
        _check_steps(arrays, t, t + 1)
        self._body, self._guarded = body, guarded
        self.turn: Lock | None = None
        self._recording: Any = None
        self.why = ""
        """Why it runs in Python, where it does."""
        if _replay is None:
            self.why = compiled.CHOICE.why or "not built"
            return
        try:
            self._recording = self._record(arrays, t)
        except CannotRecordError as error:
            self.why = f"{compiled.name(body, error)}: {error}"
            compiled.refuse(self.why)

    @property
    def calls(self) -> int | None:
        """Calls of one step, where it runs without Python; None where it does not."""
        return None if self._recording is None else len(self._recording)

    def run(
        self, arrays: Sequence[NDArray], first: int, last: int, low: float = 0.0, high: float = np.inf
    ) -> tuple[int, bool]:
        """Runs t = first … towards ``last``, which is left out, or until the largest element of a
        guarded row is neither 0 nor within the bounds. Returns the t after the last one done, and
        whether all was within them. Raises IndexError, before anything is done, where an array has
        not so many steps.
        """
        why = self.why
        if self._recording is not None:
            try:
                with given_up(self.turn):
                    return _replay.run(self._recording, (*arrays,), first, last, low, high)
            except _replay.UnprovedError as error:
                why = f"{compiled.name(self._body)}: {error}"
                compiled.refuse(why)
        compiled.note(why)
        _check_steps(arrays, first, last)
        t, inside = first, True
        while t != last and inside:
            rows = [array[t] for array in arrays]
            self._silently(rows)
            guarded = [np.abs(rows[index]).max(axis=-1, initial=0) for index in self._guarded]
            if guarded:
                largest = np.max(guarded, axis=0)
                inside = bool((((largest >= low) & (largest <= high)) | (largest == 0)).all())
            t += 1 if last > first else -1
        return t, inside

    def _silently(self, rows: Sequence[NDArray]) -> None:
        """Runs the body as compiled code would, which warns of nothing."""
        with np.errstate(all="ignore"):
            self._body(rows)

    def _record(self, arrays: Sequence[NDArray], t: int) -> Any:
        """The recording of step ``t``, which gives the bits of the body; raises CannotRecordError."""
        if len(arrays) > ARRAYS:
            raise CannotRecordError(f"has more than {ARRAYS} arrays")
        if any(array.ndim == 1 for array in arrays):
            raise CannotRecordError("has rows that are single numbers")
        rows = [array[t] for array in arrays]
        before = [row.copy() for row in rows]

        def restore() -> None:
            for row, value in zip(rows, before, strict=True):
                if row.flags.writeable:
                    row[...] = value

        def result(work: Callable[[], Any]) -> list[bytes]:
            """What some work makes of the rows, which then hold what they did before."""
            try:
                work()
                return [row.tobytes() for row in rows]
            finally:
                restore()

        try:
            calls = recorded(self._body, rows, self._guarded)
            recording = _replay.record(calls.ufuncs, calls.table, (*arrays,), t, calls.kept)
            restore()  # a body may have computed behind the watched arrays' back, and is found out now
            expected = result(lambda: self._silently(rows))
            found = result(lambda: _replay.run(recording, (*arrays,), t, t + 1, 0.0, np.inf))
        except ValueError as error:  # of the border: NumPy lets happen what it does not
            raise CannotRecordError(str(error)) from error
        finally:
            restore()
        if found != expected:
            raise CannotRecordError("computes what its calls of ufuncs do not")
        return recording


def _check_steps(arrays: Sequence[NDArray], first: int, last: int) -> None:
    """Raises IndexError where one of the arrays has not all the steps from ``first`` towards
    ``last``.
    """
    for index, array in enumerate(arrays):
        if not isinstance(array, np.ndarray) or not array.ndim:
            raise TypeError(f"arrays[{index}]: must be an array with a time axis, not {type(array).__name__}")
    steps = min((len(array) for array in arrays), default=0)
    lowest, highest = (first, last - 1) if last > first else (last + 1, first)
    if first != last and not 0 <= lowest <= highest < steps:
        raise IndexError(f"t = {lowest} … {highest}: the arrays have {steps} steps")


class Loops:
    """The recorded loops of one cell, by name and by the layout of their arrays, and the memory that they run in; one
    thread's alone.
    """

    def __init__(self) -> None:
        self.memory = Memory()
        self.turn: Lock | None = None
        """Where several threads train at once, the lock that the one of them holds that computes in Python. Left to
        share the interpreter they would hand it to and fro at every NumPy call, which costs more than it gains."""
        self.cuts = False
        """Are large passes cut in halves, whoever computes them?"""
        self.pool: Executor | None = None
        """Threads for the halves of a pass but the first, if there are any."""
        self._known: dict[tuple[str, bytes], Loop] = {}

    def share(self, others: "Loops") -> None:
        """Runs in the memory, and with the threads, of another cell."""
        self.memory, self.turn, self.cuts, self.pool = others.memory, others.turn, others.cuts, others.pool

    def halves(self, length: int, multiply_adds: int, multiple: int = 1) -> list[slice]:
        """The parts of a pass (:func:`gradpath.engine.partition.halves`), one if it is not to be cut."""
        return halves(length, multiply_adds, multiple) if self.cuts else [slice(0, length)]

    def each(self, work: Callable[[int, slice], None], parts: Sequence[slice]) -> None:
        """``work(index, part)`` of every part; in several threads, if there are, and then it may not use ``memory``."""
        if self.pool is None:
            for index, part in enumerate(parts):
                work(index, part)
            return
        first, *others = enumerate(parts)
        under_way = [self.pool.submit(copy_context().run, work, index, part) for index, part in others]
        try:
            work(*first)
        finally:
            for one in under_way:
                one.result()

    def __iter__(self) -> Iterator[tuple[str, Loop]]:
        """Name and loop, of every layout."""
        return iter((name, loop) for (name, _), loop in self._known.items())

    def get(self, name: str, body: Body, arrays: Sequence[NDArray], t: int, guarded: Sequence[int] = ()) -> Loop:
        """The loop of that name over arrays of this layout, recorded at step ``t`` when it is first asked for. Of one
        name, ``body`` must always do the same.
        """
        recordable = _replay is not None and len(arrays) <= ARRAYS
        key = (name, _replay.layout(tuple(arrays)) if recordable else b"")
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = Loop(body, arrays, t, guarded)
        found.turn = self.turn
        return found


def repeated(array: NDArray, steps: int) -> NDArray:
    """The same contiguous array, not a copy, at every t: (steps, …)."""
    return np.ndarray((steps, *array.shape), array.dtype, array, 0, (0, *array.strides))


@contextmanager
def given_up(turn: "Lock | None") -> Iterator[None]:
    """Lets another thread have its turn meanwhile."""
    if turn is None:
        yield
        return
    turn.release()
    try:
        yield
    finally:
        turn.acquire()
