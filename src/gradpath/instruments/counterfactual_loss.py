"""The loss if a gate of the trained network were held."""

from dataclasses import dataclass

import numpy as np

from gradpath.core.network import Network
from gradpath.core.trace import Measurement, Trace
from gradpath.instruments import Instrument
from gradpath.instruments.counterfactual import counterfactual_networks


@dataclass
class CounterfactualLoss(Instrument):
    """The minibatch's loss with the same θ: ``factual``, and under each counterfactual of the cell
    (``F=1`` …), whose gradient is in ``counterfactual``. Truncation changes the backward pass only,
    so that its loss is the factual one. (names,)
    """

    per_timestep = False

    def measure(self, network: Network, trace: Trace) -> Measurement:
        tape = trace.tape
        workspace, networks = network.workspace(), counterfactual_networks(network)
        losses = {name: variant.forward(tape.theta, tape.batch, workspace).loss for name, variant in networks}
        losses = {"factual": tape.loss} | losses
        return Measurement(tuple(losses), np.array(list(losses.values())))
