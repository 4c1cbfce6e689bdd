"""Checks the updates of an optimiser. The updates of gradpath's optimisers must follow the closed
form of their recursions; the first step of every other must go downhill.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from gradpath.gradient_check.findings import Errors, Findings, certain, value_errors, worst
from gradpath.gradient_check.watching import Update
from gradpath.optimizers import Optimizer
from gradpath.optimizers.adam import Adam
from gradpath.optimizers.rmsprop import RMSProp
from gradpath.optimizers.sgd import SGD
from gradpath.schema.discovery import unit_name


def check(updates: Sequence[Update], findings: Findings) -> None:
    """``updates``: an optimiser's updates from the first one, with θ held constant."""
    first = updates[0]
    change = _change(first)
    downhill = float(np.sum(change * first.gradient.astype(np.float64)))
    moved = first.gradient.any() and np.isfinite(change).all() and change.any()
    findings.add("optimizer: first step is downhill", certain(np.inf if moved and downhill >= 0 else 0.0))
    preserved = all(update.updated.dtype == update.theta.dtype and not update.touched for update in updates)
    findings.add("optimizer: arguments and type kept", certain(0.0 if preserved else np.inf))
    rule = RULES.get(unit_name(first.optimizer))
    if rule is not None:
        findings.add("optimizer: update", worst([_error(updates[: step + 1], rule) for step in range(len(updates))]))


def _change(update: Update) -> NDArray:
    return update.updated.astype(np.float64) - update.theta.astype(np.float64)


def _error(updates: Sequence[Update], rule: Callable[[Optimizer, NDArray], NDArray]) -> Errors:
    """The error of the last of these updates. The rounding of θ + change counts as uncertainty;
    the rounding of the change itself is negligible beside it.
    """
    last = updates[-1]
    expected = rule(last.optimizer, np.array([update.gradient for update in updates], np.longdouble))
    eps = float(np.finfo(last.theta.dtype).eps)
    size = np.abs(last.theta.astype(np.float64)) + np.abs(expected)
    if not np.isfinite(last.updated).all():
        overflows = np.abs(expected).max() > float(np.finfo(last.theta.dtype).max) / 1e6
        return certain(0.0 if overflows else np.inf)
    value = expected.astype(np.float64)
    return value_errors(
        _change(last)[None], np.stack([value, value + (eps * size).astype(np.float64)])[:, None]
    ).largest


def _weights(decay: float, count: int) -> NDArray:
    """The weights decay^{t-j} of the gradients j = 1 … t."""
    return np.asarray(decay, np.longdouble) ** np.arange(count - 1, -1, -1)


def sgd(optimizer: Optimizer, gradients: NDArray) -> NDArray:
    """−η Σ_j μ^{t-j} g_j: momentum (Polyak 1964; Sutskever et al. 2013) without the recursion."""
    assert isinstance(optimizer, SGD)
    return np.asarray(-optimizer.lr * (_weights(optimizer.momentum, len(gradients)) @ gradients))


def rmsprop(optimizer: Optimizer, gradients: NDArray) -> NDArray:
    """−η g_t / (√((1 − α) Σ_j α^{t-j} g_j²) + ε) (Tieleman & Hinton 2012, lecture 6.5)."""
    assert isinstance(optimizer, RMSProp)
    square = (1 - optimizer.alpha) * (_weights(optimizer.alpha, len(gradients)) @ gradients**2)
    return np.asarray(-optimizer.lr * gradients[-1] / (np.sqrt(square) + optimizer.eps))


def adam(optimizer: Optimizer, gradients: NDArray) -> NDArray:
    """−η m̂ / (√ŝ + ε), where m̂ and ŝ are the averages of g_j and g_j² with weights β^{t-j}. These
    weights add up to (1 − β^t)/(1 − β), which is why the recursion divides by 1 − β^t (Kingma & Ba
    2015, section 3).
    """
    assert isinstance(optimizer, Adam)
    mean_weights, square_weights = (_weights(beta, len(gradients)) for beta in (optimizer.beta1, optimizer.beta2))
    mean, square = mean_weights @ gradients / mean_weights.sum(), square_weights @ gradients**2 / square_weights.sum()
    return np.asarray(-optimizer.lr * mean / (np.sqrt(square) + optimizer.eps))


RULES: dict[str, Callable[[Optimizer, NDArray], NDArray]] = {"sgd": sgd, "rmsprop": rmsprop, "adam": adam}
