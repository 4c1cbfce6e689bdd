"""The gradient check of any configuration: every parameter at every timestep, by two oracles that know no BPTT.

*Untied differences*: perturb θ at step t only, along a random direction v, and compare the central difference of the
loss with ⟨∂L/∂θ_t, v⟩. A wrong element anywhere shows, since v touches them all.

*Adjoint dot product*: ⟨λ, J v⟩ = ⟨Jᵀ λ, v⟩ for the Jacobian J of the whole rest of the sequence. J v is propagated
forwards, the cell's step differentiated by central differences and everything linear exactly, and rescaled at every
step; so it is right to ten digits where the gradient has vanished and differences of the loss see only rounding.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from gradpath.cells import Cell
from gradpath.experiment import Experiment
from gradpath.gradcheck import central_difference, untied_loss
from gradpath.network import Network
from gradpath.records import Batch, Factor, Tape
from gradpath.scaled import LOG10_2
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
        return max(self.differences, self.dot_product) <= TOLERANCE


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
        found = _by_step(factor, len(batch.mask))
        for block, name in enumerate(factor.names):
            errors = np.zeros((2, len(batch.mask)))
            for t in range(len(batch.mask)):
                gradient, exponent = found[0][t, block], int(found[1][t])
                direction = rng.normal(size=gradient.shape)
                direction /= np.linalg.norm(direction)
                expected = float(np.sum(gradient * direction))
                # ⟨g, v⟩ is about ‖g‖/√size for a random unit v; the error of g shows in it by as much.
                size = float(np.linalg.norm(gradient)) / np.sqrt(gradient.size)
                errors[0, t] = _untied(
                    network, theta, batch, name, t, direction, np.ldexp(expected, exponent), size, exponent
                )
                errors[1, t] = _dot(network, theta, reference, name, t, direction, expected, size, exponent)
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


def _by_step(factor: Factor, steps: int) -> tuple[NDArray, NDArray]:
    """∂L/∂θ_t of a packed matrix (T, n, …) with an exponent a step; 0 where the matrix is not used."""
    values: NDArray | None = None
    exponents = np.zeros(steps, np.int32)
    for rows, step in factor.per_step():
        if values is None:
            values = np.zeros((steps, *step.array.shape[1:]))
        values[factor.times[rows]] = step.array
        exponents[factor.times[rows]] = step.exponent[:, 0]
    assert values is not None
    return (values[:, :, 0] if factor.entered is None else values), exponents


def _untied(
    network: Network,
    theta: NDArray,
    batch: Batch,
    name: str,
    t: int,
    direction: NDArray,
    expected: float,
    size: float,
    exponent: int,
) -> float:
    """Relative error against the central difference of the loss along ``direction`` at step t."""
    thetas = np.tile(theta, (len(batch.mask), 1))
    moved = network.parameters(thetas[t])[name]
    start = moved.copy()
    errors = []

    def loss(change: float) -> float:
        moved[...] = start + change * direction
        return untied_loss(network, thetas, batch)

    for step in STEPS:
        difference = central_difference(loss, step)
        # What rounding of the loss alone may add to a difference: below it this oracle is blind, the other one is not.
        blind = 64 * np.finfo(np.float64).eps * max(1.0, abs(loss(0.0))) / step / TOLERANCE
        errors.append(abs(difference - expected) / (np.ldexp(size, exponent) + blind))
    return min(errors)


def _dot(
    network: Network,
    theta: NDArray,
    tape: Tape,
    name: str,
    t: int,
    direction: NDArray,
    expected: float,
    size: float,
    exponent: int,
) -> float:
    """Relative error of ⟨∂L/∂θ_t, v⟩ against the tangent propagated forwards from step t."""
    errors = []
    for step in STEPS:
        terms = list(_tangents(network, theta, tape, name, t, direction, step))
        top = max((power for value, power in terms if value), default=exponent)
        tangent = sum(value * 2.0 ** max(power - top, -2000) for value, power in terms)
        if not size:
            errors.append(float(tangent != 0) if top * LOG10_2 > -300 else 0.0)
            continue
        with np.errstate(over="ignore", under="ignore"):
            errors.append(float(abs(np.ldexp(tangent, top - exponent) - expected) / size))
    return min(errors)


def _tangents(
    network: Network, theta: NDArray, tape: Tape, name: str, start: int, direction: NDArray, step: float
) -> Iterator[tuple[float, int]]:
    """The change of the loss that each scored timestep sees, as (value, power of two), when θ_start moves."""
    cell = network.cell
    scored = {int(t): row for row, t in enumerate(tape.scored)}
    hidden = cell.states[0]
    if name in ("W_hy", "b_y"):
        if start in scored:
            entered = tape.layers[-1].states[hidden][start + 1]
            change = entered @ direction if name == "W_hy" else np.broadcast_to(direction, tape.outputs.shape[1:])
            yield float(np.sum(tape.loss_gradient[scored[start]] * change)), 0
        return
    weights = list(network.layers(theta))
    where = {p: (k, block, kind) for k in range(cell.layers) for block, names in enumerate(cell.blocks.values())
             for kind, p in enumerate(network.prefix(k) + n for n in names)}  # fmt: skip
    moved, block, kind = where[name]
    batch = tape.batch.mask.shape[1]
    tangents = [[np.zeros((batch, cell.hidden_size)) for _ in cell.states] for _ in range(cell.layers)]
    power = 0
    for t in range(start, tape.length):
        below = np.zeros((batch, tape.layers[0].inputs.shape[-1]))
        for k, layer in enumerate(tape.layers):
            enter = [layer.states[s][t] for s in cell.states]
            packed = layer.inputs[t] @ weights[k].x + enter[0] @ weights[k].h + weights[k].b
            change = (below @ weights[k].x + tangents[k][0] @ weights[k].h).reshape(batch, len(cell.blocks), -1)
            if (k, t) == (moved, start):
                source = (layer.inputs[t], enter[0], np.ones((batch, 1)))[kind]
                change[:, block] += source @ np.atleast_2d(direction)
            tangents[k] = _step_tangent(cell, packed.reshape(change.shape), enter, change, tangents[k], step)
            below = tangents[k][0]
        if t in scored:
            d_hidden = tape.loss_gradient[scored[t]] @ network.packed(theta)[-2].T
            yield float(np.sum(d_hidden * tangents[-1][0])), power
        largest = max(np.abs(s).max() for layer_tangents in tangents for s in layer_tangents)
        if largest == 0:
            return
        shift = int(np.frexp(largest)[1])
        tangents = [[np.ldexp(s, -shift) for s in layer_tangents] for layer_tangents in tangents]
        power += shift


def _step_tangent(
    cell: Cell, packed: NDArray, enter: list[NDArray], change: NDArray, tangents: list[NDArray], step: float
) -> list[NDArray]:
    """The derivative of one pointwise step along a direction, by central differences."""
    largest = max(np.abs(change).max(), *(np.abs(s).max() for s in tangents))
    if largest == 0:
        return [np.zeros_like(s) for s in tangents]

    def leaving(along: float) -> NDArray:
        along /= largest
        states = [np.empty_like(s) for s in enter]
        moved = [s + along * d for s, d in zip(enter, tangents, strict=True)]
        cell.step(packed + along * change, moved, states, [np.empty_like(enter[0]) for _ in cell.saved])
        return np.stack(states)

    return list(largest * central_difference(leaving, step))
