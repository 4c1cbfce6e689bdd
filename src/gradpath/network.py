"""A stack of recurrent layers with a linear readout: where its parameters lie, its forward and its backward pass."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from gradpath import bptt
from gradpath.cells import Cell
from gradpath.losses import Loss, evaluate
from gradpath.records import Batch, Factor, Gradient, Tape, Trace
from gradpath.scaled import Scaled


@dataclass(frozen=True)
class Packed:
    """One packed matrix (K, n, H), or bias (n, H), in the flat vector: its place, and its blocks' own names."""

    names: tuple[str, ...]
    shape: tuple[int, ...]
    start: int

    @property
    def stop(self) -> int:
        return self.start + int(np.prod(self.shape))


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

    def prefix(self, layer: int) -> str:
        """``layer1/`` … in a stack, nothing in a single layer; ``layer`` counts from 0."""
        return f"layer{layer + 1}/" if self.cell.layers > 1 else ""

    @cached_property
    def layout(self) -> tuple[Packed, ...]:
        """Where each packed matrix lies: x, h, b of every layer from the bottom, then W_hy and b_y."""
        width, blocks = self.cell.hidden_size, self.cell.blocks.values()
        places: list[Packed] = []

        def place(names: tuple[str, ...], *shape: int) -> None:
            places.append(Packed(names, shape, places[-1].stop if places else 0))

        for layer in range(self.cell.layers):
            inputs = width if layer else self.input_size
            x, h, b = (tuple(self.prefix(layer) + name for name in kind) for kind in zip(*blocks, strict=True))
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
        """Views of θ in the order of ``layout``, each (K, n·H) or (n·H,), ready for a matrix product."""
        views = []
        for place in self.layout:
            rows = place.shape[:-2]
            views.append(theta[place.start : place.stop].reshape(*rows, -1))
        return views

    def parameters(self, theta: NDArray) -> dict[str, NDArray]:
        """Every parameter under its own name, as a view of θ: W_·· (K, H), b_· (H,)."""
        named = {}
        for place in self.layout:
            blocks = theta[place.start : place.stop].reshape(place.shape)
            for index, name in enumerate(place.names):
                named[name] = blocks[..., index, :]
        return named

    def layers(self, theta: NDArray) -> Iterator[bptt.LayerWeights]:
        """The packed weights of each layer from the bottom."""
        packed = self.packed(theta)
        for layer in range(self.cell.layers):
            yield bptt.LayerWeights(*packed[3 * layer : 3 * layer + 3])

    def forward(self, theta: NDArray, batch: Batch) -> Tape:
        """Runs the stack over a minibatch, reads out and scores."""
        below, layers = batch.inputs, []
        for weights in self.layers(theta):
            layers.append(bptt.forward(self.cell, weights, below))
            below = layers[-1].states[self.cell.states[0]][1:]
        w_hy, b_y = self.packed(theta)[-2:]
        scored = np.flatnonzero(batch.mask.any(axis=1))
        outputs = below[scored] @ w_hy + b_y
        loss, gradient = evaluate(self.loss, outputs, batch.targets[scored], batch.mask[scored])
        return Tape(self.cell, batch, tuple(layers), scored, outputs, loss, gradient)

    def backward(self, theta: NDArray, tape: Tape) -> Trace:
        """Backpropagation through time of the whole stack, from the top."""
        w_hy = self.packed(theta)[-2]
        gives = self.cell.states[0]
        steps, batch = tape.batch.mask.shape
        no_exponent = np.zeros((steps, batch), np.int32)
        top = tape.layers[-1].states[gives][1:]
        arriving = np.zeros_like(top)
        arriving[tape.scored] = tape.loss_gradient @ w_hy.T
        direct = Scaled(arriving, no_exponent)

        d_outputs = Scaled(tape.loss_gradient[:, :, None], no_exponent[tape.scored])
        factors = [
            Factor(("b_y",), None, d_outputs, tape.scored),
            Factor(("W_hy",), top[tape.scored], d_outputs, tape.scored),
        ]
        states: dict[str, Scaled] = {}
        directs: dict[str, Scaled] = {}
        weights = list(self.layers(theta))
        every = np.arange(steps)
        for layer in reversed(range(self.cell.layers)):
            layer_tape = tape.layers[layer]
            adjoint = bptt.backward(self.cell, weights[layer], layer_tape, direct)
            x, h, b = (place.names for place in self.layout[3 * layer : 3 * layer + 3])
            factors += [
                Factor(b, None, adjoint.delta, every),
                Factor(h, layer_tape.states[gives][:-1], adjoint.delta, every),
                Factor(x, layer_tape.inputs, adjoint.delta, every),
            ]
            states |= {self.prefix(layer) + name: value for name, value in adjoint.states.items()}
            directs[self.prefix(layer) + gives] = direct
            if layer:
                delta = adjoint.delta.array.reshape(steps * batch, -1)
                below = (delta @ weights[layer].x.T).reshape(steps, batch, -1)
                direct = Scaled(below, adjoint.delta.exponent)
        factors.reverse()
        return Trace(tape, tuple(factors), states, directs, self._gradient(tuple(factors)))

    def _gradient(self, factors: tuple[Factor, ...]) -> Gradient:
        """Σ_t of every factor, laid end to end under one exponent."""
        parts = [factor.gradient() for factor in factors]
        norms: dict[str, float] = {}
        for factor, part in zip(factors, parts, strict=True):
            blocks = np.moveaxis(part.array, -2, 0)
            by_block = Scaled(blocks, np.broadcast_to(part.exponent, len(blocks))).log10_norm()
            norms |= dict(zip(factor.names, by_block.tolist(), strict=True))
        exponent = max((int(part.exponent) for part in parts if part.array.any()), default=0)
        flat = np.concatenate(
            [Scaled(part.array.reshape(-1), part.exponent - np.int32(exponent)).plain() for part in parts]
        )
        scaled = Scaled(flat, np.asarray(exponent, np.int32))
        return Gradient(scaled, float(scaled.log10_norm()), norms)
