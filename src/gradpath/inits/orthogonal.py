"""Recurrent weights a random orthogonal matrix."""

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from gradpath.inits import Init, draw_uniform


@dataclass
class Orthogonal(Init):
    """W_·h = g·Q with Q uniform over the orthogonal matrices: QR of a Gaussian matrix, the signs of
    R's diagonal moved into Q (Saxe et al. 2014; Mezzadri 2007). The other weights are U[−1/√H,
    1/√H] and the biases 0.
    """

    def recurrent(self, rng: Generator, hidden: int) -> NDArray:
        q, r = np.linalg.qr(rng.normal(size=(hidden, hidden)))
        return q * np.sign(np.diag(r))

    def feedforward(self, rng: Generator, rows: int, columns: int, hidden: int) -> NDArray:
        return draw_uniform(rng, hidden, rows, columns)
