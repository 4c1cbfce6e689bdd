"""The lag over which a cell learns, by the initial bias of its keeping gate and the task's
length.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gradpath.core.theory import horizon, log_keep
from gradpath.figures import CannotDrawError, Figure
from gradpath.figures._shared import common, palette, stages
from gradpath.tracking.loader import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

LEARNT = 0.9
"""A final loss below this share of chance counts as having learnt something."""
STATES = {
    0.0: ("at chance", palette.AT_CHANCE),
    0.5: ("below chance", palette.BELOW_CHANCE),
    1.0: ("solved", palette.SOLVED),
}
DIVERGED = "diverged", palette.BACKGROUND
INSTRUMENT = "state_grad_norm"
GAP = 1.5
"""Distance of the chrono column from the last bias."""
OFFSET = 0.12
"""Distance between the points of two lengths, which would otherwise coincide."""

Cells = dict[tuple[float | None, int], common.Group]
"""(b, or None for chrono; T) → the seeds at that point."""


@dataclass
class ForgetBias(Figure):
    """Upper: solved, below chance or at chance over (b × T), where b is the initial bias of the
    keeping gate (b_f of the LSTM), with the length over which a carousel would carry if its gate
    stayed at its bias, T = −1/ln σ(b). Lower: the slope of log10 ‖∂L/∂C_t‖ against the lag at
    initialisation, with that of the carousel alone, log10 σ(b). Chrono initialisation is drawn
    beside both.
    """

    needs = ("state_grad_norm",)

    def draw(self, runs: Sequence[Run]) -> "Canvas":
        groups = common.groups(runs)
        cells = _cells(groups)
        stages.drawable(groups, INSTRUMENT)
        biases, lengths = _axes(cells)
        common.theme()

        canvas, (upper, lower) = common.subplots(
            2, 1, figsize=(8.4, 8.6), sharex=True, height_ratios=(1.25, 1), layout="constrained"
        )
        self._diagram(upper, cells)
        self._slopes(lower, cells)
        chrono = any(bias is None for bias, _ in cells)
        places = [*biases, biases[-1] + GAP] if chrono else biases
        lower.set_xticks(places, [f"{bias:g}" for bias in biases] + ["chrono"] * chrono)
        lower.set_xlabel(f"initial {_gate(groups)} bias  b")
        common.caption(canvas, self._caption(cells, lengths), groups)
        return canvas

    def _diagram(self, axes: "Axes", cells: Cells) -> None:
        """A square for each point, coloured by the mean over seeds of 0 (at chance), ½ (below
        chance), 1 (solved).
        """
        from matplotlib.colors import LinearSegmentedColormap
        from matplotlib.patches import Patch, Rectangle

        biases, lengths = _axes(cells)
        tint = LinearSegmentedColormap.from_list("learnt", [color for _, color in STATES.values()])
        rows, columns = _edges(np.log2(lengths)), _edges(np.array(biases))
        chrono = biases[-1] + GAP + np.array([-0.5, 0.5])
        for (bias, length), group in cells.items():
            row = lengths.index(length)
            left, right = chrono if bias is None else columns[biases.index(bias) :][:2]
            states = [_state(run) for run in group.runs if not _lost(run)]
            lost = len(group.runs) - len(states)
            state = float(np.mean(states)) if states else 0.0
            look: dict[str, Any] = {"facecolor": tint(state), "edgecolor": palette.BACKGROUND, "lw": 2}
            if not states:
                look |= {"facecolor": DIVERGED[1], "edgecolor": palette.DIVERGED, "hatch": "xx", "lw": 0}
            size = (right - left, rows[row + 1] - rows[row])
            axes.add_patch(Rectangle((left, rows[row]), *size, **look))
            text = f"{sum(state == 1 for state in states)}/{len(group.runs)}" + f"\n{lost} diverged" * bool(lost)
            center = ((left + right) / 2, np.mean(rows[row : row + 2]))
            ink = palette.BACKGROUND if state > 0.6 else palette.TEXT
            box = {"facecolor": look["facecolor"], "edgecolor": "none", "pad": 1.5}
            axes.text(*center, text, ha="center", va="center", color=ink, bbox=box, zorder=4)
        b = np.linspace(columns[0], columns[-1], 400)
        axes.plot(b, np.log2(horizon(b)), color=palette.THEORY, lw=2.4, label="T = −1/ln σ(b)")
        slopes = np.array([_slope(cells[bias, lengths[-1]])[0] for bias in biases])
        slopes = np.ma.masked_invalid(slopes)  # where no network could be measured
        falling = np.minimum(slopes, -1e-9)  # a curve that does not fall reaches beyond the top of the diagram
        axes.plot(
            biases,
            np.log2(-1 / (falling * np.log(10))),
            color=palette.THEORY,
            lw=1.6,
            ls=":",
            label="measured at initialisation",
        )
        axes.autoscale_view(scaley=False)
        axes.set_ylim(rows[0], rows[-1])
        axes.set_yticks(np.log2(lengths), [str(length) for length in lengths])
        axes.set_ylabel("length T of the task (steps)")
        axes.grid(False)
        handles = [*(Patch(facecolor=color, label=name) for name, color in STATES.values()), *axes.lines]
        if any(_lost(run) for group in cells.values() for run in group.runs):
            name, color = DIVERGED
            handles.insert(3, Patch(facecolor=color, edgecolor=palette.DIVERGED, hatch="xx", lw=0, label=name))
        axes.legend(
            handles=handles,
            ncols=len(handles),
            columnspacing=1.2,
            loc="lower center",
            bbox_to_anchor=(0.5, 1.0),
            fontsize=9.5,
        )

    def _slopes(self, axes: "Axes", cells: Cells) -> None:
        """The measured slope of each point, and the slope of the carousel."""
        from matplotlib import colormaps

        biases, lengths = _axes(cells)
        tints = colormaps["viridis"](np.linspace(0.85, 0, len(lengths)))
        for index, (length, color) in enumerate(zip(lengths, tints, strict=True)):
            by_bias = {bias: group for (bias, n), group in cells.items() if n == length}
            x = np.array([biases[-1] + GAP if bias is None else bias for bias in by_bias])
            middle, low, high = np.array([_slope(group) for group in by_bias.values()]).T
            offset = OFFSET * (index - (len(lengths) - 1) / 2)
            error = (middle - low, high - middle)
            axes.errorbar(x + offset, middle, error, fmt="o", ms=4.5, color=color, label=f"T = {length}")
        b = np.linspace(biases[0], biases[-1], 400)
        axes.plot(b, log_keep(b) / np.log(10), color=palette.THEORY, lw=2.4, label="carousel alone, log$_{10}$ σ(b)")
        axes.axhline(0, color=palette.REFERENCE, lw=1)
        axes.set_ylabel("slope of ‖∂L/∂C$_t$‖ at initialisation\n(decades a step)")
        axes.legend(loc="lower right", fontsize=9.5)

    def _caption(self, cells: Cells, lengths: list[int]) -> str:
        groups = list(cells.values())
        longest = {bias: group for (bias, length), group in cells.items() if length == lengths[-1]}
        differences = [
            f"{bias:g}: {common.number([_slope(group)[0] - float(log_keep(bias)) / np.log(10)], '+.3f')}"
            for bias, group in longest.items()
            if bias is not None
        ]
        return (
            f"Upper: how many of {common.seeds(groups)} solved the task, coloured by the mean of their states (below "
            f"chance: final loss under {LEARNT:.0%} of it); lower: median and range. {common.setting_text(groups)}. "
            "Theory: left at its bias, the carousel multiplies the gradient by σ(b) a step and keeps 1/e of it over "
            "−1/ln σ(b) steps (Tallec & Ollivier 2018, section 2, who also give chrono); dotted: the same of the "
            f"measured slope, infinite from where it is ≥ 0. At T = {lengths[-1]} the measured slope lies above the "
            "carousel's, because the gradient also comes through the hidden state and gates do not stay at their bias, "
            f"in decades a step: {', '.join(differences)}."
        )


def _gate(groups: Sequence[common.Group]) -> str:
    """``forget``, ``update``: the keeping gate in words."""
    labels = [group.runs[0].roles.keeping for group in groups]
    return common.plain(" or ".join(dict.fromkeys(k.label.removesuffix(" gate") for k in labels if k)))


def _cells(groups: Sequence[common.Group]) -> Cells:
    """The groups by their place in the diagram, in order; raises CannotDrawError where they form no
    full grid.
    """
    cells: Cells = {}
    for group in groups:
        keeping, length = group.runs[0].roles.keeping, int(group.runs[0].config["task"]["length"])
        if keeping is None or keeping.bias is None:
            raise CannotDrawError(
                f"{group.label}: has no keeping gate that starts at a bias, as the LSTM's forget gate"
            )
        place = (None if isinstance(keeping.bias, tuple) else float(keeping.bias), length)
        if place in cells:
            raise CannotDrawError(
                f"more than the keeping gate's bias and length varies: {cells[place].label} and {group.label}"
            )
        cells[place] = group
    biases, lengths = _axes(cells)
    if len(biases) < 2:
        raise CannotDrawError("needs two initial biases of the keeping gate or more; see the study forget_bias")
    wanted = [*biases, *[None] * any(bias is None for bias, _ in cells)]
    missing = [(bias, length) for bias in wanted for length in lengths if (bias, length) not in cells]
    if missing:
        names = [f"{'chrono' if b is None else f'bias {b:g}'} at T={length}" for b, length in missing]
        raise CannotDrawError(f"the grid has holes: {', '.join(names)}")
    return {(bias, length): cells[bias, length] for bias in wanted for length in lengths}


def _axes(cells: Cells) -> tuple[list[float], list[int]]:
    """The biases and the lengths of the grid."""
    return sorted({b for b, _ in cells if b is not None}), sorted({length for _, length in cells})


def _edges(centres: NDArray) -> NDArray:
    """The borders of squares around increasing centres: midway between two centres, and as far
    outside the first and the last; ±½ around a single centre.
    """
    if len(centres) == 1:
        return centres[0] + np.array([-0.5, 0.5])
    middle = (centres[1:] + centres[:-1]) / 2
    return np.array([2 * centres[0] - middle[0], *middle, 2 * centres[-1] - middle[-1]])


def _lost(run: Run) -> bool:
    """Has the run diverged, or is its final loss not finite?"""
    last = run.evaluation.column("loss")[-1:]
    return stages.stopped(run) is not None or not np.isfinite(last).all()


def _state(run: Run) -> float:
    """1 where the task is solved after training, ½ where the loss is below chance, else 0."""
    if not len(run.evaluation.steps):
        return 0.0
    if run.tags["solved"] == "true":
        return 1.0
    return 0.5 if run.evaluation.column("loss")[-1] < LEARNT * run.chance_loss else 0.0


def _slope(group: common.Group) -> tuple[float, float, float]:
    """Median, smallest and largest over the seeds of the least-squares slope of the carrier's
    gradient at initialisation against the lag, in decades a step; true zeros are left out. NaN
    where none could be measured.
    """
    slopes = []
    for run in stages.runs_at(group, stages.FIRST, INSTRUMENT):
        curve = common.carrier_gradient(run, 0)
        valid = np.isfinite(curve)
        if valid.sum() < 2:  # no slope through one point
            continue
        slopes.append(np.polyfit(run.lag[valid], curve[valid], 1)[0])
    if not slopes:
        return np.nan, np.nan, np.nan
    return float(np.median(slopes)), float(min(slopes)), float(max(slopes))
