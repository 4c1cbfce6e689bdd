"""Heat map over parameter, lag and training step, which shows where and when the gradient vanishes
or explodes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gradpath.figures import Figure
from gradpath.figures._shared import common, finite, palette, stages
from gradpath.schema.settings import setting
from gradpath.tracking.loader import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap, Normalize
    from matplotlib.figure import Figure as Canvas
    from matplotlib.image import AxesImage


@dataclass
class GradientAtlas(Figure):
    """A column for each arm, with one run of it: a band for each parameter, and in it a row for
    each probe from initialisation (top) to the trained network (bottom), with the lag from left to
    right. The colour is log10 ‖∂L/∂θ_t‖; a true zero is grey.
    """

    faintest: float = setting(-12.0, "log10 norm below which the colour saturates", lt=0)
    strongest: float = setting(4.0, "log10 norm above which the colour saturates", gt=0)

    needs = ("param_grad_norm",)

    def draw(self, runs: Sequence[Run]) -> "Canvas":
        common.theme()
        import matplotlib
        from matplotlib.colors import TwoSlopeNorm

        groups = common.columns(runs)
        canvas, grid = common.subplots(1, len(groups), figsize=(3.3 * len(groups) + 0.8, 8.0), squeeze=False)
        colors = matplotlib.colormaps["RdBu_r"].with_extremes(bad=palette.TRUE_ZERO)
        norm = TwoSlopeNorm(vmin=self.faintest, vcenter=0, vmax=self.strongest)
        for axes, group in zip(grid[0], groups, strict=True):
            image = self._arm(axes, group, colors, norm)
        canvas.tight_layout()
        bar = canvas.colorbar(image, ax=grid.ravel().tolist(), fraction=0.02, pad=0.015, extend="both")
        common.decades(bar.ax.yaxis)
        bar.set_label("‖∂L/∂θ$_t$‖    dies (blue) ← → blows up (red);  grey: true zero")
        ended = all(stages.stopped(group.runs[0]) is None for group in groups)
        last = "the trained network" if ended else "what was read last, where a network diverged then"
        shown = ", ".join(dict.fromkeys(str(group.runs[0].seed) for group in groups))
        common.caption(
            canvas,
            f"One run an arm (seed {shown} of {common.seeds(groups)}). In each band the first row is the "
            f"initialisation and the last {last}; the probes are spaced evenly on a log axis of training steps, with "
            f"one more wherever the gradient norm doubled its record. {common.setting_text(groups)}.",
            groups,
        )
        return canvas

    def _arm(self, axes: "Axes", group: common.Group, colors: "Colormap", norm: "Normalize") -> "AxesImage":
        """The bands of one run; the probes' training steps stand beside the first band."""
        series = group.runs[0].series["param_grad_norm"]
        names = [series.names[column] for column in group.runs[0].roles.without_readout(series.names)]
        probes, lags = len(series.steps), len(group.runs[0].lag)
        bands = np.concatenate([series.column(name)[:, ::-1] for name in names])
        image = finite.image(axes, bands, aspect="auto", cmap=colors, norm=norm, interpolation="nearest")
        axes.set_title(group.heading, color=group.color)
        axes.set_yticks([probes * (i + 0.5) - 0.5 for i in range(len(names))], map(common.plain, names))
        for i in range(1, len(names)):
            axes.axhline(probes * i - 0.5, color=palette.BACKGROUND, lw=1.6)
        look: dict[str, Any] = {"ha": "right", "fontsize": 6.5}
        look["bbox"] = {"facecolor": palette.BACKGROUND, "alpha": 0.8, "edgecolor": "none", "pad": 0.8}
        axes.text(lags * 0.99, -0.3, f"step {series.steps[0]}", va="top", **look)
        stopped = stages.stopped(group.runs[0])
        axes.text(lags * 0.99, probes - 0.7, f"step {series.steps[-1]}", va="bottom", **look)
        finite.title(axes, "" if stopped is None else f"seed {group.runs[0].seed} diverged at step {stopped}")
        axes.set_xlabel("lag  T − t  (steps)")
        axes.grid(False)
        return image
