"""The cell's computational graph, with arrows as wide as the gradient
that flows back along them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gradpath.core import layer_names
from gradpath.core.drawing import RIGHT
from gradpath.figures import CannotDrawError, Figure
from gradpath.figures._shared import cell_diagram, common, finite, stages
from gradpath.figures.paths import cosine, parts, probes, read, share
from gradpath.schema.settings import setting
from gradpath.tracking.loader import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

STAGES = ("before training", "after training")
READ = ("path_grad_norm", "node_grad_norm")


@dataclass
class Flow(Figure):
    """Two rows an arm with gates, before and after training; a column a lag. The gradient flows
    from right to left. Its size along an arrow, relative to ‖∂L/∂C_T‖ with which it starts, gives
    the width, on a log scale. Bottom layer.
    """

    decades: float = setting(4.0, "how many decades below the start an arrow is drawn dotted", gt=0, le=100)

    needs = ("path_grad_norm", "node_grad_norm")

    def draw(self, runs: Sequence[Run]) -> "Canvas":
        common.theme()
        from matplotlib import pyplot

        found = [group for group in common.columns(runs) if group.runs[0].roles.drawing]
        if not found:
            raise CannotDrawError("no run of a cell with gates that says how its step is drawn")
        stages.drawable(found, *READ)
        found = stages.aligned(found, *READ)
        lags = _lags(len(found[0].runs[0].lag))
        canvas, grid = pyplot.subplots(
            2 * len(found), len(lags), figsize=(3.1 * len(lags), 4.0 * len(found) + 0.6), squeeze=False
        )
        for index, group in enumerate(found):
            for stage, row in enumerate(grid[2 * index : 2 * index + 2]):
                for axes, lag in zip(row, lags, strict=True):
                    self._panel(axes, group, stage, lag)
                said = stages.words(group, -stage, *READ)
                early = stage and said.startswith("last finite")
                label = f"{group.title}\n{'last finite reading' if early else STAGES[stage]}"
                finite.title(row[0], said)
                row[0].text(-0.04, 0.5, label, transform=row[0].transAxes, rotation=90, ha="right", va="center")
                row[0].texts[-1].set(color=group.color, fontweight="bold", fontsize=9)
        for axes, lag in zip(grid[0], lags, strict=True):
            axes.set_title(f"lag {lag}", pad=12)
        canvas.tight_layout(rect=(0, 0.55 / canvas.get_figheight(), 1, 1), h_pad=0.6, w_pad=0.4)
        self._legend(canvas)
        common.caption(
            canvas,
            f"Median over {common.seeds(found)}. The gradient flows from right to left, against the computation; "
            "black: the highway. A gate's upper arrow is ‖∂L/∂(gate)‖, its lower one what it sends back through the "
            "output to the carried state; the dark one on the left is all of that together with the direct part. "
            "Widths are relative to the gradient of the carried state at lag 0 of the same network. Below the graph: "
            f"the highway's signed share of the carried state's gradient. Theory: where the keeping gate is open, the "
            f"highway hands on what it receives (Hochreiter & Schmidhuber 1997). {common.setting_text(found)}.",
            found,
        )
        return canvas

    def _panel(self, axes: "Axes", group: common.Group, stage: int, lag: int) -> None:
        roles = group.runs[0].roles
        there = stages.at(group, -stage, *READ)
        if not there:
            axes.axis("off")
            finite.nothing(axes, group)
            return
        found = [_sizes(run, stage, lag) for run in there]
        # A true zero in most seeds is one, and stands for nothing.
        sizes = {name: float(common.median_band([sizes[name] for sizes in found])[0]) for name in found[0]}
        assert roles.drawing
        cell_diagram.draw(axes, roles.drawing, roles, {name: self._width(size) for name, size in sizes.items()})
        kept = common.number([share(run, "highway", stage)[-2 - lag] for run in there], ".0%")
        size = sizes["before"]
        total = f"$10^{{{round(size, 1) + 0:g}}}$" if np.isfinite(size) else "0"
        text = f"highway {kept}    total {total}"
        axes.text(RIGHT / 2, -0.75, text, ha="center", va="center", fontsize=8, color="#333333")

    def _width(self, size: float) -> float:
        """0 … 1 of log10 of a size relative to the start; a little more where the gradient has
        grown.
        """
        return float(np.clip(1 + size / self.decades, 0, 1.25)) if size > -self.decades else 0.0

    def _legend(self, canvas: "Canvas") -> None:
        from matplotlib.lines import Line2D

        steps = np.arange(0, self.decades, max(1, round(self.decades / 4)))
        handles = [
            Line2D(
                [], [], color="black", lw=max(0.7, cell_diagram.WIDEST * self._width(-s)), label=f"$10^{{{0 - s:g}}}$"
            )
            for s in steps
        ]
        handles.append(Line2D([], [], color="black", lw=0.8, ls=":", label=f"less than $10^{{{-self.decades:g}}}$"))
        canvas.legend(
            handles=handles,
            loc="upper center",
            bbox_to_anchor=(0.5, 0.55 / canvas.get_figheight()),
            ncols=len(handles),
            fontsize=9,
            title="gradient relative to that of the carried state at lag 0",
            handlelength=3,
        )


def _lags(steps: int) -> list[int]:
    """One, a quarter, half, and nearly all of the sequence: the furthest at which there is a step
    before.
    """
    if steps < 2:
        raise CannotDrawError("a sequence of one step has no step before it")
    return sorted({min(lag, steps - 2) for lag in (1, steps // 4, steps // 2, steps - 2)})


def _sizes(run: Run, stage: int, lag: int) -> dict[str, float]:
    """log10 of the gradient along every arrow of the step that ends at a lag, relative to the
    carried state's at T.
    """
    nodes, probe = run.series["node_grad_norm"], probes(run, "node_grad_norm")[stage]
    here, before = -1 - lag, -2 - lag
    sizes = {part: read(run, part, stage)[before] for part in parts(run)}
    for name in nodes.names:
        layer, node = layer_names.split(name)
        if not layer:
            sizes[node] = nodes.column(name)[probe, here]
    sizes |= {"carrier": read(run, "total", stage)[here], "before": read(run, "total", stage)[before]}
    sizes["arrives"] = read(run, "highway", stage)[here]
    sizes |= {"through_H": _less_highway(run, stage, here), "through_H_before": _less_highway(run, stage, before)}
    start = read(run, "total", stage)[-1]
    return {name: float(size - start) for name, size in sizes.items()}


def _less_highway(run: Run, stage: int, at: int) -> float:
    """log10 ‖total − highway‖, which is what comes through H, by the cosine rule."""
    whole, part = read(run, "total", stage)[at], read(run, "highway", stage)[at]
    if np.isneginf(whole):
        return -np.inf
    ratio = 10.0 ** (part - whole)
    square = 1 - 2 * ratio * cosine(run, "highway", stage)[at] + ratio**2
    return float(whole + 0.5 * np.log10(square)) if square > 0 else -np.inf
