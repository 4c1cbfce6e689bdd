"""The gradient norm of every parameter at every timestep, the central measurement of gradpath."""

from dataclasses import dataclass

import numpy as np

from gradpath.core.network import Network
from gradpath.core.norm_precision import log10_norms
from gradpath.core.trace import Measurement, Trace
from gradpath.instruments import Instrument


@dataclass
class ParamGradNorm(Instrument):
    """log10 ‖∂L/∂θ_t‖_F, where θ_t is the copy of θ that step t uses, so that Σ_t ∂L/∂θ_t = ∂L/∂θ,
    for the batch-mean loss.

    (T, names); -inf is a true zero: θ_t has no influence on the loss, or its gradient is 0 in every
    element.

    Gradients that float32 cannot represent, behind a gate σ(a) below a = −30 or an equally flat
    slope, are computed in float64. The limit of float64 is 10^-295 for the factor of one unit in
    one step, as at a = −680; below it, -inf may be a false zero.
    """

    per_timestep = True
    snapshot = True

    def measure(self, network: Network, trace: Trace) -> Measurement:
        names = tuple(name for packed in trace.packed for name in packed.names)
        values = np.full((trace.tape.length, len(names)), -np.inf)
        column = 0
        for packed in trace.packed:
            values[packed.times, column : column + len(packed.names)] = log10_norms(packed)[:, 0]
            column += len(packed.names)
        return Measurement(names, values)

    def metric(self, name: str) -> str | None:
        return f"log10_grad_norm_by_lag/{name}"
