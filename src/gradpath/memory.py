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


class Memory:
    """Hands out uninitialised arrays. All views of an array, and of its views, refer to the memory behind it, so that
    the interpreter's own count of references says when it is free.
    """

    def __init__(self) -> None:
        self._held: dict[int, list[NDArray]] = {}

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray:
        """An array like ``np.empty``'s."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        for block in self._held.get(size, ()):
            if sys.getrefcount(block) == UNUSED:
                return block.view(dtype).reshape(shape)
        if 2 * self._free() > size + sum(key * len(blocks) for key, blocks in self._held.items()):
            self.release()  # of another shape than what is asked for now
        fresh = np.empty(size, np.uint8)
        self._held.setdefault(size, []).append(fresh)
        return fresh.view(dtype).reshape(shape)

    def _free(self) -> int:
        """Bytes that nobody holds."""
        free = 0
        for blocks in self._held.values():
            for block in blocks:
                free += block.size if sys.getrefcount(block) == UNUSED else 0
        return free

    def release(self) -> None:
        """Gives back what nobody holds."""
        held = {
            key: [block for block in blocks if sys.getrefcount(block) != UNUSED] for key, blocks in self._held.items()
        }
        self._held = {key: blocks for key, blocks in held.items() if blocks}

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
    for block in [np.empty(0)]:
        return sys.getrefcount(block)
    raise AssertionError


UNUSED = _unused()
"""The count of references to a block that its list alone holds, while a loop looks at it."""
