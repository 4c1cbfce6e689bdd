"""A cell that is none of gradpath's in structure: two states, gates and parameters of its own
names, one of which ends as the readout's do.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from gradpath.cells.rnn import RNN
from gradpath.core.activations import Activation, activate, complement
from gradpath.core.cell import Cell
from gradpath.core.drawing import (
    BOTTOM,
    LANES,
    LEFT,
    MIDDLE,
    OUT,
    RIGHT,
    TOP,
    Drawing,
    DrawnGate,
    DrawnState,
    Edge,
    sends_back,
)
from gradpath.core.roles import Keeping, Watched
from gradpath.core.step import GateSpec, Step, StepAdjoint
from gradpath.core.tape import LayerTape
from gradpath.schema.settings import setting

KAPPA, ALPHA, BETA = range(3)


# It derives from a unit and not from the base, whose own subclasses are the units, and overrides
# all that the unit is: whatever asks for the class would take it for an RNN.


@dataclass
class LeakyMemory(RNN):
    """α_t = σ(a_α), β_t = σ(a_β), κ_t = tanh(a_κ); κ reads X alone, β reads S alone, and 1 − α
    keeps:

    M_t = (1 − α_t) ∘ M_{t-1} + α_t ∘ κ_t        S_t = β_t ∘ M_t
    """

    leak_bias: float = setting(-2.0, "initial bias of α; the smaller, the longer M is kept")
    hold: float | None = setting(None, "hold α at this value", ge=0, le=1)

    states = ("S", "M")
    saved = ("keep",)
    paths = {"alpha": "leak", "beta": "tap"}
    label = "leaky memory"
    colors = None
    watched = {"alpha": Watched("alpha"), "beta": Watched("beta")}
    drawing = Drawing(
        states=(
            DrawnState("M", True, (LEFT, TOP)),
            DrawnState("M", False, (RIGHT, TOP)),
            DrawnState("S", True, (LEFT, BOTTOM)),
        ),
        gates={"alpha": DrawnGate((4, MIDDLE), "leak"), "beta": DrawnGate((8, MIDDLE), "tap")},
        operations=(("+", (4, TOP)),),
        edges=(
            Edge("arrives", "highway", ((OUT, TOP), (RIGHT, TOP))),
            Edge("carrier", "highway", ((RIGHT, TOP), (4, TOP))),
            Edge("highway", "highway", ((4, TOP), (LEFT, TOP))),
            Edge("alpha", "leak", ((4, TOP), (4, MIDDLE))),
            Edge("beta", "tap", ((RIGHT, TOP), (8, MIDDLE))),
            sends_back("leak", 4, LANES[0]),
            sends_back("tap", 8, LANES[1]),
            Edge("through_H_before", "total", ((LEFT, BOTTOM), (LEFT, TOP))),
        ),
    )

    @property
    def blocks(self) -> Mapping[str, GateSpec]:
        return {
            "kappa": GateSpec("feed_kappa", None, "off_kappa"),
            "alpha": GateSpec("feed_alpha", "back_alpha", "off_alpha", "keep"),
            "beta": GateSpec(None, "back_by", "off_y", "output"),
        }

    @property
    def recurrence(self) -> None:  # type: ignore[override]
        return None

    @property
    def keeping(self) -> Keeping:
        held_value = None if self.hold is None else 1 - self.hold
        return Keeping("alpha", "leak gate", complement=True, held=held_value, bias=-self.leak_bias)

    def step(self, s: Step) -> None:
        (_, previous), (s_out, m), (kept_share,), gates = s.entering, s.leaving, s.saved, s.gates
        np.tanh(s.pre[..., KAPPA, :], out=gates[..., KAPPA, :])
        activate(Activation.sigmoid, s.pre[..., ALPHA:, :], gates[..., ALPHA:, :])
        complement(s.pre[..., ALPHA, :], kept_share)
        if self.hold is not None:
            gates[..., ALPHA, :] = self.hold
            kept_share[...] = 1 - self.hold
        np.multiply(kept_share, previous, out=m)
        m += gates[..., ALPHA, :] * gates[..., KAPPA, :]
        np.multiply(gates[..., BETA, :], m, out=s_out)

    def activations_used(self, tape: LayerTape) -> list[tuple[Activation, NDArray, NDArray]]:
        return [
            (Activation.tanh, tape.pre[..., KAPPA, :], tape.gates[..., KAPPA, :]),
            (Activation.sigmoid, tape.pre[..., ALPHA:, :], tape.gates[..., ALPHA:, :]),
        ]

    def step_backward(self, s: Step, d: StepAdjoint) -> None:
        (d_s, d_m), (_, previous), (_, m) = d.leaving, s.entering, s.leaving
        (kept_share,), (tanh_slope, sigmoid_slopes) = s.saved, s.slopes
        kappa, alpha, beta = (s.gates[..., block, :] for block in range(3))
        d_m += d_s * beta
        np.multiply(d_m * alpha, tanh_slope, out=d.pre[..., KAPPA, :])
        np.multiply(d_m, kappa - previous, out=d.pre[..., ALPHA, :])
        np.multiply(d_s, m, out=d.pre[..., BETA, :])
        gated = d.pre[..., ALPHA:, :]
        gated *= sigmoid_slopes
        if self.hold is not None:
            d.pre[..., ALPHA, :] = 0
        np.multiply(d_m, kept_share, out=d.entering[1])

    def activations(self, tape: LayerTape) -> dict[str, NDArray]:
        return {"alpha": tape.gates[..., ALPHA, :], "beta": tape.gates[..., BETA, :]}

    def carrier_gain(self, tape: LayerTape) -> NDArray:
        return tape.saved["keep"]

    def output_wrt_carrier(self, tape: LayerTape) -> NDArray:
        return tape.gates[..., BETA, :]

    def nodes(self, tape: LayerTape, adjoint: Mapping[str, NDArray]) -> dict[str, NDArray]:
        kappa, alpha, _ = np.moveaxis(tape.gates, -2, 0)
        d_m = adjoint["M"]
        d_beta = adjoint["S"] * tape.states["M"][1:]
        return {"kappa": d_m * alpha, "alpha": d_m * (kappa - tape.states["M"][:-1]), "beta": d_beta}

    def counterfactuals(self) -> dict[str, Cell]:
        return {"alpha=0": replace(self, hold=0.0)}

    def initial_bias(self, rng: Generator) -> dict[str, NDArray | float]:
        return {"alpha": self.leak_bias}
