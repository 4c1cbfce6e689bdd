"""What the gates do over time, against the lags that the task needs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gradpath.figures import CannotDrawError, Figure
from gradpath.figures._shared import common, finite, stages
from gradpath.tracking.loader import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

# What keeps (F, and the GRU's Z) is blue.
COLORS = {"I": "#E69F00", "F": "#0072B2", "O": "#009E73", "Z": "#0072B2", "R": "#E69F00", "phi_prime": "#D55E00"}
NAMES = {
    "I": "input gate",
    "F": "forget gate",
    "O": "output gate",
    "Z": "update gate (keeps, as F does)",
    "R": "reset gate",
    "phi_prime": "φ′ of the RNN",
}
KEEPS = ("F", "Z")
READ = "gate_activation"


@dataclass
class Gates(Figure):
    """A column an arm. Rows: activation of each gate over the sequence, before (dashed) and after training (solid);
    share of saturated units; for gated cells the time constant −1/ln F of the forget gate (Z of the GRU) against the
    lag the task needs. For the RNN, φ′ takes the gates' place: where it is 0, no gradient passes.
    """

    needs = ("gate_activation",)

    def draw(self, runs: Sequence[Run]) -> "Canvas":
        common.theme()
        from matplotlib import pyplot
        from matplotlib.lines import Line2D

        found = common.columns(runs)
        if not found:
            raise CannotDrawError("no run")
        stages.drawable(found, READ)
        canvas, grid = pyplot.subplots(
            3, len(found), figsize=(3.5 * len(found), 7.6), sharex=True, sharey="row", squeeze=False
        )
        for column, group in zip(grid.T, found, strict=True):
            column[0].set_title(group.heading, color=group.color)
            column[2].set_xlabel("timestep t")
            column[0].set_ylim(-0.02, 1.02)
            finite.title(column[0], stages.words(group, stages.LAST, READ))
            if not stages.at(group, stages.FIRST, READ):
                for axes in column:
                    finite.nothing(axes, group)
                continue
            names = group.runs[0].series["gate_activation"].names
            gates = list(dict.fromkeys(name.rsplit("/", 1)[0] for name in names))
            for gate in gates:
                self._activation(column[0], group, gate)
                self._saturation(column[1], group, gate)
            self._time_constant(column[2], group, [gate for gate in gates if gate.rpartition("/")[2] in KEEPS])
        for axes, text in zip(grid[:, 0], ("activation", "share saturated", "time constant (steps)"), strict=True):
            axes.set_ylabel(text)
        drawn = {name.split("/")[-2] for group in found for name in group.runs[0].series["gate_activation"].names}
        looks = [(COLORS[gate], text) for gate, text in NAMES.items() if gate in drawn]
        handles = [Line2D([], [], color=color, lw=1.8, label=text) for color, text in looks]
        canvas.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, 0.03), ncols=len(handles), fontsize=9)
        canvas.tight_layout(rect=(0, 0.03, 1, 1))
        common.caption(
            canvas,
            f"Median over {common.seeds(found)}. Solid: {stages.after(found, READ)}, with the band between the units' "
            "10 % and 90 % quantiles; dashed: at initialisation. Saturated: below 0.1 (solid) or above 0.9 (dotted). "
            "Time constant of the carried state: −1/ln F (Z of the GRU), for the units' median (thick) and 90 % "
            "quantile (thin), against the largest lag of the task (grey): a carousel with F < 1 keeps e^(−lag/τ) of "
            "its gradient; τ is infinite where F has rounded to 1. "
            f"{common.setting_text(found)}.",
            found,
        )
        return canvas

    def _activation(self, axes: "Axes", group: common.Group, gate: str) -> None:
        color = _color(gate)
        t = np.arange(1, len(group.runs[0].lag) + 1)
        axes.plot(t, _read(group, f"{gate}/mean", 0), color=color, lw=1, linestyle="--")
        axes.plot(t, _read(group, f"{gate}/mean", -1), color=color, lw=1.6)
        low, high = _read(group, f"{gate}/q10", -1), _read(group, f"{gate}/q90", -1)
        axes.fill_between(t, low, high, color=color, alpha=0.15, linewidth=0)

    def _saturation(self, axes: "Axes", group: common.Group, gate: str) -> None:
        t = np.arange(1, len(group.runs[0].lag) + 1)
        axes.plot(t, _read(group, f"{gate}/below_0.1", -1), color=_color(gate), lw=1.4)
        if not gate.endswith("phi_prime"):  # φ′ near its largest value is the opposite of saturated
            axes.plot(t, _read(group, f"{gate}/above_0.9", -1), color=_color(gate), lw=1.4, linestyle=":")

    def _time_constant(self, axes: "Axes", group: common.Group, forget: list[str]) -> None:
        from matplotlib.ticker import LogLocator, NullFormatter

        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        t = np.arange(1, len(group.runs[0].lag) + 1)
        axes.axhline(group.runs[0].longest_lag, color="#777777", lw=1.2)
        axes.text(
            t[0], group.runs[0].longest_lag, "longest lag of the task", va="bottom", fontsize=7.5, color="#555555"
        )
        for gate in forget:
            for quantile, width in (("q50", 1.6), ("q90", 0.9)):
                for probe, dash in ((0, "--"), (-1, "-")):
                    f = np.maximum(_read(group, f"{gate}/{quantile}", probe), 1e-12)
                    tau = np.full_like(f, np.inf)  # where F has rounded to 1: marked, not drawn
                    np.divide(-1, np.log(f), out=tau, where=f < 1)
                    axes.plot(t, tau, color=_color(gate), lw=width, linestyle=dash)
        low, high = axes.get_ylim()
        if high > 1e4 * low:  # there is no room for 2 and 5 then, and the locator would leave out all
            axes.yaxis.set_major_locator(LogLocator())
        if not forget:
            axes.text(0.5, 0.4, "no gate, no time constant", transform=axes.transAxes, ha="center", color="#777777")


def _read(group: common.Group, name: str, probe: int) -> NDArray:
    """(T,) median over the seeds of one column of ``gate_activation``, at its first (0) or last (-1) finite reading."""
    there = stages.at(group, probe, READ)
    return np.nanmedian([run.series[READ].column(name)[stages.whole(run, READ)[probe]] for run in there], axis=0)


def _color(gate: str) -> str:
    return COLORS.get(gate.rpartition("/")[2], "#777777")
