"""The clipping ledger: the gradient before and after clipping, the frequency and the factor of
clipping, and its effect on the direction.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gradpath.figures import CannotDrawError, Figure
from gradpath.figures._shared import common, finite, palette, stages
from gradpath.schema.settings import setting
from gradpath.tracking.loader import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas


@dataclass
class ClippingLedger(Figure):
    """Above, a panel for each arm: the norm of the gradient, raw and as applied, over training.
    Below: the share of the steps at which clipping engaged; the share of the steps at which it
    shortened the gradient to a given factor or less; and the cosine to the raw gradient if the same
    minibatches were clipped by norm or by value. An arm without clipping shows the effect that
    clipping by norm would have.
    """

    windows: int = setting(100, "training is drawn in this many windows", ge=2)

    needs = ("clipping_ledger",)

    def draw(self, runs: Sequence[Run]) -> "Canvas":
        common.theme()

        if not any(_finite(run).any() for run in runs):
            raise CannotDrawError(f"{runs[0].name} has no finite step")
        groups = common.columns(runs)
        drawn = [group for group in groups if any(_finite(run).any() for run in group.runs)]
        canvas = common.new_canvas(figsize=(max(3.2 * len(groups), 9.6), 6.6), layout="constrained")
        upper, lower = canvas.subfigures(2, 1, hspace=0.04, squeeze=False)[:, 0]
        for axes, group in zip(upper.subplots(1, len(groups), sharey=True, squeeze=False)[0], groups, strict=True):
            axes.set_title(group.title, color=group.color)
            axes.set_xlabel("training step")
            if group in drawn:
                self._norms(axes, group)
            else:
                finite.empty_panel(axes, group)
            if group is groups[0]:
                axes.set_ylabel("gradient norm")
            if group is drawn[0]:
                axes.legend(loc="upper left", fontsize=8)
            common.decades(axes.yaxis)
        share, factor, cosine = lower.subplots(1, 3)
        for group in drawn:
            dash = "-" if _clipped(group.runs[0]) else ":"
            label = group.label if _clipped(group.runs[0]) else f"{group.label} (would have)"
            self._over_training(share, group, _engaged, np.mean, color=group.color, linestyle=dash, label=label)
            self._factors(factor, group, dash)
            self._over_training(cosine, group, _by_value, _nanmedian, color=group.color)
        self._finish(share, factor, cosine, _threshold(groups, "max_value"))
        handles, labels = share.get_legend_handles_labels()
        columns = -(-len(groups) // common.legend_rows(canvas, labels))
        lower.legend(handles, labels, loc="outside upper center", ncols=columns, fontsize=9)
        common.caption(canvas, self._caption(drawn), groups)
        return canvas

    def _norms(self, axes: "Axes", group: common.Group) -> None:
        looks = {"log10_raw_norm": ("raw", palette.RAW_NORM, 1.2), "log10_applied_norm": ("applied", group.color, 1.8)}
        for name, (label, color, width) in looks.items():
            steps, pooled = self._pooled(group, lambda run, name=name: _column(run, name))  # type: ignore[misc]
            low, middle, high = np.array([_quantiles(part) for part in pooled]).T
            axes.plot(steps, middle, color=color, lw=width, label=label)
            axes.fill_between(steps, low, high, color=color, alpha=0.25, linewidth=0)
        for run in group.runs:
            lost = run.series["clipping_ledger"].steps[~_finite(run)]
            finite.marks(axes, lost, np.full(len(lost), np.nan), group.color)

    def _over_training(self, axes: "Axes", group: common.Group, read: Callable, reduce: Callable, **look: Any) -> None:
        """One line for each arm: a number for each window, from the steps of all seeds together."""
        steps, pooled = self._pooled(group, read)
        axes.plot(steps, np.ma.array([reduce(part) for part in pooled], dtype=float), lw=1.6, **look)

    def _factors(self, axes: "Axes", group: common.Group, dash: str) -> None:
        """The distribution function of the factor, which ends on the right at the share of clipped
        steps.
        """
        factors = np.sort(np.concatenate([_factor(run) for run in group.runs]))
        cumulative = np.arange(1, len(factors) + 1) / len(factors)
        clipped = factors < 0
        axes.plot(
            factors[clipped], cumulative[clipped], color=group.color, lw=1.6, linestyle=dash, drawstyle="steps-post"
        )

    def _pooled(self, group: common.Group, read: Callable[[Run], NDArray]) -> tuple[NDArray, list[NDArray]]:
        """(first training step of each window, values of all seeds in it), without empty
        windows.
        """
        steps = np.concatenate([_steps(run) for run in group.runs])
        values = np.concatenate([read(run) for run in group.runs])
        edges = np.linspace(0, steps.max() + 1, min(self.windows, len(np.unique(steps))) + 1)
        window_index = np.digitize(steps, edges[1:-1])
        filled = [window for window in range(len(edges) - 1) if (window_index == window).any()]
        return edges[filled], [values[window_index == window] for window in filled]

    def _finish(self, share: "Axes", factor: "Axes", cosine: "Axes", max_value: str) -> None:
        share.set(xlabel="training step", ylabel="share of steps", ylim=(-0.03, 1.03), title="how often")
        factor.set(xlabel="factor  ‖applied‖ / ‖raw‖", ylabel="share of steps with this or less", yscale="log")
        factor.set_title("how hard")
        factor.set_xlim(min(factor.get_xlim()[0], -1.0), 0.05)
        common.decades(factor.xaxis)
        cosine.set(xlabel="training step", ylabel="cosine to the raw gradient")
        cosine.set_title(f"all clipped by value at {max_value}")
        low = min(cosine.get_ylim()[0], 0.9)
        cosine.set_ylim(low, 1 + 0.12 * (1 - low))
        cosine.axhline(1.0, color=palette.REFERENCE, lw=1, linestyle="--")
        look: dict[str, Any] = {"ha": "right", "va": "bottom", "fontsize": 8, "color": palette.REFERENCE}
        cosine.text(0.99, 1.0, "all clipped by norm", transform=cosine.get_yaxis_transform(), **look)

    def _caption(self, groups: list[common.Group]) -> str:
        ledger = []
        for group in groups:
            raw = np.concatenate([_column(run, "log10_raw_norm") for run in group.runs])
            engaged = np.concatenate([_engaged(run) for run in group.runs])
            cosine = common.number(np.concatenate([_column(run, "cosine") for run in group.runs]), ".2f", "unknown")
            blown = sum(int((~_finite(run)).sum()) for run in group.runs)
            solved = sum(map(stages.solved, group.runs))
            engages = "engaged" if _clipped(group.runs[0]) else "would have engaged"
            ledger.append(
                f"{group.label}: {engages} at {engaged.mean():.0%} of steps, "
                f"largest raw norm 10^{raw.max():.1f}, median cosine of the applied to the raw gradient {cosine}, "
                f"{blown} non-finite step{'s' * (blown != 1)}, solved by {solved} of {len(group.runs)}"
            )
        cosines = np.concatenate([_column(run, "norm_clip/cosine") for group in groups for run in group.runs])
        smallest = float(np.min(cosines, where=~np.isnan(cosines), initial=1.0))
        return (
            f"Median over the steps of a window and {common.seeds(groups)}; bands from the 5 % to the 95 % quantile. "
            f"{common.setting_text(groups)}. {'. '.join(ledger)}. Theory: clipping the norm is one factor, min(1, "
            "max_norm/‖g‖), and keeps the direction (Pascanu et al. 2013, algorithm 1; here the smallest cosine is 1 "
            f"to within {max(0.0, 1 - smallest):.0e}); clipping each element (Mikolov 2012) turns the gradient. "
            f"Dotted: what clipping the norm at {_threshold(groups, 'max_norm')} would have done."
        )


def _quantiles(values: NDArray) -> NDArray:
    """The 5 %, 50 % and 95 % quantile of the values that are not NaN."""
    valid = values[~np.isnan(values)]
    return np.quantile(valid, (0.05, 0.5, 0.95)) if valid.size else np.full(3, np.nan)


def _nanmedian(values: NDArray) -> Any:
    """The median of the values that are not NaN; masked where there are none, since a true zero has
    no direction.
    """
    valid = values[~np.isnan(values)]
    return np.median(valid) if valid.size else np.ma.masked


def _clipped(run: Run) -> bool:
    """Was the gradient clipped, by a threshold that is set or by a rule of another name?"""
    settings = dict(run.config["clip"])
    return settings.pop("name", "threshold") != "threshold" or any(value is not None for value in settings.values())


def _finite(run: Run) -> NDArray:
    """Which readings are finite? The others are counted in the caption."""
    series = run.series["clipping_ledger"]
    norms = [series.column(name) for name in series.names if "log10" in name]
    return (series.column("non_finite") == 0) & (np.array(norms) < np.inf).all(axis=0)


def _steps(run: Run) -> NDArray:
    return run.series["clipping_ledger"].steps[_finite(run)]


def _column(run: Run, name: str) -> NDArray:
    return run.series["clipping_ledger"].column(name)[_finite(run)]


def _by_value(run: Run) -> NDArray:
    return _column(run, "value_clip/cosine")


def _factor(run: Run) -> NDArray:
    """log10 ‖applied‖/‖raw‖ of the run's own clipping; for a run without clipping, of clipping by
    norm.
    """
    name = "log10_applied_norm" if _clipped(run) else "norm_clip/log10_norm"
    with np.errstate(invalid="ignore"):  # the log10 norm of a true zero is -inf before and after clipping
        return np.where(_engaged(run) > 0, _column(run, name) - _column(run, "log10_raw_norm"), 0.0)


def _engaged(run: Run) -> NDArray:
    """1 where the run's own clipping engaged; for a run without clipping, where clipping by norm
    would have engaged.
    """
    if _clipped(run):
        return _column(run, "engaged")
    limit = run.config["instruments"]["clipping_ledger"]["max_norm"]
    return (_column(run, "log10_raw_norm") > np.log10(limit)).astype(float)


def _threshold(groups: list[common.Group], name: str) -> str:
    """The threshold of the ledger itself, as text."""
    thresholds = {group.runs[0].config["instruments"]["clipping_ledger"][name] for group in groups}
    return " or ".join(f"{value:g}" for value in sorted(thresholds))
