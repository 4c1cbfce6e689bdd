"""The gradient norm of every parameter against the lag, with the arms side by side."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gradpath.core import layer_names
from gradpath.figures import Figure
from gradpath.figures._shared import common, finite, palette, stages, theory_lines
from gradpath.tracking.loader import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

STAGES = ("at initialisation", "at the largest gradient of training", "after training")
FINITE = {STAGES[1]: "at the largest finite gradient", STAGES[2]: "at the last finite reading"}
"""The names of the stages where a group diverged."""
INSTRUMENTS = ("param_grad_norm", "state_grad_norm")


@dataclass
class NormByLag(Figure):
    """Rows: at initialisation, at the training step with the largest gradient, after training.
    First column: the total derivative with respect to the carrier of the bottom layer, ‖∂L/∂C_t‖ of
    an LSTM. Then a column for each arm: ‖∂L/∂θ_t‖ of every recurrent parameter θ.
    """

    needs = ("param_grad_norm", "state_grad_norm", "grad_norm")

    def draw(self, runs: Sequence[Run]) -> "Canvas":
        common.theme()

        groups = common.columns(runs)
        stages.drawable(groups, *INSTRUMENTS)
        canvas, grid = common.subplots(
            3, 1 + len(groups), figsize=(3.0 * (1 + len(groups)), 7.6), sharex=True, sharey=True, squeeze=False
        )
        # The medians set the axis, so that one seed that fell further does not compress all other
        # curves.
        medians = [
            common.median_band(_profiles(run, name, stage) for run in members)[0]
            for group in groups
            for stage in STAGES
            for name in INSTRUMENTS
            if (members := _runs_at(group, stage))
        ]
        floor = common.floor_below(medians)
        for row, stage in zip(grid, STAGES, strict=True):
            for group in groups:
                curves = [_state(run, stage) for run in _runs_at(group, stage)]
                common.curve(
                    row[0],
                    group.runs[0].lag,
                    curves,
                    floor,
                    color=group.color,
                    ls=group.dash,
                    lw=2,
                    label=group.legend_label,
                )
            for axes, group in zip(row[1:], groups, strict=True):
                self._parameters(axes, group, stage, floor)
            trained = stage == STAGES[0] or stages.shows_trained(groups, *INSTRUMENTS)
            row[0].set_ylabel(f"{stage if trained else FINITE[stage]}\n\ngradient norm")
        layer = "carrier of layer 1" if any(run.config["cell"]["layers"] > 1 for run in runs) else "carrier"
        grid[0, 0].set_title(f"{layer}\n‖∂L/∂carrier$_t$‖")
        for axes, group in zip(grid[0, 1:], groups, strict=True):
            axes.set_title(f"{group.title}\n‖∂L/∂θ$_t$‖", color=group.color)
        for axes in grid[-1]:
            axes.set_xlabel("lag  T − t  (steps)")
        for row, stage in zip(grid, STAGES, strict=True):
            for axes, group in zip(row[1:], groups, strict=True):
                finite.title(axes, _words(group, stage))
        theory_lines.draw(grid[0, 0], groups, lambda run: _state(run, STAGES[0]), floor)
        grid[0, 0].set_ylim(bottom=floor - 0.5)
        for row in grid:
            common.decades(row[0].yaxis)
        grid[0, 0].legend(loc="lower left", fontsize=8)
        canvas.tight_layout(rect=(0, self._legend(canvas, groups), 1, 1))
        common.caption(canvas, self._caption(groups), groups)
        return canvas

    def _parameters(self, axes: "Axes", group: common.Group, stage: str, floor: float) -> None:
        """One line for each parameter of the cell."""
        names, members = _parameter_names(group), _runs_at(group, stage)
        if not members:
            finite.empty_panel(axes, group)
        for name in names:
            curves = [_profiles(run, "param_grad_norm", stage)[:, names.index(name)] for run in members]
            look = palette.parameter(group.runs[0].roles, name)
            common.curve(axes, group.runs[0].lag, curves, floor, color=look.color, ls=look.dash, lw=1.1, band=0.07)

    def _legend(self, canvas: "Canvas", groups: list[common.Group]) -> float:
        """Draws the legend with the parameters of all arms, and returns its share of the figure's
        height.
        """
        from matplotlib.lines import Line2D

        looks = dict.fromkeys(
            (layer_names.split(name)[1], palette.parameter(group.runs[0].roles, name))
            for group in groups
            for name in _parameter_names(group)
        )
        handles = [
            Line2D([], [], color=look.color, linestyle=look.dash, lw=1.3, label=common.plain(name))
            for name, look in looks
        ]
        handles.append(
            Line2D([], [], color=palette.CURVE_SAMPLE, marker="x", linestyle="", markersize=4, label="true zero")
        )
        rows = common.legend_rows(canvas, [str(handle.get_label()) for handle in handles])
        canvas.legend(
            handles=handles,
            loc="upper center",
            bbox_to_anchor=(0.5, 0.03 * rows),
            ncols=-(-len(handles) // rows),
            fontsize=8.5,
            columnspacing=1.2,
        )
        return 0.03 * rows

    def _caption(self, groups: list[common.Group]) -> str:
        lost = []
        for group in groups:
            ends = [_state(run, STAGES[0])[[-1, 0]] for run in _runs_at(group, STAGES[0])]
            lost.append(f"{group.label} {common.number([end[0] - end[1] for end in ends], '.1f')}")
        return (
            f"Median over {common.seeds(groups)}, band from smallest to largest, as far as the medians' axis goes. "
            f"{common.setting_text(groups)}. "
            f"Carrier: {common.carriers(groups)}. Decades that its gradient loses over the sequence at initialisation: "
            f"{', '.join(lost)}. Theory: the adjoint is multiplied by one Jacobian a step, so without gates it falls "
            "or rises exponentially, a straight line here (Bengio et al. 1994; Pascanu et al. 2013)."
            f"{theory_lines.residuals(groups, lambda run: _state(run, STAGES[0]))}"
        )


def _runs_at(group: common.Group, stage: str) -> list[Run]:
    """The runs from which a stage is drawn."""
    return stages.runs_at(group, stages.FIRST if stage == STAGES[0] else stages.LAST, *INSTRUMENTS)


def _words(group: common.Group, stage: str) -> str:
    """The words that a panel needs about its readings."""
    text = stages.words(group, stages.FIRST if stage == STAGES[0] else stages.LAST, *INSTRUMENTS)
    if stage != STAGES[1] or not text.startswith("last finite"):
        return text
    steps = {
        int(run.series[INSTRUMENTS[0]].steps[_probe(run, INSTRUMENTS[0], stage)]) for run in _runs_at(group, stage)
    }
    return f"{stages.steps(steps)};\n{text.partition(chr(10))[2]}"


def _parameter_names(group: common.Group) -> list[str]:
    """The recurrent parameters of an arm; the readout, which acts at scored steps only, is left
    out.
    """
    names = group.runs[0].series["param_grad_norm"].names
    return [names[column] for column in group.runs[0].roles.without_readout(names)]


def _profiles(run: Run, name: str, stage: str) -> NDArray:
    """(T, names) of one instrument at a stage; the readout's columns are left out."""
    series = run.series[name]
    columns = [i for i in run.roles.without_readout(series.names) if not series.names[i].startswith("direct/")]
    return series.values[_probe(run, name, stage)][:, columns]


def _state(run: Run, stage: str) -> NDArray:
    """log10 ‖∂L/∂s_t‖ (T,) of the bottom layer's carrier s at a stage."""
    return common.carrier_profiles(run)[_probe(run, "state_grad_norm", stage)]


def _probe(run: Run, name: str, stage: str) -> int:
    """The index of the probe for a stage."""
    series, readings = run.series[name], stages.finite_readings(run, name)
    if stage == STAGES[0]:
        return int(readings[0])
    if stage == STAGES[2]:
        return int(readings[-1])
    norms = run.series["grad_norm"]
    overall = dict(zip(norms.steps.tolist(), np.nan_to_num(norms.column("global"), nan=-np.inf).tolist(), strict=True))
    return int(max(readings, key=lambda probe: overall.get(int(series.steps[probe]), -np.inf)))
