"""Every weight and bias at a chosen value: a chosen point of the error surface."""

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import DTypeLike, NDArray

from gradpath.core.network import Network
from gradpath.core.roles import READOUT
from gradpath.inits import Init
from gradpath.schema.settings import setting


@dataclass
class Constant(Init):
    """W_·h = g·w and b_· = b plus U[−jitter, jitter] each, W_hy = readout; input weights and b_y
    are 0.

    For networks of one unit, of which it is a point (w, b) of the error surface (Pascanu et al.
    2013, eq. 8); with ``jitter`` the seed draws a point near it. In larger networks without jitter
    all units of a gate stay equal.
    """

    w: float = setting(0.0, "every recurrent weight")
    b: float = setting(0.0, "every bias of the cell")
    jitter: float = setting(0.0, "half-width of the uniform noise that the seed adds to each of both", ge=0)
    readout: float = setting(1.0, "every weight of the readout")

    def recurrent(self, rng: Generator, hidden: int) -> NDArray:
        return self.w + rng.uniform(-self.jitter, self.jitter, (hidden, hidden))

    def feedforward(self, rng: Generator, rows: int, columns: int, hidden: int) -> NDArray:
        return np.zeros((rows, columns))

    def bias(self, rng: Generator, columns: int, hidden: int) -> NDArray:
        return self.b + rng.uniform(-self.jitter, self.jitter, columns)

    def draw(self, rng: Generator, network: Network, dtype: DTypeLike) -> NDArray:
        theta = super().draw(rng, network, dtype)
        named = network.parameters(theta)
        weights, bias = (named[name] for name in READOUT)
        weights[:], bias[:] = self.readout, 0
        return theta
