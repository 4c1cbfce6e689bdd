"""The activations of the gates at each timestep; for the vanilla RNN, the saturation of its
units.
"""

from dataclasses import dataclass

import numpy as np

from gradpath.core.network import Network
from gradpath.core.trace import Measurement, Trace
from gradpath.instruments import Instrument

LOW, HIGH = 0.1, 0.9
QUANTILES = {"q10": 0.1, "q50": 0.5, "q90": 0.9}


@dataclass
class GateActivation(Instrument):
    """For each gate I, F, O over sequences and units, at every timestep: the mean, quantiles, and
    the saturated shares, < 0.1 and > 0.9 (Karpathy et al. 2015, section 4.2). For the RNN these are
    computed of φ′/max φ′, whose share < 0.1 counts the units that pass hardly any gradient back.
    (T, names)
    """

    per_timestep = True

    def measure(self, network: Network, trace: Trace) -> Measurement:
        columns = {}
        cell = network.cell
        for layer, tape in enumerate(trace.tape.layers):
            prefix = network.prefix(layer)
            for gate, values in cell.activations(tape).items():
                flat = values.reshape(len(values), -1)
                columns[f"{prefix}{gate}/mean"] = flat.mean(axis=1)
                # Sorted beforehand, since np.quantile's own partition takes three times as long.
                quantiles = np.quantile(np.sort(flat, axis=1), list(QUANTILES.values()), axis=1)
                columns |= {f"{prefix}{gate}/{q}": row for q, row in zip(QUANTILES, quantiles, strict=True)}
                columns[f"{prefix}{gate}/below_{LOW}"] = (flat < LOW).mean(axis=1)
                columns[f"{prefix}{gate}/above_{HIGH}"] = (flat > HIGH).mean(axis=1)
        return Measurement(tuple(columns), np.stack(list(columns.values()), axis=-1).astype(np.float64))

    def metric(self, name: str) -> str | None:
        return f"mean_gate_activation_by_lag/{name.removesuffix('/mean')}" if name.endswith("/mean") else None
