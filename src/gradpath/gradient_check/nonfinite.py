"""Passes whose loss is not finite, of which nothing can be compared: is it the step's own fault?"""

import numpy as np
from numpy.typing import NDArray

from gradpath.core.tape import LayerTape, Tape
from gradpath.gradient_check.findings import Findings, Row, certain

NOT_COMPARED = "nothing compared: the loss is not finite"
NOT_FINITE = "step: finite where what enters is"
NOTHING = "a finite loss, without which nothing is checked"
ORDINARY = 16.0
"""Pre-activations and states up to this size are ordinary: products of a few of them and their
exponential are far from overflow in float32. Beyond, a configuration that blows up is no error.
"""


def explain(tape: Tape, findings: Findings) -> None:
    """The rows of such a pass: the first timestep of each layer at which the step makes of ordinary
    numbers one that is not finite.
    """
    findings.add(NOT_COMPARED, certain(0.0))
    for layer, layer_tape in enumerate(tape.layers):
        lost = _lost(layer_tape)
        if lost.any():
            t = int(lost.argmax())
            findings.add(NOT_FINITE, certain(np.where(np.arange(t + 1) == t, np.inf, 0)), layer)


def _lost(tape: LayerTape) -> NDArray:
    """(T,) Does the step make a number that is not finite where ordinary ones enter a unit?"""
    states = list(tape.states.values())
    ordinary = (np.abs(tape.pre) <= ORDINARY).all(axis=-2)
    for state in states:
        ordinary &= np.abs(state[:-1]) <= ORDINARY
    finite = np.isfinite(tape.gates).all(axis=-2)
    for values in [*(state[1:] for state in states), *tape.saved.values()]:
        finite &= np.isfinite(values)
    lost = ordinary & ~finite
    return lost.reshape(len(lost), -1).any(axis=1)


def check_some_compared(rows: list[Row]) -> None:
    """Adds a row that is wrong where no case could be compared: nothing has been checked."""
    if all(row.quantity in (NOT_COMPARED, NOT_FINITE) for row in rows):
        findings = Findings("every case", 1.0, rows)
        findings.add(NOTHING, certain(np.inf))
