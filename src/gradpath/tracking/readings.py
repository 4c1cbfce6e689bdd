"""The measurements of a run, until they are stored."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gradpath.schema.text import printable
from gradpath.tracking import store
from gradpath.tracking.declarations import as_text
from gradpath.tracking.evidence import outcome, weigh
from gradpath.tracking.verdict import Verdict, judge
from gradpath.training.evaluation import Evaluation
from gradpath.training.experiment import Experiment
from gradpath.training.loop import Step


def _described(shape: tuple[int, ...], names: Sequence[str]) -> str:
    return f"reading of shape {shape} with the names {printable(', '.join(names), 100)}"


class Readings:
    """The readings of one run. ``series``: instrument → (names, training steps, readings)."""

    def __init__(self, experiment: Experiment) -> None:
        self._experiment = experiment
        self._roles = as_text(experiment.cell.roles)  # now, so that nothing is lost if it cannot be stored
        self.series: dict[str, tuple[tuple[str, ...], list[int], list[NDArray]]] = {}
        self.diverged_at: int | None = None
        self._losses: list[tuple[int, float]] = []
        self._norms: dict[int, float] = {}
        self._evaluations: list[tuple[int, Evaluation]] = []

    def add(self, step: Step) -> None:
        """Adds the readings of one training step."""
        self._losses.append((step.step, step.loss))
        self._norms[step.step] = step.log10_grad_norm
        for name, measurement in step.measurements.items():
            columns, steps, values = self.series.setdefault(name, (measurement.names, [], []))
            shape, first = np.shape(measurement.values), np.shape(values[0] if values else measurement.values)
            if shape != first or measurement.names != columns:
                read, expected = _described(shape, measurement.names), _described(first, columns)
                raise ValueError(f"instruments.{name}: a {read}, where the first was a {expected}")
            steps.append(step.step)
            values.append(measurement.values)
        if step.evaluation is not None:
            self._evaluations.append((step.step, step.evaluation))
        if step.diverged:
            self.diverged_at = step.step

    @property
    def last_step(self) -> int:
        """The last training step that was added."""
        return self._losses[-1][0] if self._losses else 0

    def norms(self) -> NDArray:
        """The log10 gradient norm of every training step."""
        return np.array([*self._norms.values()])

    def verdict(self) -> Verdict | None:
        """The verdict, once the run has ended."""
        finished = self._losses and self.last_step == self._experiment.train.steps
        if self.diverged_at is None and not finished:
            return None
        evaluation = self._evaluations[-1][1] if self._evaluations else None
        evidence = outcome(self._experiment.task, self._losses[0][1], evaluation, self.diverged_at)
        return judge(weigh(evidence, self.series, self._norms, self._experiment.cell.roles))

    def arrays(self) -> dict[str, NDArray]:
        """The contents of ``measurements.npz``: for each instrument ``NAME/values`` [probe, T,
        name] (or [probe, name]) in float64, ``NAME/steps``, the probes' training steps, and
        ``NAME/names``; ``lag`` (T,); loss and evaluations over training; the properties of the task
        that the figures need; and ``roles``, the declarations of the cell, as JSON.
        """
        task, evaluations = self._experiment.task, [e for _, e in self._evaluations]
        arrays: dict[str, NDArray] = {
            "schema_version": np.array(store.SCHEMA_VERSION),
            "roles": np.array(self._roles),
            "lag": np.arange(task.timesteps)[::-1],
            "chance_loss": np.array(task.chance_loss),
            "longest_lag": np.array(task.lags[1]),
            "loss/steps": np.array([step for step, _ in self._losses]),
            "loss/values": np.array([loss for _, loss in self._losses]),
            "evaluation/steps": np.array([step for step, _ in self._evaluations]),
            "evaluation/values": np.array([[e.loss, e.score, e.solved] for e in evaluations]).reshape(-1, 3),
        }
        for name, (columns, steps, values) in self.series.items():
            arrays |= {f"{name}/names": np.array(columns), f"{name}/steps": np.array(steps)}
            arrays[f"{name}/values"] = np.stack(values)
        return arrays
