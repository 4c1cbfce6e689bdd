"""The contract of an optimiser."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gradpath.testing._arrays import differ, first_difference, unchanged
from gradpath.testing._unit import UnitContract
from gradpath.training.loop import train

TYPES = [np.float32, np.float64]
every_type = pytest.mark.parametrize("dtype", TYPES, ids=lambda dtype: dtype.__name__)


class OptimizerContract(UnitContract):
    """The properties of an update rule on which gradpath relies."""

    group = "optimizer"

    def updated(self, theta: NDArray, gradient: NDArray, steps: int = 3) -> NDArray:
        """θ after a number of updates with the same gradient."""
        optimizer = self.configured()
        state = optimizer.start(theta)
        for step in range(steps):
            with unchanged("update", theta=theta, gradient=gradient, state=state):
                theta, state = optimizer.update(theta, gradient, state, step)
        return theta

    @every_type
    def test_nothing_given_is_written_to(self, dtype: type) -> None:
        theta, gradient = _drawn(dtype)
        with unchanged("start", theta=theta):
            self.configured().start(theta)
        self.updated(theta, gradient)

    @every_type
    def test_shape_and_type_stay(self, dtype: type) -> None:
        theta, gradient = _drawn(dtype)
        updated = self.updated(theta, gradient)
        assert updated.shape == theta.shape, f"update makes θ of shape {updated.shape} out of {theta.shape}"
        assert updated.dtype == theta.dtype, f"update makes θ of {updated.dtype} out of {theta.dtype}"
        assert np.isfinite(updated).all(), "θ is not finite after three updates"

    @every_type
    def test_the_same_updates_give_the_same_bits(self, dtype: type) -> None:
        theta, gradient = _drawn(dtype)
        results = [self.updated(theta, gradient) for _ in range(2)]
        assert not differ(*results), "the optimiser keeps something that is not in its state"

    @every_type
    def test_the_first_step_goes_downhill(self, dtype: type) -> None:
        theta, gradient = _drawn(dtype)
        change = self.updated(theta, gradient, steps=1).astype(np.float64) - theta
        assert change @ gradient < 0, "the first step does not go against the gradient"

    def test_a_zero_gradient_leaves_theta_finite(self) -> None:
        theta, gradient = _drawn(np.float32)
        assert np.isfinite(self.updated(theta, 0 * gradient)).all(), "θ is not finite after a gradient of 0"

    def test_a_huge_gradient_does_not_make_the_state_infinite(self) -> None:
        """The square of 1e21 is infinite in float32, and an infinite mean square stops all later
        updates.
        """
        theta, gradient = np.zeros(2, np.float32), np.array([1e21, 1], np.float32)
        optimizer = self.configured()
        theta, state = optimizer.update(theta, gradient, optimizer.start(theta), 0)
        for name, value in state.items():
            assert np.isfinite(value).all(), (
                f"state {name!r} is not finite after a gradient of 1e21; keep it in float64"
            )
        assert np.isfinite(theta).all(), "θ is not finite after a gradient of 1e21"

    def test_training_runs_and_gives_the_same_bits_again(self) -> None:
        experiment = self.experiment("instruments=[grad_norm]", "train.steps=4")
        first, second = ([_measured(step) for step in train(experiment)] for _ in range(2))
        assert all(np.isfinite(loss) for loss, _ in first), "the loss is not finite after four updates"
        assert first_difference(first, second, "steps") is None, "a second training differs"


def _drawn(dtype: type) -> tuple[NDArray, NDArray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=20).astype(dtype), rng.normal(size=20).astype(dtype)


def _measured(step: Any) -> tuple[float, NDArray]:
    return step.loss, step.measurements["grad_norm"].values
