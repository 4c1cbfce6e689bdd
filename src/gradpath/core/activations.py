"""The pointwise nonlinearities and their derivatives."""

from collections.abc import Sequence
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
    """y ← φ(x), elementwise; ``y`` may be ``x``.

    σ(x) = 1 / (1 + exp(−x)) has a small *relative* error wherever it is a normal number, down to
    x = −87 in float32 and −708 in float64; below, it is subnormal and then 0. The exponential of a
    large −x overflows to inf, which gives the right limit 0, so the argument is never clipped.
    ½ + ½ tanh(x/2) is as fast, but only its absolute error is small: at x = −17 it is 0 in float32.
    """
    if kind is Activation.relu:
        np.maximum(x, 0, out=y)
    elif kind is Activation.tanh:
        np.tanh(x, out=y)
    else:
        np.negative(x, out=y)
        complement(y, y)


def complement(x: NDArray, y: NDArray) -> None:
    """y ← 1 − σ(x) = σ(−x) = 1 / (1 + exp(x)), without the cancellation of 1 − σ(x), which is 0 at
    x = 17 in float32; ``y`` may be ``x``.
    """
    with np.errstate(over="ignore", under="ignore"):
        np.exp(x, out=y)
        y += 1
        np.reciprocal(y, out=y)


def derivative(kind: Activation, x: NDArray) -> NDArray:
    """φ′(x), from the argument: relu 1 or 0 (0 at the corner); tanh′(x) = sech²(x) and σ′(x) = ¼
    sech²(x/2), with sech(x) = 2 e / (1 + e²), e = exp(−|x|).

    It is not computed from the output y, because 1 − y² is 0 as soon as y rounds to 1 (at x = 9 in
    float32), and φ′ is not. The result is accurate to rounding wherever φ′ is a normal number: for
    σ up to |x| = 87 in float32 and 708 in float64, for tanh up to half of that. The square is taken
    last, so that no intermediate result underflows before φ′ itself does.
    """
    if kind is Activation.relu:
        return np.heaviside(x, x.dtype.type(0))  # NaN stays NaN: a unit that has blown up is not off
    with np.errstate(under="ignore"):
        e = np.abs(x)
        e *= -1 if kind is Activation.tanh else -0.5
        np.exp(e, out=e)
        e /= 1 + e * e
        if kind is Activation.tanh:
            e *= 2
        e *= e
    return e


MIN_ACCURATE_SLOPE = 2.0**-5
"""Below this, φ′ computed from the output has lost five bits; it is computed from the argument."""


def slope_of_output(kind: Activation, y: NDArray, out: NDArray) -> None:
    """out ← φ′ computed from y = φ(x): 1 − y² for tanh, y (1 − y) for σ, 1 or 0 for relu. Several
    times as fast as :func:`derivative`, and inaccurate where 1 − y cancels.
    """
    if kind is Activation.relu:
        np.sign(y, out=out)
        np.fmax(out, 0, out=out)  # 0 at NaN, as x > 0 is
    elif kind is Activation.tanh:
        np.multiply(y, y, out=out)
        np.subtract(1, out, out=out)
    else:
        np.subtract(1, y, out=out)
        out *= y


def mend_slope(kind: Activation, x: NDArray, slope: NDArray) -> float:
    """Replaces ``slope``, in place, by :func:`derivative` of ``x`` where it is below
    ``MIN_ACCURATE_SLOPE``. Returns a lower bound of all slopes: the smallest replaced one, or
    ``MIN_ACCURATE_SLOPE`` if none was; 1 for relu, whose zeros are true zeros.
    """
    if kind is Activation.relu:
        return 1.0
    if slope.min(initial=1) >= MIN_ACCURATE_SLOPE:  # false where there is a NaN, which must not hide the others
        return MIN_ACCURATE_SLOPE
    flat = slope < MIN_ACCURATE_SLOPE
    if 4 * np.count_nonzero(flat) > flat.size:  # faster than to pick them out
        np.putmask(slope, flat, derivative(kind, x))
        return float(np.fmin.reduce(slope, axis=None, initial=MIN_ACCURATE_SLOPE))
    indices = np.flatnonzero(flat)  # faster than an index of booleans
    mended = derivative(kind, x.take(indices))
    slope.put(indices, mended)
    return float(mended.min(initial=MIN_ACCURATE_SLOPE))


def slope(kind: Activation, x: NDArray, y: NDArray) -> NDArray:
    """φ′(x) where y = φ(x) is known, accurate to all but five bits of the type."""
    result = np.empty_like(y)
    slope_of_output(kind, y, result)
    mend_slope(kind, x, result)
    return result


def closed(kinds: Sequence[Activation], values: Sequence[NDArray], slopes: Sequence[NDArray], floor: float) -> NDArray:
    """(S,) Has the network a unit whose factor, at any one step, is below ``floor``? The factor is
    the product of the unit's slopes and, for sigmoids, of the gate values y as well: a gate scales
    the state by y and the adjoint by y, and a weight's gradient is the product of the two.
    """
    product: float | NDArray = 1.0
    for kind, y, slope in zip(kinds, values, slopes, strict=True):
        if kind is not Activation.relu:
            factor = slope.astype(np.float64)
            if kind is Activation.sigmoid:
                factor *= y
            shape = factor.shape
            product = product * factor.reshape(*shape[:3], -1, shape[-1]).prod(axis=3)
    return np.any(product < floor, axis=(0, 2, 3))
