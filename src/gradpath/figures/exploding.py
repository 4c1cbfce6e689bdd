"""Loss and gradient-norm spikes without clipping, the same seeds clipped, and the clipping ledger."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gradpath.figures import CannotDrawError, Figure, style
from gradpath.loader import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas


@dataclass
class Exploding(Figure):
    """A column a cell, the arms that differ in clipping together in it. Rows: loss, gradient norm, and the ledger: the
    factor by which each step's gradient was shortened, how often and how hard.
    """

    needs = ("grad_norm", "clip_scale")

    def draw(self, runs: Sequence[Run]) -> "Canvas":
        style.theme()
        from matplotlib import pyplot

        found = style.groups(runs)
        cells = list(dict.fromkeys(group.runs[0].config["cell"]["name"] for group in found))
        if not cells:
            raise CannotDrawError("no run")
        canvas, grid = pyplot.subplots(
            3, len(cells), figsize=(5.2 * len(cells), 7.6), sharex=True, sharey="row", squeeze=False
        )
        for column, cell in zip(grid.T, cells, strict=True):
            members = [group for group in found if group.runs[0].config["cell"]["name"] == cell]
            # The clipped arm on top of the unclipped one, which it would otherwise hide behind.
            for group in members:
                self._arm(column, group)
            self._chance(column[0], members[0].runs[0])
            column[0].set_title(style.arm_label(cell))
            column[0].legend(loc="lower left", fontsize=8)
            column[2].set_xlabel("training step")
        for row, label in zip(grid, ("loss", "gradient norm  ‖∂L/∂θ‖", "clipping factor"), strict=True):
            row[0].set_ylabel(label)
            style.decades(row[0].yaxis)
        canvas.tight_layout()
        style.caption(canvas, self._caption(found))
        return canvas

    def _arm(self, column: Sequence["Axes"], group: style.Group) -> None:
        """Every seed as a line of its own: a spike in one seed is the point, and a median would remove it."""
        for index, run in enumerate(group.runs):
            label = group.label if index == 0 else None
            look: dict[str, Any] = {"color": group.color, "lw": 0.7, "alpha": 0.75}
            with np.errstate(divide="ignore", invalid="ignore"):
                column[0].plot(run.loss.steps, np.log10(run.loss.values), label=label, **look)
                norms, factors = run.series["grad_norm"], run.series["clip_scale"]
                column[1].plot(norms.steps, norms.column("global"), **look)
                column[2].plot(factors.steps, np.log10(factors.column("clip_scale")), **look)
            if (stopped := run.diverged_at) is not None:
                column[0].axvline(stopped, color=group.color, lw=0.8, linestyle=":")
        if (limit := group.runs[0].config["clip"]["max_norm"]) is not None:
            column[1].axhline(np.log10(limit), color=group.color, lw=1.2, linestyle="--")

    def _chance(self, axes: "Axes", run: Run) -> None:
        level = np.log10(run.chance_loss)
        axes.axhline(level, color="#444444", lw=1, linestyle="--")
        axes.text(0.995, level, "chance", transform=axes.get_yaxis_transform(), ha="right", va="bottom", fontsize=8)

    def _caption(self, found: list[style.Group]) -> str:
        ledger = []
        for group in found:
            norms = np.concatenate([run.series["grad_norm"].column("global") for run in group.runs])
            factors = np.concatenate([run.series["clip_scale"].column("clip_scale") for run in group.runs])
            text = f"{group.label}: largest norm 10^{np.nanmax(norms[norms < np.inf]):.1f}"
            if (factors < 1).any():
                text += f", clipped at {(factors < 1).mean():.0%} of steps, at most to 1/{1 / np.nanmin(factors):.3g}"
            if stopped := [run for run in group.runs if run.diverged_at is not None]:
                text += f", {len(stopped)} of {len(group.runs)} seeds diverged"
            ledger.append(text)
        return (
            f"One line a seed, {style.seeds(found)}; the same seeds see the same data with and without clipping. "
            f"{style.setting_text(found[0].runs[0])}. {'. '.join(ledger)}. Dashed in the middle row: max_norm. Dotted: "
            "loss or gradient no longer finite. Norm clipping after Pascanu et al. (2013), algorithm 1."
        )
