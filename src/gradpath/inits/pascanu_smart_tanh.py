"""The "smart tanh" initialisation of Pascanu et al. (2013)."""

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from gradpath.inits import Init
from gradpath.schema.settings import setting


@dataclass
class PascanuSmartTanh(Init):
    """W_·h sparse, ``nonzero`` entries a row, scaled to spectral radius 0.95·g; the other weights
    N(0, 0.01²) and the biases 0, for tanh units (Pascanu et al. 2013, section 4.1.1, and their
    code; sparsity after Sutskever et al. 2011).
    """

    spectral_radius: float = setting(0.95, "ρ of each recurrent matrix at gain 1", gt=0)
    nonzero: int = setting(15, "entries of each row that are not 0", ge=1)
    std: float = setting(0.01, "standard deviation of the non-recurrent weights", gt=0)

    def recurrent(self, rng: Generator, hidden: int) -> NDArray:
        matrix = rng.normal(size=(hidden, hidden))
        rank = rng.permuted(np.tile(np.arange(hidden), (hidden, 1)), axis=1)
        matrix[rank >= self.nonzero] = 0
        return matrix * (self.spectral_radius / np.abs(np.linalg.eigvals(matrix)).max())

    def feedforward(self, rng: Generator, rows: int, columns: int, hidden: int) -> NDArray:
        return rng.normal(0, self.std, (rows, columns))
