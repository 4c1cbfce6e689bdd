"""Recurrent weights the identity: the IRNN."""

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from gradpath.inits import Init
from gradpath.schema.settings import setting


@dataclass
class Identity(Init):
    """W_·h = g·1, the other weights N(0, std²), the biases 0 (Le, Jaitly & Hinton 2015, section 4:
    std 0.001).

    Meant for relu units: ``cell=rnn cell.activation=relu init=identity``.
    """

    std: float = setting(0.001, "standard deviation of the non-recurrent weights", gt=0)

    def recurrent(self, rng: Generator, hidden: int) -> NDArray:
        return np.eye(hidden)

    def feedforward(self, rng: Generator, rows: int, columns: int, hidden: int) -> NDArray:
        return rng.normal(0, self.std, (rows, columns))
