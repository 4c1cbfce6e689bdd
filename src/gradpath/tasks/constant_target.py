"""One target for every sequence, and no input."""

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from gradpath.core.losses import Loss
from gradpath.core.tape import Batch, Tape
from gradpath.schema.settings import setting
from gradpath.tasks import Task, last_step


@dataclass
class ConstantTarget(Task):
    """No input (zeros), and at the last step always the same target: what is learned is where the
    network's own dynamics lead from H_0. After Pascanu et al. (2013), section 2.3: an initial
    state, no input, the target 0.7 after 50 steps, squared error. A predictor that ignores the
    input can be right, so chance scores 0. Solved, chosen here: an error below 0.04, which is what
    Hochreiter & Schmidhuber (1997, section 5.4) allow in the adding problem.
    """

    target: float = setting(0.7, "what the network is to give at the last step")

    loss = Loss.squared_error
    metric = "mse"
    solved_below = 0.04**2

    @property
    def sizes(self) -> tuple[int, int]:
        return 1, 1

    @property
    def chance_loss(self) -> float:
        return 0.0

    @property
    def lags(self) -> tuple[int, int]:
        """No input matters; what does, the initial state, lies T steps back."""
        return self.length, self.length

    def sample(self, rng: Generator, batch_size: int) -> Batch:
        shape = (self.length, batch_size, 1)
        return Batch(np.zeros(shape), np.full(shape, self.target), last_step(self.length, batch_size))

    def score(self, tape: Tape) -> float:
        return tape.loss
