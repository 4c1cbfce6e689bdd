"""The reading that stands for a stage of training, initialised or trained, and the words for it.

Where a seed diverged, its trained network was never read: the other seeds stand for their group,
and the panel says how many are missing. Where all seeds diverged, their last finite readings are
drawn and named by their training steps.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gradpath.figures import CannotDrawError
from gradpath.tracking.loader import Run

if TYPE_CHECKING:
    from gradpath.figures._shared.arms import Group

FIRST, LAST = 0, -1
"""Stages: at initialisation, and after training."""
INITIAL, TRAINED = "at initialisation", "after training"


def finite_readings(run: Run, instrument: str) -> NDArray:
    """Indices of an instrument's readings without NaN and +inf. Raises CannotDrawError where there
    are none, or where the first is not at initialisation.
    """
    series = run.series[instrument]
    finite = series.values < np.inf
    readings = np.flatnonzero(finite.all(axis=tuple(range(1, series.values.ndim))))
    if not readings.size or series.steps[readings[0]] != 0:
        raise CannotDrawError(f"{run.name} has no finite reading at initialisation")
    return readings


def stopped(run: Run) -> int | None:
    """The training step at which loss or gradient stopped being finite."""
    if run.diverged_at is not None:
        return run.diverged_at
    bad = np.flatnonzero(~np.isfinite(run.loss.values))
    return int(run.loss.steps[bad[0]]) if bad.size else None


def solved(run: Run) -> bool:
    """Has the run solved its task at the end? A run that solved the task and diverged afterwards
    has not.
    """
    return run.tags.get("solved") == "true" and stopped(run) is None


def ended(run: Run, *instruments: str) -> bool:
    """Is the last finite reading that of the end of a training that did not diverge?"""
    return stopped(run) is None and all(
        finite_readings(run, name)[-1] == len(run.series[name].steps) - 1 for name in instruments
    )


def drawable(groups: Sequence["Group"], *instruments: str) -> None:
    """Raises CannotDrawError where no run of any group has a finite reading at initialisation."""
    if not any(runs_at(group, FIRST, *instruments) for group in groups):
        for name in instruments:
            finite_readings(groups[0].runs[0], name)
        raise CannotDrawError("no run has a finite reading at initialisation")


def runs_at(group: "Group", stage: int, *instruments: str) -> list[Run]:
    """The runs from which a stage is drawn. FIRST: those with a finite reading at initialisation.
    LAST: those of them that were trained to the end; where none was, all of them, with their last
    finite readings (see `words`).
    """
    finite_runs = []
    for run in group.runs:
        try:
            for name in instruments:
                finite_readings(run, name)
            finite_runs.append(run)
        except CannotDrawError:
            continue
    return [run for run in finite_runs if ended(run, *instruments)] or finite_runs if stage == LAST else finite_runs


def aligned(groups: Sequence["Group"], *instruments: str) -> list["Group"]:
    """The groups with each run's readings up to the last step at which all of these instruments are
    finite, for a panel that draws them together and must not combine two different networks.
    """

    def cut(run: Run) -> Run:
        try:
            common = set.intersection(
                *(set(run.series[n].steps[finite_readings(run, n)].tolist()) for n in instruments)
            )
        except CannotDrawError:
            return run
        last = max(common)
        if all(run.series[name].steps[-1] == last for name in instruments):
            return run
        kept = {name: (run.series[name], run.series[name].steps <= last) for name in instruments}
        cuts = {
            name: replace(series, steps=series.steps[k], values=series.values[k]) for name, (series, k) in kept.items()
        }
        return replace(run, series=run.series | cuts)

    return [replace(group, runs=tuple(map(cut, group.runs))) for group in groups]


def shows_trained(groups: Iterable["Group"], *instruments: str) -> bool:
    """Does the last reading of every group show the trained network?"""
    return not any(words(group, LAST, *instruments) for group in groups)


def trained_label(groups: Iterable["Group"], *instruments: str) -> str:
    """The common name of the last readings of these groups, where a panel has no words of its
    own.
    """
    return TRAINED if shows_trained(groups, *instruments) else "at the last finite reading"


def words(group: "Group", stage: int, *instruments: str) -> str:
    """The words, in lines, that a panel needs about a stage because it does not show what its row
    promises; empty where it does.
    """
    finite_runs, total = runs_at(group, stage, *instruments), len(group.runs)
    if not finite_runs:
        return lost(group)
    if stage == FIRST:
        return f"{total - len(finite_runs)} of {total} seeds not finite" if len(finite_runs) < total else ""
    if ended(finite_runs[0], *instruments):
        read_steps = {int(run.series[name].steps[-1]) for run in finite_runs for name in instruments}
        planned = _planned(finite_runs)
        note = "" if read_steps == planned else f"last reading, {steps(read_steps)} of {_numbers(planned)}"
        if planned == {0}:
            note = "step 0 of 0: not trained"
        return "\n".join(filter(None, (note, _lost_seeds(group, finite_runs))))
    read_steps = {
        int(run.series[name].steps[finite_readings(run, name)[-1]]) for run in finite_runs for name in instruments
    }
    last = f"last finite reading, {steps(read_steps)} of {_numbers(_planned(finite_runs))}"
    return f"{last};\n{lost(group).removesuffix(': not finite')}"


def lost(group: "Group") -> str:
    """``diverged at step 3``, ``diverged at steps 3 and 5``; ``not finite`` where only a reading is
    not finite.
    """
    divergence_steps = {step for run in group.runs if (step := stopped(run)) is not None}
    return f"diverged at {steps(divergence_steps)}: not finite" if divergence_steps else "not finite"


def _lost_seeds(group: "Group", finite_runs: Sequence[Run]) -> str:
    missing = [run for run in group.runs if run not in finite_runs]
    if not missing:
        return ""
    verb = "diverged" if all(stopped(run) is not None for run in missing) else "not finite"
    return f"{len(missing)} of {len(group.runs)} seeds {verb}"


def _planned(runs: Iterable[Run]) -> set[int]:
    return {int(run.config["train"]["steps"]) for run in runs}


def steps(numbers: Iterable[int]) -> str:
    """``step 3``, ``steps 3 and 5``."""
    unique = set(numbers)
    return f"step{'s' * (len(unique) > 1)} {_numbers(unique)}"


def _numbers(numbers: Iterable[int]) -> str:
    """``3``, ``3 and 5``, ``3 to 9``."""
    ordered = sorted(set(numbers))
    return " and ".join(map(str, ordered)) if len(ordered) < 3 else f"{ordered[0]} to {ordered[-1]}"


def divergences(groups: Iterable["Group"]) -> list[str]:
    """``RNN: 1 of 3 seeds diverged at step 3 of 50, the other 2 were trained to the end`` for each
    group with such a seed. A median after training belongs to the other seeds, whatever number of
    seeds a caption names.
    """
    texts = []
    for group in groups:
        divergence_steps = [step for run in group.runs if (step := stopped(run)) is not None]
        if divergence_steps:
            seeds = f"{len(divergence_steps)} of {len(group.runs)} seed{'s' * (len(group.runs) > 1)}"
            text = f"{group.label}: {seeds} diverged at {steps(divergence_steps)} of {_numbers(_planned(group.runs))}"
            remaining = len(group.runs) - len(divergence_steps)
            remainder = f"the other {remaining} were" if remaining > 1 else "the other was"
            texts.append(f"{text}, {remainder} trained to the end" if remaining else text)
    return texts
