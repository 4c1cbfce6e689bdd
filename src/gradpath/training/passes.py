"""How large the passes of a training are, and whether any is cut in two parts
(:mod:`gradpath.engine.partition`), which decides its last bits.
"""

import os

from gradpath.core.network import Network
from gradpath.engine.partition import ROWS, partition

EVALUATED, ELEMENTS = 512, 2**20
"""Sequences, and elements of their pre-activations, that are evaluated at once. 500 sequences of an
LSTM (T = 100, H = 64) in one pass took as long as 32 at a time on an idle machine, and two to six
times as long on a busy one, where processes wait for memory.
"""


def cores() -> int:
    """The cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def splits_large_passes(threads: int | None) -> bool:
    """Are large passes cut in two? Not with ``train.threads=1`` or on a single core. A run's bits
    depend on this alone, not on who else is running.
    """
    return (threads or cores()) > 1


def multiply_adds(network: Network, timesteps: int, batch_size: int, layer: int = 0) -> int:
    """Of the products of a layer's forward pass, T · B · (H + 1 + I) · n H."""
    cell, width = network.cell, network.cell.hidden_size
    inputs = width if layer else network.input_size
    return timesteps * batch_size * (width + 1 + inputs) * len(cell.blocks) * width


def evaluated_at_once(network: Network, timesteps: int) -> int:
    """The sequences of one pass over the evaluation set, a multiple of ``ROWS``, so that memory
    does not grow with it.
    """
    sequence = timesteps * network.cell.hidden_size * len(network.cell.blocks)
    return max(ROWS, min(EVALUATED, ELEMENTS // sequence // ROWS * ROWS))


def cut(network: Network, timesteps: int, batch_size: int, backward: bool) -> bool:
    """Is a pass over such a minibatch large enough to be cut: forward at a sequence of it, and
    ``backward``, in the weights' gradient, at a timestep?
    """
    layers = range(min(network.layers, 2))  # the first may have fewer inputs, the others are alike
    rows = [(batch_size, ROWS), *[(timesteps, 1)] * backward]
    products = [multiply_adds(network, timesteps, batch_size, layer) for layer in layers]
    return any(len(partition(length, size, multiple)) > 1 for length, multiple in rows for size in products)
