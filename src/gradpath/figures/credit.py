"""The credit of each step's loss at each use of the parameters, and the agreement of the uses."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gradpath.figures import Figure
from gradpath.figures._shared import common, finite, palette, stages
from gradpath.schema.settings import setting
from gradpath.tracking.loader import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas
    from matplotlib.image import AxesImage

STAGES = ("at initialisation", "after training")
INSTRUMENT = "credit"
DASHES = dict(zip(STAGES, ("--", "-"), strict=True))


@dataclass
class Credit(Figure):
    """A column for each arm. Rows: ‖∂L_s/∂θ_t‖, the pull of the loss at step s on the parameters as
    step t uses them, before and after training (as a curve where a single step is scored); then the
    cosine of the gradients of steps s and t, before and after training.
    """

    decades: float = setting(8.0, "decades below the largest gradient at which the colour saturates", gt=0)

    needs = ("credit", "reach", "grad_norm")

    def draw(self, runs: Sequence[Run]) -> "Canvas":
        common.theme()

        groups = common.columns(runs)
        stages.drawable(groups, INSTRUMENT)
        maps = max(len(_scored(group)) for group in groups) > 1
        rows = 4 if maps else 3
        canvas, grid = common.subplots(
            rows, len(groups), figsize=(2.6 * len(groups) + 1.2, 2.3 * rows + 0.4), squeeze=False, layout="constrained"
        )
        if maps:
            image = self._maps(grid[:2], groups)
            bar = canvas.colorbar(image, ax=grid[:2].ravel().tolist(), extend="min", pad=0.01)
            common.decades(bar.ax.yaxis)
            bar.set_label("‖∂L$_s$/∂θ$_t$‖    (grey: true zero)")
        else:
            self._curves(grid[0], groups)
        image = self._alignments(grid[-2:], groups)
        bar = canvas.colorbar(image, ax=grid[-2:].ravel().tolist(), pad=0.01)
        bar.set_label("cos(∂L/∂θ$_s$, ∂L/∂θ$_t$)")
        for axes, group in zip(grid[0], groups, strict=True):
            axes.set_title(group.title, color=group.color)
        trained = (grid[0], grid[-1]) if not maps else (grid[1], grid[-1])
        for axes, group in zip(np.ravel(trained), [*groups, *groups], strict=True):
            finite.title(axes, stages.words(group, stages.LAST, INSTRUMENT))
        for axes, group in zip(grid.ravel(), [*groups] * rows, strict=True):
            if not _runs_at(group, STAGES[0]):
                finite.empty_panel(axes, group)
        for axes in grid.ravel():
            axes.label_outer()
        for axes in grid[-1]:
            axes.set_xlabel("θ used at step t")
        common.caption(canvas, self._caption(groups), groups)
        return canvas

    def _maps(self, grid: NDArray, groups: list[common.Group]) -> "AxesImage":
        """Heat maps of the medians over the seeds, all on one scale, with the lag that the task
        needs.
        """
        medians = {
            (stage, group.label): common.median_band([_read(run, "credit", stage) for run in members])[0]
            for stage in STAGES
            for group in groups
            if (members := _runs_at(group, stage))
        }
        strongest = max((float(values.max()) for values in medians.values()), default=0.0)
        strongest = strongest if np.isfinite(strongest) else 0.0
        for row, stage in zip(grid, STAGES, strict=True):
            for axes, group in zip(row, groups, strict=True):
                if not _runs_at(group, stage):
                    continue
                values = medians[stage, group.label]
                image = _image(axes, group, values, "viridis", strongest - self.decades, strongest)
                scored = _scored(group)
                axes.set_ylim(scored[0] - 0.5, scored[-1] + 0.5)
                lag, last = group.runs[0].longest_lag, scored[-1]
                axes.plot([1, last - lag], [1 + lag, last], color=palette.TASK_LAG, lw=1.6, ls=(0, (2, 1)))
                axes.text(0.97, 0.05, _reach_text(group, stage), transform=axes.transAxes, ha="right", fontsize=8)
            row[0].set_ylabel(f"credit {_stage_label(groups, stage)}\n\nloss at step s")
        return image

    def _curves(self, row: NDArray, groups: list[common.Group]) -> None:
        """The credit of the one scored step over t, before (dashed) and after training."""
        shown = [_last_scored(run, stage) for group in groups for stage in STAGES for run in _runs_at(group, stage)]
        top = max(values.max() for values in shown)
        floor = common.floor_below(shown)
        for axes, group in zip(row, groups, strict=True):
            t = np.arange(1, len(group.runs[0].lag) + 1)
            if not _runs_at(group, STAGES[0]):
                continue
            for stage in STAGES:
                curves = [_last_scored(run, stage) for run in _runs_at(group, stage)]
                label = f"{_stage_label([group], stage)}:\n{_reach_text(group, stage)}"
                common.curve(axes, t, curves, floor, color=group.color, ls=DASHES[stage], lw=1.6, label=label)
            axes.axvline(_scored(group)[0] - group.runs[0].longest_lag, color=palette.TASK_LAG, lw=1.6, ls=(0, (2, 1)))
            axes.set_xlim(0.5, len(t) + 0.5)
            axes.set_ylim(floor - 0.5, (top if np.isfinite(top) else floor) + 0.5)
            axes.legend(loc="lower right", fontsize=7.5)
        row[0].set_ylabel("credit\n\n‖∂L/∂θ$_t$‖")
        for axes in row:
            common.decades(axes.yaxis)

    def _alignments(self, grid: NDArray, groups: list[common.Group]) -> "AxesImage":
        """Heat maps of the mean cosine over the seeds."""
        for row, stage in zip(grid, STAGES, strict=True):
            for axes, group in zip(row, groups, strict=True):
                members = _runs_at(group, stage)
                if not members:
                    continue
                mean = np.mean([_read(run, "alignment", stage) for run in members], axis=0)
                zero: NDArray = np.any(np.isneginf([_norms(run, stage) for run in members]), axis=0)
                steps = _steps(group.runs[0]) - 1
                values = np.ma.masked_array(mean, zero[:, None] | zero[steps])
                image = _image(axes, group, values, "RdBu_r", -1, 1)
            row[0].set_ylabel(f"alignment {_stage_label(groups, stage)}\n\nθ used at step s")
        return image

    def _caption(self, groups: list[common.Group]) -> str:
        residuals = [_residual(run, stage) for group in groups for stage in STAGES for run in _runs_at(group, stage)]
        valid = [value for value in residuals if value is not None and np.isfinite(value)]
        balance = (
            f"recomputed from the records, it holds to {max(valid):.0e}" if valid else "not all steps were recorded"
        )
        return (
            "θ: all recurrent parameters; L$_s$: what the loss at step s adds to the batch mean. Credit: median over "
            f"{common.seeds(groups)}; alignment: mean over them. {common.setting_text(groups)}. Orange: the longest "
            f"lag of the task, {groups[0].runs[0].longest_lag}. Reach: the lag at which the adjoint of the last loss "
            "has fallen to 1/e. Theory: one Jacobian a step makes credit fall by a constant factor with the lag, bands "
            "along the diagonal (Bengio et al. 1994; Pascanu et al. 2013); cosines times norms add up to "
            f"‖∂L/∂θ‖²: {balance}."
        )


def _image(axes: "Axes", group: common.Group, values: NDArray, colors: str, low: float, high: float) -> "AxesImage":
    """A heat map of (T, steps) values, t from left to right, s from the bottom up."""
    import matplotlib

    length = len(values)
    image = finite.image(
        axes,
        values.T,
        cmap=matplotlib.colormaps[colors].with_extremes(bad=palette.TRUE_ZERO_IN_CREDIT),
        vmin=low,
        vmax=high,
        origin="lower",
        extent=(0.5, length + 0.5, 0.5, length + 0.5),
        aspect="auto",
        interpolation="nearest",
    )
    axes.grid(False)
    return image


def _runs_at(group: common.Group, stage: str) -> list[Run]:
    """The runs from which a stage is drawn."""
    return stages.runs_at(group, stages.FIRST if stage == STAGES[0] else stages.LAST, INSTRUMENT)


def _stage_label(groups: Sequence[common.Group], stage: str) -> str:
    """The name of a stage, if it is true of every panel in the row."""
    return stage if stage == STAGES[0] else stages.trained_label(groups, INSTRUMENT)


def _steps(run: Run) -> NDArray:
    """The timesteps s, counted from 1, of the columns."""
    return np.array([int(name.partition("/")[2]) for name in run.series["credit"].names if name.startswith("credit/")])


def _probe(run: Run, stage: str) -> int:
    """The index of the reading for a stage."""
    readings = stages.finite_readings(run, INSTRUMENT)
    return int(readings[0] if stage == STAGES[0] else readings[-1])


def _read(run: Run, kind: str, stage: str) -> NDArray:
    """(T, steps) of ``credit`` or ``alignment`` at a stage."""
    series = run.series["credit"]
    columns = [index for index, name in enumerate(series.names) if name.startswith(f"{kind}/")]
    return series.values[_probe(run, stage)][:, columns]


def _norms(run: Run, stage: str) -> NDArray:
    """(T,) log10 ‖∂L/∂θ_t‖."""
    return run.series["credit"].column("norm")[_probe(run, stage)]


def _scored(group: common.Group) -> NDArray:
    """The timesteps, counted from 1, at which the loss of at least one run reaches a parameter."""
    reads = [_read(run, "credit", stage) for stage in STAGES for run in _runs_at(group, stage)]
    return _steps(group.runs[0])[np.isfinite(reads).any(axis=(0, 1))] if reads else np.zeros(0, int)


def _last_scored(run: Run, stage: str) -> NDArray:
    """(T,) the credit of the one scored step."""
    values = _read(run, "credit", stage)
    return values[:, np.isfinite(values).any(axis=0)].max(axis=1, initial=-np.inf)


def _reach_text(group: common.Group, stage: str) -> str:
    """``reach 12.3``, the median over the seeds; ``reach ≥ 49`` where most curves never fall so
    far.
    """
    rows = []
    for run in _runs_at(group, stage):
        series, step = run.series["reach"], run.series["credit"].steps[_probe(run, stage)]
        rows += list(series.values[series.steps == step][-1:, :2])
    valid = np.array([row for row in rows if not np.isnan(row).any()])
    if not valid.size:
        return "no reach: not finite"
    lag, censored = np.median(valid, axis=0)
    return f"reach {'≥ ' if censored > 0.5 else ''}{lag:.3g}"


def _residual(run: Run, stage: str) -> float | None:
    """| ΣΣ cos ‖·‖‖·‖ / ‖∂L/∂θ‖² − 1 |, where ``grad_norm`` gives the squared norm; None where not
    all steps are columns.
    """
    cosines, norms = _read(run, "alignment", stage), _norms(run, stage)
    if len(cosines) != cosines.shape[1]:
        return None
    series = run.series["grad_norm"]
    step = run.series["credit"].steps[_probe(run, stage)]
    recurrent = run.roles.without_readout(series.names)
    recorded = series.values[series.steps == step]
    if not len(recorded) or not np.isfinite(recorded[-1, recurrent].max()) or np.isnan(recorded[-1, recurrent]).any():
        return None
    parts = recorded[-1, recurrent]
    sizes = 10 ** (norms - parts.max())
    return float(abs(sizes @ cosines @ sizes / np.sum(100 ** (parts - parts.max())) - 1))
