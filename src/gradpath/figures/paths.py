"""The paths by which the gradient of the carried state comes back, and the share of the carousel
alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gradpath.core import theory
from gradpath.figures import Figure
from gradpath.figures._shared import common, finite, palette, stages
from gradpath.tracking.loader import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

INITIAL, TRAINED = 0, 1
INSTRUMENT = "path_grad_norm"
ROWS = (
    ("the whole lag\n\ngradient norm", None),
    ("the carousel's share", (-0.3, 1.3)),
    ("one step, at initialisation\n\ngradient norm", None),
    ("one step, after training\n\ngradient norm", None),
    ("share over one step", (-0.3, 1.3)),
    ("cosine to the total", (-1.05, 1.05)),
)
Reading = Callable[[Run, str, int], NDArray]


@dataclass
class Paths(Figure):
    """A column for each arm. Rows: the carousel alone and the rest against the total over the whole
    lag, with the line that the initial bias predicts; the carousel's signed share; the split of one
    step, at initialisation and after training; its signed shares, which add up to 1; the cosines of
    its parts to the total. Bottom layer.
    """

    needs = ("path_grad_norm",)

    def draw(self, runs: Sequence[Run]) -> "Canvas":
        common.theme()

        groups = common.columns(runs)
        stages.drawable(groups, INSTRUMENT)
        canvas, grid = common.subplots(
            len(ROWS), len(groups), figsize=(3.2 * len(groups) + 0.6, 12.6), sharex=True, sharey="row", squeeze=False
        )
        norms = [
            read(run, part, probe)
            for group in groups
            for probe in (INITIAL, TRAINED)
            for run in runs_at(group, probe)
            for part in parts(run)
        ]
        floor = common.floor_below(norms)
        for column, group in zip(grid.T, groups, strict=True):
            state = carrier(group.runs[0]).rpartition("/")[2]
            column[0].set_title(f"{group.title}\n‖∂L/∂{common.plain(state)}$_t$‖", color=group.color)
            column[-1].set_xlabel("lag  T − t  (steps)")
            for place in (
                0,
                3,
            ):  # the panels that draw the trained network
                finite.title(column[place], stages.words(group, stages.LAST, INSTRUMENT))
            if not runs_at(group, INITIAL):
                for axes in column:
                    finite.empty_panel(axes, group)
                continue
            for part, color, width in (
                ("total", palette.TOTAL, 3.5),
                ("rest", palette.REST, 1.4),
                ("carousel", palette.HIGHWAY, 1.4),
            ):
                self._curves(column[0], group, read, part, floor, color=color, lw=width)
            self._curves(column[1], group, share, "carousel", floor, color=palette.HIGHWAY)
            self._prediction(column[0], group)
            for axes, probe in zip(column[2:4], ((INITIAL,), (TRAINED,)), strict=True):
                self._curves(axes, group, read, "total", floor, probe, color=palette.TOTAL, lw=3.5, ls="-")
                for part in recurrent_parts(group.runs[0]):
                    self._curves(axes, group, read, part, floor, probe, color=_color(group, part), ls="-")
            for axes, kind in zip(column[4:], (share, cosine), strict=True):
                for part in recurrent_parts(group.runs[0]):
                    self._curves(axes, group, kind, part, floor, color=_color(group, part))
        for row, (text, limits) in zip(grid, ROWS, strict=True):
            label = text if stages.shows_trained(groups, INSTRUMENT) else text.replace("after training", "last finite")
            row[0].set_ylabel(label)
            if limits is None:
                common.decades(row[0].yaxis)
                continue
            row[0].set_ylim(*limits)
            for axes in row:
                axes.axhline(0, color=palette.MUTED, lw=0.6, zorder=1)
        self._legends(canvas, groups)
        canvas.tight_layout(rect=(0, 0.055, 1, 1))
        common.caption(canvas, self._caption(groups), groups)
        return canvas

    def _curves(
        self,
        axes: "Axes",
        group: common.Group,
        kind: Reading,
        part: str,
        floor: float,
        selected: Sequence[int] = (INITIAL, TRAINED),
        **look: Any,
    ) -> None:
        """One part before (dashed, thin) and after training; a part that is a true zero throughout
        is not drawn.
        """
        # At T there is only the direct part, and no split to show.
        span = slice(None) if part == "total" else slice(None, -1)
        for probe in selected:
            dash = {"ls": ("--", "-")[probe], "lw": (1.0, 1.5)[probe], "band": (0.08, 0.15)[probe]}
            if all(np.isneginf(read(run, part, probe)[span]).all() for run in runs_at(group, probe)):
                if part in ("carousel", "highway") and not axes.texts:
                    axes.text(0.5, 0.06, "no highway", transform=axes.transAxes, ha="center", color=palette.MUTED)
                continue
            curves = [kind(run, part, probe)[span] for run in runs_at(group, probe)]
            common.curve(axes, group.runs[0].lag[span], curves, floor, **(dash | look))

    def _prediction(self, axes: "Axes", group: common.Group) -> None:
        """The predicted line (dotted), which starts where the carousel starts."""
        if (curve := predicted(group.runs[0])) is not None:
            start = np.median([read(run, "carousel", INITIAL)[-1] for run in runs_at(group, INITIAL)])
            axes.plot(group.runs[0].lag, start + curve, color=palette.THEORY, ls=":", lw=1.8, zorder=5)

    def _legends(self, canvas: "Canvas", groups: Sequence[common.Group]) -> None:
        from matplotlib.lines import Line2D

        def line(color: str, label: str, **look: Any) -> Line2D:
            return Line2D([], [], color=color, label=label, **({"lw": 1.6} | look))

        looks = dict.fromkeys(
            (part, _color(group, part)) for group in groups for part in recurrent_parts(group.runs[0])
        )
        handles = [line(palette.TOTAL, "total", lw=3.5), line(palette.REST, "rest = total − carousel")]
        handles += [line(color, common.plain(name.replace("_", " "))) for name, color in looks]
        handles[2].set_label("highway; carousel alone")
        handles += [line(palette.THEORY, "carousel as the initial bias predicts", ls=":")]
        handles += [
            line(palette.STAGE_SAMPLE, "before training", ls="--"),
            line(palette.STAGE_SAMPLE, stages.trained_label(groups, INSTRUMENT)),
        ]
        canvas.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, 0.058), ncols=5, fontsize=8.5)

    def _caption(self, groups: Sequence[common.Group]) -> str:
        slopes, shares = [], []
        for group in groups:
            if not runs_at(group, INITIAL):
                shares.append(f"{group.label} {stages.lost(group)}")
                continue
            percentages = [
                [100 * share(run, "carousel", probe)[0] for run in runs_at(group, probe)]
                for probe in (INITIAL, TRAINED)
            ]
            initial, trained = (common.number(values, ".0f").replace("-0", "0") for values in percentages)
            shares.append(f"{group.label} {initial} % and {trained} %".replace("-", "−"))
            if (curve := predicted(group.runs[0])) is not None:
                lags = max(1, len(curve) - 1)
                fall = (
                    np.median(
                        [np.subtract(*read(run, "carousel", INITIAL)[[0, -1]]) for run in runs_at(group, INITIAL)]
                    )
                    / lags
                )
                slopes.append(f"{group.label} {fall:.4f} against {curve[0] / lags:.4f} ({fall - curve[0] / lags:+.4f})")
        residuals = (
            f" Slope, measured against predicted (residual), decades a step: {'; '.join(slopes).replace('-', '−')}."
            if slopes
            else ""
        )
        return (
            f"Median over {common.seeds(groups)}, band from smallest to largest. The carousel is the gradient with "
            "every way through the output cut. Theory at initialisation: it keeps the keeping gate's value, σ(b), of "
            f"itself a step (dotted; with chrono the root mean square over the biases drawn).{residuals} Share of the "
            f"carousel at the largest lag, before and "
            f"{stages.trained_label(groups, INSTRUMENT)}: {'; '.join(shares)}. Share: signed, "
            f"⟨part, total⟩/‖total‖². Crosses: true zeros. {common.setting_text(groups)}."
        )


def carrier(run: Run) -> str:
    """``C``, ``layer1/H`` …: the carried state of the bottom layer."""
    return run.roles.bottom_carrier


def parts(run: Run) -> list[str]:
    """All parts of the bottom layer, without the total."""
    prefix = f"{carrier(run)}/"
    names = [name for name in run.series["path_grad_norm"].names if name.startswith(prefix)]
    return [name.removeprefix(prefix) for name in names if not name.endswith(("/total", "/cosine"))]


def recurrent_parts(run: Run) -> list[str]:
    """The parts of one step that come from the following step."""
    return [part for part in parts(run) if part == "highway" or run.roles.gate_of_path(part)]


def _color(group: common.Group, part: str) -> str:
    return palette.path(group.runs[0].roles, part)


def runs_at(group: common.Group, probe: int) -> list[Run]:
    """The runs that are drawn before (0) or after training (1)."""
    return stages.runs_at(group, stages.LAST if probe else stages.FIRST, INSTRUMENT)


def probes(run: Run, instrument: str) -> tuple[int, int]:
    """Indices of the readings at initialisation and after training."""
    readings = stages.finite_readings(run, instrument)
    return int(readings[0]), int(readings[-1])


def read(run: Run, part: str, probe: int) -> NDArray:
    """(T,) log10 norm of one part of the bottom layer, before (0) or after training (1)."""
    return run.series["path_grad_norm"].column(f"{carrier(run)}/{part}")[probes(run, "path_grad_norm")[probe]]


def cosine(run: Run, part: str, probe: int) -> NDArray:
    """(T,) cosine of a part with the total."""
    return read(run, f"{part}/cosine", probe)


def share(run: Run, part: str, probe: int) -> NDArray:
    """(T,) ⟨part, total⟩ / ‖total‖²; 0 for a true zero."""
    size, total = read(run, part, probe), read(run, "total", probe)
    ratio = np.where(np.isneginf(size), 0.0, 10.0 ** (size - np.where(np.isneginf(total), 0.0, total)))
    return cosine(run, part, probe) * ratio


def predicted(run: Run) -> NDArray | None:
    """(T,) log10 of the factor σ(b)^lag that the carousel keeps over each lag if its gates stay at
    their initial biases; None where the cell does not declare these. Chrono: b = ln u, u ~ U[1,
    t_max − 1], so that σ(b) = u / (1 + u), and the norm over the units is the root mean square.
    """
    keeping = run.roles.keeping
    if keeping is None or (keeping.bias is None and keeping.held is None):
        return None
    if keeping.held is not None:
        log_gate = np.log(np.maximum([keeping.held], 1e-300))
    elif isinstance(keeping.bias, tuple):
        log_gate = theory.log_keep(np.log(np.linspace(*keeping.bias, 2001)))
    else:
        log_gate = theory.log_keep(np.array([keeping.bias]))
    return theory.carousel(log_gate, run.lag) / np.log(10)
