"""The pointwise nonlinearities and their derivatives."""

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


def activate(kind: Activation, x: NDArray, y: NDArray) -> None:
    """Y ← φ(x), elementwise; ``y`` may be ``x``.

    σ(x) = ½ + ½ tanh(x/2): one function call, no overflow for any x, so the argument is never clipped. Its
    absolute error is that of the type, so that σ(x) loses relative precision, and a product of many of them with it,
    where x is well below 0: about ε/σ(x) each.
    """
    if kind is Activation.relu:
        np.maximum(x, 0, out=y)
    elif kind is Activation.tanh:
        np.tanh(x, out=y)
    else:
        np.multiply(x, 0.5, out=y)
        np.tanh(y, out=y)
        y *= 0.5
        y += 0.5


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


def slope_of_output(kind: Activation, y: NDArray, out: NDArray) -> None:
    """out ← φ′ from y = φ(x): 1 − y², y (1 − y), or 1 or 0: several times as fast as from x."""
    if kind is Activation.relu:
        np.sign(y, out=out)
        np.fmax(out, 0, out=out)  # 0 at NaN, as x > 0 is
    elif kind is Activation.tanh:
        np.multiply(y, y, out=out)
        np.subtract(1, out, out=out)
    else:
        np.subtract(1, y, out=out)
        out *= y


def mend_slope(kind: Activation, x: NDArray, slope: NDArray) -> None:
    """Computes φ′(x) anew, in place, where y is so near its limit that 1 − y has cancelled."""
    if kind is not Activation.relu and not slope.min(initial=1) >= STEEP:  # a NaN must not hide the others
        flat = slope < STEEP
        slope[flat] = derivative(kind, x[flat])


def slope(kind: Activation, x: NDArray, y: NDArray) -> NDArray:
    """φ′(x) where y = φ(x) is known, right to five bits at least of what the type has."""
    found = np.empty_like(y)
    slope_of_output(kind, y, found)
    mend_slope(kind, x, found)
    return found
