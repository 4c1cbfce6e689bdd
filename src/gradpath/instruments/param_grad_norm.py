"""The gradient norm of every parameter at every timestep: the harness exists for this."""

from dataclasses import dataclass

import numpy as np

from gradpath.instruments import Instrument
from gradpath.records import Measurement, Trace


@dataclass
class ParamGradNorm(Instrument):
    """log10 ‖∂L/∂θ_t‖_F, with θ_t the copy of θ that step t uses, so that Σ_t ∂L/∂θ_t = ∂L/∂θ, for the batch-mean loss.

    (T, names); -inf is a true zero: θ_t has no influence on the loss, or its gradient is 0 in every element. In
    float32 also what the type's own nonlinearities round to 0: φ′ of a tanh beyond |a| = 43, a gate σ(a) below a = −16.
    """

    per_timestep = True
    snapshot = True

    def measure(self, trace: Trace) -> Measurement:
        names = tuple(name for packed in trace.packed for name in packed.names)
        values = np.full((trace.tape.length, len(names)), -np.inf)
        column = 0
        for packed in trace.packed:
            values[packed.times, column : column + len(packed.names)] = packed.log10_norms()[:, 0]
            column += len(packed.names)
        return Measurement(names, values)

    def metric(self, name: str) -> str | None:
        return f"log10_grad_norm_by_lag/{name}"
