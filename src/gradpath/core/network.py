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
from gradpath.core.parameters import PackedMatrix
from gradpath.core.scaled import Scaled
from gradpath.core.tape import Batch, LayerTape, Tape
from gradpath.core.trace import Gradient, Trace, WeightGradients
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
    """Number of layers, each fed by the one below. An experiment sets this field and
    ``initial_state`` from the cell's fields of the same names, which the network does not read.
    """
    initial_state: float = 0.0
    """H_0 of every unit; the other states start from 0."""
    splits_large_passes: bool = False
    """Are large passes of the network cut in two (:mod:`gradpath.engine.partition`)? The last bits
    depend on it.
    """

    @cached_property
    def layout(self) -> tuple[PackedMatrix, ...]:
        """The places of the packed matrices: those of each layer from the bottom, then W_hy and
        b_y.
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
        """The indices in ``layout`` of a layer's packed weights."""
        kinds = 4 if self.cell.elementwise else 3
        return slice(kinds * layer, kinds * (layer + 1))

    def workspace(self, python_lock: "Lock | None" = None, executor: Executor | None = None) -> Workspace:
        """A workspace for passes of this network, and of others with the same
        ``splits_large_passes``.
        """
        return Workspace(self.splits_large_passes, python_lock, executor)

    def forward(self, theta: NDArray, batch: Batch, workspace: Workspace | None = None) -> Tape:
        """Runs the stack over a minibatch, and computes the outputs and the loss. Here and in the
        other passes, a ``workspace`` saves time where several passes are computed; it does not
        change the numbers.
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
        an axis S, and each seed's own tape, bit for bit the result of ``forward``.
        """
        inputs = readout.stack_seeds([batch.inputs for batch in batches], 1)
        layers = self._run(thetas, inputs, workspace or self.workspace())
        *_, w_hy, b_y = self.packed(thetas)
        readouts = readout.read_out(self.loss, w_hy, b_y, layers[-1].states[self.cell.states[0]][1:], batches)
        tapes = [
            Tape(thetas[s], batches[s], tuple(layer.seed(s) for layer in layers), *outputs)
            for s, outputs in enumerate(readouts)
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
        """The same forward pass with gates and states in float64; ∂L/∂Y is taken from ``tape``."""
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
        """The backward passes of S networks side by side, from the result of ``forward_seeds``.

        Where float32 cannot represent a nearly closed gate of a network, or the adjoint behind it,
        the network's forward and backward pass are repeated in float64, and its trace holds the
        results of the repeated passes.
        """
        workspace = workspace or self.workspace()
        output, d_outputs = self.cell.states[0], list(readout.output_adjoints(tapes))
        adjoints, directs = self._adjoints(thetas, layers, d_outputs, workspace)
        packed: list[WeightGradients] = []
        for k, adjoint in enumerate(adjoints):
            places = self.layout[self._places(k)]
            packed += layer_gradients(self.cell, places, layers[k], adjoint.delta, workspace)
        traces = []
        for group in d_outputs:
            readout_gradients = readout.gradients(
                workspace, self.cell.hidden_size, layers[-1].augmented_input[1:], group
            )
            gradients = [*(part.seeds(group.seeds) for part in packed), readout_gradients]
            for index, gradient in enumerate(lay_end_to_end(self.layout, gradients)):
                s = group.seeds.start + index
                received = {self.prefix(layer) + output: value.seed(s) for layer, value in enumerate(directs)}
                deltas = tuple(adjoint.delta.seed(s) for adjoint in adjoints)
                seed_gradients = tuple(part.seeds(slice(index, index + 1)) for part in gradients)
                if self._lost(adjoints, s):
                    wide = self._in_float64(tapes[s], workspace)
                    traces.append(self.backward(wide.theta, wide, workspace))
                else:
                    traces.append(
                        Trace(tapes[s], seed_gradients, deltas, self._states(adjoints, s), received, gradient)
                    )
        return traces

    def state_adjoints(self, theta: NDArray, tape: Tape, workspace: Workspace | None = None) -> dict[str, Scaled]:
        """``Trace.states`` as ``backward`` computes them, without the gradients of the weights."""
        workspace = workspace or self.workspace()
        layers = [layer.with_seed_axis() for layer in tape.layers]
        d_outputs = list(readout.output_adjoints([tape]))
        adjoints, _ = self._adjoints(theta[None], layers, d_outputs, workspace)
        if self._lost(adjoints, 0):
            wide = self._in_float64(tape, workspace)
            return self.state_adjoints(wide.theta, wide, workspace)
        return self._states(adjoints, 0)

    def _lost(self, adjoints: Sequence[LayerAdjoint], s: int) -> bool:
        """Must one seed's passes be repeated in float64?"""
        return adjoints[0].delta.array.dtype == np.float32 and any(adjoint.lost[s] for adjoint in adjoints)

    def _adjoints(
        self,
        thetas: NDArray,
        layers: Sequence[LayerTape],
        d_outputs: Sequence[readout.OutputAdjoint],
        workspace: Workspace,
    ) -> tuple[list[LayerAdjoint], list[Scaled]]:
        """For each layer from the bottom: its adjoint, and ∂⁺L/∂H_t (T, S, B, H)."""
        *packed, w_hy, _ = self.packed(thetas)
        weights, top = list(self._layer_weights(packed)), layers[-1].states[self.cell.states[0]][1:]
        has_direct: NDArray | None
        direct, has_direct = readout.hidden_adjoint(w_hy, top, d_outputs, workspace.buffers)
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
                input_adjoint = from_x.reshape(*from_x.shape[:-2], -1) @ weights[layer].x.swapaxes(-1, -2)
                direct, has_direct = Scaled(input_adjoint, adjoint.delta.exponent), None
        return adjoints, directs

    def _states(self, adjoints: Sequence[LayerAdjoint], s: int) -> dict[str, Scaled]:
        """The total derivatives of one seed's states by name."""
        states: dict[str, Scaled] = {}
        for layer, adjoint in enumerate(adjoints):
            states |= {self.prefix(layer) + name: value.seed(s) for name, value in adjoint.states.items()}
        return states

    def without_readout(self, trace: Trace) -> Gradient:
        """∂L/∂θ with W_hy and b_y held fixed: true zeros in their place, in the elements and in the
        norms.
        """
        *cell, _ = trace.packed
        # Not derived from the total of all parameters, which may have rounded beside a far larger
        # gradient of the readout.
        (gradient,) = lay_end_to_end(self.layout, cell)
        array = np.zeros(self.size, gradient.scaled.array.dtype)
        array[: self.layout[-2].start] = gradient.scaled.array
        return replace(gradient, scaled=Scaled(array, gradient.scaled.exponent))
