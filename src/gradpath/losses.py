"""The two losses, both the mean over the scored positions of the batch."""

from enum import Enum

import numpy as np
from numpy.typing import NDArray


class Loss(Enum):
    """What a task's outputs are compared with: symbols or numbers."""

    cross_entropy = "cross_entropy"
    squared_error = "squared_error"


def evaluate(kind: Loss, outputs: NDArray, targets: NDArray, mask: NDArray) -> tuple[float, NDArray]:
    """Loss in nats or squared units, and ∂L/∂Y (S, B, O).

    Softmax cross-entropy: −ln softmax(Y)_target. Squared error: Σ_o (Y − target)², without ½. N scored positions
    (``mask`` (S, B)) count 1/N each, whatever their number; a position that is not scored gets gradient 0.
    """
    scored = max(int(mask.sum()), 1)
    weight = mask[..., None] / np.asarray(scored, outputs.dtype)
    if kind is Loss.squared_error:
        error = (outputs - targets) * mask[..., None]
        return float(np.sum(np.square(error, dtype=np.float64)) / scored), 2 * error * weight
    shifted = outputs - outputs.max(axis=-1, keepdims=True)
    log_probability = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    chosen = np.take_along_axis(log_probability, targets[..., None], axis=-1)[..., 0]
    gradient = np.exp(log_probability)
    one_hot = np.arange(outputs.shape[-1]) == targets[..., None]
    gradient -= one_hot
    return float(-np.sum(chosen * mask, dtype=np.float64) / scored), gradient * weight
