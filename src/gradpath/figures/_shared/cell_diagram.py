"""The computational graph of one step, drawn: where its nodes lie, and which way the gradient takes between them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gradpath.figures.paths import COLORS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Point = tuple[float, float]
WIDEST = 9.0
"""Points, of an arrow whose gradient is as large as the reference."""
STATE, OPERATION = "#444444", "#888888"


@dataclass(frozen=True)
class Edge:
    """An arrow along ``points``, against the direction of the computation; ``quantity`` says how wide, ``path`` whose
    colour.
    """

    quantity: str
    path: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Graph:
    """One cell: ``states`` and ``gates`` by label with their place, ``operations`` by sign, and the edges."""

    states: Mapping[str, Point]
    gates: Mapping[str, tuple[Point, str]]
    operations: tuple[tuple[str, Point], ...]
    edges: tuple[Edge, ...]


TOP, MIDDLE, LOW, LEFT, RIGHT, OUT = 5.2, 2.75, 0.75, 0.5, 9.5, 10.9
LANES = (1.5, 1.0, 0.5, 0.0)
"""Heights at which what the gates send back runs to H_{t-1}, one below the other."""


def _back(path: str, x: float, lane: float) -> Edge:
    return Edge(path, path, ((x, MIDDLE), (x, lane), (LEFT, lane)))


LSTM = Graph(
    states={"$C_{t-1}$": (LEFT, TOP), "$C_t$": (RIGHT, TOP), "$H_{t-1}$": (LEFT, LOW), "$H_t$": (RIGHT, LOW)},
    gates={
        "F": ((2.6, MIDDLE), "forget_gate"),
        "I": ((4.3, MIDDLE), "input_gate"),
        "G": ((5.9, MIDDLE), "internal_node"),
        "O": ((7.6, MIDDLE), "output_gate"),
    },
    operations=(("×", (2.6, TOP)), ("+", (5.1, TOP)), ("×", (5.1, 4.1)), ("×", (RIGHT, MIDDLE))),
    edges=(
        Edge("arrives", "highway", ((OUT, TOP), (RIGHT, TOP))),
        Edge("H", "total", ((OUT, LOW), (RIGHT, LOW))),
        Edge("H", "total", ((RIGHT, LOW), (RIGHT, MIDDLE))),
        Edge("through_H", "total", ((RIGHT, MIDDLE), (RIGHT, TOP))),
        Edge("carrier", "highway", ((RIGHT, TOP), (5.1, TOP))),
        Edge("carrier", "highway", ((5.1, TOP), (2.6, TOP))),
        Edge("highway", "highway", ((2.6, TOP), (LEFT, TOP))),
        Edge("F", "forget_gate", ((2.6, TOP), (2.6, MIDDLE))),
        Edge("I", "input_gate", ((5.1, 4.1), (4.3, MIDDLE))),
        Edge("G", "internal_node", ((5.1, 4.1), (5.9, MIDDLE))),
        Edge("carrier", "highway", ((5.1, TOP), (5.1, 4.1))),
        Edge("O", "output_gate", ((RIGHT, MIDDLE), (7.6, MIDDLE))),
        _back("forget_gate", 2.6, LANES[0]),
        _back("input_gate", 4.3, LANES[1]),
        _back("internal_node", 5.9, LANES[2]),
        _back("output_gate", 7.6, LANES[3]),
        Edge("through_H_before", "total", ((LEFT, LOW), (LEFT, TOP))),
    ),
)
GRU = Graph(
    states={"$H_{t-1}$": (LEFT, TOP), "$H_t$": (RIGHT, TOP)},
    gates={
        "Z": ((2.6, MIDDLE), "update_gate"),
        "R": ((4.9, MIDDLE), "reset_gate"),
        "N": ((7.2, MIDDLE), "candidate"),
    },
    operations=(("×", (2.6, TOP)), ("+", (7.2, TOP))),
    edges=(
        Edge("arrives", "highway", ((OUT, TOP), (RIGHT, TOP))),
        Edge("carrier", "highway", ((RIGHT, TOP), (7.2, TOP))),
        Edge("carrier", "highway", ((7.2, TOP), (2.6, TOP))),
        Edge("highway", "highway", ((2.6, TOP), (LEFT, TOP))),
        Edge("Z", "update_gate", ((2.6, TOP), (2.6, MIDDLE))),
        Edge("N", "candidate", ((7.2, TOP), (7.2, MIDDLE))),
        Edge("R", "reset_gate", ((7.2, MIDDLE), (4.9, MIDDLE))),
        _back("update_gate", 2.6, LANES[0]),
        _back("reset_gate", 4.9, LANES[1]),
        _back("candidate", 7.2, LANES[2]),
        Edge("through_H_before", "total", ((LEFT, LANES[2]), (LEFT, TOP))),
    ),
)


def draw(axes: "Axes", graph: Graph, widths: Mapping[str, float]) -> None:
    """The graph with its arrows; ``widths`` in 0 … 1 by quantity. A gate that the cell does not have is left out."""
    axes.set_xlim(-0.6, 11.2)
    axes.set_ylim(-0.6, 6.0)
    axes.axis("off")
    for edge in graph.edges:
        if edge.quantity in widths:
            arrow(axes, edge.points, widths[edge.quantity], COLORS.get(edge.path, STATE))
    for sign, place in graph.operations:
        _node(axes, place, sign, "white", OPERATION, STATE, (0.58, 0.58))
    for name, (place, path) in graph.gates.items():
        if name in widths:
            _node(axes, place, name, COLORS[path], COLORS[path], "white", (0.9, 0.9))
    for name, place in graph.states.items():
        # What reads H_{t-1} ends at it, lane by lane.
        _node(axes, place, name, "white", STATE, STATE, (1.3, 2.1 if place == (LEFT, LOW) else 1.0))


def arrow(axes: "Axes", points: tuple[Point, ...], width: float, color: str) -> None:
    """A line with its head in the middle of the last leg; dotted where there is next to nothing (``width`` 0)."""
    if width <= 0:
        axes.plot(*zip(*points, strict=True), color=color, lw=0.8, ls=":", zorder=1)
        return
    wide = max(0.7, WIDEST * width)
    axes.plot(*zip(*points, strict=True), color=color, lw=wide, solid_joinstyle="round", zorder=2)
    (x0, y0), (x1, y1) = points[-2:]
    marker = ("<" if x1 < x0 else ">") if abs(x1 - x0) >= abs(y1 - y0) else "^" if y1 > y0 else "v"
    inside = wide >= 4  # a head that fits into the line is cut out of it
    size, ink = (0.62 * wide, "white") if inside else (3 + 1.2 * wide, color)
    axes.plot((x0 + x1) / 2, (y0 + y1) / 2, marker, color=ink, markersize=size, markeredgewidth=0, zorder=2.5)


def _node(axes: "Axes", place: Point, text: str, face: str, edge: str, ink: str, size: Point) -> None:
    from matplotlib.patches import FancyBboxPatch

    width, height = size
    corner = (place[0] - width / 2, place[1] - height / 2)
    look = f"round,pad=0,rounding_size={min(size) / 2}"
    axes.add_patch(FancyBboxPatch(corner, *size, boxstyle=look, facecolor=face, edgecolor=edge, lw=1.0, zorder=3))
    axes.text(*place, text, ha="center", va="center_baseline", fontsize=7.5, color=ink, zorder=4)
