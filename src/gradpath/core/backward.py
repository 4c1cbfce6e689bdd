"""The way back through one layer: the adjoint of its states, and the gradient at its
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
from gradpath.core.scaled import HIGH, LOW, ZERO_EXPONENT, Scaled, add_direct, magnitude, renormalise
from gradpath.core.step import Step, StepAdjoint
from gradpath.core.tape import LayerTape
from gradpath.engine.gate_layout import as_gemm_operand, empty
from gradpath.engine.workspace import Workspace, repeated

CHUNK_ELEMENTS = 2**19
"""Elements of δa in a chunk of steps whose slopes are computed together: few calls, and far less
than the tape.
"""


@dataclass(frozen=True)
class LayerAdjoint:
    """``delta`` (T, S, B, n, H) at the pre-activations; ``states[s]`` (T, S, B, H) total
    derivatives of H_1 … H_T.
    """

    delta: Scaled
    states: dict[str, Scaled]
    lost: NDArray
    """(S,) Has the network a unit so far closed that the type may not hold what gets through
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
    """The adjoint of a layer whose outputs H_1 … H_T receive ``direct`` = ∂⁺L/∂H_t (T, S, B, H), 0
    but at the steps of ``has_direct`` (T,), if these are known; or the state ``receives`` in their
    place. With ``truncate`` nothing passes through the gates to the past, and what remains is the
    highway alone.
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
    by_block = weights.h.reshape(*weights.h.shape[:-1], *to_h.shape[-2:])
    recurrent = np.ascontiguousarray(by_block.swapaxes(-3, -2).swapaxes(-2, -1))
    groups, _, columns = as_gemm_operand(to_h).shape[-3:]
    recurrent_t = repeated(recurrent.reshape(*recurrent.shape[:-3], groups, columns, width), steps)
    truncated = truncate or cell.truncated
    elementwise = (weights.only_biases() if truncated else weights).elementwise_rows(cell, steps)
    into = cell.states.index(receives or cell.output)
    if has_direct is None:
        has_direct = magnitude(direct.array.reshape(steps, -1), 1) > ZERO_EXPONENT
    has_direct = np.concatenate([[False], has_direct])  # at H_i?
    if 2 * has_direct.sum() > steps:  # then 0 is added where nothing arrives, and the loop need not change its body
        has_direct[1:] = True
    length = min(max(1, CHUNK_ELEMENTS * steps // delta.size), steps)

    def sweep(part: int, rows: slice) -> BackwardSweep:
        some = tape.sequences(rows)
        return BackwardSweep(
            cell,
            truncated,
            into,
            part,
            recurrent_t,
            elementwise,
            some,
            direct.sequences(rows),
            has_direct,
            [row[:, :, rows] for row in adjoint],
            exponent[:, :, rows],
            delta[:, :, rows],
            [buffers.empty_like(y, length) for _, _, y in cell.nonlinear(some)],
            length,
            np.zeros(shape[1], bool),
            workspace,
        )

    rows = parts(tape, workspace)
    sweeps = [sweep(part, some) for part, some in enumerate(rows)]  # here, because buffers serve one thread
    workspace.for_each(lambda part, _: sweeps[part].run(), rows)
    return LayerAdjoint(
        Scaled(delta, exponent[1:]),
        {name: Scaled(row[1:], exponent[1:]) for name, row in zip(cell.states, adjoint, strict=True)},
        np.any([one.lost for one in sweeps], axis=0),
    )


@dataclass(frozen=True)
class BackwardSweep:
    """The way of some sequences from H_T back to H_0. ``adjoint``, ``exponent`` and ``delta``, of
    all T steps, are filled in place; ``has_direct`` (T+1,) says at which H_i something arrives
    directly, at the state of index ``into``, ``slope_buffers`` take the slopes of a chunk of steps,
    ``lost`` (S,) says where they come to too little for the type.
    """

    cell: Cell
    truncated: bool
    into: int
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
        """From H_{i+1}, whose adjoint is whole, to H_i, in as few loops as may be: one ends where
        the body changes or an adjoint leaves its band.
        """
        cell, adjoint, exponent, direct = self.cell, self.adjoint, self.exponent, self.direct
        has_direct, steps, nonlinear = self.has_direct, len(self.delta), cell.nonlinear(self.tape)
        changes = [0, *(np.flatnonzero(has_direct[1:] != has_direct[:-1]) + 1)]
        uniform = bool((direct.exponent == direct.exponent[0]).all())
        first_state = 4 + len(self.elementwise) + len(cell.states)
        entering = range(first_state, first_state + len(cell.states))
        if has_direct[steps]:
            add_direct(self.receiving(steps), exponent[steps], direct.array[-1], direct.exponent[-1])
        renormalise([row[steps] for row in adjoint], exponent[steps])
        for stop in range(steps, 0, -self.length):
            start = max(stop - self.length, 0)
            slopes = self.slopes([(kind, x[start:stop], y[start:stop]) for kind, x, y in nonlinear])
            i = stop - 1
            while i >= start:
                adds = bool(has_direct[i] and uniform and (exponent[i + 1] == direct.exponent[0]).all())
                first = i if has_direct[i] and not adds else max(start, changes[bisect_right(changes, i) - 1])
                arrays = self.step_views(first, stop, [slope[first - start :] for slope in slopes])
                if adds:
                    arrays.append(direct.array[first - 1 : stop - 1])
                body = _StepBack(cell, self.truncated, self.into if adds else None)
                loop = self.workspace.loop(body, arrays, i - first, entering, self.part)
                reached, inside = loop.run(arrays, i - first, -1, LOW, HIGH)
                exponent[first + reached + 1 : i + 1] = exponent[i + 1]
                i = first + reached
                receives = has_direct[i + 1] and not adds
                if receives or not inside:
                    if receives:
                        add_direct(self.receiving(i + 1), exponent[i + 1], direct.array[i], direct.exponent[i])
                    renormalise([row[i + 1] for row in adjoint], exponent[i + 1])

    def receiving(self, i: int) -> list[NDArray]:
        """The adjoints of the states of i, first that at which something arrives directly."""
        return [self.adjoint[self.into][i], *(row[i] for k, row in enumerate(self.adjoint) if k != self.into)]

    def step_views(self, start: int, stop: int, slopes: Sequence[NDArray]) -> list[NDArray]:
        """The arrays of one step back, for some consecutive steps."""
        tape, to_h = self.tape, as_gemm_operand(self.delta[..., self.cell.reads_h, :])
        front = [row[start:stop] for row in (self.recurrent_t, to_h, self.delta, tape.gates, *self.elementwise)]
        leave, enter = [row[start + 1 : stop + 1] for row in self.adjoint], [row[start:stop] for row in self.adjoint]
        states = [row[start:stop] for row in tape.states.values()]
        states += [row[start + 1 : stop + 1] for row in tape.states.values()]
        others = [row[start:stop] for row in (tape.pre, *tape.saved.values())]
        return [*front, *leave, *enter, *states, *others, *slopes]

    def slopes(self, nonlinear: Sequence[tuple[Activation, NDArray, NDArray]]) -> list[NDArray]:
        """φ′ of some steps; not in the loop, because a saturated unit takes more than ufuncs."""
        kinds, arguments, values = zip(*nonlinear, strict=True)
        found = [out[: len(y)] for out, y in zip(self.slope_buffers, values, strict=True)]
        arrays = [*values, *found]
        self.workspace.loop(_Slopes(kinds), arrays, 0, part=self.part).run(arrays, 0, len(found[0]))
        floor, least = float(np.finfo(found[0].dtype).tiny) * HIGH, 1.0
        for kind, x, out in zip(kinds, arguments, found, strict=True):
            of_all = mend_slope(kind, x, out) ** (out.shape[-2] if out.ndim > self.adjoint[0].ndim else 1)
            least *= of_all * (of_all if kind is Activation.sigmoid else 1)
        if least < floor:
            self.lost[:] |= closed(kinds, values, found, floor)
        return found


@dataclass(frozen=True)
class _Slopes:
    """φ′ of one step's nonlinearities, from their outputs."""

    kinds: tuple[Activation, ...]

    def __call__(self, rows: Sequence[NDArray]) -> None:
        for kind, y, out in zip(self.kinds, rows, rows[len(self.kinds) :], strict=False):
            slope_of_output(kind, y, out)


@dataclass(frozen=True)
class _StepBack:
    """One step back, on ``BackwardSweep.step_views``; with ``adds_to``, the index of a state, on
    what arrives there directly too.
    """

    cell: Cell
    truncated: bool
    adds_to: int | None

    def __call__(self, rows: Sequence[NDArray]) -> None:
        cell, kept, extra = self.cell, len(self.cell.states), len(self.cell.saved)
        matrix, through_h, delta, gates, *rest = rows
        direct = rest.pop() if self.adds_to is not None else None
        elementwise = take_elementwise(cell, rest)
        d_leaving, d_entering, entering, leaving = (rest[k : k + kept] for k in range(0, 4 * kept, kept))
        pre, *others = rest[4 * kept :]
        s = Step(pre, gates, entering, leaving, others[:extra], others[extra:], elementwise)
        cell.step_backward(s, StepAdjoint(d_leaving, delta, d_entering))
        enter = d_entering[0]
        if self.truncated and not cell.has_skip_to_h:
            enter[...] = 0
        elif not self.truncated:
            first = 0 if cell.has_skip_to_h else 1  # of the groups to be added
            if first:
                np.matmul(through_h[..., 0, :, :], matrix[..., 0, :, :], out=enter)
            if first < matrix.shape[-3]:
                product = np.matmul(through_h[..., first:, :, :], matrix[..., first:, :, :])
                for group in range(product.shape[-3]):
                    enter += product[..., group, :, :]
        if direct is not None and self.adds_to is not None:
            d_entering[self.adds_to] += direct
