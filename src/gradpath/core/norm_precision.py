"""The norms of ∂L/∂θ_t, accurate to rounding. They come from the squares that the backward pass has
computed; where these may be inaccurate, the gradient is formed again in float64, in which products
of float32 factors are exact.
"""

import numpy as np
from numpy.typing import NDArray

from gradpath.core.scaled import ZERO_EXPONENT, Scaled, log10_of_root, magnitude, shift
from gradpath.core.trace import WeightGradients
from gradpath.engine.partition import chunks

MAX_ROUNDING_ERROR = 2.0**-14
"""Relative rounding error of a norm above which the norm is computed again in float64."""


def log10_norms(gradients: WeightGradients) -> NDArray:
    """log10 ‖∂L/∂θ_t‖_F (R, S, names); -inf is a true zero.

    The norm is computed again in float64 where the sequences' gradients cancel so far that the
    relative error of their sum may exceed ``MAX_ROUNDING_ERROR``, or where squares leave the range
    of the type of δ.
    """
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        square = gradients.weight_sq_norms.swapaxes(-1, -2).astype(np.float64)
        norms = log10_of_root(square, gradients.exponent[..., None, None])
        unreliable = unreliable_norms(gradients, square)
        steps, seeds = np.nonzero(unreliable.any(axis=(2, 3)))
        for rows in chunks(len(steps), gradients.delta.array[0, 0].size):
            selected = steps[rows], seeds[rows]
            norms[selected] = np.where(unreliable[selected], _in_float64(gradients, selected), norms[selected])
    return np.concatenate([norms[:, :, index, part.blocks] for index, part in enumerate(gradients.slices)], axis=-1)


def unreliable_norms(gradients: WeightGradients, square: NDArray) -> NDArray:
    """(R, S, slices, n) bool: must the norm be computed again, because its ``square`` may be
    inaccurate and is no true zero?
    """
    limits = np.finfo(gradients.weight_sq_norms.dtype)
    is_float32 = limits.dtype == np.float32
    out_of_range = ~((square > float(limits.tiny) * 2.0**12) & (square < float(limits.max) * 2.0**-12))
    unreliable = out_of_range.copy()
    if is_float32:
        # Without cancellation the square of the norm is at most Σ_b ‖E_b‖² Σ_b ‖δ_b‖². While this
        # bound is at most ``largest_bound``, the rounding error of the norm is small enough. The
        # first bound takes twice ‖E_b‖² of all inputs, which exceeds the value of every slice.
        # Norms that fail it are tested against the bound of their own slice below.
        rounding = float(limits.eps) / 2 * np.sqrt(gradients.inputs.shape[2])
        largest_bound = square * (MAX_ROUNDING_ERROR / rounding) ** 2
        delta_square = gradients.delta_sq_norms.sum(axis=2, dtype=np.float64)
        input_square = 2 * np.einsum("rsbk,rsbk->rs", gradients.inputs, gradients.inputs).astype(np.float64)
        unreliable |= largest_bound < (input_square[..., None] * delta_square)[:, :, None]
    selected = np.nonzero(unreliable.any(axis=(2, 3)))
    if len(selected[0]):
        inputs = gradients.inputs[selected]
        has_delta = np.logical_or.reduce(gradients.delta.array[selected], axis=(1, 3))
        slice_inputs = [inputs[..., part.rows] for part in gradients.slices]
        # The norm is a true zero where all inputs are 0 (H_0 is), or where all of δ is 0 (as in the
        # forget gate at C_0 = 0).
        has_input = np.stack([values.any(axis=(1, 2)) for values in slice_inputs], axis=1)
        unreliable[selected] &= has_input[:, :, None] & has_delta[:, None, :]
        if is_float32:
            slice_square = np.stack(
                [np.vecdot(values, values).sum(axis=-1, dtype=np.float64) for values in slice_inputs], axis=1
            )
            slice_bound = slice_square[:, :, None] * delta_square[selected][:, None]
            unreliable[selected] &= out_of_range[selected] | (largest_bound[selected] < slice_bound)
    return unreliable


def _in_float64(gradients: WeightGradients, selected: tuple[NDArray, NDArray]) -> NDArray:
    """log10 ‖∂L/∂W_t‖ (F, slices, n) at a few steps and networks."""
    delta = Scaled(gradients.delta.array[selected], gradients.delta.exponent[selected]).aligned_by_step
    by_gate, powers = _normalised(np.moveaxis(delta.array, 2, 1).astype(np.float64), 2)
    norms = []
    for part in gradients.slices:
        inputs, size = _normalised(gradients.inputs[selected][..., part.rows].astype(np.float64), 1)
        product = inputs.swapaxes(-1, -2)[:, None] @ by_gate
        norms.append(Scaled(product, powers + (delta.exponent + size)[:, None]).log10_norm())
    return np.stack(norms, axis=1)


def _normalised(array: NDArray, leading: int) -> tuple[NDArray, NDArray]:
    """``array · 2^−e`` and the exponents e: the result has magnitude 1 at every index of the first
    ``leading`` axes, so that products of two such arrays stay in the range of the type.
    """
    size = magnitude(array, leading)
    size[size == ZERO_EXPONENT] = 0
    return shift(array, -size), size
