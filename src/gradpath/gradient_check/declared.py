"""What a cell says of itself beside its derivative, held to what its own ``step`` does."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from gradpath.core.activations import Activation
from gradpath.core.cell import Cell
from gradpath.core.tape import LayerTape, Tape
from gradpath.gradient_check.findings import Errors, Findings, exactly, of_values, worst
from gradpath.gradient_check.pointwise import Derivative
from gradpath.gradient_check.reference import Reference


def check(reference: Reference, findings: Findings) -> None:
    """Every declaration, in every layer."""
    cell = reference.cell
    names = [cell.paths.get(block) for block in list(cell.blocks)[cell.reads_h]]
    taken = {None, "highway", "direct", "carousel", "rest", "total"}
    distinct = len(set(names)) == len(names) and not taken & set(names)
    findings.add("paths: a name for each block that reads H", exactly(0.0 if distinct else np.inf))
    for layer, (tape, derivative) in enumerate(zip(reference.tape.layers, reference.derivatives, strict=True)):
        of_layer = _Layer(reference, layer, tape, derivative)
        for quantity, of in CHECKS.items():
            findings.add(quantity, of(of_layer), layer)


class _Layer:
    """One layer's tape and the local derivatives of all its steps."""

    def __init__(self, reference: Reference, layer: int, tape: LayerTape, derivative: Derivative) -> None:
        self.reference, self.layer, self.tape, self.derivative = reference, layer, tape, derivative
        self.cell: Cell = reference.cell
        steps = range(len(tape.pre))
        self.jacobians = np.stack([derivative.at(t) for t in steps], axis=1)
        self.slopes = np.stack([derivative.gate_slopes(t) for t in steps])
        self.eps = float(np.finfo(tape.pre.dtype).eps)


def forward(tape: Tape, reference: Reference, findings: Findings) -> None:
    """Each step of a tape by itself, from the states that enter it on the tape: pre-activations,
    gates, the states that leave, Y and ∂L/∂Y, against the equations in float64. H_0 is
    ``initial_state`` and whatever else enters is 0.
    """
    cell = reference.cell
    for layer, of in enumerate(tape.layers):
        weights, width = reference.weights[layer], cell.hidden_size
        below = reference.below(layer)
        enters = of.states[cell.states[0]][:-1]
        steps, batch = of.pre.shape[:2]
        pre, size = (np.empty((steps, batch, len(cell.blocks), width)) for _ in range(2))
        for out, change in ((pre, np.positive), (size, np.abs)):
            x, h, w_x, w_h, b = (change(v.astype(np.float64)) for v in (below, enters, weights.x, weights.h, weights.b))
            out[:] = b.reshape(-1, width)
            out[:, :, cell.reads_x] += (x @ w_x).reshape(steps, batch, -1, width)
            out[:, :, cell.reads_h] += (h @ w_h).reshape(steps, batch, -1, width)
        off = np.abs(of.pre - pre) / np.maximum(size, np.finfo(of.pre.dtype).tiny)
        findings.add("a_t = X_t W + H_{t-1} W + b", exactly(_largest(off)), layer)
        derivative, errors = reference.derivatives[layer], []
        for t in range(steps):
            leaving, gates, saved = derivative.step(derivative.point(t))
            found = [s[t + 1] for s in of.states.values()] + [s[t] for s in of.saved.values()] + [of.gates[t]]
            errors.append(
                [
                    float((np.abs(one - two) / (1 + np.abs(two))).max())
                    for one, two in zip(found, [*leaving, *saved, gates], strict=True)
                ]
            )
        first = reference.network.initial_state
        start = [np.abs(s[0] - (0 if k else first)).max() for k, s in enumerate(of.states.values())]
        errors[0].append(float(max(start)) / (1 + abs(first)))
        findings.add("step: gates and states", exactly([max(row) for row in errors]), layer)
        findings.add("step: pointwise", exactly(0.0 if derivative.pointwise else np.inf), layer)
    top = tape.layers[-1].states[cell.states[0]][1:][tape.scored].astype(np.float64)
    w_hy, b_y = (w.astype(np.float64) for w in reference.network.packed(tape.theta)[-2:])
    size = np.abs(top) @ np.abs(w_hy) + np.abs(b_y)
    off = np.abs(tape.outputs - (top @ w_hy + b_y)) / np.maximum(size, np.finfo(tape.outputs.dtype).tiny)
    findings.add("Y_t = H_t W_hy + b_y", exactly(off.max(initial=0)))
    whole = reference.d_outputs[None]
    findings.add("∂L/∂Y", of_values(tape.loss_gradient[None], np.stack([whole, whole])).largest)


def _largest(off: NDArray) -> NDArray:
    return off.reshape(len(off), -1).max(axis=1)


def _carried(of: _Layer) -> NDArray:
    """(2, T, B, H) ∂C_t/∂C_{t-1}, C the carrier, the pre-activations held."""
    carrier = of.cell.states.index(of.cell.carrier)
    return of.jacobians[:, :, carrier, len(of.cell.blocks) + carrier]


def _carrier_gain(of: _Layer) -> Errors:
    """``carrier_gain`` against ∂C_t/∂C_{t-1}."""
    expected = _carried(of)
    return of_values(np.broadcast_to(of.cell.carrier_gain(of.tape), expected.shape[1:]).astype(np.float64), expected)


def _output_wrt_carrier(of: _Layer) -> Errors:
    """``output_wrt_carrier`` against ∂H_t/∂C_t."""
    expected = of.reference.layers[of.layer].to_carrier
    found = np.broadcast_to(of.cell.output_wrt_carrier(of.tape), expected.shape[1:]).astype(np.float64)
    return of_values(found, expected)


def _has_skip_to_h(of: _Layer) -> Errors:
    """H_{t-1} may reach the next states outside the gates only where the cell says so."""
    reaches = np.abs(of.jacobians[0][:, :, len(of.cell.blocks)]).reshape(len(of.tape.pre), -1).max(axis=1)
    return exactly(np.zeros_like(reaches) if of.cell.has_skip_to_h else reaches)


def _keeping(of: _Layer) -> Errors:
    """``keeping`` against ∂C_t/∂C_{t-1}, both in [0, 1]; a cell need not have one."""
    keeping, (expected, _) = of.cell.keeping, _carried(of)
    if keeping is None:
        return exactly(np.zeros(len(expected)))
    found = np.asarray(keeping.held) if keeping.gate is None else of.cell.activations(of.tape)[keeping.gate]
    return exactly(_largest(np.abs((1 - found if keeping.complement else found) - expected)))


def _recurrence(of: _Layer) -> Errors:
    """H_t = φ(a_t) of a cell that says so, φ its ``recurrence``."""
    if of.cell.recurrence is None:
        return exactly(np.zeros(len(of.tape.pre)))
    value = PHI[of.cell.recurrence](of.tape.pre[..., 0, :].astype(np.float64))
    alone = len(of.cell.blocks) == len(of.cell.states) == 1
    off = np.abs(of.tape.states[of.cell.output][1:] - value) / (1 + np.abs(value))
    return exactly(_largest(off) if alone else np.full(len(value), np.inf))


def _nonlinear(of: _Layer) -> Errors:
    """``nonlinear``'s y against φ(x), relative to y: σ(x) = 1/(1 + e^-x), tanh, max(x, 0). A gate
    that is held is the same everywhere, and no φ.
    """
    found, steps = [np.zeros(len(of.tape.pre))], len(of.tape.pre)
    for kind, x, y in of.cell.nonlinear(of.tape):
        by_block = [v.reshape(steps, v.shape[1], -1, v.shape[-1]).swapaxes(0, 2) for v in (x, y)]
        for arguments, values in zip(*by_block, strict=True):
            if np.ptp(values) == 0:
                continue
            value = PHI[kind](arguments.astype(np.float64))
            rounding = np.abs(PHI[kind](arguments.astype(np.float64) * (1 + 4 * of.eps)) - value)
            off = np.maximum(np.abs(values - value) - 4 * rounding - of.eps, 0)
            off = np.divide(off, np.abs(value), out=off, where=np.abs(value) > of.eps)
            found.append(_largest(off.swapaxes(0, 1)))
    return exactly(np.max(found, axis=0))


def _activations(of: _Layer) -> Errors:
    """What ``gate_activation`` watches is the block of its name (I of i), 1 − that, or φ′ over its
    largest value; where no block has its name it is one of these of any block. And it lies in [0,
    1], and is declared in ``watched``.
    """
    gates = dict(zip(of.cell.blocks, np.moveaxis(of.tape.gates.astype(np.float64), -2, 0), strict=True))
    slopes = dict(zip(of.cell.blocks, np.moveaxis(of.slopes, 1, 0), strict=True))
    errors = [np.zeros(len(of.tape.pre))]
    if set(of.cell.watched) != set(of.cell.activations(of.tape)):
        return exactly(errors[0] + np.inf)
    for name, values in of.cell.activations(of.tape).items():
        inside = np.maximum(np.maximum(-values, values - 1), 0)
        own = name.lower() in gates
        blocks = [name.lower()] if own else list(gates)
        candidates = [gates[b] for b in blocks]
        if not own:
            candidates += [1 - gates[b] for b in blocks] + [slopes[b] * steep for b in blocks for steep in (1, 4)]
        near = [_largest(np.maximum(np.abs(values - c), inside)) for c in candidates]
        errors.append(min(near, key=lambda error: float(error.max())))
    return exactly(np.max(errors, axis=0))


def _nodes(of: _Layer) -> Errors:
    """A node's adjoint times its own slope is that of the pre-activation: ∂L/∂a = ∂L/∂n ∘ ∂n/∂a, n
    the activation of the block of its name (I of i), or where no block has its name that of one of
    the others.
    """
    reference = of.reference.layers[of.layer]
    delta = dict(zip(of.cell.blocks, np.moveaxis(reference.delta.values, -2, 0), strict=True))
    slopes = dict(zip(of.cell.blocks, np.moveaxis(of.slopes, 1, 0), strict=True))
    both = [
        of.cell.nodes(of.tape, {name: value.values[row] for name, value in reference.states.items()})
        for row in range(2)
    ]
    named = {name.lower() for name in both[0]}
    errors = [exactly(np.zeros(len(of.tape.pre)))]
    for name in both[0]:
        blocks = [name.lower()] if name.lower() in delta else [block for block in delta if block not in named]
        node, moved = (np.nan_to_num(of_row[name]) for of_row in both)
        unknown = np.isnan(both[0][name])  # as where a cell's step does not tell ∂H_t/∂C_t
        near = []
        for block in blocks:
            value, near_value = delta[block]
            doubt = np.abs(near_value - value) + np.abs((moved - node) * slopes[block])
            near.append(of_values(node * slopes[block], np.where(unknown, np.nan, [value, value + doubt])))
        errors.append(min(near, key=lambda error: float(error.excess.max())))
    return worst(errors)


def _counterfactuals(of: _Layer) -> Errors:
    """``X=v`` holds the gate X at v."""
    errors = [np.zeros(len(of.tape.pre))]
    if of.layer == 0:
        for name, cell in of.cell.counterfactuals().items():
            gate, held, value = name.partition("=")
            network, made_of = replace(of.reference.network, cell=cell), of.reference.tape
            tape = network.forward(made_of.theta, made_of.batch)
            if held:
                watched = cell.activations(tape.layers[0]).get(gate)
                missing = np.full(len(of.tape.pre), np.inf)
                errors.append(missing if watched is None else _largest(np.abs(watched - float(value))))
    return exactly(np.max(errors, axis=0))


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
    "nonlinear": _nonlinear,
    "activations": _activations,
    "nodes": _nodes,
    "counterfactuals": _counterfactuals,
}
