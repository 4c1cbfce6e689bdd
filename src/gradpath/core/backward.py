"""The backward pass through one layer: the adjoint of its states, and the gradient at its
pre-activations. The recursion is written out in :mod:`gradpath.core.bptt`.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradpath.core.activations import Activation, closed, mend_slope, slope_of_output
from gradpath.core.bptt import LayerWeights, parts, take_elementwise
from gradpath.core.cell import Cell
from gradpath.core.scaled import BAND_MAX, BAND_MIN, ZERO_EXPONENT, Scaled, add_direct, magnitude, renormalise
from gradpath.core.step import Step, StepAdjoint
from gradpath.core.tape import LayerTape
from gradpath.engine.gate_layout import as_gemm_operand, empty
from gradpath.engine.workspace import Workspace, repeated

CHUNK_ELEMENTS = 2**18
"""Elements of δa whose slopes are computed together: few calls, far less memory than the tape."""


@dataclass(frozen=True)
class LayerAdjoint:
    """``delta`` (T, S, B, n, H): the gradient at the pre-activations; ``states[s]`` (T, S, B, H):
    the total derivatives ∂L/∂s_t of the states s_1 … s_T.
    """

    delta: Scaled
    states: dict[str, Scaled]
    lost: NDArray
    """(S,) Has the network a unit so nearly closed that the adjoint behind it may underflow
    (:func:`gradpath.core.activations.closed`)?
    """


def backward(
    cell: Cell,
    weights: LayerWeights,
    tape: LayerTape,
    direct: Scaled,
    has_direct: NDArray | None = None,
    truncate: bool = False,
    receives: str | None = None,
    *,
    workspace: Workspace,
) -> LayerAdjoint:
    """The adjoint of a layer whose outputs H_1 … H_T have the immediate derivative ``direct`` =
    ∂⁺L/∂H_t (T, S, B, H).

    ``has_direct`` (T,), if known, says at which steps ``direct`` is not 0. ``receives`` names
    another state that ``direct`` belongs to instead of H. With ``truncate`` the adjoint does not
    pass through the gates to H_{t-1}; only the carrier path is left.
    """
    *shape, blocks, width = tape.gates.shape
    steps, dtype, buffers = shape[0], tape.gates.dtype, workspace.buffers
    adjoint = [buffers.empty((steps + 1, *shape[1:], width), dtype) for _ in cell.states]
    for row in adjoint:
        row[steps] = 0
    exponent = np.empty((steps + 1, *shape[1:]), np.int32)
    exponent[steps] = direct.exponent[-1]
    delta = empty(*shape, blocks, width, dtype=dtype, buffers=buffers)
    to_h = delta[..., cell.reads_h, :]
    by_gate = weights.h.reshape(*weights.h.shape[:-1], *to_h.shape[-2:])
    recurrent = np.ascontiguousarray(by_gate.swapaxes(-3, -2).swapaxes(-2, -1))
    groups, _, columns = as_gemm_operand(to_h).shape[-3:]
    recurrent_t = repeated(recurrent.reshape(*recurrent.shape[:-3], groups, columns, width), steps)
    truncated = truncate or cell.truncated
    elementwise = (weights.only_biases() if truncated else weights).elementwise_rows(cell, steps)
    direct_state = cell.states.index(receives or cell.output)
    if has_direct is None:
        has_direct = magnitude(direct.array.reshape(steps, -1), 1) > ZERO_EXPONENT
    has_direct = np.concatenate([[False], has_direct])  # index i: at H_i, and not at H_0
    if 2 * has_direct.sum() > steps:  # zeros are then added at the other steps too, so that the loop keeps one body
        has_direct[1:] = True
    length = min(max(1, CHUNK_ELEMENTS * steps // delta.size), steps)

    def sweep(part: int, rows: slice) -> BackwardSweep:
        part_tape = tape.sequences(rows)
        return BackwardSweep(
            cell,
            truncated,
            direct_state,
            part,
            recurrent_t,
            elementwise,
            part_tape,
            direct.sequences(rows),
            has_direct,
            [row[:, :, rows] for row in adjoint],
            exponent[:, :, rows],
            delta[:, :, rows],
            [buffers.empty_like(y, length) for _, _, y in cell.activations_used(part_tape)],
            length,
            np.zeros(shape[1], bool),
            workspace,
        )

    rows = parts(tape, workspace)
    sweeps = [sweep(part, sequences) for part, sequences in enumerate(rows)]  # the buffers serve a single thread
    workspace.for_each(lambda part, _: sweeps[part].run(), rows)
    return LayerAdjoint(
        Scaled(delta, exponent[1:]),
        {name: Scaled(row[1:], exponent[1:]) for name, row in zip(cell.states, adjoint, strict=True)},
        np.any([part_sweep.lost for part_sweep in sweeps], axis=0),
    )


@dataclass(frozen=True)
class BackwardSweep:
    """The backward pass of some sequences, from H_T to H_0. ``adjoint``, ``exponent`` and ``delta``
    of all T steps are filled in place. ``has_direct`` (T+1,) says at which H_i there is an
    immediate derivative, of the state of index ``direct_state``. ``slope_buffers`` take the slopes
    of ``length`` steps; ``lost`` (S,) is set as in :class:`LayerAdjoint`.
    """

    cell: Cell
    truncated: bool
    direct_state: int
    part: int
    recurrent_t: NDArray
    elementwise: list[NDArray]
    tape: LayerTape
    direct: Scaled
    has_direct: NDArray
    adjoint: list[NDArray]
    exponent: NDArray
    delta: NDArray
    slope_buffers: list[NDArray]
    length: int
    lost: NDArray
    workspace: Workspace

    def run(self) -> None:
        """From H_{i+1}, whose adjoint is complete, to H_i. Runs as few loops as possible: a loop
        ends where its body changes or where an adjoint leaves the band BAND_MIN … BAND_MAX.
        """
        cell, adjoint, exponent, direct = self.cell, self.adjoint, self.exponent, self.direct
        has_direct, steps, activations_used = self.has_direct, len(self.delta), cell.activations_used(self.tape)
        changes = [0, *(np.flatnonzero(has_direct[1:] != has_direct[:-1]) + 1)]
        uniform = bool((direct.exponent == direct.exponent[0]).all())
        first_state = 4 + len(self.elementwise) + len(cell.states)
        guarded = range(first_state, first_state + len(cell.states))
        if has_direct[steps]:
            add_direct(self.receiving(steps), exponent[steps], direct.array[-1], direct.exponent[-1])
        renormalise([row[steps] for row in adjoint], exponent[steps])
        for stop in range(steps, 0, -self.length):
            start = max(stop - self.length, 0)
            slopes = self.slopes([(kind, x[start:stop], y[start:stop]) for kind, x, y in activations_used])
            i = stop - 1
            while i >= start:
                adds = bool(has_direct[i] and uniform and (exponent[i + 1] == direct.exponent[0]).all())
                first = i if has_direct[i] and not adds else max(start, changes[bisect_right(changes, i) - 1])
                arrays = self.step_views(first, stop, [slope[first - start :] for slope in slopes])
                if adds:
                    arrays.append(direct.array[first - 1 : stop - 1])
                body = _StepBack(cell, self.truncated, self.direct_state if adds else None)
                loop = self.workspace.loop(body, arrays, i - first, guarded, self.part)
                reached, in_band = loop.run(arrays, i - first, -1, BAND_MIN, BAND_MAX)
                exponent[first + reached + 1 : i + 1] = exponent[i + 1]
                i = first + reached
                receives = has_direct[i + 1] and not adds
                if receives or not in_band:
                    if receives:
                        add_direct(self.receiving(i + 1), exponent[i + 1], direct.array[i], direct.exponent[i])
                    renormalise([row[i + 1] for row in adjoint], exponent[i + 1])

    def receiving(self, i: int) -> list[NDArray]:
        """The adjoints of the states of step i; first that of the state ``direct_state``."""
        remaining = (row[i] for k, row in enumerate(self.adjoint) if k != self.direct_state)
        return [self.adjoint[self.direct_state][i], *remaining]

    def step_views(self, start: int, stop: int, slopes: Sequence[NDArray]) -> list[NDArray]:
        """The arrays of :class:`_StepBack`, for steps ``start`` … ``stop`` − 1."""
        tape, to_h = self.tape, as_gemm_operand(self.delta[..., self.cell.reads_h, :])
        front = [row[start:stop] for row in (self.recurrent_t, to_h, self.delta, tape.gates, *self.elementwise)]
        leaving = [row[start + 1 : stop + 1] for row in self.adjoint]
        entering = [row[start:stop] for row in self.adjoint]
        states = [row[start:stop] for row in tape.states.values()]
        states += [row[start + 1 : stop + 1] for row in tape.states.values()]
        pre_and_saved = [row[start:stop] for row in (tape.pre, *tape.saved.values())]
        return [*front, *leaving, *entering, *states, *pre_and_saved, *slopes]

    def slopes(self, activations_used: Sequence[tuple[Activation, NDArray, NDArray]]) -> list[NDArray]:
        """φ′ of a chunk of steps. Outside the recorded loop, because ``mend_slope`` branches on the
        data.
        """
        kinds, arguments, values = zip(*activations_used, strict=True)
        slopes = [out[: len(y)] for out, y in zip(self.slope_buffers, values, strict=True)]
        arrays = [*values, *slopes]
        self.workspace.loop(_Slopes(kinds), arrays, 0, part=self.part).run(arrays, 0, len(slopes[0]))
        floor, least = float(np.finfo(slopes[0].dtype).tiny) * BAND_MAX, 1.0
        for kind, x, out in zip(kinds, arguments, slopes, strict=True):
            bound = mend_slope(kind, x, out) ** (out.shape[-2] if out.ndim > self.adjoint[0].ndim else 1)
            least *= bound * (bound if kind is Activation.sigmoid else 1)
        if least < floor:
            self.lost[:] |= closed(kinds, values, slopes, floor)
        return slopes


@dataclass(frozen=True)
class _Slopes:
    """φ′ of one step's nonlinearities, from their outputs."""

    kinds: tuple[Activation, ...]

    def __call__(self, rows: Sequence[NDArray]) -> None:
        for kind, y, out in zip(self.kinds, rows, rows[len(self.kinds) :], strict=False):
            slope_of_output(kind, y, out)


@dataclass(frozen=True)
class _StepBack:
    """One backward step, on ``BackwardSweep.step_views``; the last array, if ``adds_to`` is the
    index of a state, is the immediate derivative that is added to this state's adjoint.
    """

    cell: Cell
    truncated: bool
    adds_to: int | None

    def __call__(self, rows: Sequence[NDArray]) -> None:
        cell, n_states, n_saved = self.cell, len(self.cell.states), len(self.cell.saved)
        matrix, through_h, delta, gates, *step_rows = rows
        direct = step_rows.pop() if self.adds_to is not None else None
        elementwise = take_elementwise(cell, step_rows)
        d_leaving, d_entering, entering, leaving = (
            step_rows[k : k + n_states] for k in range(0, 4 * n_states, n_states)
        )
        pre, *saved_and_slopes = step_rows[4 * n_states :]
        s = Step(pre, gates, entering, leaving, saved_and_slopes[:n_saved], saved_and_slopes[n_saved:], elementwise)
        cell.step_backward(s, StepAdjoint(d_leaving, delta, d_entering))
        d_h = d_entering[0]
        if self.truncated and not cell.has_skip_to_h:
            d_h[...] = 0
        elif not self.truncated:
            first_group = 0 if cell.has_skip_to_h else 1  # the groups from here on are added to d_h
            if first_group:
                np.matmul(through_h[..., 0, :, :], matrix[..., 0, :, :], out=d_h)
            if first_group < matrix.shape[-3]:
                product = np.matmul(through_h[..., first_group:, :, :], matrix[..., first_group:, :, :])
                for group in range(product.shape[-3]):
                    d_h += product[..., group, :, :]
        if direct is not None and self.adds_to is not None:
            d_entering[self.adds_to] += direct
