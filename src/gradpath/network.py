"""A stack of recurrent layers with a linear readout: where its parameters lie, its forward and its backward pass."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from gradpath import bptt
from gradpath.cells import Cell
from gradpath.losses import Loss, evaluate
from gradpath.records import Batch, Gradient, LayerTape, Tape, Trace
from gradpath.scaled import Scaled, shift
from gradpath.step_gradients import Part, StepGradients, step_gradients


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
        tapes = [
            self._read_out(theta, batch, tuple(layer.seed(s) for layer in layers))
            for s, (theta, batch) in enumerate(zip(thetas, batches, strict=True))
        ]
        return layers, tapes

    def _read_out(self, theta: NDArray, batch: Batch, layers: tuple[LayerTape, ...]) -> Tape:
        """Outputs and loss of one network, at the scored timesteps."""
        w_hy, b_y = self.packed(theta)[-2:]
        scored = np.flatnonzero(batch.mask.any(axis=1))
        rows = _rows(scored)
        outputs = layers[-1].states[self.cell.states[0]][1:][rows] @ w_hy
        outputs += b_y
        loss, gradient = evaluate(self.loss, outputs, batch.targets[rows], batch.mask[rows])
        return Tape(self, theta, batch, layers, scored, outputs, loss, gradient)

    def backward_seeds(self, thetas: NDArray, layers: Sequence[LayerTape], tapes: Sequence[Tape]) -> list[Trace]:
        """The backward passes of S networks side by side, from what ``forward_seeds`` has returned."""
        gives = self.cell.states[0]
        adjoints, directs = self._adjoints(thetas, layers, tapes)
        packed = [self._of_layer(k, layers[k].entered[:-1], adjoint.delta) for k, adjoint in enumerate(adjoints)]
        traces = []
        for s, tape in enumerate(tapes):
            gradients = (*(of_layer[s] for of_layer in packed), self._of_readout(tape))
            factors = tuple(factor for gradient in gradients for factor in gradient.factors())
            states = self._states(adjoints, s)
            received = {self.cell.prefix(layer) + gives: value.seed(s) for layer, value in enumerate(directs)}
            deltas = tuple(adjoint.delta.seed(s) for adjoint in adjoints)
            traces.append(Trace(tape, gradients, factors, deltas, states, received, self._gradient(gradients)))
        return traces

    def state_adjoints(self, theta: NDArray, tape: Tape) -> dict[str, Scaled]:
        """``Trace.states`` of ``backward`` alone, without the gradients of the weights."""
        adjoints, _ = self._adjoints(theta[None], [layer.alone() for layer in tape.layers], [tape])
        return self._states(adjoints, 0)

    def _adjoints(
        self, thetas: NDArray, layers: Sequence[LayerTape], tapes: Sequence[Tape]
    ) -> tuple[list[bptt.LayerAdjoint], list[Scaled]]:
        """Of each layer from the bottom: its adjoint, and what its H_1 … H_T receive directly."""
        weights = list(self.layers(thetas))
        direct = self._from_readout(thetas, tapes)
        arrives = np.any([tape.batch.mask.any(axis=1) for tape in tapes], axis=0)
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

    def _of_layer(self, layer: int, entered: NDArray, delta: Scaled) -> list[StepGradients]:
        """The gradients of one layer's packed weights, for each seed: of W_·x, W_·h and b."""
        x, h, b = (place.names for place in self.layout[3 * layer : 3 * layer + 3])
        width, every = self.cell.hidden_size, slice(0, len(self.cell.blocks))
        parts = (
            Part(x, slice(width + 1, None), self.cell.reads_x),
            Part(h, slice(0, width), self.cell.reads_h),
            Part(b, slice(width, width + 1), every, reads=False),
        )
        return step_gradients(self.cell.loops, parts, np.arange(len(entered)), entered, delta)

    def _of_readout(self, tape: Tape) -> StepGradients:
        """The gradients of W_hy and b_y at the scored timesteps, where the readout multiplies [H_t, 1]."""
        width = self.cell.hidden_size
        parts = (
            Part(("W_hy",), slice(0, width), slice(0, 1)),
            Part(("b_y",), slice(width, None), slice(0, 1), reads=False),
        )
        entered = tape.layers[-1].entered[1:, :, : width + 1][_rows(tape.scored)]
        delta = Scaled(tape.loss_gradient[:, None, :, None], np.zeros((len(entered), 1, entered.shape[1]), np.int32))
        (found,) = step_gradients(self.cell.loops, parts, tape.scored, entered[:, None], delta)
        return found

    def without_readout(self, trace: Trace) -> Gradient:
        """∂L/∂θ with W_hy and b_y held fixed: true zeros in their place, in the elements and in the norms."""
        *cell, _ = trace.packed
        gradient = self._gradient(cell)  # from the parts: beside a far larger readout's the cell's may have rounded
        array = np.zeros(self.size, gradient.scaled.array.dtype)
        array[: self.layout[-2].start] = gradient.scaled.array
        return replace(gradient, scaled=Scaled(array, gradient.scaled.exponent))

    def _from_readout(self, thetas: NDArray, tapes: Sequence[Tape]) -> Scaled:
        """∂⁺L/∂H_t (T, S, B, H) of the top layer: what the loss sends back through W_hy at the scored timesteps. With
        one exponent a network, because the 1/N of a mean over N positions may leave the band of :mod:`gradpath.scaled`.
        """
        top = tapes[0].layers[-1].states[self.cell.states[0]][1:]
        arriving = self.cell.loops.memory.empty((len(top), len(tapes), *top.shape[1:]), top.dtype)
        exponent = np.zeros(arriving.shape[:-1], np.int32)
        for s, (w_hy, tape) in enumerate(zip(self.packed(thetas)[-2], tapes, strict=True)):
            exponent[:, s] = size = np.frexp(np.abs(tape.loss_gradient).max())[1]
            if len(tape.scored) < len(top):
                arriving[:, s] = 0
            # Two dimensions, because a stack of products is slow where O = 1.
            sent = np.dot(np.ldexp(tape.loss_gradient, -size).reshape(-1, self.output_size), w_hy.T)
            arriving[_rows(tape.scored), s] = sent.reshape(len(tape.scored), -1, sent.shape[-1])
        return Scaled(arriving, exponent)

    def _gradient(self, packed: Sequence[StepGradients]) -> Gradient:
        """Σ_t of every matrix, laid end to end under one exponent."""
        parts = [(part.names, total) for of in packed for part, total in zip(of.parts, of.sums, strict=True)]
        exponent = max((int(total.exponent) for _, total in parts if total.array.any()), default=0)

        def shifted(total: Scaled, exponent: int) -> NDArray:
            return (
                total.array if total.exponent == exponent else shift(total.array, total.exponent - np.int32(exponent))
            )

        flat = np.concatenate([shifted(total, exponent) for _, total in parts], axis=None)
        scaled = Scaled(flat, np.asarray(exponent, np.int32))
        return Gradient(scaled, float(scaled.log10_norm()), parts)


def _rows(scored: NDArray) -> slice | NDArray:
    """Indices of timesteps as a slice where they follow each other, so that what is indexed is a view."""
    return slice(scored[0], scored[-1] + 1) if len(scored) and scored[-1] - scored[0] < len(scored) else scored
