"""Two updates of training under observation: the traces that the instruments read, their readings,
and the arguments of the optimiser.
"""

from collections.abc import Collection, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradpath.clippings import Clipping
from gradpath.clippings.threshold import Threshold
from gradpath.core.network import Network
from gradpath.core.trace import Measurement, Trace
from gradpath.instruments import Instrument, Schedule
from gradpath.instruments.clip_scale import ClipScale
from gradpath.optimizers import Optimizer, State
from gradpath.optimizers.sgd import SGD
from gradpath.training.experiment import Experiment
from gradpath.training.loop import train_seeds

# ``Watched`` and ``Tap`` replace an optimiser and an instrument. They derive from a concrete unit
# and not from the base, whose direct subclasses are the units.


@dataclass
class Update:
    """The arguments of one call of an optimiser, and its result."""

    theta: NDArray
    gradient: NDArray
    updated: NDArray
    touched: bool
    """Has the optimiser written to its arguments?"""
    optimizer: Optimizer


@dataclass
class Watched(SGD):
    """Records the calls of another optimiser and returns θ unchanged, so that the network stays
    where it is.
    """

    optimizer: Optimizer | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.seen: list[Update] = []

    def start(self, theta: NDArray) -> State:
        assert self.optimizer is not None
        return self.optimizer.start(theta)

    def update(self, theta: NDArray, gradient: NDArray, state: State, step: int) -> tuple[NDArray, State]:
        assert self.optimizer is not None
        arguments = theta, gradient, *state.values()
        copies = [array.copy() for array in arguments]
        updated, state = self.optimizer.update(theta, gradient, state, step)
        touched = not all(
            np.array_equal(original, argument, equal_nan=True)
            for original, argument in zip(copies, arguments, strict=True)
        )
        self.seen.append(Update(copies[0], copies[1], updated, touched, self.optimizer))
        return copies[0], state


@dataclass
class Tap(ClipScale):
    """An instrument that keeps the trace of every pass."""

    per_timestep = False
    schedule: Schedule = field(default_factory=lambda: Schedule(every=1))

    def __post_init__(self) -> None:
        super().__post_init__()
        self.passes: list[tuple[Network, Trace]] = []

    def measure(self, network: Network, trace: Trace) -> Measurement:
        self.passes.append((network, trace))
        return Measurement(("passes",), np.array([len(self.passes)]))


@dataclass(frozen=True)
class Watch:
    """One pass: its trace, the readings of the instruments, and in training the calls of the
    optimiser.
    """

    network: Network
    trace: Trace
    instruments: Mapping[str, Instrument]
    measurements: dict[str, Measurement | Exception]
    updates: Sequence[Update] = ()
    """The update of the second pass is the last, that of the first pass comes before it."""
    clip: Clipping = field(default_factory=Threshold)
    trains_readout: bool = True
    differs: Collection[str] = ()
    """Instruments whose reading of this pass in training differs from a second reading of it."""


def watched(experiment: Experiment, seeds: int) -> list[Watch]:
    """Trains for two updates and returns each seed's second pass: it must not add to the numbers of
    the first.
    """
    settings = replace(experiment.train, steps=2, eval_every=None, eval_size=2)
    reading = {name: _reads_second(instrument) for name, instrument in experiment.instruments.items()}
    configuration = {f.name: getattr(experiment, f.name) for f in fields(Experiment)} | {"train": settings}
    try:
        return _trained(configuration, reading, seeds)
    except Exception:  # an instrument may refuse, as ``theory`` does; ``measured`` keeps its message
        return _trained(configuration, {}, seeds)


def _trained(configuration: dict[str, Any], reading: Mapping[str, Instrument], seeds: int) -> list[Watch]:
    instruments, experiments, watches = configuration["instruments"], [], []
    for seed in range(configuration["seed"], configuration["seed"] + seeds):
        watch = Watched(lr=configuration["optimizer"].lr, optimizer=configuration["optimizer"])
        experiments.append(
            Experiment(**configuration | {"seed": seed, "optimizer": watch, "instruments": {"tap": Tap(), **reading}})
        )
    recorded: list[dict[str, Measurement]] = [{} for _ in experiments]
    for number, steps in enumerate(train_seeds(experiments)):
        for index, step in steps.items():
            if number == 1:
                recorded[index] = {name: step.measurements[name] for name in reading}
    for experiment, training_readings in zip(experiments, recorded, strict=True):
        tap, optimizer = experiment.instruments["tap"], experiment.optimizer
        assert isinstance(tap, Tap)
        assert isinstance(optimizer, Watched)
        # Where training diverges at the first update, there is one pass only.
        network, trace = tap.passes[:2][-1]
        read = measured(instruments, network, trace)
        differing = {
            name for name, recorded_reading in training_readings.items() if not _equal(recorded_reading, read[name])
        }
        readings = {**read, **training_readings}
        watches.append(
            Watch(
                network,
                trace,
                instruments,
                readings,
                optimizer.seen[:2],
                experiment.clip,
                experiment.train.readout,
                differing,
            )
        )
    return watches


def _reads_second(instrument: Instrument) -> Instrument:
    """A copy of the instrument that reads the second pass only."""
    reading = copy(instrument)
    reading.schedule = Schedule(every=1, first=False, last=False)
    return reading


def _equal(left: Measurement, right: Measurement | Exception) -> bool:
    return (
        isinstance(right, Measurement)
        and left.names == right.names
        and np.array_equal(left.values, right.values, equal_nan=True)
    )


def measured(
    instruments: Mapping[str, Instrument], network: Network, trace: Trace
) -> dict[str, Measurement | Exception]:
    """Each instrument's reading, or the exception with which it refuses, as ``theory`` does at a
    value that no gradient can have.
    """
    read: dict[str, Measurement | Exception] = {}
    for name, instrument in instruments.items():
        try:
            with np.errstate(over="ignore", invalid="ignore"):
                read[name] = instrument.measure(network, trace)
        except Exception as error:
            read[name] = error
    return read
