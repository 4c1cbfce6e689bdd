"""The Lyapunov spectrum and the singular values over the lag, which show in how many directions the
gradient survives.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gradpath.core import layer_names
from gradpath.core.theory import log_keep
from gradpath.figures import Figure
from gradpath.figures._shared import common, finite, palette, stages
from gradpath.schema.settings import setting
from gradpath.tracking.loader import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

STAGES = ("at initialisation", "after training")
SHARES = {0.0: 2.2, 0.1: 1.5, 0.25: 1.0, 0.45: 0.6}
"""The singular values that are drawn: k/n, and the width of the line."""
LOOKS: tuple[dict[str, Any], ...] = ({"lw": 1.2, "ls": "--", "band": 0.1}, {"lw": 2.2, "ls": "-", "band": 0.2})
"""The lines of the spectrum before and after training."""
INSTRUMENTS = ("lyapunov_spectrum", "jacobian_log_singular_values")
FLOOR = -20.0
"""Smallest exponent shown: ten decades a step."""


@dataclass
class Lyapunov(Figure):
    """A column for each arm, for its bottom layer. First row: the Lyapunov spectrum λ_k against
    k/n, before (dashed) and after training (solid), with the prediction for the untrained network
    (dotted) and −1/lag of the task (grey). Below: the singular values of ∂s_T/∂s_{T-l} over the lag
    l, before and after training, with e^(λ_k l) (dotted).
    """

    faintest: float = setting(-40.0, "log10 of the smallest singular value shown", lt=0)

    needs = ("lyapunov_spectrum", "jacobian_log_singular_values")

    def draw(self, runs: Sequence[Run]) -> "Canvas":
        common.theme()

        groups = common.columns(runs)
        stages.drawable(groups, *INSTRUMENTS)
        groups = stages.aligned(groups, *INSTRUMENTS)
        canvas, grid = common.subplots(
            3, len(groups), figsize=(2.6 * len(groups) + 0.8, 8.2), sharex="row", sharey="row", squeeze=False
        )
        for column, group in zip(grid.T, groups, strict=True):
            column[0].set_title(group.title, color=group.color)
            column[0].set_xlabel("share of directions  k/n")
            column[2].set_xlabel("lag  l  (steps)")
            for axes in (column[0], column[2]):
                finite.title(axes, stages.words(group, stages.LAST, *INSTRUMENTS))
            if not _runs_at(group, 0):
                for axes in column:
                    finite.empty_panel(axes, group)
                continue
            self._spectrum(column[0], group)
            for axes, probe in zip(column[1:], (0, -1), strict=True):
                self._singular_values(axes, group, probe)
        self._scales(grid, groups)
        _legend(canvas, groups)
        canvas.tight_layout(rect=(0, 0.05, 1, 1))
        common.caption(canvas, _caption(groups), groups)
        return canvas

    def _spectrum(self, axes: "Axes", group: common.Group) -> None:
        size = len(_spectrum(_runs_at(group, 0)[0], 0))
        x = (np.arange(size) + 0.5) / size
        axes.axhline(0, color=palette.MUTED, lw=1)
        axes.axhline(-1 / group.runs[0].longest_lag, color=palette.LONGEST_LAG, lw=1.4)
        for probe, look in zip((0, -1), LOOKS, strict=True):
            common.curve(
                axes, x, [_spectrum(run, probe) for run in _runs_at(group, probe)], FLOOR, color=group.color, **look
            )
        expected = theory(group.runs[0])
        axes.plot(x[: len(expected)], expected, color=palette.THEORY_OF_ARM, lw=1.4, ls=":")

    def _singular_values(self, axes: "Axes", group: common.Group, probe: int) -> None:
        exponents = _median(group, probe)
        lags, _ = _values(_runs_at(group, probe)[0], probe)
        for share, width in SHARES.items():
            k = int(share * len(exponents))
            curves = [_values(run, probe)[1][:, k] for run in _runs_at(group, probe)]
            common.curve(axes, lags, curves, self.faintest, color=group.color, lw=width, band=0.12)
            if np.isfinite(exponents[k]):
                axes.plot(lags, exponents[k] * lags / np.log(10), color=palette.THEORY_OF_ARM, lw=0.9, ls=":")

    def _scales(self, grid: NDArray, groups: list[common.Group]) -> None:
        """A symmetric log axis for the exponents, on which time constants of 1 and of 100 steps are
        both visible.
        """
        from matplotlib.ticker import FixedLocator, NullLocator

        first = grid[0, 0]
        first.set_yscale("symlog", linthresh=0.01, linscale=0.6)
        drawn = [(run, probe) for group in groups for probe in (0, -1) for run in _runs_at(group, probe)]
        largest = max(_spectrum(run, probe)[0] for run, probe in drawn)
        first.set_ylim(FLOOR, max(0.1, 2 * largest))
        first.yaxis.set_major_locator(FixedLocator([-10, -1, -0.1, -0.01, 0, 0.01, 0.1, 1, 10]))
        first.yaxis.set_minor_locator(NullLocator())
        first.yaxis.set_major_formatter("{x:g}")
        first.set_ylabel("Lyapunov exponent λ$_k$\n(natural log, a step)")
        first.set_xlim(0, 1)
        top = max((_values(run, probe)[1].max(initial=-np.inf) for run, probe in drawn), default=-np.inf)
        for axes, stage in zip(grid[1:, 0], STAGES, strict=True):
            axes.set_ylim(self.faintest, max(2.0, 1.1 * top))
            common.decades(axes.yaxis)
            label = stage if stage == STAGES[0] else stages.trained_label(groups, *INSTRUMENTS)
            axes.set_ylabel(f"{label}\n\nsingular value of ∂s$_T$/∂s$_{{T-l}}$")


def theory(run: Run) -> NDArray:
    """The exponents that theory predicts for the untrained network, the largest first; empty where
    there is no prediction.

    Gates that read only their bias keep ln σ(b) in the carrier's share of the directions; under
    chrono initialisation each unit has its own b = ln U[1, t_max − 1], and σ(b) = U/(1 + U). A
    random matrix of spectral radius g has λ_k = ln g + ½ ln(1 − k/n) (Girko's circular law; for
    independent matrices Newman 1986) where tanh is nearly linear, which requires g < 1.
    """
    width, keeping, init = int(run.config["cell"]["hidden_size"]), run.roles.keeping, run.config["init"]
    share = (np.arange(width) + 0.5) / width
    if keeping is not None:
        if keeping.held is not None or keeping.bias is None:
            return np.zeros(0)
        if isinstance(keeping.bias, tuple):
            low, high = keeping.bias
            return -np.log1p(1 / (low + (1 - share) * (high - low)))
        return np.full(width, log_keep(keeping.bias))
    radius = {"uniform": 3**-0.5, "gaussian": 1.0}.get(init["name"], np.nan) * init["gain"]
    if not radius < 1 or run.roles.recurrence != "tanh":
        return np.zeros(0)
    return np.log(radius) + 0.5 * np.log(1 - share)


def _spectrum(run: Run, probe: int) -> NDArray:
    """(n,) exponents of the bottom layer."""
    series = run.series["lyapunov_spectrum"]
    names = [name for name in series.names if not layer_names.split(name)[0]]
    return _finite_values(run, "lyapunov_spectrum")[probe, [series.names.index(name) for name in names]]


def _values(run: Run, probe: int) -> tuple[NDArray, NDArray]:
    """The lags, and log10 σ_k (lags, n) of the bottom layer."""
    series = run.series["jacobian_log_singular_values"]
    by_lag: dict[int, list[int]] = {}
    for index, name in enumerate(series.names):
        if not layer_names.split(name)[0]:
            by_lag.setdefault(int(name.partition("lag=")[2].partition("/")[0]), []).append(index)
    columns = np.array(list(by_lag.values()), dtype=int).reshape(len(by_lag), -1)
    return np.array(list(by_lag)), _finite_values(run, "jacobian_log_singular_values")[probe][columns]


def _finite_values(run: Run, instrument: str) -> NDArray:
    """The readings without NaN; the first is that of the initialisation, the last that of the
    trained network.
    """
    return run.series[instrument].values[stages.finite_readings(run, instrument)]


def _median(group: common.Group, probe: int) -> NDArray:
    """(n,) the median of the exponents over the seeds."""
    return common.median_band(_spectrum(run, probe) for run in _runs_at(group, probe))[0]


def _runs_at(group: common.Group, probe: int) -> list[Run]:
    """The runs that are drawn before (0) or after training (-1)."""
    return stages.runs_at(group, probe, *INSTRUMENTS)


def _legend(canvas: "Canvas", groups: Sequence[common.Group]) -> None:
    """The legend below the panels: the lines of the spectrum, then those of the singular values."""
    from matplotlib.lines import Line2D

    def line(label: str, color: str = palette.CURVE_SAMPLE, **look: Any) -> Line2D:
        look.pop("band", None)
        return Line2D([], [], color=color, label=label, **look)

    labels = (STAGES[0], stages.trained_label(groups, *INSTRUMENTS))
    spectrum_handles = [line(f"λ$_k$ {stage}", **look) for stage, look in zip(labels, LOOKS, strict=True)]
    spectrum_handles += [
        line("theory", palette.THEORY_OF_ARM, lw=1.4, ls=":"),
        line("−1 / longest lag of the task", palette.LONGEST_LAG, lw=1.4),
    ]
    value_handles = [line(f"σ$_k$, k/n = {share:g}", lw=width) for share, width in SHARES.items()]
    for handles, height in ((spectrum_handles, 0.055), (value_handles, 0.03)):
        canvas.legend(
            handles=handles, loc="upper center", bbox_to_anchor=(0.5, height), ncols=len(handles), fontsize=8.5
        )


def _states(groups: Sequence[common.Group]) -> str:
    """``[H, C] of LSTM, H of RNN``."""
    cells: dict[str, dict[str, None]] = {}
    for roles in (group.runs[0].roles for group in groups):
        states = ", ".join(map(common.plain, roles.states))
        cells.setdefault(f"[{states}]" if len(roles.states) > 1 else states, {})[common.plain(roles.label)] = None
    return ", ".join(f"{states} of {' and '.join(labels)}" for states, labels in cells.items())


def _trained_label(groups: Sequence[common.Group]) -> str:
    return stages.trained_label(groups, *INSTRUMENTS)


def _caption(groups: list[common.Group]) -> str:
    differences, reach = [], []
    for group in groups:
        name = group.label.replace(",", "")
        if not _runs_at(group, 0):
            reach.append(f"{name} {stages.lost(group)}")
            continue
        expected = theory(group.runs[0])
        initial, trained = _median(group, 0), _median(group, -1)
        if expected.size:
            differences.append(f"{name} {np.median(initial[: len(expected)] - expected):+.3f}")
        survive = [int((spectrum > -1 / group.runs[0].longest_lag).sum()) for spectrum in (initial, trained)]
        reach.append(f"{name} {survive[0]} → {survive[1]} of {len(initial)}")
    return (
        f"Median over {common.seeds(groups)}, band from smallest to largest; s: {_states(groups)}. Directions "
        f"that outlast the task (λ_k > −1/longest lag), before → {_trained_label(groups)}: {', '.join(reach)}. Theory: "
        "a cell whose recurrent weights do nothing has λ = ln σ(b), b the keeping gate's bias, in its carrier's share "
        "of the directions; a random matrix of "
        "radius g has ln g + ½ ln(1 − k/n). Measured minus theory at initialisation, median over k: "
        f"{', '.join(differences) or 'no theory here'}. Dotted below: e^(λ_k l), to which the singular values tend "
        f"(Oseledets 1968). {common.setting_text(groups)}."
    )
