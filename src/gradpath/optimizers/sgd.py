"""Stochastic gradient descent with momentum."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradpath.optimizers import Optimizer, State
from gradpath.schema.settings import setting


@dataclass
class SGD(Optimizer):
    """v ← μ v + g, θ ← θ − η v (Polyak 1964, in the form of Sutskever et al. 2013 with the rate
    outside).
    """

    lr: float = setting(0.01, "learning rate η", gt=0)
    momentum: float = setting(0.0, "μ", ge=0, lt=1)

    def start(self, theta: NDArray) -> State:
        return {"velocity": np.zeros_like(theta)}

    def update(self, theta: NDArray, gradient: NDArray, state: State, step: int) -> tuple[NDArray, State]:
        velocity = self.momentum * state["velocity"] + gradient
        return theta - self.lr * velocity, {"velocity": velocity}
