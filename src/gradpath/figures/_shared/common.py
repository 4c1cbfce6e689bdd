"""Code that all figures share: one colour for each arm, groups of seeds, decades on an axis, true
zeros, captions.
"""

import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gradpath.figures._shared import finite, palette, stages
from gradpath.figures._shared.arms import Group, arm_label, columns, groups, plain
from gradpath.tracking.loader import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

__all__ = [
    "Group",
    "arm_label",
    "caption",
    "carrier_gradient",
    "carriers",
    "columns",
    "curve",
    "decades",
    "floor_below",
    "groups",
    "legend_rows",
    "median_band",
    "new_canvas",
    "number",
    "plain",
    "seed_count",
    "seeds",
    "setting_text",
    "subplots",
    "theme",
]


def theme() -> None:
    """The look of every figure."""
    import seaborn

    seaborn.set_theme(style="whitegrid", context="paper", font_scale=1.05)
    import matplotlib

    matplotlib.rcParams |= {"axes.titleweight": "bold", "axes.titlesize": 10, "legend.frameon": False}


def new_canvas(**settings: Any) -> "Canvas":
    """An empty figure of matplotlib. It is not one of pyplot's figures, which would open a window
    or be shown by a notebook a second time.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    canvas = Figure(**settings)
    FigureCanvasAgg(canvas)
    return canvas


def subplots(
    rows: int, columns: int, figsize: tuple[float, float], layout: Any = None, **settings: Any
) -> "tuple[Canvas, Any]":
    """A figure and its axes; ``settings`` as ``Figure.subplots`` takes them."""
    canvas = new_canvas(figsize=figsize, layout=layout)
    return canvas, canvas.subplots(rows, columns, **settings)


def decades(axis: Any) -> None:
    """Labels an axis of log10 values: powers of ten, or plain numbers where it spans less than two
    decades.
    """
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    low, high = axis.get_view_interval()
    whole_decades = high - low >= 2
    axis.set_major_locator(MaxNLocator(nbins=6, integer=whole_decades))
    axis.set_major_formatter(
        FuncFormatter(lambda value, _: f"$10^{{{value:g}}}$" if whole_decades else f"{10.0**value:.2g}")
    )


def median_band(curves: Iterable[ArrayLike]) -> tuple[NDArray, NDArray, NDArray]:
    """Median, smallest and largest value over the seeds, pointwise. A NaN seed is left out (`curve`
    marks it); -inf is the smallest value and +inf the largest, and their mean is NaN.
    """
    values = np.stack([np.asarray(seed_curve, dtype=float) for seed_curve in curves])
    stacked = values.reshape(len(values), -1)
    valid = ~np.isnan(stacked)
    any_valid = valid.any(axis=0)
    middle, low, high = np.full((3, stacked.shape[1]), np.nan)
    columns, valid_columns = stacked[:, any_valid], valid[:, any_valid]
    # Stand-ins for ±inf, because the mean of the two middle seeds would be NaN; half of a stand-in
    # is still larger than any value.
    zero, overflow = -1e300, 1.5e300
    bounded = np.where(np.isneginf(columns), zero, np.where(np.isposinf(columns), overflow, columns))
    half = np.nanmedian(bounded, axis=0)
    torn = (half > overflow / 20) & (half < overflow / 4)
    half = np.where(torn, np.nan, np.where(half > overflow / 4, np.inf, half))
    middle[any_valid] = np.where(half < zero / 4, -np.inf, half)
    low[any_valid] = np.where(valid_columns, columns, np.inf).min(axis=0)
    high[any_valid] = np.where(valid_columns, columns, -np.inf).max(axis=0)
    shape = values.shape[1:]
    return middle.reshape(shape), low.reshape(shape), high.reshape(shape)


def curve(axes: "Axes", x: NDArray, curves: Sequence[NDArray], floor: float, **style: Any) -> None:
    """Draws the median over seeds with the band from smallest to largest, of opacity ``band``. True
    zeros (-inf) are crosses on the floor, and a mark at the upper edge shows where a seed is not
    finite. Masked values were not read.
    """
    if not len(curves):
        return
    band = style.pop("band", 0.18)
    middle, low, high = median_band(
        np.ma.filled(np.ma.asarray(seed_curve, dtype=float), np.nan) for seed_curve in curves
    )
    zero = np.isneginf(middle)
    shown = np.ma.array(middle, mask=~np.isfinite(middle)) if (~np.isfinite(middle) & ~zero).any() else middle
    (line,) = axes.plot(x[~zero], shown[~zero], **style)
    if len(curves) > 1:
        in_band = np.isfinite(high) & np.isfinite(middle) if not np.isfinite(high).all() else np.isfinite(high)
        low = np.where(np.isneginf(low), floor, low)
        axes.fill_between(x[in_band], low[in_band], high[in_band], color=line.get_color(), alpha=band, linewidth=0)
    if zero.any():
        axes.plot(x[zero], np.full(zero.sum(), floor), "x", color=line.get_color(), markersize=4, clip_on=False)
    for kind in finite.KINDS:
        marked = np.any([np.ma.filled(np.ma.asarray(kind.test(seed_curve)), False) for seed_curve in curves], axis=0)
        if marked.any():
            value = np.inf if kind is finite.OVERFLOW else np.nan
            finite.marks(axes, x[marked], np.full(int(marked.sum()), value), line.get_color())


def floor_below(values: Iterable[NDArray]) -> float:
    """The height at which true zeros are drawn: a little below the smallest finite value."""
    finite_values = [v[np.isfinite(v)] for v in values]
    joined = np.concatenate([v.ravel() for v in finite_values]) if finite_values else np.zeros(0)
    if not joined.size:
        return 0.0
    return float(joined.min() - max(1.0, 0.05 * (joined.max() - joined.min())))


def carrier_gradient(run: Run, probe: int) -> NDArray:
    """log10 ‖∂L/∂s_t‖ (T,) of the bottom layer's carrier s at the first (``probe`` 0) or the last
    (-1) finite reading; raises CannotDrawError where there is none, or no first one at
    initialisation.
    """
    return carrier_profiles(run)[stages.finite_readings(run, "state_grad_norm")[probe]]


def carrier_profiles(run: Run) -> NDArray:
    """log10 ‖∂L/∂s_t‖ [probe, T], s the carrier of the bottom layer."""
    return run.series["state_grad_norm"].column(run.roles.bottom_carrier)


def legend_rows(canvas: "Canvas", labels: Sequence[str]) -> int:
    """The number of rows that a legend below a figure needs so that it is no wider than the
    figure.
    """
    inches = sum(0.47 + 0.075 * len(label) for label in labels)
    return max(1, -(-int(100 * inches) // int(100 * canvas.get_figwidth())))


def carriers(groups: Sequence[Group]) -> str:
    """``C of LSTM, H of RNN and GRU``, for a caption; without articles, because a cell's label may
    have one.
    """
    by_state: dict[str, dict[str, None]] = {}
    for roles in (group.runs[0].roles for group in groups):
        by_state.setdefault(plain(roles.carrier), {})[plain(roles.label)] = None
    return ", ".join(f"{state} of {' and '.join(cells)}" for state, cells in by_state.items())


def caption(canvas: "Canvas", text: str, groups: Sequence[Group]) -> None:
    """Completes a figure of these groups: marks values that are not finite (see `finite`), and
    writes below what the figure shows, the number of seeds, and the theory.
    """
    finite.finish(canvas, groups)
    width = int(canvas.get_figwidth() * 13.5)
    canvas.text(0.01, -0.01, textwrap.fill(text, width), ha="left", va="top", fontsize=8.5, color=palette.TEXT)


def number(values: ArrayLike, form: str, empty: str = "not finite") -> str:
    """The median of the finite values, for a caption; NaN never enters a number."""
    valid = np.asarray(values, dtype=float)
    valid = valid[~np.isnan(valid)]
    return f"{np.median(valid):{form}}" if valid.size else empty


def seeds(groups: Sequence[Group]) -> str:
    """``3 seeds`` or ``1 to 3 seeds``, for a caption."""
    return seed_count(len(group.runs) for group in groups)


def seed_count(numbers: Iterable[int]) -> str:
    """The phrase of ``seeds``, from the numbers of seeds."""
    counts = sorted(set(numbers))
    number = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"{number} seed{'s' if counts[-1] > 1 else ''}"


def setting_text(groups: Sequence[Group]) -> str:
    """The settings of the runs in one line for a caption; where the groups differ in a setting, all
    its values.
    """
    configs = [group.runs[0].config for group in groups]

    def values(section: str, key: str) -> str:
        settings = [config[section].get(key) for config in configs]
        shown = [
            f"{v:g}" if isinstance(v, float) else plain(str(v).replace("_", " ")) for v in settings if v is not None
        ]
        return " or ".join(dict.fromkeys(shown))

    keys = dict.fromkeys(key for config in configs for key in config["task"] if key not in ("name", "length"))
    settings = [(plain(key.replace("_", " ")), values("task", key)) for key in keys]
    task = "".join(f", {name} {value}" for name, value in settings if value)
    text = (
        f"{values('task', 'name')} T = {values('task', 'length')}{task}, H = {values('cell', 'hidden_size')}, "
        f"init {values('init', 'name')} gain {values('init', 'gain')}, {values('optimizer', 'name')} "
        f"lr {values('optimizer', 'lr')}, B = {values('train', 'batch_size')}, {values('train', 'steps')} updates"
    )
    biases: dict[str, dict[str, None]] = {}
    for keeping in (group.runs[0].roles.keeping for group in groups):
        if keeping and keeping.bias is not None:
            bias = keeping.bias
            shown = f"chrono for lags up to {bias[1] + 1:g}" if isinstance(bias, tuple) else f"{bias:g}"
            biases.setdefault(plain(keeping.label.removesuffix(" gate")), {})[shown] = None
    return "; ".join([text, *(f"{gate} bias {' or '.join(labels)}" for gate, labels in biases.items())])
