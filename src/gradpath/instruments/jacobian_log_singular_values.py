"""The factor by which a change of the state survives a lag, in every direction."""

from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from gradpath.core.graded_product import products
from gradpath.core.jacobians import adjoint_qr, step_jacobians
from gradpath.core.network import Network
from gradpath.core.tape import Tape
from gradpath.core.trace import Measurement, Trace
from gradpath.instruments import Instrument
from gradpath.schema.settings import setting


@dataclass
class JacobianLogSingularValues(Instrument):
    """log10 σ_k(∂s_T/∂s_{T-l}), k = 1 … n in decreasing order, s = [H] or [H, C] of each layer,
    averaged over the first ``sequences`` of the minibatch, at lags l spaced evenly on a log axis
    from 1 to T − 1 (Pascanu et al. 2013, section 2.1, bounds σ_1; Pennington et al. 2017 require
    all of them to be 1). (names,), ``lag=10/sigma_1`` …

    Each value is right to ten digits of its own at any length (:mod:`gradpath.core.graded_product`)
    as far as the Jacobians determine it: where units are saturated, the last digits of the
    Jacobians may move the smaller values by decades. -inf is a true zero; NaN where the network has
    blown up. A reading costs as much as one of ``lyapunov_spectrum``, and at each lag an SVD by
    rotations.
    """

    sequences: int = setting(2, "sequences of the minibatch to average over", ge=1)
    lags: int = setting(12, "lags, spaced evenly on a log axis", ge=2)

    per_timestep = False

    def measure(self, network: Network, trace: Trace) -> Measurement:
        tape = trace.tape
        lags = np.unique(np.geomspace(1, max(1, tape.length - 1), self.lags).round().astype(int))
        columns: dict[str, float] = {}
        for layer in range(network.layers):
            count = min(self.sequences, tape.batch.mask.shape[1])
            values = np.mean([_read(network, tape, layer, sequence, lags) for sequence in range(count)], axis=0)
            for lag, row in zip(lags.tolist(), values.tolist(), strict=True):
                prefix = f"{network.prefix(layer)}lag={lag}/sigma_"
                columns |= {f"{prefix}{k}": value for k, value in enumerate(row, 1)}
        return Measurement(tuple(columns), np.array(list(columns.values())))


def _read(network: Network, tape: Tape, layer: int, sequence: int, lags: NDArray) -> NDArray:
    """(lags, n) singular values of one sequence."""
    selected = set(lags.tolist())
    factors = adjoint_qr(step_jacobians(network, tape, layer, sequence))
    try:
        logarithms = [
            product.log_singular_values()
            for lag, product in enumerate(islice(products(factors), max(selected)), 1)
            if lag in selected
        ]
    except FloatingPointError:
        return np.full((len(lags), len(network.cell.states) * network.cell.hidden_size), np.nan)
    return np.stack(logarithms) / np.log(10)
