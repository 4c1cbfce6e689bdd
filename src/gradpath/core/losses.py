"""The two losses, both the mean over the scored positions of the batch."""

from enum import Enum

import numpy as np
from numpy.typing import NDArray

POSITIONS = (-3, -2, -1)
"""The axes over which a loss is averaged."""


class Loss(Enum):
    """The loss of a task: ``cross_entropy`` for symbols, ``squared_error`` for numbers."""

    cross_entropy = "cross_entropy"
    squared_error = "squared_error"


def evaluate(kind: Loss, outputs: NDArray, targets: NDArray, mask: NDArray) -> tuple[NDArray, NDArray]:
    """Loss (…) in nats or squared units, and ∂L/∂Y, of outputs Y (…, R, B, O).

    Softmax cross-entropy: −ln softmax(Y)_target. Squared error: Σ_o (Y − target)², without ½. N
    scored positions (``mask`` (…, R, B)) have the weight 1/N each; at all others the gradient is 0.
    The cross-entropy of a target that is more likely than all others by a factor e^103 (float32;
    e^745 in float64) rounds to 0.
    """
    counted = mask[..., None]
    scored = np.maximum(counted.sum(axis=POSITIONS, keepdims=True), 1)
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        if kind is Loss.squared_error:
            error = np.where(counted, outputs - targets, 0)
            loss = np.square(error, dtype=np.float64)
            gradient = error
            weight = 2 / scored
        else:
            shifted = outputs - outputs.max(axis=-1, keepdims=True)
            chosen = np.take_along_axis(shifted, targets[..., None], axis=-1)
            exponentials = np.exp(shifted)
            np.put_along_axis(exponentials, targets[..., None], 0, axis=-1)
            sum_exponentials = exponentials.sum(axis=-1, keepdims=True)
            # Where the target is the likeliest symbol, 1 − p and −ln p are computed from the other
            # symbols' probabilities, because 1 − p itself would round to 0.
            loss = np.where(chosen == 0, np.log1p(sum_exponentials), np.log(np.exp(chosen) + sum_exponentials) - chosen)
            loss = np.where(counted, loss, 0).astype(np.float64)
            np.put_along_axis(exponentials, targets[..., None], -sum_exponentials, axis=-1)
            gradient = np.where(counted, exponentials / (np.exp(chosen) + sum_exponentials), 0)
            weight = 1 / scored
        total = loss.sum(axis=POSITIONS) / scored[..., 0, 0, 0]
        return total, gradient * weight.astype(outputs.dtype)
