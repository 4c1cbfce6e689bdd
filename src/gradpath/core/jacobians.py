"""The dense Jacobians of a layer's step, and their products by QR, accurate at any length.

Let s_t be the concatenated states of a layer, [H_t] or [H_t, C_t], of n elements, and J_t =
∂s_t/∂s_{t-1} (n, n). The adjoint follows p_{t-1} = p_t J_t. A product of a thousand Jacobians
leaves float64 by hundreds of decades, and long before that its smaller singular values are lost
beside the largest. Re-orthonormalisation after every step (Benettin et al. 1980; Engelken et al.
2023, for recurrent networks) turns the product into one of triangular matrices, whose diagonals are
kept as logarithms.
"""

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from gradpath.core.activations import slope
from gradpath.core.network import Network
from gradpath.core.step import Step, StepAdjoint
from gradpath.core.tape import LayerTape, Tape

CHUNK_ELEMENTS = 2**20
"""Elements of the arrays in which the Jacobians of a chunk of steps are computed."""
CANCELS = 2.0**-30
"""Ratio of a pivot to the largest element of its column below which Householder's reflection would
lose that many digits of the pivot's element in Q.
"""
DEPENDENT = 1e-12
"""If a diagonal element of R is smaller than this times its largest element, the rank of the
Jacobian is determined.
"""


def step_jacobians(network: Network, tape: Tape, layer: int, sequence: int) -> Iterator[NDArray]:
    """J_t = ∂s_t/∂s_{t-1} (n, n) of one layer and sequence in float64, from the last step to the
    first.

    Element [i, j] is the derivative of the i-th state that leaves with respect to the j-th that
    enters. s is the concatenation of ``cell.states``, so that an LSTM's Jacobian is (2H, 2H); the
    Jacobian of H alone would not contain the forget gate. In a stack, it is the recurrence of the
    layer itself, with its input from the layer below held fixed.

    Row i is the vector-Jacobian product of the i-th unit vector. It comes from the cell's own
    ``step_backward``, with the unit vectors in the place of the sequences. Raises
    FloatingPointError where the network has blown up.
    """
    cell, width = network.cell, network.cell.hidden_size
    weights = list(network.layer_weights(tape.theta.astype(np.float64)))[layer]
    unit_weights = weights.only_biases() if cell.truncated else weights
    recurrent, elementwise = weights.h, unit_weights.elementwise_by_name(cell)
    layer_tape = _one_sequence(tape.layers[layer], sequence)
    # The states are checked too, because a NaN in them can leave the Jacobian finite with relu.
    _check_finite(layer_tape.pre, *layer_tape.states.values())
    slopes = [slope(*nonlinearity) for nonlinearity in cell.activations_used(layer_tape)]
    units = np.eye(len(cell.states) * width)
    chunk = max(1, CHUNK_ELEMENTS // (len(units) * width * len(cell.blocks)))
    for stop in range(tape.length, 0, -chunk):
        rows = slice(max(0, stop - chunk), stop)
        shape = (rows.stop - rows.start, len(units))
        d_leaving = [np.tile(unit, (shape[0], 1, 1)) for unit in np.split(units, len(cell.states), axis=1)]
        d_entering = [np.zeros((*shape, width)) for _ in cell.states]
        delta = np.empty((*shape, len(cell.blocks), width))
        s = Step(
            layer_tape.pre[rows],
            layer_tape.gates[rows],
            [state[:-1][rows] for state in layer_tape.states.values()],
            [state[1:][rows] for state in layer_tape.states.values()],
            [value[rows] for value in layer_tape.saved.values()],
            [values[rows] for values in slopes],
            elementwise,
        )
        cell.step_backward(s, StepAdjoint(d_leaving, delta, d_entering))
        if not cell.truncated:
            d_entering[0] += delta[..., cell.reads_h, :].reshape(*shape, recurrent.shape[1]) @ recurrent.T
        _check_finite(*d_entering)
        yield from np.concatenate(d_entering, axis=-1)[::-1]


def _check_finite(*arrays: NDArray) -> None:
    if not all(np.isfinite(array).all() for array in arrays):
        raise FloatingPointError("the network has blown up")


def _one_sequence(tape: LayerTape, sequence: int) -> LayerTape:
    """The tape of one sequence, in float64, with an axis B of length 1."""
    return tape.map(lambda value: value[:, sequence : sequence + 1].astype(np.float64))


def adjoint_qr(jacobians: Iterable[NDArray]) -> Iterator[NDArray]:
    """The triangular factors of (J_T … J_{T-l+1})ᵀ Q_0 = Q_l R_l … R_1, one for each of
    ``jacobians`` (n, n), which come from the last step to the first.

    R_l (r_l, r_{l-1}) has a positive diagonal; r_0 = n, and r_l is the rank of the product so far:
    a dead unit lowers it, and the missing singular values are true zeros. Q_0 is a random rotation,
    the same at every call, which sorts the directions by their growth for any network (Demmel,
    Dumitriu & Holtz 2007).

    The slopes of units may differ by more than 16 digits. So J is split into the sizes of its rows
    and a matrix with rows of equal size, which are applied one after the other. Each QR
    decomposition has its rows sorted by size, with which Householder's method keeps the small ones
    accurate (Cox & Higham 1998).
    """
    basis = np.zeros((0, 0))
    for step, jacobian in enumerate(jacobians):
        if not step:
            basis, _ = np.linalg.qr(np.random.default_rng(0).normal(size=jacobian.shape))
        lengths = np.abs(jacobian).max(axis=1)
        balanced = jacobian / np.where(lengths > 0, lengths, 1)[:, None]
        scaled_basis, first = _sorted_qr(lengths[:, None] * basis)
        basis, second = _sorted_qr(balanced.T @ scaled_basis)
        diagonal = np.diagonal(second)
        if (diagonal < DEPENDENT * np.abs(second).max(initial=0)).any():
            rank = min(_rank(balanced), int(np.argmin([*(diagonal > 0), False])))
            basis, second = basis[:, :rank], second[:rank]
        yield second @ first


def _sorted_qr(matrix: NDArray) -> tuple[NDArray, NDArray]:
    """Q and R with a positive diagonal in R. The rows are first sorted by size, and rows of 0 are
    left out.

    Where a pivot is tiny beside its column, the rows are sorted by the largest elements of the
    columns instead. A reflection computes the pivot's element of Q as a difference of numbers of
    size 1, so that an element of 10^-16 would have no correct digit. This element is all that is
    left of the gradient if the next Jacobian is 0 in the other directions.
    """
    size = np.abs(matrix).max(axis=1, initial=0)
    order = np.argsort(-size, kind="stable")[: np.count_nonzero(size)]
    elements = np.abs(matrix[order])
    largest = np.maximum.accumulate(elements[::-1])[::-1]
    if (np.diagonal(elements) < CANCELS * np.diagonal(largest)).any():
        order = order[_pivots(elements)]
    q, r = np.linalg.qr(matrix[order])
    sign = np.where(np.diagonal(r) < 0, -1.0, 1.0)
    basis = np.zeros((len(matrix), len(r)))
    basis[order] = q * sign
    return basis, r * sign[:, None]


def _pivots(elements: NDArray) -> NDArray:
    """An order of the rows in which the k-th row has the largest remaining element of column k,
    from the absolute values (m, n).
    """
    left, order = np.ones(len(elements), bool), []
    for column in elements.T[: len(elements)]:
        order.append(int(np.where(left, column, -1).argmax()))
        left[order[-1]] = False
    return np.array([*order, *np.flatnonzero(left)])


def _rank(matrix: NDArray) -> int:
    """The rank to rounding, with the columns scaled to one length."""
    lengths = np.abs(matrix).max(axis=0)
    values = np.linalg.svd(matrix / np.where(lengths > 0, lengths, 1), compute_uv=False)
    return int(np.sum(values > len(matrix) * np.finfo(np.float64).eps * values[0]))


def lyapunov_exponents(factors: Iterable[NDArray], warm_up: int = 0) -> NDArray:
    """λ_k = (1/N) Σ_t ln R_kk,t (n,) over the N steps after the first ``warm_up``, natural
    logarithm a step, in decreasing order; -inf for directions of true zeros. Their limit for N → ∞
    are the Lyapunov exponents.
    """
    total, steps = np.zeros(0), 0
    for steps, factor in enumerate(factors, 1):
        rank, size = factor.shape
        total = total if total.size else np.zeros(size)
        total[rank:] = -np.inf
        if steps > warm_up:
            total[:rank] += np.log(np.diagonal(factor))
    return np.sort(total)[::-1] / (steps - warm_up)
