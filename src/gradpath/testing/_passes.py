"""Small passes of a cell on random minibatches."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradpath.core.activations import Activation
from gradpath.core.cell import Cell
from gradpath.core.finite_differences import EPSILON
from gradpath.core.losses import Loss
from gradpath.core.network import Network
from gradpath.core.tape import Batch
from gradpath.core.trace import Trace
from gradpath.engine.workspace import Workspace
from gradpath.inits.uniform import Uniform

INPUTS, OUTPUTS, SEQUENCES, HIDDEN = 2, 3, 3, 3
CASES = {
    "T=1": (1, 1, False, Loss.squared_error),
    "T=2, two layers, loss at every step": (2, 2, True, Loss.cross_entropy),
    "T=5, loss at every step": (1, 5, True, Loss.squared_error),
    "T=5, two layers": (2, 5, False, Loss.cross_entropy),
}
"""The number of layers and of timesteps, whether every step is scored (otherwise the last alone),
and the loss.
"""


@dataclass(frozen=True)
class Pass:
    """A small network, its parameters and a minibatch."""

    network: Network
    theta: NDArray
    batch: Batch

    def trace(self, workspace: Workspace | None = None) -> Trace:
        with np.errstate(over="ignore", under="ignore"):
            tape = self.network.forward(self.theta, self.batch, workspace)
            return self.network.backward(self.theta, tape, workspace)


def random_pass(cell: Cell, loss: Loss, steps: int, every_step: bool, dtype: type, seed: int) -> Pass:
    rng = np.random.default_rng(seed)
    network = Network(cell, INPUTS, OUTPUTS, loss, cell.layers, cell.initial_state)
    theta = Uniform(gain=1.5).draw(rng, network, np.float64)
    mask = np.zeros((steps, SEQUENCES), bool)
    mask[-1] = True
    if every_step:
        mask |= rng.random(mask.shape) < 0.5
    targets = rng.normal(size=(*mask.shape, OUTPUTS))
    if loss is Loss.cross_entropy:
        targets = targets.argmax(axis=-1)
    return Pass(
        network, theta.astype(dtype), Batch(rng.normal(size=(*mask.shape, INPUTS)), targets, mask).astype(dtype)
    )


def epsilon(trace: Trace, run: Pass) -> float:
    kinds = {kind for layer in trace.tape.layers for kind, _, _ in run.network.cell.activations_used(layer)}
    return 1e-4 if Activation.relu in kinds else EPSILON
