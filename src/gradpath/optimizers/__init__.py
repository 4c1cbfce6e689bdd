"""Optimisers. An update rule is a pure function on flat vectors (P,): θ, gradient and its own
state.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from numpy.typing import NDArray

from gradpath.schema.namespace import unit_attributes
from gradpath.schema.settings import Settings, setting

State = dict[str, NDArray]


@dataclass
class Optimizer(Settings, ABC):
    """Base of the update rules."""

    lr: float = setting(1e-3, "learning rate", gt=0)

    @abstractmethod
    def start(self, theta: NDArray) -> State:
        """The state before the first update."""

    @abstractmethod
    def update(self, theta: NDArray, gradient: NDArray, state: State, step: int) -> tuple[NDArray, State]:
        """θ and state after update number ``step`` (from 0); no argument is written to."""


__getattr__, __dir__ = unit_attributes(Optimizer)
