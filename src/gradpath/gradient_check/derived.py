"""The expected columns of those readings that are computed from several passes, from Jacobians, or
from the clipped gradient.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from gradpath.core.finite_differences import untied_loss
from gradpath.core.graded_product import products
from gradpath.core.jacobians import adjoint_qr, lyapunov_exponents
from gradpath.core.roles import READOUT
from gradpath.core.trace import Trace
from gradpath.gradient_check.columns import Column, cosine_of, equal_or_nan, norm_of, norm_of_total, total_gradient
from gradpath.gradient_check.findings import ALLOWED, BLAME
from gradpath.gradient_check.pointwise import HELD
from gradpath.gradient_check.reference import Reference
from gradpath.gradient_check.textbook import Stepwise, gate_weights, log10_norm, ratio
from gradpath.instruments import Instrument
from gradpath.instruments.clipping_ledger import ClippingLedger
from gradpath.instruments.credit import Credit
from gradpath.instruments.jacobian_log_singular_values import JacobianLogSingularValues
from gradpath.instruments.lyapunov_spectrum import LyapunovSpectrum

DRAWS = 4
"""Number of times that the Jacobians are perturbed within their uncertainty."""


def clipping_ledger(reference: Reference, trace: Trace, instrument: Instrument) -> Iterator[tuple[str, Column]]:
    """Both kinds of clipping, applied to the textbook's gradient as it is trained.

    The uncertainty of a cosine follows from that of its two directions: for unit vectors |⟨u, v⟩ −
    ⟨u′, v′⟩| ≤ ‖u − u′‖ + ‖v − v′‖. The difference of the two cosines would not show it, because
    both are about 0 where a direction is unknown. In a vector below the normal numbers of its type,
    each element rounds by at most half of the smallest number s, which turns the vector by at most
    2 · (s/2) √P / ‖v‖.
    """
    assert isinstance(instrument, ClippingLedger)
    trained = trace.gradient if trace.trained is None else trace.trained
    flat, exponent = total_gradient(reference, trace, readout=trained is trace.gradient)
    raw = norm_of_total(flat, exponent)
    plain = np.ldexp(flat, exponent)
    applied = plain if trace.applied is None else np.stack([trace.applied.astype(np.float64)] * 2)
    size = np.abs(plain).max() or 1.0
    lengths = np.linalg.norm(plain / size, axis=1) * size
    by_norm = plain * np.minimum(1, instrument.max_norm / np.where(lengths > 0, lengths, 1))[:, None]
    by_value = np.clip(plain, -instrument.max_value, instrument.max_value)
    near_limit = np.abs(np.abs(plain[0]) / instrument.max_value - 1) < ALLOWED["float32"]
    share = np.mean(np.abs(plain) > instrument.max_value, axis=1)
    smallest = float(np.finfo(trained.scaled.array.dtype).smallest_subnormal)
    rounds = np.log10(smallest * np.sqrt(np.count_nonzero(flat[0])))

    def rounding(vectors: NDArray) -> float:
        return float(ratio(rounds, log10_norm(vectors[0], 0)))

    def norm(vectors: NDArray) -> Column:
        column = norm_of_total(vectors, 0)
        return replace(column, doubt=column.doubt + rounding(vectors))

    def cosine(vectors: NDArray) -> Column:
        value = cosine_of(vectors[:1], flat[:1])[0] if vectors[0].any() else np.nan
        turned = [float(np.linalg.norm(moved - unit)) for unit, moved in map(_units, (vectors, flat))]
        doubt = sum(turned) + rounding(vectors)
        definite = BLAME * doubt < 1  # otherwise the vector may be a true zero, which has no direction
        return Column(np.asarray(value if definite else np.nan), doubt, nan_expected=definite)

    yield "log10_raw_norm", raw
    yield "log10_applied_norm", norm(applied)
    yield "engaged", Column(np.asarray(float(trace.clip_scale < 1)))
    yield "non_finite", Column(np.asarray(0.0))
    yield "cosine", cosine(applied)
    for kind, vectors in (("norm_clip", by_norm), ("value_clip", by_value)):
        yield f"{kind}/cosine", cosine(vectors)
        yield f"{kind}/log10_norm", norm(vectors)
    yield "value_clip/share", Column(share[0], abs(share[1] - share[0]) + near_limit.mean())


def counterfactual(reference: Reference, trace: Trace, _: Instrument) -> Iterator[tuple[str, Column]]:
    """The textbook's backward passes of the cells with a gate held, each from its own forward
    pass.
    """
    cell, tape = reference.cell, reference.tape
    for name, variant in {"factual": cell, **cell.counterfactuals()}.items():
        held = reference
        if name != "factual":
            network = replace(reference.network, cell=variant)
            held = Reference(network, network.forward(tape.theta, tape.batch))
        for layer, layer_reference in enumerate(held.layers):
            for state, value in layer_reference.states.items():
                yield f"{name}/{reference.network.prefix(layer)}{state}", norm_of(value)


def jacobians(reference: Reference, layer: int, sequence: int, draw: int) -> Iterator[NDArray]:
    """The dense ∂s_t/∂s_{t-1} (k·H, k·H) of one sequence, from the last step to the first. In
    blocks over [H, C], each is diag(∂s/∂s), plus Σ_gates diag(∂s/∂a) W_·hᵀ in the columns of H.
    Draw 0 is the value; every other draw adds the uncertainty of each local derivative with a
    random sign.
    """
    rng = np.random.default_rng(draw)
    cell, width = reference.cell, reference.cell.hidden_size
    blocks, state_count = len(cell.blocks), len(cell.states)
    recurrent = reference.weights[layer].h.astype(np.float64)
    matrices = gate_weights(recurrent, width)
    for t in reversed(range(reference.tape.length)):
        derivative = reference.derivatives[layer]
        twins = derivative.jacobian(t)
        twins = twins if cell.truncated else derivative.with_elementwise(twins)
        local, moved = twins[..., sequence, :]
        if draw:
            local = local + (moved - local) * rng.choice([-1, 1], local.shape)
        dense = np.zeros((state_count, width, state_count, width))
        for leaving in range(state_count):
            for entering in range(state_count):
                dense[leaving, :, entering] = np.diag(local[leaving, blocks + entering])
            for block, matrix in zip(range(*cell.reads_h.indices(blocks)), matrices, strict=True):
                if not cell.truncated:
                    dense[leaving, :, 0] += local[leaving, block][:, None] * matrix.T
        yield dense.reshape(state_count * width, state_count * width)


def _sequence_means(
    reference: Reference, count: int, read: Callable[[Iterator[NDArray]], NDArray]
) -> Iterator[tuple[int, NDArray, NDArray]]:
    """The readings of the factors of the Jacobians' product, averaged over sequences: layer, value,
    uncertainty. The uncertainty is the largest change over several draws, because a single draw may
    happen to change nothing where QR has lost the digits of a direction.
    """
    sequences = min(count, reference.tape.batch.mask.shape[1])
    for layer in range(reference.network.layers):
        value, *moved = (
            np.mean([read(adjoint_qr(jacobians(reference, layer, b, draw))) for b in range(sequences)], axis=0)
            for draw in range(1 + DRAWS)
        )
        with np.errstate(invalid="ignore"):
            doubts = [
                np.where(equal_or_nan(value, drawn), 0, np.nan_to_num(np.abs(drawn - value), nan=np.inf))
                for drawn in moved
            ]
        yield layer, value, np.max(doubts, axis=0)


def lyapunov(reference: Reference, trace: Trace, instrument: Instrument) -> Iterator[tuple[str, Column]]:
    assert isinstance(instrument, LyapunovSpectrum)
    warm_up = min(instrument.warm_up, reference.tape.length - 1)
    read = partial(lyapunov_exponents, warm_up=warm_up)
    for layer, value, doubt in _sequence_means(reference, instrument.sequences, read):
        doubt = np.where((value > -np.inf) & (value < np.log(HELD)), np.inf, doubt)  # it may be read as a true zero
        for k, column in enumerate(map(Column, value, doubt), 1):
            yield f"{reference.network.prefix(layer)}lambda_{k}", column


def singular_values(reference: Reference, trace: Trace, instrument: Instrument) -> Iterator[tuple[str, Column]]:
    assert isinstance(instrument, JacobianLogSingularValues)
    lags = np.unique(np.geomspace(1, max(1, reference.tape.length - 1), instrument.lags).round().astype(int)).tolist()

    def read(factors: Iterator[NDArray]) -> NDArray:
        numbered = enumerate(islice(products(factors), max(lags)), 1)
        return np.stack([product.log_singular_values() for lag, product in numbered if lag in lags]) / np.log(10)

    for layer, value, doubt in _sequence_means(reference, instrument.sequences, read):
        for lag, row, doubts in zip(lags, value, doubt, strict=True):
            for k, (logarithm, uncertainty) in enumerate(zip(row, doubts, strict=True), 1):
                yield (
                    f"{reference.network.prefix(layer)}lag={lag}/sigma_{k}",
                    Column(logarithm, np.expm1(uncertainty * np.log(10)), log=True),
                )


def counterfactual_loss(reference: Reference, trace: Trace, _: Instrument) -> Iterator[tuple[str, Column]]:
    """The loss of an untied forward pass: in float64, in the tape's type, and in float64 with every
    weight moved by one rounding of that type. The last of these shows how far rounding can change
    the loss.
    """
    tape, network = reference.tape, reference.network
    dtype = tape.theta.dtype.type
    theta, batch = tape.theta.astype(np.float64), tape.batch.astype(np.float64)
    moved = theta * (1 + np.finfo(dtype).eps * np.random.default_rng(0).choice((-1, 1), theta.shape))
    for name, cell in {"factual": reference.cell, **reference.cell.counterfactuals()}.items():
        held = replace(network, cell=cell)
        exact, rounded, sensitive = (
            untied_loss(held, np.tile(weights, (tape.length, 1)), typed_batch)
            for weights, typed_batch in ((theta, batch), (tape.theta, tape.batch.astype(dtype)), (moved, batch))
        )
        doubt = abs(rounded - exact) + abs(sensitive - exact) + np.finfo(dtype).eps * max(1.0, abs(exact))
        yield name, Column(np.asarray(exact), doubt)


def credit(reference: Reference, trace: Trace, instrument: Instrument) -> Iterator[tuple[str, Column]]:
    assert isinstance(instrument, Credit)
    length, limit = reference.tape.length, instrument.max_steps
    steps = range(length) if length <= limit else np.linspace(length - 1, 0, limit).round().astype(int)[::-1].tolist()
    gradients, scored = _recurrent(reference), {int(s): row for row, s in enumerate(reference.tape.scored)}
    for s in steps:
        step_gradient = _recurrent(reference.of_step(scored[s])) if s in scored else None
        yield (
            f"credit/{s + 1}",
            Column(np.full(length, -np.inf), log=True) if step_gradient is None else norm_of(step_gradient),
        )
    unit, doubt = _units(gradients.values[0]), gradients.uncertainty()
    for s in steps:
        yield f"alignment/{s + 1}", Column(unit @ unit[s], doubt + doubt[s])
    yield "norm", norm_of(gradients)


def _recurrent(reference: Reference) -> Stepwise:
    """∂L/∂θ_t (2, T, P) of all parameters except the readout's, under one exponent for each
    step.
    """
    gradients = [steps for _, name, steps in reference.gradients() if name not in READOUT]
    exponent = np.max([steps.exponent for steps in gradients], axis=0)
    flat = [
        np.ldexp(steps.values, np.maximum(steps.exponent - exponent, -5000)[:, None, None]).reshape(
            2, len(exponent), -1
        )
        for steps in gradients
    ]
    return Stepwise(np.concatenate(flat, axis=-1), exponent)


def _units(vectors: NDArray) -> NDArray:
    """The rows scaled to norm 1; a row that is a true zero stays 0."""
    largest = np.abs(vectors).max(axis=1, keepdims=True)
    flat = vectors / np.where(largest > 0, largest, 1)
    norm = np.linalg.norm(flat, axis=1, keepdims=True)
    return flat / np.where(norm > 0, norm, 1)
