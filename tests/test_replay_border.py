"""The border of the compiled loop: whatever is handed to it, an error of one line that changes
nothing, or the bits of Python's loop.
"""

import copy
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from gradpath.engine import compiled, replay
from gradpath.engine.recording import recorded
from gradpath.engine.replay import Loop
from gradpath.engine.workspace import repeated

sys.path.insert(0, str(Path(__file__).parent / "fuzz"))
from replay_border import JUNK, FalseArray, attempt

needs_compiled = pytest.mark.skipif(replay._replay is None, reason="the compiled loop does not run here")


def accumulate(rows: Sequence[NDArray]) -> None:
    x, matrix, y, total = rows
    np.matmul(x, matrix, out=y)
    y *= 0.5
    total += np.tanh(y)


def some_arrays(dtype: type = np.float64) -> list[NDArray]:
    rng = np.random.default_rng(0)
    x, matrix = rng.normal(size=(9, 3, 4)).astype(dtype), rng.normal(size=(4, 4)).astype(dtype)
    return [x, repeated(matrix, 9), np.zeros((9, 3, 4), dtype), repeated(np.zeros((3, 4), dtype), 9)]


def contents_of(arrays: Sequence[NDArray]) -> list[bytes]:
    return [array.tobytes() for array in arrays]


def in_python(body: Callable[[Sequence[NDArray]], None], arrays: Sequence[NDArray]) -> list[bytes]:
    for t in range(len(arrays[0])):
        body([array[t] for array in arrays])
    return contents_of(arrays)


def refuses(error: type[Exception], message: str, action: Callable[[], Any], arrays: Sequence[NDArray] = ()) -> None:
    """In one line, which leaves the arrays as they were."""
    contents_before = contents_of(arrays)
    with pytest.raises(error, match=message) as refusal:
        action()
    assert str(refusal.value).isprintable()
    assert contents_of(arrays) == contents_before


@pytest.mark.parametrize("module", [pytest.param("compiled", marks=needs_compiled), "python"])
@pytest.mark.parametrize(
    ("first", "last"), [(0, 5_000_000), (0, 10), (9, -1), (-1, 3), (3, -2), (0, 2**62), (-(2**62), 0), (-5, -1)]
)
def test_a_step_that_is_not_there(first: int, last: int, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if module == "python":
        monkeypatch.setattr(replay, "_replay", None)
    arrays = some_arrays()
    loop = Loop(accumulate, arrays, 0)
    refuses(IndexError, "step", lambda: loop.run(arrays, first, last), arrays)
    shortened = [*arrays[:2], arrays[2][:5], arrays[3]]
    refuses(IndexError, "step", lambda: loop.run(shortened, 0, 6), arrays)
    assert loop.run(arrays, 4, 4) == (4, True)


@pytest.mark.parametrize("junk", [1, None, [[1.0]], FalseArray(), np.ones(()), np.float64(1)], ids=range(6))
def test_a_loop_over_what_is_no_array(junk: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = some_arrays()
    refuses(TypeError, "must be an array", lambda: Loop(accumulate, [junk, *arrays[1:]], 0), arrays)
    monkeypatch.setattr(replay, "_replay", None)
    loop = Loop(accumulate, arrays, 0)
    refuses(TypeError, "must be an array", lambda: loop.run([junk, *arrays[1:]], 0, 9), arrays)


@pytest.mark.parametrize("t", [-1, 9, 2**62])
def test_a_recording_of_a_step_that_is_not_there(t: int) -> None:
    arrays = some_arrays()
    refuses(IndexError, "steps", lambda: Loop(accumulate, arrays, t), arrays)


@needs_compiled
def test_the_layout_of_what_is_no_tuple_of_arrays() -> None:
    assert replay._replay.layout(()) == b""
    for junk in (*JUNK, FalseArray(), [np.zeros(3)], (1, 2, 3), (FalseArray(),), (np.zeros(3),) * 65):
        if not isinstance(junk, tuple) or junk:
            refuses(TypeError, "must be", lambda value=junk: replay._replay.layout(value))


@needs_compiled
def test_a_recording_is_made_by_the_module_alone() -> None:
    kind = type(Loop(accumulate, some_arrays(), 0)._recording)
    refuses(TypeError, "cannot create", kind)
    arrays = some_arrays()
    for junk in (*JUNK, np.zeros((1, 34), np.int64), 140_000_000_000_000):
        refuses(
            TypeError, "argument 1 must be", lambda j=junk: replay._replay.run(j, (*arrays,), 0, 9, 0.0, 1.0), arrays
        )


ARGS, OUTER, DIMS, STEPS, OPERANDS = 1, 2, 5, 9, 21
"""Where in a row of the table they begin: see ``Fields`` in ``_replay.c``."""


@needs_compiled
@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (0, -1, "inner loop"),
        (0, 99, "inner loop"),
        (0, 2**63 - 1, "inner loop"),
        (0, 1, "type"),
        (ARGS, 0, "number of arguments"),
        (ARGS, 2, "number of arguments"),
        (ARGS, 2**40, "number of arguments"),
        (OUTER, -1, "outer loop"),
        (OUTER + 2, 2**60, "outer loop"),
        (OUTER, 2**50, "argument moves"),
        (DIMS, -1, "dimension"),
        (DIMS, 2**63 - 1, "dimension"),
        (DIMS, 13, "leave its row"),
        (DIMS, 2**50, "leave its row"),
        (STEPS, 4, "offset or stride"),
        (STEPS, 2**62, "offset or stride"),
        (STEPS, -(2**63), "offset or stride"),
        (STEPS, -8, "leave its row"),
        (STEPS + 2, 16, "leave its row"),
        (OPERANDS, -1, "array"),
        (OPERANDS, 64, "array"),
        (OPERANDS, 2**40, "array"),
        (OPERANDS + 1, 3, "offset or stride"),
        (OPERANDS + 1, 8, "leave its row"),
        (OPERANDS + 1, -8, "leave its row"),
        (OPERANDS + 1, 2**60, "offset or stride"),
        (OPERANDS + 2, 2**60, ""),
    ],
)
def test_a_recording_with_one_wrong_number(column: int, value: int, message: str) -> None:
    """Of np.multiply on (3, 4), which runs as one inner loop of 12."""
    arrays = [np.ones((9, 3, 4)), np.ones((9, 3, 4))]
    calls = recorded(body_doubling, [array[0] for array in arrays], ())
    table = calls.table.copy()
    index = int(calls.table[0, 0])
    assert np.multiply.types[index] == "dd->d"
    table[0, column] = np.multiply.types.index("ff->f") if message == "type" else value

    def record() -> Any:
        return replay._replay.record(calls.ufuncs, table, (*arrays,), 0, calls.kept)

    if message:
        refuses(ValueError, message, record, arrays)
    else:  # the stride of a loop that is run once
        assert len(record()) == 1


def body_doubling(rows: Sequence[NDArray]) -> None:
    np.multiply(rows[0], 2.0, out=rows[1])


@needs_compiled
@pytest.mark.parametrize(
    ("position", "value", "error"),
    [
        (0, [np.multiply], TypeError),
        (0, (), ValueError),
        (0, (np.multiply, np.add), ValueError),
        (0, ("multiply",), ValueError),
        (0, (np.frexp,), ValueError),
        (0, (np.divmod,), ValueError),
        (1, None, TypeError),
        (1, b"", TypeError),
        (1, np.zeros((1, 41)), TypeError),
        (1, np.zeros((1, 41), np.int32), TypeError),
        (1, np.zeros((1, 82), np.int64)[:, ::2], TypeError),
        (1, np.zeros((1, 40), np.int64), ValueError),
        (1, FalseArray(), TypeError),
        (2, (), ValueError),
        (2, [np.ones((9, 3, 4))] * 2, TypeError),
        (2, (np.ones((9, 3, 4)), FalseArray()), TypeError),
        (2, (np.ones((9, 3, 4)), np.ones((9, 3, 4), np.float32)), ValueError),
        (2, (np.ones((9, 3, 4)), np.ones((9, 3, 4), ">f8")), ValueError),
        (2, (np.ones((9, 3, 4)), np.ones((9, 3, 2))), ValueError),
        (2, (np.ones((9, 3, 4)), np.ones((9, 3, 0))), ValueError),
        (2, (np.ones((9, 3, 4)), np.ones(())), IndexError),
        (2, (np.ones((9, 3, 4)), np.broadcast_to(np.ones((3, 4)), (9, 3, 4))), ValueError),
        (2, (np.ones((9, 3, 4)), np.frombuffer(bytes(900), np.uint8)[4:-32].view("f8").reshape(9, 3, 4)), ValueError),
        (3, 9, IndexError),
        (3, -1, IndexError),
        (3, 10**30, IndexError),
        (3, 1.0, TypeError),
        (4, [], TypeError),
        (4, (), ValueError),
        (4, (np.ones(1, np.float32),), ValueError),
        (4, (np.ones(1),) * 63, ValueError),
    ],
)
def test_a_recording_with_one_wrong_argument(position: int, value: Any, error: type[Exception]) -> None:
    arrays = (np.ones((9, 3, 4)), np.ones((9, 3, 4)))
    calls = recorded(body_doubling, [array[0] for array in arrays], ())
    arguments: list[Any] = [calls.ufuncs, calls.table, arrays, 0, calls.kept]
    assert len(replay._replay.record(*arguments)) == 1
    wrong_arguments = [*arguments[:position], value, *arguments[position + 1 :]]
    refuses(error, ".", lambda: replay._replay.record(*wrong_arguments), arrays)


@needs_compiled
@pytest.mark.parametrize(
    ("change_arrays", "error"),
    [
        (lambda a: a[:3], ValueError),
        (lambda a: [*a, a[0]], ValueError),
        (lambda a: [None, *a[1:]], TypeError),
        (lambda a: [FalseArray(), *a[1:]], TypeError),
        (lambda a: [a[0].tolist(), *a[1:]], TypeError),
        (lambda a: [a[0].astype(np.float32), *a[1:]], ValueError),
        (lambda a: [a[0].astype(">f8"), *a[1:]], ValueError),
        (lambda a: [a[0].astype(np.int64), *a[1:]], ValueError),
        (lambda a: [a[0][:, :2], *a[1:]], ValueError),
        (lambda a: [a[0][:, :, :2], *a[1:]], ValueError),
        (lambda a: [a[0][::-1], *a[1:]], ValueError),
        (lambda a: [a[0][:, ::-1], *a[1:]], ValueError),
        (lambda a: [a[0][0], *a[1:]], ValueError),
        (lambda a: [a[0].reshape(-1), *a[1:]], ValueError),
        (lambda a: [*a[:2], read_only(a[2]), a[3]], ValueError),
    ],
    ids=range(15),
)
def test_a_run_on_other_arrays_than_those_recorded(
    change_arrays: Callable[[list], list], error: type[Exception]
) -> None:
    arrays = some_arrays()
    loop = Loop(accumulate, arrays, 0)
    refuses(error, ".", lambda: loop.run(change_arrays(arrays), 0, 9), arrays)


def read_only(array: NDArray) -> NDArray:
    view = array[:]
    view.flags.writeable = False
    return view


@needs_compiled
@pytest.mark.parametrize("bounds", [(-1.0, 1.0), (2.0, 1.0), (np.nan, 1.0), (0.0, np.nan), (0, 10**400), ("0", 1)])
def test_a_run_between_bounds_that_are_none(bounds: tuple) -> None:
    arrays = some_arrays()
    loop = Loop(accumulate, arrays, 0, guarded=[2])
    refuses(TypeError if "0" in bounds else ValueError, ".", lambda: loop.run(arrays, 0, 9, *bounds), arrays)


@needs_compiled
@pytest.mark.parametrize("dtype", [">f8", np.int64, np.int8, np.complex64])
def test_a_guard_of_what_is_no_float_of_this_machine(dtype: Any) -> None:
    arrays = [np.ones((9, 3, 4)), np.ones((9, 3, 4)), np.full((9, 3, 4), 2).astype(dtype)]
    loop = Loop(body_doubling, arrays, 0, guarded=[2])
    assert loop.reason
    assert loop.run(arrays, 0, 9, 0.5, 3.0) == (9, True)
    assert loop.run(arrays, 0, 9, 0.5, 1.0) == (1, False)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_is_read_only_may_be_read_and_not_written(dtype: type) -> None:
    arrays = [read_only(array) if i < 2 else array for i, array in enumerate(some_arrays(dtype))]
    loop = Loop(accumulate, arrays, 0)
    assert (loop.calls is not None) == (replay._replay is not None)
    loop.run(arrays, 0, 9)
    assert contents_of(arrays) == in_python(accumulate, some_arrays(dtype))
    with_read_only_output = [*arrays[:3], read_only(arrays[3])]
    if replay._replay is not None:
        refuses(ValueError, "read-only", lambda: loop.run(with_read_only_output, 0, 9), arrays)
        assert (
            Loop(accumulate, with_read_only_output, 0).reason
            == "accumulate: calls add into an array that it does not fill"
        )


@needs_compiled
@pytest.mark.parametrize("shape", [(9, 0, 4), (9, 3, 0), (9, 1, 1), (1, 3, 4)])
@pytest.mark.parametrize("view", [lambda a: a, lambda a: a[::-1], lambda a: a[:, ::-1], lambda a: a[..., ::-1]])
def test_axes_of_no_length_and_strides_that_go_backwards(shape: tuple[int, ...], view: Callable) -> None:
    source, destination = np.arange(np.prod(shape), dtype=float).reshape(shape), np.zeros(shape)
    arrays = [view(source), view(destination)]
    expected = in_python(body_doubling, [source, destination.copy()])[1]
    Loop(body_doubling, arrays, 0, guarded=[]).run(arrays, 0, len(source))
    assert destination.tobytes() == expected


def shift(rows: Sequence[NDArray]) -> None:
    np.multiply(rows[0], 1.5, out=rows[1])


@needs_compiled
def test_arrays_that_overlap_otherwise_than_when_recorded_run_in_python() -> None:
    """By NumPy's rules, which take a copy where a call reads what it writes."""

    def interleaved(space: NDArray) -> list[NDArray]:
        return [space[:, :, :4], space[:, :, 1:5]]

    arrays = interleaved(np.ones((9, 2, 5))), interleaved(np.arange(90.0).reshape(9, 2, 5))
    separate_arrays = [arrays[0][0], np.zeros((9, 2, 5))[:, :, 1:]]
    loop = Loop(shift, separate_arrays, 0)
    assert loop.calls == 1
    with compiled.watched() as reasons:
        loop.run(arrays[1], 0, 9)
    assert [*reasons] == ["shift: arrays[0], arrays[1]: share memory otherwise than when recorded"]
    assert contents_of(arrays[1]) == in_python(shift, interleaved(np.arange(90.0).reshape(9, 2, 5)))


@needs_compiled
def test_arrays_that_lay_together_when_recorded_and_do_not_now() -> None:
    """A row that lies in another's is recorded as a part of it."""

    def body(rows: Sequence[NDArray]) -> None:
        np.add(rows[0], 1.0, out=rows[0])
        np.multiply(rows[1], 2.0, out=rows[2])

    def arrays(contiguous: bool) -> list[NDArray]:
        space = np.arange(72.0).reshape(9, 2, 4)
        return [space, (space if contiguous else space.copy())[:, :, :2], np.zeros((9, 2, 2))]

    loop, run = Loop(body, arrays(True), 0), arrays(False)
    assert loop.calls == 2
    loop.run(run, 0, 9)
    assert contents_of(run) == in_python(body, arrays(False))


@needs_compiled
def test_rows_that_move_differently_in_the_same_memory_run_in_python() -> None:
    def arrays() -> list[NDArray]:
        space = np.arange(36.0).reshape(9, 4)[:, None]
        return [space, repeated(space[0], 9)]

    run = arrays()
    loop = Loop(shift, run, 0)
    assert loop.reason == "shift: arrays[0], arrays[1]: move on differently in the same memory"
    loop.run(run, 0, 9)
    assert contents_of(run) == in_python(shift, arrays())


@needs_compiled
@pytest.mark.parametrize(
    "foreign",
    [lambda a: as_strided(a, a.shape, a.strides), lambda a: np.asarray(_Interface(a))],
    ids=["strided", "interface"],
)
def test_memory_whose_size_nobody_knows_runs_in_python(foreign: Callable[[NDArray], NDArray]) -> None:
    arrays = some_arrays()
    loop = Loop(accumulate, arrays, 0)
    with compiled.watched() as reasons:
        loop.run([foreign(arrays[0]), *arrays[1:]], 0, 9)
    assert "memory of unknown size" in next(iter(reasons))
    assert contents_of(arrays) == in_python(accumulate, some_arrays())


class _Interface:
    def __init__(self, array: NDArray) -> None:
        self.__array_interface__ = {**array.__array_interface__}


@needs_compiled
def test_arrays_that_claim_more_than_their_memory() -> None:
    """An array of NumPy's over a bytearray that has been cut short since."""
    block = bytearray(9 * 12 * 8)
    arrays = [np.ndarray((9, 3, 4), float, block), np.zeros((9, 3, 4))]
    loop = Loop(body_doubling, arrays, 0)
    loop.run(arrays, 0, 9)
    del block[-8:]
    refuses(ValueError, "not within its own memory", lambda: loop.run(arrays, 0, 9), arrays[1:])


@needs_compiled
@pytest.mark.parametrize("block", [np.zeros((500_000, 8)), bytearray(32_000_000)], ids=["array", "bytearray"])
def test_memory_is_not_resized_under_a_run_nor_a_recording_used_by_two(block: Any) -> None:
    """Another thread tries, until it is refused or the run is over."""
    owner = block if isinstance(block, np.ndarray) else None
    steps = 500_000
    arrays = [owner if owner is not None else np.ndarray((steps, 8), float, block), repeated(np.zeros(8), steps)]

    def slow_body(rows: Sequence[NDArray]) -> None:
        for _ in range(4):
            rows[1][...] = np.tanh(rows[0] + rows[1])

    loop, refused = Loop(slow_body, arrays, 0), set()
    assert loop.calls == 12
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(loop.run, arrays, 0, steps)
        while not running.done():
            try:
                loop.run(arrays, 0, 1)
            except ValueError as error:
                assert "another thread" in str(error)  # noqa: PT017 - it may or may not be there yet
                refused.add("run")
                try:
                    owner.resize((steps + 1, 8), refcheck=False) if owner is not None else block.append(0)
                except (ValueError, BufferError):
                    refused.add("resize")
        assert running.result() == (steps, True)
    assert refused == {"run", "resize"}


@needs_compiled
def test_a_copy_of_a_recording_has_memory_of_its_own() -> None:
    arrays = some_arrays()
    loop = Loop(accumulate, arrays, 0)
    copied = copy.deepcopy(loop)
    assert copied.calls == loop.calls
    assert copied._recording is not loop._recording
    del loop
    copied.run(arrays, 0, 9)
    assert contents_of(arrays) == in_python(accumulate, some_arrays())


def test_a_body_that_fails_when_recorded_leaves_the_arrays_as_they_were() -> None:
    def body(rows: Sequence[NDArray]) -> None:
        np.asarray(rows[1])[...] = 7
        raise ZeroDivisionError

    if replay._replay is not None:
        arrays = [np.ones((9, 3)), np.zeros((9, 3))]
        refuses(ZeroDivisionError, "^$", lambda: Loop(body, arrays, 0), arrays)


@needs_compiled
@settings(max_examples=500)
@given(st.integers(0, 2**32))
def test_whatever_is_handed_over(seed: int) -> None:
    """``scripts/sanitize.sh`` does the same for longer, under the sanitizers."""
    with np.errstate(all="ignore"):
        assert attempt(np.random.default_rng(seed))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (lambda rows: np.negative(rows[0], out=rows[0]) if -rows[0] else None, "branches on the data"),
        (
            lambda rows: np.multiply(rows[0], np.float64(rows[0][0, 0]), out=rows[0]),
            "takes a number out of an array",
        ),
        (
            lambda rows: np.multiply(rows[0], -1 if rows[0][0, 0] < 2 else 1, out=rows[0]),
            "takes a number out of an array",
        ),
        (lambda rows: np.multiply(rows[0], rows[0][0, :1].item(), out=rows[0]), "takes a number out of an array"),
        (lambda rows: np.multiply(rows[0], max(rows[0][0]), out=rows[0]), "takes a number out of an array"),
        (lambda rows: np.add(rows[0], 1, out=rows[0], where=[True]), "calls add in a way of its own"),
        (lambda rows: np.add.reduce(rows[0], axis=0), "calls add.reduce in a way of its own"),
        (lambda rows: rows[0].sort(), "calls no ufunc"),
        (
            lambda rows: (np.asarray(rows[0]).__iadd__(1), np.negative(rows[0], out=rows[0])),
            "computes what its calls of ufuncs do not",
        ),
    ],
)
def test_the_reason_why_a_body_is_not_recorded(body: Callable, reason: str) -> None:
    if replay._replay is not None:
        assert reason in Loop(body, [np.full((9, 3, 4), 3.0)], 0).reason
