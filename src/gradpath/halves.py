"""Where a pass over a minibatch is cut in two, so that two threads can compute it.

The cut depends on the pass alone, and is made whoever computes the halves: the last bits of a matrix product depend on
the number of its rows, and so results are the same on one core and on two.
"""

WORTH = 2**26
"""Multiply-adds of a pass from which it is cut. Measured by ``experiments/performance/threads.py``: the time of a
training step in two threads over that in one is 0.8 and more below and 0.55 … 0.75 above, and the cut costs a single
thread up to 4 %."""
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
