"""The LSTM whose gates read the cell state (Gers & Schmidhuber 2000; the "vanilla LSTM" of Greff et
al. 2017).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from gradpath.cells.lstm import LSTM
from gradpath.core.activations import Activation, activate
from gradpath.core.step import Elementwise, GateSpec, Step, StepAdjoint

PEEPHOLES = {
    "i": (Elementwise("p_i", "C"),),
    "f": (Elementwise("p_f", "C"),),
    "o": (Elementwise("p_o", "C", leaving=True),),
}


@dataclass
class PeepholeLSTM(LSTM):
    """The LSTM's equations with p_i, p_f, p_o (H,) in its gates (Greff et al. 2017, section II.A),

        a_i += p_i ∘ C_{t-1}        a_f += p_f ∘ C_{t-1}        a_o += p_o ∘ C_t

    backwards, with the other lines as they are,

        δC_t ← δC_t + δa_o ∘ p_o + δH_t ∘ O_t ∘ (1 − tanh² C_t)
        δC_{t-1} = F_t ∘ δC_t + δa_i ∘ p_i + δa_f ∘ p_f
    """

    label = "peephole LSTM"

    @cached_property
    def blocks(self) -> Mapping[str, GateSpec]:
        specs = super().blocks
        return {name: spec._replace(elementwise=PEEPHOLES.get(name, ())) for name, spec in specs.items()}

    def step(self, s: Step) -> None:
        *_, previous_c = s.entering
        for name in ("i", "f"):
            if name in self._place:
                s.pre[..., self._place[name], :] += s.elementwise[f"p_{name}"] * previous_c
        super().step(s)
        if "o" in self._place:  # this gate reads C_t, which super().step has computed
            h, c = s.leaving
            a_o, o = s.pre[..., self._place["o"], :], s.gates[..., self._place["o"], :]
            a_o += s.elementwise["p_o"] * c
            activate(Activation.sigmoid, a_o, o)
            if self.freeze_o is not None:
                o[...] = self.freeze_o
            np.multiply(o, s.saved[0], out=h)

    def step_backward(self, s: Step, d: StepAdjoint) -> None:
        (d_h, d_c), (tanh_c, *_) = d.leaving, s.saved
        if "o" in self._place and self.freeze_o is None:
            delta_o = d_h * tanh_c * s.slopes[0][..., self._place["o"], :]
            d_c += delta_o * s.elementwise["p_o"]
        super().step_backward(s, d)
        for name in ("i", "f"):
            if name in self._place:
                d.entering[1] += d.pre[..., self._place[name], :] * s.elementwise[f"p_{name}"]
