"""The contract of a figure."""

import io
import re
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest

from gradpath.commands import compose
from gradpath.commands.report_settings import Report
from gradpath.figures import CannotDrawError, Figure
from gradpath.instruments import Instrument
from gradpath.schema.discovery import discover
from gradpath.schema.settings import ConfigError
from gradpath.testing._arrays import unchanged
from gradpath.testing._runs import as_diverged, recorded
from gradpath.testing._unit import SMALL, UnitContract, composed
from gradpath.tracking.loader import Run

SEEDS = 2


class FigureContract(UnitContract):
    """The properties of a figure on which gradpath relies. ``sweep`` are the overrides of the arms
    that are drawn, each with two seeds; ``seeds_in_words`` is False where the figure does not
    mention seeds.
    """

    group = "figures"
    sweep: ClassVar[Sequence[Sequence[str]]] = (("arm=rnn",), ("arm=clipped_lstm",))
    seeds_in_words: ClassVar[bool] = True
    _is_in_a_list = True
    _runs: ClassVar[list[Run]]

    @pytest.fixture(autouse=True)
    def _look(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import matplotlib

        matplotlib.use("Agg")
        monkeypatch.setitem(matplotlib.rcParams, "svg.hashsalt", "gradpath")

    @property
    def choice(self) -> list[str]:
        return [f"figures=[{self.name}]"]

    def configured(self, *overrides: str) -> Figure:
        return self._as_in_its_file()

    def _as_in_its_file(self) -> Figure:
        try:
            figures: dict[str, Figure] = self._compose([*self.choice, *self.overrides]).figures
        except ConfigError as error:
            pytest.fail(f"the unit cannot be chosen: {error}")
        if self.name not in figures:
            pytest.fail(f"conf/figures/{self.name}.yaml: its first line must be # @package figures.{self.name}")
        return figures[self.name]

    def _compose(self, overrides: list[str]) -> Report:
        return compose.report(overrides)

    def runs(self) -> list[Run]:
        """Two seeds of every arm, with the readings of the instruments that the figure needs, read
        back from a store.
        """
        if "_runs" not in vars(type(self)):
            needs = self.unit_class.needs
            unknown = set(needs) - set(discover(Instrument))  # type: ignore[type-abstract]
            assert not unknown, f"needs names no instrument: {', '.join(sorted(unknown))}"
            listed = f"instruments=[{','.join(needs)}]"
            points = [[listed, *SMALL, *arm, f"seed={seed}"] for arm in self.sweep for seed in range(SEEDS)]
            type(self)._runs = [recorded(composed(*point)) for point in points]
        return type(self)._runs

    def drawn(self, runs: Sequence[Run], saved: bool = False) -> tuple[bytes, str]:
        """The figure as SVG, if it is ``saved``, and all its text; raises CannotDrawError."""
        from matplotlib import pyplot
        from matplotlib.text import Text

        buffer = io.BytesIO()
        try:
            with warnings.catch_warnings(), unchanged("draw", runs=list(runs)):
                warnings.simplefilter("error", RuntimeWarning)
                canvas = self.configured().draw(runs)
                if saved:
                    canvas.savefig(buffer, format="svg", metadata={"Date": None})
                else:
                    canvas.draw_without_rendering()
            return buffer.getvalue(), " ".join(" ".join(text.get_text().split()) for text in canvas.findobj(Text))
        except KeyError as error:
            needs = ", ".join(self.unit_class.needs) or "nothing"
            pytest.fail(f"draw looks for {error}, which these runs do not have; needs names {needs}")
        finally:
            pyplot.close("all")

    def test_several_arms_are_drawn_the_same_twice_with_their_seeds(self) -> None:
        runs, original = self.runs(), list(self.runs())
        first, second = self.drawn(runs, saved=True), self.drawn(runs, saved=True)
        assert first[0] == second[0], "the same runs give other bytes: is something random, or in the order of a set?"
        same_runs = len(runs) == len(original) and all(run is old for run, old in zip(runs, original, strict=True))
        assert same_runs, "draw has changed the list of runs"
        if self.seeds_in_words and not re.search(r"\bseeds?\b", first[1]):
            pytest.fail("the figure does not say how many seeds it shows; common.caption and common.seeds do")

    def test_a_single_run_is_drawn_or_refused(self) -> None:
        self._drawn_or_refused(self.runs()[-1:])

    def test_a_run_that_diverged_is_drawn_or_refused(self) -> None:
        """A diverged seed beside trained ones, and then all seeds diverged at once."""
        runs = self.runs()
        self._drawn_or_refused([as_diverged(runs[0], 1), *runs[1:]])
        self._drawn_or_refused([as_diverged(run, 0) for run in runs])

    def test_what_is_not_there_is_refused_with_a_reason(self) -> None:
        """Runs that hold the first reading alone of each instrument that ``needs`` names."""
        self._drawn_or_refused([_bare(run, self.unit_class.needs) for run in self.runs()])

    def _drawn_or_refused(self, runs: Sequence[Run]) -> None:
        try:
            self.drawn(runs)
        except CannotDrawError as refusal:
            reason = str(refusal)
        except Exception as error:
            pytest.fail(
                f"draw raises {type(error).__name__}: {error}; what cannot be drawn is refused by a CannotDrawError"
            )
        else:
            return
        assert reason, "CannotDrawError does not say what is missing"


def _bare(run: Run, needs: Sequence[str]) -> Run:
    """The run with the first readings of some instruments, and without an evaluation."""
    first = {
        name: replace(run.series[name], steps=run.series[name].steps[:1], values=run.series[name].values[:1])
        for name in needs
    }
    no_evaluation = replace(run.evaluation, steps=np.zeros(0, np.int64), values=np.zeros((0, 3)))
    return replace(run, series=first, evaluation=no_evaluation)
