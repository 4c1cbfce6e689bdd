"""Adam."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradpath.optimizers import Optimizer, State
from gradpath.schema.settings import setting


@dataclass
class Adam(Optimizer):
    """m ← β₁ m + (1 − β₁) g, s ← β₂ s + (1 − β₂) g²; with m̂, ŝ divided by 1 − βᵗ: θ ← θ − η m̂ /
    (√ŝ + ε) (Kingma & Ba 2015, algorithm 1).
    """

    lr: float = setting(1e-3, "learning rate η", gt=0)
    beta1: float = setting(0.9, "decay β₁ of the mean", ge=0, lt=1)
    beta2: float = setting(0.999, "decay β₂ of the mean square", ge=0, lt=1)
    eps: float = setting(1e-8, "ε, added to the root", gt=0)

    def start(self, theta: NDArray) -> State:
        return {"mean": np.zeros(theta.shape), "square": np.zeros(theta.shape)}

    def update(self, theta: NDArray, gradient: NDArray, state: State, step: int) -> tuple[NDArray, State]:
        gradient = gradient.astype(np.float64)  # its square would overflow float32 at 1e19 and stay infinite
        mean = self.beta1 * state["mean"] + (1 - self.beta1) * gradient
        square = self.beta2 * state["square"] + (1 - self.beta2) * gradient * gradient
        corrected_mean = mean / (1 - self.beta1 ** (step + 1))
        corrected_root = np.sqrt(square / (1 - self.beta2 ** (step + 1)))
        change = (self.lr * corrected_mean / (corrected_root + self.eps)).astype(theta.dtype)
        return theta - change, {"mean": mean, "square": square}
