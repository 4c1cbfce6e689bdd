"""The kinds of stored numbers, and how each is drawn and named: finite, a true zero, an overflow,
no number, or missing.

The five kinds are never confused. A true zero (-inf of a log10 norm) is a cross on the floor, or a
grey cell in a map. +inf has left the range of floating point; NaN is the result of an undefined
operation (∞ − ∞). Nothing is drawn where nothing was read (a masked value). Every figure ends with
`common.caption`, which calls `finish`: it marks all values of every line that are not finite, so
that a figure cannot hide a divergence; it puts a dot on a value whose neighbours are both missing;
and it says above the figure which seeds diverged, and when. The module `stages` decides which
reading stands for the trained network.
"""

import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gradpath.figures._shared import palette, stages

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas
    from matplotlib.image import AxesImage
    from matplotlib.lines import Line2D

    from gradpath.figures._shared.arms import Group


class Kind(NamedTuple):
    """A kind of values that are not finite: its words in the legend, the marks at the upper and at
    the right edge of a panel and their height, and the colour in a map.
    """

    words: str
    test: Callable[[Any], Any]
    marker: str
    side_marker: str
    height: float
    filled: bool
    color: str


OVERFLOW = Kind("overflow (+∞)", np.isposinf, "^", ">", 0.985, True, palette.OVERFLOW)
NO_NUMBER = Kind("no number (NaN)", np.isnan, "s", "s", 0.93, False, palette.NO_NUMBER)
KINDS = (OVERFLOW, NO_NUMBER)


def title(axes: "Axes", text: str) -> None:
    """Adds a remark to the title of a panel; does nothing where it is empty."""
    if not text:
        return
    heading = axes.get_title()
    if heading:  # the title keeps its look; the remark becomes its last lines
        axes.set_title(f"{heading}\n{text}", fontsize=8.5, color=axes.title.get_color())
    else:
        axes.set_title(text, fontsize=8, color=palette.DIVERGED)


def note(axes: "Axes", text: str) -> None:
    """Adds a remark inside a panel."""
    if not text:
        return
    box = {"facecolor": palette.BACKGROUND, "alpha": 0.8, "edgecolor": "none", "pad": 1.0}
    look: dict[str, Any] = {"transform": axes.transAxes, "va": "bottom", "fontsize": 7.5, "color": palette.DIVERGED}
    axes.text(0.03, 0.1, text, bbox=box, zorder=7, **look)


def empty_panel(axes: "Axes", group: "Group") -> None:
    """The words in a panel that has nothing finite to draw."""
    text = stages.lost(group).replace(": ", ":\n")
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", fontsize=9, color=palette.DIVERGED)


def marks(axes: "Axes", x: ArrayLike, y: ArrayLike, color: Any) -> None:
    """Marks points that are not finite at the edges of a panel: above their x, or beside their
    y.
    """
    x_values: NDArray = np.ma.filled(np.ma.asarray(x, dtype=float), -np.inf)
    y_values: NDArray = np.ma.filled(np.ma.asarray(y, dtype=float), -np.inf)
    for values, positions, transform, sideways in (
        (y_values, x_values, axes.get_xaxis_transform(), False),
        (x_values, y_values, axes.get_yaxis_transform(), True),
    ):
        for kind in KINDS:
            mask = kind.test(values) & np.isfinite(positions)
            if mask.any():
                edge = np.full(int(mask.sum()), kind.height)
                line = axes.plot(
                    *((edge, positions[mask]) if sideways else (positions[mask], edge)),
                    kind.side_marker if sideways else kind.marker,
                    transform=transform,
                    color=color,
                    markerfacecolor=color if kind.filled else palette.BACKGROUND,
                    markersize=5,
                    clip_on=False,
                    zorder=6,
                    label=f"_{kind.words}",
                )
                line[0].set_gid(kind.words)


def image(axes: "Axes", values: NDArray, **look: Any) -> "AxesImage":
    """A heat map in which true zeros have the ``bad`` colour of the colour map, and values that are
    not finite have the colours of their kinds.
    """
    hidden = np.ma.getmaskarray(np.ma.asarray(values))
    drawn = axes.imshow(np.ma.masked_invalid(values), **look)
    placed = {key: value for key, value in look.items() if key in ("aspect", "origin", "extent", "interpolation")}
    for kind in KINDS:
        mask = kind.test(np.ma.getdata(values)) & ~hidden
        if mask.any():
            overlay = axes.imshow(np.where(mask[..., None], _rgba(kind.color), 0.0), **placed)
            overlay.set_gid(kind.words)
    return drawn


def cells(axes: "Axes", x: NDArray, y: NDArray, values: NDArray) -> None:
    """Draws the cells (y, x) of a mesh that are not finite, over the mesh."""
    from matplotlib.colors import ListedColormap

    for kind in KINDS:
        mask = kind.test(values)
        if mask.any():
            cover = np.ma.masked_equal(mask.astype(float), 0.0)
            mesh = axes.pcolormesh(x, y, cover, cmap=ListedColormap([kind.color]), shading="nearest", zorder=1)
            mesh.set_gid(kind.words)


def _rgba(color: str) -> NDArray:
    from matplotlib.colors import to_rgba

    return np.array(to_rgba(color))


def finish(canvas: "Canvas", groups: Sequence["Group"]) -> None:
    """Marks values that are not finite in every line, explains the marks, and says above the figure
    which seeds diverged.
    """
    for axes in canvas.axes:
        _mark_lines(axes)
    height, base = canvas.get_figheight(), 1.005
    if handles := _handles(canvas):
        look: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0.0, 1.0), "ncols": 4, "fontsize": 9}
        canvas.legend(handles=handles, title="not finite:", title_fontsize=9, **look)
        base = 1 + 0.55 / height
    if texts := stages.divergences(groups):
        width = int(canvas.get_figwidth() * 12)
        lines = [line for text in texts[:6] for line in textwrap.wrap(text, width)]
        lines += [f"… and {len(texts) - 6} groups more"] * (len(texts) > 6)
        look = {"ha": "left", "va": "bottom", "fontsize": 10, "fontweight": "bold", "color": palette.DIVERGED}
        canvas.text(0.01, base, "\n".join(lines), **look)


def _mark_lines(axes: "Axes") -> None:
    """Marks the points of every line that is drawn in data coordinates; says so where no point of a
    panel is finite.
    """
    if axes.name == "3d":
        return
    finite, bad = False, False
    for line in list(axes.lines):
        if line.get_transform() != axes.transData or line.get_gid() is not None:
            continue
        x, y = line.get_data(orig=True)
        try:
            points = np.ma.asarray([np.ma.asarray(x, dtype=float), np.ma.asarray(y, dtype=float)])
        except (TypeError, ValueError):  # dates or words on an axis
            continue
        present = ~np.ma.getmaskarray(points).any(axis=0)
        valid = np.isfinite(np.ma.getdata(points)).all(axis=0)
        finite |= bool((valid & present).any())
        _dots(axes, line, np.ma.getdata(points), valid & present)
        bad |= bool((~valid & present).any())
        if (~valid & present).any():
            marks(axes, np.ma.array(points[0], mask=~present), np.ma.array(points[1], mask=~present), line.get_color())
    if bad and not finite and not axes.texts:
        look: dict[str, Any] = {"transform": axes.transAxes, "ha": "center", "va": "center", "fontsize": 9}
        axes.text(0.5, 0.5, "not finite", color=palette.DIVERGED, **look)


def _dots(axes: "Axes", line: "Line2D", points: NDArray, valid: NDArray) -> None:
    """A dot on each point of a line that has no neighbour, as before a divergence at the second
    step or between true zeros. A line of one point would be invisible.
    """
    padded = np.pad(valid, 1)
    isolated = valid & ~padded[:-2] & ~padded[2:]
    if isolated.any() and line.get_marker() == "None" and line.get_linestyle() != "None":
        look: dict[str, Any] = {"color": line.get_color(), "alpha": line.get_alpha(), "zorder": line.get_zorder()}
        axes.plot(*points[:, isolated], ".", markersize=3 + 2 * line.get_linewidth(), label="_alone", **look)


def _handles(canvas: "Canvas") -> list[Any]:
    """A legend entry for every kind of mark and of cell in the figure."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = []
    for kind in KINDS:
        drawn = canvas.findobj(lambda artist, kind=kind: artist.get_gid() == kind.words)  # type: ignore[misc]
        if any(isinstance(artist, Line2D) for artist in drawn):
            face = palette.KIND_SAMPLE if kind.filled else palette.BACKGROUND
            handles.append(
                Line2D([], [], ls="", marker=kind.marker, color=palette.KIND_SAMPLE, mfc=face, label=kind.words)
            )
        if any(not isinstance(artist, Line2D) for artist in drawn):
            handles.append(Patch(facecolor=kind.color, label=kind.words))
    return handles
