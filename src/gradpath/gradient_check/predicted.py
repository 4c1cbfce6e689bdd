"""The columns that the instruments ``reach`` and ``theory`` must record, computed from their
definitions by other methods than the instruments use.

Every quantity is computed twice, from the reference value and from its moved twin, which differs by
rounding alone; the difference of the two is the uncertainty of the result.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from gradpath.core import bptt
from gradpath.core.activations import Activation
from gradpath.core.trace import Trace
from gradpath.engine.workspace import Workspace
from gradpath.gradient_check.columns import Column
from gradpath.gradient_check.declared import PHI
from gradpath.gradient_check.pointwise import HELD, Derivative
from gradpath.gradient_check.reference import Reference
from gradpath.gradient_check.textbook import LOG10_2, Stepwise, log10_norm
from gradpath.instruments import Instrument

SQUARINGS = 40
"""m of W^(2^m) in Gelfand's formula: at 2^40 factors, what the first norms add to the logarithm of
one factor is below rounding.
"""
NODES, WEIGHTS = np.polynomial.legendre.leggauss(16)
PANELS, FURTHEST = 150, 12
"""Points that divide the range of an integral on each side of its centre (one Gauss-Legendre rule
between two of them), and the standard deviations from the mean at which the range ends.
"""
QUADRATURE = 18
"""Standard deviation of a pre-activation up to which ``theory.mean_field`` is right to rounding, as
it promises.
"""


def reach(reference: Reference, trace: Trace, _: Instrument) -> Iterator[tuple[str, Column]]:
    """The columns of ``reach``, from the textbook's backward pass of the last scored step's loss
    alone: the reach in the carrier of the top layer, the decades lost in the bottom layer's.
    """
    tape, last = reference.tape, int(reference.tape.scored[-1])
    last_step = reference if len(tape.scored) == 1 else reference.of_step(len(tape.scored) - 1)
    bottom, top = (last_step.layers[index].states[reference.cell.carrier] for index in (0, -1))
    bottom_curve, moved_bottom_curve = _curves_by_lag(bottom, last)
    top_curve, moved_top_curve = _curves_by_lag(top, last)
    eps = float(np.finfo(tape.outputs.dtype).eps)
    definite = not any(np.isnan(layer.to_carrier).any() for layer in last_step.layers)
    value, censored = _efold_lag(top_curve)
    moved_value, moved_censored = _efold_lag(moved_top_curve)
    # Every value of the curve may be off by rounding; the slower the curve falls, the more this
    # moves the lag.
    slope = _slope(top_curve, value) * np.log(10)
    doubt = abs(value - moved_value) + 4 * eps * (1 / slope if slope else 1)
    yield "reach", Column(np.asarray(value), doubt, nan_expected=definite)
    yield "reach_censored", Column(np.asarray(censored), abs(censored - moved_censored) + float(doubt > 1))
    lost, moved_lost = _lost(bottom_curve), _lost(moved_bottom_curve)
    with np.errstate(invalid="ignore"):
        lost_doubt = np.nan_to_num(abs(lost - moved_lost)) + 4 * eps
    yield "decades_lost", Column(np.asarray(lost), lost_doubt, nan_expected=definite)


def _curves_by_lag(carrier: Stepwise, last: int) -> tuple[NDArray, NDArray]:
    """log10 a by the lag from the last scored step, where a is the norm of the carrier's adjoint:
    of the value, and of its moved twin.
    """
    value, moved = ((log10_norm(twin, 1) + carrier.exponent * LOG10_2)[last::-1] for twin in carrier.values)
    return value, moved


def _efold_lag(curve: NDArray) -> tuple[float, float]:
    """The lag at which ln a has fallen by 1, interpolated linearly between two lags, and 0; where
    the curve never falls so far, its largest lag and 1.
    """
    fall = [(float(a) - float(curve[0])) * np.log(10) for a in curve]
    if curve[0] == -np.inf or np.isnan(curve).any() or np.isposinf(curve).any():
        return np.nan, 0.0
    for lag in range(1, len(fall)):
        if fall[lag] <= -1:
            part = 0.0 if np.isinf(fall[lag]) else (-1 - fall[lag - 1]) / (fall[lag] - fall[lag - 1])
            return lag - 1 + part, 0.0
    return len(fall) - 1.0, 1.0


def _slope(curve: NDArray, lag: float) -> float:
    """|Δ log10 a| over the step in which the lag lies; 0 where the lag is not finite or the curve
    has a single value.
    """
    if not np.isfinite(lag) or len(curve) < 2:
        return 0.0
    index = min(int(lag), len(curve) - 2)
    difference = abs(float(curve[index + 1]) - float(curve[index]))
    return difference if np.isfinite(difference) else 0.0


def _lost(curve: NDArray) -> float:
    """The first value of the curve that is not a true zero, less the value at the largest lag."""
    if np.isnan(curve).any() or np.isposinf(curve).any():
        return np.nan
    first = next((float(a) for a in curve if a != -np.inf), None)
    return np.inf if first is None else first - float(curve[-1])


def theory(reference: Reference, trace: Trace, _: Instrument) -> Iterator[tuple[str, Column]]:
    """The columns of ``theory``, layer by layer."""
    last, length = int(reference.tape.scored[-1]), reference.tape.length
    for layer in range(reference.network.layers):
        kind = reference.cell.recurrence
        lines = _recurrence_lines(reference, layer, kind) if kind else _carousel_line(reference, layer)
        for name, (line, doubt) in lines.items():
            if name != "bound_margin":
                line = np.where(np.arange(length) <= last, line, -np.inf)
            yield reference.network.prefix(layer) + name, Column(line, np.nan_to_num(doubt, nan=np.inf, posinf=np.inf))


def _recurrence_lines(reference: Reference, layer: int, kind: Activation) -> dict[str, tuple[NDArray, NDArray]]:
    """The lines of a plain recurrence in decades, by name, each with its uncertainty."""
    last = int(reference.tape.scored[-1])
    recurrent, lags = reference.weights[layer].h.astype(np.float64), last - np.arange(reference.tape.length)
    steepest = np.log10(0.25 if kind is Activation.sigmoid else 1.0)
    eps, rng = float(np.finfo(np.float64).eps), np.random.default_rng(0)
    size = np.abs(recurrent).max() or 1.0
    with np.errstate(divide="ignore", invalid="ignore"):
        # σ_max² is the largest eigenvalue of WᵀW.
        sigma = np.log10(size) + np.log10(np.linalg.eigvalsh((recurrent / size).T @ (recurrent / size))[-1]) / 2
        sigma = sigma if recurrent.any() else -np.inf
        moved = [recurrent + 4 * eps * size * rng.choice([-1, 1], recurrent.shape) for _ in range(3)]
        radius, *moved_radii = (_log10_radius(w) for w in (recurrent, *moved))
        doubt = max(abs(moved_radius - radius) for moved_radius in moved_radii)
        mean, mean_doubt = _mean_field(reference, layer, kind, recurrent)
        lines = {
            "sigma_max_bound": (_constant(sigma + steepest, lags), 16 * eps * np.abs(lags) * len(recurrent)),
            "spectral_radius": (_constant(radius + steepest, lags), (doubt + 16 * eps) * np.abs(lags)),
            "mean_field": (mean, mean_doubt),
        }
        return lines | {"bound_margin": _margin(reference, layer, sigma + steepest)}


def _constant(slope: float, lags: NDArray) -> NDArray:
    return np.where(lags == 0, 0.0, lags * slope)


def _log10_radius(matrix: NDArray) -> float:
    """log10 of the spectral radius by Gelfand's formula, ρ = lim ‖W^k‖^{1/k}, with k = 2^m by
    squaring.
    """
    power, logarithm, weight = matrix.copy(), 0.0, 1.0
    for _ in range(SQUARINGS):
        size = float(np.linalg.norm(power))
        if not size:
            return -np.inf
        logarithm += weight * np.log10(size)
        power = (power / size) @ (power / size)
        weight /= 2
    return float(logarithm)


def _mean_field(reference: Reference, layer: int, kind: Activation, recurrent: NDArray) -> tuple[NDArray, NDArray]:
    """The mean-field line and its uncertainty; the moments of the Gaussian come from Gauss-Legendre
    rules, where ``theory.mean_field`` uses the trapezoidal rule.
    """
    weights, last = reference.weights[layer], int(reference.tape.scored[-1])
    inputs = reference.layer_inputs(layer).astype(np.float64) @ weights.x.astype(np.float64) + weights.b.astype(
        np.float64
    )
    gain = float(np.sum(recurrent * recurrent)) / len(recurrent)
    second, line, doubt = reference.network.initial_state**2, np.zeros(len(inputs)), np.zeros(len(inputs))
    reliable, slopes = True, []
    for entering in inputs:
        mean, spread = float(entering.mean()), float(np.mean((entering - entering.mean()) ** 2))
        deviation = np.sqrt(gain * second + spread)
        reliable = reliable and deviation <= QUADRATURE
        second, steep = _moments(kind, mean, float(deviation))
        slopes.append(0.5 * np.log10(gain * steep))
    for t in reversed(range(last)):
        line[t] = line[t + 1] + slopes[t + 1]
    # The inputs are summed in their own type; the rounding error of these sums is in every slope.
    eps = float(np.finfo(reference.tape.outputs.dtype).eps)
    moved = eps * (1 + np.abs(inputs).max()) * np.maximum(last - np.arange(len(line)), 0)
    doubt[:] = moved if reliable else np.inf
    return line, doubt


def _moments(kind: Activation, mean: float, deviation: float) -> tuple[float, float]:
    """E[φ²] and E[φ′²] under N(mean, deviation²); the range of integration is divided at the
    pre-activation 0, where relu has its corner and the other functions are steepest.
    """
    if not deviation:
        points, weights = np.array([mean]), np.ones(1)
    else:
        centre = float(np.clip(-mean / deviation, -FURTHEST, FURTHEST))
        edges = np.concatenate([np.linspace(-FURTHEST, centre, PANELS), np.linspace(centre, FURTHEST, PANELS)[1:]])
        half, middle = np.diff(edges)[:, None] / 2, (edges[1:] + edges[:-1])[:, None] / 2
        z = (middle + half * NODES).ravel()
        weights = (half * WEIGHTS).ravel() * np.exp(-z * z / 2) / np.sqrt(2 * np.pi)
        points = mean + deviation * z
    if kind is Activation.relu:
        slope = np.where(points > 0, 1.0, 0.0)
    else:
        steep = 1.0 if kind is Activation.tanh else 0.5
        slope = (steep / np.cosh(np.clip(steep * points, -350, 350))) ** 2  # tanh′ = sech², σ′ = (½ sech(a/2))²
    return float(weights @ PHI[kind](points) ** 2), float(weights @ slope**2)


def _margin(reference: Reference, layer: int, bound: float) -> tuple[NDArray, NDArray]:
    """The decades by which the adjoint that comes through W_hh stays below the bound, in the
    sequence where it comes nearest to the bound; and the uncertainty of this margin.
    """
    layer_reference = reference.layers[layer]
    total = layer_reference.states[reference.cell.output]
    recurrent = layer_reference.to_h
    margins = []
    for total_twin, recurrent_twin in zip(total.values, recurrent.values, strict=True):
        arrives = log10_norm(total_twin, 2) + total.exponent[:, None] * LOG10_2
        carried = log10_norm(recurrent_twin, 2) + recurrent.exponent[:, None] * LOG10_2
        margin = np.where(carried[:-1] == -np.inf, np.inf, bound + arrives[1:] - carried[:-1])
        margins.append(np.append(margin.min(axis=1), np.inf))
    value, moved = margins
    doubt = np.where(value == moved, 0, np.abs(value - moved)) + 4 * np.finfo(reference.tape.outputs.dtype).eps
    return value, doubt


def _carousel_line(reference: Reference, layer: int) -> dict[str, tuple[NDArray, NDArray]]:
    """The line of ∂C_t/∂C_{t-1} at fixed pre-activations, from the cell's own step with all weights
    0; and its uncertainty.
    """
    weights, cell = reference.weights[layer], reference.cell
    carrier = cell.states.index(cell.carrier)
    theta = reference.tape.theta[None].astype(np.float64)
    bias_only = list(reference.network.layer_weights(theta))[layer].only_biases()
    step = bptt.forward(cell, bias_only, np.zeros((1, 1, 1, len(weights.x))), Workspace()).seed(0)
    twins = Derivative(cell, step, bias_only, reference.exact).jacobian(0)[:, carrier, carrier - len(cell.states), 0]
    twins = twins.astype(np.longdouble)
    lags = np.maximum(int(reference.tape.scored[-1]) - np.arange(reference.tape.length), 0)
    with np.errstate(divide="ignore", invalid="ignore", under="ignore"):
        value, moved_value = (np.log10(np.mean(np.abs(f) ** (2 * lags[:, None]), axis=1)) / 2 for f in twins)
        # The smallest longdouble is about 10^-4932, so the mean square may underflow below -2400.
        doubt = np.where(value == moved_value, 0, np.abs(value - moved_value)) + np.where(value < -2400, np.inf, 0)
    if ((twins[0] != 0) & (np.abs(twins[0]) < HELD)).any():
        doubt[lags > 0] = np.inf
    return {"carousel": (value.astype(np.float64), doubt.astype(np.float64))}
