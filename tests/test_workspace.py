"""What passes share: memory that is lent while anyone holds a view of it, and recordings that are
never another's.
"""

import gc
import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np
import pytest
from numpy.typing import NDArray

from conftest import UNREAD, Case, cell_id, cells, make_case
from gradpath.cells.gru import GRU
from gradpath.cells.lstm import LSTM
from gradpath.cells.rnn import RNN
from gradpath.core.cell import Cell
from gradpath.core.losses import Loss
from gradpath.core.trace import Trace
from gradpath.engine import replay
from gradpath.engine.buffer_pool import BufferPool
from gradpath.engine.workspace import Workspace, repeated
from gradpath.instruments.counterfactual import Counterfactual
from gradpath.instruments.param_grad_norm import ParamGradNorm

compiled = pytest.mark.skipif(replay._replay is None, reason="gradpath.engine._replay is not built: no C compiler here")


def trace_arrays(trace: Trace) -> Iterator[NDArray]:
    for layer in trace.tape.layers:
        yield from (layer.augmented_input, layer.pre, layer.gates, *layer.states.values(), *layer.saved.values())
    for scaled in (*trace.deltas, *trace.states.values(), *trace.direct.values(), trace.gradient.scaled):
        yield from (scaled.array, scaled.exponent)
    yield ParamGradNorm().measure(UNREAD, trace).values


def bits(trace: Trace) -> list[bytes]:
    return [array.tobytes() for array in trace_arrays(trace)]


# --- recordings -----------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", [RNN(3), LSTM(3), GRU(3)], ids=cell_id)
def test_a_cell_that_is_made_is_not_changed(cell: Cell) -> None:
    for name in ("hidden_size", "freeze_f"):
        if hasattr(cell, name):
            with pytest.raises(AttributeError, match=f"{name} of a .* cannot be changed"):
                setattr(cell, name, 1)


def test_equal_cells_are_one_and_others_are_not() -> None:
    assert LSTM(3) == LSTM(3)
    assert len({LSTM(3), LSTM(3), LSTM(3, freeze_f=0.5), LSTM(4), RNN(3)}) == 4


@dataclass
class Clockwork(RNN):
    periods: list[int] = field(default_factory=lambda: [1, 2])


def test_a_list_among_the_values_of_a_cell_is_not_changed_either() -> None:
    assert Clockwork().periods == (1, 2)
    assert Clockwork(periods=[1, 2]) in {Clockwork()}
    assert Clockwork(periods=[1, 3]) not in {Clockwork()}


def test_what_goes_to_another_process_is_values_alone() -> None:
    cell = LSTM(3, freeze_f=0.5)
    assert hash(cell) == hash(LSTM(3, freeze_f=0.5))
    assert cell.blocks
    unpickled = pickle.loads(pickle.dumps(cell))
    assert vars(unpickled).keys() == {value.name for value in fields(cell)}
    assert unpickled == cell


@pytest.mark.parametrize("cell", cells(), ids=cell_id)
def test_any_number_of_cells_in_one_workspace_as_each_alone(cell: Cell) -> None:
    """With a gate held, with the gradient cut at the gates, and as it was: each recording is of its
    own cell.
    """
    variants = [cell, *cell.counterfactuals().values(), cell]
    case = make_case(cell, Loss.squared_error, 9, True)
    for variant in variants:
        network = replace(case.network, cell=variant)
        separate_trace = Case(network, case.theta, case.batch).trace
        tape = network.forward(case.theta, case.batch, case.workspace)
        assert bits(network.backward(case.theta, tape, case.workspace)) == bits(separate_trace)


def some_arrays() -> list[NDArray]:
    return [np.arange(1.0, 19).reshape(6, 3), np.zeros((6, 3))]


def times(factor: float) -> Callable[[Sequence[NDArray]], None]:
    def body(rows: Sequence[NDArray]) -> None:
        np.multiply(rows[0], factor, out=rows[1])

    return body


def test_another_closure_of_the_same_function_is_another_body() -> None:
    workspace = Workspace()
    for factor in (2.0, 3.0):
        arrays = some_arrays()
        workspace.loop(times(factor), arrays, 0).run(arrays, 0, 6)
        np.testing.assert_array_equal(arrays[1], factor * arrays[0])


def add_and_double(rows: Sequence[NDArray]) -> None:
    rows[1][...] = rows[0] + 1
    np.multiply(rows[2], 2, out=rows[2])


@pytest.mark.parametrize("aliased_first", [False, True])
def test_arrays_that_overlap_are_another_layout(aliased_first: bool) -> None:
    """The same shapes and strides, once with the last array in the place of the second and once
    apart from it.
    """
    workspace = Workspace()
    for aliased in (aliased_first, not aliased_first):
        arrays = some_arrays()
        arrays.append(arrays[1] if aliased else np.ones((6, 3)))
        workspace.loop(add_and_double, arrays, 0).run(arrays, 0, 6)
        np.testing.assert_array_equal(arrays[1], (arrays[0] + 1) * (2 if aliased else 1))
        np.testing.assert_array_equal(arrays[2], arrays[1] if aliased else np.full((6, 3), 2.0))


@compiled
@pytest.mark.parametrize("shift", [0, 1, 2])
def test_how_far_apart_two_arrays_begin_is_part_of_their_layout(shift: int) -> None:
    block = np.zeros((6, 8))
    assert (replay.layout([block, block[:, shift : shift + 4]]) == replay.layout([block, block[:, :4]])) == (shift == 0)
    assert replay.layout([block[:-1], block[1:]]) == replay.layout([np.zeros((6, 8))[:-1], np.zeros((6, 8))[1:]])


@compiled
def test_an_array_that_stays_may_lie_in_one_that_moves() -> None:
    """A row that is the same at every t overlaps the moving array at one t alone, and not at the
    first.
    """
    block = np.zeros((6, 8))
    repeated_row, moving = repeated(block[3].copy(), 6), np.ndarray((6, 8), float, block, block.strides[0] * 3, (0, 8))
    assert replay.layout([block, repeated_row]) != replay.layout([block, moving])


@compiled
def test_equal_passes_record_nothing_anew() -> None:
    case = make_case(LSTM(5), Loss.squared_error, 12, True)
    assert case.trace
    loops_before = [loop for _, loop in case.workspace]
    network = replace(case.network, cell=LSTM(5))
    assert network.backward(case.theta, network.forward(case.theta, case.batch, case.workspace), case.workspace)
    assert [loop for _, loop in case.workspace] == loops_before


# --- memory ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("every_step", [False, True])
@pytest.mark.parametrize("cell", [RNN(5), LSTM(5, layers=2), GRU(5)], ids=cell_id)
def test_a_trace_that_is_held_is_as_it_was_after_the_next_passes(cell: Cell, every_step: bool) -> None:
    case = make_case(cell, Loss.squared_error, 12, every_step)
    trace = case.trace
    bits_before = bits(trace)
    part = case.trace.deltas[0].array[3:5, 1]  # a view of a trace that is gone
    of_part = part.tobytes()
    case.theta = case.theta * 0.5
    for _ in range(3):
        assert bits(case.trace) != bits_before
    assert bits(trace) == bits_before
    assert part.tobytes() == of_part


def test_an_instrument_leaves_the_memory_of_training_alone() -> None:
    case = make_case(LSTM(5), Loss.squared_error, 12, True)
    trace = case.trace
    size, free_blocks = case.workspace.buffers.size, case.workspace.buffers.free
    assert free_blocks > 0
    Counterfactual().measure(case.network, trace)
    assert (case.workspace.buffers.size, case.workspace.buffers.free) == (size, free_blocks)


@pytest.mark.parametrize("every_step", [False, True])
def test_nothing_of_a_pass_outlives_its_trace(every_step: bool) -> None:
    """The recordings of its loops neither."""
    case = make_case(LSTM(5, layers=2), Loss.squared_error, 12, every_step)
    trace, buffers = case.trace, case.workspace.buffers
    ParamGradNorm().measure(case.network, trace)
    assert buffers.free < buffers.size / 2
    del trace
    gc.collect()
    assert buffers.free == buffers.size


def test_memory_is_lent_again_only_when_no_view_of_it_is_left() -> None:
    buffers = BufferPool()
    first_array = buffers.empty((3, 4), np.float32)
    address, view = first_array.ctypes.data, first_array[1:].T[0]
    del first_array
    second_array = buffers.empty_like(np.empty((5, 6), np.float32), 2)
    assert not np.shares_memory(view, second_array)
    del view
    third_array = buffers.empty((12,), np.float32)
    assert third_array.ctypes.data == address
    assert not np.shares_memory(second_array, third_array)


@pytest.mark.parametrize(
    "make_view", [memoryview, lambda array: np.frombuffer(array), lambda array: array.view(np.uint8)]
)
def test_whatever_looks_at_an_array_keeps_its_memory(make_view: Callable[[NDArray], object]) -> None:
    buffers = BufferPool()
    view = make_view(buffers.empty((4,), np.float64))
    assert not np.shares_memory(np.asarray(view), buffers.empty((4,), np.float64))
    assert (buffers.size, buffers.free) == (64, 32)
    del view
    assert buffers.free == 64


def test_an_array_is_aligned_and_can_be_written() -> None:
    for shape, dtype in (((3, 4), np.float32), ((5,), np.float64), ((0, 3), np.float32), ((), np.float64)):
        array = BufferPool().empty(shape, dtype)
        assert (array.shape, array.dtype, array.flags.writeable) == (shape, dtype, True)
        assert array.size == 0 or array.ctypes.data % 64 == 0


def test_memory_of_another_shape_is_given_back() -> None:
    buffers = BufferPool()
    buffers.empty((3, 4), np.float32)
    kept_array = buffers.empty((5,), np.float64)
    assert (buffers.size, buffers.free) == (40, 0)
    buffers.empty((7,), np.float64)
    assert (buffers.size, buffers.free) == (96, 56)
    assert kept_array.size == 5
