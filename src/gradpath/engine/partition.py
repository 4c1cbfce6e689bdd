"""The partition of a pass into two parts that two threads can compute, and the lock of threads that
train in one process.

The last bits of a matrix product depend on the number of its rows. So the partition must be the
same in every run of a configuration: on a machine with several cores a large pass is always cut,
even if one thread computes both parts because the other core is busy with another job or seed.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from contextvars import copy_context
from threading import Lock

MIN_MULTIPLY_ADDS = 2**26
"""Multiply-adds of a pass from which on it is cut. Measured by
``experiments/performance/threads.py``: above, two threads take 0.56 … 0.82 of the time of one,
below 0.73 … 1.9. A single thread loses 2 … 20 % by the cut, so on a single core nothing is cut.
"""
ROWS = 4
"""Rows of a product that OpenBLAS computes together. A minibatch is cut at a multiple of it: 20
sequences into 12 and 8, because 10 and 10 would take a tenth longer.
"""
CHUNK_ELEMENTS = 2**20
"""Elements of an array over time that are computed in one chunk of steps."""


def partition(length: int, multiply_adds: int, multiple: int = 1) -> list[slice]:
    """``length`` rows in two about equal parts, the first a multiple of ``multiple``; or in one
    part, if the whole pass takes fewer ``multiply_adds`` than ``MIN_MULTIPLY_ADDS``.
    """
    cut = -(-length // (2 * multiple)) * multiple
    if multiply_adds < MIN_MULTIPLY_ADDS or not 0 < cut < length:
        return [slice(0, length)]
    return [slice(0, cut), slice(cut, length)]


def chunks(steps: int, size: int) -> Iterator[slice]:
    """The steps in consecutive chunks of about ``CHUNK_ELEMENTS`` elements, ``size`` for each step;
    for arrays that would take as much memory as the pass itself if they held all steps.
    """
    chunk = max(1, CHUNK_ELEMENTS // max(size, 1))
    for start in range(0, steps, chunk):
        yield slice(start, min(start + chunk, steps))


def for_each(work: Callable[[int, slice], None], parts: Sequence[slice], executor: Executor | None) -> None:
    """``work(index, part)`` of every part, the first in this thread and the others in the threads
    of ``executor``, if there is one, with this thread's ``np.errstate``.
    """
    if executor is None:
        for index, part in enumerate(parts):
            work(index, part)
        return
    first, *deferred = enumerate(parts)
    futures = [executor.submit(copy_context().run, work, index, part) for index, part in deferred]
    try:
        work(*first)
    finally:
        for future in futures:
            future.result()


@contextmanager
def released(python_lock: "Lock | None") -> Iterator[None]:
    """Releases the lock within the context, so that another thread can compute in Python. Of
    several threads that train at once, the one that computes in Python holds the lock: otherwise
    they would hand over the interpreter lock at every NumPy call, which costs more than it gains.
    """
    if python_lock is None:
        yield
        return
    python_lock.release()
    try:
        yield
    finally:
        python_lock.acquire()
