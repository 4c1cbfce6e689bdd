"""JAX's step: ``jit`` over ``lax.scan``, without measurement and with the norms of every step,
compiled beforehand.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from problem import Answer, Contestant, Problem

jax.config.update("jax_enable_x64", True)

UNROLL = 1, 4
"""Steps of the scan that are compiled as one; the faster is taken."""

Weights = tuple[Array, ...]
Factor = tuple[Array, Array]
"""What entered (T, B, K), and the gradient at what the weights gave (T, B, n·H)."""


def plain(problem: Problem) -> Iterator[Contestant]:
    def step(unroll: int, weights: Weights, x: Array, target: Array) -> Any:
        return jax.value_and_grad(lambda w: _loss(problem.cell, unroll, w, x, target, 0.0, 0.0)[0])(weights)

    for unroll in UNROLL:
        yield _compiled(problem, "JAX", f"unroll {unroll}", partial(step, unroll))


def with_norms(problem: Problem) -> Iterator[Contestant]:
    """Zeros added to the pre-activations and to the outputs have the gradients there; from these
    follows the rest.
    """
    counts = [len(names) for names in problem.names]

    def step(unroll: int, products: "Products", weights: Weights, x: Array, target: Array) -> Any:
        steps, batch, _ = x.shape
        zeros = jnp.zeros((steps, batch, len(weights[2])), x.dtype), jnp.zeros_like(target)
        differentiate = jax.value_and_grad(
            lambda added: _loss(problem.cell, unroll, weights, x, target, *added), has_aux=True
        )
        (loss, hidden), (delta, d_y) = differentiate(zeros)
        entering = jnp.concatenate([jnp.zeros_like(hidden[:1]), hidden[:-1]])
        ones = jnp.ones((steps, batch, 1), x.dtype)
        factors = (x, delta), (entering, delta), (ones, delta), (hidden, d_y), (ones, d_y)
        weight_gradients = [products(factor, n) for factor, n in zip(factors, counts, strict=True)]
        gradient, norms = zip(*weight_gradients, strict=True)
        return loss, [g.reshape(w.shape) for g, w in zip(gradient, weights, strict=True)], norms

    for unroll in UNROLL:
        yield _compiled(problem, "JAX, norms", f"formed step by step, unroll {unroll}", partial(step, unroll, _formed))
    yield _compiled(problem, "JAX, norms", "Gram identity", partial(step, 1, _gram))


def _compiled(problem: Problem, name: str, variant: str, step: Callable[..., Any]) -> Contestant:
    arguments = jax.tree.map(jnp.asarray, (problem.weights, problem.batch.inputs, problem.batch.targets))
    run = jax.jit(step).lower(*arguments).compile()

    def read(outputs: Any) -> Answer:
        loss, gradient, *norms = outputs
        return problem.answer(float(loss), gradient, norms[0] if norms else None)

    return Contestant(name, variant, {"step": lambda _: jax.block_until_ready(run(*arguments))}, read)


def _loss(
    cell: str,
    unroll: int,
    weights: Weights,
    x: Array,
    target: Array,
    pre_offset: Array | float,
    y_offset: Array | float,
) -> tuple[Array, Array]:
    """Mean squared error, and H_1 … H_T, with something added to the pre-activations and to the
    outputs.
    """
    w_x, w_h, b, w_hy, b_y = weights

    def step(states: tuple[Array, Array], input_term: Array) -> tuple[tuple[Array, Array], Array]:
        h, c = states
        a = input_term + h @ w_h
        if cell == "rnn":
            h = jnp.tanh(a)
        else:
            i, f, o, g = jnp.split(a, 4, axis=1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    zero = jnp.zeros((x.shape[1], len(w_h)), x.dtype)
    _, hidden = lax.scan(step, (zero, zero), x @ w_x + b + pre_offset, unroll=unroll)
    return jnp.mean((hidden @ w_hy + b_y + y_offset - target) ** 2), hidden


Products = Callable[[Factor, int], tuple[Array, Array]]
"""The sum over the steps (K, n·H) and the norms (T, n) of ∂L/∂W_t."""


def _formed(factor: Factor, count: int) -> tuple[Array, Array]:
    """Forms ∂L/∂W_t step by step and reads norm and sum at once; all steps at once took longer."""
    inputs, delta = factor

    def step(total: Array, factor_at_t: Factor) -> tuple[Array, Array]:
        gradient = factor_at_t[0].T @ factor_at_t[1]
        squares = jnp.square(gradient.reshape(len(gradient), count, -1)).sum(axis=(0, 2))
        return total + gradient, jnp.sqrt(squares)

    return lax.scan(step, jnp.zeros((inputs.shape[-1], delta.shape[-1]), delta.dtype), (inputs, delta))


def _gram(factor: Factor, count: int) -> tuple[Array, Array]:
    """‖Σ_b x_b δ_bᵀ‖² = Σ_ab (x_a·x_b)(δ_a·δ_b) (Goodfellow 2015), in float64, since it cancels."""
    inputs, delta = factor
    blocks = delta.reshape(*delta.shape[:2], count, -1).astype(jnp.float64)
    inputs64 = inputs.astype(jnp.float64)
    squares = jnp.einsum("tak,tbk->tab", inputs64, inputs64)[:, None] * jnp.einsum("tamh,tbmh->tmab", blocks, blocks)
    return jnp.einsum("tbk,tbh->kh", inputs, delta), jnp.sqrt(squares.sum(axis=(2, 3)))
