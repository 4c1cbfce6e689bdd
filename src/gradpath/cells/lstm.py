"""The long short-term memory of Hochreiter & Schmidhuber (1997), with the forget gate of Gers et al. (2000)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from gradpath.cells import Cell
from gradpath.nonlinearities import Activation, activate, derivative
from gradpath.records import LayerTape
from gradpath.settings import setting


@dataclass
class LSTM(Cell):
    """With a_· = X_t W_·x + H_{t-1} W_·h + b_· (Gers et al. 2000, eqs. 2–7, without peepholes):

        I_t, F_t, O_t = σ(a_i), σ(a_f), σ(a_o)      G_t = tanh(a_c)
        C_t = F_t ∘ C_{t-1} + I_t ∘ G_t              H_t = O_t ∘ tanh(C_t)

    Backwards, with δ the total derivatives of the loss:

        δC_t ← δC_t + δH_t ∘ O_t ∘ (1 − tanh² C_t)   δC_{t-1} = F_t ∘ δC_t  (the constant error carousel when F = 1)
        δa_i = δC_t ∘ G_t ∘ I_t(1 − I_t)             δa_f = δC_t ∘ C_{t-1} ∘ F_t(1 − F_t)
        δa_o = δH_t ∘ tanh(C_t) ∘ O_t(1 − O_t)       δa_c = δC_t ∘ I_t ∘ (1 − G_t²)
    """

    forget_bias: float = setting(1.0, "initial b_f; 1 after Gers et al. (2000), Jozefowicz et al. (2015)")
    chrono_t_max: int | None = setting(
        None, "chrono initialisation for lags up to this: b_f = ln U[1, t_max − 1], b_i = −b_f", ge=3
    )

    states = ("H", "C")
    blocks = {
        "i": ("W_ix", "W_ih", "b_i"),
        "f": ("W_fx", "W_fh", "b_f"),
        "o": ("W_ox", "W_oh", "b_o"),
        "c": ("W_cx", "W_ch", "b_c"),
    }
    saved = ("tanh_C",)

    def step(
        self, gates: NDArray, enter: Sequence[NDArray], leave: Sequence[NDArray], saved: Sequence[NDArray]
    ) -> None:
        (_, previous_c), (h, c), (tanh_c,) = enter, leave, saved
        activate(Activation.sigmoid, gates[..., :3, :])
        activate(Activation.tanh, gates[..., 3, :])
        i, f, o, g = (gates[..., block, :] for block in range(4))
        np.multiply(f, previous_c, out=c)
        c += i * g
        np.tanh(c, out=tanh_c)
        np.multiply(o, tanh_c, out=h)

    def derivatives(self, tape: LayerTape) -> tuple[NDArray, ...]:
        i, f, o, g = np.moveaxis(tape.gates, -2, 0)
        c = tape.states["C"]
        to_gates = np.empty_like(tape.gates)
        to_gates[..., :3, :] = derivative(Activation.sigmoid, tape.pre[..., :3, :])
        to_gates[..., 3, :] = derivative(Activation.tanh, tape.pre[..., 3, :])
        for block, factor in enumerate((g, c[:-1], tape.saved["tanh_C"], i)):
            to_gates[..., block, :] *= factor
        return to_gates, o * derivative(Activation.tanh, c[1:]), f

    def step_backward(
        self, factors: Sequence[NDArray], leave: Sequence[NDArray], delta: NDArray, enter: Sequence[NDArray]
    ) -> None:
        (d_h, d_c), (to_gates, h_to_c, f) = leave, factors
        d_c += d_h * h_to_c
        np.multiply(d_c[..., None, :], to_gates, out=delta)
        np.multiply(d_h, to_gates[..., 2, :], out=delta[..., 2, :])
        enter[1] += d_c * f

    def activations(self, tape: LayerTape) -> dict[str, NDArray]:
        return {name: tape.gates[..., block, :] for block, name in enumerate("IFO")}

    def initial_bias(self, rng: Generator) -> dict[str, NDArray | float]:
        """b_f as set, or chrono: b_f ~ ln U[1, t_max − 1], b_i = −b_f (Tallec & Ollivier 2018, eq. 16)."""
        if self.chrono_t_max is None:
            return {"f": self.forget_bias}
        forget = np.log(rng.uniform(1, self.chrono_t_max - 1, self.hidden_size))
        return {"f": forget, "i": -forget}
