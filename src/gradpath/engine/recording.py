"""Records the NumPy calls of one timestep, for :mod:`gradpath.engine.replay`.

The body runs on arrays that compute nothing and record which ufunc is called on which arrays. The
result is a table of int64, one row for each call, with the layout of ``Fields`` in ``_replay.c``,
which checks it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

ARGS, OUTER, CORE, ARRAYS = 4, 3, 3, 64
"""Constants of ``_replay.c``: the arguments, outer loops and core dimensions of a call, and the
arrays of a step.
"""

Body = Callable[[Sequence[Any]], None]
Region = tuple[int, int, int]
"""First byte, byte after the last, index of the array."""


@dataclass(frozen=True)
class Calls:
    """The calls of one step: ``ufuncs``, None for a guard; ``table`` (calls, fields), int64; and
    ``kept``, the arrays of intermediate results and constants that the calls use.
    """

    ufuncs: tuple[np.ufunc | None, ...]
    table: NDArray
    kept: tuple[NDArray, ...]


class CannotRecordError(Exception):
    """The body does something that a list of ufunc calls cannot express."""


def recorded(body: Body, rows: Sequence[NDArray], guarded: Sequence[int]) -> Calls:
    """The calls of the body on these rows, whose values do not change, and of a guard on the rows
    with the indices ``guarded``. Raises CannotRecordError if the body cannot be recorded.
    """
    notes = _Notes(rows)
    body([notes.watched(row) for row in rows])
    if guarded:
        notes.guard([rows[index] for index in guarded])
    if not notes.table:
        raise CannotRecordError("calls no ufunc")
    return Calls(tuple(notes.ufuncs), np.concatenate(notes.table), tuple(notes.kept))


class _Watched(np.ndarray):
    """An array that records the ufuncs called on it instead of computing."""

    notes: "_Notes"

    def __array_finalize__(self, parent: Any) -> None:
        self.notes = getattr(parent, "notes", None)  # type: ignore[assignment]

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        out = options.pop("out", (None,))[0]
        if method != "__call__" or options or ufunc.nout != 1:
            raise CannotRecordError(
                f"calls {ufunc.__name__}{'' if method == '__call__' else f'.{method}'} in a way of its own"
            )
        return self.notes.call(ufunc, inputs, out)

    def __array_function__(self, function: Any, *_: Any) -> Any:
        raise CannotRecordError(f"calls {function.__name__}, which is no ufunc")

    def __setitem__(self, key: Any, value: Any) -> None:
        self.notes.call(np.positive, (value,), self[key])

    def __getitem__(self, key: Any) -> Any:
        view = super().__getitem__(key)
        return view if isinstance(view, np.ndarray) else self._number()

    def _number(self, *_: Any) -> Any:
        """Refuses: the number would be a constant of the recording, but changes with the step."""
        raise CannotRecordError("takes a number out of an array")

    __float__ = __int__ = __complex__ = __index__ = __iter__ = item = tolist = tobytes = _number  # type: ignore[assignment]

    def __bool__(self) -> bool:
        raise CannotRecordError("branches on the data")


class _Notes:
    """The calls of one step, and the arrays of intermediate results and constants that they use."""

    def __init__(self, rows: Sequence[NDArray]) -> None:
        self.ufuncs: list[np.ufunc | None] = []
        self.table: list[NDArray] = []
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
        """Records one call. Its result is ``out``, or an array that is used again at every step."""
        name = f"calls {ufunc.__name__}"
        dtypes = {x.dtype for x in (*inputs, out) if isinstance(x, np.ndarray)}
        if len(dtypes) != 1 or not isinstance(out, np.ndarray | None):
            raise CannotRecordError(f"{name} on more than one type")
        (dtype,) = dtypes
        if not dtype.isnative:
            raise CannotRecordError(f"{name} in another byte order than this machine's")
        operands = [
            x.view(np.ndarray) if isinstance(x, np.ndarray) else self._keep(np.asarray(x, dtype)) for x in inputs
        ]
        core = 2 if ufunc is np.matmul else 1 if ufunc is np.vecdot else 0
        if (ufunc.signature is not None and not core) or any(x.ndim < core for x in operands):
            raise CannotRecordError(f"{name}, or calls it on too few axes")
        if core and operands[0].shape[-1] != operands[1].shape[-core]:
            raise CannotRecordError(f"{name} on arrays that do not match")
        outputs = [out] if out is not None else []
        shape = np.broadcast_shapes(
            *(x.shape[: x.ndim - core] for x in operands), *(x.shape[: x.ndim - core // 2 * 2] for x in outputs)
        )
        result_shape = shape + ((operands[0].shape[-2], operands[1].shape[-1]) if core == 2 else ())
        if out is None:
            result = self._keep(np.empty(result_shape, dtype))
        else:
            result = out.view(np.ndarray)
            if result.shape != result_shape or not result.flags.writeable:
                raise CannotRecordError(f"{name} into an array that it does not fill")
        for x in operands:
            in_place = x.ctypes.data == result.ctypes.data and x.strides == result.strides and not core
            if not in_place and np.shares_memory(x, result):
                raise CannotRecordError(f"{name} on overlapping arrays")
        self._note(ufunc, dtype, core, shape, [*operands, result])
        return self.watched(result)

    def _note(
        self, ufunc: np.ufunc, dtype: np.dtype, core: int, shape: tuple[int, ...], operands: list[NDArray]
    ) -> None:
        signature = dtype.char * ufunc.nin + "->" + dtype.char
        if dtype.char not in "fd" or signature not in ufunc.types or len(operands) > ARGS:
            raise CannotRecordError(f"calls {ufunc.__name__}, which does not take and give {dtype} alone")
        loops = len(shape)
        strides = [np.broadcast_to(x, shape + x.shape[x.ndim - core :]).strides[:loops] for x in operands[:-1]]
        sizes, moves = _coalesced(shape, [*strides, operands[-1].strides[:loops]])
        inner_size, inner = (sizes.pop(), moves.pop()) if sizes else (1, [0] * len(operands))
        if core == 2:
            left, right, result = operands
            core_sizes = [left.shape[-2], left.shape[-1], right.shape[-1]]
            steps = [*inner, *left.strides[-2:], *right.strides[-2:], *result.strides[-2:]]
        elif core == 1:
            core_sizes = [operands[0].shape[-1]]
            steps = [*inner, operands[0].strides[-1], operands[1].strides[-1]]
        else:
            core_sizes, steps = [], inner
        self._pack(ufunc, ufunc.types.index(signature), sizes, moves, [inner_size, *core_sizes], steps, operands)

    def guard(self, rows: Sequence[NDArray]) -> None:
        """Records that the largest element of each row is to be compared with the bounds."""
        *outer, width = rows[0].shape
        if len(outer) > 2 or any(row.shape != rows[0].shape or row.strides[-1] != row.itemsize for row in rows):
            raise CannotRecordError("guards rows that do not lie side by side")
        moves = [[row.strides[axis] for row in rows] for axis in range(len(outer))]
        self._pack(None, 0, outer, moves, [width], [], rows)

    def _pack(
        self,
        ufunc: np.ufunc | None,
        loop: int,
        sizes: Sequence[int],
        moves: Sequence[Sequence[int]],
        dims: Sequence[int],
        steps: Sequence[int],
        operands: Sequence[NDArray],
    ) -> None:
        if len(sizes) > OUTER or len(operands) > ARGS or len(self._starts) > ARRAYS:
            raise CannotRecordError("has too many axes, arguments or arrays")
        fields = [loop, len(operands), *_filled(sizes, OUTER, 1), *_filled(dims, 1 + CORE, 0)]
        fields += _filled(steps, 3 * ARGS, 0)
        for index in range(ARGS):
            if index < len(operands):
                fields += [*self._place(operands[index]), *_filled([move[index] for move in moves], OUTER, 0)]
            else:
                fields += [0] * (2 + OUTER)
        self.ufuncs.append(ufunc)
        self.table.append(np.array([fields], np.int64))

    def _place(self, array: NDArray) -> tuple[int, int]:
        """The index of the array that an operand lies in, and its offset in that array's row, in
        bytes.
        """
        low, high = np.lib.array_utils.byte_bounds(array)
        for start, stop, index in self._regions:
            if start <= low and high <= stop:
                return index, array.ctypes.data - self._starts[index]
        raise CannotRecordError("uses an array that it is not given")


def _coalesced(shape: tuple[int, ...], strides: list[tuple[int, ...]]) -> tuple[list[int], list[list[int]]]:
    """Sizes and strides of the loops, outermost first; adjacent loops are merged where possible."""
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


def _filled(values: Sequence[int], size: int, fill_value: int) -> list[int]:
    return [*values, *[fill_value] * (size - len(values))]
