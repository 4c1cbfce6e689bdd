"""The loss that one timestep contributes, and its backward pass.

With N scored positions in the batch, L = Σ_s L_s, where L_s is the sum over the sequences scored at
step s, divided by N. Backpropagation is linear, so Σ_s ∂L_s/∂θ_t = ∂L/∂θ_t; and ∂L_s/∂θ_t = 0 for t
> s.
"""

from dataclasses import replace

import numpy as np

from gradpath.core.losses import Loss, evaluate
from gradpath.core.network import Network
from gradpath.core.scaled import Scaled
from gradpath.core.tape import Batch, Tape
from gradpath.core.trace import Trace
from gradpath.engine.workspace import Workspace


def trace_of_step(network: Network, trace: Trace, row: int, workspace: Workspace | None = None) -> Trace:
    """The trace of L_s alone, with s the scored timestep of this row. It ends with step s, because
    L_s does not depend on later steps. If s is the only scored timestep, it is ``trace`` itself.
    """
    tape = trace.tape
    return trace if len(tape.scored) == 1 else network.backward(tape.theta, _up_to(network.loss, tape, row), workspace)


def states_of_step(network: Network, trace: Trace, row: int) -> dict[str, Scaled]:
    """``trace_of_step(…).states``, without computing the gradients of the weights."""
    tape = trace.tape
    return (
        trace.states if len(tape.scored) == 1 else network.state_adjoints(tape.theta, _up_to(network.loss, tape, row))
    )


def _up_to(kind: Loss, tape: Tape, row: int) -> Tape:
    """The tape of steps 1 … s with the loss L_s, all of it views."""
    index = tape.scored[row]
    end, rows = int(index) + 1, slice(row, row + 1)
    batch = Batch(tape.batch.inputs[:end], tape.batch.targets[:end], tape.batch.mask[:end])
    mean, _ = evaluate(kind, tape.outputs[rows], batch.targets[-1:], batch.mask[-1:])
    return replace(
        tape,
        batch=batch,
        layers=tuple(layer.steps(0, end) for layer in tape.layers),
        scored=np.array([index]),
        outputs=tape.outputs[rows],
        loss=float(mean * batch.mask[-1].sum() / tape.batch.mask.sum()),
        loss_gradient=tape.loss_gradient[rows],
    )
