"""Recurrent cells. A cell is one step and its derivative, pointwise; the loop over time, the matrix products and the
shift by one (H_{t-1}) stand once, in :mod:`gradpath.bptt`, for every cell.

A cell has n *blocks*, each with a pre-activation X_t W_·x + H_{t-1} W_·h + b_· of H units. The blocks' weights lie side
by side in one matrix, so that a step is one product, and carry their own names wherever a person reads them.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from numpy.random import Generator
from numpy.typing import NDArray

from gradpath.records import LayerTape
from gradpath.settings import Settings, setting


@dataclass
class Cell(Settings, ABC):
    """Base of the cells: what a new one must say. Arrays of a step are (…, B, H), gates (…, B, n, H), with an axis of
    seeds in front or not; so count axes from the right: ``gates[..., 0, :]``.
    """

    hidden_size: int = setting(64, "units in each layer", ge=1, le=1_000_000)
    layers: int = setting(1, "layers, each fed by the one below", ge=1, le=1000)

    states: ClassVar[tuple[str, ...]] = ("H",)
    """The names of what a step hands to the next; the first is what the cell gives out."""
    blocks: ClassVar[dict[str, tuple[str, str, str]]]
    """Block → the names of its input weights, recurrent weights and bias, in the order of the packed columns."""
    saved: ClassVar[tuple[str, ...]] = ()
    """The names of what a step keeps for its derivative beside gates and states."""

    def prefix(self, layer: int) -> str:
        """``layer1/`` … in a stack, nothing in a single layer; ``layer`` counts from 0."""
        return f"layer{layer + 1}/" if self.layers > 1 else ""

    @property
    def truncated(self) -> bool:
        """Does the adjoint stop at the gates instead of passing on to H_{t-1}?"""
        return False

    @abstractmethod
    def step(
        self, gates: NDArray, enter: Sequence[NDArray], leave: Sequence[NDArray], saved: Sequence[NDArray]
    ) -> None:
        """One step: ``gates`` holds the pre-activations and is left holding the activations; fills leave and saved."""

    @abstractmethod
    def derivatives(self, tape: LayerTape) -> tuple[NDArray, ...]:
        """The factors of the step's derivative that do not depend on the adjoint, for all T steps at once."""

    @abstractmethod
    def step_backward(
        self, factors: Sequence[NDArray], leave: Sequence[NDArray], delta: NDArray, enter: Sequence[NDArray]
    ) -> None:
        """One step back. ``leave``: adjoints of the states that left the step, from all that follows *outside* the
        step; made total in place where one of the states feeds another. Fills ``delta`` (the gradient at the
        pre-activations) and adds to ``enter`` the part that reaches the entering states without passing through them.
        """

    @abstractmethod
    def activations(self, tape: LayerTape) -> dict[str, NDArray]:
        """What ``gate_activation`` watches, by name: (T, B, H) values in [0, 1]."""

    def initial_bias(self, rng: Generator) -> dict[str, NDArray | float]:
        """Biases that the cell sets itself, over the initialisation's: block → value (H,) or number."""
        return {}
