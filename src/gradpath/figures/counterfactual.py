"""The gradient and the loss of the trained network with a gate held."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gradpath.figures import CannotDrawError, Figure
from gradpath.figures._shared import common, finite, palette, stages
from gradpath.figures.paths import probes
from gradpath.tracking.loader import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

INSTRUMENT = "counterfactual"
ROWS = ("at initialisation", "after training")


@dataclass
class Counterfactual(Figure):
    """A column for each arm with gates. The gradient of the carried state against the lag,
    unchanged and with a gate held, at initialisation and after training, each relative to its own
    size at lag 0; and the minibatch's loss. Bottom layer.
    """

    needs = ("counterfactual", "counterfactual_loss")

    def draw(self, runs: Sequence[Run]) -> "Canvas":
        common.theme()
        from matplotlib.lines import Line2D

        groups = [group for group in common.columns(runs) if len(names(group.runs[0])) > 1]
        if not groups:
            raise CannotDrawError("no run of a cell with gates that can be held")
        stages.drawable(groups, INSTRUMENT)
        canvas, grid = common.subplots(
            3, len(groups), figsize=(3.7 * len(groups) + 0.6, 8.4), sharex="row", squeeze=False
        )
        for axes in grid[:2, 1:].flat:
            axes.sharey(grid[axes.get_subplotspec().rowspan.start, 0])
        floor = common.floor_below(
            relative(run, name, row)
            for group in groups
            for row in (0, 1)
            for run in stages.runs_at(group, -row, INSTRUMENT)
            for name in names(run)
        )
        for column, group in zip(grid.T, groups, strict=True):
            column[0].set_title(group.title, color=group.color)
            for row, axes in enumerate(column[:2]):
                finite.title(axes, stages.words(group, -row, INSTRUMENT))
                if not stages.runs_at(group, -row, INSTRUMENT):
                    finite.empty_panel(axes, group)
                    continue
                for name in names(group.runs[0]):
                    curves = [relative(run, name, row) for run in stages.runs_at(group, -row, INSTRUMENT)]
                    look = {"color": _color(group, name), "lw": 3.0 if name == "factual" else 1.5, "band": 0.1}
                    common.curve(
                        axes, group.runs[0].lag, curves, floor, ls="--" if name == "truncated" else "-", **look
                    )
                axes.set_xlabel("lag  T − t  (steps)")
            self._losses(column[2], group)
        for row, stage in zip(grid[:2], ROWS, strict=True):
            label = stage if stage == ROWS[0] else stages.trained_label(groups, INSTRUMENT)
            row[0].set_ylabel(f"{label}\n\nstate gradient relative to lag 0")
            common.decades(row[0].yaxis)
        used = dict.fromkeys((name, _color(group, name)) for group in groups for name in names(group.runs[0]))
        handles = [
            Line2D([], [], color=color, lw=1.8, ls="--" if name == "truncated" else "-", label=common.plain(name))
            for name, color in used
        ]
        canvas.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, 0.03), ncols=len(used), fontsize=9)
        canvas.tight_layout(rect=(0, 0.03, 1, 1))
        common.caption(canvas, self._caption(groups), groups)
        return canvas

    def _losses(self, axes: "Axes", group: common.Group) -> None:
        """A row of dots for each counterfactual, one dot for each seed, with the median; the line
        is the chance loss of the task.
        """
        counterfactuals = names(group.runs[0])
        for row, name in enumerate(counterfactuals):
            values = np.array([_loss(run, name) for run in group.runs])
            axes.plot(values, [row] * len(values), "o", color=_color(group, name), markersize=4, alpha=0.5)
            if np.isfinite(values).any():
                middle = np.median(values[np.isfinite(values)])
                axes.plot(middle, row, "|", color=_color(group, name), markersize=16, markeredgewidth=2)
        axes.axvline(group.runs[0].chance_loss, color=palette.MUTED, lw=1.0, ls=":")
        axes.set_xscale("log")
        axes.set_yticks(range(len(counterfactuals)), [common.plain(name) for name in counterfactuals])
        axes.set_ylim(len(counterfactuals) - 0.5, -0.5)
        stopped = stages.divergences([group])
        axes.set_xlabel("loss at the last step (dotted: chance)" if stopped else "loss after training (dotted: chance)")

    def _caption(self, groups: Sequence[common.Group]) -> str:
        gains = []
        for group in groups:
            members = stages.runs_at(group, stages.LAST, INSTRUMENT)
            changes = (
                {n: common.median_band([relative(r, n, 1)[0] for r in members])[0] for n in names(members[0])}
                if members
                else {}
            )
            text = ", ".join(f"{name} {round(float(change), 1) + 0:g}" for name, change in changes.items())
            text = (text or stages.lost(group)).replace("-inf", "to a true zero")
            gains.append(f"{group.label}: {text}".replace("-", "−"))
        return (
            f"Median over {common.seeds(groups)}, band from smallest to largest. The same parameters on the same "
            "minibatch with one gate held at a value, forward and backward, without training again; truncated: the "
            "forward pass as it is, the gradient cut at the gates (Hochreiter & Schmidhuber 1997). Theory: with a "
            "keeping gate at ½ the gradient halves at every step that it takes along the highway, 0.30 decades; at 1 "
            f"it does not fall. Decades gained over the whole lag "
            f"{stages.trained_label(groups, INSTRUMENT)}: {'; '.join(gains)}. "
            f"{common.setting_text(groups)}."
        )


def names(run: Run) -> list[str]:
    """The names ``factual`` and those of the counterfactuals."""
    return list(run.series["counterfactual_loss"].names)


def _color(group: common.Group, name: str) -> str:
    return palette.counterfactual(group.runs[0].roles, name)


def relative(run: Run, name: str, stage: int) -> NDArray:
    """(T,) log10 ‖∂L/∂C_t‖ less its value at T, before (0) or after training (1); -inf is a true
    zero.

    For a diverged run, it is the last finite reading.
    """
    probe = probes(run, "counterfactual")[stage]
    column = run.series["counterfactual"].column(f"{name}/{run.roles.bottom_carrier}")[probe]
    return column - column[-1] if np.isfinite(column[-1]) else np.full_like(column, -np.inf)


def _loss(run: Run, name: str) -> float:
    """The loss at the last reading, or masked where the minibatch was not read with this gate
    held.
    """
    return float(run.series["counterfactual_loss"].column(name)[-1])
