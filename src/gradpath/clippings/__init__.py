"""Clippings: what is made of the gradient before the optimiser gets it, on any cell."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from numpy.typing import NDArray

from gradpath.core.trace import Gradient
from gradpath.schema.settings import Settings


@dataclass
class Clipping(Settings, ABC):
    """Base of the clippings."""

    @property
    @abstractmethod
    def label(self) -> str:
        """The word for it in the label of an arm, as in ``clipped_rnn``; empty where nothing is
        clipped.
        """

    @abstractmethod
    def apply(self, gradient: Gradient) -> tuple[NDArray, float]:
        """The gradient to apply (P,), in the type of the raw one, which is not written to; and
        ‖applied‖ / ‖raw‖ (``ratio``), below 1 where clipping engaged and 1 where it did not.
        """


def ratio(decades: float) -> float:
    """10^decades, at most 1; 0 where float64 cannot hold it."""
    return float(min(1.0, 10.0 ** max(decades, -400.0)))
