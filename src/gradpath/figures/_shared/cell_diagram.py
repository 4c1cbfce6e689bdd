"""Draws the computational graph of one step, with the paths of the gradient between its nodes."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from gradpath.core.drawing import Drawing, Point
from gradpath.core.roles import Roles
from gradpath.figures._shared import arms, palette

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDEST = 9.0
"""Width, in points, of an arrow whose gradient is as large as the reference."""


def draw(axes: "Axes", graph: Drawing, roles: Roles, widths: Mapping[str, float]) -> None:
    """The graph of a cell with its arrows; ``widths`` in 0 … 1 by quantity. Arrows of quantities
    that were not measured are left out.
    """
    axes.set_xlim(-0.6, 11.2)
    axes.set_ylim(-0.6, 6.0)
    axes.axis("off")
    for edge in graph.edges:
        if edge.quantity in widths:
            arrow(axes, edge.points, widths[edge.quantity], _color(roles, edge.path))
    for sign, place in graph.operations:
        _node(
            axes, place, arms.plain(sign), palette.BACKGROUND, palette.OPERATION_NODE, palette.STATE_NODE, (0.58, 0.58)
        )
    for name, gate in graph.gates.items():
        if name in widths:
            color = _color(roles, gate.path)
            _node(
                axes,
                gate.place,
                arms.plain(name),
                color,
                color,
                palette.BACKGROUND,
                (max(0.9, 0.3 + 0.3 * len(name)), 0.9),
            )
    for state in graph.states:
        label = f"${state.name}_{{t-1}}$" if state.enters else f"${state.name}_t$"
        shown = label if state.name.isalnum() else arms.plain(state.name)
        _node(axes, state.place, shown, palette.BACKGROUND, palette.STATE_NODE, palette.STATE_NODE, (1.3, state.height))


def _color(roles: Roles, path: str) -> str:
    """The colour of a path of the gradient; the colour of the states for a path that is no
    gate's.
    """
    return palette.path(roles, path) if path == "highway" or roles.gate_of_path(path) else palette.STATE_NODE


def arrow(axes: "Axes", points: tuple[Point, ...], width: float, color: str) -> None:
    """A line with its head in the middle of the last leg; dotted where the gradient is close to
    nothing (``width`` 0).
    """
    if width <= 0:
        axes.plot(*zip(*points, strict=True), color=color, lw=0.8, ls=":", zorder=1)
        return
    wide = max(0.7, WIDEST * width)
    axes.plot(*zip(*points, strict=True), color=color, lw=wide, solid_joinstyle="round", zorder=2)
    (x0, y0), (x1, y1) = points[-2:]
    marker = ("<" if x1 < x0 else ">") if abs(x1 - x0) >= abs(y1 - y0) else "^" if y1 > y0 else "v"
    fits = wide >= 4  # a head that fits into the line is cut out of it
    size, ink = (0.62 * wide, palette.BACKGROUND) if fits else (3 + 1.2 * wide, color)
    axes.plot((x0 + x1) / 2, (y0 + y1) / 2, marker, color=ink, markersize=size, markeredgewidth=0, zorder=2.5)


def _node(axes: "Axes", place: Point, text: str, face: str, edge: str, ink: str, size: Point) -> None:
    from matplotlib.patches import FancyBboxPatch

    width, height = size
    corner = (place[0] - width / 2, place[1] - height / 2)
    look = f"round,pad=0,rounding_size={min(size) / 2}"
    axes.add_patch(FancyBboxPatch(corner, *size, boxstyle=look, facecolor=face, edgecolor=edge, lw=1.0, zorder=3))
    axes.text(*place, text, ha="center", va="center_baseline", fontsize=7.5, color=ink, zorder=4)
