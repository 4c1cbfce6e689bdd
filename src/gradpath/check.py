"""The gradient check of any configuration: every parameter at every timestep, by two oracles that know no BPTT.

*Untied differences*: perturb θ at step t only, along a random direction v, and compare the central difference of the
loss with ⟨∂L/∂θ_t, v⟩. A wrong element anywhere shows, since v touches them all.

*Adjoint dot product*: ⟨λ, J v⟩ = ⟨Jᵀ λ, v⟩ for the Jacobian J of the whole rest of the sequence. J v is propagated
forwards, the cell's step differentiated by central differences and everything linear exactly, and rescaled at every
step; so it is right to ten digits where the gradient has vanished and differences of the loss see only rounding.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from gradpath.experiment import Experiment
from gradpath.gradcheck import assembled, central_difference, tangent_terms, untied_loss
from gradpath.network import Network
from gradpath.records import Batch, Tape
from gradpath.settings import SettingError

TOLERANCE = 1e-7
STEPS = (1e-2, 1e-4)
"""Step sizes of the differences. Of the two errors the smaller counts: a wide step may cross a corner of relu, a narrow
one rounds; a wrong gradient is wrong at both."""
HIDDEN, SEQUENCES, LENGTHS = 4, 3, range(5, 60)


@dataclass(frozen=True)
class Row:
    """The worst of one parameter, by both oracles: error relative to ‖∂L/∂θ_t‖, and the timestep (from 1) of it."""

    parameter: str
    differences: float
    differences_at: int
    dot_product: float
    dot_product_at: int

    @property
    def worst_at(self) -> int:
        """The timestep at which the larger of the two errors is."""
        return self.differences_at if self.differences >= self.dot_product else self.dot_product_at

    @property
    def passed(self) -> bool:
        return self.differences <= TOLERANCE and self.dot_product <= TOLERANCE


def shrunk(experiment: Experiment) -> tuple[Network, NDArray, Batch, Generator]:
    """The configuration at a size at which differences can be taken: float64, few units, sequences and steps; and θ
    moved off the special points (zeros, exact symmetries) that an initialisation may have, at which errors can hide.
    """
    rng = np.random.default_rng(experiment.seed)
    task = experiment.task
    for length in LENGTHS:
        try:
            task = replace(experiment.task, length=min(length, experiment.task.length))
            break
        except SettingError:  # too short for this task
            continue
    cell = replace(experiment.cell, hidden_size=min(HIDDEN, experiment.cell.hidden_size))
    network = Network(cell, *task.sizes, task.loss)
    theta = experiment.init.draw(rng, network, np.float64) + rng.uniform(-0.5, 0.5, network.size)
    return network, theta, task.sample(rng, SEQUENCES), rng


def check(network: Network, theta: NDArray, batch: Batch, rng: Generator) -> list[Row]:
    """Checks the gradient of every parameter at every timestep; float64 throughout."""
    tape = network.forward(theta, batch)
    network.backward(theta, network.forward(theta, batch))  # the second pass is the one checked: it must not add to it
    trace = network.backward(theta, tape)
    reference = network.forward(theta, batch)  # the differences' own tape, which no backward pass has touched
    rows = []
    for factor in trace.factors:
        steps = assembled(factor, len(batch.mask))
        for block, name in enumerate(factor.names):
            errors = np.zeros((2, len(batch.mask)))
            for t, exponent in enumerate(steps.exponent.tolist()):
                claim = _Claim(name, t, steps.array[t, block], exponent, rng)
                errors[:, t] = (
                    _by_differences(claim, network, theta, batch),
                    _by_tangent(claim, network, theta, reference),
                )
            worst = errors.argmax(axis=1)
            rows.append(Row(name, errors[0, worst[0]], int(worst[0]) + 1, errors[1, worst[1]], int(worst[1]) + 1))
    return rows


def table(rows: list[Row]) -> str:
    """The rows as a person reads them, and a verdict."""
    width = max(len(row.parameter) for row in rows)
    lines = [f"{'parameter':<{width}}  {'untied differences':>18} at t  {'dot product':>11} at t"]
    for row in rows:
        line = f"{row.parameter:<{width}}  {row.differences:>18.1e} {row.differences_at:>4}"
        lines.append(f"{line}  {row.dot_product:>11.1e} {row.dot_product_at:>4}{'' if row.passed else '  WRONG'}")
    wrong = [row for row in rows if not row.passed]
    verdict = "wrong: " + ", ".join(f"{r.parameter} at t = {r.worst_at}" for r in wrong) if wrong else "all right"
    return "\n".join([*lines, f"{verdict} (largest relative error allowed: {TOLERANCE:g})"])


class _Claim:
    """What backpropagation says of one parameter at one step: ⟨∂L/∂θ_t, v⟩ = ``value · 2^exponent`` for a random v."""

    def __init__(self, parameter: str, t: int, gradient: NDArray, exponent: int, rng: Generator) -> None:
        self.parameter, self.t, self.exponent = parameter, t, exponent
        self.direction = rng.normal(size=gradient.shape)
        self.direction /= np.linalg.norm(self.direction)
        self.value = float(np.sum(gradient * self.direction))
        # ⟨g, v⟩ is about ‖g‖/√size for a random unit v; an error of g shows in it by as much.
        self.size = float(np.linalg.norm(gradient)) / np.sqrt(gradient.size)


def _by_differences(claim: _Claim, network: Network, theta: NDArray, batch: Batch) -> float:
    """Relative error against the central difference of the loss along v at step t."""
    thetas = np.tile(theta, (len(batch.mask), 1))
    moved = network.parameters(thetas[claim.t])[claim.parameter]
    start = moved.copy()

    def loss(change: float) -> float:
        moved[...] = start + change * claim.direction
        return untied_loss(network, thetas, batch)

    errors = []
    for step in STEPS:
        difference = central_difference(loss, step)
        # What rounding of the loss alone may add to a difference: below it this oracle is blind, the other one is not.
        blind = 64 * np.finfo(np.float64).eps * max(1.0, abs(loss(0.0))) / step / TOLERANCE
        off = abs(difference - np.ldexp(claim.value, claim.exponent))
        errors.append(float(off / (np.ldexp(claim.size, claim.exponent) + blind)))
    return min(errors)


def _by_tangent(claim: _Claim, network: Network, theta: NDArray, tape: Tape) -> float:
    """Relative error against the tangent propagated forwards from step t."""
    errors = []
    for step in STEPS:
        terms = list(tangent_terms(network, theta, tape, claim.parameter, claim.t, claim.direction, step))
        top = max((power for value, power in terms if value), default=claim.exponent)
        tangent = sum(value * 2.0 ** max(power - top, -2000) for value, power in terms)
        with np.errstate(over="ignore", under="ignore"):
            off = abs(np.ldexp(tangent, top - claim.exponent) - claim.value)
        errors.append(float(off / claim.size) if claim.size else float(tangent != 0))
    return min(errors)
