"""The expected columns of those readings that are norms, by the definitions in the instruments'
docstrings.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradpath.core.step import Elementwise
from gradpath.core.trace import Trace
from gradpath.gradient_check.findings import Errors, log10_errors
from gradpath.gradient_check.reference import Reference, normalized
from gradpath.gradient_check.textbook import LayerReference, Stepwise, gate_weights
from gradpath.instruments import Instrument


def equal_or_nan(left: NDArray, right: NDArray) -> NDArray:
    return np.asarray((left == right) | (np.isnan(left) & np.isnan(right)))


@dataclass(frozen=True)
class Column:
    """The expected column of a reading, (T,) or a number, and its uncertainty; ``log``: the column
    is the log10 of a norm.
    """

    value: NDArray
    doubt: NDArray | float = 0.0
    log: bool = False
    nan_expected: bool = False
    """Is NaN the expected reading where ``value`` is NaN? Otherwise NaN says that the value is
    unknown.
    """

    def errors(self, reading: NDArray) -> Errors:
        unknown = np.isnan(self.value) & (not self.nan_expected)  # a cell's step need not determine ∂H_t/∂C_t
        if self.log:
            error = log10_errors(reading, self.value).relative
        else:
            error = np.where(equal_or_nan(reading, self.value), 0, np.abs(reading - self.value))
        return Errors(np.where(unknown & ~np.isposinf(reading), 0, error), np.broadcast_to(self.doubt, error.shape))


def norm_of(value: Stepwise) -> Column:
    return Column(value.log10_norm(), value.uncertainty(), log=True)


def param_grad_norm(reference: Reference, trace: Trace, _: Instrument) -> Iterator[tuple[str, Column]]:
    by_name = {name: norm_of(steps) for _, name, steps in reference.gradients()}
    for place in reference.network.layout:
        yield from ((name, by_name[name]) for name in place.names)


def state_grad_norm(reference: Reference, trace: Trace, _: Instrument) -> Iterator[tuple[str, Column]]:
    cell = reference.cell
    layers = [(reference.network.prefix(k), layer) for k, layer in enumerate(reference.layers)]
    yield from ((prefix + name, norm_of(value)) for prefix, layer in layers for name, value in layer.states.items())
    yield from ((f"direct/{prefix}{cell.output}", norm_of(layer.direct)) for prefix, layer in layers)


def grad_norm(reference: Reference, trace: Trace, _: Instrument) -> Iterator[tuple[str, Column]]:
    for place in reference.network.layout:
        for name in place.names:
            values, exponent = reference.totals[name]
            yield name, norm_of_total(values, exponent)
    yield "global", norm_of_total(*total_gradient(reference, trace))


def norm_of_total(values: NDArray, exponent: int) -> Column:
    steps = Stepwise(values[:, None], np.array([exponent]))
    return Column(steps.log10_norm()[0], steps.uncertainty()[0], log=True)


def total_gradient(reference: Reference, trace: Trace, readout: bool = True) -> tuple[NDArray, int]:
    """∂L/∂θ (2, P) in the order of θ, under one exponent; without ``readout``, the readout's part
    is 0.
    """
    network, totals = reference.network, reference.totals
    if not readout:
        readout_names = {name for place in network.layout[-2:] for name in place.names}
        totals = {name: (v * (name not in readout_names), e) for name, (v, e) in totals.items()}
    common = max((e for values, e in totals.values() if values.any()), default=0)
    flat = np.zeros((2, network.size))
    for row in range(2):
        for name, place in network.parameters(flat[row]).items():
            values, exponent = totals[name]
            place[...] = np.ldexp(values[row], max(exponent - common, -5000)).reshape(place.shape)
    return flat, common


def gate_activation(reference: Reference, trace: Trace, _: Instrument) -> Iterator[tuple[str, Column]]:
    cell = reference.cell
    for layer, tape in enumerate(reference.tape.layers):
        for gate, values in cell.activations(tape).items():
            name, flat = reference.network.prefix(layer) + gate, values.reshape(len(values), -1)
            yield f"{name}/mean", Column(flat.mean(axis=1, dtype=np.float64))
            for quantile in (10, 50, 90):
                yield f"{name}/q{quantile}", Column(np.percentile(flat, quantile, axis=1))
            yield f"{name}/below_0.1", Column((flat < 0.1).sum(axis=1) / flat.shape[1])
            yield f"{name}/above_0.9", Column((flat > 0.9).sum(axis=1) / flat.shape[1])


def node_grad_norm(reference: Reference, trace: Trace, _: Instrument) -> Iterator[tuple[str, Column]]:
    cell = reference.cell
    for layer, layer_reference in enumerate(reference.layers):
        prefix, exponent = reference.network.prefix(layer), layer_reference.delta.exponent
        yield from ((prefix + name, norm_of(value)) for name, value in layer_reference.states.items())
        tape = reference.tape.layers[layer]
        adjoints = [{name: value.values[row] for name, value in layer_reference.states.items()} for row in range(2)]
        twins = [cell.nodes(tape, adjoint) for adjoint in adjoints]
        for name in twins[0]:
            yield prefix + name, norm_of(Stepwise(np.stack([twin[name] for twin in twins]), exponent))
        for block, name in enumerate(cell.blocks):
            yield f"{prefix}a_{name}", norm_of(Stepwise(layer_reference.delta.values[..., block, :], exponent))


def path_grad_norm(reference: Reference, trace: Trace, _: Instrument) -> Iterator[tuple[str, Column]]:
    cell = reference.cell
    for layer, layer_reference in enumerate(reference.layers):
        carrier = reference.network.prefix(layer) + cell.carrier
        total = layer_reference.states[cell.carrier]
        yield f"{carrier}/total", norm_of(total)
        for name, part in parts(reference, layer):
            yield f"{carrier}/{name}", norm_of(part)
            cosine = cosine_of(part.values[0], total.values[0])
            yield f"{carrier}/{name}/cosine", Column(cosine, part.uncertainty() + total.uncertainty())


def parts(reference: Reference, layer: int) -> Iterator[tuple[str, Stepwise]]:
    """The parts of the carrier's adjoint at t = 1 … T, first by the path over the last step, then
    by the path over the whole lag. Of two small factors, one is brought to size 1 before they are
    multiplied, because their product may underflow although it has an exponent of its own.
    """
    cell, layer_reference = reference.cell, reference.layers[layer]
    exponent, width = layer_reference.delta.exponent, cell.hidden_size
    yield "highway", layer_reference.highway
    matrices = dict(zip(list(cell.blocks)[cell.reads_h], gate_weights(reference.weights[layer].h, width), strict=True))
    for gate, block in enumerate(cell.blocks):
        if block not in cell.paths:
            continue
        returned = np.zeros_like(layer_reference.to_h.values)
        if block in matrices:
            returned[:, :-1] = layer_reference.delta.values[:, 1:, :, gate] @ matrices[block].T
        part = _through_output(layer_reference, Stepwise(returned, np.append(exponent[1:], 0)))
        for read in cell.blocks[block].elementwise:
            contribution = _elementwise_return(reference, layer, gate, read)
            if read.state != cell.carrier:
                contribution = _through_output(layer_reference, contribution)
            part = _sum(part, contribution)
        yield cell.paths[block], part
    yield "direct", _through_output(layer_reference, layer_reference.direct)
    recurrent = reference.weights[layer].h
    for name, arriving in (("carousel", layer_reference.direct), ("rest", layer_reference.to_h)):
        carried = reference.book.layer(layer, recurrent, arriving, cut=True).states[cell.carrier]
        if name == "rest":
            for gate, read in cell.elementwise:
                contribution = _elementwise_return(reference, layer, gate, read)
                receiver = cell.states.index(read.state)
                addend = reference.book.layer(layer, recurrent, contribution, cut=True, receiver=receiver)
                carried = _sum(carried, addend.states[cell.carrier])
        yield name, carried


def _through_output(layer_reference: LayerReference, adjoint: Stepwise) -> Stepwise:
    """The part of the carrier's adjoint that comes through the output: an adjoint of the output
    times ∂H_t/∂C_t.
    """
    unit, power = normalized(adjoint.values)
    return Stepwise(unit * layer_reference.to_carrier, adjoint.exponent + power)


def _elementwise_return(reference: Reference, layer: int, gate: int, read: Elementwise) -> Stepwise:
    """The adjoint that a gate returns to a state through an elementwise parameter."""
    cell, layer_reference = reference.cell, reference.layers[layer]
    weights = reference.weights[layer].elementwise_by_name(cell)[read.name].astype(np.float64)
    values = layer_reference.delta.values[:, :, :, gate] * (0 if cell.truncated else weights)
    if read.leaving:
        return Stepwise(values, layer_reference.delta.exponent)
    return Stepwise(
        np.append(values[:, 1:], np.zeros_like(values[:, :1]), axis=1), np.append(layer_reference.delta.exponent[1:], 0)
    )


def _sum(*summands: Stepwise) -> Stepwise:
    common = np.max([summand.exponent for summand in summands], axis=0)
    shifts = [np.maximum(summand.exponent - common, -5000)[:, None, None] for summand in summands]
    return Stepwise(sum(np.ldexp(s.values, shift) for s, shift in zip(summands, shifts, strict=True)), common)


def cosine_of(part: NDArray, total: NDArray) -> NDArray:
    """(T,) cosine of a part with the total; 0 where either is a true zero."""
    left, right = (x.reshape(len(x), -1) for x in (part, total))
    sizes = [np.abs(x).max(axis=1, keepdims=True) for x in (left, right)]
    left, right = (x / np.where(size > 0, size, 1) for x, size in zip((left, right), sizes, strict=True))
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return np.divide(np.sum(left * right, axis=1), norms, out=np.zeros_like(norms), where=norms > 0)


def clip_scale(reference: Reference, trace: Trace, _: Instrument) -> Iterator[tuple[str, Column]]:
    yield "clip_scale", Column(np.asarray(trace.clip_scale))  # the check of training compares the scale itself


def parameter_value(reference: Reference, trace: Trace, _: Instrument) -> Iterator[tuple[str, Column]]:
    network, theta, names = reference.network, trace.tape.theta, {}
    for name, places in network.parameters(np.arange(network.size)).items():
        for index, place in np.ndenumerate(places):
            names[int(place)] = name if places.size == 1 else f"{name}[{','.join(map(str, index))}]"
    yield from ((names[place], Column(np.asarray(value, np.float64))) for place, value in enumerate(theta))
