"""A stack of recurrent layers with a linear readout: where its parameters lie, its forward and its backward pass."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from gradpath.core import bptt, readout
from gradpath.core.cell import Cell
from gradpath.core.losses import Loss
from gradpath.core.roles import READOUT
from gradpath.core.scaled import NOTHING, Scaled, shift
from gradpath.core.tape import Batch, LayerTape, Tape
from gradpath.core.trace import Gradient, Trace
from gradpath.core.weight_gradients import Part, StepGradients, step_gradients


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
            of_kind = zip(*(spec[:3] for spec in blocks), strict=True)
            x, h, b = (tuple(self.cell.prefix(layer) + name for name in kind if name) for kind in of_kind)
            place(x, inputs, len(x), width)
            place(h, width, len(h), width)
            place(b, len(b), width)
        place(READOUT[:1], width, 1, self.output_size)
        place(READOUT[1:], 1, self.output_size)
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
        yield from self._layers(self.packed(theta))

    def _layers(self, packed: Sequence[NDArray]) -> Iterator[bptt.LayerWeights]:
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
        layers = self._run(thetas, readout.beside([batch.inputs for batch in batches], 1))
        *_, w_hy, b_y = self.packed(thetas)
        found = readout.read_out(self.loss, w_hy, b_y, layers[-1].states[self.cell.states[0]][1:], batches)
        tapes = [
            Tape(self, thetas[s], batches[s], tuple(layer.seed(s) for layer in layers), *of_outputs)
            for s, of_outputs in enumerate(found)
        ]
        return layers, tapes

    def _run(self, thetas: NDArray, inputs: NDArray) -> list[LayerTape]:
        """The layers' tapes, from the bottom, of ``inputs`` (T, S, B, I)."""
        layers: list[LayerTape] = []
        for weights in self.layers(thetas):
            layers.append(bptt.forward(self.cell, weights, inputs))
            inputs = layers[-1].states[self.cell.states[0]][1:]
        return layers

    def _in_float64(self, tape: Tape) -> Tape:
        """The same network on the same numbers, with gates and states in float64. What the loss sends back is given."""
        theta, batch = tape.theta.astype(np.float64), tape.batch.astype(np.float64)
        layers = tuple(layer.seed(0) for layer in self._run(theta[None], batch.inputs[:, None]))
        gradient = tape.loss_gradient.astype(np.float64)
        return replace(tape, theta=theta, batch=batch, layers=layers, loss_gradient=gradient)

    def backward_seeds(self, thetas: NDArray, layers: Sequence[LayerTape], tapes: Sequence[Tape]) -> list[Trace]:
        """The backward passes of S networks side by side, from what ``forward_seeds`` has returned.

        A gate that is closed so far that float32 cannot hold it, or what is left of the adjoint behind it, costs its
        network alone a second pass in float64, forwards too: the trace is of that pass.
        """
        gives, sent = self.cell.states[0], list(readout.sent(tapes))
        adjoints, directs = self._adjoints(thetas, layers, sent)
        packed = [self._of_layer(k, layers[k].entered[:-1], adjoint.delta) for k, adjoint in enumerate(adjoints)]
        traces = []
        for each in sent:
            of_readout = readout.gradients(self.cell.loops, self.cell.hidden_size, layers[-1].entered[1:], each)
            gradients = [*(of.seeds(each.seeds) for of in packed), of_readout]
            for index, whole in enumerate(self._gradients(gradients)):
                s = each.seeds.start + index
                received = {self.cell.prefix(layer) + gives: value.seed(s) for layer, value in enumerate(directs)}
                deltas = tuple(adjoint.delta.seed(s) for adjoint in adjoints)
                own = tuple(of.seeds(slice(index, index + 1)) for of in gradients)
                if self._lost(adjoints, s):
                    wide = self._in_float64(tapes[s])
                    traces += self.backward_seeds(wide.theta[None], [layer.alone() for layer in wide.layers], [wide])
                else:
                    traces.append(Trace(tapes[s], own, deltas, self._states(adjoints, s), received, whole))
        return traces

    def state_adjoints(self, theta: NDArray, tape: Tape) -> dict[str, Scaled]:
        """``Trace.states`` of ``backward`` alone, without the gradients of the weights."""
        adjoints, _ = self._adjoints(theta[None], [layer.alone() for layer in tape.layers], list(readout.sent([tape])))
        if self._lost(adjoints, 0):
            wide = self._in_float64(tape)
            return self.state_adjoints(wide.theta, wide)
        return self._states(adjoints, 0)

    def _lost(self, adjoints: Sequence[bptt.LayerAdjoint], s: int) -> bool:
        """Has one seed's adjoint to be computed again in a wider type?"""
        return adjoints[0].delta.array.dtype == np.float32 and any(adjoint.lost[s] for adjoint in adjoints)

    def _adjoints(
        self, thetas: NDArray, layers: Sequence[LayerTape], sent: Sequence[readout.Sent]
    ) -> tuple[list[bptt.LayerAdjoint], list[Scaled]]:
        """Of each layer from the bottom: its adjoint, and what its H_1 … H_T receive directly."""
        *packed, w_hy, _ = self.packed(thetas)
        weights, top = list(self._layers(packed)), layers[-1].states[self.cell.states[0]][1:]
        arrives: NDArray | None
        direct, arrives = readout.received(w_hy, top, sent, self.cell.loops.memory)
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

    def without_readout(self, trace: Trace) -> Gradient:
        """∂L/∂θ with W_hy and b_y held fixed: true zeros in their place, in the elements and in the norms."""
        *cell, _ = trace.packed
        (gradient,) = self._gradients(cell)  # from the parts: beside a far larger readout's the cell's may have rounded
        array = np.zeros(self.size, gradient.scaled.array.dtype)
        array[: self.layout[-2].start] = gradient.scaled.array
        return replace(gradient, scaled=Scaled(array, gradient.scaled.exponent))

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
