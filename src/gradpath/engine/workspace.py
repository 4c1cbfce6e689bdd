"""The memory, recorded loops and threads that passes over minibatches reuse."""

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
    """Created once for several passes and given to each of them; serves one pass at a time. It only
    affects how long a pass takes, except ``splits_large_passes``, on which the last bits depend.
    """

    splits_large_passes: bool = False
    """Are large passes cut in two (:mod:`gradpath.engine.partition`)?"""
    python_lock: "Lock | None" = None
    """The lock that a thread holds while it computes in Python, where several train at once."""
    executor: Executor | None = None
    """Threads for all parts of a pass but the first; without it one thread computes all parts."""
    buffers: BufferPool = field(default_factory=BufferPool)
    _recorded: dict[tuple[object, ...], Loop] = field(default_factory=dict)

    def parts(self, length: int, multiply_adds: int, multiple: int = 1) -> list[slice]:
        """The parts of a pass over ``length`` rows; one if it is not to be cut."""
        return partition(length, multiply_adds, multiple) if self.splits_large_passes else [slice(0, length)]

    def for_each(self, work: Callable[[int, slice], None], parts: Sequence[slice]) -> None:
        """``work(index, part)`` of every part, in several threads if there is an ``executor``; so
        ``work`` must not use ``buffers``.
        """
        for_each(work, parts, self.executor)

    def loop(self, body: Body, arrays: Sequence[NDArray], t: int, guarded: Sequence[int] = (), part: int = 0) -> Loop:
        """The loop of this body, recorded at step ``t`` at the first call.

        A recording is reused for an equal ``body``, the same ``guarded`` and ``part``, and arrays
        of the same layout (:func:`gradpath.engine.replay.layout`). Each part has its own, because
        it may run in its own thread. The body must depend on nothing mutable: a function that
        refers to constants only, or a frozen dataclass whose fields are all that it uses.
        """
        key = (body, part, tuple(guarded), layout(arrays))
        loop = self._recorded.get(key)
        if loop is None:
            loop = self._recorded[key] = Loop(body, arrays, t, guarded)
        loop.python_lock = self.python_lock
        return loop

    def __iter__(self) -> Iterator[tuple[Body, Loop]]:
        """(body, loop) of every recorded loop: one for each layout of the arrays."""
        return ((loop.body, loop) for loop in self._recorded.values())


def repeated(array: NDArray, steps: int) -> NDArray:
    """A view (steps, …) of a contiguous array, the same at every t."""
    return np.ndarray((steps, *array.shape), array.dtype, array, 0, (0, *array.strides))
