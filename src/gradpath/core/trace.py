"""The records of the backward pass: Trace → Measurement, with the axes of
:mod:`gradpath.core.tape`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from gradpath.core.scaled import Scaled
from gradpath.core.tape import Tape
from gradpath.engine.partition import chunks


@dataclass(frozen=True)
class Factor:
    """The gradient of one packed weight matrix at every step, kept as its two factors.

    ∂L/∂W_t = Σ_b inputs_{t,b}ᵀ delta_{t,b}, where the matrix multiplies ``inputs`` (R, B, K) (None
    for a bias, which multiplies 1) and ``delta`` (R, B, n, H) is the gradient at the
    pre-activations, one block for each of ``names``. ``times`` (R,) are the timesteps of the rows;
    at all others the gradient is a true zero.
    """

    names: tuple[str, ...]
    inputs: NDArray | None
    delta: Scaled
    times: NDArray

    def per_step(self) -> Iterator[tuple[slice, Scaled]]:
        """∂L/∂W_t itself, in runs of consecutive rows: (rows, values (rows, n, K, H) in float64, an
        exponent a row).

        In runs, because T of them at once would be T times the size of the weights. In float64, in
        which products of float32 factors are exact, because the sequences' gradients may cancel to
        a millionth of their size.
        """
        steps, _, blocks, width = self.delta.array.shape
        inner = 1 if self.inputs is None else self.inputs.shape[-1]
        for rows in chunks(steps, inner * blocks * width):
            delta = self.delta.steps(rows).aligned_by_step
            by_gate = delta.array.transpose(0, 2, 1, 3).astype(np.float64)
            if self.inputs is None:
                gradient = by_gate.sum(axis=2, keepdims=True)
            else:
                gradient = self.inputs[rows, None].swapaxes(-1, -2).astype(np.float64) @ by_gate
            exponent = np.broadcast_to(delta.exponent[:, None], gradient.shape[:2])
            yield rows, Scaled(gradient, exponent)


@dataclass(frozen=True)
class ParameterSlice:
    """Some rows of some blocks of the packed matrix, which hold the parameters ``names``."""

    names: tuple[str, ...]
    rows: slice
    blocks: slice
    reads: bool = True
    """False for a bias, which multiplies 1."""


@dataclass(frozen=True)
class WeightGradients:
    """The gradient of one packed matrix (K, n·H) at R steps, of S networks side by side; ``slices``
    say which parameters lie in it.
    """

    slices: tuple[ParameterSlice, ...]
    times: NDArray
    """(R,) timesteps; at all others the gradient is a true zero."""
    inputs: NDArray
    """E (R, S, B, K)."""
    delta: Scaled
    """δ (R, S, B, n, H)."""
    weight_sq_norms: NDArray
    """‖∂L/∂W_t‖² (R, S, n, slices), of δ with one exponent a step, in its type."""
    delta_sq_norms: NDArray
    """Σ_h δ² (R, S, B, n), likewise."""
    exponent: NDArray
    """Exponents (R, S) of ∂L/∂W_t."""
    total: NDArray
    """Σ_t ∂L/∂W_t (S, K, n, H)."""
    total_exponents: NDArray
    """Exponents (S, slices) of the total of each slice."""

    def seeds(self, index: slice) -> "WeightGradients":
        """Some of the networks, as views."""
        if index == slice(0, len(self.total)):
            return self
        return replace(
            self,
            inputs=self.inputs[:, index],
            delta=Scaled(self.delta.array[:, index], self.delta.exponent[:, index]),
            weight_sq_norms=self.weight_sq_norms[:, index],
            delta_sq_norms=self.delta_sq_norms[:, index],
            exponent=self.exponent[:, index],
            total=self.total[index],
            total_exponents=self.total_exponents[index],
        )

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for part in self.slices for name in part.names)

    @property
    def totals(self) -> list[tuple[ParameterSlice, Scaled]]:
        """Σ_t ∂L/∂W_t of each slice (S, its rows, its blocks, H), with one exponent a network."""
        return [
            (part, Scaled(self.total[:, part.rows, part.blocks], self.total_exponents[:, index]))
            for index, part in enumerate(self.slices)
        ]

    def factors(self, s: int) -> list[Factor]:
        """One network's gradients of each slice, kept as their two factors."""
        inputs, delta = self.inputs[:, s], self.delta.seed(s)
        return [
            Factor(part.names, inputs[..., part.rows] if part.reads else None, delta.blocks(part.blocks), self.times)
            for part in self.slices
            if part.names
        ]


@dataclass(frozen=True)
class Gradient:
    """∂L/∂θ for all parameters end to end, ``scaled.array`` (P,), with its global norm."""

    scaled: Scaled
    log10_norm: float
    """log10 ‖∂L/∂θ‖ over all parameters; -inf for a true zero."""
    parts: Sequence[tuple[tuple[str, ...], Scaled]]
    """The matrices (K, n, H) of the gradient with an exponent each, and the names of their
    blocks.
    """

    @cached_property
    def by_parameter(self) -> dict[str, float]:
        """log10 of the norm of each parameter's own gradient."""
        norms: dict[str, float] = {}
        for names, total in self.parts:
            blocks = np.moveaxis(total.array, -2, 0)
            by_gate = Scaled(blocks, np.broadcast_to(total.exponent, len(blocks))).log10_norm()
            norms |= dict(zip(names, by_gate.tolist(), strict=True))
        return norms


@dataclass(frozen=True)
class Trace:
    """The record of the backward pass. All gradients are those of the batch-mean loss.

    ``packed``: the gradients of each layer's packed weights and of the readout's. ``deltas``: the
    gradients at the pre-activations of each layer, (T, B, n, H), from the bottom.
    ``states`` and ``direct`` hold, under the states' names (``H``, ``C``, ``layer2/H``), (T, B, H)
    adjoints of the states H_1 … H_T: ``states`` the *total* derivative ∂L/∂H_t, through everything
    that follows; ``direct`` the immediate one ∂⁺L/∂H_t, which for a last-step loss is 0 everywhere
    but at T. Differentiating with respect to the stacked states gives the second and is often taken
    for the first.
    """

    tape: Tape
    packed: tuple[WeightGradients, ...]
    deltas: tuple[Scaled, ...]
    states: dict[str, Scaled]
    direct: dict[str, Scaled]
    gradient: Gradient
    clip_scale: float = field(default=1.0)
    """‖gradient as applied‖ / ‖raw gradient‖ of the parameters that are trained; 1 without
    clipping.
    """
    trained: Gradient | None = field(default=None)
    """∂L/∂θ with true zeros for the parameters that are held fixed: the gradient that is clipped;
    None outside training.
    """
    applied: NDArray | None = field(default=None)
    """The gradient (P,) as training hands it to the optimiser, after clipping; None outside
    training.
    """

    @cached_property
    def factors(self) -> tuple[Factor, ...]:
        """The gradients of ``packed``, matrix by matrix, kept as their two factors."""
        return tuple(factor for gradients in self.packed for factor in gradients.factors(0))


@dataclass(frozen=True)
class Measurement:
    """What an instrument read: ``values`` (T, names) for a quantity at every timestep, (names,) for
    one of the step, or a table (rows, names) of the step.
    """

    names: tuple[str, ...]
    values: NDArray
