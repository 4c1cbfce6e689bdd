"""The lag over which the gradient reaches, as one number."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradpath.core.network import Network
from gradpath.core.step_loss import states_of_step
from gradpath.core.trace import Measurement, Trace
from gradpath.instruments import Instrument


@dataclass
class Reach(Instrument):
    """``reach``: the lag l, in steps, at which a(l) = ‖∂L_s/∂S_{s−l}‖_F has first fallen to a(0)/e.
    Here s is the last scored timestep, L_s its part of the loss alone, and S the carrier of the top
    layer (C of the LSTM, H of the others); the derivative is total, the norm is over sequences and
    units. Between steps log a is interpolated linearly, so that a(l) = a(0) g^l has the reach −1/ln
    g, the time constant of the exponential. A fall to a true zero is immediate.

    The curve is that of the carrier, because the gradient that the loss sends into H_s goes back
    through C_s, all but the output gate's part. A norm of H and C together would not do: C_s would
    add to a(0) only the part that H_s has passed on to it, and the loss of size in this one passage
    would count as a fall. With W_·h = 0 and O_s(1 − tanh² C_s) = ½ the reach would be 1 − ½ ln 5 ≈
    0.2 times −1/ln F.

    Where a stays above a(0)/e, ``reach`` is the largest lag, s − 1, and ``reach_censored`` is 1;
    otherwise 0. NaN: a(0) is a true zero, or a is not finite where it would have fallen.

    ``decades_lost``: log10 ‖∂L_s/∂S_s‖ / ‖∂L_s/∂S_1‖ of the carrier of the *bottom* layer, where
    the inputs enter; see :func:`decades_lost`. (names,)
    """

    per_timestep = False

    def measure(self, network: Network, trace: Trace) -> Measurement:
        tape = trace.tape
        states = states_of_step(network, trace, len(tape.scored) - 1)

        def curve(layer: int) -> NDArray:
            carrier = network.prefix(layer) + network.cell.carrier
            return states[carrier].log10_norm_by_step()[tape.scored[-1] :: -1]

        values = [*reach(curve(network.layers - 1)), decades_lost(curve(0))]
        return Measurement(("reach", "reach_censored", "decades_lost"), np.array(values))

    def metric(self, name: str) -> str | None:
        return "train/reach" if name == "reach" else None


def reach(curve: NDArray) -> tuple[float, float]:
    """(lag, censored) at which a curve of log10 values over the lag has fallen by log10 e."""
    if not np.isfinite(curve[0]):
        return np.nan, 0.0
    lost = curve[0] - curve
    if np.isnan(curve).any() or np.isposinf(curve).any():
        return np.nan, 0.0
    fallen = np.flatnonzero(~(lost < np.log10(np.e)))
    if not fallen.size:
        return float(len(curve) - 1), 1.0
    upper, lower = lost[fallen[0] - 1 : fallen[0] + 1]
    return float(fallen[0] - 1 + (np.log10(np.e) - upper) / (lower - upper)), 0.0


def decades_lost(curve: NDArray) -> float:
    """Decades that a curve of log10 values over the lag loses from its first value to its last:
    negative where the curve rises, inf where it ends in a true zero (-inf). True zeros at the start
    are skipped; they occur in the bottom layer of a stack whose upper gates are closed at the last
    step. NaN where the curve holds NaN or +inf.
    """
    if np.isnan(curve).any() or np.isposinf(curve).any():
        return np.nan
    nonzero = curve[curve > -np.inf]
    return float(nonzero[0] - curve[-1]) if nonzero.size else np.inf
