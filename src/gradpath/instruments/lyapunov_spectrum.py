"""The Lyapunov spectrum: the rates at which changes of the state grow or shrink at each step, in
every direction.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradpath.core.jacobians import adjoint_qr, lyapunov_exponents, step_jacobians
from gradpath.core.network import Network
from gradpath.core.tape import Tape
from gradpath.core.trace import Measurement, Trace
from gradpath.instruments import Instrument
from gradpath.schema.settings import setting


@dataclass
class LyapunovSpectrum(Instrument):
    """λ_k = (1/N) Σ_t ln R_kk,t, natural logarithm a step, k = 1 … n in decreasing order, s = [H]
    or [H, C] of each layer, averaged over the first ``sequences`` of the minibatch (Benettin et al.
    1980; for recurrent networks Engelken, Wolf & Abbott 2023). λ_1 < 0: the gradient vanishes, λ_1
    > 0: it explodes. (names,), ``lambda_1`` …

    R comes from the QR decomposition along the *adjoint*, J_tᵀ Q, from the last step to the first:
    the transposed product has the same singular values, and so the same exponents. Q starts from a
    random rotation; in its first ``warm_up`` steps it turns towards the directions of the network
    and nothing is counted (at most T − 1 steps). The other N steps are those of one sequence of the
    task, so these are exponents of a finite time; their sum is the mean of ln |det J_t| exactly.
    -inf is a true zero (dead units); NaN where the network has blown up.

    Costs two QR decompositions (n, n) a step and sequence, O(T n³) a reading: for n = 256 some 10
    ms a step.
    """

    sequences: int = setting(2, "sequences of the minibatch to average over", ge=1)
    warm_up: int = setting(10, "steps at the end of the sequence that are not counted", ge=0)

    per_timestep = False

    def measure(self, network: Network, trace: Trace) -> Measurement:
        tape = trace.tape
        columns: dict[str, float] = {}
        for layer in range(network.layers):
            count = min(self.sequences, tape.batch.mask.shape[1])
            values = np.mean([self._read(network, tape, layer, sequence) for sequence in range(count)], axis=0)
            prefix = f"{network.prefix(layer)}lambda_"
            columns |= {f"{prefix}{k}": value for k, value in enumerate(values.tolist(), 1)}
        return Measurement(tuple(columns), np.array(list(columns.values())))

    def _read(self, network: Network, tape: Tape, layer: int, sequence: int) -> NDArray:
        """(n,) exponents of one sequence."""
        factors = adjoint_qr(step_jacobians(network, tape, layer, sequence))
        try:
            return lyapunov_exponents(factors, min(self.warm_up, tape.length - 1))
        except FloatingPointError:
            return np.full(len(network.cell.states) * network.cell.hidden_size, np.nan)

    def metric(self, name: str) -> str | None:
        return f"train/lyapunov_{name.replace('/', '_')}" if name.endswith("lambda_1") else None
