"""The arrays that a cell's step reads and writes, and the declarations of each gate."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from numpy.typing import NDArray

from gradpath.core.roles import GateRole, ParameterRole


class Elementwise(NamedTuple):
    """A parameter w (H,) that adds w ∘ s to a gate's pre-activation, where s is the ``state`` of
    t−1, or with ``leaving`` the state of t. The peepholes of Gers & Schmidhuber (2000) are of this
    kind.
    """

    name: str
    state: str
    leaving: bool = False


class GateSpec(NamedTuple):
    """A gate: the names of its input weights, recurrent weights and bias, None where it does not
    read X or H; its role, None where no ``GateRole`` fits; and its elementwise parameters.
    """

    x: str | None
    h: str | None
    b: str
    role: GateRole | None = None
    elementwise: tuple[Elementwise, ...] = ()

    @property
    def sources(self) -> dict[str, "ParameterRole | Elementwise"]:
        """Parameter name → its role, or how it is read if it is elementwise."""
        roles: dict[str | None, ParameterRole] = {self.x: "input", self.h: "recurrent", self.b: "bias"}
        return {name: role for name, role in roles.items() if name} | {read.name: read for read in self.elementwise}


class Step(NamedTuple):
    """The arrays of one step, or of several at once: views of a tape. B sequences, n gates, H
    units.
    """

    pre: NDArray
    """Pre-activations (…, B, n, H)."""
    gates: NDArray
    """The activations of the gates (…, B, n, H)."""
    entering: Sequence[NDArray]
    """The states of t−1, (…, B, H) each."""
    leaving: Sequence[NDArray]
    """The states of t."""
    saved: Sequence[NDArray]
    """The arrays named by ``Cell.saved``, (…, B, H) each."""
    slopes: Sequence[NDArray] = ()
    """Backwards only: φ′(x) of each of ``Cell.activations_used``."""
    elementwise: Mapping[str, NDArray] = MappingProxyType({})
    """The elementwise parameters by name, broadcastable to a state."""


class StepAdjoint(NamedTuple):
    """The adjoints of one step's arrays, of the same shapes."""

    leaving: Sequence[NDArray]
    """The adjoints of the states of t, from all later steps, the layer above and the loss."""
    pre: NDArray
    """The gradient at the pre-activations."""
    entering: Sequence[NDArray]
    """The adjoints of the states of t−1."""
