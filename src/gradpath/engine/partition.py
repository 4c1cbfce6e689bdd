"""Where a pass over a minibatch is cut in two, so that two threads can compute it.

The last bits of a matrix product depend on the number of its rows, and so the cut depends on nothing that may change
from one run of a configuration to the next: where there are several cores a large pass is cut, also where the other
core is another job's or another seed's and one thread computes both halves.
"""

WORTH = 2**26
"""Multiply-adds of a pass from which it is cut. Measured by ``experiments/performance/threads.py``: above, two threads
take 0.56 … 0.82 of the time of one, below 0.73 … 1.9; a single thread loses 2 … 20 % by the cut, which is why on a
single core there is none."""
ROWS = 4
"""Rows of a product that OpenBLAS computes together, on which the cut of a minibatch falls: of 20 sequences 12 and 8,
because 10 and 10 would take a tenth longer."""


def halves(length: int, multiply_adds: int, multiple: int = 1) -> list[slice]:
    """``length`` rows in two about equal parts, the first of a ``multiple``, or in one if the whole pass over them
    takes too few ``multiply_adds``.
    """
    cut = -(-length // (2 * multiple)) * multiple
    if multiply_adds < WORTH or not 0 < cut < length:
        return [slice(0, length)]
    return [slice(0, cut), slice(cut, length)]
