"""A cell without a recurrent matrix: each unit reads its own past alone."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from gradpath.cells.rnn import RNN
from gradpath.core.step import Elementwise, GateSpec, Step, StepAdjoint


@dataclass
class IndependentRNN(RNN):
    """H_t = φ(X_t W_xh + u ∘ H_{t-1} + b_h) (Li et al. 2018, eq. 4), δH_{t-1} = δa_t ∘ u."""

    has_skip_to_h = True
    label = "IndRNN"
    colors = None

    @property
    def blocks(self) -> Mapping[str, GateSpec]:
        return {"h": GateSpec("W_xh", None, "b_h", "unit", (Elementwise("u", "H"),))}

    @property
    def recurrence(self) -> None:  # type: ignore[override]
        return None

    def step(self, s: Step) -> None:
        s.pre[..., 0, :] += s.elementwise["u"] * s.entering[0]
        super().step(s)

    def step_backward(self, s: Step, d: StepAdjoint) -> None:
        super().step_backward(s, d)
        np.multiply(d.pre[..., 0, :], s.elementwise["u"], out=d.entering[0])
