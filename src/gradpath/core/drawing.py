"""The drawing of a cell's step, as data alone, in the units of a panel 11 wide and 6 high."""

from dataclasses import dataclass

Point = tuple[float, float]
TOP, MIDDLE, BOTTOM, LEFT, RIGHT, OUT = 5.2, 2.75, 0.75, 0.5, 9.5, 10.9
"""Heights of the carrier, the gates and the output; x of the entering states, of the leaving
states, and of the right end of the panel, from which the gradients of the leaving states come.
"""
MAX_COORDINATE = 100.0
"""Largest coordinate that is accepted."""
LANES = (1.5, 1.0, 0.5, 0.0)
"""Heights of the lines along which the gates' gradients run to H_{t-1}."""


@dataclass(frozen=True)
class DrawnState:
    """A state as it enters the step (t − 1) or as it leaves the step (t)."""

    name: str
    enters: bool
    place: Point
    height: float = 1.0


@dataclass(frozen=True)
class DrawnGate:
    """A gate, drawn where the run has measured it, in the colour of its ``path``."""

    place: Point
    path: str


@dataclass(frozen=True)
class Edge:
    """An arrow along ``points``, against the direction of the computation. ``quantity`` determines
    its width: a node of ``node_grad_norm``, a part of ``path_grad_norm``, or one of ``arrives``,
    ``carrier``, ``through_H`` and ``through_H_before``. ``path`` determines its colour.
    """

    quantity: str
    path: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Drawing:
    """The graph of one step: its states, its gates by label, the signs of its operations, and the
    edges.
    """

    states: tuple[DrawnState, ...]
    gates: dict[str, DrawnGate]
    operations: tuple[tuple[str, Point], ...]
    edges: tuple[Edge, ...]

    def __post_init__(self) -> None:
        if any(len(edge.points) < 2 for edge in self.edges):
            raise ValueError("an arrow has not two points")
        places = [state.place for state in self.states] + [gate.place for gate in self.gates.values()]
        places += [place for _, place in self.operations] + [point for edge in self.edges for point in edge.points]
        if any(abs(x) > MAX_COORDINATE or abs(y) > MAX_COORDINATE for x, y in places):
            raise ValueError("a place lies far outside the panel")


def sends_back(path: str, x: float, lane: float) -> Edge:
    """The edge of the gradient from a gate at ``x`` to H_{t-1}, down and along its lane."""
    return Edge(path, path, ((x, MIDDLE), (x, lane), (LEFT, lane)))
