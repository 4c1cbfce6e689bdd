"""The columns that the instruments must have recorded. For the instruments of gradpath they follow
from the definition in the docstring and the textbook's gradients. For every other instrument, and
for those whose reading is a rule and no norm, they are the instrument's own reading of the
textbook's passes in the place of the network's.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from gradpath.core.trace import Measurement, Trace
from gradpath.gradient_check import columns, derived, predicted, surface
from gradpath.gradient_check.columns import Column, equal_or_nan
from gradpath.gradient_check.findings import Errors, certain, worst
from gradpath.gradient_check.reference import Reference
from gradpath.instruments import Instrument
from gradpath.schema.discovery import unit_name

Expectation = Callable[[Reference, Trace, Instrument], Iterator[tuple[str, Column]]]
EXPECTED: dict[str, Expectation] = {
    "param_grad_norm": columns.param_grad_norm,
    "state_grad_norm": columns.state_grad_norm,
    "grad_norm": columns.grad_norm,
    "gate_activation": columns.gate_activation,
    "node_grad_norm": columns.node_grad_norm,
    "path_grad_norm": columns.path_grad_norm,
    "clip_scale": columns.clip_scale,
    "clipping_ledger": derived.clipping_ledger,
    "counterfactual": derived.counterfactual,
    "parameter_value": columns.parameter_value,
    "lyapunov_spectrum": derived.lyapunov,
    "jacobian_log_singular_values": derived.singular_values,
    "counterfactual_loss": derived.counterfactual_loss,
    "credit": derived.credit,
    "reach": predicted.reach,
    "theory": predicted.theory,
    "loss_surface": surface.loss_surface,
}
"""The expected columns, by the name of the instrument."""


def errors(reference: Reference, trace: Trace, instrument: Instrument, reading: Measurement) -> tuple[str, Errors]:
    """The errors of an instrument's reading: at every timestep the largest error of its columns
    (T,), or, for a reading of the whole step, the largest of all (); and the column that has the
    largest.
    """
    expectation = EXPECTED.get(unit_name(instrument))
    if expectation is None:
        return "", _by_stand_in(reference, trace, instrument, reading)
    expected = dict(expectation(reference, trace, instrument))
    if tuple(expected) != reading.names:
        return "names", certain(np.full(len(reading.values) if instrument.per_timestep else (), np.inf))
    with np.errstate(invalid="ignore"):
        column_errors = [column.errors(reading.values[..., index]) for index, column in enumerate(expected.values())]
    largest = int(np.argmax([column_error.excess.max() for column_error in column_errors]))
    return reading.names[largest], worst(column_errors)


def _by_stand_in(reference: Reference, trace: Trace, instrument: Instrument, reading: Measurement) -> Errors:
    """The instrument's readings of the textbook's own trace and of its moved twin."""
    readings = []
    for network, stand_in in reference.stand_ins:
        trained = trace.trained
        if trained is not None:
            trained = stand_in.gradient if trained is trace.gradient else network.without_readout(stand_in)
        dressed = replace(stand_in, clip_scale=trace.clip_scale, applied=trace.applied, trained=trained)
        try:
            readings.append(instrument.measure(network, dressed))
        except RuntimeError:  # the instrument may refuse the moved twin, as ``theory`` does at an impossible gradient
            if not readings:
                raise
            readings.append(readings[0])
    value, moved = (measurement.values for measurement in readings)
    if readings[0].names != reading.names or value.shape != reading.values.shape:
        return certain(np.inf)
    with np.errstate(invalid="ignore"):
        error, doubt = np.abs(reading.values - value), np.abs(moved - value)
    error = np.where(equal_or_nan(reading.values, value), 0, error)
    doubt = np.where(equal_or_nan(moved, value), 0, doubt)
    if any(np.isnan(layer.to_carrier).any() for layer in reference.layers):  # a step may leave ∂H_t/∂C_t open
        error = np.where(np.isnan(value), 0, error)
    size = np.maximum(1, np.abs(np.nan_to_num(value)))
    relative = Errors(error / size, np.nan_to_num(doubt, nan=np.inf) / size)
    if instrument.per_timestep and value.ndim > 1:
        return worst([Errors(*columns) for columns in zip(*(np.moveaxis(x, -1, 0) for x in relative), strict=True)])
    return relative.largest
