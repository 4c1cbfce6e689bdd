"""The definition itself as an oracle: perturb a parameter at step t only, and see what the loss does.

∂L/∂θ_t is the derivative with respect to the copy of θ that step t uses, the other steps' copies held fixed. Central
differences on such *untied* copies know nothing of backpropagation, so they check the shift by one, the sum over time
and the cell's derivative at once.
"""

from collections.abc import Callable
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from gradpath.losses import evaluate
from gradpath.network import Network
from gradpath.records import Batch, Trace

Value = TypeVar("Value", float, NDArray)

# Sixth-order central differences: error O(ε⁶), so that ε can be large enough for rounding not to matter.
STENCIL = ((1, 3 / 4), (2, -3 / 20), (3, 1 / 60))
EPSILON = 1e-2


def untied_loss(network: Network, thetas: NDArray, batch: Batch) -> float:
    """The loss with a θ of its own at every step: ``thetas`` (T, P). The equations as a textbook writes them."""
    cell = network.cell
    steps, sequences = batch.mask.shape
    by_step = [list(network.layers(theta)) for theta in thetas]
    below = batch.inputs
    for layer in range(cell.layers):
        states = [np.zeros((sequences, cell.hidden_size), below.dtype) for _ in cell.states]
        outputs = []
        for t in range(steps):
            weights = by_step[t][layer]
            gates = (below[t] @ weights.x + states[0] @ weights.h + weights.b).reshape(sequences, len(cell.blocks), -1)
            leave = [np.empty_like(state) for state in states]
            cell.step(gates, states, leave, [np.empty_like(states[0]) for _ in cell.saved])
            states = leave
            outputs.append(states[0])
        below = np.stack(outputs)
    readout = [network.packed(theta)[-2:] for theta in thetas]
    y = np.stack([h @ w_hy + b_y for h, (w_hy, b_y) in zip(below, readout, strict=True)])
    return evaluate(network.loss, y, batch.targets, batch.mask)[0]


def central_difference(f: Callable[[float], Value], epsilon: float) -> Value:
    """df(x)/dx at 0, of a number or an array."""
    return sum(w * (f(k * epsilon) - f(-k * epsilon)) for k, w in STENCIL) / epsilon


def untied_differences(network: Network, theta: NDArray, batch: Batch, epsilon: float = EPSILON) -> dict[str, NDArray]:
    """∂L/∂θ_t by central differences for every parameter: name → (T, …). θ must be float64.

    For relu, choose ``epsilon`` so small that no unit crosses its corner.
    """
    steps = len(batch.mask)
    gradient = np.zeros((steps, network.size))
    thetas = np.tile(theta, (steps, 1))
    for t in range(steps):
        for index in range(network.size):

            def loss(change: float, t: int = t, index: int = index) -> float:
                thetas[t, index] = theta[index] + change
                return untied_loss(network, thetas, batch)

            gradient[t, index] = central_difference(loss, epsilon)
            thetas[t, index] = theta[index]
    by_step = [network.parameters(row) for row in gradient]
    return {name: np.stack([row[name] for row in by_step]) for name in by_step[0]}


def per_step_gradients(trace: Trace) -> dict[str, NDArray]:
    """∂L/∂θ_t as backpropagation found it: name → (T, …), as plain numbers, which may under- or overflow."""
    found: dict[str, NDArray] = {}
    for factor in trace.factors:
        for rows, step in factor.per_step():
            values = step.plain()
            for block, name in enumerate(factor.names):
                value = values[:, block, 0] if factor.entered is None else values[:, block]
                target = found.setdefault(name, np.zeros((trace.tape.length, *value.shape[1:]), value.dtype))
                target[factor.times[rows]] = value
    return found


def relative_error(found: NDArray, reference: NDArray) -> float:
    """‖found − reference‖ / ‖reference‖, 0 where both are 0."""
    size = max(float(np.linalg.norm(reference)), float(np.linalg.norm(found)))
    return float(np.linalg.norm(found - reference)) / size if size else 0.0
