"""A stack of recurrent layers with a linear readout: where its parameters lie, its forward and its
backward pass.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import cached_property
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from gradpath.core import backward, bptt, layer_names, parameters, readout
from gradpath.core.backward import LayerAdjoint
from gradpath.core.cell import Cell
from gradpath.core.losses import Loss
from gradpath.core.parameters import Packed
from gradpath.core.scaled import Scaled
from gradpath.core.tape import Batch, LayerTape, Tape
from gradpath.core.trace import Gradient, Trace
from gradpath.core.weight_gradients import lay_end_to_end, layer_gradients
from gradpath.engine.workspace import Workspace


@dataclass(frozen=True)
class Network:
    """Y_t = H_t W_hy + b_y on the top layer's H_t; layer k's H_t is layer k+1's X_t.

    The parameters θ are one flat vector (P,), so that clipping and the optimisers are vector
    operations; matrices are views of it. In a stack of several layers a name carries its layer:
    ``layer1/W_fh``.
    """

    cell: Cell
    input_size: int
    output_size: int
    loss: Loss
    layers: int = 1
    """Layers, each fed by the one below; as H_0, of the network and not read from its cell, whose
    fields of these names are what an experiment makes the network of.
    """
    initial_state: float = 0.0
    """H_0 of every unit; what else a cell hands on starts from 0."""
    splits_large_passes: bool = False
    """Are its large passes cut in two (:mod:`gradpath.engine.partition`)? The last bits depend on
    it.
    """

    @cached_property
    def layout(self) -> tuple[Packed, ...]:
        """Where each packed matrix lies: x, h, b of every layer from the
        bottom, then W_hy and b_y.
        """
        prefixes = [self.prefix(layer) for layer in range(self.layers)]
        return parameters.layout(self.cell, self.input_size, self.output_size, prefixes)

    @property
    def size(self) -> int:
        """P, the number of parameters."""
        return self.layout[-1].stop

    def packed(self, theta: NDArray) -> list[NDArray]:
        """Views of θ (P,), or of the θ of S seeds (S, P), in the order of ``layout``: each (…, K,
        n·H) or (…, n·H).
        """
        return parameters.packed(self.layout, theta)

    def parameters(self, theta: NDArray) -> dict[str, NDArray]:
        """Every parameter under its own name, as a view of θ: W_·· (K, H), b_· (H,)."""
        return parameters.named(self.layout, theta)

    @cached_property
    def elements(self) -> tuple[str, ...]:
        """The name of each element of θ in its order: ``b_h`` where a parameter has one element,
        else ``W_hh[0,1]``.
        """
        return parameters.element_names(self.layout)

    def prefix(self, layer: int) -> str:
        """``layer1/`` … in a stack, nothing in a single layer; ``layer`` counts from 0."""
        return layer_names.prefix(layer, self.layers)

    def layer_weights(self, theta: NDArray) -> Iterator[bptt.LayerWeights]:
        """The packed weights of each layer from the bottom."""
        yield from self._layer_weights(self.packed(theta))

    def _layer_weights(self, packed: Sequence[NDArray]) -> Iterator[bptt.LayerWeights]:
        for layer in range(self.layers):
            yield bptt.LayerWeights(*packed[self._places(layer)])

    def _places(self, layer: int) -> slice:
        """Where in ``layout`` a layer's packed weights are."""
        kinds = 4 if self.cell.elementwise else 3
        return slice(kinds * layer, kinds * (layer + 1))

    def workspace(self, python_lock: "Lock | None" = None, executor: Executor | None = None) -> Workspace:
        """A workspace for passes of this network, and of others with the same
        ``splits_large_passes``.
        """
        return Workspace(self.splits_large_passes, python_lock, executor)

    def forward(self, theta: NDArray, batch: Batch, workspace: Workspace | None = None) -> Tape:
        """Runs the stack over a minibatch, reads out and scores. Here as in the other passes
        ``workspace`` is for who computes several of them; the numbers are the same without.
        """
        _, (tape,) = self.forward_seeds(theta[None], [batch], workspace)
        return tape

    def backward(self, theta: NDArray, tape: Tape, workspace: Workspace | None = None) -> Trace:
        """Backpropagation through time of the whole stack, from the top."""
        (trace,) = self.backward_seeds(
            theta[None], [layer.with_seed_axis() for layer in tape.layers], [tape], workspace
        )
        return trace

    def forward_seeds(
        self, thetas: NDArray, batches: Sequence[Batch], workspace: Workspace | None = None
    ) -> tuple[list[LayerTape], list[Tape]]:
        """S networks side by side, each with its own θ (S, P) and minibatch: the layers' tapes with
        an axis S, and each seed's own tape, which is bit for bit what ``forward`` gives it.
        """
        inputs = readout.stack_seeds([batch.inputs for batch in batches], 1)
        layers = self._run(thetas, inputs, workspace or self.workspace())
        *_, w_hy, b_y = self.packed(thetas)
        found = readout.read_out(self.loss, w_hy, b_y, layers[-1].states[self.cell.states[0]][1:], batches)
        tapes = [
            Tape(thetas[s], batches[s], tuple(layer.seed(s) for layer in layers), *of_outputs)
            for s, of_outputs in enumerate(found)
        ]
        return layers, tapes

    def _run(self, thetas: NDArray, inputs: NDArray, workspace: Workspace) -> list[LayerTape]:
        """The layers' tapes, from the bottom, of ``inputs`` (T, S, B, I)."""
        layers: list[LayerTape] = []
        for weights in self.layer_weights(thetas):
            layers.append(bptt.forward(self.cell, weights, inputs, workspace, self.initial_state))
            inputs = layers[-1].states[self.cell.states[0]][1:]
        return layers

    def _in_float64(self, tape: Tape, workspace: Workspace) -> Tape:
        """The same network on the same numbers, with gates and states in float64. What the loss
        sends back is given.
        """
        theta, batch = tape.theta.astype(np.float64), tape.batch.astype(np.float64)
        layers = tuple(layer.seed(0) for layer in self._run(theta[None], batch.inputs[:, None], workspace))
        gradient = tape.loss_gradient.astype(np.float64)
        return replace(tape, theta=theta, batch=batch, layers=layers, loss_gradient=gradient)

    def backward_seeds(
        self,
        thetas: NDArray,
        layers: Sequence[LayerTape],
        tapes: Sequence[Tape],
        workspace: Workspace | None = None,
    ) -> list[Trace]:
        """The backward passes of S networks side by side, from what ``forward_seeds`` has returned.

        A gate that is closed so far that float32 cannot hold it, or what is left of the adjoint
        behind it, costs its network alone a second pass in float64, forwards too: the trace is of
        that pass.
        """
        workspace = workspace or self.workspace()
        gives, sent = self.cell.states[0], list(readout.output_adjoints(tapes))
        adjoints, directs = self._adjoints(thetas, layers, sent, workspace)
        packed = [
            gradients
            for k, adjoint in enumerate(adjoints)
            for gradients in layer_gradients(
                self.cell, self.layout[self._places(k)], layers[k], adjoint.delta, workspace
            )
        ]
        traces = []
        for each in sent:
            of_readout = readout.gradients(workspace, self.cell.hidden_size, layers[-1].entered[1:], each)
            gradients = [*(of.seeds(each.seeds) for of in packed), of_readout]
            for index, whole in enumerate(lay_end_to_end(self.layout, gradients)):
                s = each.seeds.start + index
                received = {self.prefix(layer) + gives: value.seed(s) for layer, value in enumerate(directs)}
                deltas = tuple(adjoint.delta.seed(s) for adjoint in adjoints)
                own = tuple(of.seeds(slice(index, index + 1)) for of in gradients)
                if self._lost(adjoints, s):
                    wide = self._in_float64(tapes[s], workspace)
                    traces.append(self.backward(wide.theta, wide, workspace))
                else:
                    traces.append(Trace(tapes[s], own, deltas, self._states(adjoints, s), received, whole))
        return traces

    def state_adjoints(self, theta: NDArray, tape: Tape, workspace: Workspace | None = None) -> dict[str, Scaled]:
        """``Trace.states`` of ``backward`` alone, without the gradients of the weights."""
        workspace = workspace or self.workspace()
        layers, sent = [layer.with_seed_axis() for layer in tape.layers], list(readout.output_adjoints([tape]))
        adjoints, _ = self._adjoints(theta[None], layers, sent, workspace)
        if self._lost(adjoints, 0):
            wide = self._in_float64(tape, workspace)
            return self.state_adjoints(wide.theta, wide, workspace)
        return self._states(adjoints, 0)

    def _lost(self, adjoints: Sequence[LayerAdjoint], s: int) -> bool:
        """Has one seed's adjoint to be computed again in a wider type?"""
        return adjoints[0].delta.array.dtype == np.float32 and any(adjoint.lost[s] for adjoint in adjoints)

    def _adjoints(
        self, thetas: NDArray, layers: Sequence[LayerTape], sent: Sequence[readout.OutputAdjoint], workspace: Workspace
    ) -> tuple[list[LayerAdjoint], list[Scaled]]:
        """Of each layer from the bottom: its adjoint, and what its H_1 … H_T receive directly."""
        *packed, w_hy, _ = self.packed(thetas)
        weights, top = list(self._layer_weights(packed)), layers[-1].states[self.cell.states[0]][1:]
        has_direct: NDArray | None
        direct, has_direct = readout.hidden_adjoint(w_hy, top, sent, workspace.buffers)
        adjoints: list[LayerAdjoint] = []
        directs: list[Scaled] = []
        for layer in reversed(range(self.layers)):
            adjoint = backward.backward(
                self.cell, weights[layer], layers[layer], direct, has_direct, workspace=workspace
            )
            adjoints.insert(0, adjoint)
            directs.insert(0, direct)
            if layer:
                from_x = adjoint.delta.array[..., self.cell.reads_x, :]
                below = from_x.reshape(*from_x.shape[:-2], -1) @ weights[layer].x.swapaxes(-1, -2)
                direct, has_direct = Scaled(below, adjoint.delta.exponent), None
        return adjoints, directs

    def _states(self, adjoints: Sequence[LayerAdjoint], s: int) -> dict[str, Scaled]:
        """The total derivatives of one seed's states under their names."""
        found: dict[str, Scaled] = {}
        for layer, adjoint in enumerate(adjoints):
            found |= {self.prefix(layer) + name: value.seed(s) for name, value in adjoint.states.items()}
        return found

    def without_readout(self, trace: Trace) -> Gradient:
        """∂L/∂θ with W_hy and b_y held fixed: true zeros in their place, in the elements and in the
        norms.
        """
        *cell, _ = trace.packed
        (gradient,) = lay_end_to_end(
            self.layout, cell
        )  # from the parts: beside a far larger readout's the cell's may have rounded
        array = np.zeros(self.size, gradient.scaled.array.dtype)
        array[: self.layout[-2].start] = gradient.scaled.array
        return replace(gradient, scaled=Scaled(array, gradient.scaled.exponent))
