"""What each task draws. That all keep the contract of a task is in ``test_contracts.py``."""

import numpy as np
import pytest

from gradpath.tasks.adding import Adding
from gradpath.tasks.copy import Copy
from gradpath.tasks.temporal_order import TemporalOrder, Variant


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
