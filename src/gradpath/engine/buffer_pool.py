"""Arrays whose memory is used again once nobody holds them.

A pass over T steps leaves some tens of bytes for each of T·B·H numbers. Fresh from the system for each pass, every page
of it is zeroed and mapped anew, which at the larger shapes costs a tenth of the pass.
"""

import math
import sys
from collections.abc import Iterator

import numpy as np
from numpy.typing import DTypeLike, NDArray

AT_ONCE = 2**20
"""Numbers that an instrument computes at once of what is as long as the sequence."""
LINE = 64
"""Bytes of a cache line. NumPy's own memory starts 16 bytes behind one, where every wide load touches two lines: the
loops over time of an LSTM of 128 units take a tenth longer there."""


class Memory:
    """Hands out uninitialised arrays. All views of an array, and of its views, refer to the memory behind it, so that
    the interpreter's own count of references says when it is free.
    """

    def __init__(self) -> None:
        self._held: dict[int, list[tuple[NDArray, int]]] = {}
        """Size in bytes → blocks, and where in them the first cache line begins."""

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray:
        """An array like ``np.empty``'s."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        for block, start in self._held.get(size, ()):
            if sys.getrefcount(block) == UNUSED:
                return np.ndarray(shape, dtype, block, start)
        if 4 * self._free() > size + sum(key * len(blocks) for key, blocks in self._held.items()):
            self.release()  # of other shapes than what is asked for now, as where credit goes through many lengths
        fresh = np.empty(size + LINE, np.uint8)
        start = -fresh.ctypes.data % LINE
        self._held.setdefault(size, []).append((fresh, start))
        return np.ndarray(shape, dtype, fresh, start)

    def _free(self) -> int:
        """Bytes that nobody holds."""
        free = 0
        for size, blocks in self._held.items():
            for block, _ in blocks:
                free += size if sys.getrefcount(block) == UNUSED else 0
        return free

    def release(self) -> None:
        """Gives back what nobody holds."""
        held = {
            size: [(block, start) for block, start in blocks if sys.getrefcount(block) != UNUSED]
            for size, blocks in self._held.items()
        }
        self._held = {size: blocks for size, blocks in held.items() if blocks}

    def empty_like(self, array: NDArray, length: int) -> NDArray:
        """An array like ``np.empty_like``'s, with its axes in the same order in memory, ``length`` along the first."""
        order = sorted(range(array.ndim), key=lambda axis: -array.strides[axis])
        shape = (length, *array.shape[1:])
        made = self.empty(tuple(shape[axis] for axis in order), array.dtype)
        return made.transpose(sorted(range(array.ndim), key=order.__getitem__))


def in_runs(steps: int, size: int) -> Iterator[slice]:
    """The steps in consecutive runs of about ``AT_ONCE`` numbers, with ``size`` of them a step, for what would take as
    much memory as the pass itself if it were computed for all steps together.
    """
    run = max(1, AT_ONCE // max(size, 1))
    for start in range(0, steps, run):
        yield slice(start, min(start + run, steps))


def _unused() -> int:
    for block, _ in [(np.empty(0), 0)]:
        return sys.getrefcount(block)
    raise AssertionError


UNUSED = _unused()
"""The count of references to a block that its list alone holds, while a loop looks at it."""
