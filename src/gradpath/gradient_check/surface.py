"""The expected columns of ``loss_surface``."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from gradpath.core.losses import evaluate
from gradpath.core.network import Network
from gradpath.core.tape import Batch
from gradpath.core.trace import Trace
from gradpath.gradient_check.columns import Column
from gradpath.gradient_check.reference import Reference
from gradpath.instruments import Instrument
from gradpath.instruments.loss_surface import LossSurface

CHUNK_ELEMENTS = 2**18
"""Sequences times units of a forward pass over several points."""


def loss_surface(reference: Reference, trace: Trace, instrument: Instrument) -> Iterator[tuple[str, Column]]:
    """The loss of every point of the plane by the textbook's equations, in the tape's type and in
    float64.
    """
    assert isinstance(instrument, LossSurface)
    tape, network, points = reference.tape, reference.network, instrument.points
    thetas = np.repeat(tape.theta[None], points**2, axis=0)
    for name, repeats in ((instrument.x, (points, 1)), (instrument.y, (1, points))):
        start, stop = (getattr(instrument, f"{'x' if name == instrument.x else 'y'}_{end}") for end in ("from", "to"))
        values = start + (stop - start) * np.arange(points) / (points - 1)
        places = network.parameters(np.arange(network.size))
        matrix, _, index = name.partition("[")
        element = tuple(map(int, index[:-1].split(","))) if index else (0,) * places[matrix].ndim
        axis = np.repeat(np.tile(values, repeats[0]), repeats[1])
        thetas[:, int(places[matrix][element])] = axis
        yield name, Column(axis, np.abs(axis) * np.finfo(tape.theta.dtype).eps)
    losses = [
        _losses(network, thetas.astype(kind), tape.batch.astype(kind)) for kind in (np.float64, tape.theta.dtype.type)
    ]
    scale = np.maximum(1, np.abs(losses[0]))
    with np.errstate(invalid="ignore"):
        doubt = np.nan_to_num(np.abs(losses[0] - losses[1]), nan=np.inf) + np.finfo(tape.theta.dtype).eps * scale
    yield "loss", Column(losses[0], doubt)


def _losses(network: Network, thetas: NDArray, batch: Batch) -> NDArray:
    """(S,) the loss at each θ (S, P)."""
    cell, (steps, sequences) = network.cell, batch.mask.shape
    run = max(1, CHUNK_ELEMENTS // (sequences * cell.hidden_size))
    losses = []
    for part in np.split(thetas, range(run, len(thetas), run)):
        inputs = np.broadcast_to(batch.inputs[:, None], (steps, len(part), *batch.inputs.shape[1:]))
        for weights in network.layer_weights(part):
            states = [np.zeros((len(part), sequences, cell.hidden_size), part.dtype) for _ in cell.states]
            states[0] += network.initial_state
            outputs = []
            for x in inputs:
                pre = np.zeros((len(part), sequences, len(cell.blocks), cell.hidden_size), part.dtype)
                pre += weights.b.reshape(len(part), 1, len(cell.blocks), -1)
                for reads, entering, matrix in ((cell.reads_x, x, weights.x), (cell.reads_h, states[0], weights.h)):
                    place = pre[:, :, reads]
                    place += (entering @ matrix).reshape(place.shape)
                states = list(cell.new_step(pre, states, weights.elementwise_by_name(cell)).leaving)
                outputs.append(states[0])
            inputs = np.stack(outputs)
        w_hy, b_y = network.packed(part)[-2:]
        y = inputs @ w_hy + b_y[:, None]
        losses += [evaluate(network.loss, y[:, s], batch.targets, batch.mask)[0] for s in range(len(part))]
    return np.array(losses, np.float64)
