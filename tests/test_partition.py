"""A pass cut in two: the same numbers as whole, and the same bits whoever computes the parts."""

from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from threading import get_ident

import numpy as np
import pytest

from conftest import UNREAD, Case, cell_id, cells, make_case, signature
from gradpath.cells.lstm import LSTM
from gradpath.cells.rnn import RNN
from gradpath.commands import compose
from gradpath.core import backward, bptt, weight_gradients
from gradpath.core.activations import Activation
from gradpath.core.cell import Cell
from gradpath.core.losses import Loss
from gradpath.engine import partition
from gradpath.engine.workspace import Workspace
from gradpath.instruments.param_grad_norm import ParamGradNorm
from gradpath.training import passes
from gradpath.training.loop import train, train_seeds

TRAINED = ["task.length=30", "train.batch_size=11", "train.eval_size=20", "train.steps=6", "cell.hidden_size=6"]


@pytest.fixture
def always_partitioned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every pass is cut in two, however small, and its way back in several chunks of steps."""
    monkeypatch.setattr(passes, "cores", lambda: 2)
    monkeypatch.setattr(partition, "MIN_MULTIPLY_ADDS", 0)
    monkeypatch.setattr(backward, "CHUNK_ELEMENTS", 2**11)
    monkeypatch.setattr(weight_gradients, "CHUNK_ELEMENTS", 2**10)


@pytest.fixture
def pool() -> Iterator[Executor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


@pytest.mark.parametrize(
    ("length", "multiple", "lengths"),
    [(20, 4, [12, 8]), (32, 4, [16, 16]), (5, 4, [4, 1]), (4, 4, [4]), (1, 1, [1]), (7, 1, [4, 3]), (128, 4, [64, 64])],
)
def test_parts_are_whole_rows_of_a_product(length: int, multiple: int, lengths: list[int]) -> None:
    slices = partition.partition(length, partition.MIN_MULTIPLY_ADDS, multiple)
    assert [part.stop - part.start for part in slices] == lengths
    assert [row for part in slices for row in range(length)[part]] == list(range(length))
    assert partition.partition(length, partition.MIN_MULTIPLY_ADDS - 1, multiple) == [slice(0, length)]


def case_of(cell: Cell, every_step: bool, dtype: type, gain: float, pool: Executor | None = None) -> Case:
    """Of 11 sequences and 40 steps; with a small gain the adjoint is rescaled on the way, with a
    large one too.
    """
    case = make_case(cell, Loss.squared_error, 40, every_step, dtype, sequences=11)
    case.network, case.executor = replace(case.network, splits_large_passes=True), pool
    case.theta *= dtype(gain)
    return case


@pytest.mark.parametrize("gain", [0.3, 1, 4])
@pytest.mark.parametrize("every_step", [False, True])
@pytest.mark.parametrize("cell", cells(), ids=cell_id)
@pytest.mark.pairwise
def test_in_parts_as_whole(cell: Cell, every_step: bool, gain: float, request: pytest.FixtureRequest) -> None:
    """In log10, because with a small gain the gradient leaves the range of floats."""
    unpartitioned = case_of(cell, every_step, np.float64, gain).trace
    expected = ParamGradNorm().measure(UNREAD, unpartitioned).values
    request.getfixturevalue("always_partitioned")
    partitioned = case_of(cell, every_step, np.float64, gain).trace
    np.testing.assert_allclose(ParamGradNorm().measure(UNREAD, partitioned).values, expected, rtol=0, atol=1e-9)
    np.testing.assert_allclose(partitioned.tape.loss, unpartitioned.tape.loss, rtol=1e-12)
    for name, norm in unpartitioned.gradient.by_parameter.items():
        assert partitioned.gradient.by_parameter[name] == pytest.approx(norm, rel=0, abs=1e-9) or norm == -np.inf


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("gain", [0.3, 1])
@pytest.mark.parametrize("every_step", [False, True])
@pytest.mark.parametrize("cell", cells(), ids=cell_id)
@pytest.mark.pairwise
def test_two_threads_give_the_bits_of_one(
    cell: Cell, every_step: bool, gain: float, dtype: type, always_partitioned: None, pool: Executor
) -> None:
    one_thread, two_threads = (case_of(cell, every_step, dtype, gain, executor).trace for executor in (None, pool))
    assert (
        ParamGradNorm().measure(UNREAD, one_thread).values.tobytes()
        == ParamGradNorm().measure(UNREAD, two_threads).values.tobytes()
    )
    assert one_thread.gradient.scaled.array.tobytes() == two_threads.gradient.scaled.array.tobytes()
    for name, states in one_thread.states.items():
        assert states.array.tobytes() == two_threads.states[name].array.tobytes()
        assert states.exponent.tobytes() == two_threads.states[name].exponent.tobytes()


def test_the_parts_are_computed_by_different_threads(always_partitioned: None, pool: Executor, monkeypatch) -> None:
    threads_by_part: tuple[dict, dict] = {}, {}
    original = Workspace.loop

    def loop(self: Workspace, body: object, arrays: object, t: int, guarded: object = (), part: int = 0) -> object:
        threads_by_part[part].setdefault(type(body), set()).add(get_ident())
        return original(self, body, arrays, t, guarded, part)

    monkeypatch.setattr(Workspace, "loop", loop)
    assert case_of(LSTM(5), True, np.float64, 1, pool).trace
    first_threads, second_threads = threads_by_part
    assert first_threads.keys() == {bptt._Step, backward._StepBack, backward._Slopes, weight_gradients._Accumulate}
    assert first_threads.keys() == second_threads.keys()
    assert set.union(*first_threads.values()) == {get_ident()}
    assert len(set.union(*second_threads.values()) - {get_ident()}) == len(set.union(*second_threads.values())) == 1


@pytest.mark.parametrize(("setting", "cores", "expected"), [(None, 2, 2), (None, 1, 1), (1, 2, 1), (2, 1, 2)])
def test_what_is_cut_depends_on_the_setting_and_the_cores(
    setting: int | None, cores: int, expected: int, always_partitioned: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    partitions, original = [], Workspace.parts
    monkeypatch.setattr(
        Workspace,
        "parts",
        lambda self, *shape: partitions.append(partition_result := original(self, *shape)) or partition_result,
    )
    monkeypatch.setattr(passes, "cores", lambda: cores)
    next(train(compose.experiment([*TRAINED, f"train.threads={'null' if setting is None else setting}"])))
    assert max(len(partition_result) for partition_result in partitions) == expected


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("arm", ["rnn", "clipped_lstm", "gru"])
def test_training_has_the_same_bits_in_any_number_of_threads_and_in_any_company(
    arm: str, count: int, always_partitioned: None
) -> None:
    base_experiment = compose.experiment([*TRAINED, f"arm={arm}"])
    experiments = [replace(base_experiment, seed=seed) for seed in range(3)]
    side_by_side = list(train_seeds(experiments, count))
    for index, experiment in enumerate(experiments):
        one_by_one = [signature(step) for step in train(experiment)]
        assert [signature(steps[0]) for steps in train_seeds([experiment], count)] == one_by_one
        assert [signature(steps[index]) for steps in side_by_side] == one_by_one


def test_a_failure_in_the_other_thread_is_not_lost(pool: Executor) -> None:
    finished = []

    def work(index: int, rows: slice) -> None:
        if index:
            raise ArithmeticError(rows)
        finished.append(rows)

    with pytest.raises(ArithmeticError):
        partition.for_each(work, [slice(0, 2), slice(2, 3)], pool)
    assert finished == [slice(0, 2)]


def test_what_numpy_is_told_to_ignore_holds_in_the_other_thread_too(pool: Executor) -> None:
    settings = []
    with np.errstate(over="ignore", invalid="print"):
        partition.for_each(lambda *_: settings.append(np.geterr()), [slice(0, 1), slice(1, 2)], pool)
    assert settings[0] == settings[1]
    assert (settings[1]["over"], settings[1]["invalid"]) == ("ignore", "print")


def test_a_network_that_blows_up_is_inf_and_no_warning(always_partitioned: None, pool: Executor) -> None:
    case = case_of(RNN(5, activation=Activation.relu), True, np.float32, 1e3, pool)
    with np.errstate(over="ignore", invalid="ignore"):
        assert not np.isfinite(case.trace.tape.loss)
