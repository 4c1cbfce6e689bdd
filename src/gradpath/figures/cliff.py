"""The cliff: the error surface of one unit, and the trajectories of training on it with and without
clipping.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gradpath.figures import Figure
from gradpath.figures._shared import common, finite, palette, stages
from gradpath.figures._shared.loss_plane import (
    Plane,
    Trajectory,
    arms_of,
    pieces,
    plane_of,
    steepest_of,
    trajectory_of,
    wall_of,
)
from gradpath.tracking.loader import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

FAINTEST = -3.0
"""log10 of the smallest loss that the colours of the map distinguish."""
FLOOR = -6.0
"""log10 of the smallest gradient norm that is drawn."""
BEYOND = 15
"""Steps after the largest gradient that are drawn on the surface; more would hide it."""
FAR = 1e12
"""Points whose coordinates exceed this are not drawn, because the renderer cannot."""
LOWEST = -8.0
"""log10 of the smallest loss after training that is distinguished from 0."""
START: dict[str, Any] = {"color": palette.BACKGROUND, "markeredgecolor": palette.OUTLINE, "markersize": 6, "zorder": 4}


@dataclass
class Cliff(Figure):
    """Above: the surface as Pascanu et al. (2013) draw it in their figure 6, and as a map, both
    with the trajectories of the one start and learning rate whose unclipped gradient is the largest
    of all. Below: the gradient norm along these trajectories, and the final loss of every run.
    """

    needs = ("parameter_value", "loss_surface", "grad_norm")

    def draw(self, runs: Sequence[Run]) -> "Canvas":
        common.theme()

        groups = common.groups(runs)
        plane = plane_of(runs)
        arms = arms_of(runs)
        trajectories = steepest_of([trajectory_of(arm, run, plane) for arm in arms for run in arm.runs])
        canvas = common.new_canvas(figsize=(11.4, 8.4))
        grid = canvas.add_gridspec(2, 2, height_ratios=(1.45, 1), width_ratios=(1.1, 1), hspace=0.27, wspace=0.17)
        _surface(canvas.add_subplot(grid[0, 0], projection="3d", computed_zorder=False), plane, trajectories)
        _map(canvas.add_subplot(grid[0, 1]), plane, trajectories)
        _norms(canvas.add_subplot(grid[1, 0]), trajectories)
        _outcomes(canvas.add_subplot(grid[1, 1]), arms)
        canvas.subplots_adjust(bottom=0.07)
        common.caption(canvas, _caption(groups, trajectories, plane), arms)
        return canvas


def _surface(axes: Any, plane: Plane, trajectories: list[Trajectory]) -> None:
    mesh = np.meshgrid(plane.x, plane.y)
    look = {"cmap": "Blues_r", "vmin": -0.15, "linewidth": 0, "antialiased": False, "zorder": 0, "rasterized": True}
    valid = np.isfinite(plane.loss)
    top = float(np.max(plane.loss, where=valid, initial=0.0))
    axes.plot_surface(*mesh, np.where(valid, plane.loss, np.nan), rcount=len(plane.y), ccount=len(plane.x), **look)
    for trajectory in trajectories:
        for segment, exit_point in pieces(trajectory.points[: trajectories[0].steepest + BEYOND], plane.box):
            piece = _on_surface(np.vstack([segment, exit_point]) if exit_point is not None else segment, top)
            axes.plot(*piece.T, **trajectory.look | {"lw": 0.7}, marker=".", markersize=3.5)
            if exit_point is not None:
                axes.plot(*piece[-1][:, None], marker=(3, 0, 0), color=trajectory.group.color, markersize=9, zorder=3)
    start = _on_surface(trajectories[0].points[:1], top)
    axes.plot(*start.T, "o", **START)
    axes.view_init(elev=34, azim=72)  # from the low side, so that the wall is visible; w then runs to the left
    axes.invert_xaxis()
    axes.set_xlabel(_label(trajectories[0].run, plane.names[0]))
    axes.set_ylabel(_label(trajectories[0].run, plane.names[1]))
    axes.set_zlabel("loss", labelpad=6)
    if 0 < top < 3:
        axes.set_zticks(np.arange(0, top, 0.1))
    axes.set_box_aspect((1.2, 1.1, 0.7), zoom=1.1)
    axes.set_title(f"the error surface, and the first {trajectories[0].steepest + BEYOND} steps")


def _on_surface(points: NDArray, top: float) -> NDArray:
    """Points (n, 3); those whose loss is not finite, or far above the surface, are moved to the
    height of the surface.
    """
    far = ~(points[:, 2] < 1e3 * max(top, 1e-3))
    return np.column_stack([points[:, :2], np.where(far, top, points[:, 2])])


def _map(axes: "Axes", plane: Plane, trajectories: list[Trajectory]) -> None:
    """The map with all steps, and the inset with those near the largest gradient."""
    bar = axes.figure.colorbar(_paint(axes, plane, trajectories), ax=axes, pad=0.02)
    bar.set_label("loss")
    common.decades(bar.ax.yaxis)
    if (wall := wall_of(trajectories[0].run, plane)) is not None:
        axes.plot(*wall, color=palette.OUTLINE, lw=1, linestyle=":", zorder=1)
        w, b = wall[:, int(0.8 * wall.shape[1])]
        axes.text(w - 0.08, b - 0.05, "H$_0$ between\nthe two basins", ha="right", va="top", fontsize=8)
    for trajectory in trajectories:
        exit_point = None
        for segment, exit_point in pieces(trajectory.points, plane.box):
            if exit_point is not None:
                arrow = {"arrowstyle": "-|>", "color": trajectory.group.color, "lw": 1.1, "mutation_scale": 14}
                axes.annotate("", tuple(exit_point[:2]), tuple(segment[-1, :2]), arrowprops=arrow)
        if exit_point is not None:  # the trajectory does not come back
            x, y = (
                f"{_symbol(trajectory.run, n)} = {v:,.4g}"
                for n, v in zip(plane.names, trajectory.points[-1, :2], strict=True)
            )
            look: dict[str, Any] = {"textcoords": "offset points", "ha": "right", "va": "top", "fontsize": 8}
            destination = f"to {x}, {y}" if np.isfinite(trajectory.points[-1, :2]).all() else "diverged"
            axes.annotate(destination, tuple(exit_point[:2]), (-12, -8), color=trajectory.group.color, **look)
    axes.plot(*trajectories[0].points[0, :2], "o", **START)
    axes.set_xlim(*plane.box[:, 0])
    axes.set_ylim(*plane.box[:, 1])
    axes.set_xlabel(_label(trajectories[0].run, plane.names[0]))
    axes.set_ylabel(_label(trajectories[0].run, plane.names[1]))
    axes.set_title("the same from above, all steps")
    inset = axes.inset_axes((0.04, 0.05, 0.42, 0.4), xticks=[], yticks=[])
    _paint(inset, plane, trajectories)
    window = slice(max(trajectories[0].steepest - 8, 0), trajectories[0].steepest + 12)
    points = np.vstack([t.points[window, :2] for t in trajectories[-1:]])
    points = points[(np.abs(points) < FAR).all(axis=1)]
    points = points if len(points) and np.ptp(points, axis=0).all() else plane.box
    middle, half = (points.max(axis=0) + points.min(axis=0)) / 2, 0.65 * np.ptp(points, axis=0)
    inset.set_xlim(middle[0] - half[0], middle[0] + half[0])
    inset.set_ylim(middle[1] - half[1], middle[1] + half[1])
    axes.indicate_inset_zoom(inset, edgecolor=palette.OUTLINE)


def _paint(axes: "Axes", plane: Plane, trajectories: list[Trajectory]) -> Any:
    """The map with the trajectories on it."""
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        height = np.maximum(np.log10(plane.loss), FAINTEST)
    axes.grid(False)
    for trajectory in trajectories:
        places = trajectory.points[:, :2]
        visible = places if (np.abs(places) < FAR).all() else np.ma.array(places, mask=~(np.abs(places) < FAR))
        axes.plot(*visible.T, **trajectory.look, marker=".", markersize=3.5)
    valid = np.isfinite(height)
    drawn = height if valid.all() else np.where(valid, height, np.max(height, where=valid, initial=FAINTEST))
    finite.cells(axes, plane.x, plane.y, plane.loss)
    return axes.pcolormesh(plane.x, plane.y, drawn, cmap="Blues_r", shading="gouraud", rasterized=True)


def _norms(axes: "Axes", trajectories: list[Trajectory]) -> None:
    for trajectory in trajectories:
        steps, floor = np.arange(len(trajectory.norm)), np.full(len(trajectory.norm), FLOOR)
        low = trajectory.norm < FLOOR
        axes.plot(steps, np.maximum(trajectory.norm, FLOOR), **trajectory.look, label=trajectory.group.label)
        axes.plot(steps[low][::25], floor[low][::25], "v", color=trajectory.group.color, markersize=4, clip_on=False)
        if (limit := trajectory.run.config["clip"].get("max_norm")) is not None:
            axes.axhline(np.log10(limit), color=palette.REFERENCE, lw=1, linestyle=":")
            look: dict[str, Any] = {"ha": "right", "va": "top", "fontsize": 8, "color": palette.REFERENCE}
            axes.text(len(steps), np.log10(limit), "max_norm ", **look)
    common.decades(axes.yaxis)
    axes.set_xlabel("training step")
    axes.set_ylabel("gradient norm")
    axes.set_title("along these trajectories")
    axes.legend(fontsize=8.5)


def _outcomes(axes: "Axes", arms: list[common.Group]) -> None:
    """Loss after training of every run against its learning rate, the arms side by side; filled
    where solved.
    """
    seeds = max(run.seed for arm in arms for run in arm.runs)
    for position, arm in enumerate(arms):
        offset = 0.1 * (position - (len(arms) - 1) / 2)
        for solved, face in ((True, arm.color), (False, "none")):
            runs = [run for run in arm.runs if stages.solved(run) == solved]
            rates = [np.log10(run.config["optimizer"]["lr"]) + offset + 0.012 * (run.seed - seeds / 2) for run in runs]
            axes.plot(rates, [_final(run) for run in runs], "o", color=arm.color, markerfacecolor=face, markersize=5)
    common.decades(axes.yaxis)
    learning_rates = sorted({run.config["optimizer"]["lr"] for arm in arms for run in arm.runs})
    axes.set_xticks(np.log10(learning_rates), [f"{rate:g}" for rate in learning_rates])
    axes.set_xlabel("learning rate")
    stopped = any(stages.stopped(run) is not None for arm in arms for run in arm.runs)
    axes.set_ylabel("loss at the last step" if stopped else "loss after training")
    axes.set_title("every run; filled: solved")


def _final(run: Run) -> float:
    """log10 of the last loss, but not below LOWEST; inf and NaN are unchanged."""
    loss = float(run.loss.values[-1])
    return float(np.log10(max(loss, 10.0**LOWEST))) if np.isfinite(loss) else loss


def _symbol(run: Run, name: str) -> str:
    """The symbol that Pascanu et al. use: w and b of the one unit."""
    parameter = run.roles.parameter(name)
    if parameter is None or run.roles.recurrence is None:
        return common.plain(name)
    return {"recurrent": "w", "bias": "b"}.get(parameter.role, common.plain(name))


def _label(run: Run, name: str) -> str:
    symbol = _symbol(run, name)
    return f"{symbol}  ({name})" if symbol in ("w", "b") else symbol


def _caption(groups: list[common.Group], trajectories: list[Trajectory], plane: Plane) -> str:
    x, y = plane.names
    fates = []
    for trajectory in trajectories:
        largest = trajectory.steepest
        end, outcome = trajectory.points[-1], "solved" if stages.solved(trajectory.run) else "not solved"
        ending = f"ends at {x} = {end[0]:,.4g}, {y} = {end[1]:,.4g} with loss {end[2]:.2g}"
        if (stopped := stages.stopped(trajectory.run)) is not None:
            ending = f"diverges at step {stopped}"
        elif not np.isfinite(end).all():
            ending = "ends at no finite place"
        size = _number(float(trajectory.norm[largest]))
        fates.append(f"{trajectory.group.label}: largest gradient norm {size} at step {largest}, {ending}, {outcome}")
    counts = [
        f"{arm.label} {sum(map(stages.solved, arm.runs))} of {len(arm.runs)}"
        for arm in arms_of([run for group in groups for run in group.runs])
    ]
    return (
        f"{common.setting_text(groups)}; {common.seeds(groups)} a learning rate, each another start. "
        f"One start (white) at lr {trajectories[0].run.config['optimizer']['lr']:g} is drawn as a trajectory, the one "
        "whose unclipped gradient is the largest of all; solid without, dashed with clipping; an arrow leaves the "
        f"frame. {'. '.join(fates)}. Solved, of all: {', '.join(counts)}; losses below 1e{LOWEST:g} and gradients "
        f"below 1e{FLOOR:g} (triangles) are drawn there. Theory: "
        "the wall stands where the initial state lies on the boundary between two basins of attraction; a step down "
        "it is as long as the gradient is steep, unless clipped (Pascanu et al. 2013, sections 2.2, 2.3, figure 6)."
    )


def _number(decades: float) -> str:
    """A norm as text, from its log10, which may be outside the range of float64."""
    if not np.isfinite(decades):
        return "not finite" if not decades < 0 else "0"
    if decades > 300:
        return f"10^{decades:.1f}"
    value = 10**decades
    return f"{value:,.0f}" if 10 <= value < 1e6 else f"{value:.2g}"
