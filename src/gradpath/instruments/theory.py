"""The predictions of theory for the measured gradient, and the margin of the one theorem among
them.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradpath.core import bptt, theory
from gradpath.core.activations import Activation
from gradpath.core.network import Network
from gradpath.core.scaled import Scaled
from gradpath.core.trace import Measurement, Trace
from gradpath.engine.workspace import Workspace
from gradpath.instruments import Instrument


@dataclass
class Theory(Instrument):
    """Predicted log10 ‖∂L/∂H_t‖ relative to the last scored step, where it is 0; -inf after that
    step. (T, names), in a stack for every layer. For a cell of the form H_t = φ(a_t):
    ``sigma_max_bound``, ``spectral_radius``, ``mean_field``. For other cells: ``carousel``, the
    prediction for the carrier with its gate at the bias alone. See :mod:`gradpath.core.theory`.

    ``bound_margin``, beside the first three: the decades by which the gradient that reaches H_t
    from step t+1 stays below the σ_max bound, in the sequence that comes nearest; inf where no
    gradient arrives. Raises RuntimeError if a gradient exceeds the bound by more than rounding.
    Losses at every step do not disturb the margin, because the bound is compared with δa_{t+1}
    W_hhᵀ, without the direct part.

    Each reading costs a singular value and an eigenvalue decomposition of every W_hh, O(H³).
    """

    per_timestep = True

    def measure(self, network: Network, trace: Trace) -> Measurement:
        columns: dict[str, NDArray] = {}
        with np.errstate(over="ignore", invalid="ignore"):  # a network that has blown up gives NaN
            for layer in range(network.layers):
                kind = network.cell.recurrence
                lines = _recurrent(network, trace, layer, kind) if kind else _carousel(network, trace, layer)
                columns |= {network.prefix(layer) + name: line for name, line in lines.items()}
        return Measurement(tuple(columns), np.stack(list(columns.values()), axis=-1))


def _recurrent(network: Network, trace: Trace, layer: int, kind: Activation) -> dict[str, NDArray]:
    """The lines and the margin of one layer of H_t = φ(X_t W_xh + H_{t-1} W_hh + b_h), φ =
    ``kind``.
    """
    tape, names = trace.tape.layers[layer], network.parameters(trace.tape.theta)
    (unit,) = network.cell.blocks.values()
    w_xh, recurrent, b_h = (names[network.prefix(layer) + name] for name in unit[:3] if name)
    if not np.isfinite(recurrent).all():
        columns = ("sigma_max_bound", "spectral_radius", "mean_field", "bound_margin")
        return dict.fromkeys(columns, np.full(trace.tape.length, np.nan))
    parts = [(x @ w_xh + b_h).astype(np.float64) for x in tape.inputs]
    mean, variance = np.array([part.mean() for part in parts]), np.array([part.var() for part in parts])
    bound = theory.log_bound(recurrent, kind)
    slopes = {
        "sigma_max_bound": np.full(len(parts), bound),
        "spectral_radius": np.full(len(parts), theory.log_radius(recurrent, kind)),
        "mean_field": theory.mean_field(recurrent, kind, mean, variance, network.initial_state),
    }
    lines = {name: _cumulative(values, int(trace.tape.scored[-1])) for name, values in slopes.items()}
    return lines | {"bound_margin": _margin(network, trace, layer, recurrent, bound / np.log(10))}


def _cumulative(slopes: NDArray, last: int) -> NDArray:
    """The line of log10 at H_1 … H_T whose step from H_t to H_{t-1} is ``slopes`` at t."""
    line = np.full(len(slopes), -np.inf)
    line[: last + 1] = np.append(np.cumsum(slopes[last:0:-1])[::-1], 0.0) / np.log(10)
    return line


def _margin(network: Network, trace: Trace, layer: int, recurrent: NDArray, log10_bound: float) -> NDArray:
    """(T,) the smallest margin over the sequences, in decades, after a check of the bound for each
    sequence.
    """
    name = network.prefix(layer) + network.cell.output
    total, direct = (adjoints[name].log10_norm() for adjoints in (trace.states, trace.direct))
    delta = trace.deltas[layer]
    carried = Scaled(delta.array[:, :, 0].astype(np.float64) @ recurrent.T, delta.exponent).log10_norm()[1:]
    limit = log10_bound + total[1:]
    margin = np.where(np.isneginf(carried), np.inf, limit - carried)
    # The trace holds a sum that includes the direct part; by the triangle inequality the recurrent
    # part is at most this.
    excess = total[:-1] - np.logaddexp(direct[:-1] * np.log(10), limit * np.log(10)) / np.log(10)
    # The logarithms round too, in float64; the rounding grows with their distance from 0.
    furthest = np.fmax(np.abs(limit), np.where(np.isfinite(direct[:-1]), np.abs(direct[:-1]), 0))
    logarithm_rounding = 8 * np.finfo(np.float64).eps * (1 + furthest)
    tolerance = _tolerance(recurrent, trace.states[name].array.dtype) + logarithm_rounding
    worst = np.fmax(-margin, excess)
    if (worst > tolerance).any():
        t, b = np.argwhere(worst > tolerance)[-1]
        raise RuntimeError(
            f"not the gradient of this network: ‖∂L/∂{name}‖ = 10^{total[t, b]:.6g} at timestep {t + 1}, sequence {b}, "
            f"exceeds the bound σ_max(W_hh) max φ′ = 10^{log10_bound:.6g} times that of the step after, "
            f"10^{total[t + 1, b]:.6g}, and the direct part 10^{direct[t, b]:.6g} by {worst[t, b]:.3g} decades, where "
            f"rounding explains {tolerance[t, b]:.1g}"
        )
    return np.append(margin.min(axis=1), np.inf)


def _tolerance(recurrent: NDArray, dtype: np.dtype) -> float:
    """Decades that rounding can add: |fl(δ Wᵀ) − δ Wᵀ| ≤ H ε |δ| |Wᵀ| elementwise (Higham 2002,
    section 3.5), and therefore at most H ε ‖W‖_F/σ_max of the bound; and a few ε for φ′, its
    product and the norms.
    """
    largest = np.linalg.norm(recurrent, 2)
    spread = np.linalg.norm(recurrent) / largest if largest else 1.0
    return float(np.log10(1 + (len(recurrent) * spread + 8) * np.finfo(dtype).eps))


def _carousel(network: Network, trace: Trace, layer: int) -> dict[str, NDArray]:
    """The line of one layer of a gated cell. The gate at its bias alone is the gate of a step in
    which all weights are 0, which holds for any cell, its ablations and frozen gates.
    """
    cell, last = network.cell, int(trace.tape.scored[-1])
    weights = list(network.layer_weights(trace.tape.theta[None].astype(np.float64)))[layer]
    bias_only = weights.only_biases()
    step = bptt.forward(cell, bias_only, np.zeros((1, 1, 1, weights.x.shape[1])), Workspace())
    gate = np.broadcast_to(cell.carrier_gain(step), (1, 1, 1, cell.hidden_size))[0, 0, 0]
    line = np.full(trace.tape.length, -np.inf)
    with np.errstate(divide="ignore"):
        line[: last + 1] = theory.carousel(np.log(np.abs(gate)), np.arange(last + 1)[::-1]) / np.log(10)
    return {"carousel": line}
