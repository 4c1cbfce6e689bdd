"""The contract of an initialisation."""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from gradpath.core.losses import Loss
from gradpath.core.network import Network
from gradpath.core.roles import READOUT
from gradpath.testing._arrays import differ
from gradpath.testing._unit import UnitContract
from gradpath.training.loop import train


class InitContract(UnitContract):
    """The properties of an initialisation on which gradpath relies. ``random`` are settings with
    which it draws random numbers, where it draws none with those of its YAML file.
    """

    group = "init"
    random: ClassVar[Mapping[str, Any]] = {}

    def drawn(
        self, settings: Mapping[str, Any] = MappingProxyType({}), seed: int = 0, dtype: type = np.float64
    ) -> tuple[Network, NDArray]:
        """A network of two layers, and θ (P,) for it."""
        experiment = self.experiment("cell.layers=2")
        network = Network(experiment.cell, 3, 2, Loss.squared_error, layers=2)
        init = replace(experiment.init, **settings)
        return network, init.draw(np.random.default_rng(seed), network, dtype)

    def test_shape_and_type(self) -> None:
        for dtype in (np.float32, np.float64):
            network, theta = self.drawn(dtype=dtype)
            assert theta.shape == (network.size,), f"draw gives {theta.shape}, not (P,) = {(network.size,)}"
            assert theta.dtype == dtype, f"draw gives {theta.dtype}, not {np.dtype(dtype)}"
            assert np.isfinite(theta).all(), "a weight is not finite"

    def test_the_type_does_not_change_the_draw(self) -> None:
        _, single = self.drawn(dtype=np.float32)
        _, double = self.drawn()
        assert not differ(double.astype(np.float32), single), "draw in float64, and round at the end"

    def test_the_seed_decides(self) -> None:
        draws = [self.drawn(self.random, seed)[1] for seed in (0, 0, 1)]
        assert not differ(draws[0], draws[1]), "the same seed draws other weights: draw from rng alone"
        assert differ(draws[0], draws[2]), "another seed draws the same weights; say in random when it does not"

    def test_gains_multiply(self) -> None:
        """``gain`` multiplies the recurrent matrices, ``input_gain`` those of the input, and both
        nothing else.
        """
        for setting, role in (("gain", "recurrent"), ("input_gain", "input")):
            network, theta = self.drawn({**self.random, setting: 1.0})
            _, scaled = self.drawn({**self.random, setting: 2.0})
            roles = network.cell.roles
            named, multiplied = network.parameters(theta), network.parameters(scaled)
            for name, value in named.items():
                parameter = roles.parameter(name)
                factor = 2.0 if parameter and parameter.role == role else 1.0
                np.testing.assert_allclose(
                    multiplied[name], factor * value, rtol=1e-12, err_msg=f"{name} with {setting}=2 instead of 1"
                )

    def test_a_bias_that_belongs_to_the_cell_is_the_cell_s(self) -> None:
        network, theta = self.drawn(self.random)
        named = network.parameters(theta)
        for gate, value in network.cell.initial_bias(np.random.default_rng(0)).items():
            for layer in range(network.layers):
                name = network.prefix(layer) + network.cell.blocks[gate].b
                if np.ndim(value) == 0:
                    assert (named[name] == value).all(), f"{name} is not the {value} that the cell sets"

    def test_the_readout_has_its_size(self) -> None:
        network, theta = self.drawn()
        weights, bias = (network.parameters(theta)[name] for name in READOUT)
        assert weights.shape == (network.cell.hidden_size, 2)
        assert bias.shape == (2,)

    def test_two_training_steps_run(self) -> None:
        for step in train(self.experiment("instruments=[]")):
            if not np.isfinite(step.loss):
                pytest.fail(f"the loss is {step.loss} at step {step.step}")
