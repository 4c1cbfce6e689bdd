"""What theory says the gradient does on its way into the past, as pure functions of weights and pre-activations."""

import numpy as np
from numpy.typing import NDArray


def log_keep(bias: float | NDArray) -> NDArray:
    """ln σ(b), the slope per step of a carousel whose gate is held open by its bias alone; without cancellation for
    large b, where σ(b) rounds to 1.
    """
    return -np.logaddexp(0.0, -np.asarray(bias, np.float64))


def horizon(forget_bias: float | NDArray) -> NDArray:
    """−1/ln σ(b_f), in steps, elementwise: after so many the carousel keeps 1/e of its gradient, if the forget gate is
    left at its bias (Hochreiter & Schmidhuber 1997, section 3.2, for the carousel; Tallec & Ollivier 2018, section 2,
    for the time constant of a gate). About e^b_f for large b_f.
    """
    with np.errstate(divide="ignore"):
        return -1 / log_keep(forget_bias)
