"""How the n blocks of a layer lie in memory: side by side in one matrix, or apart in n matrices.

An array over the blocks is always (…, B, n, H) to whoever reads it. For the matrix products it is
(…, g, B, n/g·H): one group of all the columns (g = 1), or a group a block (g = n). Side by side a
step is one large product, which is the faster while a product costs more in its call than in its
arithmetic; apart, each product's columns stay in the cache and every gate is one contiguous run of
numbers.
"""

from numpy.typing import DTypeLike, NDArray

from gradpath.engine.buffer_pool import BufferPool

MIN_SEPARATE_WIDTH = 96
"""H from which on the blocks lie apart. Measured with OpenBLAS 0.3.31, one thread, float32, on the
three products of an LSTM's step: at H = 50 and 64 apart takes 1.6 and 1.1 times as long, at H = 128
0.75 times, at H = 256 1.05 times, which the elementwise part makes up for.
"""


def empty(*shape: int, dtype: DTypeLike, buffers: BufferPool) -> NDArray:
    """An array (…, B, n, H) for the products."""
    return (
        buffers.empty(shape, dtype)
        if shape[-1] < MIN_SEPARATE_WIDTH
        else per_gate_layout(*shape, dtype=dtype, buffers=buffers)
    )


def per_gate_layout(*shape: int, dtype: DTypeLike, buffers: BufferPool) -> NDArray:
    """An array (…, B, n, H) whose blocks lie apart."""
    *leading, rows, blocks, width = shape
    return buffers.empty((*leading, blocks, rows, width), dtype).swapaxes(-2, -3)


def as_gemm_operand(array: NDArray) -> NDArray:
    """The same array, or some of its blocks, as the products see it: (…, g, B, n/g·H), a view."""
    *leading, rows, blocks, width = array.shape
    if width >= MIN_SEPARATE_WIDTH:
        return array.swapaxes(-2, -3)
    return array.reshape(*leading, 1, rows, blocks * width)
