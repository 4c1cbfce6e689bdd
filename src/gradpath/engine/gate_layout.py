"""The layout of the n gates of a layer in memory: side by side in one matrix, or in n separate
matrices.

An array over the gates always has the shape (…, B, n, H). For the matrix products it is viewed as
(…, g, B, n/g·H): one group of all columns (g = 1), or one group for each gate (g = n). Side by
side, a step is one large product, which is faster while the call costs more than the arithmetic.
With separate matrices the columns of each product stay in the cache, and each gate is contiguous.
"""

from numpy.typing import DTypeLike, NDArray

from gradpath.engine.buffer_pool import BufferPool

MIN_SEPARATE_WIDTH = 96
"""Smallest H at which the gates lie in separate matrices. Measured with OpenBLAS 0.3.31, one
thread, float32, on the three products of an LSTM's step: separate matrices take 1.6 times as long
at H = 50, 1.1 at 64, 0.75 at 128 and 1.05 at 256, where the faster elementwise part compensates for
it.
"""


def empty(*shape: int, dtype: DTypeLike, buffers: BufferPool) -> NDArray:
    """An uninitialised array (…, B, n, H) in the layout for its H."""
    return (
        buffers.empty(shape, dtype)
        if shape[-1] < MIN_SEPARATE_WIDTH
        else per_gate_layout(*shape, dtype=dtype, buffers=buffers)
    )


def per_gate_layout(*shape: int, dtype: DTypeLike, buffers: BufferPool) -> NDArray:
    """An uninitialised array (…, B, n, H) in which each gate is contiguous."""
    *leading, rows, blocks, width = shape
    return buffers.empty((*leading, blocks, rows, width), dtype).swapaxes(-2, -3)


def as_gemm_operand(array: NDArray) -> NDArray:
    """A view (…, g, B, n/g·H) of an array (…, B, n, H), or of some of its gates."""
    *leading, rows, blocks, width = array.shape
    if width >= MIN_SEPARATE_WIDTH:
        return array.swapaxes(-2, -3)
    return array.reshape(*leading, 1, rows, blocks * width)
