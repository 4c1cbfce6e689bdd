"""Initialisations: how the weights are drawn. Biases that belong to a cell (b_f) are the cell's
own.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import DTypeLike, NDArray

from gradpath.core.network import Network
from gradpath.core.roles import READOUT
from gradpath.schema.namespace import unit_attributes
from gradpath.schema.settings import Settings, setting


@dataclass
class Init(Settings, ABC):
    """Base of the initialisations. Each gate's matrix (K, H) is drawn on its own."""

    gain: float = setting(1.0, "g, which multiplies every recurrent matrix W_·h", gt=0)
    input_gain: float = setting(1.0, "multiplies every input matrix W_·x", ge=0)

    @abstractmethod
    def recurrent(self, rng: Generator, hidden: int) -> NDArray:
        """W_·h (H, H) at gain 1."""

    @abstractmethod
    def feedforward(self, rng: Generator, rows: int, columns: int, hidden: int) -> NDArray:
        """W_·x (I, H), or the readout W_hy (H, O), of a layer with ``hidden`` units."""

    def bias(self, rng: Generator, columns: int, hidden: int) -> NDArray:
        """b_· (H,) or b_y (O,); 0 unless the initialisation says otherwise."""
        return np.zeros(columns)

    def elementwise(self, rng: Generator, hidden: int) -> NDArray:
        """A vector (H,) by which a gate reads a state unit by unit, such as a peephole's."""
        return draw_uniform(rng, hidden, hidden)

    def draw(self, rng: Generator, network: Network, dtype: DTypeLike) -> NDArray:
        """θ (P,) of a whole network, drawn in float64 and then rounded, so that the type does not
        change the draw.
        """
        theta = np.zeros(network.size)
        named, hidden = network.parameters(theta), network.cell.hidden_size
        for layer in range(network.layers):
            prefix = network.prefix(layer)
            for x, h, b, _, elementwise in network.cell.blocks.values():
                if x:
                    drawn = self.feedforward(rng, len(named[prefix + x]), hidden, hidden)
                    named[prefix + x][:] = self.input_gain * drawn
                if h:
                    named[prefix + h][:] = self.gain * self.recurrent(rng, hidden)
                named[prefix + b][:] = self.bias(rng, hidden, hidden)
                for weights in elementwise:
                    named[prefix + weights.name][:] = self.elementwise(rng, hidden)
            for block, value in network.cell.initial_bias(rng).items():
                named[prefix + network.cell.blocks[block].b][:] = value
        named[READOUT[0]][:] = self.feedforward(rng, hidden, network.output_size, hidden)
        named[READOUT[1]][:] = self.bias(rng, network.output_size, hidden)
        return theta.astype(dtype)


def draw_uniform(rng: Generator, hidden: int, *shape: int) -> NDArray:
    """U[−1/√H, 1/√H], the default of PyTorch's recurrent and linear layers."""
    bound = hidden**-0.5
    return rng.uniform(-bound, bound, shape)


__getattr__, __dir__ = unit_attributes(Init)
