"""What a pass over a minibatch needs beside its numbers, and the next one can use again."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from gradpath.engine.buffer_pool import BufferPool
from gradpath.engine.partition import for_each, partition
from gradpath.engine.replay import Body, Loop, layout


@dataclass
class Workspace:
    """Made by whoever computes several passes, and handed to each; one pass at a time. All that it
    changes is how long a pass takes, but for ``splits_large_passes``, on which the last bits
    depend.
    """

    splits_large_passes: bool = False
    """Are large passes cut in two (:mod:`gradpath.engine.partition`), whoever computes the parts?
    """
    python_lock: "Lock | None" = None
    """What a thread holds while it computes in Python, where several train at once."""
    executor: Executor | None = None
    """Threads for the parts of a pass but the first, if there are any."""
    buffers: BufferPool = field(default_factory=BufferPool)
    _recorded: dict[tuple[object, ...], Loop] = field(default_factory=dict)

    def parts(self, length: int, multiply_adds: int, multiple: int = 1) -> list[slice]:
        """The parts of a pass over ``length`` rows; one if it is not to be cut."""
        return partition(length, multiply_adds, multiple) if self.splits_large_passes else [slice(0, length)]

    def for_each(self, work: Callable[[int, slice], None], parts: Sequence[slice]) -> None:
        """``work(index, part)`` of every part, in several threads if there are; it may not use
        ``buffers``.
        """
        for_each(work, parts, self.executor)

    def loop(self, body: Body, arrays: Sequence[NDArray], t: int, guarded: Sequence[int] = (), part: int = 0) -> Loop:
        """The loop of this body, recorded at step ``t`` when it is first asked for.

        A recording serves whoever asks for an equal ``body`` and the same guards over arrays that
        lie in memory, and to each other, as those did that it was made of; each part of a pass has
        its own, because it may run in a thread of its own. So a body is a function that refers to
        nothing that changes, or a frozen dataclass of all that it does.
        """
        key = (body, part, tuple(guarded), layout(arrays))
        loop = self._recorded.get(key)
        if loop is None:
            loop = self._recorded[key] = Loop(body, arrays, t, guarded)
        loop.python_lock = self.python_lock
        return loop

    def __iter__(self) -> Iterator[tuple[Body, Loop]]:
        """Every body that has run, and its loop, once for each layout."""
        return ((loop.body, loop) for loop in self._recorded.values())


def repeated(array: NDArray, steps: int) -> NDArray:
    """The same contiguous array, not a copy, at every t: (steps, …)."""
    return np.ndarray((steps, *array.shape), array.dtype, array, 0, (0, *array.strides))
