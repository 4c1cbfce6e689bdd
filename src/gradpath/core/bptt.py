"""Backpropagation through time of one layer of any cell: the loop over t, the matrix products, the
shift by one.

The equations are derived by hand; the pointwise part is in the cells. With δa_t (B, n·H) the
gradient at the pre-activations,

    δH_{t-1} = δa_t W_hᵀ + ∂⁺L/∂H_{t-1} + (the cell's own term outside the gates)
    δX_t = δa_t W_xᵀ

(Werbos 1990). The adjoint of each sequence has a power-of-two exponent of its own
(:mod:`gradpath.core.scaled`), so that it neither rounds to zero nor overflows at any length. Where
plain floating point would not either, the result is bit-identical to the plain recursion, because
scaling by a power of two is exact.

Networks of S seeds run side by side: every array has an axis S after the time axis. Each timestep
and seed has a matrix product of its own, whose shape does not depend on S. A seed's numbers
therefore do not depend on the other seeds.

The bodies of both loops, forwards here and backwards in :mod:`gradpath.core.backward`, call only
ufuncs, so that they can be recorded once and replayed (:mod:`gradpath.engine.replay`). The
sequences of a minibatch are independent; in a large pass, two threads can therefore compute half of
them each (:mod:`gradpath.engine.partition`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradpath.core.cell import Cell
from gradpath.core.step import Step
from gradpath.core.tape import LayerTape
from gradpath.engine.gate_layout import as_gemm_operand, empty, per_gate_layout
from gradpath.engine.partition import ROWS
from gradpath.engine.workspace import Workspace, repeated


@dataclass(frozen=True)
class LayerWeights:
    """The packed weights of one layer: ``x`` (S, I, n_x·H) of the gates that read X, ``h`` (S, H,
    n_h·H) of the gates that read H_{t-1}, ``b`` (S, n·H) of all gates, and ``elementwise`` (S,
    n_e·H), None where the cell has none.
    """

    x: NDArray
    h: NDArray
    b: NDArray
    elementwise: NDArray | None = None

    def only_biases(self) -> "LayerWeights":
        """The same biases, with all other weights 0."""
        elementwise = None if self.elementwise is None else np.zeros_like(self.elementwise)
        return LayerWeights(np.zeros_like(self.x), np.zeros_like(self.h), self.b, elementwise)

    def elementwise_by_name(self, cell: Cell) -> dict[str, NDArray]:
        """The elementwise parameters (S, 1, H) as ``Step`` takes them."""
        if self.elementwise is None:
            return {}
        by_row = self.elementwise.reshape(*self.elementwise.shape[:-1], -1, 1, cell.hidden_size)
        return {weights.name: by_row[..., row, :, :] for row, (_, weights) in enumerate(cell.elementwise)}

    def elementwise_rows(self, cell: Cell, steps: int) -> list[NDArray]:
        """The elementwise parameters (S, 1, H) repeated at every step, for a loop over time."""
        return [repeated(np.ascontiguousarray(w), steps) for w in self.elementwise_by_name(cell).values()]

    def packed(self, cell: Cell, workspace: Workspace) -> NDArray:
        """The layer's weights as one matrix (S, H+1+I, n, H): [H_{t-1}, 1, X_t] times it gives the
        pre-activations. 0 where a gate does not read H or X.
        """
        seeds, inputs, _ = self.x.shape
        width, blocks = cell.hidden_size, len(cell.blocks)
        matrix = empty(seeds, width + 1 + inputs, blocks, width, dtype=self.x.dtype, buffers=workspace.buffers)
        matrix[:] = 0
        for rows, reads, weights in (
            (slice(0, width), cell.reads_h, self.h),
            (slice(width, width + 1), slice(0, blocks), self.b),
            (slice(width + 1, None), cell.reads_x, self.x),
        ):
            place = matrix[:, rows, reads]
            place[...] = weights.reshape(place.shape)
        return matrix


def forward(
    cell: Cell, weights: LayerWeights, inputs: NDArray, workspace: Workspace, initial_state: float = 0.0
) -> LayerTape:
    """Runs the cell over ``inputs`` (T, S, B, I) from H_0 = ``initial_state`` and C_0 = 0."""
    (steps, *shape, size), dtype = inputs.shape, inputs.dtype
    blocks, width, buffers = len(cell.blocks), cell.hidden_size, workspace.buffers
    augmented_input = buffers.empty((steps + 1, *shape, width + 1 + size), dtype)
    augmented_input[0, ..., :width] = initial_state
    augmented_input[..., width] = 1
    augmented_input[:-1, ..., width + 1 :] = inputs
    augmented_input[-1, ..., width + 1 :] = 0
    states = {cell.states[0]: augmented_input[..., :width]}
    states |= {name: buffers.empty((steps + 1, *shape, width), dtype) for name in cell.states[1:]}
    for name in cell.states[1:]:
        states[name][0] = 0
    pre = empty(steps, *shape, blocks, width, dtype=dtype, buffers=buffers)
    gates = per_gate_layout(steps, *shape, blocks, width, dtype=dtype, buffers=buffers)
    saved = {name: buffers.empty((steps, *shape, width), dtype) for name in cell.saved}
    tape, body = LayerTape(augmented_input, states, pre, gates, saved), _Step(cell)
    matrix = repeated(as_gemm_operand(weights.packed(cell, workspace)), steps)
    elementwise = weights.elementwise_rows(cell, steps)

    def run(part: int, rows: slice) -> None:
        part_tape = tape.sequences(rows)
        inputs, pre = part_tape.augmented_input[:-1], part_tape.pre
        arrays = [matrix, inputs, as_gemm_operand(pre), pre, part_tape.gates, *elementwise]
        arrays += [row[:-1] for row in part_tape.states.values()] + [row[1:] for row in part_tape.states.values()]
        arrays += part_tape.saved.values()
        workspace.loop(body, arrays, 0, part=part).run(arrays, 0, steps)

    workspace.for_each(run, parts(tape, workspace))
    return tape


@dataclass(frozen=True)
class _Step:
    """One step of a layer, on the arrays of ``forward``'s ``run``."""

    cell: Cell

    def __call__(self, rows: Sequence[NDArray]) -> None:
        matrix, augmented_input, product, pre, gates, *step_rows = rows
        np.matmul(augmented_input[..., None, :, :], matrix, out=product)
        elementwise = take_elementwise(self.cell, step_rows)
        n_states = len(self.cell.states)
        entering, leaving = step_rows[:n_states], step_rows[n_states : 2 * n_states]
        s = Step(pre, gates, entering, leaving, step_rows[2 * n_states :], elementwise=elementwise)
        self.cell.step(s)


def take_elementwise(cell: Cell, rows: list[NDArray]) -> dict[str, NDArray]:
    """The elementwise parameters by name, taken from the front of ``rows``."""
    return {weights.name: rows.pop(0) for _, weights in cell.elementwise}


def parts(tape: LayerTape, workspace: Workspace) -> list[slice]:
    """The minibatch (axis B) in one or two parts, each computed in one thread."""
    steps, _, batch, blocks, width = tape.gates.shape
    return workspace.parts(batch, steps * batch * tape.augmented_input.shape[-1] * blocks * width, ROWS)
