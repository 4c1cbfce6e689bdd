"""The effect of each part of a cell on the gradient and on the task: the same curves without that
part.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gradpath.figures import CannotDrawError, Figure
from gradpath.figures._shared import common, finite, palette, stages
from gradpath.tracking.loader import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

COLUMNS = 5
INSTRUMENT = "state_grad_norm"
INITIAL: dict[str, Any] = {"lw": 1.5, "ls": (0, (3, 1.5)), "band": 0.1}
TRAINED: dict[str, Any] = {"lw": 2.2, "ls": "-", "band": 0.22}


@dataclass
class Ablation(Figure):
    """Two panels for each arm, with the plain cell in grey behind. Upper: the total derivative
    ‖∂L/∂C_t‖ of the carrier against the lag, dashed at initialisation, solid after training. The
    axis fits the cell and its variants; where a curve leaves it, a number says how far the curve
    goes. Lower: the loss on the evaluation set over training, and the number of seeds that solved
    the task.
    """

    needs = ("state_grad_norm",)

    def draw(self, runs: Sequence[Run]) -> "Canvas":
        groups = _ordered(runs)
        stages.drawable(groups, INSTRUMENT)
        common.theme()

        blocks = -(-(len(groups) + 1) // COLUMNS)  # one place is for the legend
        columns = min(len(groups) + 1, COLUMNS)
        canvas, grid = common.subplots(
            2 * blocks, columns, figsize=(2.75 * columns, 5.2 * blocks), sharey="row", squeeze=False
        )
        places = [
            (grid[2 * block, column], grid[2 * block + 1, column]) for block, column in np.ndindex(blocks, columns)
        ]
        curves = _curves([group for group in groups if _cell(group) == _cell(groups[0])]) or _curves(groups)
        floor = common.floor_below(curves)
        top = max(float(curve.max()) for curve in curves)
        for (upper, lower), group in zip(places, groups, strict=False):
            upper.set_title(group.title, color=group.color)
            finite.note(upper, stages.words(group, stages.LAST, INSTRUMENT))
            upper.set_ylim(floor, top + 0.05 * (top - floor))  # a cell without gates would compress the other curves
            self._gradient(upper, group, groups[0], floor)
            self._learning(lower, group, groups[0])
        for row, label in zip(
            grid, ("gradient norm\n‖∂L/∂carrier‖", "loss on the\nevaluation set") * blocks, strict=True
        ):
            row[0].set_ylabel(label)
        for panels in zip(*places[: len(groups)], strict=True):
            self._same_limits(panels)
        self._legend(*places[len(groups)], groups)
        for upper, lower in places[len(groups) + 1 :]:
            upper.set_axis_off()
            lower.set_axis_off()
        canvas.tight_layout()
        common.caption(canvas, self._caption(groups), groups)
        return canvas

    def _gradient(self, axes: "Axes", group: common.Group, plain: common.Group, floor: float) -> None:
        for arm, color in ((plain, palette.PLAIN_CELL), (group, group.color)):
            for probe, look in ((0, INITIAL), (-1, TRAINED)):
                curves = [common.carrier_gradient(run, probe) for run in _runs_at(arm, probe)]
                common.curve(axes, arm.runs[0].lag, curves, floor, color=color, **look)
        if not _runs_at(group, 0):
            finite.empty_panel(axes, group)
            return
        medians = [common.median_band([common.carrier_gradient(r, p) for r in _runs_at(group, p)])[0] for p in (0, -1)]
        reached = np.concatenate([median[np.isfinite(median)] for median in medians])
        low, high = axes.get_ylim()
        corner: dict[str, Any] = {"transform": axes.transAxes, "ha": "right", "color": group.color}
        if reached.size and reached.min() < low:
            axes.text(0.97, 0.04, f"down to 10$^{{{reached.min():.0f}}}$", va="bottom", **corner)
        if reached.size and reached.max() > high:
            axes.text(0.97, 0.96, f"up to 10$^{{{reached.max():.0f}}}$", va="top", **corner)
        axes.set_xlabel("lag  T − t  (steps)")

    def _learning(self, axes: "Axes", group: common.Group, plain: common.Group) -> None:
        for arm, color in ((plain, palette.PLAIN_CELL), (group, group.color)):
            steps, losses = _losses(arm)
            common.curve(axes, steps, losses, 0.0, color=color, **TRAINED)
        if group.runs[0].chance_loss > 0:  # 0 where the input does not matter
            axes.axhline(np.log10(group.runs[0].chance_loss), color=palette.REFERENCE, lw=1, ls="--")
        axes.set_xlabel("training step")
        axes.set_title(f"{_solved(group)}/{len(group.runs)} solved", fontsize=10, loc="right", pad=3)

    def _same_limits(self, panels: Sequence["Axes"]) -> None:
        """The same vertical axis for every arm, also across the blocks."""
        low = min(axes.get_ylim()[0] for axes in panels)
        high = max(axes.get_ylim()[1] for axes in panels)
        for axes in panels:
            axes.set_ylim(low, high)
            common.decades(axes.yaxis)

    def _legend(self, upper: "Axes", lower: "Axes", groups: Sequence[common.Group]) -> None:
        """Draws the legend in the place after the last arm."""
        from matplotlib.lines import Line2D

        entries: dict[str, dict[str, Any]] = {
            "at initialisation": {"color": palette.TEXT, "lw": 1.5, "ls": INITIAL["ls"]},
            stages.trained_label(groups, INSTRUMENT): {"color": palette.TEXT, "lw": 2.2},
            f"plain {common.plain(groups[0].runs[0].roles.label)}, the same": {"color": palette.PLAIN_CELL, "lw": 2.2},
            "true zero": {"color": palette.TEXT, "marker": "x", "ls": "", "markersize": 4},
        }
        handles = [Line2D([], [], label=label, **look) for label, look in entries.items()]
        upper.legend(handles=handles, loc="center left", fontsize=10, bbox_to_anchor=(-0.1, 0.5))
        lower.legend(
            handles=[Line2D([], [], color=palette.REFERENCE, lw=1, ls="--", label="chance")],
            loc="center left",
            fontsize=10,
            bbox_to_anchor=(-0.1, 0.5),
        )
        upper.set_axis_off()
        lower.set_axis_off()

    def _caption(self, groups: list[common.Group]) -> str:
        changes = []
        for group in groups:
            initial, trained = (common.number([_change(r, p) for r in _runs_at(group, p)], "+.1f") for p in (0, -1))
            changes.append(f"{group.label.replace(',', '')} {initial} → {trained}")
        return (
            f"Median over {common.seeds(groups)}, band from smallest to largest. {common.setting_text(groups)}. "
            f"Change of the carrier's gradient from lag 0 to the largest, in decades, before → after: "
            f"{'; '.join(changes)}. Theory: what C hands back outside the gates is multiplied by F_t at each "
            "step; with F = 1 it cannot vanish (Hochreiter & Schmidhuber 1997). Ablations after Greff et al. (2017)."
        )


def _ordered(runs: Sequence[Run]) -> list[common.Group]:
    """The plain cell, its ablations, the other cells; raises CannotDrawError where the plain cell
    or its ablations are missing.
    """
    groups = common.groups(runs)
    ablated = [group for group in groups if group.runs[0].roles.variant]
    if not ablated:
        raise CannotDrawError("no ablated cell among the runs; sweep cell.ablation")
    cells = dict.fromkeys(map(_cell, ablated))
    if len(cells) > 1:
        raise CannotDrawError(f"needs the ablations of one cell; there are those of {' and '.join(cells)}")
    same_cell = [group for group in groups if _cell(group) in cells]
    plain = [group for group in same_cell if group not in ablated]
    if len(plain) != 1:
        labels = "; ".join(group.label for group in plain) or "none"
        label = ablated[0].runs[0].roles.label
        raise CannotDrawError(f"needs one plain {label} to compare with (cell.ablation=none); there is: {labels}")
    if len(lengths := sorted({len(run.lag) for run in runs})) > 1:
        raise CannotDrawError(f"needs runs of one length; there are {', '.join(map(str, lengths))} timesteps")
    return [*plain, *ablated, *(group for group in groups if group not in same_cell)]


def _cell(group: common.Group) -> str:
    """The name by which the group's cell was chosen."""
    return str(group.runs[0].config["cell"]["name"])


def _losses(group: common.Group) -> tuple[NDArray, list[NDArray]]:
    """Training steps of the evaluations and log10 of their loss for each seed, masked where a seed
    had diverged.
    """
    steps = np.unique(np.concatenate([run.evaluation.steps for run in group.runs]))
    losses: list[NDArray] = []
    for run in group.runs:
        loss = np.ma.array(np.zeros(len(steps)), mask=True)
        with np.errstate(divide="ignore", invalid="ignore"):
            loss[np.searchsorted(steps, run.evaluation.steps)] = np.log10(run.evaluation.column("loss"))
        losses.append(loss)
    return steps, losses


def _solved(group: common.Group) -> int:
    """The number of seeds that have solved the task at the end of training."""
    return sum(map(stages.solved, group.runs))


def _runs_at(group: common.Group, probe: int) -> list[Run]:
    """The runs that are drawn at initialisation (0) or after training (-1)."""
    return stages.runs_at(group, probe, INSTRUMENT)


def _curves(groups: Sequence[common.Group]) -> list[NDArray]:
    return [common.carrier_gradient(run, p) for group in groups for p in (0, -1) for run in _runs_at(group, p)]


def _change(run: Run, probe: int) -> float:
    """Decades by which the carrier's gradient changes from lag 0 to the largest."""
    curve = common.carrier_gradient(run, probe)
    return float(curve[0] - curve[-1])
