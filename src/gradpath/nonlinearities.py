"""The pointwise nonlinearities, in place, and their derivatives as functions of their output."""

from enum import Enum

import numpy as np
from numpy.typing import NDArray


class Activation(Enum):
    """φ of the vanilla RNN."""

    tanh = "tanh"
    relu = "relu"
    sigmoid = "sigmoid"


def activate(kind: Activation, x: NDArray) -> None:
    """X ← φ(x), elementwise and in place.

    σ(x) = ½ + ½ tanh(x/2): one function call, no overflow for any x, so the argument is never clipped. Its
    absolute error is that of the type, so that σ(x) loses relative precision, and a product of many of them with it,
    where x is well below 0: about ε/σ(x) each.
    """
    if kind is Activation.relu:
        np.maximum(x, 0, out=x)
        return
    if kind is Activation.sigmoid:
        x *= 0.5
    np.tanh(x, out=x)
    if kind is Activation.sigmoid:
        x *= 0.5
        x += 0.5


def derivative(kind: Activation, y: NDArray) -> NDArray:
    """φ′ at the point where φ gave y: 1 − y² (tanh), y(1 − y) (sigmoid), 1 or 0 (relu, 0 at the corner)."""
    if kind is Activation.relu:
        return (y > 0).astype(y.dtype)
    return y * (1 - y) if kind is Activation.sigmoid else 1 - y * y
