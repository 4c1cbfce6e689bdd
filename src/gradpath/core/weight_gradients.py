"""∂L/∂θ_t of packed weights at every step, formed once for both its sum over the steps and its
norms.

With E_t (B, K) the inputs that the weights multiply at step t and δ_t (B, n·H) the gradient at the
result,

    ∂L/∂W_t = Σ_b E_{t,b}ᵀ δ_{t,b} (K, n·H)        ∂L/∂W = Σ_t ∂L/∂W_t

The gradients of all T steps at once would be T times as large as the weights. Formed one after the
other, each is still in the cache when it is squared and added. One product over all the steps would
give the sum alone, and hardly faster.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradpath.core.cell import Cell
from gradpath.core.parameters import PackedMatrix
from gradpath.core.scaled import ZERO_EXPONENT, Scaled, magnitude, shift
from gradpath.core.tape import LayerTape
from gradpath.core.trace import Gradient, ParameterSlice, WeightGradients
from gradpath.engine.workspace import Workspace, repeated

CHUNK_ELEMENTS = 2**19
"""Elements of δ in a chunk of steps that are brought to one exponent each."""
MAX_INPUT_EXPONENT = 60
"""Exponent of the inputs above which a product with δ might overflow."""
MIN_INPUT_EXPONENT = -100
"""Smaller exponents of the inputs are treated as this one, so that no scale overflows."""


def step_gradients(
    workspace: Workspace, slices: tuple[ParameterSlice, ...], times: NDArray, inputs: NDArray, delta: Scaled
) -> WeightGradients:
    """∂L/∂W_t (K, n, H) at R steps of S networks side by side: ``inputs`` E (R, S, B, K), ``delta``
    δ (R, S, B, n, H). Repeated with powers of two carried along where a product has overflowed.
    """
    scaled = bool((delta.exponent != delta.exponent[:1, :, :1]).any())
    sums = _pass(workspace, slices, inputs, delta, scaled)
    if not (scaled or np.isfinite(sums[-2]).all()) and np.isfinite(inputs).all() and np.isfinite(delta.array).all():
        sums = _pass(workspace, slices, inputs, delta, scaled=True)  # a product has left the range of the type
    return WeightGradients(slices, times, inputs, delta, *sums)


def layer_gradients(
    cell: Cell, places: Sequence[PackedMatrix], tape: LayerTape, delta: Scaled, workspace: Workspace
) -> Iterator[WeightGradients]:
    """The gradients of one layer's weights W_·x, W_·h and b_·, in one matrix, and then those of the
    elementwise parameters if there are any; ``places`` give their names.
    """
    x, h, b, *elementwise = (place.names for place in places)
    width, all_gates, times = cell.hidden_size, slice(0, len(cell.blocks)), np.arange(len(delta.array))
    slices = (
        ParameterSlice(x, slice(width + 1, None), cell.reads_x),
        ParameterSlice(h, slice(0, width), cell.reads_h),
        ParameterSlice(b, slice(width, width + 1), all_gates, reads=False),
    )
    yield step_gradients(workspace, slices, times, tape.augmented_input[:-1], delta)
    for names in elementwise:
        states = [(gate, tape.state(read.state, read.leaving)) for gate, read in cell.elementwise]
        yield elementwise_gradients(workspace, names, times, states, delta)


def elementwise_gradients(
    workspace: Workspace, names: tuple[str, ...], times: NDArray, states: Sequence[tuple[int, NDArray]], delta: Scaled
) -> WeightGradients:
    """The gradients of elementwise parameters w (H,), which add w ∘ s to a gate's pre-activation:
    ∂L/∂w_t = Σ_b δ_{t,b} ∘ s_{t,b} (H,).

    ``states`` gives the index of the gate and the state s (R, S, B, H) of each. Computed as the
    gradient of a bias whose δ is δ ∘ s, in float64, in which products of float32 factors are exact.
    """
    *shape, _, width = delta.array.shape
    product = workspace.buffers.empty((*shape, len(names), width), np.float64)
    exponent = delta.exponent
    sizes = [magnitude(state, 3) for _, state in states]
    largest = np.max(sizes, axis=0)
    if (largest > MAX_INPUT_EXPONENT).any():
        largest[largest <= MAX_INPUT_EXPONENT] = 0
        exponent = exponent + largest
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):  # a network may have blown up
        for index, (gate, state) in enumerate(states):
            values = state if exponent is delta.exponent else shift(state, -largest)
            np.multiply(delta.array[..., gate, :], values, out=product[..., index, :], dtype=np.float64)
    parameter_slice = ParameterSlice(names, slice(0, 1), slice(0, len(names)), reads=False)
    ones = np.ones((*shape, 1))
    return step_gradients(workspace, (parameter_slice,), times, ones, Scaled(product, exponent))


def _pass(
    workspace: Workspace, slices: Sequence[ParameterSlice], inputs: NDArray, delta: Scaled, scaled: bool
) -> tuple[NDArray, NDArray, NDArray, NDArray, NDArray]:
    """‖∂L/∂W_t‖² (R, S, n, slices), Σ_h δ² (R, S, B, n), their exponents (R, S), Σ_t ∂L/∂W_t (S, K,
    n, H) and its exponents (S, slices). With ``scaled`` powers of two are carried along. The steps
    are computed in one or two parts, whose totals are then added.
    """
    steps, seeds, batch, blocks, width = delta.array.shape
    inner, dtype, buffers = inputs.shape[-1], delta.array.dtype, workspace.buffers
    squares = buffers.empty((steps, seeds, blocks, len(slices)), dtype)
    sizes = buffers.empty((steps, seeds, batch, blocks), dtype)
    exponent = np.zeros((steps, seeds), np.int32) if scaled else np.array(delta.exponent[:, :, 0])
    rows = workspace.parts(steps, steps * batch * inner * blocks * width)
    totals = [buffers.empty((seeds, blocks, inner, width), dtype) for _ in rows]
    sums = np.full((len(rows), seeds, len(slices)), ZERO_EXPONENT)

    def add(part: int, chunk: slice) -> None:
        results = squares[chunk], sizes[chunk], exponent[chunk], totals[part], sums[part]
        _accumulate(workspace, part, slices, inputs[chunk], delta.steps(chunk), results, scaled)

    workspace.for_each(add, rows)
    common = sums.max(axis=0)
    if len(totals) > 1:
        for total, exponents in zip(totals, sums, strict=True):
            _rescale_total(slices, total, exponents, common)
        totals[0] += totals[1]
    common[common == ZERO_EXPONENT] = 0
    return squares, sizes, exponent, totals[0].swapaxes(1, 2), common


def _accumulate(
    workspace: Workspace,
    part: int,
    slices: Sequence[ParameterSlice],
    inputs: NDArray,
    delta: Scaled,
    results: tuple[NDArray, NDArray, NDArray, NDArray, NDArray],
    scaled: bool,
) -> None:
    """Fills the ``results`` of one part of the steps, as ``_pass`` returns them; total (S, n, K,
    H).
    """
    squares, sizes, exponent, total, sums = results
    total[:] = 0
    if not scaled:
        sums[:] = exponent[0, :, None]
    boundaries = tuple((parameter_slice.rows.start, parameter_slice.rows.stop) for parameter_slice in slices)
    steps, body = len(inputs), _Accumulate(boundaries, scaled)
    chunk_steps = max(1, CHUNK_ELEMENTS * steps // max(delta.array.size, 1)) if scaled else steps
    for start in range(0, steps, chunk_steps):
        rows = slice(start, min(start + chunk_steps, steps))
        aligned, chunk_inputs = delta.steps(rows), inputs[rows]
        if scaled:
            aligned = aligned.aligned_to(2)
            chunk_inputs, input_exponents = _prescale_inputs(slices, chunk_inputs, exponent[rows])
            exponent[rows] += aligned.exponent
        arrays = [chunk_inputs, aligned.array, squares[rows], sizes[rows], repeated(total, len(chunk_inputs))]
        if scaled:
            arrays.append(_row_scales(slices, input_exponents, aligned.array, exponent[rows], total, sums))
        workspace.loop(body, arrays, 0, part=part).run(arrays, 0, len(chunk_inputs))


@dataclass(frozen=True)
class _Accumulate:
    """∂L/∂W_t (S, n, K, H) of one step, its norms, and its addition to the total. In this order of
    axes a slice of a gate's weights is contiguous. ``rows``: where each slice begins and ends.
    """

    rows: tuple[tuple[int | None, int | None], ...]
    scaled: bool

    def __call__(self, arrays: Sequence[NDArray]) -> None:
        inputs, delta, squares, sizes, total, *scale = arrays
        step_gradient = np.matmul(inputs.swapaxes(-1, -2)[:, None], delta.swapaxes(-2, -3))
        for index, (start, stop) in enumerate(self.rows):
            slice_gradient = step_gradient[:, :, start:stop].reshape(*step_gradient.shape[:2], -1)
            np.vecdot(slice_gradient, slice_gradient, out=squares[..., index])
        np.vecdot(delta, delta, out=sizes)
        total += step_gradient * scale[0] if self.scaled else step_gradient


def _prescale_inputs(slices: Sequence[ParameterSlice], inputs: NDArray, exponent: NDArray) -> tuple[NDArray, NDArray]:
    """``inputs`` scaled by powers of two so that no product with δ overflows; these powers are
    added to ``exponent`` (R, S) in place. Also returns the exponents of each slice (R, S, slices).
    """
    unit = np.ones(exponent.shape, np.int32)
    input_exponents = np.stack(
        [magnitude(inputs[..., part.rows], 2) if part.reads else unit for part in slices], axis=-1
    )
    size = input_exponents.max(axis=-1)
    if (size > MAX_INPUT_EXPONENT).any():
        size[size <= MAX_INPUT_EXPONENT] = 0
        exponent += size
        inputs = shift(inputs, -size)
        input_exponents -= np.where(input_exponents == ZERO_EXPONENT, 0, size[..., None])
    return inputs, input_exponents


def _row_scales(
    slices: Sequence[ParameterSlice],
    input_exponents: NDArray,
    delta: NDArray,
    exponent: NDArray,
    total: NDArray,
    sums: NDArray,
) -> NDArray:
    """The power of two (R, S, 1, K, 1) by which each row of ∂L/∂W_t is multiplied before it is
    added to ``total``. The exponents ``sums`` of the total grow, in place, to that of the largest
    *contribution* so far. The exponent of the largest δ would not do: where the inputs at that step
    are 0, it would suppress a step with a small δ whose contribution is the only one.
    """
    scale = np.zeros((*input_exponents.shape[:2], 1, total.shape[2], 1), delta.dtype)
    alive = magnitude(delta, 2) > ZERO_EXPONENT
    contributes = alive[..., None] & (input_exponents > ZERO_EXPONENT)
    sizes = np.maximum(input_exponents, MIN_INPUT_EXPONENT) + exponent[..., None]
    size = np.where(contributes, sizes, ZERO_EXPONENT)
    largest = np.maximum(sums, size.max(axis=0))
    # Numbers that are subnormal beside the largest are lost in the sum, and would slow it tenfold.
    counts = (size > ZERO_EXPONENT) & (size - largest >= np.finfo(delta.dtype).minexp)
    power = np.where(counts, np.ldexp(delta.dtype.type(1), np.where(counts, exponent[..., None] - largest, 0)), 0)
    _rescale_total(slices, total, sums, largest)
    for index, part in enumerate(slices):
        scale[:, :, :, part.rows, 0] = power[:, :, None, index, None]
    sums[:] = largest
    return scale


def _rescale_total(slices: Sequence[ParameterSlice], total: NDArray, sums: NDArray, target_exponents: NDArray) -> None:
    """Brings ``total``, in place, from the exponents ``sums`` (S, slices) to the target ones."""
    for index, part in enumerate(slices):
        if (target_exponents[:, index] != sums[:, index]).any():
            total[:, :, part.rows] = shift(total[:, :, part.rows], sums[:, index] - target_exponents[:, index])


def lay_end_to_end(layout: Sequence[PackedMatrix], packed: Sequence[WeightGradients]) -> list[Gradient]:
    """For each seed, Σ_t ∂L/∂W_t of the matrices of ``layout`` that ``packed`` has gradients of,
    concatenated under one exponent.
    """
    totals = [total for gradients in packed for total in gradients.totals]
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
            [(part.names, Scaled(total.array[s], np.asarray(total.exponent[s]))) for part, total in totals],
        )
        for s in range(len(common))
    ]
