"""The results of a backward pass by the textbook: the adjoints, every parameter's gradient at every
step, and the sum of these gradients.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property, partial

import numpy as np
from numpy.typing import NDArray

from gradpath.core import readout
from gradpath.core.backward import LayerAdjoint
from gradpath.core.losses import Loss
from gradpath.core.network import Network
from gradpath.core.roles import READOUT
from gradpath.core.scaled import Scaled
from gradpath.core.tape import LayerTape, Tape
from gradpath.core.trace import Trace
from gradpath.engine.workspace import Workspace
from gradpath.gradient_check.pointwise import Derivative
from gradpath.gradient_check.textbook import LayerReference, Stepwise, Textbook, summed, total

SUBNORMAL = float(np.finfo(np.float64).smallest_subnormal)


class Reference:
    """The correct results of backpropagation from a tape; with ``row``, from the loss of that
    scored timestep alone.
    """

    def __init__(
        self,
        network: Network,
        tape: Tape,
        row: int | None = None,
        derivatives: Sequence[Derivative] | None = None,
    ) -> None:
        self.network, self.cell, self.tape = network, network.cell, tape
        self.weights = list(network.layer_weights(tape.theta))
        self.derivatives = derivatives or list(map(partial(Derivative, self.cell), tape.layers, self.weights))
        self.w_hy = network.packed(tape.theta)[-2]
        self.d_outputs = loss_gradient(network.loss, tape)
        if row is not None:
            self.d_outputs[np.arange(len(tape.scored)) != row] = 0
        self.book = Textbook(self.cell, tape.layers, self.derivatives, tape.outputs.dtype)
        self.layers: list[LayerReference] = self.book.stack(self.weights, self.w_hy, tape.scored, self.d_outputs)
        self._eps = float(np.finfo(tape.theta.dtype).eps)

    def layer_inputs(self, layer: int) -> NDArray:
        """X_t (T, B, ·) of a layer: the minibatch's own inputs, or H_t of the layer below."""
        if not layer:
            return self.tape.batch.inputs
        return self.tape.layers[layer - 1].states[self.cell.states[0]][1:]

    def gradients(self) -> Iterator[tuple[int, str, Stepwise]]:
        """∂L/∂θ_t (2, T, K, H) of every parameter, with its layer: X_tᵀ δa_t, H_{t-1}ᵀ δa_t, Σ_b
        δa_t, Σ_b δa_t ∘ s_t. The parameters are yielded one at a time, because each result is T
        times as large as the parameter.
        """
        cell = self.cell
        for layer, layer_reference in enumerate(self.layers):
            previous = self.tape.layers[layer].states[cell.states[0]][:-1]
            for gate, weights in cell.elementwise:
                state = self.tape.layers[layer].state(weights.state, weights.leaving)
                steps = self._formed_elementwise(
                    state, layer_reference.delta.values[..., gate, :], layer_reference.delta.exponent
                )
                yield layer, self.network.prefix(layer) + weights.name, steps
            for block, names in enumerate(cell.blocks.values()):
                delta = layer_reference.delta.values[..., block, :]
                for name, enters in ((names.x, self.layer_inputs(layer)), (names.h, previous), (names.b, None)):
                    if name:
                        yield (
                            layer,
                            self.network.prefix(layer) + name,
                            self._formed(enters, delta, layer_reference.delta.exponent),
                        )
        top, scored = self.tape.layers[-1].states[cell.states[0]][1:], self.tape.scored
        output_gradient = np.zeros((2, self.tape.length, *self.d_outputs.shape[1:]))
        output_gradient[:, scored] = self.d_outputs
        zero = np.zeros(self.tape.length, int)
        yield self.network.layers - 1, READOUT[0], self._formed(top, output_gradient, zero)
        yield self.network.layers - 1, READOUT[1], self._formed(None, output_gradient, zero)

    def _formed(self, enters: NDArray | None, delta: NDArray, exponent: NDArray) -> Stepwise:
        """The product, with both factors brought to size 1 first, so that it does not underflow
        where it can be represented. The part that would underflow without this counts as
        uncertainty.
        """
        rng = np.random.default_rng(0)
        if enters is None:
            ones = np.ones((*delta.shape[:-2], 1, delta.shape[-2]))
            return Stepwise(summed(ones, delta, self._eps, rng), exponent)
        entered, entered_power = normalized(enters.astype(np.float64).swapaxes(-1, -2)[None])
        scaled_delta, delta_power = normalized(delta)
        product = summed(np.broadcast_to(entered, (2, *entered.shape[1:])), scaled_delta, self._eps, rng)
        underflow = np.ldexp(SUBNORMAL * delta.shape[-2], np.clip(-entered_power - delta_power, None, 2000))
        product[1] += np.where(product[0] == 0, 0, underflow[:, None, None])
        return Stepwise(product, exponent + entered_power + delta_power)

    def _formed_elementwise(self, enters: NDArray, delta: NDArray, exponent: NDArray) -> Stepwise:
        """Σ_b δ ∘ s (2, T, 1, H)."""
        entered, entered_power = normalized(enters.astype(np.float64)[None])
        scaled_delta, delta_power = normalized(delta)
        product = Stepwise(entered * scaled_delta, exponent + entered_power + delta_power)
        return self._formed(None, product.values, product.exponent)

    @cached_property
    def totals(self) -> dict[str, tuple[NDArray, int]]:
        """∂L/∂θ = Σ_t ∂L/∂θ_t (2, K, H) of every parameter, with its exponent."""
        return {name: total(steps) for _, name, steps in self.gradients()}

    def of_step(self, row: int) -> "Reference":
        """The reference for the loss of that scored timestep alone."""
        return Reference(self.network, self.tape, row, self.derivatives)

    @property
    def exact(self) -> bool:
        return all(derivative.exact for derivative in self.derivatives)

    @cached_property
    def stand_ins(self) -> list[tuple[Network, Trace]]:
        """A network whose passes are the textbook's, with its trace; and the same with the moved
        twins.
        """
        settings = {field.name: getattr(self.network, field.name) for field in fields(Network)}
        networks = [LongHand(**settings, moved=moved, exact=self.exact) for moved in (0, 1)]
        return [(network, network.backward(self.tape.theta, self.tape)) for network in networks]


def normalized(values: NDArray) -> tuple[NDArray, NDArray]:
    """The array (·, T, …) brought to size 1 at every step, and the exponents of two (T,) that were
    divided out.
    """
    power = np.frexp(np.abs(values[0]).max(axis=(-1, -2), initial=0))[1]
    return np.ldexp(values, -power[:, None, None]), power


def loss_gradient(kind: Loss, tape: Tape) -> NDArray:
    """∂L/∂Y (R, B, O) from the outputs on the tape: 2 (Y − target) / N, or (softmax(Y) − one-hot) /
    N. The p − 1 of the target is computed as −Σ of the other p, which avoids cancellation.
    """
    y, mask = tape.outputs.astype(np.float64), tape.batch.mask[tape.scored]
    targets = tape.batch.targets[tape.scored]
    if kind is Loss.squared_error:
        gradient = 2 * (y - targets)
    else:
        powers = np.exp(y - y.max(axis=-1, keepdims=True))
        gradient = powers / powers.sum(axis=-1, keepdims=True)
        hot = targets[..., None] == np.arange(y.shape[-1])
        complement = np.where(hot, 0, gradient)
        gradient = np.where(hot, -complement.sum(axis=-1, keepdims=True), complement)
    return np.where(mask[..., None], gradient, 0) / max(int(tape.batch.mask.sum()), 1)


@dataclass(frozen=True)
class LongHand(Network):
    """A network whose backward passes are the textbook's. An instrument must read the same from
    this network as from the original.
    """

    moved: int = 0
    """Index of the twin: 0 for the value, 1 for the moved twin."""
    exact: bool = True
    """Can a complex step give the derivative of the cell's step?"""

    def _adjoints(
        self,
        thetas: NDArray,
        layers: Sequence[LayerTape],
        output_adjoints: Sequence[readout.OutputAdjoint],
        workspace: Workspace,
    ) -> tuple[list[LayerAdjoint], list[Scaled]]:
        """Replaces the layers' own BPTT."""
        tapes, (adjoint,) = [layer.seed(0) for layer in layers], output_adjoints
        weights = list(self.layer_weights(thetas[0]))
        derivatives = [Derivative(self.cell, *layer, self.exact) for layer in zip(tapes, weights, strict=True)]
        book = Textbook(self.cell, tapes, derivatives, adjoint.gradient.array.dtype)
        outputs = np.ldexp(adjoint.gradient.array[:, 0].astype(np.float64), adjoint.gradient.exponent[:, 0, :, None])
        references = book.stack(weights, self.packed(thetas[0])[-2], adjoint.scored, outputs)

        def scaled(value: Stepwise) -> Scaled:
            array = value.values[self.moved][:, None]
            exponent = np.broadcast_to(value.exponent[:, None, None], array.shape[:3]).astype(np.int32)
            return Scaled(array, np.ascontiguousarray(exponent))

        adjoints = [
            LayerAdjoint(
                scaled(layer_reference.delta),
                {name: scaled(value) for name, value in layer_reference.states.items()},
                np.zeros(1, bool),
            )
            for layer_reference in references
        ]
        return adjoints, [scaled(layer_reference.direct) for layer_reference in references]
