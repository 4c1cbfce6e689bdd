"""Backpropagation through time of one layer of any cell: the loop over t, the matrix products, the shift by one.

Derived by hand; see the cells for the pointwise part. With δa_t (B, n·H) the gradient at the pre-activations,

    δH_{t-1} = δa_t W_hᵀ + ∂⁺L/∂H_{t-1} + (what the cell passes on without its gates)        δX_t = δa_t W_xᵀ

(Werbos 1990). The adjoint of each sequence is carried with a power-of-two exponent of its own
(:mod:`gradpath.core.scaled`), so that it neither rounds to zero nor overflows over any length; where plain floating
point would do neither, the result is bit-identical to the plain recursion, because scaling by a power of two is exact.

Networks of S seeds run side by side: every array has an axis S after the time axis, and each product is one matrix
product a timestep and seed, of the same shape whatever S is. So a seed's numbers do not depend on its company.

The bodies of both loops are ufuncs alone, so that they are recorded once and replayed
(:mod:`gradpath.engine.replay`). The sequences of a minibatch need nothing of each other, and in a large pass two
threads can have half of them each (:mod:`gradpath.engine.partition`).
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradpath.core.activations import Activation, mend_slope, slope_of_output
from gradpath.core.cell import Cell
from gradpath.core.scaled import HIGH, LOW, NOTHING, Scaled, magnitude, shift
from gradpath.core.tape import LayerTape
from gradpath.engine.gate_layout import apart, empty, grouped
from gradpath.engine.partition import ROWS
from gradpath.engine.replay import Body, repeated

RUN = 2**19
"""Elements of δa in a run of steps whose derivatives are computed together: few calls, and far less than the tape."""
BAND = int(np.log2(HIGH))


@dataclass(frozen=True)
class LayerWeights:
    """The packed weights of one layer: ``x`` (S, I, n_x·H) of the blocks that read X, ``h`` (S, H, n_h·H) of those that
    read H_{t-1}, ``b`` (S, n·H).
    """

    x: NDArray
    h: NDArray
    b: NDArray

    def packed(self, cell: Cell) -> NDArray:
        """The layer's weights as one matrix (S, H+1+I, n, H), by which [H_{t-1}, 1, X_t] is multiplied; 0 where a block
        does not read.
        """
        seeds, inputs, _ = self.x.shape
        width, blocks = cell.hidden_size, len(cell.blocks)
        matrix = empty(seeds, width + 1 + inputs, blocks, width, dtype=self.x.dtype, memory=cell.loops.memory)
        matrix[:] = 0
        matrix[:, :width, cell.reads_h] = self.h.reshape(seeds, width, -1, width)
        matrix[:, width] = self.b.reshape(seeds, blocks, width)
        matrix[:, width + 1 :, cell.reads_x] = self.x.reshape(seeds, inputs, -1, width)
        return matrix


@dataclass(frozen=True)
class LayerAdjoint:
    """``delta`` (T, S, B, n, H) at the pre-activations; ``states[s]`` (T, S, B, H) total derivatives of H_1 … H_T."""

    delta: Scaled
    states: dict[str, Scaled]
    lost: NDArray
    """(S,) Has the network a unit so far closed that the type may not hold what gets through (:func:`_closed`)?"""


def forward(cell: Cell, weights: LayerWeights, inputs: NDArray) -> LayerTape:
    """Runs the cell over ``inputs`` (T, S, B, I) from H_0 = ``initial_state`` and C_0 = 0."""
    (steps, *shape, size), dtype = inputs.shape, inputs.dtype
    blocks, width = len(cell.blocks), cell.hidden_size
    memory = cell.loops.memory
    entered = memory.empty((steps + 1, *shape, width + 1 + size), dtype)
    entered[0, ..., :width] = cell.initial_state
    entered[..., width] = 1
    entered[:-1, ..., width + 1 :] = inputs
    entered[-1, ..., width + 1 :] = 0
    states = {cell.states[0]: entered[..., :width]}
    states |= {name: memory.empty((steps + 1, *shape, width), dtype) for name in cell.states[1:]}
    for name in cell.states[1:]:
        states[name][0] = 0
    pre = empty(steps, *shape, blocks, width, dtype=dtype, memory=memory)
    gates = apart(steps, *shape, blocks, width, dtype=dtype, memory=memory)
    saved = {name: memory.empty((steps, *shape, width), dtype) for name in cell.saved}
    kept, extra = len(cell.states), len(cell.saved)

    def body(rows: Sequence[NDArray]) -> None:
        matrix, enters, packed, at, after, *rest = rows
        np.matmul(enters[..., None, :, :], matrix, out=packed)
        cell.step(at, after, rest[:kept], rest[kept : 2 * kept], rest[2 * kept : 2 * kept + extra])

    tape, matrix = LayerTape(entered, states, pre, gates, saved), repeated(grouped(weights.packed(cell)), steps)

    def run(half: int, rows: slice) -> None:
        some = tape.sequences(rows)
        arrays = [matrix, some.entered[:-1], grouped(some.pre), some.pre, some.gates]
        arrays += [row[:-1] for row in some.states.values()] + [row[1:] for row in some.states.values()]
        arrays += some.saved.values()
        cell.loops.get(f"forward {half}", body, arrays, 0).run(arrays, 0, steps)

    cell.loops.each(run, _halves(cell, tape))
    return tape


def backward(
    cell: Cell,
    weights: LayerWeights,
    tape: LayerTape,
    direct: Scaled,
    arrives: NDArray | None = None,
    truncate: bool = False,
) -> LayerAdjoint:
    """The adjoint of a layer whose outputs H_1 … H_T receive ``direct`` = ∂⁺L/∂H_t (T, S, B, H), 0 but where it
    ``arrives`` (T,), if that is known; with ``truncate`` nothing passes through the gates to H_{t-1}, and what remains
    is the highway alone.
    """
    *shape, blocks, width = tape.gates.shape
    steps, dtype, memory = shape[0], tape.gates.dtype, cell.loops.memory
    adjoint = [memory.empty((steps + 1, *shape[1:], width), dtype) for _ in cell.states]
    for row in adjoint:
        row[steps] = 0
    exponent = np.empty((steps + 1, *shape[1:]), np.int32)
    exponent[steps] = direct.exponent[-1]
    delta = empty(*shape, blocks, width, dtype=dtype, memory=memory)
    back = np.ascontiguousarray(weights.h.reshape(*weights.h.shape[:-1], -1, width).swapaxes(-3, -2).swapaxes(-2, -1))
    back = repeated(back.reshape(*back.shape[:-3], grouped(delta[..., cell.reads_h, :]).shape[-3], -1, width), steps)
    if arrives is None:
        arrives = magnitude(direct.array.reshape(steps, -1), 1) > NOTHING
    arrives = np.concatenate([[False], arrives])  # at H_i?
    if 2 * arrives.sum() > steps:  # then 0 is added where nothing arrives, and the loop need not change its body
        arrives[1:] = True
    length = min(max(1, RUN * steps // delta.size), steps)

    def way(half: int, rows: slice) -> _Way:
        some = tape.sequences(rows)
        room = [memory.empty_like(y, length) for _, _, y in cell.nonlinear(some)]
        return _Way(
            cell,
            truncate or cell.truncated,
            half,
            back,
            some,
            direct.sequences(rows),
            arrives,
            [row[:, :, rows] for row in adjoint],
            exponent[:, :, rows],
            delta[:, :, rows],
            room,
            length,
            np.zeros(shape[1], bool),
        )

    rows = _halves(cell, tape)
    ways = [way(half, some) for half, some in enumerate(rows)]  # here, because memory serves one thread
    cell.loops.each(lambda half, _: ways[half].go(), rows)
    return LayerAdjoint(
        Scaled(delta, exponent[1:]),
        {name: Scaled(row[1:], exponent[1:]) for name, row in zip(cell.states, adjoint, strict=True)},
        np.any([one.lost for one in ways], axis=0),
    )


@dataclass(frozen=True)
class _Way:
    """The way of some sequences from H_T back to H_0. ``adjoint``, ``exponent`` and ``delta``, of all T steps, are
    filled in place; ``arrives`` (T+1,) says at which H_i something arrives directly, ``room`` takes the slopes of a run
    of steps, ``lost`` (S,) says where they come to too little for the type.
    """

    cell: Cell
    cut: bool
    half: int
    back: NDArray
    tape: LayerTape
    direct: Scaled
    arrives: NDArray
    adjoint: list[NDArray]
    exponent: NDArray
    delta: NDArray
    room: list[NDArray]
    length: int
    lost: NDArray

    def go(self) -> None:
        """From H_{i+1}, whose adjoint is whole, to H_i, in as few loops as may be: one ends where the body changes or
        an adjoint leaves its band.
        """
        cell, adjoint, exponent, direct, arrives = self.cell, self.adjoint, self.exponent, self.direct, self.arrives
        steps, nonlinear = len(self.delta), cell.nonlinear(self.tape)
        changes = [0, *(np.flatnonzero(arrives[1:] != arrives[:-1]) + 1)]
        uniform = bool((direct.exponent == direct.exponent[0]).all())
        entering = range(4 + len(cell.states), 4 + 2 * len(cell.states))
        if arrives[steps]:
            _receive([row[steps] for row in adjoint], exponent[steps], direct.array[-1], direct.exponent[-1])
        _rescale([row[steps] for row in adjoint], exponent[steps])
        for stop in range(steps, 0, -self.length):
            start = max(stop - self.length, 0)
            slopes = self.slopes([(kind, x[start:stop], y[start:stop]) for kind, x, y in nonlinear])
            i = stop - 1
            while i >= start:
                adds = arrives[i] and uniform and (exponent[i + 1] == direct.exponent[0]).all()
                first = i if arrives[i] and not adds else max(start, changes[bisect_right(changes, i) - 1])
                arrays = self.windows(first, stop, [slope[first - start :] for slope in slopes])
                name = "backward"
                if adds:
                    arrays.append(direct.array[first - 1 : stop - 1])
                    name = "backward and direct"
                body = _step_back(cell, self.cut, adds)
                loop = cell.loops.get(f"{name} {self.cut} {self.half}", body, arrays, i - first, entering)
                reached, inside = loop.run(arrays, i - first, -1, LOW, HIGH)
                exponent[first + reached + 1 : i + 1] = exponent[i + 1]
                i = first + reached
                receives = arrives[i + 1] and not adds
                if receives or not inside:
                    rows = [row[i + 1] for row in adjoint]
                    if receives:
                        _receive(rows, exponent[i + 1], direct.array[i], direct.exponent[i])
                    _rescale(rows, exponent[i + 1])

    def windows(self, start: int, stop: int, slopes: Sequence[NDArray]) -> list[NDArray]:
        """The arrays of one step back, for some consecutive steps."""
        tape, to_h = self.tape, grouped(self.delta[..., self.cell.reads_h, :])
        front = [row[start:stop] for row in (self.back, to_h, self.delta, tape.gates)]
        leave, enter = [row[start + 1 : stop + 1] for row in self.adjoint], [row[start:stop] for row in self.adjoint]
        taped = [row[start:stop] for row in (*tape.states.values(), *tape.saved.values())]
        return [*front, *leave, *enter, *taped, *slopes]

    def slopes(self, nonlinear: Sequence[tuple[Activation, NDArray, NDArray]]) -> list[NDArray]:
        """φ′ of some steps; not in the loop, because a saturated unit takes more than ufuncs."""
        kinds, arguments, values = zip(*nonlinear, strict=True)
        found = [out[: len(y)] for out, y in zip(self.room, values, strict=True)]

        def body(rows: Sequence[NDArray]) -> None:
            for kind, y, out in zip(kinds, rows, rows[len(kinds) :], strict=False):
                slope_of_output(kind, y, out)

        arrays = [*values, *found]
        self.cell.loops.get(f"slopes {self.half}", body, arrays, 0).run(arrays, 0, len(found[0]))
        floor, least = float(np.finfo(found[0].dtype).tiny) * HIGH, 1.0
        for kind, x, out in zip(kinds, arguments, found, strict=True):
            of_all = mend_slope(kind, x, out) ** (out.shape[-2] if out.ndim > self.adjoint[0].ndim else 1)
            least *= of_all * (of_all if kind is Activation.sigmoid else 1)
        if least < floor:
            self.lost[:] |= _closed(kinds, values, found, floor)
        return found


def _closed(kinds: Sequence[Activation], values: Sequence[NDArray], slopes: Sequence[NDArray], floor: float) -> NDArray:
    """Which networks (S,) have a unit through which, at one step, less than ``floor`` gets: the product of its slopes
    and, because a gate makes a state as small as the adjoint and a weight's gradient is their product, of its gates.
    """
    product: float | NDArray = 1.0
    for kind, y, slope in zip(kinds, values, slopes, strict=True):
        if kind is not Activation.relu:
            factor = slope.astype(np.float64)
            if kind is Activation.sigmoid:
                factor *= y
            shape = factor.shape
            product = product * factor.reshape(*shape[:3], -1, shape[-1]).prod(axis=3)
    return np.any(product < floor, axis=(0, 2, 3))


def _step_back(cell: Cell, cut: bool, adds: bool) -> Body:
    """One step back, on ``_Way.windows``; with ``adds`` on what arrives directly, too. It holds none of them, because a
    recording keeps it.
    """
    kept, extra = len(cell.states), len(cell.saved)

    def body(rows: Sequence[NDArray]) -> None:
        matrix, through_h, at, gates, *rest = rows
        leave, enter, states = (rest[k : k + kept] for k in range(0, 3 * kept, kept))
        saved, slopes = rest[3 * kept : 3 * kept + extra], rest[3 * kept + extra :]
        cell.step_backward(slopes, gates, states, saved, leave, at, enter)
        if cut and not cell.has_skip_to_h:
            enter[0][...] = 0
        elif not cut:
            first = 0 if cell.has_skip_to_h else 1  # of the groups to be added
            if first:
                np.matmul(through_h[..., 0, :, :], matrix[..., 0, :, :], out=enter[0])
            if first < matrix.shape[-3]:
                product = np.matmul(through_h[..., first:, :, :], matrix[..., first:, :, :])
                for group in range(product.shape[-3]):
                    enter[0] += product[..., group, :, :]

    def body_and_direct(rows: Sequence[NDArray]) -> None:
        *others, direct = rows
        body(others)
        enter = others[4 + kept]
        enter += direct

    return body_and_direct if adds else body


def _halves(cell: Cell, tape: LayerTape) -> list[slice]:
    """The sequences that are computed together."""
    steps, _, batch, blocks, width = tape.gates.shape
    return cell.loops.halves(batch, steps * batch * tape.entered.shape[-1] * blocks * width, ROWS)


def _receive(adjoint: list[NDArray], exponent: NDArray, addend: NDArray, addend_exponent: NDArray) -> None:
    """Adds what arrives directly at H_t, in place, after bringing both to the larger of the two sizes."""
    if (exponent != addend_exponent).any():
        arriving = magnitude(addend, exponent.ndim) + addend_exponent
        carried = np.max([magnitude(row, exponent.ndim) for row in adjoint], axis=0) + exponent
        # Only a sequence to which something arrives changes its exponent, and only as far as that needs.
        common = np.where(arriving > carried, addend_exponent, exponent)
        for row in adjoint:
            row[:] = shift(row, exponent - common)
        addend = shift(addend, addend_exponent - common)
        exponent[:] = common
    adjoint[0] += addend


def _rescale(adjoint: list[NDArray], exponent: NDArray) -> None:
    """Where a sequence has left the band LOW … HIGH, brings it back to size 1, in place and exactly; with all others of
    its network by the same power of two if that leaves each in the band, so that a step has one exponent where it can,
    and else with those that are on their way out, because a loop stops for it.
    """
    largest = np.abs(adjoint[0]).max(axis=-1)
    for row in adjoint[1:]:
        np.maximum(largest, np.abs(row).max(axis=-1), out=largest)
    some = (largest > 0) & np.isfinite(largest)
    outside = some & ((largest > HIGH) | (largest < LOW))
    if not outside.any():
        return
    size = np.where(some, np.frexp(largest)[1], NOTHING)
    top = size.max(axis=-1, keepdims=True)
    alike = ((size == NOTHING) | (size >= top - BAND // 2)) & (exponent == exponent[..., :1])
    leaving = np.where(some & (np.abs(size) > BAND // 2), size, 0)
    change = np.where(alike.all(axis=-1, keepdims=True), top, leaving)
    change = np.where(outside.any(axis=-1, keepdims=True), change, 0)
    for row in adjoint:
        row[:] = shift(row, -change)
    exponent += change
