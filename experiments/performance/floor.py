"""The floor: the matrix products that a step cannot do without, in NumPy with outputs allocated
before, and no more.

T products with W_h forwards, T with W_hᵀ backwards, one over all steps for each weight gradient and
for the input, and the readout's three. No nonlinearity, no bias, no loss; the arrays hold random
numbers.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from contest import fastest
from problem import Contestant, Problem

PARTS = ("forward", "readout", "readout, back", "backward", "weights")


def contestant(problem: Problem, threads: int = 1) -> Contestant:
    """Every part in the layout that is faster on this BLAS, with one thread of it or with
    ``threads``.
    """
    layouts = parts(problem)
    if threads > 1:
        controller = ThreadpoolController()
        layouts = {
            part: [*variants, *(_with_blas_threads(variant, controller, threads) for variant in variants)]
            for part, variants in layouts.items()
        }
    chosen = {part: fastest(variants) for part, variants in layouts.items()}
    description = ", ".join(f"{part} {product.variant}" for part, product in chosen.items())
    return Contestant("floor", description, {part: product.stages["step"] for part, product in chosen.items()}, None)


def _with_blas_threads(product: Contestant, blas: ThreadpoolController, threads: int) -> Contestant:
    def step(value: Any) -> Any:
        with blas.limit(limits=threads, user_api="blas"):
            return product.stages["step"](value)

    return Contestant(product.name, f"{product.variant} in {threads} threads", {"step": step}, None)


def parts(problem: Problem, seed: int = 0) -> dict[str, list[Contestant]]:
    """Part → the same products with the arrays (…, B, n·H), with (…, n, B, H), a product a gate,
    and with (…, n·H, B); each returns its outputs.
    """
    steps, batch, hidden = problem.shape
    w_x, w_h, b, w_hy, _ = problem.weights
    rng = np.random.default_rng(seed)

    def random(width: int) -> NDArray:
        return rng.normal(size=(steps, batch, width)).astype(problem.dtype)

    x, h, delta, d_y = problem.batch.inputs, random(hidden), random(len(b)), random(w_hy.shape[1])
    arrays = (x, h, delta, d_y, w_x, w_h, w_hy)
    layouts = {
        "batch-major": _batch_major(*arrays),
        "by gate": _gate_major(*arrays),
        "feature-major": _feature_major(*arrays),
    }
    return {
        part: [
            Contestant(part, name, {"step": layout_parts[part]}, None)
            for name, layout_parts in layouts.items()
            if part in layout_parts
        ]
        for part in PARTS
    }


Products = dict[str, Callable[[Any], tuple[NDArray, ...]]]


def _batch_major(
    x: NDArray, h: NDArray, delta: NDArray, d_y: NDArray, w_x: NDArray, w_h: NDArray, w_hy: NDArray
) -> Products:
    flat_x, flat_h, flat_delta, flat_y = (a.reshape(-1, a.shape[-1]) for a in (x, h, delta, d_y))
    w_h_t, w_hy_t = np.ascontiguousarray(w_h.T), np.ascontiguousarray(w_hy.T)
    pre, recurrent, d_state = np.empty_like(flat_delta), np.empty_like(delta[0]), np.empty_like(h[0])
    d_w_x, d_w_h, d_w_hy = np.empty_like(w_x), np.empty_like(w_h), np.empty_like(w_hy)
    y, d_h = np.empty_like(flat_y), np.empty_like(flat_h)

    def forward(_: Any) -> tuple[NDArray, ...]:
        np.matmul(flat_x, w_x, out=pre)
        for row in h:
            np.matmul(row, w_h, out=recurrent)
        return pre, recurrent

    def backward(_: Any) -> tuple[NDArray, ...]:
        for row in delta:
            np.matmul(row, w_h_t, out=d_state)
        return (d_state,)

    def weights(_: Any) -> tuple[NDArray, ...]:
        return np.matmul(flat_x.T, flat_delta, out=d_w_x), np.matmul(flat_h.T, flat_delta, out=d_w_h)

    def readout(_: Any) -> tuple[NDArray, ...]:
        return (np.matmul(flat_h, w_hy, out=y),)

    def readout_back(_: Any) -> tuple[NDArray, ...]:
        return np.matmul(flat_y, w_hy_t, out=d_h), np.matmul(flat_h.T, flat_y, out=d_w_hy)

    return dict(zip(PARTS, (forward, readout, readout_back, backward, weights), strict=True))


def _gate_major(
    x: NDArray, h: NDArray, delta: NDArray, d_y: NDArray, w_x: NDArray, w_h: NDArray, w_hy: NDArray
) -> Products:
    """Batch-major with the gates apart, which needs their sum backwards; the readout has none."""
    steps, batch, hidden = h.shape

    def split_gates(array: NDArray) -> NDArray:
        """(…, rows, n·H) → (…, n, rows, H)."""
        return np.ascontiguousarray(array.reshape(*array.shape[:-1], -1, hidden).swapaxes(-2, -3))

    def join_gates(array: NDArray) -> NDArray:
        return array.swapaxes(-2, -3).reshape(*array.shape[:-3], array.shape[-2], -1)

    flat_x, flat_h, gates = x.reshape(-1, x.shape[-1]), h.reshape(-1, hidden), split_gates(delta)
    flat_gates = split_gates(delta.reshape(steps * batch, -1))
    w_x_by_gate, w_h_by_gate = split_gates(w_x), split_gates(w_h)
    w_h_by_gate_t = np.ascontiguousarray(w_h_by_gate.swapaxes(-1, -2))
    pre, recurrent, d_state_by_gate = np.empty_like(flat_gates), np.empty_like(gates[0]), np.empty_like(gates[0])
    d_state, d_w_x, d_w_h = np.empty_like(h[0]), np.empty_like(w_x_by_gate), np.empty_like(w_h_by_gate)

    def forward(_: Any) -> tuple[NDArray, ...]:
        np.matmul(flat_x, w_x_by_gate, out=pre)
        for row in h:
            np.matmul(row, w_h_by_gate, out=recurrent)
        return join_gates(pre), join_gates(recurrent)

    def backward(_: Any) -> tuple[NDArray, ...]:
        for row in gates:
            np.matmul(row, w_h_by_gate_t, out=d_state_by_gate)
            np.add.reduce(d_state_by_gate, axis=0, out=d_state)
        return (d_state,)

    def weights(_: Any) -> tuple[NDArray, ...]:
        np.matmul(flat_x.T, flat_gates, out=d_w_x)
        np.matmul(flat_h.T, flat_gates, out=d_w_h)
        return join_gates(d_w_x), join_gates(d_w_h)

    return {"forward": forward, "backward": backward, "weights": weights}


def _feature_major(
    x: NDArray, h: NDArray, delta: NDArray, d_y: NDArray, w_x: NDArray, w_h: NDArray, w_hy: NDArray
) -> Products:
    """The same with every array transposed: one step's (H, B), all steps' (H, T·B)."""
    flat_x, flat_h, flat_delta, flat_y = (
        np.ascontiguousarray(a.reshape(-1, a.shape[-1]).T) for a in (x, h, delta, d_y)
    )
    h, delta = (np.ascontiguousarray(a.swapaxes(1, 2)) for a in (h, delta))
    w_x_t, w_h_t, w_hy_t = (np.ascontiguousarray(w.T) for w in (w_x, w_h, w_hy))
    pre, recurrent, d_state = np.empty_like(flat_delta), np.empty_like(delta[0]), np.empty_like(h[0])
    d_w_x, d_w_h, d_w_hy = np.empty_like(w_x_t), np.empty_like(w_h_t), np.empty_like(w_hy_t)
    y, d_h = np.empty_like(flat_y), np.empty_like(flat_h)

    def forward(_: Any) -> tuple[NDArray, ...]:
        np.matmul(w_x_t, flat_x, out=pre)
        for row in h:
            np.matmul(w_h_t, row, out=recurrent)
        return pre, recurrent

    def backward(_: Any) -> tuple[NDArray, ...]:
        for row in delta:
            np.matmul(w_h, row, out=d_state)
        return (d_state,)

    def weights(_: Any) -> tuple[NDArray, ...]:
        return np.matmul(flat_delta, flat_x.T, out=d_w_x), np.matmul(flat_delta, flat_h.T, out=d_w_h)

    def readout(_: Any) -> tuple[NDArray, ...]:
        return (np.matmul(w_hy_t, flat_h, out=y),)

    def readout_back(_: Any) -> tuple[NDArray, ...]:
        return np.matmul(w_hy, flat_y, out=d_h), np.matmul(flat_y, flat_h.T, out=d_w_hy)

    return dict(zip(PARTS, (forward, readout, readout_back, backward, weights), strict=True))
