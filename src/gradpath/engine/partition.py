"""Where a pass is cut in two so that two threads can compute it, and what threads that share a
process have to do.

The last bits of a matrix product depend on the number of its rows, and so the partition depends on
nothing that may change from one run of a configuration to the next: where there are several cores a
large pass is cut, also where the other core is another job's or another seed's and one thread
computes both parts.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from contextvars import copy_context
from threading import Lock

MIN_MULTIPLY_ADDS = 2**26
"""Multiply-adds of a pass from which it is cut. Measured by ``experiments/performance/threads.py``:
above, two threads take 0.56 … 0.82 of the time of one, below 0.73 … 1.9; a single thread loses 2 …
20 % by the cut, which is why on a single core there is none.
"""
ROWS = 4
"""Rows of a product that OpenBLAS computes together, on which the cut of a minibatch falls: of 20
sequences 12 and 8, because 10 and 10 would take a tenth longer.
"""
CHUNK_ELEMENTS = 2**20
"""Numbers that are computed at once of what is as long as the sequence."""


def partition(length: int, multiply_adds: int, multiple: int = 1) -> list[slice]:
    """``length`` rows in two about equal parts, the first of a ``multiple``, or in one if the whole
    pass over them takes too few ``multiply_adds``.
    """
    cut = -(-length // (2 * multiple)) * multiple
    if multiply_adds < MIN_MULTIPLY_ADDS or not 0 < cut < length:
        return [slice(0, length)]
    return [slice(0, cut), slice(cut, length)]


def chunks(steps: int, size: int) -> Iterator[slice]:
    """The steps in consecutive chunks of about ``CHUNK_ELEMENTS`` numbers, with ``size`` of them a
    step, for what would take as much memory as the pass itself if it were computed for all steps
    together.
    """
    chunk = max(1, CHUNK_ELEMENTS // max(size, 1))
    for start in range(0, steps, chunk):
        yield slice(start, min(start + chunk, steps))


def for_each(work: Callable[[int, slice], None], parts: Sequence[slice], executor: Executor | None) -> None:
    """``work(index, part)`` of every part, the first in this thread and the others in those of
    ``executor``, if there is one; what NumPy has been told to do about overflow holds there too.
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
    """Lets another thread compute in Python meanwhile. Of several threads that train at once the
    one that computes in Python holds the lock: left to share the interpreter they would hand it to
    and fro at every NumPy call, which costs more than it gains.
    """
    if python_lock is None:
        yield
        return
    python_lock.release()
    try:
        yield
    finally:
        python_lock.acquire()
