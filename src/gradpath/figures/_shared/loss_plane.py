"""Trajectories of training on a plane of two parameters, from stored runs; the figure ``cliff``
draws them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradpath.core.scaled import combined
from gradpath.figures import CannotDrawError
from gradpath.figures._shared import common, palette
from gradpath.figures._shared.arms import declared_color
from gradpath.tracking.loader import Run


@dataclass(frozen=True)
class Plane:
    """The stored surface: the values of x and of y, ``loss`` (y, x), and the names of x and y."""

    names: tuple[str, ...]
    x: NDArray
    y: NDArray
    loss: NDArray

    @property
    def box(self) -> NDArray:
        """[[smallest x, smallest y], [largest x, largest y]]."""
        return np.array([[self.x[0], self.y[0]], [self.x[-1], self.y[-1]]])


@dataclass(frozen=True)
class Trajectory:
    """A run on the plane: ``points`` (steps, 3) of x, y and loss, and log10 of the gradient norm
    before clipping.
    """

    group: common.Group
    run: Run
    points: NDArray
    norm: NDArray

    @property
    def look(self) -> dict[str, Any]:
        """The look of the line: an unclipped line is thin and on top, so that both are visible
        where they coincide.
        """
        clipped = self.group.dash == "--"
        return {
            "color": self.group.color,
            "linestyle": self.group.dash,
            "lw": 1.6 if clipped else 1.1,
            "zorder": 3 - clipped,
        }

    @property
    def steepest(self) -> int:
        """The step of the largest gradient."""
        return int(np.argmax(np.where(np.isfinite(self.norm), self.norm, -np.inf)))


def arms_of(runs: Sequence[Run]) -> list[common.Group]:
    """One group for each arm, whatever else its runs differ in, because the learning rate has an
    axis of its own here.
    """
    by_arm: dict[str, list[Run]] = {}
    for run in sorted(runs, key=lambda run: ("clipped_" in run.arm, run.arm)):
        by_arm.setdefault(run.arm, []).append(run)
    groups = []
    for spare, (arm, members) in zip(palette.SPARE * len(by_arm), by_arm.items(), strict=False):
        label, color = common.arm_label(members[0]), declared_color(members[0]) or spare
        dash = "--" if "clipped_" in arm else "-"
        groups.append(common.Group(label, common.plain(label), color, dash, tuple(members)))
    return groups


def plane_of(runs: Sequence[Run]) -> Plane:
    """The surface of the first run whose coordinates are finite; its losses may be NaN. Raises
    CannotDrawError.
    """
    valid = [run for run in runs if np.isfinite(run.series["loss_surface"].values[0][:, :2]).all()]
    if not valid:
        raise CannotDrawError(f"{runs[0].name} has no finite error surface")
    series = valid[0].series["loss_surface"]
    x, y, loss = series.values[0].T
    width = len(np.unique(x))
    return Plane(series.names[:2], x[:width], y[::width], loss.reshape(-1, width))


def trajectory_of(group: common.Group, run: Run, plane: Plane) -> Trajectory:
    places, gradients = run.series["parameter_value"], run.series["grad_norm"]
    steps = places.steps[np.isin(places.steps, gradients.steps)]

    def select(recorded_steps: NDArray, values: NDArray) -> NDArray:
        return values[np.searchsorted(recorded_steps, steps)]

    parameters = [column for column, name in enumerate(gradients.names) if name != "global"]
    trained = parameters if run.config["train"].get("readout", True) else run.roles.without_readout(gradients.names)
    with np.errstate(invalid="ignore"):  # the gradient may not be finite
        norm = combined(select(gradients.steps, gradients.values)[:, trained])
    columns = [select(places.steps, places.column(name)) for name in plane.names]
    return Trajectory(group, run, np.stack([*columns, select(run.loss.steps, run.loss.values)], axis=-1), norm)


def steepest_of(trajectories: list[Trajectory]) -> list[Trajectory]:
    """The trajectories of the start and the learning rate at which an unclipped gradient is the
    largest of all.
    """
    unclipped = [t for t in trajectories if t.group.dash == "-"] or trajectories
    chosen = max(
        unclipped,
        key=lambda t: (np.nan_to_num(t.norm[t.steepest], nan=-np.inf), t.run.config["optimizer"]["lr"], -t.run.seed),
    ).run

    def same_start(run: Run) -> bool:
        return all(run.config[key] == chosen.config[key] for key in run.config if key not in ("clip", "instruments"))

    return [t for t in trajectories if same_start(t.run)]


def wall_of(run: Run, plane: Plane) -> NDArray | None:
    """The curve on which a sigmoid unit has an unstable fixed point at H_0: x_0 = w σ(x_0) + b and
    w σ′(x_0) > 1.
    """
    start, roles = run.config["cell"]["initial_state"], run.roles
    is_sigmoid_unit = roles.recurrence == "sigmoid" and plane.names == (
        *roles.with_role("recurrent"),
        *roles.with_role("bias"),
    )
    if not is_sigmoid_unit or not 0 < start < 1:
        return None
    w = plane.x[plane.x * start * (1 - start) > 1]
    return np.stack([w, np.log(start / (1 - start)) - w * start])


def pieces(points: NDArray, box: NDArray) -> list[tuple[NDArray, NDArray | None]]:
    """The pieces of a trajectory inside the box, and the point at which each leaves it; None where
    the trajectory ends there or the next point is not a number.
    """
    contained = ((points[:, :2] >= box[0]) & (points[:, :2] <= box[1])).all(axis=1)
    segments: list[tuple[NDArray, NDArray | None]] = []
    start = None
    for step, is_inside in enumerate(contained):
        if is_inside and start is None:
            start = step
        elif not is_inside and start is not None:
            segments.append((points[start:step], _edge(points[step - 1], points[step], box)))
            start = None
    return segments + ([(points[start:], None)] if start is not None else [])


def _edge(inner: NDArray, outer: NDArray, box: NDArray) -> NDArray | None:
    """The point at which the straight step between two points crosses the box; None where the step
    has no direction.
    """
    move = np.nan_to_num(outer - inner, nan=0.0, posinf=1e300, neginf=-1e300)
    if not move[:2].any():
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        reach = np.where(move[:2] > 0, box[1] - inner[:2], box[0] - inner[:2]) / move[:2]
    return inner + np.nanmin(np.where(move[:2] != 0, reach, np.nan)) * move
