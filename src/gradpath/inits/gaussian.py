"""Recurrent weights Gaussian with the gain as their spectral radius."""

from dataclasses import dataclass

from numpy.random import Generator
from numpy.typing import NDArray

from gradpath.inits import Init, draw_uniform


@dataclass
class Gaussian(Init):
    """W_·h ~ N(0, g²/H), so that ρ(W_·h) → g for large H (Girko's circular law; Sompolinsky et al.
    1988).

    The other weights are U[−1/√H, 1/√H] and the biases 0.
    """

    def recurrent(self, rng: Generator, hidden: int) -> NDArray:
        return rng.normal(0, hidden**-0.5, (hidden, hidden))

    def feedforward(self, rng: Generator, rows: int, columns: int, hidden: int) -> NDArray:
        return draw_uniform(rng, hidden, rows, columns)
