"""The records that pass along the line: Batch → Tape → Trace → Measurement. Each is final once handed on.

Axes: T time, B sequences, I inputs, H hidden units, O outputs, n blocks (gates) of a cell, R scored timesteps,
S seeds side by side.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gradpath.memory import in_runs
from gradpath.scaled import Scaled

if TYPE_CHECKING:
    from gradpath.cells import Cell
    from gradpath.network import Network
    from gradpath.step_gradients import StepGradients


@dataclass(frozen=True)
class Batch:
    """A minibatch: ``inputs`` (T, B, I), ``targets`` (T, B) symbols or (T, B, O) numbers, ``mask`` (T, B) scored?"""

    inputs: NDArray
    targets: NDArray
    mask: NDArray

    def astype(self, dtype: type) -> "Batch":
        """The same minibatch in another floating-point type; symbols and mask stay as they are."""
        symbols = np.issubdtype(self.targets.dtype, np.integer)
        targets = self.targets if symbols else self.targets.astype(dtype)
        return Batch(self.inputs.astype(dtype), targets, self.mask)


@dataclass(frozen=True)
class LayerTape:
    """What one layer's forward pass leaves behind.

    ``entered`` (T+1, B, H+1+I): what the packed weights multiply at each step, [H_{t-1}, 1, X_t]; of the last row H_T
    and the 1 alone mean anything. ``states[s]`` (T+1, B, H): row t *enters* step t and row t+1 leaves it, so the shift
    by one (H_{t-1}) is a slice; the first is the H in ``entered``. ``pre`` and ``gates`` (T, B, n, H): the
    pre-activations and the activations of the cell's blocks. ``saved[s]`` (T, B, H): what else the cell keeps.
    Several seeds side by side have an axis S after the time axis.
    """

    entered: NDArray
    states: dict[str, NDArray]
    pre: NDArray
    gates: NDArray
    saved: dict[str, NDArray]

    @property
    def inputs(self) -> NDArray:
        """X_t (T, B, I)."""
        return self.entered[:-1, ..., self.gates.shape[-1] + 1 :]

    def _each(self, of_states: Callable[[NDArray], NDArray], of_steps: Callable[[NDArray], NDArray]) -> "LayerTape":
        """Something done to every array: to those with T+1 rows, and to those with T."""
        states = {name: of_states(value) for name, value in self.states.items()}
        saved = {name: of_steps(value) for name, value in self.saved.items()}
        return LayerTape(of_states(self.entered), states, of_steps(self.pre), of_steps(self.gates), saved)

    def map(self, change: Callable[[NDArray], NDArray]) -> "LayerTape":
        """The same change made to every array."""
        return self._each(change, change)

    def seed(self, s: int) -> "LayerTape":
        """One seed of several, as views."""
        return self.map(lambda value: value[:, s])

    def sequences(self, rows: slice) -> "LayerTape":
        """Some sequences of several seeds, as views."""
        if rows == slice(0, self.gates.shape[2]):
            return self
        return self.map(lambda value: value[:, :, rows])

    def steps(self, start: int, stop: int) -> "LayerTape":
        """The tape of some consecutive steps, as views."""
        return self._each(lambda value: value[start : stop + 1], lambda value: value[start:stop])

    def alone(self) -> "LayerTape":
        """A single seed with an axis S of length 1, as views."""
        return self.map(lambda value: value[:, None])


@dataclass(frozen=True)
class Tape:
    """What the whole forward pass leaves behind: a tape a layer, and readout and loss at the R scored timesteps."""

    network: "Network"
    theta: NDArray
    """θ (P,) that the pass was made with."""
    batch: Batch
    layers: tuple[LayerTape, ...]
    scored: NDArray
    """Indices of the R timesteps at which at least one sequence is scored."""
    outputs: NDArray
    """Y (R, B, O) at those timesteps."""
    loss: float
    """Mean over the scored positions of the batch."""
    loss_gradient: NDArray
    """∂L/∂Y (R, B, O)."""

    @property
    def cell(self) -> "Cell":
        return self.network.cell

    @property
    def length(self) -> int:
        return len(self.batch.mask)


@dataclass(frozen=True)
class Factor:
    """The gradient of one packed weight matrix at every step, kept as its two factors.

    ∂L/∂W_t = Σ_b entered_{t,b}ᵀ delta_{t,b}, where ``entered`` (R, B, K) is what the matrix multiplied (None for a
    bias, which multiplies 1) and ``delta`` (R, B, n, H) the gradient at the pre-activation, one block a parameter.
    ``times`` (R,) are the timesteps of the rows; at all others the gradient is a true zero.
    """

    names: tuple[str, ...]
    entered: NDArray | None
    delta: Scaled
    times: NDArray

    def per_step(self) -> Iterator[tuple[slice, Scaled]]:
        """∂L/∂W_t itself, in runs of consecutive rows: (rows, values (rows, n, K, H) in float64, an exponent a row).

        In runs, because T of them at once would be T times the size of the weights. In float64, in which products of
        float32 factors are exact, because the sequences' gradients may cancel to a millionth of their size.
        """
        steps, _, blocks, width = self.delta.array.shape
        inner = 1 if self.entered is None else self.entered.shape[-1]
        for rows in in_runs(steps, inner * blocks * width):
            delta = self.delta.steps(rows).aligned_by_step
            by_block = delta.array.transpose(0, 2, 1, 3).astype(np.float64)
            if self.entered is None:
                formed = by_block.sum(axis=2, keepdims=True)
            else:
                formed = self.entered[rows, None].swapaxes(-1, -2).astype(np.float64) @ by_block
            exponent = np.broadcast_to(delta.exponent[:, None], formed.shape[:2])
            yield rows, Scaled(formed, exponent)


@dataclass(frozen=True)
class Gradient:
    """∂L/∂θ for all parameters end to end, ``scaled.array`` (P,), with its global norm."""

    scaled: Scaled
    log10_norm: float
    """log10 ‖∂L/∂θ‖ over all parameters; -inf for a true zero."""
    parts: Sequence[tuple[tuple[str, ...], Scaled]]
    """Its matrices (K, n, H) with an exponent each, and their blocks' names."""

    @cached_property
    def by_parameter(self) -> dict[str, float]:
        """log10 of the norm of every parameter's own gradient."""
        norms: dict[str, float] = {}
        for names, total in self.parts:
            blocks = np.moveaxis(total.array, -2, 0)
            by_block = Scaled(blocks, np.broadcast_to(total.exponent, len(blocks))).log10_norm()
            norms |= dict(zip(names, by_block.tolist(), strict=True))
        return norms


@dataclass(frozen=True)
class Trace:
    """What the backward pass found. Norms of everything in it are for the batch-mean loss.

    ``packed``: the gradients of each layer's packed weights and of the readout's. ``deltas``: the gradients at the
    pre-activations of each layer's blocks, (T, B, n, H), from the bottom.
    ``states`` and ``direct`` hold, under the states' names (``H``, ``C``, ``layer2/H``), (T, B, H) adjoints of the
    states H_1 … H_T: ``states`` the *total* derivative ∂L/∂H_t, through everything that follows; ``direct`` the
    immediate one ∂⁺L/∂H_t, which for a last-step loss is 0 everywhere but at T. Differentiating with respect to the
    stacked states gives the second and is often taken for the first.
    """

    tape: Tape
    packed: tuple["StepGradients", ...]
    deltas: tuple[Scaled, ...]
    states: dict[str, Scaled]
    direct: dict[str, Scaled]
    gradient: Gradient
    clip_scale: float = field(default=1.0)
    """‖gradient as applied‖ / ‖raw gradient‖ of the parameters that are trained; 1 without clipping."""
    trained: Gradient | None = field(default=None)
    """∂L/∂θ with true zeros for what is held fixed: what clipping sees; None outside training."""
    applied: NDArray | None = field(default=None)
    """The gradient (P,) as training hands it to the optimiser, after clipping; None outside training."""

    @cached_property
    def factors(self) -> tuple[Factor, ...]:
        """The gradients of ``packed``, matrix by matrix, kept as their two factors."""
        return tuple(factor for of in self.packed for factor in of.factors(0))


@dataclass(frozen=True)
class Measurement:
    """What an instrument read: ``values`` (T, names) for a quantity at every timestep, (names,) for one of the step,
    or a table (rows, names) of the step.
    """

    names: tuple[str, ...]
    values: NDArray
