"""The pointwise nonlinearities, in place, and their derivatives."""

from enum import Enum

import numpy as np
from numpy.typing import NDArray


class Activation(Enum):
    """φ of the vanilla RNN."""

    tanh = "tanh"
    relu = "relu"
    sigmoid = "sigmoid"

    @property
    def steepest(self) -> float:
        """max φ′."""
        return 0.25 if self is Activation.sigmoid else 1.0


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


def derivative(kind: Activation, x: NDArray) -> NDArray:
    """φ′(x), from the argument: relu 1 or 0 (0 at the corner), with e = exp(−|x|): σ′ = e / (1 + e)² and, with e²,
    tanh′ = 4 e² / (1 + e²)².

    Not from the output y: 1 − y² is 0 as soon as y rounds to 1 (at x = 9 in float32), which would be a false zero.
    These are right to rounding until exp underflows (at x = 87 in float32, 708 in float64; half of it for tanh).
    """
    if kind is Activation.relu:
        return (x > 0).astype(x.dtype)
    scale = -2 if kind is Activation.tanh else -1
    with np.errstate(under="ignore"):
        e = np.abs(x)
        e *= scale
        np.exp(e, out=e)
        root = 1 + e
        e /= root
        e /= root
    if kind is Activation.tanh:
        e *= 4
    return e


STEEP = 2.0**-5
"""Below this, φ′ from the output has lost five bits, and is computed from the argument."""


def slope(kind: Activation, x: NDArray, y: NDArray) -> NDArray:
    """φ′(x) where y = φ(x) is known: 1 − y² or y (1 − y), several times as fast as from x; from x where y is so
    near its limit that these cancel.
    """
    if kind is Activation.relu:
        return derivative(kind, x)
    if kind is Activation.tanh:
        found = np.square(y)
        np.subtract(1, found, out=found)
    else:
        found = np.subtract(1, y)
        found *= y
    if not found.min(initial=1) >= STEEP:  # a NaN of one sequence must not hide the others
        flat = found < STEEP
        found[flat] = derivative(kind, x[flat])
    return found
