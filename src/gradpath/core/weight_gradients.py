"""∂L/∂θ_t of packed weights at every step, formed once: its sum over the steps and its norms are two readings of it.

With E_t (B, K) what the weights multiply at step t and δ_t (B, n·H) the gradient at what comes out,

    ∂L/∂W_t = Σ_b E_{t,b}ᵀ δ_{t,b} (K, n·H)        ∂L/∂W = Σ_t ∂L/∂W_t

T of them at once would be T times the size of the weights; formed one after the other, each is still in the cache when
it is squared and added. One product over all the steps would give the sum alone, and hardly faster.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from gradpath.core.scaled import NOTHING, Scaled, log10_of_root, magnitude, shift
from gradpath.core.trace import Factor
from gradpath.engine.partition import chunks
from gradpath.engine.workspace import Workspace, repeated

CHUNK_ELEMENTS = 2**19
"""Elements of δ in a chunk of steps that are brought to one exponent each."""
ROUNDING = 2.0**-14
"""Relative rounding of a norm from which on it is formed in float64."""
LARGE = 60
"""Exponent of what enters from which on a product with δ might overflow."""
SMALL = -100
"""Exponent of what enters below which it counts as no smaller, so that no scale overflows."""


@dataclass(frozen=True)
class Part:
    """Some rows of the packed matrix, and the blocks that they have weights for: one or several parameters."""

    names: tuple[str, ...]
    rows: slice
    blocks: slice
    reads: bool = True
    """Is it multiplied by what enters? A bias is not: its row is the one that 1 enters."""


@dataclass(frozen=True)
class StepGradients:
    """The gradient of one packed matrix (K, n·H) at R steps, of S networks side by side; ``parts`` says which
    parameters lie in it.
    """

    parts: tuple[Part, ...]
    times: NDArray
    """(R,) timesteps; at all others the gradient is a true zero."""
    entered: NDArray
    """E (R, S, B, K)."""
    delta: Scaled
    """δ (R, S, B, n, H)."""
    squares: NDArray
    """‖∂L/∂W_t‖² (R, S, n, parts), of δ with one exponent a step, in its type."""
    sizes: NDArray
    """Σ_h δ² (R, S, B, n), likewise."""
    exponent: NDArray
    """(R, S) what ∂L/∂W_t is to be shifted by."""
    total: NDArray
    """Σ_t ∂L/∂W_t (S, K, n, H)."""
    sums: NDArray
    """(S, parts) what the total of each part is to be shifted by."""

    def seeds(self, which: slice) -> "StepGradients":
        """Some of the networks, as views."""
        if which == slice(0, len(self.total)):
            return self
        squares, sizes, exponent = (values[:, which] for values in (self.squares, self.sizes, self.exponent))
        return replace(
            self,
            entered=self.entered[:, which],
            delta=Scaled(self.delta.array[:, which], self.delta.exponent[:, which]),
            squares=squares,
            sizes=sizes,
            exponent=exponent,
            total=self.total[which],
            sums=self.sums[which],
        )

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for part in self.parts for name in part.names)

    @property
    def totals(self) -> list[tuple[Part, Scaled]]:
        """Σ_t ∂L/∂W_t of each part (S, its rows, its blocks, H), with one exponent a network."""
        return [
            (part, Scaled(self.total[:, part.rows, part.blocks], self.sums[:, index]))
            for index, part in enumerate(self.parts)
        ]

    def factors(self, s: int) -> list[Factor]:
        """One network's gradients of each part, kept as their two factors."""
        entered, delta = self.entered[:, s], self.delta.seed(s)
        return [
            Factor(part.names, entered[..., part.rows] if part.reads else None, delta.blocks(part.blocks), self.times)
            for part in self.parts
        ]

    def log10_norms(self) -> NDArray:
        """log10 ‖∂L/∂θ_t‖_F (R, S, names); -inf is a true zero.

        From the squares in the type of δ, and from the gradient formed once more in float64, in which products of
        float32 factors are exact, where these may be wrong: where the sequences' gradients cancel so far that the
        rounding of their sum shows, or where squares leave the range of the type.
        """
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            square = self.squares.swapaxes(-1, -2).astype(np.float64)
            norms = log10_of_root(square, self.exponent[..., None, None])
            doubt = self._doubt(square)
            steps, seeds = np.nonzero(doubt.any(axis=(2, 3)))
            for rows in chunks(len(steps), self.delta.array[0, 0].size):
                few = steps[rows], seeds[rows]
                norms[few] = np.where(doubt[few], self._in_float64(few), norms[few])
        return np.concatenate([norms[:, :, index, part.blocks] for index, part in enumerate(self.parts)], axis=-1)

    def _doubt(self, square: NDArray) -> NDArray:
        """Where a norm has to be formed again (R, S, parts, n)."""
        limits = np.finfo(self.squares.dtype)
        doubt = ~((square > float(limits.tiny) * 2.0**12) & (square < float(limits.max) * 2.0**-12))
        outside, single = doubt, limits.dtype == np.float32
        if single:
            # √(Σ_b ‖E_b‖² Σ_b ‖δ_b‖²) is no less than what the norm would be if nothing cancelled; first by all that
            # enters, twice, which is more than any part's, and where that leaves doubt part by part.
            rounding = float(limits.eps) / 2 * np.sqrt(self.entered.shape[2])
            certain = square * (ROUNDING / rounding) ** 2
            sent = self.sizes.sum(axis=2, dtype=np.float64)
            entered = 2 * np.einsum("rsbk,rsbk->rs", self.entered, self.entered).astype(np.float64)
            doubt = outside | (certain < (entered[..., None] * sent)[:, :, None])
        few = np.nonzero(doubt.any(axis=(2, 3)))
        if len(few[0]):
            each, comes = self.entered[few], np.logical_or.reduce(self.delta.array[few], axis=(1, 3))
            rows = [each[..., part.rows] for part in self.parts]
            # Where 0 enters, as with H_0, or no gradient comes, as by F at C_0, it is a true zero.
            doubt[few] &= np.stack([some.any(axis=(1, 2)) for some in rows], axis=1)[:, :, None] & comes[:, None, :]
            if single:
                of_parts = np.stack([np.vecdot(some, some).sum(axis=-1, dtype=np.float64) for some in rows], axis=1)
                doubt[few] &= outside[few] | (certain[few] < of_parts[:, :, None] * sent[few][:, None])
        return doubt

    def _in_float64(self, few: tuple[NDArray, NDArray]) -> NDArray:
        """log10 ‖∂L/∂W_t‖ (F, parts, n) at a few steps and networks."""
        delta = Scaled(self.delta.array[few], self.delta.exponent[few]).aligned_by_step
        by_block, powers = _of_size_1(np.moveaxis(delta.array, 2, 1).astype(np.float64), 2)
        norms = []
        for part in self.parts:
            entered, size = _of_size_1(self.entered[few][..., part.rows].astype(np.float64), 1)
            formed = entered.swapaxes(-1, -2)[:, None] @ by_block
            norms.append(Scaled(formed, powers + (delta.exponent + size)[:, None]).log10_norm())
        return np.stack(norms, axis=1)


def _of_size_1(array: NDArray, leading: int) -> tuple[NDArray, NDArray]:
    """``array`` by a power of two for each of the ``leading`` indices, so that no product of two such leaves the type;
    and the exponents of what it is to be multiplied by again.
    """
    size = magnitude(array, leading)
    size[size == NOTHING] = 0
    return shift(array, -size), size


def step_gradients(
    workspace: Workspace, parts: tuple[Part, ...], times: NDArray, entered: NDArray, delta: Scaled
) -> StepGradients:
    """Of S networks side by side: ``entered`` (R, S, B, K), ``delta`` (R, S, B, n, H)."""
    scaled = bool((delta.exponent != delta.exponent[:1, :, :1]).any())
    found = _pass(workspace, parts, entered, delta, scaled)
    if not (scaled or np.isfinite(found[-2]).all()) and np.isfinite(entered).all() and np.isfinite(delta.array).all():
        found = _pass(workspace, parts, entered, delta, scaled=True)  # a product has left the range of the type
    return StepGradients(parts, times, entered, delta, *found)


def _pass(
    workspace: Workspace, parts: Sequence[Part], entered: NDArray, delta: Scaled, scaled: bool
) -> tuple[NDArray, NDArray, NDArray, NDArray, NDArray]:
    """Squares (R, S, n, parts), sizes (R, S, B, n), their exponents (R, S), Σ_t (S, K, n, H) and its exponents
    (S, parts); ``scaled`` where powers of two have to be carried along. In parts of the steps, with a total each.
    """
    steps, seeds, batch, blocks, width = delta.array.shape
    inner, dtype, buffers = entered.shape[-1], delta.array.dtype, workspace.buffers
    squares = buffers.empty((steps, seeds, blocks, len(parts)), dtype)
    sizes = buffers.empty((steps, seeds, batch, blocks), dtype)
    exponent = np.zeros((steps, seeds), np.int32) if scaled else np.array(delta.exponent[:, :, 0])
    rows = workspace.parts(steps, steps * batch * inner * blocks * width)
    totals = [buffers.empty((seeds, blocks, inner, width), dtype) for _ in rows]
    sums = np.full((len(rows), seeds, len(parts)), NOTHING)

    def add(part: int, some: slice) -> None:
        found = squares[some], sizes[some], exponent[some], totals[part], sums[part]
        _add_up(workspace, part, parts, entered[some], delta.steps(some), found, scaled)

    workspace.for_each(add, rows)
    common = sums.max(axis=0)
    if len(totals) > 1:
        for total, own in zip(totals, sums, strict=True):
            _change(parts, total, own, common)
        totals[0] += totals[1]
    common[common == NOTHING] = 0
    return squares, sizes, exponent, totals[0].swapaxes(1, 2), common


def _add_up(
    workspace: Workspace,
    part: int,
    parts: Sequence[Part],
    entered: NDArray,
    delta: Scaled,
    found: tuple[NDArray, NDArray, NDArray, NDArray, NDArray],
    scaled: bool,
) -> None:
    """Fills what one part of the steps has ``found``, in the order of ``_pass``; the total as (S, n, K, H)."""
    squares, sizes, exponent, total, sums = found

    total[:] = 0
    if not scaled:
        sums[:] = exponent[0, :, None]
    steps, body = len(entered), _Accumulate(tuple((part.rows.start, part.rows.stop) for part in parts), scaled)
    run = max(1, CHUNK_ELEMENTS * steps // max(delta.array.size, 1)) if scaled else steps
    for start in range(0, steps, run):
        rows = slice(start, min(start + run, steps))
        aligned, e = delta.steps(rows), entered[rows]
        if scaled:
            aligned, (e, enters) = aligned.aligned_to(2), _moderate(parts, e, exponent[rows])
            exponent[rows] += aligned.exponent
        arrays = [e, aligned.array, squares[rows], sizes[rows], repeated(total, len(e))]
        if scaled:
            arrays.append(_scales(parts, enters, aligned.array, exponent[rows], total, sums))
        workspace.loop(body, arrays, 0, part=part).run(arrays, 0, len(e))


@dataclass(frozen=True)
class _Accumulate:
    """∂L/∂W_t (S, n, K, H) of one step, in which a part of a block is one run of numbers; its norms; and its sum with
    those of the other steps. ``rows``: where each part begins and ends.
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


def _moderate(parts: Sequence[Part], entered: NDArray, exponent: NDArray) -> tuple[NDArray, NDArray]:
    """``entered`` so that no product with δ overflows, with what it was shifted by added to ``exponent`` (R, S); and
    the exponents of its parts (R, S, parts).
    """
    one = np.ones(exponent.shape, np.int32)
    enters = np.stack([magnitude(entered[..., part.rows], 2) if part.reads else one for part in parts], axis=-1)
    size = enters.max(axis=-1)
    if (size > LARGE).any():
        size[size <= LARGE] = 0
        exponent += size
        entered = shift(entered, -size)
        enters -= np.where(enters == NOTHING, 0, size[..., None])
    return entered, enters


def _scales(
    parts: Sequence[Part], enters: NDArray, delta: NDArray, exponent: NDArray, total: NDArray, sums: NDArray
) -> NDArray:
    """By what each row of ∂L/∂W_t is multiplied (R, S, 1, K, 1) before it is added to ``total``, whose exponents
    ``sums`` grow, in place, to that of the largest *contribution* yet. Under that of the largest δ a step would be lost
    at which little else than its small δ counts, because what entered elsewhere is 0.
    """
    scale = np.zeros((*enters.shape[:2], 1, total.shape[2], 1), delta.dtype)
    alive = magnitude(delta, 2) > NOTHING
    size = np.where(alive[..., None] & (enters > NOTHING), np.maximum(enters, SMALL) + exponent[..., None], NOTHING)
    largest = np.maximum(sums, size.max(axis=0))
    # What would be subnormal beside the largest is lost in the sum anyway, and would slow it down tenfold.
    counts = (size > NOTHING) & (size - largest >= np.finfo(delta.dtype).minexp)
    power = np.where(counts, np.ldexp(delta.dtype.type(1), np.where(counts, exponent[..., None] - largest, 0)), 0)
    _change(parts, total, sums, largest)
    for index, part in enumerate(parts):
        scale[:, :, :, part.rows, 0] = power[:, :, None, index, None]
    sums[:] = largest
    return scale


def _change(parts: Sequence[Part], total: NDArray, sums: NDArray, into: NDArray) -> None:
    """Brings ``total`` from the exponents ``sums`` (S, parts) to others, in place."""
    for index, part in enumerate(parts):
        if (into[:, index] != sums[:, index]).any():
            total[:, :, part.rows] = shift(total[:, :, part.rows], sums[:, index] - into[:, index])
