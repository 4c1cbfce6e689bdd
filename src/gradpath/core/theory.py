"""Theoretical predictions of how fast the gradient grows or decays per step into the past, as pure
functions of weights and pre-activations.

All are slopes in natural logarithm per step, but of different validity. The σ_max bound is a
theorem and holds at every step of every network. The spectral radius is the slope of the *linear*
network at long lags. The mean field is the slope of a *random* network in the limit of many units.
The carousel is the slope of a gated cell with its gates at their biases.
"""

from math import erfc, exp, pi, sqrt

import numpy as np
from numpy.typing import NDArray

from gradpath.core.activations import Activation, activate, derivative

# Equispaced nodes on ±9 standard deviations. For analytic integrands the trapezoidal rule converges
# geometrically (Trefethen & Weideman 2014), here as exp(−π²/(h√q)) with the spacing h = 0.015,
# because tanh has poles at ±iπ/2: to rounding up to √q = 18. Gauss-Hermite with 200 nodes (spacing
# 0.16) has lost all but one digit there.
NODES = np.linspace(-9, 9, 1201)
WEIGHTS = np.exp(-(NODES**2) / 2) / np.exp(-(NODES**2) / 2).sum()


def log_bound(recurrent: NDArray, kind: Activation) -> float:
    """ln(σ_max(W_hh) max φ′). Since ‖∂L/∂H_{t-1} − ∂⁺L/∂H_{t-1}‖ ≤ σ_max(W_hh) max φ′ ‖∂L/∂H_t‖
    (Pascanu et al. 2013, section 2.1), the gradient must vanish if this value is negative, and may
    explode if it is positive.
    """
    return _log(float(np.linalg.norm(recurrent.astype(np.float64), 2)) * kind.steepest)


def log_radius(recurrent: NDArray, kind: Activation) -> float:
    """ln(ρ(W_hh) max φ′), where ρ is the largest modulus of an eigenvalue: the slope at long lags
    if every unit is at its steepest. For tanh and sigmoid max φ′ is φ′(0), which gives the slope
    near rest; for relu, whose φ′(0) is a convention, it gives the slope of active units.
    """
    return _log(float(np.abs(np.linalg.eigvals(recurrent.astype(np.float64))).max()) * kind.steepest)


def mean_field(
    recurrent: NDArray, kind: Activation, mean: NDArray, variance: NDArray, initial_state: float = 0.0
) -> NDArray:
    """Slope of ln ‖∂L/∂H_t‖ at every step, (T,): ½ ln(g² E[φ′(a_t)²]) with a_t ~ N(m_t, q_t) and

        q_t = g² E[φ(a_{t-1})²] + v_t
        g² = ‖W_hh‖²_F / H = H Var(W_hh)  where the weights have mean 0

    ``mean`` m and ``variance`` v (T,) those of the input part X_t W_xh + b_h over units and
    sequences (Sompolinsky et al. 1988; Poole et al. 2016, the length map, and Schoenholz et al.
    2017, χ, with the timesteps as layers). Exact for H → ∞, recurrent weights independent with mean
    0, and inputs that are Gaussian over the units. E[φ²] is the second moment and not the variance,
    so sigmoid units, whose mean is not 0, need nothing more: their mean reaches the next step
    through weights of mean 0 and only adds to its variance.
    """
    gain = float(np.square(recurrent, dtype=np.float64).sum() / len(recurrent))
    second, slopes = initial_state * initial_state, np.empty(len(mean))
    for t, (m, v) in enumerate(zip(mean.tolist(), variance.tolist(), strict=True)):
        second, steepness = gaussian_moments(kind, m, gain * second + v)
        slopes[t] = 0.5 * _log(gain * steepness)
    return slopes


def gaussian_moments(kind: Activation, mean: float, variance: float) -> tuple[float, float]:
    """E[φ(a)²] and E[φ′(a)²] for a ~ N(mean, variance): by quadrature, and
    in closed form for relu.
    """
    deviation = sqrt(variance)
    if kind is Activation.relu:
        active, density = float(mean > 0), 0.0
        if deviation:
            ratio = mean / deviation
            active, density = erfc(-ratio / sqrt(2)) / 2, exp(-ratio * ratio / 2) / sqrt(2 * pi)
        # Far below the corner the two terms cancel, and rounding may make the difference negative.
        return max((mean * mean + variance) * active + mean * deviation * density, 0.0), active
    points = mean + deviation * NODES
    steepness = derivative(kind, points)
    activate(kind, points, points)
    return float(WEIGHTS @ points**2), float(WEIGHTS @ steepness**2)


def log_keep(bias: float | NDArray) -> NDArray:
    """ln σ(b), the slope of a carousel whose gate is held open by its bias alone; without
    cancellation for large b, where σ(b) rounds to 1.
    """
    return -np.logaddexp(0.0, -np.asarray(bias, np.float64))


def horizon(forget_bias: float | NDArray) -> NDArray:
    """−1/ln σ(b_f), in steps, elementwise: the lag at which the carousel keeps 1/e of its gradient
    if the forget gate stays at its bias (Tallec & Ollivier 2018, section 2, for the time constant
    of a gate). It is about e^b_f for large b_f.
    """
    with np.errstate(divide="ignore"):
        return -1 / log_keep(forget_bias)


def carousel(log_gate: NDArray, lags: NDArray) -> NDArray:
    """ln of the factor by which the carousel scales ‖∂L/∂C‖ over each of ``lags`` (L,), as (L,):
    ½ ln mean_j f_j^(2l), the root mean square over units with the gate values f_j, ln f_j =
    ``log_gate`` (H,), if all units have an equal share at lag 0. Equal gates give the line l ln f,
    different ones (chrono) a curve that flattens.
    """
    with np.errstate(invalid="ignore"):
        powers = np.where(lags[:, None] == 0, 0.0, 2 * lags[:, None] * log_gate)
    return 0.5 * (np.logaddexp.reduce(powers, axis=1) - np.log(len(log_gate)))


def slope(lag: NDArray, curve: NDArray, first: int, last: int) -> float:
    """Least-squares slope of ``curve`` (T,) against ``lag`` over first ≤ lag ≤ last; NaN where it
    is not finite.
    """
    fitted = (lag >= first) & (lag <= last)
    x, y = lag[fitted] - lag[fitted].mean(), curve[fitted]
    return float(x @ y / (x @ x)) if np.isfinite(y).all() else float("nan")


def _log(value: float) -> float:
    with np.errstate(divide="ignore"):
        return float(np.log(value))
