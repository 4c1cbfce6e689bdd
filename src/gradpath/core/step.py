"""The arrays that a cell's step reads and writes, by name, and what it
says of each of its gates.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from numpy.typing import NDArray

from gradpath.core.roles import GateRole


class Elementwise(NamedTuple):
    """A parameter w (H,) by which a gate reads a state unit by unit: the pre-activation of unit j
    has w_j s_j added, s the ``state`` that enters the step, or with ``leaving`` the one that leaves
    it. The peepholes of Gers & Schmidhuber (2000) are of this kind.
    """

    name: str
    state: str
    leaving: bool = False


class GateSpec(NamedTuple):
    """The names of a gate's input weights, recurrent weights and bias, None where it does not read
    X or H; its role, None where it has none of those that have a name; and its elementwise
    parameters.
    """

    x: str | None
    h: str | None
    b: str
    role: GateRole | None = None
    elementwise: tuple[Elementwise, ...] = ()


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
    elementwise: Mapping[str, NDArray] = MappingProxyType({})
    """The elementwise parameters by name, each of a shape that multiplies a state."""


class StepAdjoint(NamedTuple):
    """The adjoints of one step's arrays, shaped as these."""

    leaving: Sequence[NDArray]
    """Of the states that left the step, from all that follows *outside* the step."""
    pre: NDArray
    """The gradient at the pre-activations."""
    entering: Sequence[NDArray]
    """Of the states that entered it."""
