"""Arrays whose memory is used again once nobody holds them.

A pass over T steps leaves some tens of bytes for each of T·B·H numbers. Fresh from the system for
each pass, every page of it is zeroed and mapped anew, which at the larger shapes costs a tenth of
the pass.
"""

import math
from pickle import PickleBuffer
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

LINE = 64
"""Bytes of a cache line. NumPy's own memory starts 16 bytes behind one, where every wide load
touches two lines: the loops over time of an LSTM of 128 units take a tenth longer there.
"""

Block = tuple[Any, int]
"""Memory in a ``PickleBuffer``, and where in it the first cache line begins. Not a plain array,
because NumPy lets views refer to the array at the bottom, past the lease between them.
"""


class BufferPool:
    """Hands out uninitialised arrays. Behind each, and behind all views of it, stands a
    :class:`_Lease`; when that is finalised, the memory is free for the next array of its size. So
    whoever keeps a tape or a trace, or any view of one, keeps what it says.
    """

    def __init__(self) -> None:
        self.size = 0
        """Bytes of all memory that this pool has, in use and free."""
        self._free: dict[int, list[Block]] = {}
        """Size in bytes → blocks that nobody holds."""

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray:
        """An array like ``np.empty``'s."""
        kind = np.dtype(dtype)
        size = math.prod(shape) * kind.itemsize
        blocks = self._free.setdefault(size, [])
        block = blocks.pop() if blocks else self._fresh(size)
        lease = _Lease(shape, kind, *block)
        lease.block, lease.home = block, blocks
        return np.ndarray(shape, kind, lease)

    def empty_like(self, array: NDArray, length: int) -> NDArray:
        """An array like ``np.empty_like``'s, with its axes in the same order in memory, ``length``
        along the first.
        """
        order = sorted(range(array.ndim), key=lambda axis: -array.strides[axis])
        shape = (length, *array.shape[1:])
        array_by_strides = self.empty(tuple(shape[axis] for axis in order), array.dtype)
        return array_by_strides.transpose(sorted(range(array.ndim), key=order.__getitem__))

    @property
    def free(self) -> int:
        """Bytes that nobody holds."""
        return sum(size * len(blocks) for size, blocks in self._free.items())

    def release(self) -> None:
        """Gives back to the system what nobody holds."""
        for size, blocks in self._free.items():
            self.size -= size * len(blocks)
            blocks.clear()

    def _fresh(self, size: int) -> Block:
        if 4 * self.free > size + self.size:
            self.release()  # of other shapes than what is asked for now, as where credit goes through many lengths
        self.size += size
        memory = np.empty(size + LINE, np.uint8)
        return PickleBuffer(memory.data), -memory.ctypes.data % LINE


class _Lease(np.ndarray):
    """Stands between a block of memory and the array that is handed out: that and all its views
    refer to the lease, and when the last of them is gone the block goes back to the pool's list.
    """

    __slots__ = ("block", "home")
    block: Block
    home: list[Block]

    def __del__(self) -> None:
        self.home.append(self.block)
