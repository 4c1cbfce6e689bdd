"""The ordinary gradient norm."""

from dataclasses import dataclass

import numpy as np

from gradpath.core.network import Network
from gradpath.core.trace import Measurement, Trace
from gradpath.instruments import Instrument


@dataclass
class GradNorm(Instrument):
    """log10 ‖∂L/∂θ‖_F of every parameter, where ∂L/∂θ is the sum over the timesteps that training
    uses; and ``global``, the norm of all parameters together. Before clipping. (names,)
    """

    per_timestep = False

    def measure(self, network: Network, trace: Trace) -> Measurement:
        norms = trace.gradient.by_parameter | {"global": trace.gradient.log10_norm}
        return Measurement(tuple(norms), np.array(list(norms.values())))

    def metric(self, name: str) -> str | None:
        return "train/log10_grad_norm" if name == "global" else None
