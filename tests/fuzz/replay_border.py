"""Fuzzing of the compiled loop's border, for as long as one likes; ``make sanitize`` runs it under
the sanitizers:

python tests/fuzz/replay_border.py SECONDS [SEED]

A seed makes one attempt: arrays of all kinds, a body, a recording, perhaps spoiled, and a run,
perhaps over steps that are not there. The outcome is an error of one line that leaves every byte as
it was, or the bytes of Python's loop.
"""

import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from gradpath.engine import replay
from gradpath.engine.recording import CannotRecordError, recorded
from gradpath.engine.replay import Loop

REFUSALS = (TypeError, ValueError, IndexError)
JUNK: list[Any] = [None, 0, -1, 2**62, 10**30, 1.5, float("nan"), "x", b"", [], (), {}, np.float32(1), np.add, object()]
FIELDS = [0, 1, -1, 2, 3, 4, 8, -8, 16, 63, 64, 1 << 20, 1 << 40, -(1 << 40), 1 << 56, 2**63 - 1, -(2**63)]
UFUNCS = [np.add, np.multiply, np.tanh, np.negative, np.maximum, np.matmul, np.vecdot, np.frexp, np.isnan, None, 3]


class FalseArray:
    """Says that it is a large array."""

    __array_interface__ = {"shape": (9, 10**9, 4), "typestr": "<f8", "data": (8, False), "version": 3}


class Memory:
    """Blocks of bytes, and the arrays in them."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.blocks: list[Any] = []

    def bytes(self) -> list[bytes]:
        return [bytes(block) for block in self.blocks]

    def restore(self, contents: Sequence[bytes]) -> None:
        for block, content in zip(self.blocks, contents, strict=True):
            memoryview(block).cast("B")[:] = content

    def shape(self) -> tuple[int, ...]:
        """Of a row, at times without axes or with one of no length."""
        min_axes, min_length = (int(self.rng.random() >= probability) for probability in (0.02, 0.05))
        return tuple(int(size) for size in self.rng.integers(min_length, 4, self.rng.integers(min_axes, 4)))

    def array(self, shape: tuple[int, ...], dtype: str) -> NDArray:
        """An array of a layout of its own; some are read-only, overlap others, or lie about their
        memory.
        """
        rng, steps = self.rng, shape[0]
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        fitting = [block for block in self.blocks if len(block) >= size]
        if fitting and rng.random() < 0.15:
            block = fitting[rng.integers(len(fitting))]
        else:
            block = bytearray(size + int(rng.integers(0, 3)) * 8) if rng.random() < 0.2 else np.zeros(size, np.uint8)
            self.blocks.append(block)
        slack = (len(block) - size) // 8 * 8
        array: NDArray = np.ndarray(shape, dtype, block, int(rng.integers(0, slack // 8 + 1)) * 8)
        array[...] = np.round(rng.normal(size=shape), 3)
        kind = rng.random()
        if kind < 0.1:
            array = array[::-1]
        elif kind < 0.2:
            array = array[..., ::-1]
        elif kind < 0.3 and array.ndim > 2:
            array = array.swapaxes(1, 2)
        elif kind < 0.35:
            array = np.broadcast_to(array[:1], array.shape)
        elif kind < 0.45 and steps and array.ndim > 1:
            block = np.frombuffer(array[0].tobytes(), np.uint8).copy()
            self.blocks.append(block)
            repeated_row: NDArray = np.ndarray(array.shape[1:], dtype, block)
            array = np.ndarray(array.shape, dtype, block, 0, (0, *repeated_row.strides))
        elif kind < 0.48:
            array = as_strided(array, array.shape, array.strides)
        elif kind < 0.51:
            array.flags.writeable = False
        return array


def random_body(rng: np.random.Generator, count: int) -> Callable[[Sequence[NDArray]], None]:
    """Some calls on rows drawn beforehand, so that they are the same at every step."""
    calls = [(int(rng.integers(9)), *(int(i) for i in rng.integers(0, count, 3))) for _ in range(rng.integers(1, 5))]

    def body(rows: Sequence[NDArray]) -> None:
        for kind, i, j, k in calls:
            x, y, out = rows[i], rows[j], rows[k]
            if kind < 3:
                np.add(x, y, out=out)
            elif kind == 3:
                out += np.tanh(x) * 0.5
            elif kind == 4:
                np.matmul(x, y, out=out)
            elif kind == 5:
                out[..., 0] = np.vecdot(x, y)
            elif kind == 6:
                out[...] = -x
            elif kind == 7:
                np.multiply(x[..., :1], y, out=out)
            else:
                out[...] = np.where(x > 0, x, y)

    return body


def refused(action: Callable[[], Any], memory: Memory) -> tuple[str, Any]:
    """What the work returns, or the name of its refusal, which has changed nothing."""
    contents = memory.bytes()
    try:
        return "", action()
    except REFUSALS as error:
        refusal = error
    assert str(refusal).isprintable(), repr(str(refusal))
    assert memory.bytes() == contents, "a refusal has changed an array"
    return type(refusal).__name__, None


def attempt(rng: np.random.Generator) -> str:
    """One attempt; what came of it, in a word."""
    memory, steps, count = Memory(rng), int(rng.integers(0 if rng.random() < 0.1 else 1, 5)), int(rng.integers(1, 6))
    dtype, shape = str(rng.choice(["<f4", "<f8"])), memory.shape()
    arrays = []
    for _ in range(count):
        row = shape if rng.random() < 0.85 else memory.shape()
        arrays.append(memory.array((steps, *row), dtype if rng.random() < 0.98 else rng.choice([">f4", "<i8", "<f2"])))
    body, t = (
        random_body(rng, count),
        int(rng.integers(-1, steps + 1) if rng.random() < 0.1 else rng.integers(steps or 1)),
    )
    guarded = [int(i) for i in rng.integers(0, count, rng.integers(1, 3))] if rng.random() < 0.3 else []
    if rng.random() < 0.5:
        return spoiled(rng, memory, arrays, body, t, guarded)
    refusal, loop = refused(lambda: Loop(body, arrays, t, guarded), memory)
    if refusal:
        return f"Loop: {refusal}"
    first, last = (int(i) for i in rng.integers(-2, steps + 3, 2)) if rng.random() < 0.5 else (0, steps)
    if rng.random() < 0.02:
        last = 5_000_000
    low, high = 0.01, 1.5
    contents = memory.bytes()
    is_recorded = loop.calls is not None
    try:
        with np.errstate(all="ignore"):
            stopped_at = loop.run(arrays, first, last, low, high)
    except REFUSALS as error:
        if is_recorded and not isinstance(error.__cause__ or error.__context__, replay._replay.UnprovedError):
            assert memory.bytes() == contents, "a refusal has changed an array"
        return f"run: {type(error).__name__}"
    compiled_contents = memory.bytes()
    if not is_recorded:
        return "python"
    memory.restore(contents)
    loop._recording = None
    with np.errstate(all="ignore"):
        assert loop.run(arrays, first, last, low, high) == stopped_at
    assert memory.bytes() == compiled_contents, "other bytes than Python's"
    return "compiled"


def spoiled(rng: np.random.Generator, memory: Memory, arrays: list, body: Any, t: int, guarded: list[int]) -> str:
    """A recording some of whose numbers are others, and a run of it on arguments of any kind."""
    try:
        calls = recorded(body, [array[t] for array in arrays], guarded)
    except (CannotRecordError, *REFUSALS, AttributeError):
        return "spoiled: no recording"
    table, ufuncs = calls.table.copy(), list(calls.ufuncs)
    for _ in range(rng.integers(0, 4)):
        row, column = rng.integers(len(table)), rng.integers(table.shape[1])
        table[row, column] = (
            FIELDS[rng.integers(len(FIELDS))] if rng.random() < 0.7 else table[row, column] + rng.integers(-9, 9)
        )
    if rng.random() < 0.1:
        ufuncs[rng.integers(len(ufuncs))] = UFUNCS[rng.integers(len(UFUNCS))]
    arguments: list[Any] = [tuple(ufuncs), table, tuple(arrays), t, calls.kept]
    if rng.random() < 0.2:
        others = [*JUNK, FalseArray(), table[::-1], table[:0], table.astype(float), table.tobytes()]
        arguments[rng.integers(len(arguments))] = others[rng.integers(len(others))]
    if rng.random() < 0.05:
        arguments[2] = (*arrays[:-1], FalseArray())
    refusal, recording = refused(lambda: replay._replay.record(*arguments), memory)
    if refusal:
        return f"record: {refusal}"
    steps = len(arrays[0])
    others = [*arrays]
    if rng.random() < 0.2:
        index = rng.integers(len(others))
        others[index] = memory.array((int(rng.integers(0, 5)), *others[index].shape[1:]), "<f8")
    arguments = [recording, tuple(others), *(int(i) for i in rng.integers(-1, steps + 1, 2)), 0.0, np.inf]
    if rng.random() < 0.2:
        arguments[rng.integers(len(arguments))] = JUNK[rng.integers(len(JUNK))]
    refusal, _ = refused(lambda: replay._replay.run(*arguments), memory)
    refused(lambda: replay._replay.layout(JUNK[rng.integers(len(JUNK))]), memory)
    refused(lambda: replay._replay.layout((*others, FalseArray())), memory)
    return f"spoiled run: {refusal or 'done'}"


def main(seconds: float, seed: int) -> None:
    start, counts = time.monotonic(), Counter[str]()
    while time.monotonic() - start < seconds:
        try:
            counts[attempt(np.random.default_rng(seed))] += 1
        except BaseException:
            print(f"seed {seed}", file=sys.stderr)
            raise
        seed += 1
    print(f"{counts.total()} attempts in {seconds:.0f} s, to seed {seed - 1}:")
    for outcome, count in counts.most_common():
        print(f"{count:9} {outcome}")


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
