"""One run and several runs, read back from the store."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, overload

from gradpath.api import canvas
from gradpath.api.argument_types import check
from gradpath.api.reading import Curve, Evaluations, Readings
from gradpath.api.session import session
from gradpath.api.table import settings_apart, table, tables

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas
    from pandas import DataFrame

    from gradpath.core.roles import Roles
    from gradpath.tracking.stored_run import Run
    from gradpath.tracking.verdict import Verdict


class Result:
    """One finished run: its configuration, and all its measurements.

    It is read from the store, whether it was trained just now (``gp.run``) or before (``gp.load``).
    A run whose training diverged is a result too, up to the step at which it diverged.
    """

    def __init__(self, stored: "Run") -> None:
        self.stored = stored
        """The record that ``gradpath report`` draws from."""

    @property
    def name(self) -> str:
        """``lstm · adding T=100 · seed 3``."""
        return self.stored.name

    @property
    def arm(self) -> str:
        """Cell and clipping, from the configuration: ``clipped_rnn``."""
        return self.stored.arm

    @property
    def seed(self) -> int:
        return self.stored.seed

    @property
    def config(self) -> dict[str, Any]:
        """All settings that determine the numbers, as nested dicts; the dict of a unit has its
        ``name``.
        """
        return self.stored.config

    @property
    def run_id(self) -> str:
        """MLflow's id of the run."""
        return self.stored.run_id

    @property
    def verdict(self) -> "Verdict":
        """The outcome of the training: ``word`` (``solved``, ``vanishing``, …) and ``reason``."""
        return self.stored.verdict

    @property
    def diverged_at(self) -> int | None:
        """The training step at which loss or gradient stopped being finite, or None."""
        return self.stored.diverged_at

    @property
    def loss(self) -> Curve:
        """Batch-mean loss before each training step's update: ``steps`` (n,), ``values`` (n,)."""
        return Curve(self.stored.loss.steps, self.stored.loss.values)

    @property
    def evaluations(self) -> Evaluations:
        """Loss, score and ``solved`` on the evaluation set, each (n,), at training ``steps``."""
        loss, score, solved = self.stored.evaluation.values.reshape(-1, 3).T
        return Evaluations(self.stored.evaluation.steps, loss, score, solved.astype(bool))

    @property
    def series(self) -> Readings:
        """Instrument → its readings: ``values`` with named axes, ``steps``, ``lag``, ``names``."""
        return Readings(self.stored)

    @property
    def roles(self) -> "Roles":
        """The declarations of the cell: states, carrier, each parameter's role and gate."""
        return self.stored.roles

    def table(self, instrument: str = "param_grad_norm") -> "DataFrame":
        """An instrument's readings, a row for each number; ``loss`` and ``evaluation`` are taken
        too.

        Columns: ``arm``, ``seed``; what was read, for ``param_grad_norm`` ``layer`` (from 1 at the
        bottom, missing for the readout), ``parameter`` and ``gate`` as the cell declares it
        (missing for the readout); ``lag`` (steps to the end of the sequence, T − 1 … 0) where every
        timestep is read; ``step`` (updates made before); the number, ``log10_norm`` with -inf for a
        true zero. KeyError where the instrument has read nothing.
        """
        return table(self.stored, instrument)

    def figure(self, name: str, **settings: Any) -> "Canvas":
        """A figure of this run alone; see :meth:`Results.figure`."""
        return Results([self]).figure(name, **settings)

    def __repr__(self) -> str:
        return f"Result({self.name}: {self.verdict.word}; run_id {self.run_id})"

    def _repr_html_(self) -> str:
        return Results([self])._repr_html_()


class Results(Sequence[Result]):
    """Finished runs, by arm and seed.

    ``missing`` names planned points of the sweep without a finished run, ``damaged`` finished runs
    that cannot be read, each with the reason.
    """

    def __init__(self, runs: Sequence[Result], missing: Sequence[str] = (), damaged: Sequence[str] = ()) -> None:
        check("runs", runs, Sequence, "several of Result")
        for run in runs:
            check("runs", run, Result, "several of Result")
        self._runs = tuple(runs)
        self.missing, self.damaged = tuple(missing), tuple(damaged)

    @overload
    def __getitem__(self, index: int) -> Result: ...

    @overload
    def __getitem__(self, index: slice) -> "Results": ...

    def __getitem__(self, index: int | slice) -> "Result | Results":
        return Results(self._runs[index]) if isinstance(index, slice) else self._runs[index]

    def __len__(self) -> int:
        return len(self._runs)

    def __iter__(self) -> Iterator[Result]:
        return iter(self._runs)

    @property
    def stored(self) -> "list[Run]":
        """The records that ``gradpath report`` draws from."""
        return [run.stored for run in self]

    @property
    def verdicts(self) -> "DataFrame":
        """A row for each run: ``arm``, ``seed``, the settings in which runs of one arm differ, the
        ``verdict`` and its ``reason``.
        """
        from pandas import DataFrame

        rows = [
            {"arm": run.arm, "seed": run.seed, **settings, "verdict": run.verdict.word, "reason": run.verdict.reason}
            for run, settings in zip(self, settings_apart(self.stored), strict=True)
        ]
        return DataFrame(rows, columns=None if rows else ["arm", "seed", "verdict", "reason"])

    def table(self, instrument: str = "param_grad_norm") -> "DataFrame":
        """The tables of the runs, one below the other (see :meth:`Result.table`), with a column for
        each setting in which runs of one arm differ. KeyError where a run has no such readings.
        """
        return tables(self.stored, instrument)

    def figure(self, name: str, **settings: Any) -> "Canvas":
        """A figure of ``gradpath report`` of these runs, as matplotlib's Figure.

        ``settings`` are those of the figure (``dpi=100``). Raises ConfigError where there is no
        such figure or setting, CannotDrawError where the runs do not hold what it needs.
        """
        check("name", name, str, "the name of a figure")
        with session():
            return canvas.drawn(canvas.described([name], {name: settings})[name], self.stored)

    def __repr__(self) -> str:
        lines = [f"{len(self)} run{'s'[: len(self) != 1]}"]
        lines += [f"  {run.verdict.word:<10} {run.name}: {run.verdict.reason}" for run in self]
        return "\n".join([*lines, *(f"  missing    {name}" for name in self.missing)])

    def _repr_html_(self) -> str:
        import html

        frame = self.verdicts
        lines = [f"missing: {name}" for name in self.missing] + [f"damaged: {line}" for line in self.damaged]
        notes = "".join(f"<p>{html.escape(line)}</p>" for line in lines)
        return frame.to_html(index=False, escape=True, max_rows=60) + notes
