"""The gated recurrent unit: Cho et al. (2014), with the reset gate after the product."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from gradpath.cells import _drawings
from gradpath.core.activations import Activation, activate, complement, slope
from gradpath.core.cell import Cell
from gradpath.core.roles import Keeping, Watched, initial_logit
from gradpath.core.step import GateSpec, Step, StepAdjoint
from gradpath.core.tape import LayerTape
from gradpath.schema.settings import setting

N, Z, R, Q = range(4)
"""Indices of the gates: the one that reads only X first, the one that reads only H last."""


@dataclass
class GRU(Cell):
    """Reset gate after the product, as in cuDNN and PyTorch's ``nn.GRU`` (Cho et al. 2014, version
    1 of the preprint):

        Z_t = σ(X_t W_zx + H_{t-1} W_zh + b_z)       R_t = σ(X_t W_rx + H_{t-1} W_rh + b_r)
        Q_t = H_{t-1} W_nh + b_q                     N_t = tanh(X_t W_nx + b_n + R_t ∘ Q_t)
        H_t = Z_t ∘ H_{t-1} + (1 − Z_t) ∘ N_t

    Z keeps, as F does in the LSTM. Backwards, with δH_t the total derivative of the loss:

        δa_n = δH_t ∘ (1 − Z_t) ∘ (1 − N_t²)         δQ_t = δa_n ∘ R_t
        δa_z = δH_t ∘ (H_{t-1} − N_t) ∘ Z_t(1 − Z_t) δa_r = δa_n ∘ Q_t ∘ R_t(1 − R_t)
        δH_{t-1} = Z_t ∘ δH_t + δa_z W_zhᵀ + δa_r W_rhᵀ + δQ_t W_nhᵀ + ∂⁺L/∂H_{t-1}
    """

    update_bias: float = setting(0.0, "initial b_z; the larger, the longer H is kept")
    chrono_t_max: int | None = setting(
        None, "chrono initialisation for lags up to this: b_z = ln U[1, t_max − 1]", ge=3
    )
    freeze_z: float | None = setting(None, "hold the update gate at this value", ge=0, le=1)
    freeze_r: float | None = setting(None, "hold the reset gate at this value", ge=0, le=1)
    truncate: bool = setting(False, "stop the gradient at the gates; it is not the loss's gradient then")

    saved = ("a_n", "new")  # new: 1 − Z, the share of N
    has_skip_to_h = True
    paths = {"z": "update_gate", "r": "reset_gate", "q": "candidate"}
    label = "GRU"
    colors = {"": "#009E73", "clipped": "#7BCBB1"}
    drawing = _drawings.GRU
    watched = {"Z": Watched("z"), "R": Watched("r")}

    @property
    def blocks(self) -> Mapping[str, GateSpec]:
        return {
            "n": GateSpec("W_nx", None, "b_n", "candidate"),
            "z": GateSpec("W_zx", "W_zh", "b_z", "keep"),
            "r": GateSpec("W_rx", "W_rh", "b_r", "reset"),
            "q": GateSpec(None, "W_nh", "b_q", "candidate"),
        }

    @property
    def keeping(self) -> Keeping:
        return Keeping("Z", "update gate", held=self.freeze_z, bias=initial_logit(self.update_bias, self.chrono_t_max))

    @property
    def idle(self) -> tuple[str, ...]:
        return ("update_bias",) if self.chrono_t_max else ()

    @property
    def truncated(self) -> bool:
        return self.truncate

    def _frozen(self) -> list[tuple[int, float]]:
        return [(block, value) for block, value in ((Z, self.freeze_z), (R, self.freeze_r)) if value is not None]

    def step(self, s: Step) -> None:
        pre, gates = s.pre, s.gates
        (previous,), (h,), (a_n, new) = s.entering, s.leaving, s.saved
        activate(Activation.sigmoid, pre[..., Z : R + 1, :], gates[..., Z : R + 1, :])
        complement(pre[..., Z, :], new)
        for block, value in self._frozen():
            gates[..., block, :] = value
            if block == Z:
                new[...] = 1 - value
        n, z, r, q = (gates[..., block, :] for block in range(4))
        q[...] = pre[..., Q, :]
        np.multiply(r, q, out=a_n)
        a_n += pre[..., N, :]
        np.tanh(a_n, out=n)
        np.multiply(z, previous, out=h)
        h += new * n

    def activations_used(self, tape: LayerTape) -> list[tuple[Activation, NDArray, NDArray]]:
        gated = slice(Z, R + 1)
        return [
            (Activation.tanh, tape.saved["a_n"], tape.gates[..., N, :]),
            (Activation.sigmoid, tape.pre[..., gated, :], tape.gates[..., gated, :]),
        ]

    def step_backward(self, s: Step, d: StepAdjoint) -> None:
        (d_h,), (previous,), (_, new), (slope_n, slope_zr) = d.leaving, s.entering, s.saved, s.slopes
        n, z, r, q = (s.gates[..., block, :] for block in range(4))
        d_n, d_z, d_r, d_q = (d.pre[..., block, :] for block in range(4))
        np.multiply(d_h, new, out=d_n)
        d_n *= slope_n
        np.multiply(d_h, previous - n, out=d_z)
        np.multiply(d_n, q, out=d_r)
        np.multiply(d_n, r, out=d_q)
        d_zr = d.pre[..., Z : R + 1, :]
        d_zr *= slope_zr
        for block, _ in self._frozen():
            d.pre[..., block, :] = 0
        np.multiply(d_h, z, out=d.entering[0])

    def activations(self, tape: LayerTape) -> dict[str, NDArray]:
        return {"Z": tape.gates[..., Z, :], "R": tape.gates[..., R, :]}

    def carrier_gain(self, tape: LayerTape) -> NDArray:
        return tape.gates[..., Z, :]

    def output_wrt_carrier(self, tape: LayerTape) -> NDArray:
        return np.ones((), tape.pre.dtype)

    def nodes(self, tape: LayerTape, adjoint: Mapping[str, NDArray]) -> dict[str, NDArray]:
        n, _, _, q = np.moveaxis(tape.gates, -2, 0)
        d_n = adjoint["H"] * tape.saved["new"]
        d_r = d_n * slope(Activation.tanh, tape.saved["a_n"], n) * q
        return {"Z": adjoint["H"] * (tape.states["H"][:-1] - n), "R": d_r, "N": d_n}

    def counterfactuals(self) -> dict[str, Cell]:
        return {
            "Z=1": replace(self, freeze_z=1.0),
            "Z=0.5": replace(self, freeze_z=0.5),
            "R=1": replace(self, freeze_r=1.0),
            "truncated": replace(self, truncate=True),
        }

    def initial_bias(self, rng: Generator) -> dict[str, NDArray | float]:
        """b_z as set, or chrono: b_z ~ ln U[1, t_max − 1] (Tallec & Ollivier 2018, section 2, for Z
        as the keeping gate).
        """
        if self.chrono_t_max is None:
            return {"z": self.update_bias}
        return {"z": np.log(rng.uniform(1, self.chrono_t_max - 1, self.hidden_size))}
