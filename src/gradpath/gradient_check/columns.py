"""What the columns of the readings that are norms must hold, by the definitions in the instruments'
docstrings.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradpath.core.trace import Trace
from gradpath.gradient_check.findings import Errors, of_log10
from gradpath.gradient_check.reference import Reference, of_size_1
from gradpath.gradient_check.textbook import Stepwise
from gradpath.instruments import Instrument


def same(one: NDArray, other: NDArray) -> NDArray:
    return np.asarray((one == other) | (np.isnan(one) & np.isnan(other)))


@dataclass(frozen=True)
class Column:
    """What one column of a reading must hold, (T,) or a number, and by how much that is uncertain;
    ``log``: it is the log10 of a norm.
    """

    value: NDArray
    doubt: NDArray | float = 0.0
    log: bool = False
    told: bool = False
    """NaN is what it must read there, not what is unknown."""

    def errors(self, found: NDArray) -> Errors:
        unknown = np.isnan(self.value) & (not self.told)  # as where a cell's step does not tell ∂H_t/∂C_t
        if self.log:
            off = of_log10(found, self.value).off
        else:
            off = np.where(same(found, self.value), 0, np.abs(found - self.value))
        return Errors(np.where(unknown & ~np.isposinf(found), 0, off), np.broadcast_to(self.doubt, off.shape))


def norm_of(value: Stepwise) -> Column:
    return Column(value.log10_norm(), value.uncertainty(), log=True)


def param_grad_norm(reference: Reference, trace: Trace, _: Instrument) -> Iterator[tuple[str, Column]]:
    found = {name: norm_of(steps) for _, name, steps in reference.gradients()}
    for place in reference.network.layout:
        yield from ((name, found[name]) for name in place.names)


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
    yield "global", norm_of_total(*whole(reference, trace))


def norm_of_total(values: NDArray, exponent: int) -> Column:
    steps = Stepwise(values[:, None], np.array([exponent]))
    return Column(steps.log10_norm()[0], steps.uncertainty()[0], log=True)


def whole(reference: Reference, trace: Trace, readout: bool = True) -> tuple[NDArray, int]:
    """∂L/∂θ (2, P) in the order of θ, under one exponent; without ``readout`` 0 there."""
    network, totals = reference.network, reference.totals
    if not readout:
        held = {name for place in network.layout[-2:] for name in place.names}
        totals = {name: (v * (name not in held), e) for name, (v, e) in totals.items()}
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
    for layer, found in enumerate(reference.layers):
        prefix, exponent = reference.network.prefix(layer), found.delta.exponent
        yield from ((prefix + name, norm_of(value)) for name, value in found.states.items())
        tape = reference.tape.layers[layer]
        adjoints = [{name: value.values[row] for name, value in found.states.items()} for row in range(2)]
        both = [cell.nodes(tape, adjoint) for adjoint in adjoints]
        for name in both[0]:
            yield prefix + name, norm_of(Stepwise(np.stack([one[name] for one in both]), exponent))
        for block, name in enumerate(cell.blocks):
            yield f"{prefix}a_{name}", norm_of(Stepwise(found.delta.values[..., block, :], exponent))


def path_grad_norm(reference: Reference, trace: Trace, _: Instrument) -> Iterator[tuple[str, Column]]:
    cell = reference.cell
    for layer, found in enumerate(reference.layers):
        carrier = reference.network.prefix(layer) + cell.carrier
        total = found.states[cell.carrier]
        yield f"{carrier}/total", norm_of(total)
        for name, part in parts(reference, layer):
            yield f"{carrier}/{name}", norm_of(part)
            cosine = cosine_of(part.values[0], total.values[0])
            yield f"{carrier}/{name}/cosine", Column(cosine, part.uncertainty() + total.uncertainty())


def parts(reference: Reference, layer: int) -> Iterator[tuple[str, Stepwise]]:
    """The split of the carrier's adjoint at t = 1 … T by the way it came over the last step, then
    by the whole lag. Two small factors are multiplied when one has been brought to size 1, because
    their product may underflow where it is a number beside its exponent.
    """
    cell, found = reference.cell, reference.layers[layer]
    exponent, width = found.delta.exponent, cell.hidden_size
    yield "highway", found.highway
    matrices = np.split(reference.weights[layer].h.astype(np.float64), reference.weights[layer].h.shape[1] // width, 1)
    for block, matrix in zip(list(cell.blocks)[cell.reads_h], matrices, strict=True):
        sent = np.zeros_like(found.to_h.values)
        sent[:, :-1] = found.delta.values[:, 1:, :, list(cell.blocks).index(block)] @ matrix.T
        unit, power = of_size_1(sent)
        yield cell.paths[block], Stepwise(unit * found.to_carrier, np.append(exponent[1:], 0) + power)
    unit, power = of_size_1(found.direct.values)
    yield "direct", Stepwise(unit * found.to_carrier, found.direct.exponent + power)
    recurrent = reference.weights[layer].h
    for name, arriving in (("carousel", found.direct), ("rest", found.to_h)):
        yield name, reference.book.layer(layer, recurrent, arriving, cut=True).states[cell.carrier]


def cosine_of(part: NDArray, total: NDArray) -> NDArray:
    """(T,); 0 where either is a true zero."""
    one, other = (x.reshape(len(x), -1) for x in (part, total))
    sizes = [np.abs(x).max(axis=1, keepdims=True) for x in (one, other)]
    one, other = (x / np.where(size > 0, size, 1) for x, size in zip((one, other), sizes, strict=True))
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return np.divide(np.sum(one * other, axis=1), norms, out=np.zeros_like(norms), where=norms > 0)


def clip_scale(reference: Reference, trace: Trace, _: Instrument) -> Iterator[tuple[str, Column]]:
    yield "clip_scale", Column(np.asarray(trace.clip_scale))  # itself checked where training is


def parameter_value(reference: Reference, trace: Trace, _: Instrument) -> Iterator[tuple[str, Column]]:
    network, theta, found = reference.network, trace.tape.theta, {}
    for name, places in network.parameters(np.arange(network.size)).items():
        for index, place in np.ndenumerate(places):
            found[int(place)] = name if places.size == 1 else f"{name}[{','.join(map(str, index))}]"
    yield from ((found[place], Column(np.asarray(value, np.float64))) for place, value in enumerate(theta))
