"""The linear readout Y_t = H_t W_hy + b_y at the scored timesteps of networks side by side,
forwards and backwards.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from gradpath.core.losses import Loss, evaluate
from gradpath.core.roles import READOUT
from gradpath.core.scaled import Scaled
from gradpath.core.tape import Batch, Tape
from gradpath.core.trace import ParameterSlice, WeightGradients
from gradpath.core.weight_gradients import step_gradients
from gradpath.engine.buffer_pool import BufferPool
from gradpath.engine.workspace import Workspace


@dataclass(frozen=True)
class OutputAdjoint:
    """∂L/∂Y (R, S, B, O) of consecutive ``seeds`` with the same ``scored`` timesteps (R,). It has
    one exponent for each network, because the 1/N of a mean over N positions may leave the band of
    :mod:`gradpath.core.scaled`.
    """

    scored: NDArray
    seeds: slice
    gradient: Scaled


def read_out(
    kind: Loss, weights: NDArray, bias: NDArray, top: NDArray, batches: Sequence[Batch]
) -> Iterator[tuple[NDArray, NDArray, float, NDArray]]:
    """For each network: scored timesteps (R,), Y (R, B, O), loss and ∂L/∂Y (R, B, O), from H_1 …
    H_T (T, S, B, H) of the top layer.
    """
    for scored, seeds in _group_by_scored_steps([np.flatnonzero(batch.mask.any(axis=1)) for batch in batches]):
        rows = _rows(scored)
        outputs = top[rows, seeds].swapaxes(0, 1) @ weights[seeds, None]
        outputs += bias[seeds, None, None]
        targets = stack_seeds([batch.targets[rows] for batch in batches[seeds]], 0)
        mask = stack_seeds([batch.mask[rows] for batch in batches[seeds]], 0)
        losses, gradients = evaluate(kind, outputs, targets, mask)
        for index, loss in enumerate(losses.tolist()):
            yield scored, outputs[index], loss, gradients[index]


def output_adjoints(tapes: Sequence[Tape]) -> Iterator[OutputAdjoint]:
    """∂L/∂Y of networks side by side, grouped by their scored timesteps."""
    for scored, seeds in _group_by_scored_steps([tape.scored for tape in tapes]):
        gradient = stack_seeds([tape.loss_gradient for tape in tapes[seeds]], 1)
        size = np.frexp(np.abs(gradient).max(axis=(0, 2, 3)))[1]
        exponent = np.empty(gradient.shape[:3], np.int32)
        exponent[:] = size[:, None]
        yield OutputAdjoint(scored, seeds, Scaled(np.ldexp(gradient, -size[:, None, None]), exponent))


def hidden_adjoint(
    weights: NDArray, top: NDArray, adjoints: Sequence[OutputAdjoint], buffers: BufferPool
) -> tuple[Scaled, NDArray]:
    """∂⁺L/∂H_t = ∂L/∂Y_t W_hyᵀ (T, S, B, H) of the top layer; and (T,) False where it is 0."""
    arriving = buffers.empty(top.shape, top.dtype)
    exponent = np.zeros(arriving.shape[:-1], np.int32)
    has_direct = np.zeros(len(top), bool)
    for adjoint in adjoints:
        exponent[:, adjoint.seeds] = adjoint.gradient.exponent[:1]
        rows = _rows(adjoint.scored)
        has_direct[rows] = True
        if len(adjoint.scored) < len(top):
            arriving[:, adjoint.seeds] = 0
        is_view = isinstance(rows, slice)
        out = arriving[rows, adjoint.seeds] if is_view else np.empty_like(arriving[rows, adjoint.seeds])
        if weights.shape[-1] == 1:  # a stack of products would be several times as slow here
            np.einsum("rsbo,sho->rsbh", adjoint.gradient.array, weights[adjoint.seeds], out=out)
        else:
            np.matmul(adjoint.gradient.array, weights[adjoint.seeds].swapaxes(-1, -2), out=out)
        if not is_view:
            arriving[rows, adjoint.seeds] = out
    return Scaled(arriving, exponent), has_direct


def gradients(workspace: Workspace, width: int, augmented_input: NDArray, adjoint: OutputAdjoint) -> WeightGradients:
    """The gradients of W_hy and b_y at the scored timesteps. [H_t, 1] is the front part of
    ``augmented_input`` (T, S, B, K) at step t + 1.
    """
    slices = (
        ParameterSlice(READOUT[:1], slice(0, width), slice(0, 1)),
        ParameterSlice(READOUT[1:], slice(width, None), slice(0, 1), reads=False),
    )
    delta = Scaled(adjoint.gradient.array[..., None, :], adjoint.gradient.exponent)
    multiplied = augmented_input[_rows(adjoint.scored), adjoint.seeds, :, : width + 1]
    return step_gradients(workspace, slices, adjoint.scored, multiplied, delta)


def stack_seeds(arrays: Sequence[NDArray], axis: int) -> NDArray:
    """The networks' arrays along a new axis; a view if there is only one."""
    if len(arrays) > 1:
        return np.stack(arrays, axis)
    return arrays[0][(slice(None),) * axis + (None,)]


def _group_by_scored_steps(scored: Sequence[NDArray]) -> Iterator[tuple[NDArray, slice]]:
    """Consecutive networks with the same scored timesteps: (the timesteps, the networks)."""
    start = 0
    for _, group in groupby(scored, key=np.ndarray.tobytes):
        members = list(group)
        yield members[0], slice(start, start + len(members))
        start += len(members)


def _rows(scored: NDArray) -> slice | NDArray:
    """Indices of timesteps, as a slice if they are consecutive, so that indexing gives a view."""
    return slice(scored[0], scored[-1] + 1) if len(scored) and scored[-1] - scored[0] < len(scored) else scored
