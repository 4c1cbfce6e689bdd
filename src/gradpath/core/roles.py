"""The declarations of a cell as data, so that figures and verdicts need not know any cell by name.

A run stores the roles of its cell beside its measurements, so that they can be read without the
cell's code.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from gradpath.core import layer_names
from gradpath.core.drawing import Drawing

ParameterRole = Literal["input", "recurrent", "bias", "elementwise", "readout"]
GateRole = Literal["keep", "input", "output", "reset", "candidate", "unit"]
"""What a gate multiplies: ``keep`` the carrier of t−1, ``input`` the candidate, ``output`` the
carrier on its way to H, ``reset`` the past state inside the candidate. ``candidate`` is the
candidate itself, ``unit`` the only nonlinearity of a cell without gating.
"""
READOUT = ("W_hy", "b_y")
"""The parameters of the readout, which belong to the network and to no cell."""


@dataclass(frozen=True)
class Parameter:
    """The role of a parameter, and the gate to which it belongs; None for the readout."""

    role: ParameterRole
    gate: str | None = None


@dataclass(frozen=True)
class Gate:
    """A gate's role, None where no ``GateRole`` fits; and the name of the gradient's path through
    the gate, None where the gate does not read H.
    """

    role: GateRole | None = None
    path: str | None = None


@dataclass(frozen=True)
class Watched:
    """A quantity that ``gate_activation`` reads: the values of a gate, or with ``slope`` φ′ of its
    nonlinearity relative to max φ′, of which only small values mean saturation.
    """

    gate: str
    slope: bool = False


@dataclass(frozen=True)
class Keeping:
    """The factor k of the carrier in C_t = k ∘ C_{t-1} + …: the values watched as ``gate``, or with
    ``complement`` one minus these values. ``held`` is the number at which the gate is frozen, or,
    where ``gate`` is None, the number in place of a gate.

    ``bias`` is the logit of the factor at initialisation where all weights are 0: a number, or
    (low, high) for ln U[low, high] of every unit (chrono initialisation). None where the
    initialisation does not determine it.
    """

    gate: str | None
    label: str = "keeping gate"
    complement: bool = False
    held: float | None = None
    bias: float | tuple[float, float] | None = None


def initial_logit(bias: float, chrono_t_max: int | None) -> float | tuple[float, float]:
    """``Keeping.bias`` of a gate that starts at ``bias``, or of chrono initialisation, b = ln U[1,
    t_max − 1] (Tallec & Ollivier 2018, eq. 16).
    """
    return bias if chrono_t_max is None else (1.0, float(chrono_t_max - 1))


@dataclass(frozen=True)
class Roles:
    """The declarations of one cell. Names are those of one layer; see
    :mod:`gradpath.core.layer_names`.
    """

    label: str
    """The cell's name in texts."""
    variant: str
    """What distinguishes the cell from its plain form; empty for the plain form."""
    layers: int
    states: tuple[str, ...]
    output: str
    carrier: str
    parameters: dict[str, Parameter]
    gates: dict[str, Gate]
    watched: dict[str, Watched]
    keeping: Keeping | None = None
    recurrence: str | None = None
    """φ where the whole step is H_t = φ(X_t W + H_{t-1} W + b), to which the theory of random
    recurrent networks applies.
    """
    idle: tuple[str, ...] = ()
    """Settings that have no effect given the values of the others."""
    colors: dict[str, str] | None = None
    """Colours of the cell's plain form by the kind of clipping, with the keys ``""``, ``clipped``
    and ``value_clipped``; None lets the figure choose.
    """
    drawing: Drawing | None = None

    def __post_init__(self) -> None:
        for problem in self._problems():
            raise ValueError(problem)

    def _problems(self) -> Iterator[str]:
        """The names by which a role refers to what the cell does not have."""
        if self.layers < 1:
            yield f"layers: {self.layers}; there must be one"
        for role, state in (("output", self.output), ("carrier", self.carrier)):
            if state not in self.states:
                yield f"{role}: {state!r} is no state; the states are {', '.join(self.states)}"
        gates = ", ".join(self.gates)
        for name, parameter in self.parameters.items():
            if parameter.gate not in (None, *self.gates):
                yield f"parameter {name}: {parameter.gate!r} is no gate; the gates are {gates}"
        for name, watched in self.watched.items():
            if watched.gate not in self.gates:
                yield f"watched {name}: {watched.gate!r} is no gate; the gates are {gates}"
        if self.keeping is not None and self.keeping.gate not in (None, *self.watched):
            names = ", ".join(self.watched) or "nothing"
            yield f"keeping: {self.keeping.gate!r} is not watched; watched are {names}"

    def prefix(self, layer: int) -> str:
        """The prefix of the names of a layer; ``layer`` counts from 0."""
        return layer_names.prefix(layer, self.layers)

    @property
    def bottom(self) -> str:
        """The prefix of the names of the bottom layer."""
        return self.prefix(0)

    @property
    def bottom_carrier(self) -> str:
        """The carrier of the bottom layer, where the input that must be kept enters."""
        return self.bottom + self.carrier

    def parameter(self, name: str) -> Parameter | None:
        """The role of a parameter by its full name; None where the cell has no such parameter."""
        return self.parameters.get(layer_names.split(name)[1])

    def with_role(self, role: ParameterRole) -> list[str]:
        """The parameters with a role."""
        return [name for name, parameter in self.parameters.items() if parameter.role == role]

    def without_readout(self, names: Sequence[str]) -> list[int]:
        """The indices of the recurrent layers' parameters among the columns ``names``."""
        readout = self.with_role("readout")
        return [column for column, name in enumerate(names) if name not in (*readout, "global")]

    def gate_of_path(self, path: str) -> str | None:
        """The gate of a path of the gradient; None for a path through no gate."""
        return next((name for name, gate in self.gates.items() if gate.path == path), None)

    def is_slope(self, watched: str) -> bool:
        """Does ``gate_activation`` read the slope of a nonlinearity under this name?"""
        return watched in self.watched and self.watched[watched].slope

    def keeps(self, watched: str) -> bool:
        """Is the watched quantity the factor of the carrier (``keeping``), or the complement of
        that factor?
        """
        return self.keeping is not None and self.keeping.gate == watched

    def saturates(self, watched: str) -> tuple[bool, bool]:
        """Is a value < 0.1 on a flat part of the nonlinearity that passes nothing on, and is a
        value > 0.9? An open gate of the carrier is the carrier path itself, and a slope at its
        largest passes everything.
        """
        complement = self.keeping is not None and self.keeping.complement
        keeps = self.keeps(watched)
        return not (keeps and complement), not (self.is_slope(watched) or (keeps and not complement))
