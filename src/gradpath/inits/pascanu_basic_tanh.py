"""The "basic tanh" initialisation of Pascanu et al. (2013)."""

from dataclasses import dataclass

from numpy.random import Generator
from numpy.typing import NDArray

from gradpath.inits import Init
from gradpath.schema.settings import setting


@dataclass
class PascanuBasicTanh(Init):
    """Every weight ~ N(0, std²) with std = 0.1, biases 0, for tanh units (Pascanu et al. 2013,
    section 4.1.1).
    """

    std: float = setting(0.1, "standard deviation of every weight", gt=0)

    def recurrent(self, rng: Generator, hidden: int) -> NDArray:
        return rng.normal(0, self.std, (hidden, hidden))

    def feedforward(self, rng: Generator, rows: int, columns: int, hidden: int) -> NDArray:
        return rng.normal(0, self.std, (rows, columns))
