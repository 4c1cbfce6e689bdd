"""Figures of runs as matplotlib's Figure objects, without effects on the user's plots."""

import io
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from gradpath.api.argument_types import check
from gradpath.api.keywords import assignments

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

    from gradpath.figures import Figure
    from gradpath.tracking.stored_run import Run


def described(names: Sequence[str] | None, settings: dict[str, Any]) -> "dict[str, Figure]":
    """The figures with these names, or all figures of the report where no names are given, with
    ``settings`` by the figure's name; raises ConfigError.
    """
    from gradpath.commands import compose

    for name, values in settings.items():
        check(name, values, Mapping, f'a dict of this figure\'s settings, as {name}={{"dpi": 100}}')
    chosen = {} if names is None else {"figures": list(names)}
    keys = {f"figures.{name}": values for name, values in settings.items()}
    return compose.report(assignments((), chosen | keys)).figures


def drawn(figure: "Figure", runs: "Sequence[Run]") -> "Canvas":
    """The figure of the runs; raises CannotDrawError where they do not hold its readings.

    matplotlib's settings are restored, and the figure is not one of pyplot's: no window opens, and
    a notebook shows it once, as the value of its cell.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    open_figures = set(_open_figures())
    with matplotlib.rc_context():
        try:
            canvas = figure.drawn(runs)
        finally:  # closes the figures of a user's own figure that uses pyplot
            for number in set(_open_figures()) - open_figures:
                sys.modules["matplotlib.pyplot"].close(number)
    FigureCanvasAgg(canvas)
    # A notebook can show a Figure once pyplot has registered it; until then the Figure shows
    # itself.
    canvas._repr_png_ = partial(png, canvas, figure.dpi)  # type: ignore[attr-defined]
    # The caption lies below the axes, outside the canvas that matplotlib saves by itself.
    canvas.savefig = partial(_save_whole, canvas)  # type: ignore[method-assign]
    return canvas


def _save_whole(canvas: "Canvas", *arguments: Any, **settings: Any) -> None:
    """matplotlib's ``savefig``, with all that has been drawn unless ``bbox_inches`` says other."""
    type(canvas).savefig(canvas, *arguments, **{"bbox_inches": "tight"} | settings)


def _open_figures() -> list[int]:
    """The numbers of pyplot's figures."""
    pyplot = sys.modules.get("matplotlib.pyplot")
    return pyplot.get_fignums() if pyplot else []


def png(canvas: "Canvas", dpi: int) -> bytes:
    """A figure as PNG."""
    buffer = io.BytesIO()
    canvas.savefig(buffer, format="png", dpi=dpi, bbox_inches="tight")
    return buffer.getvalue()
