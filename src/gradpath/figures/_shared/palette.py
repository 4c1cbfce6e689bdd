"""Every colour of the figures: of an arm by its cell and its clipping, of a gate by its role, of
everything else by name. A cell declares the colours of its own arms (``Cell.colors``).

The colours are those of Okabe & Ito (2008), safe for the colour-blind. A gate that keeps the
carrier is blue, the highway black.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from gradpath.core import layer_names
from gradpath.core.roles import GateRole, Roles

ARMS = ("#D55E00", "#E69F00", "#CC79A7", "#0072B2", "#56B4E9", "#009E73", "#7BCBB1")
"""The colours that gradpath's cells declare, in the order of the arms: warm without gates, cool
with gates.
"""
SPARE = ("#CC79A7", "#000000", "#8C6BB1", "#882255", "#999933", "#6B4C2A")
"""The colours of all other arms, in turn."""
GATES: dict[GateRole, str] = {
    "keep": "#0072B2",
    "input": "#E69F00",
    "output": "#009E73",
    "reset": "#E69F00",
    "candidate": "#CC79A7",
    "unit": "#D55E00",
}
OTHER_GATES = ("#8C6BB1", "#882255", "#999933", "#6B4C2A", "#56B4E9", "#777777")
"""The colours of a second gate of the same role and of gates without a role, in turn."""
HIGHWAY, UNKNOWN = "#000000", "#777777"

BACKGROUND, OUTLINE = "#FFFFFF", "#000000"
TEXT = "#333333"
"""Words outside the curves, and legend samples beside them."""
REMARK = "#555555"
"""Words that explain a line within a panel."""
REFERENCE = "#444444"
"""Lines at a reference value and their labels: chance, ``max_norm``, a cosine of 1."""
MUTED = "#777777"
"""Lines and words that must not distract: zero, the longest lag, an empty panel."""

STAGE_SAMPLE, CURVE_SAMPLE, KIND_SAMPLE = "#555555", "#777777", "#444444"
"""Legend samples that show a dash or a marker, where the curves have several colours."""

TRUE_ZERO, TRUE_ZERO_IN_CREDIT = "#9A9A9A", "#D4D4D4"
"""Fields of a map where the gradient is a true zero: lighter in ``credit``, where they are half of
the map.
"""
OVERFLOW, NO_NUMBER = "#000000", "#FF3FD0"
"""Marks of values that are not finite."""
DIVERGED = "#A00020"
"""Words and hatches that say that training diverged."""

THEORY, THEORY_OF_ARM = "#D55E00", "#333333"
"""A predicted line; the second beside curves that have the colour of their arm."""
SIGMA_MAX_BOUND, SPECTRAL_RADIUS, MEAN_FIELD = "#009E73", "#CC79A7", "#0072B2"
MEASURED = GATES["unit"]
TASK_LAG, LONGEST_LAG = "#D55E00", "#AAAAAA"
"""The lag of the task in a map of the gradient; the exponent that reaches its longest lag."""
TOTAL, REST = "#BBBBBB", "#8C6BB1"
"""The total adjoint of the carrier, and its part beside the carousel."""
PLAIN_CELL = "#9A9A9A"
"""The cell without ablation, behind each of the others."""
RAW_NORM, FIT_RANGE = "#888888", "#888888"
AT_CHANCE, BELOW_CHANCE, SOLVED = "#F3E3D7", "#7FB2D6", "#0B4F8A"
STATE_NODE, OPERATION_NODE = "#444444", "#888888"
"""Nodes of a cell's diagram."""

DASHES: Mapping[str | None, Any] = {"input": "-", "recurrent": "--", "bias": ":", "elementwise": "-."}
"""The dash of a parameter, by the operand that the parameter multiplies."""


@dataclass(frozen=True)
class Look:
    """Colour and dash of a line."""

    color: str
    dash: Any


def parameter(roles: Roles, name: str) -> Look:
    """The look of a parameter by its full name: the colour of its gate, the dash of its role."""
    declared = roles.parameter(name)
    if declared is None:
        return Look(UNKNOWN, "-")
    return Look(_gates(roles).get(declared.gate or "", UNKNOWN), DASHES.get(declared.role, "-"))


def path(roles: Roles, name: str) -> str:
    """The colour of one part of the carrier's adjoint."""
    gate = roles.gate_of_path(name)
    reads_h = [key for key, value in roles.gates.items() if value.path]
    return HIGHWAY if name == "highway" else _colors((key, roles.gates[key].role) for key in reads_h).get(gate, UNKNOWN)


def watched(roles: Roles, name: str) -> str:
    """The colour of an activation that ``gate_activation`` reads, by its name without layer."""
    gate_roles = [
        (key, "keep" if roles.keeps(key) else roles.gates[reading.gate].role) for key, reading in roles.watched.items()
    ]
    return _colors(gate_roles).get(layer_names.split(name)[1], UNKNOWN)


def counterfactual(roles: Roles, name: str) -> str:
    """The colour of a counterfactual: that of the gate F for ``F=1``, lighter for a lower value."""
    gate, _, value = name.partition("=")
    if gate not in roles.watched:
        return HIGHWAY if name == "factual" else OTHER_GATES[0]
    return watched(roles, gate) if value == "1" else lighter(watched(roles, gate))


def lighter(color: str) -> str:
    """A lighter shade of the colour, for the second of a pair."""
    if color == GATES["keep"]:
        return ARMS[4]
    return "#" + "".join(f"{(int(color[k : k + 2], 16) + 255) // 2:02X}" for k in (1, 3, 5))


def _gates(roles: Roles) -> dict[str | None, str]:
    return _colors((name, gate.role) for name, gate in roles.gates.items())


def _colors(gates: Iterable[tuple[str, Any]]) -> dict[str | None, str]:
    """The colour of each gate: that of its role for the first gate of the role, if no gate has it
    yet; otherwise the next of ``OTHER_GATES``.
    """
    colors: dict[str | None, str] = {}
    spare = iter(OTHER_GATES * 100)
    for name, role in gates:
        color = GATES.get(role)
        colors[name] = color if color and color not in colors.values() else next(spare)
    return colors
