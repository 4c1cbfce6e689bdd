"""What the gradient would be if a gate of the trained network were held: a causal test beside the decomposition."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from gradpath.instruments import Instrument
from gradpath.records import Measurement, Tape, Trace


@dataclass
class Counterfactual(Instrument):
    """log10 ‖∂L/∂H_t‖_F (and C_t) of the same θ and minibatch, measured again without training: ``factual/C`` as
    it is; ``F=1/C``, ``F=0.5/C``, ``I=1/C``, ``O=1/C`` with a gate held, forward and backward; ``truncated/C`` with
    the forward pass as it is and the adjoint cut at the gates (Hochreiter & Schmidhuber 1997, appendix A.1). The
    GRU: ``Z=1``, ``Z=0.5``, ``R=1``. (T, names); -inf is a true zero.
    """

    per_timestep = True

    def measure(self, trace: Trace) -> Measurement:
        columns = {f"factual/{state}": adjoint for state, adjoint in trace.states.items()}
        for name, tape in held(trace):
            states = tape.network.backward(tape.theta, tape).states
            columns |= {f"{name}/{state}": adjoint for state, adjoint in states.items()}
        read = [adjoint.aligned_by_step.log10_norm() for adjoint in columns.values()]
        return Measurement(tuple(columns), np.stack(read, axis=-1))


def held(trace: Trace) -> Iterator[tuple[str, Tape]]:
    """(name, forward pass) of every counterfactual of the cell, on the θ and the minibatch of the trace."""
    tape = trace.tape
    for name, cell in tape.cell.counterfactuals().items():
        yield name, replace(tape.network, cell=cell).forward(tape.theta, tape.batch)
