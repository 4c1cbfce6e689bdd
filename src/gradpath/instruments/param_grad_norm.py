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
        names = [name for factor in trace.factors for name in factor.names]
        values = np.full((trace.tape.length, len(names)), -np.inf)
        column = 0
        for factor in trace.factors:
            for rows, step in factor.per_step():
                values[factor.times[rows], column : column + len(factor.names)] = step.log10_norm()
            column += len(factor.names)
        return Measurement(tuple(names), values)

    def metric(self, name: str) -> str | None:
        return f"log10_grad_norm_by_lag/{name}"
