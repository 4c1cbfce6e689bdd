"""The temporal order problem."""

from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.random import Generator

from gradpath.core.losses import Loss
from gradpath.core.tape import Batch, Tape
from gradpath.schema.settings import SettingError, setting
from gradpath.tasks import Task, error_rate, last_step, one_hot


class Variant(Enum):
    """Where the second symbol lies: the authors' code and the paper's text disagree."""

    code = 5
    paper = 4


@dataclass
class TemporalOrder(Task):
    """Six symbols: a–d at random everywhere, but X or Y at one place in [.1T, .2T) and at one in
    [.5T, .6T). Target at the last step: which of XX, XY, YX, YY it was (Pascanu et al. 2013,
    section 4.1.1; their text prints [.4T, .5T) for the second, their code has [.5T, .6T)). Chance
    scores ln 4, knowing only the later symbol ln 2. Solved: < 1 % wrong.
    """

    variant: Variant = setting(Variant.code, "second symbol from .5T (code) or .4T (paper)")

    loss = Loss.cross_entropy
    metric = "error_rate"
    solved_below = 0.01
    plateaus = {"one of the two symbols": float(np.log(2))}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.length < 10:
            raise SettingError("length", self.length, "≥ 10, for each tenth of the sequence to hold a step")

    @property
    def sizes(self) -> tuple[int, int]:
        return 6, 4

    @property
    def chance_loss(self) -> float:
        return float(np.log(4))

    @property
    def lags(self) -> tuple[int, int]:
        tenth = self.length // 10
        return self.length - self._start(self.variant.value) - tenth, self.length - 1 - tenth

    def _start(self, tenths: int) -> int:
        return tenths * self.length // 10

    def sample(self, rng: Generator, batch_size: int) -> Batch:
        symbols = rng.integers(0, 4, (self.length, batch_size))
        tenth = self.length // 10
        places = np.stack(
            [start + rng.integers(0, tenth, batch_size) for start in (self._start(1), self._start(self.variant.value))]
        )
        marks = rng.integers(0, 2, (2, batch_size))
        np.put_along_axis(symbols, places, 4 + marks, axis=0)
        targets = np.zeros((self.length, batch_size), np.int64)
        targets[-1] = 2 * marks[0] + marks[1]
        return Batch(one_hot(symbols, 6), targets, last_step(self.length, batch_size))

    def score(self, tape: Tape) -> float:
        return error_rate(tape)
