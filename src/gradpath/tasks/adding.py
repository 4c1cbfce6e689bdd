"""The adding problem."""

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from gradpath.core.losses import Loss
from gradpath.core.tape import Batch, Tape
from gradpath.tasks import Task, last_step


@dataclass
class Adding(Task):
    """Two channels: numbers x ~ U[0, 1], and a marker that is 1 at one place in each half of the
    sequence. Target at the last step: the sum of the two marked numbers (Arjovsky et al. 2016,
    section 5.2; after Hochreiter & Schmidhuber 1997, section 5.4). Answering 1 always scores the
    variance of the sum, 1/6. Solved: mean squared error < 0.01.
    """

    loss = Loss.squared_error
    metric = "mse"
    solved_below = 0.01
    plateaus = {"one of the two numbers": 1 / 12}

    @property
    def sizes(self) -> tuple[int, int]:
        return 2, 1

    @property
    def chance_loss(self) -> float:
        return 1 / 6

    @property
    def lags(self) -> tuple[int, int]:
        return 0, self.length - 1

    def sample(self, rng: Generator, batch_size: int) -> Batch:
        numbers = rng.random((self.length, batch_size))
        half = self.length // 2
        marked = np.stack([rng.integers(0, half, batch_size), rng.integers(half, self.length, batch_size)])
        marker = np.zeros_like(numbers)
        np.put_along_axis(marker, marked, 1, axis=0)
        targets = np.zeros((self.length, batch_size, 1))
        targets[-1, :, 0] = np.take_along_axis(numbers, marked, axis=0).sum(axis=0)
        return Batch(np.stack([numbers, marker], axis=-1), targets, last_step(self.length, batch_size))

    def score(self, tape: Tape) -> float:
        return tape.loss
