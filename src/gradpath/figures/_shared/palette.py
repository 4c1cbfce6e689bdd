"""Which colour what has, in every figure: an arm by its cell and its clipping, a gate by its role.

After Okabe & Ito (2008), safe for the colour-blind. What keeps the carrier is blue, the highway
black.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from gradpath.core import layer_names
from gradpath.core.roles import GateRole, Roles

ARMS = ("#D55E00", "#E69F00", "#CC79A7", "#0072B2", "#56B4E9", "#009E73", "#7BCBB1")
"""In the order of the arms that have a colour of their own: warm without gates, cool with."""
SPARE = ("#CC79A7", "#000000", "#8C6BB1", "#882255", "#999933", "#6B4C2A")
"""Of all other arms, in turn."""
GATES: dict[GateRole, str] = {
    "keep": "#0072B2",
    "input": "#E69F00",
    "output": "#009E73",
    "reset": "#E69F00",
    "candidate": "#CC79A7",
    "unit": "#D55E00",
}
OTHER_GATES = ("#8C6BB1", "#882255", "#999933", "#6B4C2A", "#56B4E9", "#777777")
"""Of the second gate of a role, and of those without one, in turn."""
HIGHWAY, UNKNOWN = "#000000", "#777777"
DASHES: Mapping[str | None, Any] = {"input": "-", "recurrent": "--", "bias": ":", "elementwise": "-."}
"""What a parameter multiplies."""


@dataclass(frozen=True)
class Look:
    """Of a line."""

    color: str
    dash: Any


def parameter(roles: Roles, name: str) -> Look:
    """Of a parameter under its full name: the colour of its gate, the dash of its role."""
    declared = roles.parameter(name)
    if declared is None:
        return Look(UNKNOWN, "-")
    return Look(_gates(roles).get(declared.gate or "", UNKNOWN), DASHES.get(declared.role, "-"))


def path(roles: Roles, name: str) -> str:
    """Of a part of the carrier's adjoint."""
    gate = roles.gate_of_path(name)
    reads_h = [key for key, value in roles.gates.items() if value.path]
    return HIGHWAY if name == "highway" else _colors((key, roles.gates[key].role) for key in reads_h).get(gate, UNKNOWN)


def watched(roles: Roles, name: str) -> str:
    """Of what ``gate_activation`` reads, under its name without the layer."""
    gate_roles = [
        (key, "keep" if roles.keeps(key) else roles.gates[reading.gate].role) for key, reading in roles.watched.items()
    ]
    return _colors(gate_roles).get(layer_names.split(name)[1], UNKNOWN)


def counterfactual(roles: Roles, name: str) -> str:
    """Of a counterfactual: ``F=1`` as the gate F, held lower the lighter."""
    gate, _, value = name.partition("=")
    if gate not in roles.watched:
        return HIGHWAY if name == "factual" else OTHER_GATES[0]
    return watched(roles, gate) if value == "1" else lighter(watched(roles, gate))


def lighter(color: str) -> str:
    """The lighter one of a pair."""
    if color == GATES["keep"]:
        return ARMS[4]
    return "#" + "".join(f"{(int(color[k : k + 2], 16) + 255) // 2:02X}" for k in (1, 3, 5))


def _gates(roles: Roles) -> dict[str | None, str]:
    return _colors((name, gate.role) for name, gate in roles.gates.items())


def _colors(gates: Iterable[tuple[str, Any]]) -> dict[str | None, str]:
    """Of each gate that of its role, if it is the first of it and the colour is free; else the next
    of the others.
    """
    colors: dict[str | None, str] = {}
    spare = iter(OTHER_GATES * 100)
    for name, role in gates:
        color = GATES.get(role)
        colors[name] = color if color and color not in colors.values() else next(spare)
    return colors
