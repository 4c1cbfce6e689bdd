"""The slope of the state gradient against the gain of random recurrent weights, with the
predictions of theory.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gradpath.core import theory
from gradpath.figures import CannotDrawError, Figure
from gradpath.figures._shared import common, finite, palette
from gradpath.schema.settings import setting
from gradpath.tracking.loader import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas


class Line(NamedTuple):
    """A line of theory: its name in the store, its label, its colour and its dash."""

    name: str
    label: str
    color: str
    dash: str


LINES = (
    Line("sigma_max_bound", "bound  ln(σ$_{max}$ max φ′)", palette.SIGMA_MAX_BOUND, "--"),
    Line("spectral_radius", "ln ρ(W$_{hh}$)", palette.SPECTRAL_RADIUS, ":"),
    Line("mean_field", "mean field  ½ ln(g² E[φ′²])", palette.MEAN_FIELD, "-"),
)


@dataclass
class SpectralRadius(Figure):
    """Left: the slope of ln ‖∂L/∂H_t‖ against the lag, at initialisation, for each gain g, and the
    three lines of theory. Right: the profiles themselves with the mean field.

    The slope is a least-squares fit over lags up to √H, the range in which the mean field is valid:
    ‖W^l‖²_F / H equals its average over random matrices, g^2l, only up to this lag (within 9 % at l
    = √H). At longer lags the largest eigenvalues of the one W_hh dominate.
    """

    longest: int | None = setting(None, "fit the slope over lags up to this; null for √H", ge=2)

    needs = ("theory", "state_grad_norm")

    def draw(self, runs: Sequence[Run]) -> "Canvas":
        common.theme()

        by_gain = _by_gain(runs)
        measured = {
            gain: finite_runs
            for gain, members in by_gain.items()
            if (finite_runs := [run for run in members if _read(run)])
        }
        canvas, (left, right) = common.subplots(1, 2, figsize=(10, 4.6), width_ratios=(1, 1.15))
        self._slopes(left, measured)
        for gain in by_gain.keys() - measured.keys():
            finite.marks(left, [gain], [np.nan], palette.MEASURED)
        self._profiles(right, measured)
        canvas.tight_layout(w_pad=2.5)
        lost = [
            f"{len(members) - len(measured.get(gain, []))} of {len(members)} at g = {gain:g}"
            for gain, members in by_gain.items()
            if len(members) > len(measured.get(gain, []))
        ]
        finite.title(left, f"networks not finite at initialisation: {', '.join(lost)}" if lost else "")
        common.caption(canvas, self._caption(measured), common.groups(runs))
        return canvas

    def _slope(self, run: Run, curve: NDArray) -> float:
        """The slope of a curve over the range of the fit, in nepers a step."""
        return theory.slope(run.lag, curve * np.log(10), 0, self._longest(run))

    def _longest(self, run: Run) -> int:
        return self.longest or max(2, round(run.config["cell"]["hidden_size"] ** 0.5))

    def _residuals(self, runs: Sequence[Run]) -> NDArray:
        """The slope of the mean field minus the measured slope, for each seed."""
        return np.array([self._slope(run, _line(run, "mean_field")) - self._slope(run, _state(run)) for run in runs])

    def _slopes(self, axes: "Axes", by_gain: dict[float, list[Run]]) -> None:
        gains = np.array(list(by_gain))
        for line in LINES:
            middle = [np.median([self._slope(r, _line(r, line.name)) for r in runs]) for runs in by_gain.values()]
            axes.plot(gains, middle, color=line.color, ls=line.dash, lw=1.8, label=line.label)
        measured = [[self._slope(run, _state(run)) for run in runs] for runs in by_gain.values()]
        center, low, high = (np.array([f(m) for m in measured]) for f in (np.median, np.min, np.max))
        look: dict[str, Any] = {"fmt": "o", "color": palette.MEASURED, "markersize": 6, "capsize": 3, "zorder": 5}
        axes.errorbar(gains, center, yerr=[center - low, high - center], label="measured", **look)
        axes.axhline(0, color=palette.REFERENCE, lw=0.9)
        for y, text, va in ((0.02, "explodes", "bottom"), (-0.02, "vanishes", "top")):
            axes.text(gains[-1], y, text, va=va, ha="right", fontsize=8.5, color=palette.REMARK, style="italic")
        axes.set(xlabel="gain g", ylabel="slope of ln ‖∂L/∂H$_t$‖ a step back", title="slope against gain")
        axes.legend(loc="lower right", fontsize=8.5)

    def _profiles(self, axes: "Axes", by_gain: dict[float, list[Run]]) -> None:
        from matplotlib import colormaps
        from matplotlib.lines import Line2D

        shades = colormaps["plasma"](np.linspace(0.0, 0.85, len(by_gain)))
        profiles = [_state(run) - _state(run)[run.lag == 0] for runs in by_gain.values() for run in runs]
        floor = common.floor_below(profiles)
        for shade, (gain, runs) in zip(shades, by_gain.items(), strict=True):
            lag = runs[0].lag
            curves = [_state(run) - _state(run)[run.lag == 0] for run in runs]
            common.curve(axes, lag, curves, floor, color=shade, lw=1.8, label=f"g = {gain:g}")
            predicted, _, _ = common.median_band([_line(run, "mean_field") for run in runs])
            axes.plot(lag, predicted, color=palette.OUTLINE, lw=1, ls="--", zorder=4)
        axes.axvspan(0, self._longest(runs[0]), color=palette.FIT_RANGE, alpha=0.15, lw=0)
        common.decades(axes.yaxis)
        axes.set(xlabel="lag  T − t  (steps)", ylabel="‖∂L/∂H$_t$‖ / ‖∂L/∂H$_T$‖", title="profiles")
        handles, _ = axes.get_legend_handles_labels()
        handles = [*reversed(handles), Line2D([], [], color=palette.OUTLINE, lw=1, ls="--", label="mean field")]
        axes.legend(handles=handles, loc="lower left", fontsize=8.5)

    def _caption(self, by_gain: dict[float, list[Run]]) -> str:
        residuals = {gain: self._residuals(runs) for gain, runs in by_gain.items()}
        median_residuals = {gain: float(np.median(values)) for gain, values in residuals.items()}
        worst = max(median_residuals, key=lambda gain: abs(median_residuals[gain]))
        single = max((float(v) for values in residuals.values() for v in values), key=abs)
        measured_runs = [run for runs in by_gain.values() for run in runs]
        margins = [run.series["theory"].column(run.roles.bottom + "bound_margin")[0] for run in measured_runs]
        margin = min(float(np.min(m)) for m in margins)
        calm = [
            f"{gain:g}"
            for gain, runs in by_gain.items()
            if all(_line(run, "spectral_radius")[run.lag == 1] > 0 for run in runs)
            and all(self._slope(run, _state(run)) < 0 for run in runs)
        ]
        note = f"At g = {' and '.join(calm)}, ρ > 1 and the gradient vanishes all the same. " if calm else ""
        seeds = common.seed_count(map(len, by_gain.values()))
        cell, settings = measured_runs[0].config["cell"], measured_runs[0].config
        return (
            f"Random {measured_runs[0].roles.recurrence} networks at initialisation, H = {cell['hidden_size']}, init "
            f"{settings['init']['name']} with gain g, input gain {settings['init']['input_gain']:g}, "
            f"{settings['task']['name'].replace('_', ' ')} T = {settings['task']['length']}, B = "
            f"{settings['train']['batch_size']}. Median over {seeds}, bars and bands from smallest to "
            f"largest. Slopes: least squares over lags 0 to {self._longest(measured_runs[0])} (grey), of ln, a step. "
            "Mean field (Poole et al. 2016; Schoenholz et al. 2017) minus measured: at most "
            f"{median_residuals[worst]:+.3f} in the median (g = {worst:g}), {single:+.3f} in a single network. {note}"
            "The bound (Pascanu et al. 2013) was held at every step of every sequence; nearest approach "
            f"{margin:.2f} decades."
        )


def _by_gain(runs: Sequence[Run]) -> dict[float, list[Run]]:
    """The runs of each gain, from the smallest; they may differ only in gain and seed."""
    for run in runs:
        if run.roles.recurrence is None:
            raise CannotDrawError(
                f"{run.name}: the lines are those of H = φ(X W + H W + b); its cell has no spectral radius"
            )
    if len({run.config["init"]["gain"] for run in runs if _read(run)}) < 2:
        for run in runs:
            _line(run, "mean_field")
            _state(run)
    gains = sorted({float(run.config["init"]["gain"]) for run in runs})
    by_gain = {gain: [run for run in runs if run.config["init"]["gain"] == gain] for gain in gains}
    configs = [run.config | {"seed": None, "init": run.config["init"] | {"gain": None}} for run in runs]
    if any(config != configs[0] for config in configs):
        raise CannotDrawError("the runs differ in more than init.gain and seed")
    if len(by_gain) < 2:
        raise CannotDrawError("a slope against the gain needs more than one init.gain")
    return by_gain


def _read(run: Run) -> bool:
    """Was the run finite at initialisation, and its theory recorded?"""
    try:
        return bool(np.isfinite(_line(run, "mean_field")).all() and not np.isposinf(_state(run)).any())
    except CannotDrawError:
        return False


def _line(run: Run, name: str) -> NDArray:
    """(T,) a theory line of the bottom layer at initialisation."""
    series = run.series["theory"]
    if series.steps[0] != 0 or np.isnan(series.values[0]).any():
        raise CannotDrawError(f"{run.name} has no finite theory at initialisation")
    return series.column(run.roles.bottom + name)[0]


def _state(run: Run) -> NDArray:
    """(T,) log10 ‖∂L/∂H_t‖ of the bottom layer at initialisation."""
    series = run.series["state_grad_norm"]
    if series.steps[0] != 0 or np.isnan(series.values[0]).any():
        raise CannotDrawError(f"{run.name} has no finite reading at initialisation")
    return series.column(run.roles.bottom_carrier)[0]
