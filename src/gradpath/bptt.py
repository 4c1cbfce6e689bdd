"""Backpropagation through time of one layer of any cell: the loop over t, the matrix products, the shift by one.

Derived by hand; see the cells for the pointwise part. With δa_t (B, n·H) the gradient at the pre-activations,

    δH_{t-1} = δa_t W_hᵀ + ∂⁺L/∂H_{t-1} + (what the cell passes on without its gates)        δX_t = δa_t W_xᵀ

(Werbos 1990). The adjoint of each sequence is carried with a power-of-two exponent of its own (:mod:`gradpath.scaled`),
so that it neither rounds to zero nor overflows over any length; where plain floating point would do neither, the
result is bit-identical to the plain recursion, because scaling by a power of two is exact.

Networks of S seeds run side by side: every array has an axis S after the time axis, and each product is one matrix
product a timestep and seed, of the same shape whatever S is. So a seed's numbers do not depend on its company.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradpath.cells import Cell
from gradpath.records import LayerTape
from gradpath.scaled import HIGH, LOW, Scaled, magnitude, shift

RUN = 2**16
"""Elements of δa in a run of steps whose derivatives are computed together: few calls, and still in the cache when the
recursion reads them."""


@dataclass(frozen=True)
class LayerWeights:
    """The packed weights of one layer: ``x`` (S, I, n_x·H) of the blocks that read X, ``h`` (S, H, n_h·H) of those that
    read H_{t-1}, ``b`` (S, n·H).
    """

    x: NDArray
    h: NDArray
    b: NDArray


@dataclass(frozen=True)
class LayerAdjoint:
    """``delta`` (T, S, B, n, H) at the pre-activations; ``states[s]`` (T, S, B, H) total derivatives of H_1 … H_T."""

    delta: Scaled
    states: dict[str, Scaled]


def forward(cell: Cell, weights: LayerWeights, inputs: NDArray) -> LayerTape:
    """Runs the cell over ``inputs`` (T, S, B, I) from H_0 = ``initial_state`` and C_0 = 0."""
    *shape, _ = inputs.shape
    steps, blocks, width = shape[0], len(cell.blocks), cell.hidden_size
    if cell.reads_x == slice(0, blocks):
        packed = inputs @ weights.x
    else:
        packed = np.zeros((*shape, blocks * width), inputs.dtype)
        packed[..., columns(cell.reads_x, width)] = inputs @ weights.x
    packed += weights.b[:, None]
    pre = packed.reshape(*shape, blocks, width)
    gates = np.empty_like(pre)
    states = {name: np.zeros((steps + 1, *shape[1:], width), inputs.dtype) for name in cell.states}
    saved = {name: np.empty((*shape, width), inputs.dtype) for name in cell.saved}
    hidden, rows, extra = states[cell.states[0]], list(states.values()), list(saved.values())
    hidden[0] = cell.initial_state
    reads = packed[..., columns(cell.reads_h, width)]
    recurrent = np.empty(reads.shape[1:], inputs.dtype)
    for t in range(steps):
        np.matmul(hidden[t], weights.h, out=recurrent)
        np.add(reads[t], recurrent, out=reads[t])
        gates[t] = pre[t]
        cell.step(gates[t], [s[t] for s in rows], [s[t + 1] for s in rows], [s[t] for s in extra])
    return LayerTape(inputs, states, pre, gates, saved)


def columns(blocks: slice, width: int) -> slice:
    """The packed columns of consecutive blocks of ``width`` units."""
    return slice(blocks.start * width, blocks.stop * width)


def backward(
    cell: Cell, weights: LayerWeights, tape: LayerTape, direct: Scaled, truncate: bool = False
) -> LayerAdjoint:
    """The adjoint of a layer whose outputs H_1 … H_T receive ``direct`` = ∂⁺L/∂H_t (T, S, B, H); with ``truncate``
    nothing passes through the gates to H_{t-1}, and what remains is the highway alone.
    """
    *shape, blocks, width = tape.gates.shape
    steps, cut = shape[0], truncate or cell.truncated
    adjoint = [np.zeros((steps + 1, *shape[1:], width), tape.gates.dtype) for _ in cell.states]
    exponent = np.zeros((steps + 1, *shape[1:]), np.int32)
    delta = np.empty_like(tape.gates)
    to_h = delta.reshape(*shape, blocks * width)[..., columns(cell.reads_h, width)]
    recurrent = np.empty((*shape[1:], width), delta.dtype)
    arrives: NDArray = np.any(direct.array.reshape(steps, -1), axis=1)
    weights_back = np.ascontiguousarray(weights.h.swapaxes(-1, -2))
    run = max(1, RUN * steps // delta.size)
    for stop in range(steps, 0, -run):
        start = max(stop - run, 0)
        factors = cell.derivatives(tape.steps(start, stop))
        for t in range(stop, start, -1):
            leave = [s[t] for s in adjoint]
            if arrives[t - 1]:
                _receive(leave, exponent[t], direct.array[t - 1], direct.exponent[t - 1])
            _rescale(leave, exponent[t])
            enter = [s[t - 1] for s in adjoint]
            cell.step_backward([f[t - 1 - start] for f in factors], leave, delta[t - 1], enter)
            if not cut:
                np.matmul(to_h[t - 1], weights_back, out=recurrent)
                enter[0] += recurrent
            exponent[t - 1] = exponent[t]
    return LayerAdjoint(
        Scaled(delta, exponent[1:]),
        {name: Scaled(row[1:], exponent[1:]) for name, row in zip(cell.states, adjoint, strict=True)},
    )


def _receive(adjoint: list[NDArray], exponent: NDArray, addend: NDArray, addend_exponent: NDArray) -> None:
    """Adds what arrives directly at H_t, in place, after bringing both to the larger of the two sizes."""
    if exponent.any() or addend_exponent.any():
        arriving = magnitude(addend, exponent.ndim) + addend_exponent
        carried = np.max([magnitude(row, exponent.ndim) for row in adjoint], axis=0) + exponent
        # Only a sequence to which something arrives changes its exponent, and only as far as that needs.
        common = np.where(arriving > carried, addend_exponent, exponent)
        for row in adjoint:
            row[:] = shift(row, exponent - common)
        addend = shift(addend, addend_exponent - common)
        exponent[:] = common
    adjoint[0] += addend


def _rescale(adjoint: list[NDArray], exponent: NDArray) -> None:
    """Brings each sequence that has left the band 2^-24 … 2^24 back to size 1, in place and exactly."""
    square = sum(np.vecdot(row, row) for row in adjoint)
    if square.min() > LOW**2 and square.max() < HIGH**2:  # the usual case, settled by one cheap product
        return
    largest = np.abs(adjoint[0]).max(axis=-1)
    for row in adjoint[1:]:
        np.maximum(largest, np.abs(row).max(axis=-1), out=largest)
    outside = (largest > HIGH) | ((largest < LOW) & (largest > 0))
    if outside.any():
        change = np.where(outside & np.isfinite(largest), np.frexp(largest)[1], 0)
        for row in adjoint:
            row[:] = shift(row, -change)
        exponent += change
