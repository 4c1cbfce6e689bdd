"""Every task that is discovered: shapes, seeding, what a perfect and what a constant predictor
score.
"""

import numpy as np
import pytest

from gradpath.core.losses import Loss, evaluate
from gradpath.core.tape import Batch, Tape
from gradpath.schema.discovery import discover
from gradpath.tasks import Task
from gradpath.tasks.adding import Adding
from gradpath.tasks.copy import Copy
from gradpath.tasks.temporal_order import TemporalOrder, Variant

TASKS = list(discover(Task).items())


@pytest.fixture(params=TASKS, ids=[name for name, _ in TASKS])
def task(request: pytest.FixtureRequest) -> Task:
    return request.param[1](length=30)


def read_out(task: Task, batch: Batch, outputs: np.ndarray) -> Tape:
    """A tape as a network with these outputs would leave it."""
    scored = np.flatnonzero(batch.mask.any(axis=1))
    loss, gradient = evaluate(task.loss, outputs[scored], batch.targets[scored], batch.mask[scored])
    return Tape(None, batch, (), scored, outputs[scored], loss, gradient)  # type: ignore[arg-type]


def test_shapes_and_seed(task: Task) -> None:
    first_batch, same_seed_batch, other_seed_batch = (task.sample(np.random.default_rng(seed), 7) for seed in (0, 0, 1))
    inputs, _ = task.sizes
    assert first_batch.inputs.shape == (task.timesteps, 7, inputs)
    assert first_batch.mask.shape == (task.timesteps, 7)
    assert first_batch.mask.any(axis=0).all()
    for name in ("inputs", "targets", "mask"):
        assert getattr(first_batch, name).tobytes() == getattr(same_seed_batch, name).tobytes()
    needs_input = task.chance_loss > 0
    assert (first_batch.inputs.tobytes() != other_seed_batch.inputs.tobytes()) == needs_input


def test_a_perfect_predictor_scores_zero_and_solves(task: Task) -> None:
    batch = task.sample(np.random.default_rng(0), 50)
    targets = 100.0 * np.eye(task.sizes[1])[batch.targets] if task.loss is Loss.cross_entropy else batch.targets
    tape = read_out(task, batch, targets)
    assert tape.loss < 1e-12
    assert task.score(tape) < 1e-12
    assert task.solved(task.score(tape))


def test_the_best_predictor_that_ignores_the_input_scores_chance(task: Task) -> None:
    batch = task.sample(np.random.default_rng(0), 20_000)
    if task.loss is Loss.squared_error:
        mean = np.array(
            [batch.targets[t][batch.mask[t]].mean() if batch.mask[t].any() else 0 for t in range(task.timesteps)]
        )
        outputs = np.broadcast_to(mean[:, None, None], batch.targets.shape)
    else:
        frequencies = np.stack([np.bincount(row, minlength=task.sizes[1]) for row in batch.targets]) / 20_000
        outputs = np.broadcast_to(np.log(frequencies + 1e-300)[:, None], (*batch.mask.shape, task.sizes[1]))
    tape = read_out(task, batch, outputs)
    assert tape.loss == pytest.approx(task.chance_loss, rel=0.02)
    assert task.solved(task.score(tape)) == (task.chance_loss == 0), "only a task that needs no input is solved by this"


def test_adding_marks_one_number_in_each_half() -> None:
    batch = Adding(length=31).sample(np.random.default_rng(0), 5000)
    marker = batch.inputs[..., 1]
    assert (marker[:15].sum(axis=0) == 1).all()
    assert (marker[15:].sum(axis=0) == 1).all()
    np.testing.assert_allclose((batch.inputs[..., 0] * marker).sum(axis=0), batch.targets[-1, :, 0])
    assert (marker.sum(axis=1) > 0).all(), "every position is used"


@pytest.mark.parametrize(("variant", "latest_second"), [(Variant.code, 25), (Variant.paper, 20)])
def test_temporal_order_places_and_classes(variant: Variant, latest_second: int) -> None:
    task = TemporalOrder(length=50, variant=variant)
    batch = task.sample(np.random.default_rng(0), 3000)
    symbols = batch.inputs.argmax(axis=-1)
    relevant = symbols >= 4
    assert (relevant.sum(axis=0) == 2).all()
    first_position, last_position = relevant.argmax(axis=0), 49 - relevant[::-1].argmax(axis=0)
    assert set(first_position) == set(range(5, 10))
    assert set(last_position) == set(range(latest_second, latest_second + 5))
    b = np.arange(3000)
    assert (batch.targets[-1] == 2 * (symbols[first_position, b] - 4) + symbols[last_position, b] - 4).all()
    assert task.lags == (49 - (latest_second + 4), 49 - 5)


def test_copy_recalls_in_order_after_the_signal() -> None:
    task = Copy(length=12)
    batch = task.sample(np.random.default_rng(0), 40)
    symbols = batch.inputs.argmax(axis=-1)
    assert (symbols[:10] < 8).all()
    assert (batch.targets[-10:] == symbols[:10]).all()
    assert (batch.targets[:-10] == 8).all()
    assert (symbols[10:] == 9).sum() == 40
    assert (symbols[10 + 12 - 1] == 9).all()
    assert task.timesteps == 32
    assert task.lags == (22, 22)


def test_batch_type_changes_numbers_and_not_symbols() -> None:
    batch = Copy(length=5).sample(np.random.default_rng(0), 2).astype(np.float32)
    assert batch.inputs.dtype == np.float32
    assert np.issubdtype(batch.targets.dtype, np.integer)
    assert batch.mask.dtype == bool
