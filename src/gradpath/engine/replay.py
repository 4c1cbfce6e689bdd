"""A loop over time whose body is recorded once and replayed in compiled code, where that is built.

At the sizes of recurrent networks a NumPy call costs more in Python than in arithmetic. A body that calls ufuncs alone,
and the same ones at every timestep, is a list of (inner loop, addresses) in which only the addresses move, by one row a
step. :class:`Loop` records that list by running the body once on arrays that take note of their ufunc calls, and
``_replay.c`` goes through it for every t, calling NumPy's own inner loops. So the body stays plain NumPy, is written
once, and gives the same bits with the compiled module and without; a recording is trusted only after it has given the
bits of the body itself. A body that cannot be recorded, because it calls anything but ufuncs or branches on the data,
runs in Python.
"""

from collections.abc import Callable, Sequence
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradpath.engine.partition import released

try:
    from gradpath.engine import _replay  # type: ignore[attr-defined]
except ImportError:  # not compiled on this machine
    _replay = None

ARGS, OUTER, CORE, ARRAYS = 4, 3, 3, 64
"""As in ``_replay.c``: a call's arguments, outer loops and core dimensions, and the arrays of a step."""

Body = Callable[[Sequence[Any]], None]
Region = tuple[int, int, int]
"""First byte, byte after the last, index of the array."""


class Loop:
    """``body([a[t] for a in arrays])`` for one t after the other.

    ``arrays`` have the time axis in front (what is the same at every t is broadcast along it); ``guarded`` are the
    indices of those whose rows (…, H) must stay between two bounds.
    """

    def __init__(self, body: Body, arrays: Sequence[NDArray], t: int, guarded: Sequence[int] = ()) -> None:
        self.body, self._guarded = body, guarded
        self.python_lock: Lock | None = None
        self._kept: list[NDArray] = []
        self._calls = self._record(arrays, t) if _replay is not None and len(arrays) <= ARRAYS else None

    @property
    def calls(self) -> int | None:
        """Calls of one step, where it runs without Python; None where it does not."""
        return None if self._calls is None else len(self._calls)

    def run(
        self, arrays: Sequence[NDArray], first: int, last: int, low: float = 0.0, high: float = np.inf
    ) -> tuple[int, bool]:
        """Runs t = first … towards ``last``, which is left out, or until the largest element of a guarded row is
        neither 0 nor within the bounds. Returns the t after the last one done, and whether all was within them.
        """
        if self._calls is not None:
            return self._replay(self._calls, arrays, first, last, low, high)
        t, inside = first, True
        while t != last and inside:
            rows = [array[t] for array in arrays]
            self._silently(rows)
            guarded = [np.abs(rows[index]).max(axis=-1) for index in self._guarded]
            if guarded:
                largest = np.max(guarded, axis=0)
                inside = bool((((largest >= low) & (largest <= high)) | (largest == 0)).all())
            t += 1 if last > first else -1
        return t, inside

    def _silently(self, rows: Sequence[NDArray]) -> None:
        """Runs the body as compiled code would, which warns of nothing."""
        with np.errstate(all="ignore"):
            self.body(rows)

    def _replay(
        self, calls: NDArray, arrays: Sequence[NDArray], first: int, last: int, low: float, high: float
    ) -> tuple[int, bool]:
        with released(self.python_lock):
            return _replay.run(calls, (*arrays, *self._kept), len(arrays), first, last, low, high)

    def _record(self, arrays: Sequence[NDArray], t: int) -> NDArray | None:
        """The calls of one step as int64 (calls, fields), or None where the body cannot be replayed."""
        rows = [array[t] for array in arrays]
        before = [row.copy() for row in rows]

        def restored() -> list[bytes]:
            """What the rows hold, which then hold what they did before."""
            found = [row.tobytes() for row in rows]
            for row, value in zip(rows, before, strict=True):
                row[...] = value
            return found

        notes = _Notes(rows)
        try:
            self.body([notes.watched(row) for row in rows])
            if self._guarded:
                notes.guard([rows[index] for index in self._guarded])
        except _CannotRecordError:
            restored()
            return None
        self._kept = notes.kept
        calls = np.concatenate(notes.calls)
        restored()  # a body may have computed behind the watched arrays' back, and is found out now
        self._silently(rows)
        expected = restored()
        self._replay(calls, arrays, t, t + 1, 0.0, np.inf)
        return calls if restored() == expected else None


def layout(arrays: Sequence[NDArray]) -> bytes:
    """What a recording depends on of the arrays, beside what they hold: their types, shapes, strides, and where they
    overlap. Nothing where nothing is recorded.
    """
    if _replay is None or len(arrays) > ARRAYS:
        return b""
    given = tuple(arrays)
    return _replay.layout(given) + _replay.aliasing(given)


class _CannotRecordError(Exception):
    """The body does what a list of ufunc calls cannot say."""


class _Watched(np.ndarray):
    """An array that takes note of the ufuncs that are called on it instead of computing."""

    notes: "_Notes"

    def __array_finalize__(self, other: Any) -> None:
        self.notes = getattr(other, "notes", None)  # type: ignore[assignment]

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        out = options.pop("out", (None,))[0]
        if method != "__call__" or options or ufunc.nout != 1:
            raise _CannotRecordError
        return self.notes.call(ufunc, inputs, out)

    def __array_function__(self, *_: Any) -> Any:
        raise _CannotRecordError

    def __setitem__(self, key: Any, value: Any) -> None:
        self.notes.call(np.positive, (value,), self[key])

    def __bool__(self) -> bool:
        raise _CannotRecordError


class _Notes:
    """The calls of one step, and the memory that they use beside the arrays': intermediate results and constants."""

    def __init__(self, rows: Sequence[NDArray]) -> None:
        self.calls: list[NDArray] = []
        self.kept: list[NDArray] = []
        self._regions: list[Region] = [(*np.lib.array_utils.byte_bounds(row), i) for i, row in enumerate(rows)]
        self._starts = [row.ctypes.data for row in rows]

    def watched(self, array: NDArray) -> NDArray:
        view = array.view(_Watched)
        view.notes = self
        return view

    def _keep(self, array: NDArray) -> NDArray:
        self._regions.append((*np.lib.array_utils.byte_bounds(array), len(self._starts)))
        self._starts.append(array.ctypes.data)
        self.kept.append(array)
        return array

    def call(self, ufunc: np.ufunc, inputs: Sequence[Any], out: NDArray | None) -> NDArray:
        """Takes note of one call; its result is ``out``, or memory that is used again at every step."""
        dtypes = {x.dtype for x in (*inputs, out) if isinstance(x, np.ndarray)}
        if len(dtypes) != 1 or not isinstance(out, np.ndarray | None):
            raise _CannotRecordError
        (dtype,) = dtypes
        operands = [
            x.view(np.ndarray) if isinstance(x, np.ndarray) else self._keep(np.asarray(x, dtype)) for x in inputs
        ]
        core = 2 if ufunc is np.matmul else 1 if ufunc is np.vecdot else 0
        if (ufunc.signature is not None and not core) or any(x.ndim < core for x in operands):
            raise _CannotRecordError
        given = [out] if out is not None else []
        shape = np.broadcast_shapes(
            *(x.shape[: x.ndim - core] for x in operands), *(x.shape[: x.ndim - core // 2 * 2] for x in given)
        )
        of_result = shape + ((operands[0].shape[-2], operands[1].shape[-1]) if core == 2 else ())
        if out is None:
            result = self._keep(np.empty(of_result, dtype))
        else:
            result = out.view(np.ndarray)
            if result.shape != of_result:
                raise _CannotRecordError
        for x in operands:
            same = x.ctypes.data == result.ctypes.data and x.strides == result.strides and not core
            if not same and np.shares_memory(x, result):
                raise _CannotRecordError
        self._note(ufunc, dtype, core, shape, [*operands, result])
        return self.watched(result)

    def _note(
        self, ufunc: np.ufunc, dtype: np.dtype, core: int, shape: tuple[int, ...], operands: list[NDArray]
    ) -> None:
        signature = dtype.char * ufunc.nin + "->" + dtype.char
        if dtype.char not in "fd" or signature not in ufunc.types or len(operands) > ARGS:
            raise _CannotRecordError
        loops = len(shape)
        strides = [np.broadcast_to(x, shape + x.shape[x.ndim - core :]).strides[:loops] for x in operands[:-1]]
        sizes, moves = _coalesced(shape, [*strides, operands[-1].strides[:loops]])
        inner_size, inner = (sizes.pop(), moves.pop()) if sizes else (1, [0] * len(operands))
        if core == 2:
            left, right, result = operands
            of_core = [left.shape[-2], left.shape[-1], right.shape[-1]]
            steps = [*inner, *left.strides[-2:], *right.strides[-2:], *result.strides[-2:]]
        elif core == 1:
            of_core = [operands[0].shape[-1]]
            steps = [*inner, operands[0].strides[-1], operands[1].strides[-1]]
        else:
            of_core, steps = [], inner
        self._pack(
            _replay.loop(ufunc, ufunc.types.index(signature)), sizes, moves, [inner_size, *of_core], steps, operands
        )

    def guard(self, rows: Sequence[NDArray]) -> None:
        """Takes note that the largest element of each row is to be looked at."""
        *outer, width = rows[0].shape
        if len(outer) > 2 or any(row.strides[-1] != row.itemsize for row in rows):
            raise _CannotRecordError
        moves = [[row.strides[axis] for row in rows] for axis in range(len(outer))]
        self._pack((0, rows[0].itemsize), outer, moves, [width], [], rows)

    def _pack(
        self,
        loop: tuple[int, int],
        sizes: Sequence[int],
        moves: Sequence[Sequence[int]],
        dims: Sequence[int],
        steps: Sequence[int],
        operands: Sequence[NDArray],
    ) -> None:
        if len(sizes) > OUTER or len(operands) > ARGS or len(self._starts) > ARRAYS:
            raise _CannotRecordError
        fields = [*loop, len(operands), *_filled(sizes, OUTER, 1), *_filled(dims, 1 + CORE, 0)]
        fields += _filled(steps, 3 * ARGS, 0)
        for index in range(ARGS):
            if index < len(operands):
                fields += [*self._place(operands[index]), *_filled([move[index] for move in moves], OUTER, 0)]
            else:
                fields += [0] * (2 + OUTER)
        self.calls.append(np.array([fields], np.int64))

    def _place(self, array: NDArray) -> tuple[int, int]:
        """The array that an operand lies in, and where in its row, in bytes."""
        low, high = np.lib.array_utils.byte_bounds(array)
        for start, stop, index in self._regions:
            if start <= low and high <= stop:
                return index, array.ctypes.data - self._starts[index]
        raise _CannotRecordError


def _coalesced(shape: tuple[int, ...], strides: list[tuple[int, ...]]) -> tuple[list[int], list[list[int]]]:
    """Sizes and strides of the loops, outermost first, with neighbours that can run as one made one."""
    order = sorted((axis for axis, size in enumerate(shape) if size != 1), key=lambda axis: -abs(strides[-1][axis]))
    sizes: list[int] = []
    moves: list[list[int]] = []
    for axis in order:
        size, move = shape[axis], [stride[axis] for stride in strides]
        if sizes and moves[-1] == [m * size for m in move]:
            sizes[-1], moves[-1] = sizes[-1] * size, move
        else:
            sizes.append(size)
            moves.append(move)
    return sizes, moves


def _filled(values: Sequence[int], size: int, with_: int) -> list[int]:
    return [*values, *[with_] * (size - len(values))]
