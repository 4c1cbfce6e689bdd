"""The loss over a plane of two parameters."""

from dataclasses import dataclass

import numpy as np

from gradpath.core.network import Network
from gradpath.core.trace import Measurement, Trace
from gradpath.instruments import Instrument, few_parameters
from gradpath.schema.settings import SettingError, setting

CHUNK_ELEMENTS = 2**20
"""Pre-activations of one forward pass: as many points as fit are run side by side."""


@dataclass
class LossSurface(Instrument):
    """L(θ) on the trace's own minibatch while two elements of θ take every value of a grid and the
    others stay fixed (Pascanu et al. 2013, figure 6; the default plane is gradpath's choice, since
    theirs is not printed). A table (points², 3) with the columns x, y and ``loss``, named after the
    elements; x varies fastest.
    """

    x: str = setting("W_hh", "first element of θ: W_hh in a network of one unit, W_hh[0,1] in others")
    x_from: float = setting(3.0, "first value of x")
    x_to: float = setting(6.5, "last value of x")
    y: str = setting("b_h", "second element of θ")
    y_from: float = setting(-3.5, "first value of y")
    y_to: float = setting(-1.2, "last value of y")
    points: int = setting(101, "values of x, and of y", ge=2, le=150)

    per_timestep = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, start in (("x_to", self.x_from), ("y_to", self.y_from)):
            if not getattr(self, name) > start:
                raise SettingError(name, getattr(self, name), f"> {name[0]}_from={start}")
        if self.x == self.y:
            raise SettingError("y", self.y, "another element than x")

    def check(self, network: Network) -> None:
        few_parameters(network)
        for key in ("x", "y"):
            if getattr(self, key) not in network.elements:
                raise SettingError(key, getattr(self, key), f"one of {', '.join(network.elements)}")

    def measure(self, network: Network, trace: Trace) -> Measurement:
        tape, network = trace.tape, network
        grid = np.meshgrid(
            np.linspace(self.x_from, self.x_to, self.points), np.linspace(self.y_from, self.y_to, self.points)
        )
        x, y = (axis.ravel().astype(tape.theta.dtype) for axis in grid)
        thetas = np.tile(tape.theta, (self.points**2, 1))
        thetas[:, network.elements.index(self.x)] = x
        thetas[:, network.elements.index(self.y)] = y
        run = max(1, CHUNK_ELEMENTS // sum(layer.pre.size for layer in tape.layers))
        losses, workspace = [], network.workspace()
        for part in np.split(thetas, range(run, len(thetas), run)):
            _, tapes = network.forward_seeds(part, [tape.batch] * len(part), workspace)
            losses += [tape_of_point.loss for tape_of_point in tapes]
        return Measurement((self.x, self.y, "loss"), np.stack([x, y, losses], axis=-1).astype(np.float64))
