"""The total and the direct derivative of the loss with respect to the states, at every timestep."""

from dataclasses import dataclass

import numpy as np

from gradpath.core.network import Network
from gradpath.core.trace import Measurement, Trace
from gradpath.instruments import Instrument


@dataclass
class StateGradNorm(Instrument):
    """log10 ‖∂L/∂H_t‖_F (and C_t): the *total* derivative, through all later steps; and, as
    ``direct/H``, log10 ‖∂⁺L/∂H_t‖_F, the part that arrives at H_t from the loss or from the layer
    above alone (Werbos 1990; Pascanu et al. 2013, eq. 5, ∂⁺ the immediate derivative). (T, names);
    -inf is a true zero. Names: the states of each layer from the bottom, in the order of the cell's
    ``states``, then the direct parts of the layers, from the bottom too.
    """

    per_timestep = True

    def measure(self, network: Network, trace: Trace) -> Measurement:
        adjoints = trace.states | {f"direct/{name}": value for name, value in trace.direct.items()}
        return Measurement(
            tuple(adjoints), np.stack([value.log10_norm_by_step() for value in adjoints.values()], axis=-1)
        )

    def metric(self, name: str) -> str | None:
        return None if name.startswith("direct/") else f"log10_state_grad_norm_by_lag/{name}"
