"""The records of the forward pass: Batch → Tape. Each record is immutable once it is complete.

Axes: T time, B sequences, I inputs, H hidden units, O outputs, n gates of a cell, R scored
timesteps, S seeds side by side.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Batch:
    """A minibatch: ``inputs`` (T, B, I), ``targets`` (T, B) symbols or (T, B, O) numbers, ``mask``
    (T, B) bool: is the position scored?
    """

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
    """The arrays of one layer's forward pass.

    ``augmented_input`` (T+1, B, H+1+I): what the packed weights multiply at each step, [H_{t-1}, 1,
    X_t]; of the last row only H_T and the 1 are used. ``states[s]`` (T+1, B, H): row t *enters*
    step t and row t+1 leaves it, so the shift by one (H_{t-1}) is a slice; the first is the H in
    ``augmented_input``. ``pre`` and ``gates`` (T, B, n, H): the pre-activations and the activations
    of the cell's gates. ``saved[s]`` (T, B, H): the other arrays that the cell saves. Several seeds
    side by side have an axis S after the time axis.
    """

    augmented_input: NDArray
    states: dict[str, NDArray]
    pre: NDArray
    gates: NDArray
    saved: dict[str, NDArray]

    @property
    def inputs(self) -> NDArray:
        """X_t (T, B, I)."""
        return self.augmented_input[:-1, ..., self.gates.shape[-1] + 1 :]

    def state(self, name: str, leaving: bool) -> NDArray:
        """A state (T, B, H), at the beginning of each step or at its end (``leaving``)."""
        return self.states[name][leaving:][: len(self.pre)]

    def _map_arrays(
        self, change_states: Callable[[NDArray], NDArray], change_steps: Callable[[NDArray], NDArray]
    ) -> "LayerTape":
        """The tape with ``change_states`` applied to each array of T+1 rows, and ``change_steps``
        to each of T rows.
        """
        states = {name: change_states(value) for name, value in self.states.items()}
        saved = {name: change_steps(value) for name, value in self.saved.items()}
        augmented_input = change_states(self.augmented_input)
        return LayerTape(augmented_input, states, change_steps(self.pre), change_steps(self.gates), saved)

    def map(self, change: Callable[[NDArray], NDArray]) -> "LayerTape":
        """The tape with ``change`` applied to every array."""
        return self._map_arrays(change, change)

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
        return self._map_arrays(lambda value: value[start : stop + 1], lambda value: value[start:stop])

    def with_seed_axis(self) -> "LayerTape":
        """A single seed with an axis S of length 1, as views."""
        return self.map(lambda value: value[:, None])


@dataclass(frozen=True)
class Tape:
    """The record of the whole forward pass: a tape for each layer, and outputs and loss at the R
    scored timesteps.
    """

    theta: NDArray
    """θ (P,), the parameters of the pass."""
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
    def length(self) -> int:
        return len(self.batch.mask)
