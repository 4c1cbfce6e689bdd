"""Loops recorded once and replayed: the bits of the body itself, or the body itself; and what a
step costs in calls.
"""

import gc
import sys
from collections.abc import Callable, Iterator, Sequence
from threading import Lock

import numpy as np
import pytest
from numpy.typing import NDArray

from conftest import UNREAD, Case, cell_id, cells, make_case
from gradpath.cells.lstm import LSTM
from gradpath.cells.rnn import RNN
from gradpath.core import backward, bptt, weight_gradients
from gradpath.core.cell import Cell
from gradpath.core.losses import Loss
from gradpath.core.trace import Trace
from gradpath.engine import gate_layout, replay
from gradpath.engine.replay import Loop
from gradpath.engine.workspace import repeated
from gradpath.instruments.param_grad_norm import ParamGradNorm

compiled = pytest.mark.skipif(replay._replay is None, reason="gradpath.engine._replay is not built: no C compiler here")


def trace_arrays(trace: Trace) -> Iterator[NDArray]:
    for layer in trace.tape.layers:
        yield from (layer.augmented_input, layer.pre, layer.gates, *layer.states.values(), *layer.saved.values())
    for scaled in (*trace.deltas, *trace.states.values(), trace.gradient.scaled):
        yield from (scaled.array, scaled.exponent)
    yield ParamGradNorm().measure(UNREAD, trace).values


@compiled
@pytest.mark.parametrize("min_width", [1, 10**9], ids=["apart", "side by side"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("every_step", [False, True])
@pytest.mark.parametrize("cell", cells(), ids=cell_id)
@pytest.mark.pairwise
def test_compiled_and_not_give_the_same_bits(
    cell: Cell, every_step: bool, dtype: type, min_width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long enough that the adjoint of the saturating cells is rescaled on the way."""
    monkeypatch.setattr(gate_layout, "MIN_SEPARATE_WIDTH", min_width)
    passes = []
    for module in (replay._replay, None):
        monkeypatch.setattr(replay, "_replay", module)
        case = make_case(cell, Loss.squared_error, 40, every_step, dtype)
        case.theta *= dtype(0.6)
        passes.append(list(trace_arrays(case.trace)))
        assert {loop.calls is not None for _, loop in case.workspace} == {module is not None}
    for compiled_array, python_array in zip(*passes, strict=True):
        assert compiled_array.tobytes() == python_array.tobytes()


@pytest.mark.parametrize("every_step", [False, True])
@pytest.mark.parametrize("cell", cells(), ids=cell_id)
def test_blocks_apart_and_side_by_side_agree(cell: Cell, every_step: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = []
    for min_width in (1, 10**9):
        monkeypatch.setattr(gate_layout, "MIN_SEPARATE_WIDTH", min_width)
        passes.append(list(trace_arrays(make_case(cell, Loss.squared_error, 6, every_step).trace)))
    for first_array, second_array in zip(*passes, strict=True):
        np.testing.assert_allclose(first_array, second_array, rtol=1e-11, atol=1e-14)


def accumulate(rows: Sequence[NDArray]) -> None:
    x, matrix, y, total = rows
    np.matmul(x, matrix, out=y)
    y += 1.0
    total += np.tanh(y)


def body_with_where(rows: Sequence[NDArray]) -> None:
    x, _, y, total = rows
    y[...] = np.where(x > 0, x, 0.5 * x)
    total += y


def body_with_branch(rows: Sequence[NDArray]) -> None:
    x, _, y, total = rows
    y[...] = x if x.max() > 1 else -x
    total += y


def body_with_copy(rows: Sequence[NDArray]) -> None:
    x, _, y, total = rows
    z = x.copy()
    z *= 2
    y[...] = z
    total += y


def body_without_subclass(rows: Sequence[NDArray]) -> None:
    x, _, y, total = rows
    np.multiply(np.asarray(x), 2, out=np.asarray(y))
    total += y


def some_arrays(dtype: type = np.float64) -> tuple[list[NDArray], NDArray]:
    rng = np.random.default_rng(0)
    total = np.zeros((3, 4), dtype)
    inputs, matrix = rng.normal(size=(9, 3, 4)).astype(dtype), rng.normal(size=(4, 4)).astype(dtype)
    return [inputs, repeated(matrix, 9), np.zeros((9, 3, 4), dtype), repeated(total, 9)], total


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("body", [accumulate, body_with_where, body_with_branch, body_with_copy, body_without_subclass])
def test_a_loop_does_what_its_body_does(body: Callable[[Sequence[NDArray]], None], dtype: type) -> None:
    arrays, total = some_arrays(dtype)
    loop = Loop(body, arrays, 0)
    assert not total.any(), "recording leaves no trace"
    if replay._replay is not None:
        assert (loop.calls is not None) == (body is accumulate)
    assert loop.run(arrays, 0, 9) == (9, True)
    expected, expected_total = some_arrays(dtype)
    for t in range(9):
        body([array[t] for array in expected])
    assert arrays[2].tobytes() == expected[2].tobytes()
    assert total.tobytes() == expected_total.tobytes()


@compiled
def test_a_recording_is_used_again_for_other_arrays_of_the_same_layout() -> None:
    arrays, _ = some_arrays()
    loop = Loop(accumulate, arrays, 3)
    other_arrays = [array.copy() if array.strides[0] else repeated(array[0].copy(), 9) for array in arrays]
    other_arrays[0][:] = np.random.default_rng(1).normal(size=other_arrays[0].shape)
    loop.run(other_arrays, 8, -1)
    expected, total = other_arrays[2].copy(), other_arrays[3][0].copy()
    other_arrays[3][0][...] = 0
    for t in range(8, -1, -1):
        accumulate([array[t] for array in other_arrays])
    assert expected.tobytes() == other_arrays[2].tobytes()
    assert total.tobytes() == other_arrays[3][0].tobytes()


def body_doubling(rows: Sequence[NDArray]) -> None:
    np.multiply(rows[0], 2, out=rows[1])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("module", ["compiled", "python"])
@pytest.mark.parametrize("out_of_bounds", [0.0, 1e-30, 1e30, np.inf, np.nan])
def test_a_guard_stops_the_loop_after_the_step_that_left_the_bounds(
    out_of_bounds: float, module: str, dtype: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    if module == "python":
        monkeypatch.setattr(replay, "_replay", None)
    elif replay._replay is None:
        pytest.skip("gradpath.engine._replay is not built: no C compiler here")
    values = np.ones((7, 2, 5), dtype)
    values[4, 1] = out_of_bounds
    values[:, 0, 0] = 0
    arrays = [values, np.empty_like(values)]
    loop = Loop(body_doubling, arrays, 6, guarded=[1])
    assert loop.run(arrays, 6, -1, 1e-9, 1e9) == ((-1, True) if out_of_bounds == 0 else (3, False))
    assert loop.run(arrays, 5, 4, 1e-9, 1e9) == (4, True)


def trained(cell: Cell, steps: int, dtype: type = np.float32) -> Case:
    case = make_case(cell, Loss.squared_error, steps, True, dtype)
    for _ in range(2):
        ParamGradNorm().measure(case.network, case.trace)
    return case


@compiled
def test_a_thread_releases_the_python_lock_in_the_compiled_loops(monkeypatch) -> None:
    """And has it everywhere else."""
    case = trained(LSTM(5), 12)
    lock, lock_states, original = Lock(), [], replay._replay.run
    monkeypatch.setattr(
        replay._replay, "run", lambda *arguments: lock_states.append(lock.locked()) or original(*arguments)
    )
    case.workspace.python_lock = lock
    with lock:
        assert case.trace
        assert lock.locked()
    assert lock_states
    assert not any(lock_states)


@compiled
@pytest.mark.parametrize(
    ("cell", "calls"),
    [
        (RNN(5), {"forward": 3, "slopes": 2, "backward": 4, "gradients of 3": 6, "gradients of 2": 5}),
        (LSTM(5), {"forward": 11, "slopes": 6, "backward": 15, "gradients of 3": 6, "gradients of 2": 5}),
    ],
    ids=["RNN", "LSTM"],
)
def test_a_timestep_is_so_many_numpy_calls_and_none_of_python(cell: Cell, calls: dict[str, int]) -> None:
    """The guard on speed that no noise of a machine can trip: whoever adds a call to a timestep,
    changes it here.
    """

    def name(body: object) -> str:
        match body:
            case bptt._Step():
                return "forward"
            case backward._Slopes():
                return "slopes"
            case backward._StepBack():
                return "backward" if body.adds_to is not None else "backward, nothing arriving"
            case weight_gradients._Accumulate():
                return f"gradients of {len(body.rows)}"
        raise AssertionError(body)

    calls_by_body = {name(body): loop.calls for body, loop in trained(cell, 12).workspace}
    del calls_by_body["backward, nothing arriving"]
    assert calls_by_body == calls


@compiled
@pytest.mark.parametrize("cell", [RNN(5), LSTM(5), LSTM(5, layers=2)], ids=cell_id)
def test_a_training_step_calls_and_allocates_as_often_whatever_its_length(
    cell: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Function calls, Python's and C's, of forward, backward and all norms, in steady state; a call
    that is not made allocates nothing.
    """
    monkeypatch.setattr(backward, "CHUNK_ELEMENTS", 10**9)
    monkeypatch.setattr(weight_gradients, "CHUNK_ELEMENTS", 10**9)
    counts = []
    for steps in (30, 300):
        case, count = trained(cell, steps, np.float64), 0  # in float32 some norms are formed a second time

        def counting(frame: object, event: str, argument: object) -> None:
            nonlocal count
            count += event in ("call", "c_call")

        gc.disable()  # at a collection Hypothesis, once imported, calls functions of its own
        sys.setprofile(counting)
        ParamGradNorm().measure(case.network, case.trace)
        sys.setprofile(None)
        gc.enable()
        counts.append(count)
    assert counts[0] == counts[1]
