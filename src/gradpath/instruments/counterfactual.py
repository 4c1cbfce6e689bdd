"""The gradient if a gate of the trained network were held: a causal test beside the
decomposition.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from gradpath.core.network import Network
from gradpath.core.scaled import Scaled
from gradpath.core.trace import Measurement, Trace
from gradpath.instruments import Instrument


@dataclass
class Counterfactual(Instrument):
    """log10 ‖∂L/∂H_t‖_F (and C_t) of the same θ and minibatch, computed again without training.
    ``factual/C`` is the gradient of the unchanged network. In ``F=1/C``, ``F=0.5/C``, ``I=1/C`` and
    ``O=1/C`` a gate is held, forward and backward. ``truncated/C`` has the unchanged forward pass
    and an adjoint that is cut at the gates (Hochreiter & Schmidhuber 1997, appendix A.1). For the
    GRU: ``Z=1``, ``Z=0.5``, ``R=1``. (T, names); -inf is a true zero.
    """

    per_timestep = True

    def measure(self, network: Network, trace: Trace) -> Measurement:
        columns = _norms("factual", trace.states)
        theta, batch = trace.tape.theta, trace.tape.batch
        workspace = network.workspace()
        for name, variant in counterfactual_networks(network):
            # One pass at a time: each is as large as the trace, and is freed once its norms are
            # read.
            tape = variant.forward(theta, batch, workspace)
            columns |= _norms(name, variant.state_adjoints(theta, tape, workspace))
            del tape
        return Measurement(tuple(columns), np.stack(list(columns.values()), axis=-1))


def _norms(name: str, states: Mapping[str, Scaled]) -> dict[str, NDArray]:
    return {f"{name}/{state}": adjoint.log10_norm_by_step() for state, adjoint in states.items()}


def counterfactual_networks(network: Network) -> Iterator[tuple[str, Network]]:
    """(name, network) of every counterfactual of the cell."""
    for name, cell in network.cell.counterfactuals().items():
        yield name, replace(network, cell=cell)
