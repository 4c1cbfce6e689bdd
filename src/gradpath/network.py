"""A stack of recurrent layers with a linear readout: where its parameters lie, its forward and its backward pass."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from gradpath import bptt
from gradpath.cells import Cell
from gradpath.losses import Loss, evaluate
from gradpath.records import Batch, Gradient, LayerTape, Tape, Trace
from gradpath.scaled import NOTHING, Scaled, shift
from gradpath.step_gradients import Part, StepGradients, step_gradients

Sent = tuple[NDArray, slice, Scaled]
"""Scored timesteps (R,), the seeds that have them, and ∂L/∂Y (R, S, B, O) of these."""


@dataclass(frozen=True)
class Packed:
    """One packed matrix (K, n, H), or bias (n, H), in the flat vector: its place, and its blocks' own names."""

    names: tuple[str, ...]
    shape: tuple[int, ...]
    start: int

    @cached_property
    def stop(self) -> int:
        return self.start + math.prod(self.shape)


@dataclass(frozen=True)
class Network:
    """Y_t = H_t W_hy + b_y on the top layer's H_t; layer k's H_t is layer k+1's X_t.

    The parameters θ are one flat vector (P,), so that clipping and the optimisers are vector operations; matrices are
    views of it. In a stack of several layers a name carries its layer: ``layer1/W_fh``.
    """

    cell: Cell
    input_size: int
    output_size: int
    loss: Loss

    @cached_property
    def layout(self) -> tuple[Packed, ...]:
        """Where each packed matrix lies: x, h, b of every layer from the bottom, then W_hy and b_y."""
        width, blocks = self.cell.hidden_size, self.cell.blocks.values()
        places: list[Packed] = []

        def place(names: tuple[str, ...], *shape: int) -> None:
            places.append(Packed(names, shape, places[-1].stop if places else 0))

        for layer in range(self.cell.layers):
            inputs = width if layer else self.input_size
            x, h, b = (
                tuple(self.cell.prefix(layer) + name for name in kind if name) for kind in zip(*blocks, strict=True)
            )
            place(x, inputs, len(x), width)
            place(h, width, len(h), width)
            place(b, len(b), width)
        place(("W_hy",), width, 1, self.output_size)
        place(("b_y",), 1, self.output_size)
        return tuple(places)

    @property
    def size(self) -> int:
        """P, the number of parameters."""
        return self.layout[-1].stop

    def packed(self, theta: NDArray) -> list[NDArray]:
        """Views of θ (P,), or of the θ of S seeds (S, P), in the order of ``layout``: each (…, K, n·H) or (…, n·H)."""
        return [
            theta[..., place.start : place.stop].reshape(*theta.shape[:-1], *place.shape[:-2], -1)
            for place in self.layout
        ]

    def parameters(self, theta: NDArray) -> dict[str, NDArray]:
        """Every parameter under its own name, as a view of θ: W_·· (K, H), b_· (H,)."""
        named = {}
        for place in self.layout:
            blocks = theta[place.start : place.stop].reshape(place.shape)
            for index, name in enumerate(place.names):
                named[name] = blocks[..., index, :]
        return named

    @cached_property
    def elements(self) -> tuple[str, ...]:
        """The name of each element of θ in its order: ``b_h`` where a parameter has one element, else ``W_hh[0,1]``."""
        found = [""] * self.size
        for name, places in self.parameters(np.arange(self.size)).items():
            for index, place in np.ndenumerate(places):
                found[place] = name if places.size == 1 else f"{name}[{','.join(map(str, index))}]"
        return tuple(found)

    def layers(self, theta: NDArray) -> Iterator[bptt.LayerWeights]:
        """The packed weights of each layer from the bottom."""
        packed = self.packed(theta)
        for layer in range(self.cell.layers):
            yield bptt.LayerWeights(*packed[3 * layer : 3 * layer + 3])

    def forward(self, theta: NDArray, batch: Batch) -> Tape:
        """Runs the stack over a minibatch, reads out and scores."""
        _, (tape,) = self.forward_seeds(theta[None], [batch])
        return tape

    def backward(self, theta: NDArray, tape: Tape) -> Trace:
        """Backpropagation through time of the whole stack, from the top."""
        (trace,) = self.backward_seeds(theta[None], [layer.alone() for layer in tape.layers], [tape])
        return trace

    def forward_seeds(self, thetas: NDArray, batches: Sequence[Batch]) -> tuple[list[LayerTape], list[Tape]]:
        """S networks side by side, each with its own θ (S, P) and minibatch: the layers' tapes with an axis S, and each
        seed's own tape, which is bit for bit what ``forward`` gives it.
        """
        below = np.stack([batch.inputs for batch in batches], axis=1)
        layers = []
        for weights in self.layers(thetas):
            layers.append(bptt.forward(self.cell, weights, below))
            below = layers[-1].states[self.cell.states[0]][1:]
        return layers, list(self._read_out(thetas, batches, layers))

    def _read_out(self, thetas: NDArray, batches: Sequence[Batch], layers: Sequence[LayerTape]) -> Iterator[Tape]:
        """Outputs and loss at the scored timesteps."""
        w_hy, b_y = self.packed(thetas)[-2:]
        top = layers[-1].states[self.cell.states[0]][1:]
        for scored, alike in _alike([np.flatnonzero(batch.mask.any(axis=1)) for batch in batches]):
            rows = _rows(scored)
            outputs = top[rows, alike].swapaxes(0, 1) @ w_hy[alike, None]
            outputs += b_y[alike, None, None]
            targets, mask = (
                np.stack(values)
                for values in zip(*((b.targets[rows], b.mask[rows]) for b in batches[alike]), strict=True)
            )
            losses, gradients = evaluate(self.loss, outputs, targets, mask)
            for s, *found in zip(range(*alike.indices(len(batches))), outputs, losses.tolist(), gradients, strict=True):
                yield Tape(self, thetas[s], batches[s], tuple(layer.seed(s) for layer in layers), scored, *found)

    def backward_seeds(self, thetas: NDArray, layers: Sequence[LayerTape], tapes: Sequence[Tape]) -> list[Trace]:
        """The backward passes of S networks side by side, from what ``forward_seeds`` has returned."""
        gives, sent = self.cell.states[0], list(_sent(tapes))
        adjoints, directs = self._adjoints(thetas, layers, sent)
        packed = [self._of_layer(k, layers[k].entered[:-1], adjoint.delta) for k, adjoint in enumerate(adjoints)]
        traces = []
        for scored, alike, gradient in sent:
            readout = self._of_readout(layers[-1].entered[1:, alike], scored, gradient)
            gradients = [*(of.seeds(alike) for of in packed), readout]
            for index, whole in enumerate(self._gradients(gradients)):
                s = alike.start + index
                factors = tuple(factor for of in gradients for factor in of.factors(index))
                received = {self.cell.prefix(layer) + gives: value.seed(s) for layer, value in enumerate(directs)}
                deltas = tuple(adjoint.delta.seed(s) for adjoint in adjoints)
                own = tuple(of.seeds(slice(index, index + 1)) for of in gradients)
                traces.append(Trace(tapes[s], own, factors, deltas, self._states(adjoints, s), received, whole))
        return traces

    def state_adjoints(self, theta: NDArray, tape: Tape) -> dict[str, Scaled]:
        """``Trace.states`` of ``backward`` alone, without the gradients of the weights."""
        adjoints, _ = self._adjoints(theta[None], [layer.alone() for layer in tape.layers], list(_sent([tape])))
        return self._states(adjoints, 0)

    def _adjoints(
        self, thetas: NDArray, layers: Sequence[LayerTape], sent: Sequence[Sent]
    ) -> tuple[list[bptt.LayerAdjoint], list[Scaled]]:
        """Of each layer from the bottom: its adjoint, and what its H_1 … H_T receive directly."""
        weights = list(self.layers(thetas))
        direct = self._from_readout(thetas, layers[-1].states[self.cell.states[0]][1:], sent)
        arrives: NDArray | None = np.isin(np.arange(len(direct.array)), np.concatenate([scored for scored, *_ in sent]))
        adjoints: list[bptt.LayerAdjoint] = []
        directs: list[Scaled] = []
        for layer in reversed(range(self.cell.layers)):
            adjoint = bptt.backward(self.cell, weights[layer], layers[layer], direct, arrives)
            adjoints.insert(0, adjoint)
            directs.insert(0, direct)
            if layer:
                from_x = adjoint.delta.array[..., self.cell.reads_x, :]
                below = from_x.reshape(*from_x.shape[:-2], -1) @ weights[layer].x.swapaxes(-1, -2)
                direct, arrives = Scaled(below, adjoint.delta.exponent), None
        return adjoints, directs

    def _states(self, adjoints: Sequence[bptt.LayerAdjoint], s: int) -> dict[str, Scaled]:
        """The total derivatives of one seed's states under their names."""
        found: dict[str, Scaled] = {}
        for layer, adjoint in enumerate(adjoints):
            found |= {self.cell.prefix(layer) + name: value.seed(s) for name, value in adjoint.states.items()}
        return found

    def _of_layer(self, layer: int, entered: NDArray, delta: Scaled) -> StepGradients:
        """The gradients of one layer's packed weights: of W_·x, W_·h and b."""
        x, h, b = (place.names for place in self.layout[3 * layer : 3 * layer + 3])
        width, every = self.cell.hidden_size, slice(0, len(self.cell.blocks))
        parts = (
            Part(x, slice(width + 1, None), self.cell.reads_x),
            Part(h, slice(0, width), self.cell.reads_h),
            Part(b, slice(width, width + 1), every, reads=False),
        )
        return step_gradients(self.cell.loops, parts, np.arange(len(entered)), entered, delta)

    def _of_readout(self, entered: NDArray, scored: NDArray, gradient: Scaled) -> StepGradients:
        """The gradients of W_hy and b_y at the scored timesteps, where [H_t, 1] is multiplied."""
        width = self.cell.hidden_size
        parts = (
            Part(("W_hy",), slice(0, width), slice(0, 1)),
            Part(("b_y",), slice(width, None), slice(0, 1), reads=False),
        )
        delta = Scaled(gradient.array[..., None, :], gradient.exponent)
        return step_gradients(self.cell.loops, parts, scored, entered[_rows(scored), ..., : width + 1], delta)

    def without_readout(self, trace: Trace) -> Gradient:
        """∂L/∂θ with W_hy and b_y held fixed: true zeros in their place, in the elements and in the norms."""
        *cell, _ = trace.packed
        (gradient,) = self._gradients(cell)  # from the parts: beside a far larger readout's the cell's may have rounded
        array = np.zeros(self.size, gradient.scaled.array.dtype)
        array[: self.layout[-2].start] = gradient.scaled.array
        return replace(gradient, scaled=Scaled(array, gradient.scaled.exponent))

    def _from_readout(self, thetas: NDArray, top: NDArray, sent: Sequence[Sent]) -> Scaled:
        """∂⁺L/∂H_t (T, S, B, H) of the top layer: what the loss sends back through W_hy at the scored timesteps."""
        arriving = self.cell.loops.memory.empty(top.shape, top.dtype)
        exponent = np.zeros(arriving.shape[:-1], np.int32)
        to_h = self.packed(thetas)[-2].swapaxes(-1, -2)
        send = np.multiply if self.output_size == 1 else np.matmul  # a stack of products is slow where O = 1
        for scored, alike, gradient in sent:
            exponent[:, alike] = gradient.exponent[:1]
            rows = _rows(scored)
            if len(scored) < len(top):
                arriving[:, alike] = 0
            if isinstance(rows, slice):
                send(gradient.array, to_h[alike], out=arriving[rows, alike])
            else:
                arriving[rows, alike] = send(gradient.array, to_h[alike])
        return Scaled(arriving, exponent)

    def _gradients(self, packed: Sequence[StepGradients]) -> list[Gradient]:
        """Σ_t of every matrix, laid end to end under one exponent, for each seed."""
        totals = [total for of in packed for total in of.totals]
        exponents = np.stack([total.exponent for _, total in totals])
        common = exponents[0]
        if (exponents != common).any():
            alive = np.stack([total.array.any(axis=(1, 2, 3)) for _, total in totals])
            common = np.where(alive.any(axis=0), np.max(exponents, axis=0, where=alive, initial=NOTHING), 0)
        flat = np.empty((len(common), self.layout[len(totals) - 1].stop), packed[0].total.dtype)
        for place, (_, total) in zip(self.layout, totals, strict=False):
            alike = (total.exponent == common).all()
            values = total.array if alike else shift(total.array, total.exponent - common)
            flat[:, place.start : place.stop].reshape(values.shape)[...] = values
        norms = Scaled(flat, common).log10_norm().tolist()
        return [
            Gradient(
                Scaled(flat[s], np.asarray(common[s])),
                norms[s],
                [(part.names, Scaled(total.array[s], np.asarray(total.exponent[s]))) for part, total in totals],
            )
            for s in range(len(common))
        ]


def _alike(scored: Sequence[NDArray]) -> Iterator[tuple[NDArray, slice]]:
    """Neighbouring seeds with the same scored timesteps: these, and which seeds."""
    start = 0
    for _, group in groupby(scored, key=np.ndarray.tobytes):
        same = list(group)
        yield same[0], slice(start, start + len(same))
        start += len(same)


def _sent(tapes: Sequence[Tape]) -> Iterator[Sent]:
    """What the loss sends back to the outputs, with one exponent a network, because the 1/N of a mean over N positions
    may leave the band of :mod:`gradpath.scaled`.
    """
    for scored, alike in _alike([tape.scored for tape in tapes]):
        gradient = np.stack([tape.loss_gradient for tape in tapes[alike]], axis=1)
        size = np.frexp(np.abs(gradient).max(axis=(0, 2, 3)))[1]
        exponent = np.empty(gradient.shape[:3], np.int32)
        exponent[:] = size[:, None]
        yield scored, alike, Scaled(np.ldexp(gradient, -size[:, None, None]), exponent)


def _rows(scored: NDArray) -> slice | NDArray:
    """Indices of timesteps as a slice where they follow each other, so that what is indexed is a view."""
    return slice(scored[0], scored[-1] + 1) if len(scored) and scored[-1] - scored[0] < len(scored) else scored
