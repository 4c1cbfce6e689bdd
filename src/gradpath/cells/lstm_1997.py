"""The original long short-term memory, before the forget gate: Hochreiter & Schmidhuber (1997)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradpath.cells import Cell
from gradpath.nonlinearities import Activation, activate, derivative
from gradpath.records import LayerTape
from gradpath.settings import setting


@dataclass
class LSTM1997(Cell):
    """With a_· = X_t W_·x + H_{t-1} W_·h + b_· (Hochreiter & Schmidhuber 1997, eqs. 2–9, with tanh for g and h):

        I_t, O_t = σ(a_i), σ(a_o)      G_t = tanh(a_c)      C_t = C_{t-1} + I_t ∘ G_t      H_t = O_t ∘ tanh(C_t)

    Backwards as the LSTM with F ≡ 1: δC_{t-1} = δC_t + …, the constant error carousel. ``truncate``: as in the paper's
    appendix A.1, what has reached the gates is not passed on to H_{t-1}, so that the carousel is the only way back
    and log ‖δC_t‖ is constant between losses; the result is then *not* the gradient of the loss.
    """

    truncate: bool = setting(False, "stop the gradient at the gates, as the paper does; not the loss's gradient then")

    states = ("H", "C")
    blocks = {"i": ("W_ix", "W_ih", "b_i"), "o": ("W_ox", "W_oh", "b_o"), "c": ("W_cx", "W_ch", "b_c")}
    saved = ("tanh_C",)

    @property
    def truncated(self) -> bool:
        return self.truncate

    def step(
        self, gates: NDArray, enter: Sequence[NDArray], leave: Sequence[NDArray], saved: Sequence[NDArray]
    ) -> None:
        (_, previous_c), (h, c), (tanh_c,) = enter, leave, saved
        activate(Activation.sigmoid, gates[..., :2, :])
        activate(Activation.tanh, gates[..., 2, :])
        i, o, g = (gates[..., block, :] for block in range(3))
        np.add(previous_c, i * g, out=c)
        np.tanh(c, out=tanh_c)
        np.multiply(o, tanh_c, out=h)

    def derivatives(self, tape: LayerTape) -> tuple[NDArray, ...]:
        i, o, g = np.moveaxis(tape.gates, -2, 0)
        a_i, a_o, a_c = np.moveaxis(tape.pre, -2, 0)
        to_i = g * derivative(Activation.sigmoid, a_i)
        to_o = tape.saved["tanh_C"] * derivative(Activation.sigmoid, a_o)
        to_c = i * derivative(Activation.tanh, a_c)
        return np.stack([to_i, to_o, to_c], axis=-2), o * derivative(Activation.tanh, tape.states["C"][1:])

    def step_backward(
        self, factors: Sequence[NDArray], leave: Sequence[NDArray], delta: NDArray, enter: Sequence[NDArray]
    ) -> None:
        (d_h, d_c), (to_gates, h_to_c) = leave, factors
        d_c += d_h * h_to_c
        np.multiply(d_c[..., None, :], to_gates, out=delta)
        np.multiply(d_h, to_gates[..., 1, :], out=delta[..., 1, :])
        enter[1] += d_c

    def activations(self, tape: LayerTape) -> dict[str, NDArray]:
        return {"I": tape.gates[..., 0, :], "O": tape.gates[..., 1, :]}
