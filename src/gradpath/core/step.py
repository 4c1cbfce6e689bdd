"""The arrays that a cell's step reads and writes, by name, and what it
says of each of its gates.
"""

from collections.abc import Sequence
from typing import NamedTuple

from numpy.typing import NDArray

from gradpath.core.roles import GateRole


class GateSpec(NamedTuple):
    """The names of a gate's input weights, recurrent weights and bias, None where it does not read
    X or H; and its role, None where it has none of those that have a name.
    """

    x: str | None
    h: str | None
    b: str
    role: GateRole | None = None


class Step(NamedTuple):
    """The arrays of one step, or of several at once: views of a tape. B sequences, n gates, H
    units.
    """

    pre: NDArray
    """Pre-activations (…, B, n, H)."""
    gates: NDArray
    """Their activations (…, B, n, H)."""
    entering: Sequence[NDArray]
    """The states of t−1, (…, B, H) each."""
    leaving: Sequence[NDArray]
    """The states of t."""
    saved: Sequence[NDArray]
    """What else the step keeps."""
    slopes: Sequence[NDArray] = ()
    """Backwards alone: φ′(x) of each of the step's nonlinearities."""


class StepAdjoint(NamedTuple):
    """The adjoints of one step's arrays, shaped as these."""

    leaving: Sequence[NDArray]
    """Of the states that left the step, from all that follows *outside* the step."""
    pre: NDArray
    """The gradient at the pre-activations."""
    entering: Sequence[NDArray]
    """Of the states that entered it."""
