"""What every contestant is given, what it must answer, and what it is: a sequence of stages that
are timed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gradpath.cells.lstm import LSTM
from gradpath.cells.rnn import RNN
from gradpath.core.cell import Cell
from gradpath.core.losses import Loss
from gradpath.core.network import Network
from gradpath.core.tape import Batch
from gradpath.inits.uniform import Uniform

INPUTS, OUTPUTS = 2, 1
CELLS: dict[str, type[Cell]] = {"lstm": LSTM, "rnn": RNN}


class Shape(NamedTuple):
    """T timesteps, B sequences, H hidden units."""

    steps: int
    batch: int
    hidden: int


@dataclass(frozen=True)
class Answer:
    """Loss, gradient (name → as the parameter) and, of those who give them, norms (name → (T,)) of
    ∂L/∂θ_t.
    """

    loss: float
    gradient: dict[str, NDArray]
    norms: dict[str, NDArray] | None


@dataclass(frozen=True)
class Contestant:
    """Each of ``stages`` gets what the one before it has returned (the first None); ``read`` turns
    the last one's into an answer, and is not timed. ``variant``: which of several ways of doing the
    same this is. It plays in the first ``most`` rounds.
    """

    name: str
    variant: str
    stages: dict[str, Callable[[Any], Any]]
    read: Callable[[Any], Answer] | None
    most: int = 60

    def run(self) -> Any:
        value = None
        for stage in self.stages.values():
            value = stage(value)
        return value


@dataclass(frozen=True)
class Problem:
    """A network of one layer, its parameters, and a minibatch that is scored at every step."""

    cell: str
    network: Network
    theta: NDArray
    batch: Batch

    @property
    def shape(self) -> Shape:
        return Shape(*self.batch.mask.shape, self.network.cell.hidden_size)

    @property
    def dtype(self) -> np.dtype:
        return self.theta.dtype

    @cached_property
    def names(self) -> tuple[tuple[str, ...], ...]:
        """The parameters that lie side by side in each of W_x, W_h, b, W_hy, b_y."""
        x, h, b = zip(*(spec[:3] for spec in self.network.cell.blocks.values()), strict=True)
        return x, h, b, ("W_hy",), ("b_y",)

    @cached_property
    def weights(self) -> tuple[NDArray, ...]:
        """W_x (I, n·H), W_h (H, n·H), b (n·H,), W_hy (H, O), b_y (O,); the LSTM's blocks in the
        order I, F, O, G.
        """
        named = self.network.parameters(self.theta)
        return tuple(np.concatenate([named[name] for name in names], axis=-1) for names in self.names)

    def answer(self, loss: float, gradient: Sequence[NDArray], norms: Sequence[NDArray] | None) -> Answer:
        """From what a peer has: the gradients of ``weights``, and (T, n) norms for each of them."""
        blocks = {
            name: block
            for names, packed in zip(self.names, gradient, strict=True)
            for name, block in zip(names, np.split(np.asarray(packed), len(names), axis=-1), strict=True)
        }
        if norms is None:
            return Answer(float(loss), blocks, None)
        columns = (column for packed in norms for column in np.asarray(packed).T)
        return Answer(float(loss), blocks, dict(zip(blocks, columns, strict=True)))


def random_problem(cell: str, shape: Shape, dtype: str, seed: int = 0) -> Problem:
    """The same numbers in either precision. Inputs N(0, 1); targets in [1, 2], so that no sum over
    the minibatch cancels and float32 can be held to 1e-4 at every step.
    """
    rng = np.random.default_rng(seed)
    network = Network(CELLS[cell](hidden_size=shape.hidden), INPUTS, OUTPUTS, Loss.squared_error)
    theta = Uniform().draw(rng, network, np.float64)
    inputs = rng.normal(size=(shape.steps, shape.batch, INPUTS))
    targets = rng.uniform(1, 2, size=(shape.steps, shape.batch, OUTPUTS))
    batch = Batch(inputs, targets, np.ones((shape.steps, shape.batch), bool))
    return Problem(cell, network, theta.astype(dtype), batch.astype(np.dtype(dtype).type))
