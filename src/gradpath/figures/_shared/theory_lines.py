"""The lines of theory beside the measured gradient of the carrier at initialisation, where the runs
recorded them, and their deviation from it.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gradpath.core import theory
from gradpath.figures._shared import common, stages
from gradpath.tracking.loader import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAMES = {
    "mean_field": "mean field",
    "carousel": "carousel",
    "spectral_radius": "ρ(W_hh)",
    "sigma_max_bound": "σ_max bound",
}
DASHES: dict[str, Any] = {
    "mean_field": ":",
    "carousel": ":",
    "spectral_radius": (0, (6, 2, 1, 2)),
    "sigma_max_bound": (0, (1, 4)),
}


def draw(axes: "Axes", groups: Sequence[common.Group], measured: Callable[[Run], NDArray], low: float) -> None:
    """Draws the lines of each arm from its ``measured`` log10 norm (T,) at lag 0, between ``low``
    and the largest measured value.
    """
    high = max((np.max(measured(run)) for group in groups for run in _measured(group)), default=low)
    for group, lines in _recorded(groups):
        start = np.median([measured(run)[-1] for run in _measured(group)])
        for name, line in lines.items():
            shown = np.ma.masked_outside(start + line, low, high)  # masked where the theory makes no statement
            axes.plot(group.runs[0].lag, shown, color=group.color, ls=DASHES[name], lw=1.1)


def residuals(groups: Sequence[common.Group], measured: Callable[[Run], NDArray]) -> str:
    """For a caption: the slope of theory minus the slope of ``measured`` over the middle four
    fifths of the lags, as medians over seeds; empty where nothing was recorded.
    """
    texts = []
    for group, lines in _recorded(groups):
        lag = group.runs[0].lag
        middle = lag[0] // 10, lag[0] - lag[0] // 10
        if middle[1] <= middle[0]:  # a single lag has no slope
            continue
        slopes = [theory.slope(lag, measured(run), *middle) for run in _measured(group)]
        differences = {
            name: [theory.slope(lag, line, *middle) - slope for slope in slopes] for name, line in lines.items()
        }
        texts += [
            f"{group.label} {NAMES[name]} {common.number(values, '+.3f')}" for name, values in differences.items()
        ]
    if not texts:
        return ""
    return (
        " Thin lines: mean field and carousel dotted, ρ(W_hh) dash-dotted, σ_max bound in sparse dots (where it stays "
        "below the largest norm); their slope "
        f"minus the measured one, in decades a step: {', '.join(texts)}."
    )


def _measured(group: common.Group) -> list[Run]:
    """The runs that were measured at initialisation."""
    return stages.runs_at(group, stages.FIRST, "state_grad_norm")


def _recorded(groups: Sequence[common.Group]) -> Iterator[tuple[common.Group, dict[str, NDArray]]]:
    """The arms that recorded ``theory`` at initialisation, with the lines of their bottom layer as
    medians over seeds; only the first of the arms with the same initialisation (clipped or not).
    """
    seen: set[bytes] = set()
    for group in groups:
        measured = _measured(group)
        series = [run.series["theory"] for run in measured if "theory" in run.series]
        if not series or len(series) < len(measured) or any(s.steps[0] != 0 for s in series):
            continue
        prefix = group.runs[0].roles.bottom
        names = [name for name in NAMES if prefix + name in series[0].names]
        lines = {name: common.median_band([s.column(prefix + name)[0] for s in series])[0] for name in names}
        lines = {name: line for name, line in lines.items() if np.isfinite(line).all()}
        key = b"".join(line.tobytes() for line in lines.values())
        if lines and key not in seen:
            seen.add(key)
            yield group, lines
