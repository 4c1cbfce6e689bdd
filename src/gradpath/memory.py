"""Arrays whose memory is used again once nobody holds them.

A pass over T steps leaves some hundred bytes for each of T·B·H numbers. Fresh from the system for each pass, every page
of it is zeroed and mapped anew, which at the larger shapes costs a tenth of the pass.
"""

import sys

import numpy as np
from numpy.typing import DTypeLike, NDArray


def _references(blocks: list[NDArray]) -> list[int]:
    return [sys.getrefcount(block) for block in blocks]


UNUSED = _references([np.empty(0)])[0]
"""What it says of a block that the list alone holds."""


class Memory:
    """Hands out uninitialised arrays. All views of an array, and of its views, refer to the memory behind it, so that
    the interpreter's own count of references says when it is free.
    """

    def __init__(self) -> None:
        self._held: list[NDArray] = []

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray:
        """An array like ``np.empty``'s."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        used = [count != UNUSED for count in _references(self._held)]
        for block, taken in zip(self._held, used, strict=True):
            if not taken and block.size == size:
                return block.view(dtype).reshape(shape)
        # Another shape than before: what the last one used is given back.
        self._held = [block for block, taken in zip(self._held, used, strict=True) if taken]
        self._held.append(np.empty(size, np.uint8))
        return self._held[-1].view(dtype).reshape(shape)

    def zeros(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray:
        """An array like ``np.zeros``'s."""
        array = self.empty(shape, dtype)
        array[...] = 0
        return array
