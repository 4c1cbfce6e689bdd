"""The gradient at every node of the cell's computational graph, at every timestep."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from gradpath.core.network import Network
from gradpath.core.scaled import Scaled
from gradpath.core.trace import Measurement, Trace
from gradpath.engine.partition import chunks
from gradpath.instruments import Instrument


@dataclass
class NodeGradNorm(Instrument):
    """log10 ‖∂L/∂n_t‖_F of every node n of a step, the total derivative: the states (``H``, ``C``),
    the outputs of the gates (``I``, ``F``, ``O``, ``G``; GRU ``Z``, ``R``, ``N``), and the
    pre-activations (``a_i`` … by the blocks' names).

    A gate's derivative is that of its effect in step t: ∂L/∂F_t = δC_t ∘ C_{t-1}, ∂L/∂I_t = δC_t ∘
    G_t, ∂L/∂G_t = δC_t ∘ I_t, ∂L/∂O_t = δH_t ∘ tanh C_t (the adjoints of Gers et al. 2000, eqs.
    2–7). (T, names); -inf is a true zero.
    """

    per_timestep = True

    def measure(self, network: Network, trace: Trace) -> Measurement:
        layers = range(network.layers)
        steps = chunks(trace.tape.length, trace.deltas[0].array[0].size)
        readings = [
            {name: node.log10_norm_by_step() for k in layers for name, node in _nodes(network, trace, k, rows)}
            for rows in steps
        ]
        values = [np.stack(list(columns.values()), axis=-1) for columns in readings]
        return Measurement(tuple(readings[0]), np.concatenate(values))


def _nodes(network: Network, trace: Trace, layer: int, rows: slice) -> Iterator[tuple[str, Scaled]]:
    """The gradient at each node of one layer at some steps."""
    cell = network.cell
    prefix, delta = network.prefix(layer), trace.deltas[layer].steps(rows)
    states = {name: trace.states[prefix + name].steps(rows) for name in cell.states}
    # The product is computed in float64, in which it cannot underflow before its factors do.
    adjoint = {name: state.array.astype(np.float64) for name, state in states.items()}
    gates = cell.nodes(trace.tape.layers[layer].steps(rows.start, rows.stop), adjoint)
    nodes = {name: Scaled(value, delta.exponent) for name, value in gates.items()}
    inner = {f"a_{name}": delta.blocks(slice(k, k + 1)) for k, name in enumerate(cell.blocks)}
    for name, value in (states | nodes | inner).items():
        yield prefix + name, value
