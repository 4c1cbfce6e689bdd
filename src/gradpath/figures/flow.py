"""The cell's computational graph, with arrows as wide as the gradient that flows back along
them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gradpath.core import layer_names
from gradpath.core.drawing import RIGHT
from gradpath.figures import CannotDrawError, Figure
from gradpath.figures._shared import cell_diagram, common, finite, palette, stages
from gradpath.figures.paths import cosine, parts, probes, read, share
from gradpath.schema.settings import setting
from gradpath.tracking.loader import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

STAGES = ("before training", "after training")
INSTRUMENTS = ("path_grad_norm", "node_grad_norm")


@dataclass
class Flow(Figure):
    """Two rows for each arm with gates, before and after training; a column for each lag. The
    gradient flows from right to left. Its size along an arrow, relative to the initial ‖∂L/∂C_T‖,
    gives the width, on a log scale. Bottom layer.
    """

    decades: float = setting(4.0, "how many decades below the start an arrow is drawn dotted", gt=0, le=100)

    needs = ("path_grad_norm", "node_grad_norm")

    def undrawn(self, runs: Sequence[Run]) -> Sequence[str]:
        missing = [group for group in common.groups(runs) if not group.runs[0].roles.drawing]
        gated = [g.name for g in missing if any(gate.role != "unit" for gate in g.runs[0].roles.gates.values())]
        return [f"{name} has no drawing" for name in gated]

    def draw(self, runs: Sequence[Run]) -> "Canvas":
        common.theme()

        groups = [group for group in common.columns(runs) if group.runs[0].roles.drawing]
        if not groups:
            missing = "; ".join(self.undrawn(runs))
            raise CannotDrawError(missing or "no run of a cell with gates that says how its step is drawn")
        stages.drawable(groups, *INSTRUMENTS)
        groups = stages.aligned(groups, *INSTRUMENTS)
        lags = _lags(len(groups[0].runs[0].lag))
        canvas, grid = common.subplots(
            2 * len(groups), len(lags), figsize=(3.1 * len(lags), 4.0 * len(groups) + 0.6), squeeze=False
        )
        for index, group in enumerate(groups):
            for stage, row in enumerate(grid[2 * index : 2 * index + 2]):
                for axes, lag in zip(row, lags, strict=True):
                    self._panel(axes, group, stage, lag)
                note = stages.words(group, -stage, *INSTRUMENTS)
                last_finite = stage and note.startswith("last finite")
                label = f"{group.title}\n{'last finite reading' if last_finite else STAGES[stage]}"
                finite.title(row[0], note)
                row[0].text(-0.04, 0.5, label, transform=row[0].transAxes, rotation=90, ha="right", va="center")
                row[0].texts[-1].set(color=group.color, fontweight="bold", fontsize=9)
        for axes, lag in zip(grid[0], lags, strict=True):
            axes.set_title(f"lag {lag}", pad=12)
        canvas.tight_layout(rect=(0, 0.55 / canvas.get_figheight(), 1, 1), h_pad=0.6, w_pad=0.4)
        self._legend(canvas)
        common.caption(
            canvas,
            f"Median over {common.seeds(groups)}. The gradient flows from right to left, against the computation; "
            "black: the highway. A gate's upper arrow is ‖∂L/∂(gate)‖, its lower one what it sends back through the "
            "output to the carried state; the dark one on the left is all of that together with the direct part. "
            "Widths are relative to the gradient of the carried state at lag 0 of the same network. Below the graph: "
            f"the highway's signed share of the carried state's gradient. Theory: where the keeping gate is open, the "
            f"highway hands on what it receives (Hochreiter & Schmidhuber 1997). {common.setting_text(groups)}.",
            groups,
        )
        return canvas

    def _panel(self, axes: "Axes", group: common.Group, stage: int, lag: int) -> None:
        roles = group.runs[0].roles
        members = stages.runs_at(group, -stage, *INSTRUMENTS)
        if not members:
            axes.axis("off")
            finite.empty_panel(axes, group)
            return
        seed_sizes = [_sizes(run, stage, lag) for run in members]
        # Where most seeds have a true zero (-inf), the median is a true zero too.
        sizes = {name: float(common.median_band([sizes[name] for sizes in seed_sizes])[0]) for name in seed_sizes[0]}
        assert roles.drawing
        cell_diagram.draw(axes, roles.drawing, roles, {name: self._width(size) for name, size in sizes.items()})
        highway_share = common.number([share(run, "highway", stage)[-2 - lag] for run in members], ".0%")
        size = sizes["before"]
        total = f"$10^{{{round(size, 1) + 0:g}}}$" if np.isfinite(size) else "0"
        text = f"highway {highway_share}    total {total}"
        axes.text(RIGHT / 2, -0.75, text, ha="center", va="center", fontsize=8, color=palette.TEXT)

    def _width(self, size: float) -> float:
        """0 … 1 from log10 of a size relative to the start; a little more where the gradient has
        grown.
        """
        return float(np.clip(1 + size / self.decades, 0, 1.25)) if size > -self.decades else 0.0

    def _legend(self, canvas: "Canvas") -> None:
        from matplotlib.lines import Line2D

        steps = np.arange(0, self.decades, max(1, round(self.decades / 4)))
        handles = [
            Line2D(
                [],
                [],
                color=palette.OUTLINE,
                lw=max(0.7, cell_diagram.WIDEST * self._width(-s)),
                label=f"$10^{{{0 - s:g}}}$",
            )
            for s in steps
        ]
        handles.append(
            Line2D([], [], color=palette.OUTLINE, lw=0.8, ls=":", label=f"less than $10^{{{-self.decades:g}}}$")
        )
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
    """One, a quarter, half, and nearly all of the sequence; the longest lag is the longest that has
    a preceding step.
    """
    if steps < 2:
        raise CannotDrawError("a sequence of one step has no step before it")
    return sorted({min(lag, steps - 2) for lag in (1, steps // 4, steps // 2, steps - 2)})


def _sizes(run: Run, stage: int, lag: int) -> dict[str, float]:
    """log10 of the gradient along every arrow of the step that ends at a lag, relative to that of
    the carried state at T.
    """
    nodes, probe = run.series["node_grad_norm"], probes(run, "node_grad_norm")[stage]
    current, previous = -1 - lag, -2 - lag
    sizes = {part: read(run, part, stage)[previous] for part in parts(run)}
    for name in nodes.names:
        layer, node = layer_names.split(name)
        if not layer:
            sizes[node] = nodes.column(name)[probe, current]
    sizes |= {"carrier": read(run, "total", stage)[current], "before": read(run, "total", stage)[previous]}
    sizes["arrives"] = read(run, "highway", stage)[current]
    sizes |= {"through_H": _less_highway(run, stage, current), "through_H_before": _less_highway(run, stage, previous)}
    start = read(run, "total", stage)[-1]
    return {name: float(size - start) for name, size in sizes.items()}


def _less_highway(run: Run, stage: int, index: int) -> float:
    """log10 ‖total − highway‖, the part that comes through H, by the law of cosines."""
    total, part = read(run, "total", stage)[index], read(run, "highway", stage)[index]
    if np.isneginf(total):
        return -np.inf
    ratio = 10.0 ** (part - total)
    square = 1 - 2 * ratio * cosine(run, "highway", stage)[index] + ratio**2
    return float(total + 0.5 * np.log10(square)) if square > 0 else -np.inf
