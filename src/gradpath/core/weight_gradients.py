"""∂L/∂θ_t of packed weights at every step, formed once: its sum over the steps and its norms are
two readings of it.

With E_t (B, K) what the weights multiply at step t and δ_t (B, n·H) the gradient at what comes out,

    ∂L/∂W_t = Σ_b E_{t,b}ᵀ δ_{t,b} (K, n·H)        ∂L/∂W = Σ_t ∂L/∂W_t

T of them at once would be T times the size of the weights; formed one after the other, each is
still in the cache when it is squared and added. One product over all the steps would give the sum
alone, and hardly faster.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradpath.core.cell import Cell
from gradpath.core.parameters import Packed
from gradpath.core.scaled import ZERO_EXPONENT, Scaled, magnitude, shift
from gradpath.core.tape import LayerTape
from gradpath.core.trace import Gradient, ParameterSlice, WeightGradients
from gradpath.engine.workspace import Workspace, repeated

CHUNK_ELEMENTS = 2**19
"""Elements of δ in a chunk of steps that are brought to one exponent each."""
LARGE = 60
"""Exponent of what enters from which on a product with δ might overflow."""
SMALL = -100
"""Exponent of what enters below which it counts as no smaller, so that no scale overflows."""


def step_gradients(
    workspace: Workspace, slices: tuple[ParameterSlice, ...], times: NDArray, entered: NDArray, delta: Scaled
) -> WeightGradients:
    """Of S networks side by side: ``entered`` (R, S, B, K), ``delta`` (R, S, B, n, H)."""
    scaled = bool((delta.exponent != delta.exponent[:1, :, :1]).any())
    found = _pass(workspace, slices, entered, delta, scaled)
    if not (scaled or np.isfinite(found[-2]).all()) and np.isfinite(entered).all() and np.isfinite(delta.array).all():
        found = _pass(workspace, slices, entered, delta, scaled=True)  # a product has left the range of the type
    return WeightGradients(slices, times, entered, delta, *found)


def layer_gradients(
    cell: Cell, places: Sequence[Packed], tape: LayerTape, delta: Scaled, workspace: Workspace
) -> Iterator[WeightGradients]:
    """The gradients of one layer's weights at their ``places``: of W_·x, W_·h and b, and of the
    elementwise parameters if there are any.
    """
    x, h, b, *elementwise = (place.names for place in places)
    width, every, times = cell.hidden_size, slice(0, len(cell.blocks)), np.arange(len(delta.array))
    slices = (
        ParameterSlice(x, slice(width + 1, None), cell.reads_x),
        ParameterSlice(h, slice(0, width), cell.reads_h),
        ParameterSlice(b, slice(width, width + 1), every, reads=False),
    )
    yield step_gradients(workspace, slices, times, tape.entered[:-1], delta)
    for names in elementwise:
        states = [(gate, tape.state(read.state, read.leaving)) for gate, read in cell.elementwise]
        yield elementwise_gradients(workspace, names, times, states, delta)


def elementwise_gradients(
    workspace: Workspace, names: tuple[str, ...], times: NDArray, states: Sequence[tuple[int, NDArray]], delta: Scaled
) -> WeightGradients:
    """The gradients of elementwise parameters, each with its gate and the state s (R, S, B, H) that
    the gate reads by it: ∂L/∂w_t = Σ_b δ_{t,b} ∘ s_{t,b} (H,), which is the gradient of a bias
    whose δ is δ ∘ s. In float64, in which products of float32 factors are exact.
    """
    *shape, _, width = delta.array.shape
    product = workspace.buffers.empty((*shape, len(names), width), np.float64)
    exponent = delta.exponent
    sizes = [magnitude(state, 3) for _, state in states]
    largest = np.max(sizes, axis=0)
    if (largest > LARGE).any():
        largest[largest <= LARGE] = 0
        exponent = exponent + largest
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):  # of a network that has blown up
        for index, (gate, state) in enumerate(states):
            values = state if exponent is delta.exponent else shift(state, -largest)
            np.multiply(delta.array[..., gate, :], values, out=product[..., index, :], dtype=np.float64)
    only = ParameterSlice(names, slice(0, 1), slice(0, len(names)), reads=False)
    ones = np.ones((*shape, 1))
    return step_gradients(workspace, (only,), times, ones, Scaled(product, exponent))


def _pass(
    workspace: Workspace, slices: Sequence[ParameterSlice], entered: NDArray, delta: Scaled, scaled: bool
) -> tuple[NDArray, NDArray, NDArray, NDArray, NDArray]:
    """Squares (R, S, n, parts), sizes (R, S, B, n), their exponents (R, S), Σ_t (S, K, n, H) and
    its exponents (S, parts); ``scaled`` where powers of two have to be carried along. In parts of
    the steps, with a total each.
    """
    steps, seeds, batch, blocks, width = delta.array.shape
    inner, dtype, buffers = entered.shape[-1], delta.array.dtype, workspace.buffers
    squares = buffers.empty((steps, seeds, blocks, len(slices)), dtype)
    sizes = buffers.empty((steps, seeds, batch, blocks), dtype)
    exponent = np.zeros((steps, seeds), np.int32) if scaled else np.array(delta.exponent[:, :, 0])
    rows = workspace.parts(steps, steps * batch * inner * blocks * width)
    totals = [buffers.empty((seeds, blocks, inner, width), dtype) for _ in rows]
    sums = np.full((len(rows), seeds, len(slices)), ZERO_EXPONENT)

    def add(part: int, some: slice) -> None:
        found = squares[some], sizes[some], exponent[some], totals[part], sums[part]
        _accumulate(workspace, part, slices, entered[some], delta.steps(some), found, scaled)

    workspace.for_each(add, rows)
    common = sums.max(axis=0)
    if len(totals) > 1:
        for total, own in zip(totals, sums, strict=True):
            _rescale_total(slices, total, own, common)
        totals[0] += totals[1]
    common[common == ZERO_EXPONENT] = 0
    return squares, sizes, exponent, totals[0].swapaxes(1, 2), common


def _accumulate(
    workspace: Workspace,
    part: int,
    slices: Sequence[ParameterSlice],
    entered: NDArray,
    delta: Scaled,
    found: tuple[NDArray, NDArray, NDArray, NDArray, NDArray],
    scaled: bool,
) -> None:
    """Fills what one part of the steps has ``found``, in the order of ``_pass``; the total as (S,
    n, K, H).
    """
    squares, sizes, exponent, total, sums = found

    total[:] = 0
    if not scaled:
        sums[:] = exponent[0, :, None]
    steps, body = len(entered), _Accumulate(tuple((one.rows.start, one.rows.stop) for one in slices), scaled)
    run = max(1, CHUNK_ELEMENTS * steps // max(delta.array.size, 1)) if scaled else steps
    for start in range(0, steps, run):
        rows = slice(start, min(start + run, steps))
        aligned, e = delta.steps(rows), entered[rows]
        if scaled:
            aligned, (e, enters) = aligned.aligned_to(2), _prescale_inputs(slices, e, exponent[rows])
            exponent[rows] += aligned.exponent
        arrays = [e, aligned.array, squares[rows], sizes[rows], repeated(total, len(e))]
        if scaled:
            arrays.append(_row_scales(slices, enters, aligned.array, exponent[rows], total, sums))
        workspace.loop(body, arrays, 0, part=part).run(arrays, 0, len(e))


@dataclass(frozen=True)
class _Accumulate:
    """∂L/∂W_t (S, n, K, H) of one step, in which a part of a block is one run of numbers; its
    norms; and its sum with those of the other steps. ``rows``: where each part begins and ends.
    """

    rows: tuple[tuple[int | None, int | None], ...]
    scaled: bool

    def __call__(self, arrays: Sequence[NDArray]) -> None:
        entered, delta, squares, sizes, total, *scale = arrays
        of_step = np.matmul(entered.swapaxes(-1, -2)[:, None], delta.swapaxes(-2, -3))
        for index, (start, stop) in enumerate(self.rows):
            of_part = of_step[:, :, start:stop].reshape(*of_step.shape[:2], -1)
            np.vecdot(of_part, of_part, out=squares[..., index])
        np.vecdot(delta, delta, out=sizes)
        total += of_step * scale[0] if self.scaled else of_step


def _prescale_inputs(slices: Sequence[ParameterSlice], entered: NDArray, exponent: NDArray) -> tuple[NDArray, NDArray]:
    """``entered`` so that no product with δ overflows, with what it was shifted by added to
    ``exponent`` (R, S); and the exponents of its parts (R, S, parts).
    """
    unit = np.ones(exponent.shape, np.int32)
    enters = np.stack([magnitude(entered[..., one.rows], 2) if one.reads else unit for one in slices], axis=-1)
    size = enters.max(axis=-1)
    if (size > LARGE).any():
        size[size <= LARGE] = 0
        exponent += size
        entered = shift(entered, -size)
        enters -= np.where(enters == ZERO_EXPONENT, 0, size[..., None])
    return entered, enters


def _row_scales(
    slices: Sequence[ParameterSlice], enters: NDArray, delta: NDArray, exponent: NDArray, total: NDArray, sums: NDArray
) -> NDArray:
    """By what each row of ∂L/∂W_t is multiplied (R, S, 1, K, 1) before it is added to ``total``,
    whose exponents ``sums`` grow, in place, to that of the largest *contribution* yet. Under that
    of the largest δ a step would be lost at which little else than its small δ counts, because what
    entered elsewhere is 0.
    """
    scale = np.zeros((*enters.shape[:2], 1, total.shape[2], 1), delta.dtype)
    alive = magnitude(delta, 2) > ZERO_EXPONENT
    size = np.where(
        alive[..., None] & (enters > ZERO_EXPONENT), np.maximum(enters, SMALL) + exponent[..., None], ZERO_EXPONENT
    )
    largest = np.maximum(sums, size.max(axis=0))
    # What would be subnormal beside the largest is lost in the sum anyway, and would slow it down
    # tenfold.
    counts = (size > ZERO_EXPONENT) & (size - largest >= np.finfo(delta.dtype).minexp)
    power = np.where(counts, np.ldexp(delta.dtype.type(1), np.where(counts, exponent[..., None] - largest, 0)), 0)
    _rescale_total(slices, total, sums, largest)
    for index, one in enumerate(slices):
        scale[:, :, :, one.rows, 0] = power[:, :, None, index, None]
    sums[:] = largest
    return scale


def _rescale_total(slices: Sequence[ParameterSlice], total: NDArray, sums: NDArray, into: NDArray) -> None:
    """Brings ``total`` from the exponents ``sums`` (S, parts) to others, in place."""
    for index, one in enumerate(slices):
        if (into[:, index] != sums[:, index]).any():
            total[:, :, one.rows] = shift(total[:, :, one.rows], sums[:, index] - into[:, index])


def lay_end_to_end(layout: Sequence[Packed], packed: Sequence[WeightGradients]) -> list[Gradient]:
    """Σ_t of every matrix of ``layout`` that there are gradients of, laid end to end under one
    exponent, for each seed.
    """
    totals = [total for of in packed for total in of.totals]
    exponents = np.stack([total.exponent for _, total in totals])
    common = exponents[0]
    if (exponents != common).any():
        alive = np.stack([total.array.any(axis=(1, 2, 3)) for _, total in totals])
        common = np.where(alive.any(axis=0), np.max(exponents, axis=0, where=alive, initial=ZERO_EXPONENT), 0)
    flat = np.empty((len(common), layout[len(totals) - 1].stop), packed[0].total.dtype)
    for place, (_, total) in zip(layout, totals, strict=False):
        alike = (total.exponent == common).all()
        values = total.array if alike else shift(total.array, total.exponent - common)
        flat[:, place.start : place.stop].reshape(values.shape)[...] = values
    norms = Scaled(flat, common).log10_norm().tolist()
    return [
        Gradient(
            Scaled(flat[s], np.asarray(common[s])),
            norms[s],
            [(one.names, Scaled(total.array[s], np.asarray(total.exponent[s]))) for one, total in totals],
        )
        for s in range(len(common))
    ]
