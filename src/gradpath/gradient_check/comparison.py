"""Compares one pass, its results and the readings of it, with the references."""

from dataclasses import replace
from itertools import product

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from gradpath.core.finite_differences import assembled, central_difference, forward_difference, untied_loss
from gradpath.core.network import Network
from gradpath.core.scaled import Scaled
from gradpath.core.tape import Batch
from gradpath.core.trace import Trace
from gradpath.gradient_check import declared, nonfinite, training
from gradpath.gradient_check.columns import total_gradient
from gradpath.gradient_check.findings import ALLOWED, Findings, adjoint_errors, certain
from gradpath.gradient_check.recorded import errors
from gradpath.gradient_check.reference import Reference
from gradpath.gradient_check.textbook import Stepwise
from gradpath.gradient_check.watching import Watch

STEPS = (1e-2, 1e-3, 1e-1, 1e-4, 1e-5, 1e-6)
"""Step sizes of the differences. The smallest error counts: a wide step may cross a corner of relu
and a narrow one rounds, but a wrong gradient is wrong at every step size.
"""


def compare(watch: Watch, case: str, differences: bool = False, rng: Generator | None = None) -> Findings:
    """Compares all results of one pass and all readings of it."""
    network, trace = watch.network, watch.trace
    tape = trace.tape
    findings = Findings(case, ALLOWED[str(tape.outputs.dtype)])
    with np.errstate(all="ignore"):
        # A separate tape, which no backward pass has changed.
        fresh = network.forward(tape.theta.astype(tape.outputs.dtype), tape.batch.astype(tape.outputs.dtype.type))
        if not np.isfinite(fresh.loss):
            nonfinite.explain(fresh, findings)
            return findings
        reference = Reference(network, fresh)
        declared.forward(fresh, reference, findings)
        if tape.theta.dtype != tape.outputs.dtype:  # a second pass in float64, from the loss gradient of the first
            wide = network.forward(tape.theta, tape.batch)
            reference = Reference(
                network, replace(wide, outputs=fresh.outputs, loss=fresh.loss, loss_gradient=fresh.loss_gradient)
            )
        declared.check(reference, findings)
        _adjoints(trace, reference, findings)
        _gradients(trace, reference, findings)
        if differences:
            findings.case = f"{case}, untied differences"
            _differences(network, trace, rng or np.random.default_rng(0), findings)
            findings.case = case
        _totals(trace, reference, findings)
        for name, reading in watch.measurements.items():
            if name in watch.differs:
                findings.add(f"{name}, read again", certain(np.inf))
            if isinstance(reading, Exception):
                findings.add(name, certain(np.inf), part=str(reading).splitlines()[0])
                continue
            part, column_errors = errors(reference, trace, watch.instruments[name], reading)
            findings.add(name, column_errors, 0 if network.layers == 1 else None, part, carried=False)
        training.check(watch, reference, findings)
    return findings


def _adjoints(trace: Trace, reference: Reference, findings: Findings) -> None:
    """The total and the direct derivatives of every state, and those of the pre-activations."""
    cell = reference.cell
    for layer, layer_reference in enumerate(reference.layers):
        prefix = reference.network.prefix(layer)
        hidden = prefix + cell.states[0]
        findings.add(f"∂⁺L/∂{hidden}", adjoint_errors(trace.direct[hidden], layer_reference.direct), layer)
        for name, value in layer_reference.states.items():
            findings.add(f"∂L/∂{prefix}{name}", adjoint_errors(trace.states[prefix + name], value), layer)
        for block, name in enumerate(cell.blocks):
            claim = trace.deltas[layer]
            claimed = Scaled(claim.array[..., block, :], claim.exponent)
            expected = Stepwise(layer_reference.delta.values[..., block, :], layer_reference.delta.exponent)
            findings.add(f"∂L/∂{prefix}a", adjoint_errors(claimed, expected), layer, f"a_{name}")


def _gradients(trace: Trace, reference: Reference, findings: Findings) -> None:
    """∂L/∂θ_t, all elements of every parameter."""
    claims = {name: (factor, block) for factor in trace.factors for block, name in enumerate(factor.names)}
    for layer, name, expected in reference.gradients():
        factor, block = claims[name]
        claimed, exponent = np.zeros_like(expected.values[0]), np.zeros(len(expected.exponent), int)
        for rows, step in factor.per_step():
            claimed[factor.times[rows]] = step.array[:, block].reshape(-1, *claimed.shape[1:])
            exponent[factor.times[rows]] = step.exponent[:, 0]
        findings.add(name, adjoint_errors(Scaled(claimed, exponent), expected), layer)


def _differences(network: Network, trace: Trace, rng: Generator, findings: Findings) -> None:
    """Untied differences of every parameter at every timestep."""
    tape = trace.tape
    layers = {network.prefix(k): k for k in range(network.layers)}
    for factor in trace.factors:
        steps = assembled(factor, tape.length)
        for block, name in enumerate(factor.names):
            layer = layers.get(name.rpartition("/")[0] + "/" * ("/" in name), network.layers - 1)
            deviations = [
                _by_differences(network, tape.theta, tape.batch, name, t, steps.array[t, block], exponent, rng)
                for t, exponent in enumerate(steps.exponent.tolist())
            ]
            findings.add(name, certain(deviations), layer)


def _by_differences(
    network: Network, theta: NDArray, batch: Batch, name: str, t: int, gradient: NDArray, exponent: int, rng: Generator
) -> float:
    """The error of ⟨∂L/∂θ_t, v⟩ for a random unit vector v, which shows an error of the gradient by
    about ‖error‖/√size. The rounding of the loss alone, which differences cannot resolve, is
    subtracted.
    """
    direction = rng.normal(size=gradient.shape)
    direction /= np.linalg.norm(direction)
    claim = np.ldexp(float(np.sum(gradient * direction)), exponent)
    size = np.ldexp(float(np.linalg.norm(gradient)) / np.sqrt(gradient.size), exponent)
    thetas = np.tile(theta, (len(batch.mask), 1))
    moved = network.parameters(thetas[t])[name]
    start = moved.copy()

    def loss(change: float) -> float:
        moved[...] = start + change * direction
        return untied_loss(network, thetas, batch)

    best, base = np.inf, abs(loss(0.0))
    for difference, step in product((central_difference, forward_difference), STEPS):
        blind = 64 * float(np.finfo(np.float64).eps) * max(1.0, base) / step / ALLOWED["float64"]
        slopes = [difference(loss, step)]
        if difference is forward_difference:  # and backward: near a corner, one of them stays on its side
            slopes.append(difference(loss, -step))
        best = min(best, *(float(abs(slope - claim) / (size + blind)) for slope in slopes))
        if best <= ALLOWED["float64"] / 10:
            break
    return best


def _totals(trace: Trace, reference: Reference, findings: Findings) -> None:
    """∂L/∂θ = Σ_t ∂L/∂θ_t: each matrix, and all of them end to end."""
    for names, claim in trace.gradient.parts:
        for block, name in enumerate(names):
            values, exponent = reference.totals[name]
            expected = Stepwise(values.reshape(2, 1, -1), np.array([exponent]))
            claimed = Scaled(claim.array[..., block, :].reshape(1, -1), np.reshape(claim.exponent, 1))
            findings.add("Σ_t ∂L/∂θ_t, each parameter", adjoint_errors(claimed, expected).largest, part=name)
    values, exponent = total_gradient(reference, trace)
    claim = trace.gradient.scaled
    claimed = Scaled(claim.array[None], np.reshape(claim.exponent, 1))
    expected = Stepwise(values[:, None], np.array([exponent]))
    findings.add("Σ_t ∂L/∂θ_t, end to end", adjoint_errors(claimed, expected).largest)
