"""The copying memory problem."""

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from gradpath.core.losses import Loss
from gradpath.core.tape import Batch, Tape
from gradpath.tasks import Task, one_hot

SYMBOLS, RECALLED = 8, 10
BLANK, GO = SYMBOLS, SYMBOLS + 1


@dataclass
class Copy(Task):
    """Ten symbols out of 8, T − 1 blanks, a go signal, ten blanks: T + 20 steps. Target: blanks,
    then the ten symbols in order during the last ten steps; every step is scored (Arjovsky et al.
    2016, section 5.1; after Hochreiter & Schmidhuber 1997). Blanks and then guesses score 10 ln 8 /
    (T + 20). Solved: loss < 10 % of that.
    """

    loss = Loss.cross_entropy
    metric = "loss_over_chance"
    solved_below = 0.1

    @property
    def timesteps(self) -> int:
        return self.length + 2 * RECALLED

    @property
    def sizes(self) -> tuple[int, int]:
        return SYMBOLS + 2, SYMBOLS + 1

    @property
    def chance_loss(self) -> float:
        return RECALLED * float(np.log(SYMBOLS)) / self.timesteps

    @property
    def lags(self) -> tuple[int, int]:
        return self.length + RECALLED, self.length + RECALLED

    def sample(self, rng: Generator, batch_size: int) -> Batch:
        symbols = rng.integers(0, SYMBOLS, (RECALLED, batch_size))
        inputs = np.full((self.timesteps, batch_size), BLANK)
        inputs[:RECALLED] = symbols
        inputs[RECALLED + self.length - 1] = GO
        targets = np.full((self.timesteps, batch_size), BLANK)
        targets[-RECALLED:] = symbols
        return Batch(one_hot(inputs, SYMBOLS + 2), targets, np.ones((self.timesteps, batch_size), bool))

    def score(self, tape: Tape) -> float:
        return tape.loss / self.chance_loss
