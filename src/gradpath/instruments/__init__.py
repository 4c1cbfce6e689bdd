"""Instruments read a finished trace and cannot affect training. Each instrument has its own
schedule.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import ClassVar

import numpy as np

from gradpath.core.network import Network
from gradpath.core.trace import Measurement, Trace
from gradpath.schema.namespace import unit_attributes
from gradpath.schema.settings import SettingError, Settings, setting

WINDOW = 20
"""Number of training steps with which a spike is compared: enough for a median that no single
minibatch moves, and few enough that a gradient that grows slowly during learning is compared with
its recent size.
"""
FEW = 64
"""Largest number of parameters of a network whose elements are followed one by one."""


@dataclass
class Schedule(Settings):
    """The training steps at which an instrument reads. Step s is the network after s updates: step
    0 is the initialisation, the last step the trained network. The rules add up.
    """

    every: int | None = setting(None, "read every n steps", ge=1)
    log_spaced: int | None = setting(None, "read at this many steps spaced evenly on a log axis", ge=2)
    first: bool = setting(True, "read at initialisation")
    last: bool = setting(True, "read after the last update, or where training diverges")
    new_max: float | None = setting(
        None, "read when the gradient norm exceeds this many times the largest read so far", gt=1
    )

    new_spike: float | None = setting(
        None,
        "read when the gradient norm exceeds this many times the median of the 20 steps before, and any such read",
        gt=1,
    )

    def steps(self, last: int) -> set[int]:
        """The steps in 0 … ``last`` that are known before training."""
        due = set(range(0, last + 1, self.every)) if self.every else set()
        if self.log_spaced:
            due |= {int(step) for step in np.geomspace(1, max(last, 1), self.log_spaced).round() if step <= last}
        # The other rules must not add the first or the last step again when the user has switched
        # it off.
        return due - {0, last} | ({0} if self.first else set()) | ({last} if self.last else set())


@dataclass
class Instrument(Settings, ABC):
    """Base of the instruments: what an instrument reads of a trace, and how the reading is
    shown.
    """

    schedule: Schedule = field(default_factory=Schedule)

    per_timestep: ClassVar[bool]
    """Is a reading (T, names), with a value at every timestep? Otherwise it belongs to the training
    step as a whole: (names,), or a table.
    """
    snapshot: ClassVar[bool] = False
    """Does MLflow show the curves at initialisation beside the last ones?"""

    def check(self, network: Network) -> None:
        """Refuses, before training, a network that the instrument cannot read; raises
        SettingError.
        """

    @abstractmethod
    def measure(self, network: Network, trace: Trace) -> Measurement:
        """Reads a finished trace."""

    def metric(self, name: str) -> str | None:
        """The key under which MLflow shows this column; None keeps the column in the artifact
        alone.
        """
        return None


def spike(previous: Sequence[float], norm: float) -> float:
    """Decades from the median of the last ``WINDOW`` log10 gradient norms, ``previous``, to
    ``norm``; NaN where ``previous`` is empty.
    """
    return norm - median(previous[-WINDOW:]) if previous else math.nan


def few_parameters(network: Network) -> None:
    """Refuses a network that is too large to read θ element by element; raises SettingError."""
    if network.size > FEW:
        raise SettingError("network", f"{network.size} parameters", f"at most {FEW}; try cell=rnn cell.hidden_size=1")


__getattr__, __dir__ = unit_attributes(Instrument)
