"""The gradient at every node of the cell's computational graph, at every timestep."""

from dataclasses import dataclass

import numpy as np

from gradpath.instruments import Instrument
from gradpath.records import Measurement, Trace
from gradpath.scaled import Scaled


@dataclass
class NodeGradNorm(Instrument):
    """log10 ‖∂L/∂n_t‖_F of every node n of a step, the total derivative: the states (``H``, ``C``), what the gates give
    out (``I``, ``F``, ``O``, ``G``; GRU ``Z``, ``R``, ``N``), and the pre-activations (``a_i`` … by the blocks' names).

    A gate's derivative is as it acts in step t: ∂L/∂F_t = δC_t ∘ C_{t-1}, ∂L/∂I_t = δC_t ∘ G_t, ∂L/∂G_t = δC_t ∘ I_t,
    ∂L/∂O_t = δH_t ∘ tanh C_t (the adjoints of Gers et al. 2000, eqs. 2–7). (T, names); -inf is a true zero.
    """

    per_timestep = True

    def measure(self, trace: Trace) -> Measurement:
        columns: dict[str, Scaled] = {}
        cell = trace.tape.cell
        for layer, tape in enumerate(trace.tape.layers):
            prefix, delta = cell.prefix(layer), trace.deltas[layer]
            states = {name: trace.states[prefix + name] for name in cell.states}
            # In float64, in which the product of an adjoint and a gate cannot underflow before its factors do.
            adjoint = {name: state.array.astype(np.float64) for name, state in states.items()}
            nodes = {name: Scaled(value, delta.exponent) for name, value in cell.nodes(tape, adjoint).items()}
            inner = {f"a_{name}": delta.blocks(slice(k, k + 1)) for k, name in enumerate(cell.blocks)}
            columns |= {prefix + name: value for name, value in (states | nodes | inner).items()}
        read = [value.aligned_by_step.log10_norm() for value in columns.values()]
        return Measurement(tuple(columns), np.stack(read, axis=-1))
