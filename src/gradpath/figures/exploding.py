"""Spikes of loss and gradient norm without clipping, the same seeds with clipping, and the clipping
ledger.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gradpath.figures import Figure
from gradpath.figures._shared import common, finite, palette, stages
from gradpath.schema.settings import setting
from gradpath.tracking.loader import Run, Series

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas


@dataclass
class Exploding(Figure):
    """A column for each arm, with a line for each seed: the figure shows the spikes of single
    seeds, which a median over seeds would remove. Rows: loss; gradient norm; and the ledger, the
    factor by which clipping shortened the gradient.
    """

    windows: int = setting(250, "training is drawn in this many windows: median loss, largest norm, hardest clip", ge=2)

    needs = ("grad_norm", "clip_scale")

    def draw(self, runs: Sequence[Run]) -> "Canvas":
        common.theme()

        groups = common.columns(runs)
        canvas, grid = common.subplots(
            3, len(groups), figsize=(max(3.4 * len(groups), 7), 7.6), sharex=True, sharey="row", squeeze=False
        )
        for column, group in zip(grid.T, groups, strict=True):
            for run in group.runs:
                self._seed(column, run, group.color)
            self._lines(column, group)
            column[0].set_title(group.heading, color=group.color)
            column[2].set_xlabel("training step")
        for row, label in zip(grid, ("loss", "gradient norm  ‖∂L/∂θ‖", "clipping factor"), strict=True):
            row[0].set_ylabel(label)
            common.decades(row[0].yaxis)
        canvas.tight_layout()
        common.caption(canvas, self._caption(groups), groups)
        return canvas

    def _seed(self, column: Sequence["Axes"], run: Run, color: str) -> None:
        """The three curves of one run."""
        norms, factors = run.series["grad_norm"], run.series["clip_scale"]
        curves: list[tuple[Series, NDArray, Callable]] = [
            (run.loss, _log10(run.loss.values), np.median),
            (norms, norms.column("global"), np.max),
            (factors, _log10(factors.column("clip_scale")), np.min),
        ]
        for axes, (series, values, reduce) in zip(column, curves, strict=True):
            axes.plot(*self._windowed(series.steps, values, reduce), color=color, lw=0.9, alpha=0.85)
            infinite = ~(
                values < np.inf
            )  # a window keeps its finite steps; a step that is not finite is marked at its own place
            finite.marks(axes, series.steps[infinite], values[infinite], color)
        if (stopped := stages.stopped(run)) is not None:
            for axes in column:
                axes.axvline(stopped, color=color, lw=0.8, linestyle=":")

    def _windowed(self, steps: NDArray, values: NDArray, reduce: Callable) -> tuple[NDArray, NDArray]:
        """One point for each window that holds finite steps; every step, where training is shorter
        than the windows.
        """
        valid = values < np.inf
        steps, values = steps[valid], values[valid]
        parts = np.array_split(np.arange(len(steps)), max(1, min(self.windows, len(steps))))
        parts = [part for part in parts if part.size]
        return np.array([steps[part[0]] for part in parts]), np.array([reduce(values[part]) for part in parts])

    def _lines(self, column: Sequence["Axes"], group: common.Group) -> None:
        """Reference lines: chance in the row of the loss, max_norm in the row of the gradient."""
        look: dict[str, Any] = {"ha": "right", "va": "bottom", "fontsize": 8, "color": palette.REFERENCE}
        if group.runs[0].chance_loss > 0:  # 0 where the input does not matter
            chance = np.log10(group.runs[0].chance_loss)
            column[0].axhline(chance, color=palette.REFERENCE, lw=1, linestyle="--")
            column[0].text(0.99, chance, "chance", transform=column[0].get_yaxis_transform(), **look)
        if (limit := group.runs[0].config["clip"].get("max_norm")) is not None:
            column[1].axhline(np.log10(limit), color=palette.REFERENCE, lw=1, linestyle="--")
            column[1].text(0.99, np.log10(limit), "max_norm", transform=column[1].get_yaxis_transform(), **look)

    def _caption(self, groups: list[common.Group]) -> str:
        ledger = []
        for group in groups:
            norms = np.concatenate([run.series["grad_norm"].column("global") for run in group.runs])
            factors = np.concatenate([run.series["clip_scale"].column("clip_scale") for run in group.runs])
            norms, factors = norms[norms < np.inf], factors[factors > 0]
            text = f"{group.label}: " + (f"largest norm 10^{norms.max():.1f}" if norms.size else "no norm is finite")
            if (factors < 1).any():
                hardest = -np.log10(factors.min())
                hardest_text = f"1/{10**hardest:,.0f}" if hardest < 9 else f"10^{-hardest:.0f}"
                text += f", clipped at {(factors < 1).mean():.0%} of steps, at most to {hardest_text}"
            if stopped := [run for run in group.runs if stages.stopped(run) is not None]:
                text += f", {len(stopped)} of {len(group.runs)} seeds diverged"
            solved = sum(map(stages.solved, group.runs))
            ledger.append(f"{text}, solved by {solved} of {len(group.runs)}")
        return (
            f"One line a seed, {common.seeds(groups)}; the same seeds see the same data with and without clipping. In "
            "each of the windows that training is divided into: median loss, largest norm, hardest clip. "
            f"{common.setting_text(groups)}. {'. '.join(ledger)}. "
            "Dotted: loss or gradient no longer finite. Norm clipping after Pascanu et al. (2013), algorithm 1."
        )


def _log10(values: NDArray) -> NDArray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log10(values)
