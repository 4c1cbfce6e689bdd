"""What the instruments must have recorded: of those that gradpath brings, by the definition in their docstring from the
textbook's gradients; of every other, and of those whose reading is a rule rather than a norm, what the instrument reads
where the textbook's passes stand in the place of the network's own.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from gradpath.check.findings import ALLOWED, Errors, exactly, of_log10, worst
from gradpath.check.reference import Reference
from gradpath.check.textbook import Stepwise
from gradpath.experiment import unit_name
from gradpath.gradcheck import untied_loss
from gradpath.graded import products
from gradpath.instruments import Instrument
from gradpath.instruments.clipping_ledger import ClippingLedger
from gradpath.instruments.credit import Credit
from gradpath.instruments.jacobian_log_singular_values import JacobianLogSingularValues
from gradpath.instruments.lyapunov_spectrum import LyapunovSpectrum
from gradpath.jacobians import adjoint_qr, lyapunov_exponents
from gradpath.records import Measurement, Trace


@dataclass(frozen=True)
class Column:
    """What one column of a reading must hold, (T,) or a number, and by how much that is uncertain; ``log``: it is the
    log10 of a norm.
    """

    value: NDArray
    doubt: NDArray | float = 0.0
    log: bool = False

    def errors(self, found: NDArray) -> Errors:
        unknown = np.isnan(self.value)  # as where a cell's step does not tell ∂H_t/∂C_t
        if self.log:
            off = of_log10(found, self.value).off
        else:
            off = np.where(_same(found, self.value), 0, np.abs(found - self.value))
        return Errors(np.where(unknown & ~np.isposinf(found), 0, off), np.broadcast_to(self.doubt, off.shape))


def errors(reference: Reference, trace: Trace, instrument: Instrument, read: Measurement) -> tuple[str, Errors]:
    """Of what an instrument has read, at every timestep the largest error of its columns (T,), or of a reading of the
    whole step the largest of all (); and the column in which the largest is.
    """
    expectation = EXPECTED.get(unit_name(instrument))
    if expectation is None:
        return "", _by_stand_in(reference, trace, instrument, read)
    expected = dict(expectation(reference, trace, instrument))
    if tuple(expected) != read.names:
        return "names", exactly(np.full(len(read.values) if instrument.per_timestep else (), np.inf))
    with np.errstate(invalid="ignore"):
        found = [column.errors(read.values[..., index]) for index, column in enumerate(expected.values())]
    largest = int(np.argmax([one.excess.max() for one in found]))
    return read.names[largest], worst(found)


def _by_stand_in(reference: Reference, trace: Trace, instrument: Instrument, read: Measurement) -> Errors:
    """The instrument on the textbook's own trace; and on it moved by what is uncertain."""
    both = []
    for stand_in in reference.stand_ins:
        trained = trace.trained
        if trained is not None:
            network = stand_in.tape.network
            trained = stand_in.gradient if trained is trace.gradient else network.without_readout(stand_in)
        dressed = replace(stand_in, clip_scale=trace.clip_scale, applied=trace.applied, trained=trained)
        both.append(instrument.measure(dressed))
    value, near = (measurement.values for measurement in both)
    if both[0].names != read.names or value.shape != read.values.shape:
        return exactly(np.inf)
    with np.errstate(invalid="ignore"):
        off, doubt = np.abs(read.values - value), np.abs(near - value)
    off, doubt = (np.where(same, 0, x) for x, same in ((off, _same(read.values, value)), (doubt, _same(near, value))))
    size = np.maximum(1, np.abs(np.nan_to_num(value)))
    found = Errors(off / size, np.nan_to_num(doubt, nan=np.inf) / size)
    if instrument.per_timestep and value.ndim > 1:
        return worst([Errors(*columns) for columns in zip(*(np.moveaxis(x, -1, 0) for x in found), strict=True)])
    return found.largest


def _same(one: NDArray, other: NDArray) -> NDArray:
    return np.asarray((one == other) | (np.isnan(one) & np.isnan(other)))


def _norm(value: Stepwise) -> Column:
    return Column(value.log10_norm(), value.uncertainty(), log=True)


def _param_grad_norm(reference: Reference, trace: Trace, _: Instrument) -> Iterator[tuple[str, Column]]:
    found = {name: _norm(steps) for _, name, steps in reference.gradients()}
    for place in trace.tape.network.layout:
        yield from ((name, found[name]) for name in place.names)


def _state_grad_norm(reference: Reference, trace: Trace, _: Instrument) -> Iterator[tuple[str, Column]]:
    cell = reference.cell
    layers = [(cell.prefix(k), layer) for k, layer in enumerate(reference.layers)]
    yield from ((prefix + name, _norm(value)) for prefix, layer in layers for name, value in layer.states.items())
    yield from ((f"direct/{prefix}{cell.states[0]}", _norm(layer.direct)) for prefix, layer in layers)


def _grad_norm(reference: Reference, trace: Trace, _: Instrument) -> Iterator[tuple[str, Column]]:
    for place in trace.tape.network.layout:
        for name in place.names:
            values, exponent = reference.totals[name]
            yield name, _norm_of_total(values, exponent)
    yield "global", _norm_of_total(*whole(reference, trace))


def _norm_of_total(values: NDArray, exponent: int) -> Column:
    steps = Stepwise(values[:, None], np.array([exponent]))
    return Column(steps.log10_norm()[0], steps.uncertainty()[0], log=True)


def whole(reference: Reference, trace: Trace) -> tuple[NDArray, int]:
    """∂L/∂θ (2, P) in the order of θ, under one exponent."""
    network, totals = trace.tape.network, reference.totals
    common = max((e for values, e in totals.values() if values.any()), default=0)
    flat = np.zeros((2, network.size))
    for row in range(2):
        for name, place in network.parameters(flat[row]).items():
            values, exponent = totals[name]
            place[...] = np.ldexp(values[row], max(exponent - common, -5000)).reshape(place.shape)
    return flat, common


def _gate_activation(reference: Reference, trace: Trace, _: Instrument) -> Iterator[tuple[str, Column]]:
    cell = reference.cell
    for layer, tape in enumerate(reference.tape.layers):
        for gate, values in cell.activations(tape).items():
            name, flat = cell.prefix(layer) + gate, values.reshape(len(values), -1)
            yield f"{name}/mean", Column(flat.mean(axis=1, dtype=np.float64))
            for quantile in (10, 50, 90):
                yield f"{name}/q{quantile}", Column(np.percentile(flat, quantile, axis=1))
            yield f"{name}/below_0.1", Column((flat < 0.1).sum(axis=1) / flat.shape[1])
            yield f"{name}/above_0.9", Column((flat > 0.9).sum(axis=1) / flat.shape[1])


def _node_grad_norm(reference: Reference, trace: Trace, _: Instrument) -> Iterator[tuple[str, Column]]:
    cell = reference.cell
    for layer, found in enumerate(reference.layers):
        prefix, exponent = cell.prefix(layer), found.delta.exponent
        yield from ((prefix + name, _norm(value)) for name, value in found.states.items())
        tape = reference.tape.layers[layer]
        adjoints = [{name: value.values[row] for name, value in found.states.items()} for row in range(2)]
        both = [cell.nodes(tape, adjoint) for adjoint in adjoints]
        for name in both[0]:
            yield prefix + name, _norm(Stepwise(np.stack([one[name] for one in both]), exponent))
        for block, name in enumerate(cell.blocks):
            yield f"{prefix}a_{name}", _norm(Stepwise(found.delta.values[..., block, :], exponent))


def _path_grad_norm(reference: Reference, trace: Trace, _: Instrument) -> Iterator[tuple[str, Column]]:
    cell = reference.cell
    for layer, found in enumerate(reference.layers):
        carrier = cell.prefix(layer) + cell.states[-1]
        total = found.states[cell.states[-1]]
        yield f"{carrier}/total", _norm(total)
        for name, part in parts(reference, layer):
            yield f"{carrier}/{name}", _norm(part)
            cosines = [_cosine(part.values[row], total.values[row]) for row in range(2)]
            yield f"{carrier}/{name}/cosine", Column(cosines[0], np.abs(cosines[1] - cosines[0]))


def parts(reference: Reference, layer: int) -> Iterator[tuple[str, Stepwise]]:
    """The split of the carrier's adjoint at t = 1 … T by the way it came over the last step, then by the whole lag."""
    cell, found = reference.cell, reference.layers[layer]
    exponent, width = found.delta.exponent, cell.hidden_size
    yield "highway", found.highway
    matrices = np.split(reference.weights[layer].h.astype(np.float64), reference.weights[layer].h.shape[1] // width, 1)
    for block, matrix in zip(list(cell.blocks)[cell.reads_h], matrices, strict=True):
        sent = np.zeros_like(found.to_h.values)
        sent[:, :-1] = found.delta.values[:, 1:, :, list(cell.blocks).index(block)] @ matrix.T
        shifted = np.append(exponent[1:], 0)
        yield cell.paths[block], Stepwise(sent * found.to_carrier, shifted)
    yield "direct", Stepwise(found.direct.values * found.to_carrier, found.direct.exponent)
    recurrent = reference.weights[layer].h
    for name, arriving in (("carousel", found.direct), ("rest", found.to_h)):
        yield name, reference.book.layer(layer, recurrent, arriving, cut=True).states[cell.states[-1]]


def _cosine(part: NDArray, total: NDArray) -> NDArray:
    """(T,); 0 where either is a true zero."""
    one, other = (x.reshape(len(x), -1) for x in (part, total))
    sizes = [np.abs(x).max(axis=1, keepdims=True) for x in (one, other)]
    one, other = (x / np.where(size > 0, size, 1) for x, size in zip((one, other), sizes, strict=True))
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return np.divide(np.sum(one * other, axis=1), norms, out=np.zeros_like(norms), where=norms > 0)


def _clip_scale(reference: Reference, trace: Trace, _: Instrument) -> Iterator[tuple[str, Column]]:
    yield "clip_scale", Column(np.asarray(trace.clip_scale))  # itself checked where training is


def _clipping_ledger(reference: Reference, trace: Trace, instrument: Instrument) -> Iterator[tuple[str, Column]]:
    """Both kinds of clipping on the textbook's gradient, as trained."""
    assert isinstance(instrument, ClippingLedger)
    flat, exponent = whole(reference, trace)
    if trace.trained is not None and trace.trained is not trace.gradient:
        flat[:, trace.tape.network.layout[-2].start :] = 0
    raw = _norm_of_total(flat, exponent)
    plain = np.ldexp(flat, exponent)
    applied = plain if trace.applied is None else np.stack([trace.applied.astype(np.float64)] * 2)
    size = np.abs(plain).max() or 1.0
    lengths = np.linalg.norm(plain / size, axis=1) * size
    by_norm = plain * np.minimum(1, instrument.max_norm / np.where(lengths > 0, lengths, 1))[:, None]
    by_value = np.clip(plain, -instrument.max_value, instrument.max_value)
    near = np.abs(np.abs(plain[0]) / instrument.max_value - 1) < ALLOWED["float32"]
    share = np.mean(np.abs(plain) > instrument.max_value, axis=1)

    def norm(vectors: NDArray) -> Column:
        return _norm_of_total(vectors, 0)

    def cosine(vectors: NDArray) -> Column:
        value, moved = (
            _cosine(v[None], p[None])[0] if v.any() else np.nan for v, p in zip(vectors, plain, strict=True)
        )
        return Column(np.asarray(value), abs(moved - value))

    yield "log10_raw_norm", raw
    yield "log10_applied_norm", norm(applied)
    yield "engaged", Column(np.asarray(float(trace.clip_scale < 1)))
    yield "non_finite", Column(np.asarray(0.0))
    yield "cosine", cosine(applied)
    for kind, vectors in (("norm_clip", by_norm), ("value_clip", by_value)):
        yield f"{kind}/cosine", cosine(vectors)
        yield f"{kind}/log10_norm", norm(vectors)
    yield "value_clip/share", Column(share[0], abs(share[1] - share[0]) + near.mean())


def _counterfactual(reference: Reference, trace: Trace, _: Instrument) -> Iterator[tuple[str, Column]]:
    """The textbook's passes of the cells with a gate held, from their own forward passes."""
    cell, tape = reference.cell, reference.tape
    for name, other in {"factual": cell, **cell.counterfactuals()}.items():
        held = reference
        if name != "factual":
            held = Reference(replace(tape.network, cell=other).forward(tape.theta, tape.batch))
        for layer, found in enumerate(held.layers):
            for state, value in found.states.items():
                yield f"{name}/{cell.prefix(layer)}{state}", _norm(value)


def _parameter_value(reference: Reference, trace: Trace, _: Instrument) -> Iterator[tuple[str, Column]]:
    named = trace.tape.network.parameters(trace.tape.theta)
    for name, value in named.items():
        for index, element in np.ndenumerate(value):
            yield (
                (name if value.size == 1 else f"{name}[{','.join(map(str, index))}]"),
                Column(np.asarray(element, np.float64)),
            )


def jacobians(reference: Reference, layer: int, sequence: int, row: int) -> Iterator[NDArray]:
    """The dense ∂s_t/∂s_{t-1} (k·H, k·H) of one sequence, from the last step to the first: of [H, C] by blocks,
    diag(∂s/∂s) and for H beside it Σ_gates diag(∂s/∂a) W_·hᵀ.
    """
    cell, width = reference.cell, reference.cell.hidden_size
    blocks, kept = len(cell.blocks), len(cell.states)
    recurrent = reference.weights[layer].h.astype(np.float64)
    matrices = np.split(recurrent, recurrent.shape[1] // width, 1)
    for t in reversed(range(reference.tape.length)):
        local = reference.derivatives[layer].at(t)[row][:, :, sequence]
        dense = np.zeros((kept, width, kept, width))
        for out in range(kept):
            for entering in range(kept):
                dense[out, :, entering] = np.diag(local[out, blocks + entering])
            for block, matrix in zip(range(*cell.reads_h.indices(blocks)), matrices, strict=True):
                if not cell.truncated:
                    dense[out, :, 0] += local[out, block][:, None] * matrix.T
        yield dense.reshape(kept * width, kept * width)


def _of_sequences(
    reference: Reference, count: int, read: Callable[[Iterator[NDArray]], NDArray]
) -> Iterator[tuple[int, NDArray, NDArray]]:
    """What is read of the factors of the Jacobians' product, averaged over sequences: layer, value, uncertainty."""
    there_are = min(count, reference.tape.batch.mask.shape[1])
    for layer in range(reference.cell.layers):
        value, moved = (
            np.mean([read(adjoint_qr(jacobians(reference, layer, b, row))) for b in range(there_are)], axis=0)
            for row in range(2)
        )
        with np.errstate(invalid="ignore"):
            yield layer, value, np.where(_same(value, moved), 0, np.nan_to_num(np.abs(moved - value), nan=np.inf))


def _lyapunov(reference: Reference, trace: Trace, instrument: Instrument) -> Iterator[tuple[str, Column]]:
    assert isinstance(instrument, LyapunovSpectrum)
    warm_up = min(instrument.warm_up, reference.tape.length - 1)
    read = partial(lyapunov_exponents, warm_up=warm_up)
    for layer, value, doubt in _of_sequences(reference, instrument.sequences, read):
        for k, column in enumerate(map(Column, value, doubt), 1):
            yield f"{reference.cell.prefix(layer)}lambda_{k}", column


def _singular_values(reference: Reference, trace: Trace, instrument: Instrument) -> Iterator[tuple[str, Column]]:
    assert isinstance(instrument, JacobianLogSingularValues)
    lags = np.unique(np.geomspace(1, max(1, reference.tape.length - 1), instrument.lags).round().astype(int)).tolist()

    def read(factors: Iterator[NDArray]) -> NDArray:
        found = enumerate(islice(products(factors), max(lags)), 1)
        return np.stack([product.log_singular_values() for lag, product in found if lag in lags]) / np.log(10)

    for layer, value, doubt in _of_sequences(reference, instrument.sequences, read):
        for lag, row, doubts in zip(lags, value, doubt, strict=True):
            for k, (one, own) in enumerate(zip(row, doubts, strict=True), 1):
                yield f"{reference.cell.prefix(layer)}lag={lag}/sigma_{k}", Column(one, own * np.log(10), log=True)


def _counterfactual_loss(reference: Reference, trace: Trace, _: Instrument) -> Iterator[tuple[str, Column]]:
    """The loss of an untied forward pass, in the tape's type and in float64."""
    tape, network = reference.tape, reference.tape.network
    for name, cell in {"factual": reference.cell, **reference.cell.counterfactuals()}.items():
        held = replace(network, cell=cell)
        losses = [
            untied_loss(held, np.tile(tape.theta.astype(kind), (tape.length, 1)), tape.batch.astype(kind))
            for kind in (np.float64, tape.theta.dtype.type)
        ]
        scale = max(1.0, abs(losses[0]))
        yield name, Column(np.asarray(losses[0]), abs(losses[1] - losses[0]) + np.finfo(tape.theta.dtype).eps * scale)


def _credit(reference: Reference, trace: Trace, instrument: Instrument) -> Iterator[tuple[str, Column]]:
    assert isinstance(instrument, Credit)
    length, most = reference.tape.length, instrument.max_steps
    steps = range(length) if length <= most else np.linspace(length - 1, 0, most).round().astype(int)[::-1].tolist()
    every, scored = _recurrent(reference), {int(s): row for row, s in enumerate(reference.tape.scored)}
    for s in steps:
        alone = _recurrent(Reference(reference.tape, scored[s], reference.exact)) if s in scored else None
        yield f"credit/{s + 1}", Column(np.full(length, -np.inf), log=True) if alone is None else _norm(alone)
    unit = [_units(every.values[row]) for row in range(2)]
    for s in steps:
        cosines = [of @ of[s] for of in unit]
        yield f"alignment/{s + 1}", Column(cosines[0], np.abs(cosines[1] - cosines[0]))
    yield "norm", _norm(every)


def _recurrent(reference: Reference) -> Stepwise:
    """∂L/∂θ_t (2, T, P) of all but the readout's parameters, brought to one exponent a step."""
    found = [steps for _, name, steps in reference.gradients() if name not in ("W_hy", "b_y")]
    exponent = np.max([steps.exponent for steps in found], axis=0)
    flat = [
        np.ldexp(steps.values, np.maximum(steps.exponent - exponent, -5000)[:, None, None]).reshape(
            2, len(exponent), -1
        )
        for steps in found
    ]
    return Stepwise(np.concatenate(flat, axis=-1), exponent)


def _units(vectors: NDArray) -> NDArray:
    """Rows brought to norm 1, a true zero left 0."""
    largest = np.abs(vectors).max(axis=1, keepdims=True)
    flat = vectors / np.where(largest > 0, largest, 1)
    norm = np.linalg.norm(flat, axis=1, keepdims=True)
    return flat / np.where(norm > 0, norm, 1)


Expectation = Callable[[Reference, Trace, Instrument], Iterator[tuple[str, Column]]]
EXPECTED: dict[str, Expectation] = {
    "param_grad_norm": _param_grad_norm,
    "state_grad_norm": _state_grad_norm,
    "grad_norm": _grad_norm,
    "gate_activation": _gate_activation,
    "node_grad_norm": _node_grad_norm,
    "path_grad_norm": _path_grad_norm,
    "clip_scale": _clip_scale,
    "clipping_ledger": _clipping_ledger,
    "counterfactual": _counterfactual,
    "parameter_value": _parameter_value,
    "lyapunov_spectrum": _lyapunov,
    "jacobian_log_singular_values": _singular_values,
    "counterfactual_loss": _counterfactual_loss,
    "credit": _credit,
}
"""What the columns must hold."""
