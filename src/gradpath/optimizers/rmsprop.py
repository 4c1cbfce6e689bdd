"""RMSProp."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradpath.optimizers import Optimizer, State
from gradpath.schema.settings import setting


@dataclass
class RMSProp(Optimizer):
    """s ← α s + (1 − α) g², θ ← θ − η g / (√s + ε) (Tieleman & Hinton 2012, lecture 6.5)."""

    lr: float = setting(1e-3, "learning rate η", gt=0)
    alpha: float = setting(0.99, "decay α of the mean square", ge=0, lt=1)
    eps: float = setting(1e-8, "ε, added to the root", gt=0)

    def start(self, theta: NDArray) -> State:
        return {"square": np.zeros(theta.shape)}

    def update(self, theta: NDArray, gradient: NDArray, state: State, step: int) -> tuple[NDArray, State]:
        gradient = gradient.astype(np.float64)  # its square would overflow float32 at 1e19 and stay infinite
        square = self.alpha * state["square"] + (1 - self.alpha) * gradient * gradient
        change = (self.lr * gradient / (np.sqrt(square) + self.eps)).astype(theta.dtype)
        return theta - change, {"square": square}
