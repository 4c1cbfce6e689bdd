"""The figure of the benchmark: everybody's time over PyTorch's, and where the time of our step
goes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from problem import CELLS
from table import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe & Ito (2008), safe for the colour-blind; each contestant has a mark of its own too.
CONTESTANTS = {
    "ours, norms": ("gradpath with all norms", "#0072B2", "o", 8),
    "ours": ("gradpath, unmeasured", "#56B4E9", "o", 5),
    "PyTorch, norms": ("fastest PyTorch with all norms", "#D55E00", "s", 6),
    "JAX, norms": ("fastest JAX with all norms", "#009E73", "D", 6),
    "floor": ("gradpath's matrix products alone", "#000000", "v", 5),
}
PARTS = {
    "forward": ("products: forward", "#0072B2"),
    "backward": ("products: backward", "#56B4E9"),
    "weights": ("products: weight gradients", "#009E73"),
    "readout": ("products: readout", "#CC79A7"),
    "forward, rest": ("forward: pointwise, calls, loss", "#E69F00"),
    "backward, rest": ("backward: pointwise, calls", "#D55E00"),
    "norms": ("reading the norms", "#999999"),
}


def draw(rows: Sequence[Row], file: Path) -> None:
    """One row of panels for each thread setting, in the first type that was timed, and one for the
    parts.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    dtype = rows[0]["dtype"]
    settings = list(dict.fromkeys(row["threads"] for row in rows))
    cells = [cell for cell in CELLS if any(row["cell"] == cell for row in rows)]
    count = len(dict.fromkeys(tuple(row["shape"]) for row in rows))
    height = 0.42 * count + 1.3
    figure, grid = plt.subplots(
        len(settings) + 1,
        len(cells),
        figsize=(11, height * (len(settings) + 1) + 1),
        squeeze=False,
        sharey="row",
        sharex="row",
        layout="constrained",
    )
    for column, cell in enumerate(cells):
        of_cell = [row for row in rows if (row["cell"], row["dtype"]) == (cell, dtype)]
        for row_index, threads in enumerate(settings):
            chosen = [row for row in of_cell if row["threads"] == threads]
            _ratios(grid[row_index, column], chosen)
            _title(grid[row_index, column], f"{cell.upper()}, {dtype}, {_threads_label(threads)}")
        _parts(grid[-1, column], [row for row in of_cell if row["threads"] == settings[0]])
        _title(grid[-1, column], f"{cell.upper()}: where the time goes, {dtype}, {_threads_label(settings[0])}")
    for axes in grid[:, 0]:
        axes.set_ylabel("T, B, H")
    for row_index, legend_side, columns in ((0, "upper", 3), (-1, "lower", 4)):
        handles, labels = grid[row_index, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc=f"outside {legend_side} center", ncols=columns, frameon=False)
    figure.savefig(file, dpi=130)
    plt.close(figure)


def _title(axes: "Axes", text: str) -> None:
    axes.set_title(text, weight="bold", size=11, loc="left")


def _threads_label(threads: str) -> str:
    return "one thread" if threads == "one" else "default threads"


def _axis(axes: "Axes", rows: Sequence[Row]) -> None:
    axes.set_yticks(range(len(rows)), ["{}, {}, {}".format(*row["shape"]) for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.tick_params(length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _ratios(axes: "Axes", rows: Sequence[Row]) -> None:
    """Time over PyTorch's fused step, a line a shape, with the interval of the median."""
    from matplotlib.ticker import FixedLocator, NullLocator

    axes.axvline(1, color="black", linewidth=1.5, label="1.0 = PyTorch's fused layer without norms")
    for index, (name, (label, color, mark, size)) in enumerate(CONTESTANTS.items()):
        shift = (index - (len(CONTESTANTS) - 1) / 2) * 0.13
        values = np.array([row["ratios"][f"{name} / PyTorch"] for row in rows]).T
        median, low, high = values
        axes.errorbar(
            median,
            np.arange(len(rows)) + shift,
            xerr=[median - low, high - median],
            fmt=mark,
            color=color,
            markersize=size,
            elinewidth=1,
            label=label,
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator([0.1, 0.2, 0.5, 1, 2, 5, 10, 20]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:g}×")
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel("time of a step, in that of PyTorch's fused layer without norms")
    _axis(axes, rows)


def parts(row: Row) -> dict[str, float]:
    """Milliseconds of our step with all norms: the products as the floor has them, and what is left
    of each stage.
    """
    stages, floor = row["milliseconds"]["ours, norms"]["stages"], row["milliseconds"]["floor"]["stages"]
    return {
        "forward": floor["forward"],
        "backward": floor["backward"],
        "weights": floor["weights"],
        "readout": floor["readout"] + floor["readout, back"],
        "forward, rest": stages["forward"] - floor["forward"] - floor["readout"],
        "backward, rest": stages["backward"] - floor["backward"] - floor["weights"] - floor["readout, back"],
        "norms": stages["instruments"],
    }


def _parts(axes: "Axes", rows: Sequence[Row]) -> None:
    """Stacked bars in units of the floor."""
    split = [parts(row) for row in rows]
    floors = np.array([sum(row["milliseconds"]["floor"]["stages"].values()) for row in rows])
    left = np.zeros(len(rows))
    for name, (label, color) in PARTS.items():
        width = np.array([milliseconds[name] for milliseconds in split]) / floors
        axes.barh(range(len(rows)), width, left=left, color=color, label=label, height=0.7, edgecolor="white")
        left += width
    for index, (end, milliseconds) in enumerate(zip(left, split, strict=True)):
        axes.text(end, index, f" {end:.1f}×, {sum(milliseconds.values()):.3g} ms", va="center", fontsize=8)
    axes.axvline(1, color="black", linewidth=1.2)
    axes.set_xlim(0, 1.25 * max(left.max(), axes.get_xlim()[1] / 1.25))
    axes.set_xlabel("time of a step with all norms, in that of its matrix products alone")
    _axis(axes, rows)
