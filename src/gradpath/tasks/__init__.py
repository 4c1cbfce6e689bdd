"""Long-dependency tasks: each draws minibatches and says what chance, partial and full solutions
score.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from gradpath.core.losses import Loss
from gradpath.core.tape import Batch, Tape
from gradpath.schema.namespace import unit_attributes
from gradpath.schema.settings import Settings, setting


@dataclass
class Task(Settings, ABC):
    """Base of the tasks. ``length`` is the task's nominal T; ``timesteps`` the length of the
    sequences it makes.
    """

    length: int = setting(100, "T, the nominal length of a sequence", ge=2, le=10_000_000)

    loss: ClassVar[Loss]
    metric: ClassVar[str]
    """The name of what ``score`` returns: mse, error_rate, …"""
    solved_below: ClassVar[float]
    """The task's published criterion: a smaller score counts as solved."""
    plateaus: ClassVar[dict[str, float]] = {}
    """Name → loss of partial solutions at which training often stagnates."""

    @property
    def timesteps(self) -> int:
        """Rows of a minibatch."""
        return self.length

    @property
    @abstractmethod
    def sizes(self) -> tuple[int, int]:
        """(I, O): inputs and outputs of a network for this task."""

    @property
    @abstractmethod
    def chance_loss(self) -> float:
        """Loss of the best predictor that ignores the input, in closed form."""

    @property
    @abstractmethod
    def lags(self) -> tuple[int, int]:
        """Smallest and largest number of steps from an input that matters to the output that needs
        it.
        """

    @abstractmethod
    def sample(self, rng: Generator, batch_size: int) -> Batch:
        """A minibatch in float64, drawn without a loop over the sequences."""

    @abstractmethod
    def score(self, tape: Tape) -> float:
        """The task's own measure of failure on a forward pass; smaller is better."""

    def solved(self, score: float) -> bool:
        """Does this score meet the task's published criterion?"""
        return score < self.solved_below


def one_hot(symbols: NDArray, size: int) -> NDArray:
    """(…) integers → (…, size) float64 unit vectors."""
    return np.eye(size).take(symbols, axis=0)


def last_step(timesteps: int, batch_size: int) -> NDArray:
    """The mask (T, B) of a task that is scored at the last timestep only."""
    mask = np.zeros((timesteps, batch_size), bool)
    mask[-1] = True
    return mask


def error_rate(tape: Tape) -> float:
    """Share of scored positions whose largest output is not the target."""
    mask = tape.batch.mask[tape.scored]
    wrong = tape.outputs.argmax(axis=-1) != tape.batch.targets[tape.scored]
    return float(wrong[mask].mean())


__getattr__, __dir__ = unit_attributes(Task)
