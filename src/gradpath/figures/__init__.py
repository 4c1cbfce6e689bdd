"""Figures of the report. A figure is drawn from stored runs alone; it neither reads nor writes
files itself.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from gradpath.schema.namespace import unit_attributes
from gradpath.schema.settings import Settings, setting
from gradpath.tracking.loader import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas


class CannotDrawError(Exception):
    """These runs do not hold the readings that the figure needs; the message says what is
    missing.
    """


@dataclass
class Figure(Settings, ABC):
    """Base of the figures."""

    dpi: int = setting(150, "resolution of the PNG", ge=20, le=1200)

    needs: ClassVar[tuple[str, ...]] = ()
    """The instruments without whose readings the figure cannot be drawn."""

    def drawn(self, runs: Sequence[Run]) -> "Canvas":
        """The figure of the runs, once they hold what it ``needs``; raises CannotDrawError where
        they do not, TypeError where ``draw`` returns no figure.
        """
        if missing := {need for need in self.needs for run in runs if need not in run.series}:
            raise CannotDrawError(f"needs {', '.join(sorted(missing))}")
        canvas = self.draw(runs)
        if not hasattr(canvas, "savefig"):
            raise TypeError(f"draw must return a matplotlib figure, it returned {type(canvas).__name__}")
        return canvas

    def undrawn(self, runs: Sequence[Run]) -> Sequence[str]:
        """What a drawn figure leaves out of these runs though it might be expected in it, and why,
        for the report to say.
        """
        return ()

    @abstractmethod
    def draw(self, runs: Sequence[Run]) -> "Canvas":
        """A matplotlib figure of the runs; raises CannotDrawError."""


__getattr__, __dir__ = unit_attributes(Figure)
