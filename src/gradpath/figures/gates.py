"""The activations of the gates over time, compared with the lags that the task needs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gradpath.core import layer_names
from gradpath.figures import CannotDrawError, Figure
from gradpath.figures._shared import common, finite, palette, stages
from gradpath.tracking.loader import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

INSTRUMENT = "gate_activation"


@dataclass
class Gates(Figure):
    """A column for each arm. Rows: the activation of each gate over the sequence, before (dashed)
    and after training (solid); the share of saturated units; for gated cells, the time constant
    −1/ln F of the carrier's gate against the lag that the task needs. For a cell without gates, φ′
    is drawn in their place: where φ′ is 0, no gradient passes.
    """

    needs = ("gate_activation",)

    def draw(self, runs: Sequence[Run]) -> "Canvas":
        common.theme()
        from matplotlib.lines import Line2D

        groups = common.columns(runs)
        if not groups:
            raise CannotDrawError("no run")
        stages.drawable(groups, INSTRUMENT)
        canvas, grid = common.subplots(
            3, len(groups), figsize=(3.5 * len(groups), 7.6), sharex=True, sharey="row", squeeze=False
        )
        for column, group in zip(grid.T, groups, strict=True):
            column[0].set_title(group.heading, color=group.color)
            column[2].set_xlabel("timestep t")
            column[0].set_ylim(-0.02, 1.02)
            finite.title(column[0], stages.words(group, stages.LAST, INSTRUMENT))
            if not stages.runs_at(group, stages.FIRST, INSTRUMENT):
                for axes in column:
                    finite.empty_panel(axes, group)
                continue
            names = group.runs[0].series["gate_activation"].names
            roles, gates = group.runs[0].roles, list(dict.fromkeys(name.rpartition("/")[0] for name in names))
            for gate in gates:
                self._activation(column[0], group, gate)
                self._saturation(column[1], group, gate)
            self._time_constant(column[2], group, [gate for gate in gates if roles.keeps(layer_names.split(gate)[1])])
        for axes, text in zip(grid[:, 0], ("activation", "share saturated", "time constant (steps)"), strict=True):
            axes.set_ylabel(text)
        looks = dict.fromkeys(
            (_label(group, gate), _color(group, gate))
            for group in groups
            for gate in (name.rpartition("/")[0] for name in group.runs[0].series["gate_activation"].names)
        )
        handles = [Line2D([], [], color=color, lw=1.8, label=label) for label, color in looks]
        rows = common.legend_rows(canvas, [label for label, _ in looks])
        place: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, 0.03 * rows)}
        canvas.legend(handles=handles, ncols=-(-len(handles) // rows), fontsize=9, columnspacing=1.2, **place)
        canvas.tight_layout(rect=(0, 0.03 * rows, 1, 1))
        common.caption(
            canvas,
            f"Median over {common.seeds(groups)}. Solid: {stages.trained_label(groups, INSTRUMENT)}, with the band "
            "between the units' 10 % and 90 % quantiles; dashed: at initialisation. Saturated: below 0.1 (solid) or "
            f"above 0.9 (dotted). Time constant of the carried state: −1/ln {_keepers(groups)}, for the units' median "
            "(thick) and 90 % quantile (thin), against the largest lag of the task (grey): a carousel with F < 1 keeps "
            "e^(−lag/τ) of its gradient; τ is infinite where F has rounded to 1. "
            f"{common.setting_text(groups)}.",
            groups,
        )
        return canvas

    def _activation(self, axes: "Axes", group: common.Group, gate: str) -> None:
        color = _color(group, gate)
        t = np.arange(1, len(group.runs[0].lag) + 1)
        axes.plot(t, _read(group, f"{gate}/mean", 0), color=color, lw=1, linestyle="--")
        axes.plot(t, _read(group, f"{gate}/mean", -1), color=color, lw=1.6)
        low, high = _read(group, f"{gate}/q10", -1), _read(group, f"{gate}/q90", -1)
        axes.fill_between(t, low, high, color=color, alpha=0.15, linewidth=0)

    def _saturation(self, axes: "Axes", group: common.Group, gate: str) -> None:
        t = np.arange(1, len(group.runs[0].lag) + 1)
        axes.plot(t, _read(group, f"{gate}/below_0.1", -1), color=_color(group, gate), lw=1.4)
        if not group.runs[0].roles.is_slope(layer_names.split(gate)[1]):  # a large φ′ is the opposite of saturated
            axes.plot(t, _read(group, f"{gate}/above_0.9", -1), color=_color(group, gate), lw=1.4, linestyle=":")

    def _time_constant(self, axes: "Axes", group: common.Group, forget: list[str]) -> None:
        from matplotlib.ticker import LogLocator, NullFormatter

        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        t = np.arange(1, len(group.runs[0].lag) + 1)
        axes.axhline(group.runs[0].longest_lag, color=palette.MUTED, lw=1.2)
        axes.text(
            t[0], group.runs[0].longest_lag, "longest lag of the task", va="bottom", fontsize=7.5, color=palette.REMARK
        )
        for gate in forget:
            for quantile, width in ((50, 1.6), (90, 0.9)):
                for probe, dash in ((0, "--"), (-1, "-")):
                    f = np.maximum(_kept(group, gate, quantile, probe), 1e-12)
                    tau = np.full_like(f, np.inf)  # where F has rounded to 1: marked, not drawn
                    np.divide(-1, np.log(f), out=tau, where=f < 1)
                    axes.plot(t, tau, color=_color(group, gate), lw=width, linestyle=dash)
        low, high = axes.get_ylim()
        if high > 1e4 * low:  # there is no room for 2 and 5 then, and the locator would leave out all labels
            axes.yaxis.set_major_locator(LogLocator())
        if not forget:
            text = "no gate that keeps,\nno time constant"
            axes.text(0.5, 0.4, text, transform=axes.transAxes, ha="center", color=palette.MUTED)


def _read(group: common.Group, name: str, probe: int) -> NDArray:
    """(T,) median over the seeds of one column of ``gate_activation``, at its first (0) or last
    (-1) finite reading.
    """
    members = stages.runs_at(group, probe, INSTRUMENT)
    return np.nanmedian(
        [run.series[INSTRUMENT].column(name)[stages.finite_readings(run, INSTRUMENT)[probe]] for run in members], axis=0
    )


def _kept(group: common.Group, gate: str, quantile: int, probe: int) -> NDArray:
    """(T,) a quantile of the carrier's factor: of the gate, or of its complement."""
    keeping = group.runs[0].roles.keeping
    if keeping is not None and keeping.complement:
        return 1 - _read(group, f"{gate}/q{100 - quantile}", probe)
    return _read(group, f"{gate}/q{quantile}", probe)


def _keepers(groups: Sequence[common.Group]) -> str:
    """``F (Z of GRU)``: the gates that keep the carrier, for a caption."""
    cells: dict[str, str] = {}
    for roles in (group.runs[0].roles for group in groups):
        if roles.keeping is not None and roles.keeping.gate is not None:
            gate = f"(1 − {roles.keeping.gate})" if roles.keeping.complement else roles.keeping.gate
            cells.setdefault(common.plain(gate), common.plain(roles.label))
    if not cells:
        return "(what keeps)"
    first, *remaining = cells
    suffix = ", ".join(f"{gate} of {cells[gate]}" for gate in remaining)
    return f"{first} ({suffix})" if suffix else first


def _color(group: common.Group, gate: str) -> str:
    return palette.watched(group.runs[0].roles, gate)


def _label(group: common.Group, gate: str) -> str:
    """``input gate``, ``φ′ of RNN``: the label of the curves of one colour."""
    roles, name = group.runs[0].roles, layer_names.split(gate)[1]
    if roles.is_slope(name):
        return f"φ′ of {common.plain(roles.label)}"
    if roles.keeping is not None and roles.keeps(name):
        return common.plain(f"{roles.keeping.label} ({'1 − its value ' * roles.keeping.complement}keeps)")
    path = roles.gates[roles.watched[name].gate].path if name in roles.watched else None
    return common.plain((path or name).replace("_", " "))
