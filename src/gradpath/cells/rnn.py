"""The vanilla recurrent network of Elman (1990)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradpath.cells import Cell
from gradpath.nonlinearities import Activation, activate, derivative
from gradpath.records import LayerTape
from gradpath.settings import setting


@dataclass
class RNN(Cell):
    """H_t = φ(X_t W_xh + H_{t-1} W_hh + b_h), φ ∈ {tanh, relu, sigmoid} (Elman 1990).

    Backwards, with δH_t the total derivative of the loss: δa_t = δH_t ∘ φ′(a_t) and
    δH_{t-1} = δa_t W_hhᵀ + ∂⁺L/∂H_{t-1} (Pascanu et al. 2013, eqs. 4–5).
    """

    activation: Activation = setting(Activation.tanh, "φ: tanh, relu or sigmoid")

    blocks = {"h": ("W_xh", "W_hh", "b_h")}

    def step(
        self, gates: NDArray, enter: Sequence[NDArray], leave: Sequence[NDArray], saved: Sequence[NDArray]
    ) -> None:
        activate(self.activation, gates)
        leave[0][:] = gates[..., 0, :]

    def derivatives(self, tape: LayerTape) -> tuple[NDArray, ...]:
        return (derivative(self.activation, tape.pre[..., 0, :]),)

    def step_backward(
        self, factors: Sequence[NDArray], leave: Sequence[NDArray], delta: NDArray, enter: Sequence[NDArray]
    ) -> None:
        np.multiply(leave[0], factors[0], out=delta[..., 0, :])

    def activations(self, tape: LayerTape) -> dict[str, NDArray]:
        """φ′ of every unit, relative to its largest value: near 0 the unit is saturated and passes nothing back."""
        largest = 0.25 if self.activation is Activation.sigmoid else 1.0
        return {"phi_prime": derivative(self.activation, tape.pre[..., 0, :]) / largest}
