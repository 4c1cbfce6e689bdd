"""A second backward pass, written as in a textbook: one loop over t in float64, without recorded
loops, packed matrices, parts, chunks or ``step_backward``. With J_t the local Jacobian of
:mod:`gradpath.gradient_check.pointwise`, s the states and a the pre-activations of a layer's step,

    δa_t = (∂s_t/∂a_t)ᵀ λ_t      λ_{t-1} = (∂s_t/∂s_{t-1})ᵀ λ_t + Σ_gates δa_t W_·hᵀ + ∂⁺L/∂H_{t-1}

where λ_t is the adjoint that reaches the states from outside step t. The pass starts from the
states on the tape, each step of which is checked separately, so that the two passes stay together
in a chaotic network too.

Everything is computed twice side by side: the value, and a moved twin, in which J and the sums are
changed at random within their uncertainty. The difference of the two shows how much of an error
rounding alone explains; this much is not counted as an error.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import DTypeLike, NDArray

from gradpath.core.bptt import LayerWeights
from gradpath.core.cell import Cell
from gradpath.core.tape import LayerTape
from gradpath.gradient_check.pointwise import Derivative

LOG10_2 = float(np.log10(2.0))
SMALLEST_RATIO = 1e-280
"""A derivative below this size is too small for a ratio."""
UNCERTAIN = 30
"""A derivative below this many times its own uncertainty is too uncertain for a ratio: an error of
``findings.BLAME`` times the uncertainty would be as large as the ratio itself.
"""


@dataclass
class Stepwise:
    """``values[:, t] · 2^exponent[t]``, (2, T, …): the value and its moved twin."""

    values: NDArray
    exponent: NDArray

    def log10_norm(self) -> NDArray:
        """(T,) log10 norm of the value; -inf for a true zero."""
        return log10_norm(self.values[0], 1) + self.exponent * LOG10_2

    def uncertainty(self) -> NDArray:
        """(T,) ‖twin − value‖ / ‖value‖."""
        return ratio(log10_norm(self.values[1] - self.values[0], 1), log10_norm(self.values[0], 1))


@dataclass(frozen=True)
class LayerReference:
    """The textbook's results for one layer: the total adjoints of H_1 … H_T and C_1 … C_T, and
    ``delta`` (2, T, B, n, H). ``to_h`` is Σ_gates δa_{t+1} W_·hᵀ.
    """

    states: dict[str, Stepwise]
    direct: Stepwise
    delta: Stepwise
    to_h: Stepwise
    highway: Stepwise
    """The part of the carrier's adjoint at t that comes from t + 1 outside the gates."""
    to_carrier: NDArray
    """∂H_t/∂(carrier of t) (2, T, B, H); NaN where the step does not determine it."""


def log10_norm(values: NDArray, leading: int) -> NDArray:
    """log10 of the norm over all axes but the ``leading`` ones, whatever its size."""
    flat = values.reshape(*values.shape[:leading], -1).astype(np.float64)
    largest = np.abs(flat).max(axis=-1, initial=0)
    unit = flat / np.where(largest > 0, largest, 1)[..., None]
    with np.errstate(divide="ignore"):
        return np.log10(largest) + np.log10(np.sqrt(np.sum(unit * unit, axis=-1)))


def ratio(part: NDArray, reference: NDArray) -> NDArray:
    """10^(part − reference) for two logarithms: 0 where the part is a true zero, inf where only the
    reference is one.
    """
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        return np.where(np.isneginf(part), 0.0, 10.0 ** (part - reference))


class Textbook:
    """The backward pass of a stack of layers, from ∂L/∂Y in a type that may be narrower than that
    of the tapes.
    """

    def __init__(
        self, cell: Cell, tapes: Sequence[LayerTape], derivatives: Sequence[Derivative], outputs: DTypeLike
    ) -> None:
        self._cell, self._tapes, self._derivatives = cell, tapes, derivatives
        self._rng = np.random.default_rng(0)
        self._eps_outputs = float(np.finfo(outputs).eps)
        self._eps = float(np.finfo(tapes[0].pre.dtype).eps)

    def stack(
        self, weights: Sequence[LayerWeights], w_hy: NDArray, scored: NDArray, outputs: NDArray
    ) -> list[LayerReference]:
        """The results of every layer, from the bottom; ``outputs`` is ∂L/∂Y (R, B, O) at the
        ``scored`` timesteps.
        """
        steps, batch, _, width = self._tapes[0].pre.shape
        top = np.zeros((2, steps, batch, width))
        size = int(np.frexp(np.abs(outputs).max(initial=0))[1]) if np.isfinite(outputs).all() else 0
        gradient = np.ldexp(outputs.astype(np.float64), -size)
        moved = gradient * (1 + 2 * self._eps_outputs * self._rng.uniform(-1, 1, gradient.shape))
        top[:, scored] = self._product(np.stack([gradient, moved]), w_hy.astype(np.float64).T)
        direct = Stepwise(top, np.full(steps, size))
        references: list[LayerReference] = []
        for layer in reversed(range(len(self._tapes))):
            references.insert(0, self.layer(layer, weights[layer].h, direct))
            if layer:
                direct = Stepwise(np.zeros((*top.shape[:-1], weights[layer].x.shape[0])), references[0].delta.exponent)
                columns = gate_weights(weights[layer].x, width)
                for block, column in zip(range(*self._cell.reads_x.indices(99)), columns, strict=False):
                    direct.values += self._product(references[0].delta.values[:, :, :, block], column.T)
        return references

    def layer(
        self, layer: int, recurrent: NDArray, direct: Stepwise, cut: bool = False, receiver: int = 0
    ) -> LayerReference:
        """The results of one layer, which receives ``direct`` at the state of index ``receiver``;
        with ``cut``, nothing passes through the gates to the past.
        """
        cell, derivative = self._cell, self._derivatives[layer]
        cut = cut or cell.truncated
        _, steps, batch, width = direct.values.shape
        blocks, state_count, carrier = len(cell.blocks), len(cell.states), cell.states.index(cell.carrier)
        states, parts = np.zeros((state_count, 2, steps, batch, width)), np.zeros((2, 2, steps, batch, width))
        part_exponents = np.zeros((2, steps), int)
        delta = np.zeros((2, steps, batch, blocks, width))
        exponents, to_carrier = np.zeros(steps, int), np.ones((2, steps, batch, width))
        columns = gate_weights(recurrent, width)
        carried, exponent = np.zeros((state_count, 2, batch, width)), int(direct.exponent[-1])
        past = carried[carrier].copy()
        for t in reversed(range(steps)):
            through_gates = np.zeros((2, batch, width))
            if t + 1 < steps and not cut:
                for block, column in zip(range(*cell.reads_h.indices(99)), columns, strict=False):
                    through_gates += self._product(delta[:, t + 1, :, block], column.T)
            carried[0] += through_gates
            # Computed separately, because these sums may underflow beside the adjoint that arrives.
            for part, value in enumerate((through_gates, past)):
                size = _size(value)
                parts[part, :, t], part_exponents[part, t] = np.ldexp(value, -size), exponent + size
            arriving = direct.values[:, t]
            if arriving.any():
                common = max(exponent if carried.any() else -(2**40), int(direct.exponent[t]))
                carried = np.ldexp(carried, max(exponent - common, -5000))
                carried[receiver] += np.ldexp(arriving, max(int(direct.exponent[t]) - common, -5000))
                exponent = common
            size = _size(carried)
            carried, exponent = np.ldexp(carried, -size), exponent + size
            exponents[t] = exponent
            twins = derivative.jacobian(t)
            step_jacobian = twins if cut else derivative.with_elementwise(twins)
            ratios = self._ratios(step_jacobian)
            if carrier:
                held = ratios if step_jacobian is twins else self._ratios(twins)
                to_carrier[:, t] = held[:, carrier - 1]
            states[:, :, t] = carried
            for s in range(1, state_count):  # total: with the part that goes to H in the same step
                states[s, :, t] += carried[0] * ratios[:, s - 1]
            entered = np.einsum("zoibh,ozbh->izbh", step_jacobian, carried)
            delta[:, t] = np.moveaxis(entered[:blocks], 0, -2)
            past = entered[blocks + carrier].copy()
            if step_jacobian is not twins:  # the part of the carrier's total adjoint that comes outside the gates
                past = twins[:, carrier, blocks + carrier] * states[carrier, :, t]
            carried = entered[blocks:]
        names = cell.states
        return LayerReference(
            {name: Stepwise(states[s], exponents) for s, name in enumerate(names)},
            direct,
            Stepwise(delta, exponents),
            Stepwise(parts[0], part_exponents[0]),
            Stepwise(parts[1], part_exponents[1]),
            to_carrier,
        )

    def _ratios(self, twins: NDArray) -> NDArray:
        """∂H_t/∂s_t (2, k − 1, B, H) for the states s other than H, as a ratio of derivatives: ∂H_t
        over ∂s_t with respect to s_{t-1}. Where s_{t-1} does not reach s_t, or by no more than its
        uncertainty, the ratio is taken with respect to a pre-activation that does. NaN where the
        step does not determine it, as where s_{t-1} moves a third state too.
        """
        ratios, blocks, state_count = [], len(self._cell.blocks), len(self._cell.states)
        for s in range(1, state_count):
            ratio = np.full((2, *twins.shape[3:]), np.nan)
            for i in (blocks + s, *range(blocks)):
                with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                    candidate = twins[:, 0, i] / twins[:, s, i]
                    uncertain = UNCERTAIN * np.abs(twins[1, :, i] - twins[0, :, i]) > np.abs(twins[0, :, i])
                usable = (np.abs(twins[:, s, i]) > SMALLEST_RATIO) & ~uncertain[s]
                ratio = np.where(np.isnan(ratio) & usable, candidate, ratio)
            other_states = [state for state in range(1, state_count) if state != s]
            ratios.append(np.where(twins[:, other_states, blocks + s].any(axis=1), np.nan, ratio))
        return np.stack(ratios, axis=1) if ratios else np.empty((2, 0, *twins.shape[3:]))

    def _product(self, delta: NDArray, matrix: NDArray) -> NDArray:
        """(2, …, K) @ (K, N); the twin is moved by the rounding of a sum."""
        return summed(delta, matrix, self._eps, self._rng)


def summed(left: NDArray, right: NDArray, eps: float, rng: Generator) -> NDArray:
    """left @ right for the value and the twin; the twin is moved by the rounding of the sum too."""
    product = left @ right
    bound = 2 * eps * (np.abs(left) @ np.abs(right))[1]
    product[1] += bound * rng.uniform(0.5, 1, bound.shape) * rng.choice([-1, 1], bound.shape)
    return product


def _size(values: NDArray) -> int:
    """The exponent e with the largest element in [2^(e-1), 2^e); 0 where no element is finite and
    nonzero.
    """
    largest = np.abs(values).max()
    return int(np.frexp(largest)[1]) if 0 < largest < np.inf else 0


def gate_weights(matrix: NDArray, width: int) -> list[NDArray]:
    """The blocks' own weights (K, H) of a packed matrix (K, n·H), in float64."""
    wide = matrix.astype(np.float64)
    return [wide[:, start : start + width] for start in range(0, matrix.shape[1], width)]


def total(steps: Stepwise) -> tuple[NDArray, int]:
    """Σ_t (2, …), and its exponent."""
    alive = steps.values.reshape(*steps.values.shape[:2], -1).any(axis=(0, 2))
    common = int(steps.exponent[alive].max()) if alive.any() else 0
    change = np.where(alive, np.maximum(steps.exponent - common, -5000), 0)
    return np.ldexp(steps.values, change.reshape(1, -1, *(1,) * (steps.values.ndim - 2))).sum(axis=1), common
