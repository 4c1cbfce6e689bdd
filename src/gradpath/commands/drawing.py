"""The figures of a report as the contents of files, several at once in processes of their own."""

import io
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from dataclasses import dataclass, field
from typing import Any

from gradpath.commands import pool
from gradpath.commands.reasons import reason
from gradpath.commands.report_settings import FORMATS, Report
from gradpath.commands.signals import check as check_signals
from gradpath.commands.signals import ending
from gradpath.figures import CannotDrawError, Figure
from gradpath.schema.text import printable
from gradpath.tracking.loader import Run
from gradpath.training import passes

PRELOADED = ("gradpath.commands.drawing", "gradpath.figures._shared.preloaded")
"""What the process is born with that the workers are forked from."""


@dataclass
class Drawing:
    """What has become of one figure: its files by format, and what it leaves out; or why these runs
    cannot be drawn, or what went wrong.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    undrawn: list[str] = field(default_factory=list)
    cannot: str = ""
    failed: str = ""


def processes(report: Report) -> int:
    """How many at once: ``jobs``, or one a core; no more than there are figures."""
    return min(report.jobs or passes.cores(), len(report.figures))


def drawings(
    figures: Mapping[str, Figure], runs: Sequence[Run], formats: Sequence[str], count: int
) -> Iterator[tuple[str, Drawing]]:
    """Every figure by its name, in the order of ``figures``, ``count`` at once."""
    if count < 2:
        for name, figure in figures.items():
            yield name, drawn(figure, runs, formats)
        return
    from pebble import ProcessExpired

    with pool.workers(count, _prepare, (runs,)) as workers:
        futures: dict[str, Any] = {name: workers.schedule(_draw, (figure, formats)) for name, figure in figures.items()}
        for name, future in futures.items():
            while not wait([future], pool.POLL_SECONDS, FIRST_COMPLETED).done:
                check_signals()
            error = future.exception()
            if isinstance(error, ProcessExpired):
                yield name, Drawing(failed=f"its process {pool.death(error)}")
            else:
                yield name, Drawing(failed=printable(reason(error), 300)) if error else future.result()


def drawn(figure: Figure, runs: Sequence[Run], formats: Sequence[str]) -> Drawing:
    """One figure in every format."""
    import matplotlib

    matplotlib.use("Agg")
    # The same runs give the same bytes: no date in the files, no random ids in the SVG.
    matplotlib.rcParams["svg.hashsalt"] = "gradpath"
    from matplotlib import pyplot

    drawing = Drawing()
    try:
        canvas = figure.drawn(runs)
        # The formats have a fixed order, because the layout of a file starts from that of the file
        # before.
        for suffix in sorted(formats, key=[*FORMATS].index):
            buffer = io.BytesIO()
            canvas.savefig(buffer, format=suffix, dpi=figure.dpi, bbox_inches="tight", metadata=FORMATS[suffix])
            drawing.files[suffix] = buffer.getvalue()
        drawing.undrawn = [printable(text, 300) for text in figure.undrawn(runs)]
    except CannotDrawError as error:
        return Drawing(cannot=str(error))
    except (Exception, SystemExit) as error:  # odd data, or a fault in a user's figure: the others are drawn
        if ended := ending(error):
            raise ended from None
        return Drawing(failed=printable(reason(error), 300))
    finally:  # also the canvas of a figure that could not be completed
        pyplot.close("all")
    return drawing


_runs: Sequence[Run] = ()
"""In a process of a pool: what is drawn."""


def _prepare(runs: Sequence[Run]) -> None:
    global _runs
    _runs = runs


def _draw(figure: Figure, formats: Sequence[str]) -> Drawing:
    try:
        return drawn(figure, _runs, formats)
    except BaseException as error:
        if ended := ending(error):
            pool.leave(ended)
        raise
