"""The credit of each step's loss at each use of the parameters, and the agreement of the uses."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from gradpath.core.network import Network
from gradpath.core.scaled import LOG10_2, ZERO_EXPONENT, Scaled, combined, magnitude, shift
from gradpath.core.step_loss import trace_of_step
from gradpath.core.trace import Factor, Measurement, Trace
from gradpath.instruments import Instrument
from gradpath.instruments.param_grad_norm import ParamGradNorm
from gradpath.schema.settings import setting

CHUNK_ELEMENTS = 2**22
"""Number of elements of per-step gradients that are formed at once."""


@dataclass
class Credit(Instrument):
    """θ are the parameters of all recurrent layers together, without the readout; row t, 1 ≤ t ≤ T:

    - ``credit/s``: log10 ‖∂L_s/∂θ_t‖, where L_s is the part of the batch mean L that comes from
      step s, so that Σ_s ∂L_s/∂θ_t = ∂L/∂θ_t; -inf is a true zero: t > s, or no sequence is scored
      at s. Each scored step costs a backward pass.
    - ``alignment/s``: cos(g_s, g_t), with g_t = ∂L/∂θ_t; 0 where one of the two is a true zero.
    - ``norm``: log10 ‖g_t‖, so that Σ_s Σ_t cos(g_s, g_t) ‖g_s‖ ‖g_t‖ = ‖Σ_t g_t‖² = ‖∂L/∂θ‖².

    (T, names). In a sequence of more than ``max_steps`` timesteps, s takes only that many values,
    evenly spaced from the first step to the last, which limits the number of backward passes.
    Memory: at most max(2^22, T·n·H) elements of per-step gradients are formed at once, and held
    twice, in float64; beside them there is the trace of one step's loss, as large as that of the
    batch.
    """

    max_steps: int = setting(128, "most timesteps s to tell apart, evenly spaced from the first to the last", ge=1)

    per_timestep = True

    def measure(self, network: Network, trace: Trace) -> Measurement:
        length = trace.tape.length
        steps = np.arange(length)
        if length > self.max_steps:
            steps = np.linspace(length - 1, 0, self.max_steps).round().astype(int)[::-1]
        cosines, norms = _alignment(trace, steps)
        names = [f"{kind}/{s + 1}" for kind in ("credit", "alignment") for s in steps]
        return Measurement((*names, "norm"), np.column_stack([_credit(network, trace, steps), cosines, norms]))


def _credit(network: Network, trace: Trace, steps: NDArray) -> NDArray:
    """(T, steps) log10 ‖∂L_s/∂θ_t‖."""
    values = np.full((trace.tape.length, len(steps)), -np.inf)
    rows = {int(s): row for row, s in enumerate(trace.tape.scored)}
    names = sum(len(factor.names) for factor in _recurrent(trace))
    workspace = network.workspace()
    for column, s in enumerate(steps.tolist()):
        if s in rows:
            norms = combined(
                ParamGradNorm().measure(network, trace_of_step(network, trace, rows[s], workspace)).values[:, :names]
            )
            values[: len(norms), column] = norms
    return values


def _alignment(trace: Trace, steps: NDArray) -> tuple[NDArray, NDArray]:
    """(T, steps) cos(g_s, g_t) and (T,) log10 ‖g_t‖."""
    # Each g_t is brought to about size 1 before it is multiplied, so that no product leaves
    # float64.
    size = np.max([(magnitude(delta.array, 2) + delta.exponent).max(axis=1) for delta in trace.deltas], axis=0)
    size = np.where(size < ZERO_EXPONENT // 2, 0, size)
    products, squares = np.zeros((len(size), len(steps))), np.zeros(len(size))
    for factor in _recurrent(trace):
        for part in _parts(factor):
            gradients = np.concatenate([_flat(step, size[rows]) for rows, step in part.per_step()])
            # Multiplied by itself where every step is asked for: NumPy then computes one triangle,
            # and the result is symmetric.
            products += gradients @ (gradients if len(steps) == len(size) else gradients[steps]).T
            squares += np.vecdot(gradients, gradients)
    roots = np.sqrt(squares)
    zero = (squares == 0)[:, None] | (squares == 0)[steps]
    with np.errstate(divide="ignore", invalid="ignore"):
        cosines = np.clip(products / (roots[:, None] * roots[steps]), -1, 1)
        return np.where(zero, 0, cosines), np.log10(roots) + size * LOG10_2


def _recurrent(trace: Trace) -> tuple[Factor, ...]:
    """The factors of the layers, without the readout's weights and bias."""
    return trace.factors[:-2]


def _parts(factor: Factor) -> Iterator[Factor]:
    """A factor in groups of input columns, each so small that the gradients of all T steps fit into
    the budget.
    """
    if factor.inputs is None:
        yield factor
        return
    length, _, blocks, width = factor.delta.array.shape
    run = max(1, CHUNK_ELEMENTS // (length * blocks * width))
    for start in range(0, factor.inputs.shape[-1], run):
        yield replace(factor, inputs=factor.inputs[..., start : start + run])


def _flat(step: Scaled, size: NDArray) -> NDArray:
    """Gradients (rows, n, K, H) as vectors (rows, n·K·H), divided by 2^size."""
    return shift(step.array, step.exponent - size[:, None]).reshape(len(size), -1)
