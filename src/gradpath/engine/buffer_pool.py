"""A pool of arrays whose memory is reused once no array refers to it.

A pass over T steps needs some tens of bytes for each of T·B·H numbers. If the memory came from the
system for each pass, every page would be zeroed and mapped again, which for large shapes costs a
tenth of the pass.
"""

import math
from pickle import PickleBuffer
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

LINE = 64
"""Bytes of a cache line. NumPy's own memory starts 16 bytes after the start of a line, so that
every wide load touches two lines: the loops over time of an LSTM of 128 units then take a tenth
longer.
"""

Block = tuple[Any, int]
"""Memory in a ``PickleBuffer``, and the offset of its first cache line. Not a plain array, because
the views of an array refer to the array that owns the memory, and so would bypass the lease.
"""


class BufferPool:
    """Hands out uninitialised arrays. Each array and all views of it refer to a :class:`_Lease`;
    when the lease is finalised, the memory is free for the next array of its size. So the contents
    of a tape or a trace stay valid as long as it, or any view of it, exists.
    """

    def __init__(self) -> None:
        self.size = 0
        """Bytes of all memory of this pool, in use and free."""
        self._free: dict[int, list[Block]] = {}
        """Size in bytes → unused blocks."""

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray:
        """Like ``np.empty``."""
        kind = np.dtype(dtype)
        size = math.prod(shape) * kind.itemsize
        blocks = self._free.setdefault(size, [])
        block = blocks.pop() if blocks else self._fresh(size)
        lease = _Lease(shape, kind, *block)
        lease.block, lease.home = block, blocks
        return np.ndarray(shape, kind, lease)

    def empty_like(self, array: NDArray, length: int) -> NDArray:
        """Like ``np.empty_like``, with the same order of the axes in memory, but with ``length``
        rows along the first axis.
        """
        order = sorted(range(array.ndim), key=lambda axis: -array.strides[axis])
        shape = (length, *array.shape[1:])
        array_by_strides = self.empty(tuple(shape[axis] for axis in order), array.dtype)
        return array_by_strides.transpose(sorted(range(array.ndim), key=order.__getitem__))

    @property
    def free(self) -> int:
        """Bytes of the unused blocks."""
        return sum(size * len(blocks) for size, blocks in self._free.items())

    def release(self) -> None:
        """Returns the unused blocks to the system."""
        for size, blocks in self._free.items():
            self.size -= size * len(blocks)
            blocks.clear()

    def _fresh(self, size: int) -> Block:
        if 4 * self.free > size + self.size:
            self.release()  # the unused blocks have other sizes, as when credit runs through many lengths
        self.size += size
        memory = np.empty(size + LINE, np.uint8)
        return PickleBuffer(memory.data), -memory.ctypes.data % LINE


class _Lease(np.ndarray):
    """The base of an array that is handed out, and of all its views; when the last of them is gone,
    the lease is finalised and returns its block to the pool's list.
    """

    __slots__ = ("block", "home")
    block: Block
    home: list[Block]

    def __del__(self) -> None:
        self.home.append(self.block)
