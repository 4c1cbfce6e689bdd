"""The figure of growth: time and memory over T and over B, and what every instrument takes at T =
10 000.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from problem import CELLS
from scale import LIMIT, bytes_per_element, exponent, rows_of_cell

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe & Ito (2008), as in all figures.
COLORS = {"lstm": "#0072B2", "rnn": "#D55E00"}
MARKS = {"lstm": "o", "rnn": "s"}


def draw(results: dict[str, Any], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, grid = plt.subplots(2, 2, figsize=(11, 8.5), layout="constrained")
    _time(grid[0, 0], results["length"], 0, "T")
    grid[0, 0].set_title("Time over T (B = 20, H = 128)", weight="bold", loc="left")
    _time(grid[0, 1], results["batch"], 1, "B")
    grid[0, 1].set_title("Time over B (T = 200, H = 128)", weight="bold", loc="left")
    _memory(grid[1, 0], results["length"])
    grid[1, 0].set_title("Memory over T (B = 20, H = 128)", weight="bold", loc="left")
    if results["instruments"]:
        _instruments(grid[1, 1], results["instruments"])
        grid[1, 1].set_title("LSTM at T = 10 000: a step that reads …", weight="bold", loc="left")
    else:
        grid[1, 1].set_axis_off()
    for axes in grid.flat:
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=130)
    plt.close(figure)


def _time(axes: "Axes", rows: list[dict[str, Any]], axis: int, name: str) -> None:
    """Measured, and the line of slope 1 through the largest case."""
    for cell in CELLS:
        chosen = rows_of_cell(rows, cell)
        sizes = np.array([row["shape"][axis] for row in chosen])
        seconds = np.array([row["seconds"] for row in chosen])
        label = f"{cell.upper()}: time ∝ {name}^{exponent(chosen, axis):.2f}"
        axes.plot(sizes, seconds, color=COLORS[cell], marker=MARKS[cell], label=label)
        axes.plot(sizes, seconds[-1] * sizes / sizes[-1], color=COLORS[cell], linestyle=":", linewidth=1)
    axes.plot([], [], color="grey", linestyle=":", label=f"∝ {name}")
    axes.set(xscale="log", yscale="log", xlabel=name, ylabel="processor seconds of a step with all norms")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)


def _memory(axes: "Axes", rows: list[dict[str, Any]]) -> None:
    for cell in CELLS:
        chosen = rows_of_cell(rows, cell)
        sizes = [row["shape"][0] for row in chosen]
        for kind, linestyle, meaning in (
            ("traced", "-", "allocated anew by a step"),
            ("resident", "--", "resident, whole process"),
        ):
            label = f"{cell.upper()}, {meaning}: {bytes_per_element(chosen, kind):.0f} bytes per T·B·H"
            values = [row[kind] / 2**20 for row in chosen]
            axes.plot(sizes, values, linestyle, color=COLORS[cell], marker=MARKS[cell], label=label)
    axes.axhline(LIMIT / 2**20, color="black", linewidth=1)
    axes.text(0.01, LIMIT / 2**20, "4 GiB", va="bottom", transform=axes.get_yaxis_transform())
    axes.set(xscale="log", yscale="log", xlabel="T", ylabel="MiB, largest during a step with all norms")
    axes.set_ylim(bottom=axes.get_ylim()[0] / 4)  # room for the legend
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="lower right", fontsize=8)


def _instruments(axes: "Axes", rows: list[dict[str, Any]]) -> None:
    """Largest resident size, with the seconds beside it; hatched: stopped before it was done."""
    for y, row in enumerate(rows):
        finished = "seconds" in row
        axes.barh(
            y,
            row["resident"] / 2**30,
            color="#56B4E9" if finished else "white",
            edgecolor="#0072B2",
            hatch=None if finished else "///",
        )
        text = f" {row['seconds']:.1f} s" if finished else f" stopped after {row['stopped_after']:.0f} s"
        axes.text(row["resident"] / 2**30, y, text, va="center", fontsize=8)
    axes.axvline(LIMIT / 2**30, color="black", linewidth=1)
    axes.set_yticks(range(len(rows)), [row["read"] for row in rows], fontsize=8)
    axes.set_xlim(0, 1.35 * max(LIMIT, *(row["resident"] for row in rows)) / 2**30)
    axes.set_xlabel("GiB resident, largest (line: 4 GiB)")
