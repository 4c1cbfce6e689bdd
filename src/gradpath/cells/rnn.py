"""The vanilla recurrent network of Elman (1990)."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradpath.core.activations import Activation, activate, derivative
from gradpath.core.cell import Cell
from gradpath.core.roles import Watched
from gradpath.core.step import GateSpec, Step, StepAdjoint
from gradpath.core.tape import LayerTape
from gradpath.schema.settings import setting


@dataclass
class RNN(Cell):
    """H_t = φ(X_t W_xh + H_{t-1} W_hh + b_h), φ ∈ {tanh, relu, sigmoid} (Elman 1990).

    Backwards, with δH_t the total derivative of the loss: δa_t = δH_t ∘ φ′(a_t) and
    δH_{t-1} = δa_t W_hhᵀ + ∂⁺L/∂H_{t-1} (Pascanu et al. 2013, eqs. 4–5).
    """

    activation: Activation = setting(Activation.tanh, "φ: tanh, relu or sigmoid")

    paths = {"h": "recurrence"}
    label = "RNN"
    colors = {"": "#D55E00", "clipped": "#E69F00", "value_clipped": "#CC79A7"}
    watched = {"phi_prime": Watched("h", slope=True)}

    @property
    def blocks(self) -> Mapping[str, GateSpec]:
        return {"h": GateSpec("W_xh", "W_hh", "b_h", "unit")}

    @property
    def recurrence(self) -> Activation:
        return self.activation

    def step(self, s: Step) -> None:
        activate(self.activation, s.pre, s.gates)
        s.leaving[0][...] = s.gates[..., 0, :]

    def activations_used(self, tape: LayerTape) -> list[tuple[Activation, NDArray, NDArray]]:
        return [(self.activation, tape.pre, tape.gates)]

    def step_backward(self, s: Step, d: StepAdjoint) -> None:
        np.multiply(d.leaving[0][..., None, :], s.slopes[0], out=d.pre)

    def activations(self, tape: LayerTape) -> dict[str, NDArray]:
        """φ′ / max φ′ of every unit: near 0 the unit is saturated and its gradient vanishes."""
        return {"phi_prime": derivative(self.activation, tape.pre[..., 0, :]) / self.activation.steepest}

    def carrier_gain(self, tape: LayerTape) -> NDArray:
        return np.zeros((), tape.pre.dtype)

    def output_wrt_carrier(self, tape: LayerTape) -> NDArray:
        return np.ones((), tape.pre.dtype)

    def nodes(self, tape: LayerTape, adjoint: Mapping[str, NDArray]) -> dict[str, NDArray]:
        return {}
