"""Compares what a cell declares, apart from its derivative, with what its own ``step`` computes."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from gradpath.core.activations import Activation
from gradpath.core.cell import Cell
from gradpath.core.tape import LayerTape, Tape
from gradpath.gradient_check.findings import Errors, Findings, certain, value_errors, worst
from gradpath.gradient_check.pointwise import Derivative
from gradpath.gradient_check.reference import Reference


def check(reference: Reference, findings: Findings) -> None:
    """Checks every declaration in every layer."""
    cell = reference.cell
    names = [cell.paths.get(name) for name, spec in cell.blocks.items() if spec.h or spec.elementwise]
    taken = {None, "highway", "direct", "carousel", "rest", "total"}
    distinct = len(set(names)) == len(names) and not taken & set(names)
    findings.add("paths: a name for each block that reads a state", certain(0.0 if distinct else np.inf))
    for layer, (tape, derivative) in enumerate(zip(reference.tape.layers, reference.derivatives, strict=True)):
        record = _Layer(reference, layer, tape, derivative)
        for quantity, rule in CHECKS.items():
            findings.add(quantity, rule(record), layer)


class _Layer:
    """One layer's tape and the local derivatives of all its steps."""

    def __init__(self, reference: Reference, layer: int, tape: LayerTape, derivative: Derivative) -> None:
        self.reference, self.layer, self.tape, self.derivative = reference, layer, tape, derivative
        self.cell: Cell = reference.cell
        steps = range(len(tape.pre))
        self.jacobians = np.stack([derivative.jacobian(t) for t in steps], axis=1)
        self.slopes = np.stack([derivative.gate_slopes(t) for t in steps])
        self.eps = float(np.finfo(tape.pre.dtype).eps)


def forward(tape: Tape, reference: Reference, findings: Findings) -> None:
    """Checks each step of a tape separately, from the states that enter it on the tape:
    pre-activations, gates, the states that leave, Y and ∂L/∂Y are compared with the equations in
    float64. H_0 must be ``initial_state``; all other initial states must be 0.
    """
    cell = reference.cell
    for layer, layer_tape in enumerate(tape.layers):
        weights, width = reference.weights[layer], cell.hidden_size
        inputs = reference.layer_inputs(layer)
        enters = layer_tape.states[cell.states[0]][:-1]
        steps, batch = layer_tape.pre.shape[:2]
        pre, size = (np.empty((steps, batch, len(cell.blocks), width)) for _ in range(2))
        for result, change in ((pre, np.positive), (size, np.abs)):
            x, h, w_x, w_h, b = (
                change(v.astype(np.float64)) for v in (inputs, enters, weights.x, weights.h, weights.b)
            )
            result[:] = b.reshape(-1, width)
            for reads, product in ((cell.reads_x, x @ w_x), (cell.reads_h, h @ w_h)):
                place = result[:, :, reads]
                place += product.reshape(place.shape)
            for (gate, read), w in zip(cell.elementwise, weights.elementwise_by_name(cell).values(), strict=True):
                state = layer_tape.state(read.state, read.leaving)
                result[:, :, gate] += change(state.astype(np.float64)) * change(w.astype(np.float64))
        error = np.abs(layer_tape.pre - pre) / np.maximum(size, np.finfo(layer_tape.pre.dtype).tiny)
        findings.add("a_t = X_t W + H_{t-1} W + b", certain(_largest(error)), layer)
        derivative, errors = reference.derivatives[layer], []
        for t in range(steps):
            leaving, gates, saved = derivative.step(derivative.point(t))
            recorded = (
                [s[t + 1] for s in layer_tape.states.values()]
                + [s[t] for s in layer_tape.saved.values()]
                + [layer_tape.gates[t]]
            )
            errors.append(
                [
                    float((np.abs(value - expected) / (1 + np.abs(expected))).max())
                    for value, expected in zip(recorded, [*leaving, *saved, gates], strict=True)
                ]
            )
        first = reference.network.initial_state
        start = [np.abs(s[0] - (0 if k else first)).max() for k, s in enumerate(layer_tape.states.values())]
        errors[0].append(float(max(start)) / (1 + abs(first)))
        findings.add("step: gates and states", certain([float(np.max(row)) for row in errors]), layer)
        findings.add("step: pointwise", certain(0.0 if derivative.pointwise else np.inf), layer)
    top = tape.layers[-1].states[cell.states[0]][1:][tape.scored].astype(np.float64)
    w_hy, b_y = (w.astype(np.float64) for w in reference.network.packed(tape.theta)[-2:])
    size = np.abs(top) @ np.abs(w_hy) + np.abs(b_y)
    error = np.abs(tape.outputs - (top @ w_hy + b_y)) / np.maximum(size, np.finfo(tape.outputs.dtype).tiny)
    findings.add("Y_t = H_t W_hy + b_y", certain(error.max(initial=0)))
    gradient = reference.d_outputs[None]
    findings.add("∂L/∂Y", value_errors(tape.loss_gradient[None], np.stack([gradient, gradient])).largest)


def _largest(error: NDArray) -> NDArray:
    return error.reshape(len(error), -1).max(axis=1)


def _carried(record: _Layer) -> NDArray:
    """(2, T, B, H) ∂C_t/∂C_{t-1} at fixed pre-activations, where C is the carrier."""
    carrier = record.cell.states.index(record.cell.carrier)
    return record.jacobians[:, :, carrier, len(record.cell.blocks) + carrier]


def _carrier_gain(record: _Layer) -> Errors:
    """``carrier_gain`` against ∂C_t/∂C_{t-1}."""
    expected = _carried(record)
    return value_errors(
        np.broadcast_to(record.cell.carrier_gain(record.tape), expected.shape[1:]).astype(np.float64), expected
    )


def _output_wrt_carrier(record: _Layer) -> Errors:
    """``output_wrt_carrier`` against ∂H_t/∂C_t."""
    expected = record.reference.layers[record.layer].to_carrier
    claimed = np.broadcast_to(record.cell.output_wrt_carrier(record.tape), expected.shape[1:]).astype(np.float64)
    return value_errors(claimed, expected)


def _has_skip_to_h(record: _Layer) -> Errors:
    """Does H_{t-1} reach the next states outside the gates only if the cell declares so?"""
    reaches = np.abs(record.jacobians[0][:, :, len(record.cell.blocks)]).reshape(len(record.tape.pre), -1).max(axis=1)
    return certain(np.zeros_like(reaches) if record.cell.has_skip_to_h else reaches)


def _keeping(record: _Layer) -> Errors:
    """``keeping`` against ∂C_t/∂C_{t-1}, both in [0, 1]; a cell need not declare one."""
    keeping, (expected, _) = record.cell.keeping, _carried(record)
    if keeping is None:
        return certain(np.zeros(len(expected)))
    values = np.asarray(keeping.held) if keeping.gate is None else record.cell.activations(record.tape)[keeping.gate]
    return certain(_largest(np.abs((1 - values if keeping.complement else values) - expected)))


def _recurrence(record: _Layer) -> Errors:
    """H_t = φ(a_t), where the cell declares φ as its ``recurrence``."""
    if record.cell.recurrence is None:
        return certain(np.zeros(len(record.tape.pre)))
    value = PHI[record.cell.recurrence](record.tape.pre[..., 0, :].astype(np.float64))
    is_single = len(record.cell.blocks) == len(record.cell.states) == 1
    error = np.abs(record.tape.states[record.cell.output][1:] - value) / (1 + np.abs(value))
    return certain(_largest(error) if is_single else np.full(len(value), np.inf))


def _nonlinear(record: _Layer) -> Errors:
    """The y of ``activations_used`` against φ(x), relative to y: σ(x) = 1/(1 + e^-x), tanh, max(x,
    0). A gate that is held has one value everywhere and is not compared.
    """
    errors, steps = [np.zeros(len(record.tape.pre))], len(record.tape.pre)
    for kind, x, y in record.cell.activations_used(record.tape):
        by_block = [v.reshape(steps, v.shape[1], -1, v.shape[-1]).swapaxes(0, 2) for v in (x, y)]
        for arguments, values in zip(*by_block, strict=True):
            if np.ptp(values) == 0:
                continue
            value = PHI[kind](arguments.astype(np.float64))
            rounding = np.abs(PHI[kind](arguments.astype(np.float64) * (1 + 4 * record.eps)) - value)
            error = np.maximum(np.abs(values - value) - 4 * rounding - record.eps, 0)
            error = np.divide(error, np.abs(value), out=error, where=np.abs(value) > record.eps)
            errors.append(_largest(error.swapaxes(0, 1)))
    return certain(np.max(errors, axis=0))


def _activations(record: _Layer) -> Errors:
    """Every activation that ``gate_activation`` reads must be declared in ``watched``, lie in [0,
    1], and equal the block of its name (I for i), 1 minus that block, or φ′ over its largest value.
    Where no block has its name, it must equal one of these for any block.
    """
    gates = dict(zip(record.cell.blocks, np.moveaxis(record.tape.gates.astype(np.float64), -2, 0), strict=True))
    slopes = dict(zip(record.cell.blocks, np.moveaxis(record.slopes, 1, 0), strict=True))
    errors = [np.zeros(len(record.tape.pre))]
    if set(record.cell.watched) != set(record.cell.activations(record.tape)):
        return certain(errors[0] + np.inf)
    for name, values in record.cell.activations(record.tape).items():
        excess = np.maximum(np.maximum(-values, values - 1), 0)
        has_block = name.lower() in gates
        blocks = [name.lower()] if has_block else list(gates)
        candidates = [gates[b] for b in blocks]
        if not has_block:
            candidates += [1 - gates[b] for b in blocks] + [slopes[b] * steep for b in blocks for steep in (1, 4)]
        distances = [_largest(np.maximum(np.abs(values - c), excess)) for c in candidates]
        errors.append(min(distances, key=lambda error: float(error.max())))
    return certain(np.max(errors, axis=0))


def _nodes(record: _Layer) -> Errors:
    """A node's adjoint times the slope of the node is the adjoint of the pre-activation: ∂L/∂a =
    ∂L/∂n ∘ ∂n/∂a, where n is the activation of the block of its name (I for i). Where no block has
    its name, n must be the activation of one of the others.
    """
    reference = record.reference.layers[record.layer]
    delta = dict(zip(record.cell.blocks, np.moveaxis(reference.delta.values, -2, 0), strict=True))
    slopes = dict(zip(record.cell.blocks, np.moveaxis(record.slopes, 1, 0), strict=True))
    twins = [
        record.cell.nodes(record.tape, {name: value.values[row] for name, value in reference.states.items()})
        for row in range(2)
    ]
    named = {name.lower() for name in twins[0]}
    errors = [certain(np.zeros(len(record.tape.pre)))]
    for name in twins[0]:
        blocks = [name.lower()] if name.lower() in delta else [block for block in delta if block not in named]
        node, moved_node = (np.nan_to_num(twin[name]) for twin in twins)
        unknown = np.isnan(twins[0][name])  # unknown where a cell's step does not determine ∂H_t/∂C_t
        candidate_errors = []
        for block in blocks:
            value, moved_value = delta[block]
            doubt = np.abs(moved_value - value) + np.abs((moved_node - node) * slopes[block])
            expected = np.where(unknown, np.nan, [value, value + doubt])
            candidate_errors.append(value_errors(node * slopes[block], expected))
        errors.append(min(candidate_errors, key=lambda error: float(error.excess.max())))
    return worst(errors)


def _counterfactuals(record: _Layer) -> Errors:
    """The counterfactual ``X=v`` must hold the gate X at v."""
    errors = [np.zeros(len(record.tape.pre))]
    if record.layer == 0:
        for name, cell in record.cell.counterfactuals().items():
            gate, held, value = name.partition("=")
            network, source = replace(record.reference.network, cell=cell), record.reference.tape
            tape = network.forward(source.theta, source.batch)
            if held:
                watched = cell.activations(tape.layers[0]).get(gate)
                missing = np.full(len(record.tape.pre), np.inf)
                errors.append(missing if watched is None else _largest(np.abs(watched - float(value))))
    return certain(np.max(errors, axis=0))


PHI: dict[Activation, Callable[[NDArray], NDArray]] = {
    Activation.tanh: np.tanh,
    Activation.relu: lambda x: np.maximum(x, 0),
    Activation.sigmoid: lambda x: np.exp(-np.logaddexp(0, -x)),
}
CHECKS: dict[str, Callable[[_Layer], Errors]] = {
    "carrier_gain": _carrier_gain,
    "output_wrt_carrier": _output_wrt_carrier,
    "has_skip_to_h": _has_skip_to_h,
    "keeping": _keeping,
    "recurrence": _recurrence,
    "activations_used": _nonlinear,
    "activations": _activations,
    "nodes": _nodes,
    "counterfactuals": _counterfactuals,
}
