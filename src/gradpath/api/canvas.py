"""Figures of runs as matplotlib's Figure objects, without touching the user's plots."""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gradpath.api.keywords import assignments

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

    from gradpath.figures import Figure
    from gradpath.tracking.stored_run import Run


def described(names: Sequence[str] | None, settings: dict[str, Any]) -> "dict[str, Figure]":
    """The figures of these names, all of the report without names, with ``settings`` by the
    figure's name; raises ConfigError.
    """
    from gradpath.commands import compose

    chosen = {} if names is None else {"figures": list(names)}
    keys = {f"figures.{name}": values for name, values in settings.items()}
    return compose.report(assignments((), chosen | keys)).figures


def drawn(figure: "Figure", runs: "Sequence[Run]") -> "Canvas":
    """The figure of the runs; raises CannotDrawError where they do not hold its readings.

    matplotlib's settings are as before, no window opens, and pyplot does not keep the figure: a
    notebook shows it once, as the value of its cell.
    """
    import matplotlib
    from matplotlib import pyplot
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    from gradpath.figures import CannotDrawError

    if missing := sorted({need for need in figure.needs for run in runs if need not in run.series}):
        raise CannotDrawError(f"needs {', '.join(missing)}")
    before = set(pyplot.get_fignums())
    with matplotlib.rc_context(), pyplot.ioff():
        try:
            canvas = figure.draw(runs)
        finally:
            for number in set(pyplot.get_fignums()) - before:
                pyplot.close(number)
    FigureCanvasAgg(canvas)
    return canvas


def png(canvas: "Canvas", dpi: int) -> bytes:
    """A figure as PNG."""
    buffer = io.BytesIO()
    canvas.savefig(buffer, format="png", dpi=dpi, bbox_inches="tight")
    return buffer.getvalue()
