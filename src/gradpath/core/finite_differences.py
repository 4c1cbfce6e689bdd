"""The gradient by finite differences, as a reference for backpropagation: a parameter is changed at
step t only, and the change of the loss is measured.

∂L/∂θ_t is the derivative with respect to the copy of θ that step t uses, the other steps' copies
held fixed. Central differences on these *untied* copies do not use backpropagation, so they check
the shift by one, the sum over time and the cell's derivative.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from gradpath.core.bptt import LayerWeights
from gradpath.core.cell import Cell
from gradpath.core.losses import evaluate
from gradpath.core.network import Network
from gradpath.core.roles import READOUT, ParameterRole
from gradpath.core.scaled import Scaled
from gradpath.core.step import Elementwise
from gradpath.core.tape import Batch, LayerTape, Tape
from gradpath.core.trace import Factor, Trace

Value = TypeVar("Value", float, NDArray)

# Sixth-order central differences: error O(ε⁶), so that ε can be large enough for rounding not to
# matter.
STENCIL = ((1, 3 / 4), (2, -3 / 20), (3, 1 / 60))
EPSILON = 1e-2
CHUNK_ELEMENTS = 2**22
"""Elements of θ that are perturbed at once."""


def untied_loss(network: Network, thetas: Sequence[NDArray] | NDArray, batch: Batch) -> float:
    """The loss with a separate θ for every step, ``thetas`` (T, P), by the equations of a
    textbook.
    """
    return float(untied_losses(network, thetas, batch))


def untied_losses(network: Network, thetas: Sequence[NDArray] | NDArray, batch: Batch) -> NDArray:
    """The untied losses of many networks at once: the θ of a step is (P,), shared by all networks,
    or (…, P).
    """
    cell, (steps, sequences) = network.cell, batch.mask.shape
    by_step = [list(network.layer_weights(theta)) for theta in thetas]
    layer_inputs = list(batch.inputs)
    for layer in range(network.layers):
        states = [np.zeros((sequences, cell.hidden_size), batch.inputs.dtype) for _ in cell.states]
        states[0] += network.initial_state
        for t in range(steps):
            pre = pre_activations(cell, by_step[t][layer], layer_inputs[t], states[0])
            shape = (*pre.shape[:-2], cell.hidden_size)
            entering = [np.broadcast_to(state, shape) for state in states]
            elementwise = by_step[t][layer].elementwise_by_name(cell)
            states = list(cell.new_step(pre, entering, elementwise).leaving)
            layer_inputs[t] = states[0]
    readout = [network.packed(theta)[-2:] for theta in thetas]
    outputs = [h @ w_hy + b_y[..., None, :] for h, (w_hy, b_y) in zip(layer_inputs, readout, strict=True)]
    y = np.stack(np.broadcast_arrays(*outputs), axis=-3)
    leading = y.shape[:-3]
    targets = np.broadcast_to(batch.targets, leading + batch.targets.shape)
    return evaluate(network.loss, y, targets, np.broadcast_to(batch.mask, leading + batch.mask.shape))[0]


def pre_activations(cell: Cell, weights: LayerWeights, x: NDArray, h: NDArray) -> NDArray:
    """X_t W_·x + H_{t-1} W_·h + b_· (…, B, n, H) of one step; the terms that a gate does
    not read are left out.
    """
    x_product, h_product = x @ weights.x, h @ weights.h
    leading = np.broadcast_shapes(x_product.shape[:-1], h_product.shape[:-1])
    pre = np.empty((*leading, len(cell.blocks), cell.hidden_size), weights.b.dtype)
    pre[...] = weights.b.reshape(*weights.b.shape[:-1], 1, *pre.shape[-2:])
    for reads, product in ((cell.reads_x, x_product), (cell.reads_h, h_product)):
        place = pre[..., reads, :]
        place += product.reshape(*product.shape[:-1], *place.shape[-2:])
    return pre


def central_difference(f: Callable[[float], Value], epsilon: float) -> Value:
    """df(x)/dx at 0, of a number or an array."""
    return sum(w * (f(k * epsilon) - f(-k * epsilon)) for k, w in STENCIL) / epsilon


def forward_difference(f: Callable[[float], Value], epsilon: float) -> Value:
    """df(x)/dx at 0 from one side alone, to second order: backwards where
    ``epsilon`` is negative.
    """
    return (4 * f(epsilon) - f(2 * epsilon) - 3 * f(0.0)) / (2 * epsilon)


def untied_differences(network: Network, theta: NDArray, batch: Batch, epsilon: float = EPSILON) -> dict[str, NDArray]:
    """∂L/∂θ_t by central differences for every parameter: name → (T, …). θ must be float64.

    For relu, choose ``epsilon`` so small that no unit crosses its corner.
    """
    steps = len(batch.mask)
    gradient = np.zeros((steps, network.size))
    chunk = max(1, CHUNK_ELEMENTS // (2 * len(STENCIL) * network.size))
    for t in range(steps):
        for start in range(0, network.size, chunk):
            moved = slice(start, min(start + chunk, network.size))
            unit = np.eye(network.size)[moved]

            def losses(change: float, t: int = t, unit: NDArray = unit) -> NDArray:
                return untied_losses(network, [theta] * t + [theta + change * unit] + [theta] * (steps - 1 - t), batch)

            gradient[t, moved] = central_difference(losses, epsilon)
    by_step = [network.parameters(row) for row in gradient]
    return {name: np.stack([row[name] for row in by_step]) for name in by_step[0]}


def tangent_terms(
    network: Network, theta: NDArray, tape: Tape, name: str, start: int, direction: NDArray, step: float
) -> Iterator[tuple[float, int]]:
    """The contribution of each scored timestep to the derivative of the loss when θ_start moves
    along ``direction``: (value, power) for value · 2^power.

    The tangent J v is propagated forwards and rescaled by a power of two after every step; linear
    parts are exact, the cell's step uses central differences. The result is accurate even where it
    is so small that differences of the loss are only rounding.
    """
    cell = network.cell
    scored = {int(t): row for row, t in enumerate(tape.scored)}
    hidden = cell.states[0]
    if name in READOUT:
        if start in scored:
            multiplied = tape.layers[-1].states[hidden][start + 1]
            change = (
                multiplied @ direction if name == READOUT[0] else np.broadcast_to(direction, tape.outputs.shape[1:])
            )
            yield float(np.sum(tape.loss_gradient[scored[start]] * change)), 0
        return
    weights = list(network.layer_weights(theta))
    moved, block, source = _parameter_source(network, name)
    batch = tape.batch.mask.shape[1]
    tangents = [[np.zeros((batch, cell.hidden_size)) for _ in cell.states] for _ in range(network.layers)]
    power = 0
    for t in range(start, tape.length):
        input_tangent = np.zeros((batch, tape.layers[0].inputs.shape[-1]))
        for k, layer in enumerate(tape.layers):
            entering = [layer.states[s][t] for s in cell.states]
            packed = pre_activations(cell, weights[k], layer.inputs[t], entering[0])
            linear = replace(weights[k], b=np.zeros_like(weights[k].b))
            change = pre_activations(cell, linear, input_tangent, tangents[k][0])
            if (k, t) == (moved, start):
                change[:, block] += _change_of_pre(layer, t, source, direction)
            elementwise = weights[k].elementwise_by_name(cell)
            tangents[k] = _step_tangent(cell, packed, entering, elementwise, change, tangents[k], step)
            input_tangent = tangents[k][0]
        if t in scored:
            d_hidden = tape.loss_gradient[scored[t]] @ network.packed(theta)[-2].T
            yield float(np.sum(d_hidden * tangents[-1][0])), power
        largest = max(np.abs(s).max() for layer_tangents in tangents for s in layer_tangents)
        if largest == 0:
            return
        shift = int(np.frexp(largest)[1])
        tangents = [[np.ldexp(s, -shift) for s in layer_tangents] for layer_tangents in tangents]
        power += shift


def _parameter_source(network: Network, name: str) -> tuple[int, int, ParameterRole | Elementwise]:
    """A parameter's layer, the index of its gate, and its role or its ``Elementwise``."""
    for layer in range(network.layers):
        for index, spec in enumerate(network.cell.blocks.values()):
            for parameter, source in spec.sources.items():
                if network.prefix(layer) + parameter == name:
                    return layer, index, source
    raise KeyError(name)


def _change_of_pre(layer: LayerTape, t: int, source: ParameterRole | Elementwise, direction: NDArray) -> NDArray:
    """The derivative (B, H) of a gate's pre-activation at step t along ``direction`` of a
    parameter.
    """
    if isinstance(source, Elementwise):
        return layer.state(source.state, source.leaving)[t] * direction
    multiplied = {"input": layer.inputs, "recurrent": next(iter(layer.states.values()))}
    return multiplied[source][t] @ direction if source in multiplied else direction


def _step_tangent(
    cell: Cell,
    packed: NDArray,
    entering: list[NDArray],
    elementwise: Mapping[str, NDArray],
    change: NDArray,
    tangents: list[NDArray],
    step: float,
) -> list[NDArray]:
    """The derivative of one pointwise step along a direction, by central differences."""
    largest = max(np.abs(change).max(), *(np.abs(s).max() for s in tangents))
    if largest == 0:
        return [np.zeros_like(s) for s in tangents]

    def leaving(offset: float) -> NDArray:
        offset /= largest
        moved = [s + offset * d for s, d in zip(entering, tangents, strict=True)]
        return np.stack(cell.new_step(packed + offset * change, moved, elementwise).leaving)

    return list(largest * central_difference(leaving, step))


def assembled(factor: Factor, steps: int) -> Scaled:
    """∂L/∂θ_t of a packed matrix at all T steps, (T, n, K, H) or (T, n, H) for a bias, with one
    exponent for each step; 0 where the matrix is not used. The result is T times as large as the
    weights, and therefore meant for small networks.
    """
    values, exponents = np.zeros(0), np.zeros(steps, np.int32)
    for rows, step in factor.per_step():
        if not values.size:
            values = np.zeros((steps, *step.array.shape[1:]))
        values[factor.times[rows]] = step.array
        exponents[factor.times[rows]] = step.exponent[:, 0]
    return Scaled(values[:, :, 0] if factor.inputs is None else values, exponents)


def per_step_gradients(trace: Trace) -> dict[str, NDArray]:
    """∂L/∂θ_t by backpropagation: name → (T, …), as plain numbers, which may underflow or
    overflow.
    """
    gradients: dict[str, NDArray] = {}
    for factor in trace.factors:
        values = assembled(factor, trace.tape.length).plain()
        gradients |= {name: values[:, block] for block, name in enumerate(factor.names)}
    return gradients


def relative_error(computed: NDArray, reference: NDArray) -> float:
    """‖computed − reference‖ / max(‖computed‖, ‖reference‖); 0 where both are 0."""
    size = max(float(np.linalg.norm(reference)), float(np.linalg.norm(computed)))
    return float(np.linalg.norm(computed - reference)) / size if size else 0.0
