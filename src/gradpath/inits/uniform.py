"""Every weight and bias uniform in ±1/√H."""

from dataclasses import dataclass

from numpy.random import Generator
from numpy.typing import NDArray

from gradpath.inits import Init, draw_uniform


@dataclass
class Uniform(Init):
    """All of θ ~ U[−1/√H, 1/√H], the default of PyTorch's ``nn.RNN`` and ``nn.LSTM``; ρ(W_hh) ≈
    0.58.
    """

    def recurrent(self, rng: Generator, hidden: int) -> NDArray:
        return draw_uniform(rng, hidden, hidden, hidden)

    def feedforward(self, rng: Generator, rows: int, columns: int, hidden: int) -> NDArray:
        return draw_uniform(rng, hidden, rows, columns)

    def bias(self, rng: Generator, columns: int, hidden: int) -> NDArray:
        return draw_uniform(rng, hidden, columns)
