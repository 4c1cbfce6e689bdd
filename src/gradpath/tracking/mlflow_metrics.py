"""The curves of a run in the MLflow UI, over training and over the lag, as points (key, value,
step).

The UI shows at most 320 points of a curve, so no curve is longer. A curve keeps its first point,
its last, and evenly spaced ones between, at the same steps in every run of a sweep, so that the UI
can average them. Loss and gradient norm have a second curve with the maximum between two points,
since explosions would disappear otherwise. Only the artifact holds the complete curves.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from gradpath.core import layer_names
from gradpath.tracking.evidence import Readings
from gradpath.training.experiment import Experiment
from gradpath.training.loop import Step

POINTS = 320
"""Largest number of points of a curve that the UI shows."""
CURVES = 16
"""Number of curves above which no snapshot at initialisation is shown beside the last one. For the
same reason, a deep stack shows its bottom and its top layer only. The UI's chart view is slow with
much more than 40 keys; the artifact holds all curves.
"""

Point = tuple[str, float, int]


def spacing(length: int) -> int:
    """The distance between the readings that are shown, of ``length`` readings; the last is shown
    as well.
    """
    return max(1, math.ceil((length - 1) / (POINTS - 1)))


class TrainingCurves:
    """The curves over training of one run, whose ``step`` is the training step."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self._last = experiment.train.steps
        self._spacing = spacing(self._last + 1)
        self._spacings = {
            name: spacing(len(instrument.schedule.steps(self._last)))
            for name, instrument in experiment.instruments.items()
        }
        self._read: Counter[str] = Counter()
        self._largest: dict[str, float] = {}

    def points(self, step: Step) -> Iterator[Point]:
        """The points of this training step that are shown."""
        last = step.diverged or step.step == self._last
        for key, value in (("train/loss_max", step.loss), ("train/log10_grad_norm_max", step.log10_grad_norm)):
            if math.isfinite(value):
                self._largest[key] = max(value, self._largest.get(key, value))
        if last or step.step % self._spacing == 0:
            yield "train/loss", step.loss, step.step
            if self._spacing > 1:  # otherwise it would equal the curve itself
                yield from ((key, value, step.step) for key, value in self._largest.items())
            self._largest.clear()
        for name, measurement in step.measurements.items():
            if measurement.values.ndim == 1:
                if last or self._read[name] % self._spacings[name] == 0:
                    metric = self.experiment.instruments[name].metric
                    for column, reading in zip(measurement.names, measurement.values.tolist(), strict=True):
                        if shown := metric(column):
                            yield shown, reading, step.step
                self._read[name] += 1
        if step.evaluation is not None:
            yield "test/loss", step.evaluation.loss, step.step
            yield f"test/{self.experiment.task.metric}", step.evaluation.score, step.step


def lag_curves(
    experiment: Experiment, readings: Readings, diverged_at: int | None = None
) -> tuple[list[Point], dict[str, str]]:
    """The curves over the lag, whose ``step`` is the lag: each instrument's last reading and,
    beside it, the reading at initialisation; and the value at which a true zero is drawn, by key.

    The last finite reading of a run that diverged does not belong to a trained network and must not
    be averaged with those that do: its keys end in ``_last_finite``. Where it is the reading at
    initialisation, there are only the curves ``_at_init``.
    """
    points: list[Point] = []
    zeros: dict[str, str] = {}
    for name, (columns, steps, values) in readings.items():
        instrument = experiment.instruments[name]
        if not instrument.per_timestep:
            continue
        keys = _keys(experiment, name, columns)
        drawn = [key is not None for key in keys]
        finite = [i for i, reading in enumerate(values) if _finite(reading, drawn)]
        if not finite:
            continue
        first, last = finite[0], finite[-1]
        trained = diverged_at is None and last == len(values) - 1
        shown = {"" if trained else "_last_finite" if steps[last] else "_at_init": last}
        has_room = len(keys) - keys.count(None) <= CURVES
        if instrument.snapshot and has_room and len(finite) > 1 and steps[first] == 0:
            shown["_at_init"] = first
        for suffix, reading in shown.items():
            zeros |= _draw(points, [key and key.replace("/", f"{suffix}/", 1) for key in keys], values[reading])
    return points, zeros


def non_finite_points(points: Iterable[Point]) -> dict[str, str]:
    """The non-finite points of the curves over training, by key: the steps without a point, and the
    reason.
    """
    steps_by_key: dict[str, dict[str, list[int]]] = {}
    for key, value, step in points:
        word = "NaN" if math.isnan(value) else "+inf" if value > 0 else "-inf (a true zero)"
        steps_by_key.setdefault(key, {}).setdefault(word, []).append(step)

    def text(steps: list[int]) -> str:
        return f"step {steps[0]}" if len(steps) == 1 else f"{len(steps)} points from step {steps[0]}"

    return {
        key: ", ".join(f"{word} at {text(steps)}" for word, steps in kinds.items())
        for key, kinds in steps_by_key.items()
    }


def non_finite_readings(experiment: Experiment, readings: Readings) -> dict[str, str]:
    """The non-finite values of the last reading over the lag, by key; no curve can show them."""
    texts: dict[str, str] = {}
    for name, (columns, steps, values) in readings.items():
        if not experiment.instruments[name].per_timestep:
            continue
        for key, curve in zip(_keys(experiment, name, columns), values[-1].T, strict=True):
            counts = {"+inf": int(np.isposinf(curve).sum()), "NaN": int(np.isnan(curve).sum())}
            counted = [f"{word} at {count} of {len(curve)} lags" for word, count in counts.items() if count]
            if key and counted:
                texts[key] = f"{', '.join(counted)} at step {steps[-1]}"
    return texts


def _keys(experiment: Experiment, name: str, columns: Sequence[str]) -> list[str | None]:
    """The metric of each column of an instrument; None for a column that stays in the artifact."""
    inner = range(1, experiment.cell.layers - 1)
    return [None if layer_names.split(c)[0] in inner else experiment.instruments[name].metric(c) for c in columns]


def _finite(reading: NDArray, drawn: list[bool]) -> bool:
    """Does the reading hold no NaN, and no +inf in the columns that are drawn? The theory's margin
    may be infinite; -inf is a true zero.
    """
    return not np.isnan(reading).any() and bool((reading[:, drawn] < np.inf).all())


def _draw(points: list[Point], keys: list[str | None], values: NDArray) -> dict[str, str]:
    """Adds the curves of one reading (T, names). A true zero has no logarithm: it is drawn a decade
    below the smallest value, and its key is reported. A curve of a single point, such as that of
    the readout under a last-step loss, stays in the artifact.
    """
    finite = values[np.isfinite(values)]
    floor = float(np.floor(finite.min())) - 1 if finite.size else 0.0
    length = len(values)
    lags = sorted({*range(0, length, spacing(length)), length - 1})
    zeros = {}
    for column, key in enumerate(keys):
        curve = values[::-1, column]
        if key is None or np.isfinite(curve).sum() == 1 < length:
            continue
        shown = np.where(np.isneginf(curve), floor, curve)[lags].tolist()
        points += [(key, value, lag) for lag, value in zip(lags, shown, strict=True)]
        if count := int(np.isneginf(curve).sum()):
            zeros[key] = f"{count} of {length} lags, drawn at {floor:g}"
    return zeros
