"""Arrays with a power-of-two exponent beside them, so that no gradient rounds to zero or overflows.

The adjoint of a recurrent network leaves floating point quickly: 0.3^1000 ≈ 1e-523 is below the
smallest float64. Backpropagation is linear in the adjoint, so it may be multiplied by 2^k at any
time and divided again at the end, and multiplication by a power of two is exact. ``Scaled`` is such
a pair; the value is ``array · 2^exponent``.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradpath.engine.partition import chunks

LOG10_2, TINY = float(np.log10(2.0)), float(np.finfo(np.float64).tiny)
ZERO_EXPONENT = np.int32(-(2**29))
"""Stands for the exponent of a true zero: below every exponent, also after an exponent is added."""

# A row is brought back to size 1 when its largest element leaves 2^-40 … 2^40. The band is wide
# enough that ordinary steps seldom rescale, and far from float32's limits (2^±126): only a factor
# below about 2^-86 in one step, such as a gate with a < −60, leaves these; the network is then
# computed again in float64 (``Network.backward``).
BAND = 40
BAND_MIN, BAND_MAX = 2.0**-BAND, 2.0**BAND


@dataclass(frozen=True)
class Scaled:
    """``array · 2^exponent``; ``exponent`` (int32) holds one number for each leading index of
    ``array``.
    """

    array: NDArray
    exponent: NDArray

    def seed(self, s: int) -> "Scaled":
        """One of the seeds side by side along the second axis, as a view."""
        return Scaled(self.array[:, s], self.exponent[:, s])

    def sequences(self, rows: slice) -> "Scaled":
        """Some sequences of several seeds, along the third axis, as a view."""
        if rows == slice(0, self.array.shape[2]):
            return self
        return Scaled(self.array[:, :, rows], self.exponent[:, :, rows])

    def blocks(self, index: slice) -> "Scaled":
        """Some of the gates, along the last axis but one, as a view."""
        is_whole = index == slice(0, self.array.shape[-2])
        return self if is_whole else Scaled(self.array[..., index, :], self.exponent)

    def steps(self, rows: slice) -> "Scaled":
        """Some indices of the first axis, the timestep, as a view."""
        return Scaled(self.array[rows], self.exponent[rows])

    @property
    def aligned_by_step(self) -> "Scaled":
        """The same value with one exponent for each index of the first axis; may be a copy."""
        return self.aligned_to(1)

    def aligned_to(self, leading: int) -> "Scaled":
        """The same value with one exponent for each index of the first ``leading`` axes, that of
        the largest element there.

        An element so much smaller than the largest that it underflows is lost, as it would be in
        their sum.
        """
        shared = tuple(range(leading, self.exponent.ndim))
        if not shared:
            return self
        first = self.exponent[(slice(None),) * leading + (0,) * len(shared)] if self.exponent.size else None
        if first is None or (self.exponent == np.expand_dims(first, shared)).all():
            return Scaled(self.array, np.zeros(self.exponent.shape[:leading], np.int32) if first is None else first)
        size = magnitude(self.array, self.exponent.ndim) + self.exponent
        common = size.max(axis=shared, keepdims=True, initial=ZERO_EXPONENT)
        common = np.where(common < ZERO_EXPONENT // 2, 0, common)
        return Scaled(shift(self.array, self.exponent - common), common.squeeze(shared))

    def plain(self) -> NDArray:
        """The value as an ordinary array; elements that underflow become 0, and elements that
        overflow become inf.
        """
        return shift(self.array, self.exponent) if self.exponent.any() else self.array

    def log10_norm_by_step(self) -> NDArray:
        """log10 of the norm of each index of the first axis (T,); -inf for a true zero."""
        runs = chunks(len(self.array), self.array[0].size)
        return np.concatenate([self.steps(rows).aligned_by_step.log10_norm() for rows in runs])

    def log10_norm(self) -> NDArray:
        """log10 of the Euclidean norm over all axes that ``exponent`` does not have; -inf for a
        true zero.
        """
        square, exponent = self._square(self.array), self.exponent
        # A float64 square may leave its range where its root does not.
        if not np.all((square > 1e-200) & (square < 1e200)):
            size = np.maximum(magnitude(self.array, self.exponent.ndim), -(2**15))
            square, exponent = self._square(shift(self.array, -size)), exponent + size
        return log10_of_root(square, exponent)

    def _square(self, array: NDArray) -> NDArray:
        """‖array‖² in float64 over the axes that ``exponent`` does not have."""
        leading = self.exponent.ndim
        values = array.reshape(*array.shape[:leading], math.prod(array.shape[leading:])).astype(np.float64, copy=False)
        return np.vecdot(values, values)


def log10_of_root(square: NDArray, exponent: NDArray) -> NDArray:
    """log10( √square · 2^exponent ), right beyond the range of float64;
    -inf where ``square`` is 0.
    """
    root = np.sqrt(square)
    with np.errstate(divide="ignore", over="ignore", under="ignore"):
        if not exponent.any():
            return np.log10(root)
        value = np.ldexp(root, exponent)
        in_range = ((value > TINY) & (value < np.inf)) | (root == 0)
        log10_value = np.log10(value)
        return log10_value if in_range.all() else np.where(in_range, log10_value, np.log10(root) + exponent * LOG10_2)


def combined(log10_norms: NDArray) -> NDArray:
    """log10 √Σ_k 10^(2 n_k) over the last axis, without overflow: the log10 norm of a whole from
    the log10 norms n_k of its parts.
    """
    largest = log10_norms.max(axis=-1)
    base = np.where(np.isfinite(largest), largest, 0)
    with np.errstate(divide="ignore"):
        return base + np.log10(np.sum(100.0 ** (log10_norms - base[..., None]), axis=-1)) / 2


def shift(array: NDArray, exponent: NDArray) -> NDArray:
    """``array · 2^exponent`` with one exponent for each leading index; rounds only where the result
    underflows.
    """
    exponent = np.reshape(exponent, np.shape(exponent) + (1,) * (array.ndim - np.ndim(exponent)))
    limits = np.finfo(array.dtype)
    with np.errstate(over="ignore", under="ignore"):
        if limits.minexp <= exponent.min(initial=0) and exponent.max(initial=0) < limits.maxexp:
            # A product by a power of two is as exact as ldexp and several times as fast.
            return array * np.ldexp(array.dtype.type(1), exponent)
        return np.ldexp(array, exponent)


def magnitude(array: NDArray, leading: int) -> NDArray:
    """Exponent e with max|array| in [2^(e-1), 2^e) for each of the ``leading`` indices;
    ``ZERO_EXPONENT`` where all elements are 0.
    """
    axes = tuple(range(leading, array.ndim))
    largest = np.maximum(array.max(axis=axes, initial=0), -array.min(axis=axes, initial=0))
    return np.where(largest > 0, np.frexp(largest)[1], ZERO_EXPONENT).astype(np.int32)


def add_direct(adjoint: list[NDArray], exponent: NDArray, addend: NDArray, addend_exponent: NDArray) -> None:
    """Adds the immediate derivative ∂⁺L/∂s_t to ``adjoint[0]``, in place, after bringing both to
    the exponent of the larger one. All states of a step share the exponent.
    """
    if (exponent != addend_exponent).any():
        arriving = magnitude(addend, exponent.ndim) + addend_exponent
        carried = np.max([magnitude(row, exponent.ndim) for row in adjoint], axis=0) + exponent
        # A sequence keeps its exponent unless the addend is the larger.
        common = np.where(arriving > carried, addend_exponent, exponent)
        for row in adjoint:
            row[:] = shift(row, exponent - common)
        addend = shift(addend, addend_exponent - common)
        exponent[:] = common
    adjoint[0] += addend


def renormalise(adjoint: list[NDArray], exponent: NDArray) -> None:
    """Where a sequence has left the band BAND_MIN … BAND_MAX, brings it back to size 1, in place
    and exactly. If one power of two keeps all sequences of its network in the band, all are scaled
    by it, so that a step has one exponent. Otherwise each is scaled on its own, including those
    outside half the band, because every rescaling interrupts a loop.
    """
    largest = np.abs(adjoint[0]).max(axis=-1)
    for row in adjoint[1:]:
        np.maximum(largest, np.abs(row).max(axis=-1), out=largest)
    nonzero = (largest > 0) & np.isfinite(largest)
    out_of_band = nonzero & ((largest > BAND_MAX) | (largest < BAND_MIN))
    if not out_of_band.any():
        return
    size = np.where(nonzero, np.frexp(largest)[1], ZERO_EXPONENT)
    top = size.max(axis=-1, keepdims=True)
    alignable = ((size == ZERO_EXPONENT) | (size >= top - BAND // 2)) & (exponent == exponent[..., :1])
    own_change = np.where(nonzero & (np.abs(size) > BAND // 2), size, 0)
    change = np.where(alignable.all(axis=-1, keepdims=True), top, own_change)
    change = np.where(out_of_band.any(axis=-1, keepdims=True), change, 0)
    for row in adjoint:
        row[:] = shift(row, -change)
    exponent += change
