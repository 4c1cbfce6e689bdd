"""The norms of ∂L/∂θ_t, right to rounding: from the squares that were taken on the way, and where
these may be wrong, from the gradient formed once more in float64, in which products of float32
factors are exact.
"""

import numpy as np
from numpy.typing import NDArray

from gradpath.core.scaled import ZERO_EXPONENT, Scaled, log10_of_root, magnitude, shift
from gradpath.core.trace import WeightGradients
from gradpath.engine.partition import chunks

ROUNDING = 2.0**-14
"""Relative rounding of a norm from which on it is formed in float64."""


def log10_norms(of: WeightGradients) -> NDArray:
    """log10 ‖∂L/∂θ_t‖_F (R, S, names); -inf is a true zero.

    In float64 where the sequences' gradients cancel so far that the rounding of their sum shows, or
    where squares leave the range of the type of δ.
    """
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        square = of.weight_sq_norms.swapaxes(-1, -2).astype(np.float64)
        norms = log10_of_root(square, of.exponent[..., None, None])
        doubt = unreliable_norms(of, square)
        steps, seeds = np.nonzero(doubt.any(axis=(2, 3)))
        for rows in chunks(len(steps), of.delta.array[0, 0].size):
            few = steps[rows], seeds[rows]
            norms[few] = np.where(doubt[few], _in_float64(of, few), norms[few])
    return np.concatenate([norms[:, :, index, one.blocks] for index, one in enumerate(of.slices)], axis=-1)


def unreliable_norms(of: WeightGradients, square: NDArray) -> NDArray:
    """Where a norm has to be formed again (R, S, slices, n): its ``square`` may be wrong, and it is
    no true zero.
    """
    limits = np.finfo(of.weight_sq_norms.dtype)
    doubt = ~((square > float(limits.tiny) * 2.0**12) & (square < float(limits.max) * 2.0**-12))
    outside, single = doubt, limits.dtype == np.float32
    if single:
        # √(Σ_b ‖E_b‖² Σ_b ‖δ_b‖²) is no less than what the norm would be if nothing cancelled;
        # first by all that enters, twice, which is more than any slice's, and where that leaves
        # doubt slice by slice.
        rounding = float(limits.eps) / 2 * np.sqrt(of.entered.shape[2])
        certain = square * (ROUNDING / rounding) ** 2
        sent = of.delta_sq_norms.sum(axis=2, dtype=np.float64)
        entered = 2 * np.einsum("rsbk,rsbk->rs", of.entered, of.entered).astype(np.float64)
        doubt = outside | (certain < (entered[..., None] * sent)[:, :, None])
    few = np.nonzero(doubt.any(axis=(2, 3)))
    if len(few[0]):
        each, comes = of.entered[few], np.logical_or.reduce(of.delta.array[few], axis=(1, 3))
        rows = [each[..., one.rows] for one in of.slices]
        # Where 0 enters, as with H_0, or no gradient comes, as by F at C_0, it is a true zero.
        doubt[few] &= np.stack([some.any(axis=(1, 2)) for some in rows], axis=1)[:, :, None] & comes[:, None, :]
        if single:
            of_slices = np.stack([np.vecdot(some, some).sum(axis=-1, dtype=np.float64) for some in rows], axis=1)
            doubt[few] &= outside[few] | (certain[few] < of_slices[:, :, None] * sent[few][:, None])
    return doubt


def _in_float64(of: WeightGradients, few: tuple[NDArray, NDArray]) -> NDArray:
    """log10 ‖∂L/∂W_t‖ (F, slices, n) at a few steps and networks."""
    delta = Scaled(of.delta.array[few], of.delta.exponent[few]).aligned_by_step
    by_block, powers = _of_size_1(np.moveaxis(delta.array, 2, 1).astype(np.float64), 2)
    norms = []
    for one in of.slices:
        entered, size = _of_size_1(of.entered[few][..., one.rows].astype(np.float64), 1)
        formed = entered.swapaxes(-1, -2)[:, None] @ by_block
        norms.append(Scaled(formed, powers + (delta.exponent + size)[:, None]).log10_norm())
    return np.stack(norms, axis=1)


def _of_size_1(array: NDArray, leading: int) -> tuple[NDArray, NDArray]:
    """``array`` by a power of two for each of the ``leading`` indices, so that no product of two
    such leaves the type; and the exponents of what it is to be multiplied by again.
    """
    size = magnitude(array, leading)
    size[size == ZERO_EXPONENT] = 0
    return shift(array, -size), size
