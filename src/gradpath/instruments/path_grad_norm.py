"""The gradient of the carried state, split exactly by the path over which it came; and the carousel
alone beside the rest.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from gradpath.core import bptt, layer_names
from gradpath.core.backward import backward
from gradpath.core.network import Network
from gradpath.core.scaled import ZERO_EXPONENT, Scaled, add_direct, magnitude, shift
from gradpath.core.step import Elementwise
from gradpath.core.trace import Measurement, Trace
from gradpath.engine.partition import chunks
from gradpath.instruments import Instrument

NOT_SHOWN = ("total", "direct", "rest")
"""Parts that MLflow does not show: the total is ``state_grad_norm``, and the others follow from the
parts shown.
"""
UNDERFLOWS = -960
"""log2 of the largest element of a product's row below which the row may have lost digits to
underflow.
"""


@dataclass
class PathGradNorm(Instrument):
    """log10 norm of each part of ∂L/∂C_t (∂L/∂H_t of the GRU and the RNN), and the cosine of each
    part with the whole.

    One step back, with S_t = ∂H_t/∂C_t = O_t ∘ (1 − tanh² C_t), elementwise, and 1 where H itself
    is carried:

        δC_t = F_{t+1} ∘ δC_{t+1}                   ``C/highway``
             + Σ_gates (δa_{t+1} W_·hᵀ) ∘ S_t       ``C/input_gate``, ``C/forget_gate`` …
             + ∂⁺L/∂H_t ∘ S_t                       ``C/direct``: the loss's, or the layer above's

    (the LSTM's adjoint, Hochreiter & Schmidhuber 1997 with F of Gers et al. 2000, by its summands).
    A gate that reads C by an elementwise parameter w (a peephole) also sends back δa ∘ w as a part
    of its path: δa of step t+1 where it reads the entering state, δa of step t where it reads the
    leaving one. At t = T there are only ``direct`` and the parts of gates that read the leaving
    state. ``C/total`` is δC_t.

    Over the whole lag, ``C/carousel`` is the adjoint that comes back if every path through H_{t-1}
    of this layer's gates is cut (for a last-step loss δC_T ∘ ∏ F), and ``C/rest`` is the difference
    of the total and the carousel. Either split adds up to the total, to the rounding of the type in
    which the adjoint was computed.

    ``C/highway/cosine`` is ⟨part, total⟩ / ‖part‖‖total‖ over sequences and units, and 0 where
    either is a true zero, which has no direction. A part's signed share is ⟨part, total⟩ / ‖total‖²
    = cosine · ‖part‖ / ‖total‖; the shares of a split add up to 1. (T, names); -inf is a true zero.
    """

    per_timestep = True

    def measure(self, network: Network, trace: Trace) -> Measurement:
        columns: dict[str, NDArray] = {}
        cell = network.cell
        for layer in range(network.layers):
            carrier = network.prefix(layer) + cell.carrier
            total = trace.states[carrier]
            columns[f"{carrier}/total"] = total.log10_norm_by_step()
            for name, part in chain(one_step(network, trace, layer), whole_lag(network, trace, layer)):
                columns[f"{carrier}/{name}"] = part.log10_norm_by_step()
                columns[f"{carrier}/{name}/cosine"] = _cosine(part, total)
        return Measurement(tuple(columns), np.stack(list(columns.values()), axis=-1))

    def metric(self, name: str) -> str | None:
        layer, (_, part, *cosine) = layer_names.split(name)[0], layer_names.split(name)[1].split("/")
        return None if layer or cosine or part in NOT_SHOWN else f"log10_path_grad_norm_by_lag/{part}"


def one_step(network: Network, trace: Trace, layer: int) -> Iterator[tuple[str, Scaled]]:
    """The parts of the carrier's total adjoint at t = 1 … T by the path over the last step: (name,
    (T, B, H) in float64). The parts are yielded one at a time, because each is as large as the
    adjoint itself.
    """
    tape, cell = trace.tape.layers[layer], network.cell
    prefix, steps = network.prefix(layer), trace.tape.length
    shape = tape.states[cell.output][1:].shape
    carried, delta = trace.states[prefix + cell.carrier], trace.deltas[layer]
    to_carrier = np.broadcast_to(cell.output_wrt_carrier(tape), shape)
    highway = np.broadcast_to(cell.carrier_gain(tape), shape)
    # Row t holds the adjoint that step t+1 sends back; no step follows T.
    exponent = np.zeros(carried.exponent.shape, np.int32)
    exponent[:-1] = carried.exponent[1:]
    following = np.append(carried.array[1:], np.zeros_like(carried.array[:1]), axis=0)
    yield "highway", _product(Scaled(following, exponent), np.roll(highway, -1, axis=0))
    weights = _weights(network, trace, layer)
    width, first = cell.hidden_size, cell.reads_h.start
    for gate, block in enumerate(cell.blocks):
        if block not in cell.paths:
            continue
        returned = np.zeros(shape)
        if cell.blocks[block].h:
            recurrent = weights.h[0][:, (gate - first) * width :][:, :width]
            for rows in chunks(0 if cell.truncated else steps - 1, delta.array[0].size):
                arriving = delta.array[1:][rows, :, gate].astype(np.float64)
                returned[rows] = arriving @ recurrent.T
        path = _product(Scaled(returned, exponent), to_carrier)
        for read in cell.blocks[block].elementwise:
            contribution = elementwise_return(network, trace, layer, gate, read)
            if read.state != cell.carrier:
                contribution = _product(contribution, to_carrier)
            add_direct([path.array], path.exponent, contribution.array, contribution.exponent)
        yield cell.paths[block], path
    yield "direct", _product(trace.direct[prefix + cell.output], to_carrier)


def _product(adjoint: Scaled, factor: NDArray) -> Scaled:
    """``adjoint`` ∘ ``factor`` in float64. A row in which it would underflow is computed again from
    an adjoint of size 1.
    """
    leading = adjoint.exponent.ndim
    product = np.multiply(adjoint.array, factor, dtype=np.float64)
    power = magnitude(adjoint.array, leading)
    power = np.where((magnitude(product, leading) < UNDERFLOWS) & (power > ZERO_EXPONENT), power, 0)
    if power.any():
        product = shift(adjoint.array.astype(np.float64), -power) * factor
    return Scaled(product, adjoint.exponent + power)


def elementwise_return(network: Network, trace: Trace, layer: int, gate: int, read: Elementwise) -> Scaled:
    """The adjoint that a gate sends back to the state that it reads by an elementwise parameter w,
    at t = 1 … T (T, B, H) in float64: δa_{t+1} ∘ w to a state that enters its step, δa_t ∘ w to a
    state that leaves it; 0 where the cell's adjoint stops at the gates.
    """
    w = _weights(network, trace, layer).elementwise_by_name(network.cell)[read.name][0].astype(np.float64)
    delta = trace.deltas[layer]
    values = delta.array[:, :, gate] * (0 * w if network.cell.truncated else w)
    if read.leaving:
        return Scaled(values, delta.exponent)
    return Scaled(
        np.append(values[1:], 0 * values[:1], axis=0), np.append(delta.exponent[1:], 0 * delta.exponent[:1], axis=0)
    )


def whole_lag(network: Network, trace: Trace, layer: int) -> Iterator[tuple[str, Scaled]]:
    """``carousel``: the carrier's adjoint (T, B, H) if nothing passed through this layer's gates to
    H_{t-1}; ``rest``: the difference of its total adjoint and the carousel.

    The rest is not computed by subtraction, which would leave only rounding where the two agree.
    With the gates cut, the recursion is linear in the adjoint that arrives at the states. In the
    complete recursion this adjoint has two summands: ∂⁺L/∂H_t, which gives the carousel, and Σ
    δa_{t+1} W_·hᵀ plus the adjoint that gates send back by elementwise parameters, which gives the
    rest. Each therefore has the relative error of its own recursion in the adjoint's type.
    """
    tape, cell = trace.tape.layers[layer].with_seed_axis(), network.cell
    received = trace.direct[network.prefix(layer) + cell.output]
    weights, delta = _weights(network, trace, layer), trace.deltas[layer]
    from_gates = np.zeros_like(received.array)
    exponent = np.zeros_like(delta.exponent)
    if not cell.truncated:
        for rows in chunks(trace.tape.length - 1, delta.array[0].size):
            to_h = delta.array[1:][rows, :, cell.reads_h]
            from_gates[rows] = to_h.reshape(*to_h.shape[:2], weights.h.shape[-1]) @ weights.h[0].T
        exponent[:-1] = delta.exponent[1:]
    workspace = network.workspace()

    def carried(arriving: Scaled, receives: str) -> Scaled:
        source = Scaled(arriving.array[:, None], arriving.exponent[:, None])
        adjoint = backward(cell, weights, tape, source, truncate=True, receives=receives, workspace=workspace)
        return adjoint.states[cell.carrier].seed(0)

    yield "carousel", carried(received, cell.output)
    sources = {cell.output: Scaled(from_gates, exponent)}
    for gate, read in cell.elementwise:
        contribution = elementwise_return(network, trace, layer, gate, read)
        if read.state not in sources:
            sources[read.state] = Scaled(np.zeros_like(received.array), np.zeros_like(delta.exponent))
        total = sources[read.state]
        add_direct([total.array], total.exponent, contribution.array.astype(total.array.dtype), contribution.exponent)
    remainder, *addends = (carried(source, state) for state, source in sources.items())
    for addend in addends:
        add_direct([remainder.array], remainder.exponent, addend.array, addend.exponent)
    yield "rest", remainder


def _weights(network: Network, trace: Trace, layer: int) -> bptt.LayerWeights:
    """The weights of one layer, with an axis of one seed in front."""
    return list(network.layer_weights(trace.tape.theta[None]))[layer]


def _cosine(part: Scaled, total: Scaled) -> NDArray:
    """(T,) cosines; the part beyond ±1 is rounding only."""
    runs = chunks(len(part.array), part.array[0].size)
    cosines = [np.vecdot(*(_unit(adjoint.steps(rows).aligned_by_step) for adjoint in (part, total))) for rows in runs]
    return np.clip(np.concatenate(cosines), -1, 1)


def _unit(aligned: Scaled) -> NDArray:
    """(T, B·H) in float64: each row scaled to norm 1; a row that is 0 stays 0."""
    flat = aligned.array.reshape(len(aligned.array), -1).astype(np.float64)
    flat = shift(flat, -np.maximum(magnitude(flat, 1), -(2**15)))
    norm = np.linalg.norm(flat, axis=1, keepdims=True)
    return np.divide(flat, norm, out=np.zeros_like(flat), where=norm > 0)
