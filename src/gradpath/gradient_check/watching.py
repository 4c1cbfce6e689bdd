"""Training, watched: what its instruments read of one pass, and what the optimiser got."""

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

# The two that stand in for units derive from one and not from the base, whose own subclasses are
# the units.


@dataclass
class Update:
    """What an optimiser was given and what it made of it."""

    theta: NDArray
    gradient: NDArray
    updated: NDArray
    touched: bool
    """Has it written to its arguments?"""
    optimizer: Optimizer


@dataclass
class Watched(SGD):
    """An optimiser that is watched, and whose updates are not made: the
    network stays where it is.
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
    """Keeps the traces that the instruments read."""

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
    """One pass as it was: what the instruments read of it, and in training
    what the optimiser got.
    """

    network: Network
    trace: Trace
    instruments: Mapping[str, Instrument]
    measurements: dict[str, Measurement | Exception]
    updates: Sequence[Update] = ()
    """The second pass's last, the first pass's before it."""
    clip: Clipping = field(default_factory=Threshold)
    trains_readout: bool = True
    differs: Collection[str] = ()
    """Instruments that read of the same pass in training something else than afterwards."""


def watched(experiment: Experiment, seeds: int) -> list[Watch]:
    """Trains for two updates, and gives each seed's second pass, which
    must not add to the first.
    """
    settings = replace(experiment.train, steps=2, eval_every=None, eval_size=2)
    reading = {name: _reads_second(instrument) for name, instrument in experiment.instruments.items()}
    configuration = {f.name: getattr(experiment, f.name) for f in fields(Experiment)} | {"train": settings}
    try:
        return _trained(configuration, reading, seeds)
    except Exception:  # an instrument has refused, as ``theory`` does; what it says is read below
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
        # Where training diverges at once, the first pass is the last.
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
    """The instrument, that reads the second pass and no other."""
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
    """What each instrument reads, or why it refuses: ``theory`` raises at
    what no gradient can be.
    """
    read: dict[str, Measurement | Exception] = {}
    for name, instrument in instruments.items():
        try:
            with np.errstate(over="ignore", invalid="ignore"):
                read[name] = instrument.measure(network, trace)
        except Exception as error:
            read[name] = error
    return read
