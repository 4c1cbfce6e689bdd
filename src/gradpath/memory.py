"""Arrays whose memory is used again once nobody holds them.

A pass over T steps leaves some tens of bytes for each of T·B·H numbers. Fresh from the system for each pass, every page
of it is zeroed and mapped anew, which at the larger shapes costs a tenth of the pass.
"""

import math
import sys

import numpy as np
from numpy.typing import DTypeLike, NDArray


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
        # Another shape than before: what the last one used is given back.
        held = {
            key: [block for block in blocks if sys.getrefcount(block) != UNUSED] for key, blocks in self._held.items()
        }
        self._held = {key: blocks for key, blocks in held.items() if blocks}
        fresh = np.empty(size, np.uint8)
        self._held.setdefault(size, []).append(fresh)
        return fresh.view(dtype).reshape(shape)

    def empty_like(self, array: NDArray) -> NDArray:
        """An array like ``np.empty_like``'s, with its axes in the same order in memory."""
        order = sorted(range(array.ndim), key=lambda axis: -array.strides[axis])
        made = self.empty(tuple(array.shape[axis] for axis in order), array.dtype)
        return made.transpose(sorted(range(array.ndim), key=order.__getitem__))


def _unused() -> int:
    for block in [np.empty(0)]:
        return sys.getrefcount(block)
    raise AssertionError


UNUSED = _unused()
"""The count of references to a block that its list alone holds, while a loop looks at it."""
