"""``gradpath check``: every number that an instrument stores or an optimiser sees, held to what
knows no BPTT.

*Untied differences*: perturb θ at step t only, along a random direction v, and compare the central
difference of the loss with ⟨∂L/∂θ_t, v⟩. It is the definition itself; a wrong element anywhere
shows, since v touches them all.

*The textbook*: a second backward pass (:mod:`gradpath.gradient_check.textbook`), whose local
derivatives come from ``cell.step`` alone and which is right to all digits where the gradient has
vanished and differences of the loss see only rounding. It gives every adjoint, every ∂L/∂θ_t and
their sum; from it follows what each instrument must have recorded
(:mod:`gradpath.gradient_check.recorded`), what clipping and the optimiser must have got, and what a
cell may declare (:mod:`gradpath.gradient_check.declared`).
"""

from collections.abc import Iterator
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
from gradpath.gradient_check import cases, declared, training
from gradpath.gradient_check.columns import whole
from gradpath.gradient_check.findings import ALLOWED, Findings, Row, exactly, merged, of_adjoint, place, table
from gradpath.gradient_check.recorded import errors
from gradpath.gradient_check.reference import Reference
from gradpath.gradient_check.textbook import Stepwise
from gradpath.gradient_check.watching import Watch, measured, watched
from gradpath.instruments import Instrument
from gradpath.schema.discovery import discover
from gradpath.schema.settings import SettingError
from gradpath.training.experiment import Dtype, Experiment

__all__ = ["Row", "cases", "check", "every_case", "merged", "place", "table", "unmerged"]

STEPS = (1e-2, 1e-3, 1e-1, 1e-4, 1e-5, 1e-6)
"""Step sizes of the differences. The smallest error counts: a wide step may cross a corner of relu,
a narrow one rounds; a wrong gradient is wrong at each.
"""


def every_case(experiment: Experiment) -> Iterator[tuple[str, list[Row]]]:
    """Each case's name, before it is computed, and the rows found so far."""
    types = [experiment.train.dtype] + [Dtype.float64] * (experiment.train.dtype is Dtype.float32)
    rows: list[Row] = []
    yield "small", rows
    for findings in small(experiment):
        rows += findings.rows
    for dtype in types:
        yield f"as asked, {dtype.name}", rows
        rows += as_asked(experiment, dtype).rows
        yield f"past the band, {dtype.name}", rows
        for findings in past_the_band(experiment, dtype):
            rows += findings.rows
    yield "", rows


def small(experiment: Experiment) -> Iterator[Findings]:
    """Two seeds side by side, the first with differences and every instrument."""
    made = cases.small(experiment)
    first, beside = watched(replace(made, instruments=_every_instrument(made)), seeds=2)
    yield compare(first, "small, float64", differences=True)
    plain = {name: read for name, read in beside.measurements.items() if name in PLAIN}
    yield compare(replace(beside, measurements=plain), "small, float64, a second seed")


def as_asked(experiment: Experiment, dtype: Dtype) -> Findings:
    """The experiment's own layers, H, B and instruments."""
    made, times = cases.as_asked(replace(experiment, train=replace(experiment.train, dtype=dtype)))
    with cases.as_if_longer(times):
        (watch,) = watched(made, seeds=1)
        return compare(watch, f"as asked, {dtype.name}")


def past_the_band(experiment: Experiment, dtype: Dtype) -> Iterator[Findings]:
    """Few units, and so many steps that the adjoint is rescaled."""
    for name, network, theta, batch in cases.past_the_band(experiment, dtype):
        yield compare(_pass(network, theta, batch), name)


def check(network: Network, theta: NDArray, batch: Batch, rng: Generator) -> list[Row]:
    """Checks a network at some θ on a minibatch; float64."""
    return merged(unmerged(network, theta, batch, rng))


def unmerged(network: Network, theta: NDArray, batch: Batch, rng: Generator) -> list[Row]:
    """The same, a row for each oracle."""
    return compare(_pass(network, theta, batch), "given", differences=True, rng=rng).rows


def _pass(network: Network, theta: NDArray, batch: Batch) -> Watch:
    """A forward and a backward pass, and what the plain instruments read of it."""
    with np.errstate(over="ignore", invalid="ignore"):
        tape = network.forward(theta, batch)
        network.backward(theta, network.forward(theta, batch))  # the second pass is checked: it must not add to it
        trace = network.backward(theta, tape)
        instruments = {name: cls() for name, cls in _known().items() if name in PLAIN}
        return Watch(network, trace, instruments, measured(instruments, network, trace))


PLAIN = ("param_grad_norm", "state_grad_norm", "grad_norm", "node_grad_norm", "path_grad_norm", "gate_activation")
"""The instruments that read what a pass has found, and compute little."""


def _known() -> dict[str, type[Instrument]]:
    found: dict[str, type[Instrument]] = discover(Instrument)  # type: ignore[type-abstract]
    return found


def _every_instrument(experiment: Experiment) -> dict[str, Instrument]:
    """All there are that can read the network, those of the experiment as they are set."""
    network = experiment.network
    found = {}
    for name, cls in _known().items():
        try:
            (one := cls()).check(network)
        except SettingError:
            continue
        found[name] = one
    return found | experiment.instruments


def compare(watch: Watch, case: str, differences: bool = False, rng: Generator | None = None) -> Findings:
    """All that one pass claims and all that was recorded of it."""
    network, trace = watch.network, watch.trace
    tape = trace.tape
    findings = Findings(case, ALLOWED[str(tape.outputs.dtype)])
    with np.errstate(all="ignore"):
        # A tape of its own, which no backward pass has touched.
        own = network.forward(tape.theta.astype(tape.outputs.dtype), tape.batch.astype(tape.outputs.dtype.type))
        if not np.isfinite(own.loss):
            findings.add("nothing compared: the loss is not finite", exactly(0.0))
            return findings
        reference = Reference(network, own)
        declared.forward(own, reference, findings)
        if tape.theta.dtype != tape.outputs.dtype:  # a second pass in float64, of what the first one's loss sends back
            wide = network.forward(tape.theta, tape.batch)
            reference = Reference(
                network, replace(wide, outputs=own.outputs, loss=own.loss, loss_gradient=own.loss_gradient)
            )
        declared.check(reference, findings)
        _adjoints(trace, reference, findings)
        _gradients(trace, reference, findings)
        if differences:
            findings.case = f"{case}, untied differences"
            _differences(network, trace, rng or np.random.default_rng(0), findings)
            findings.case = case
        _totals(trace, reference, findings)
        for name, read in watch.measurements.items():
            if name in watch.differs:
                findings.add(f"{name}, read again", exactly(np.inf))
            if isinstance(read, Exception):
                findings.add(name, exactly(np.inf), part=str(read).splitlines()[0])
                continue
            part, found = errors(reference, trace, watch.instruments[name], read)
            findings.add(name, found, 0 if network.layers == 1 else None, part, carried=False)
        training.check(watch, reference, findings)
    return findings


def _adjoints(trace: Trace, reference: Reference, findings: Findings) -> None:
    """The total and the direct derivatives of every state, and those of the pre-activations."""
    cell = reference.cell
    for layer, found in enumerate(reference.layers):
        prefix = reference.network.prefix(layer)
        hidden = prefix + cell.states[0]
        findings.add(f"∂⁺L/∂{hidden}", of_adjoint(trace.direct[hidden], found.direct), layer)
        for name, value in found.states.items():
            findings.add(f"∂L/∂{prefix}{name}", of_adjoint(trace.states[prefix + name], value), layer)
        for block, name in enumerate(cell.blocks):
            claim = trace.deltas[layer]
            own = Scaled(claim.array[..., block, :], claim.exponent)
            expected = Stepwise(found.delta.values[..., block, :], found.delta.exponent)
            findings.add(f"∂L/∂{prefix}a", of_adjoint(own, expected), layer, f"a_{name}")


def _gradients(trace: Trace, reference: Reference, findings: Findings) -> None:
    """∂L/∂θ_t, all elements of every parameter."""
    claims = {name: (factor, block) for factor in trace.factors for block, name in enumerate(factor.names)}
    for layer, name, expected in reference.gradients():
        factor, block = claims[name]
        found, exponent = np.zeros_like(expected.values[0]), np.zeros(len(expected.exponent), int)
        for rows, step in factor.per_step():
            found[factor.times[rows]] = step.array[:, block].reshape(-1, *found.shape[1:])
            exponent[factor.times[rows]] = step.exponent[:, 0]
        findings.add(name, of_adjoint(Scaled(found, exponent), expected), layer)


def _differences(network: Network, trace: Trace, rng: Generator, findings: Findings) -> None:
    """Untied differences of every parameter at every timestep."""
    tape = trace.tape
    layers = {network.prefix(k): k for k in range(network.layers)}
    for factor in trace.factors:
        steps = assembled(factor, tape.length)
        for block, name in enumerate(factor.names):
            layer = layers.get(name.rpartition("/")[0] + "/" * ("/" in name), network.layers - 1)
            found = [
                _by_differences(network, tape.theta, tape.batch, name, t, steps.array[t, block], exponent, rng)
                for t, exponent in enumerate(steps.exponent.tolist())
            ]
            findings.add(name, exactly(found), layer)


def _by_differences(
    network: Network, theta: NDArray, batch: Batch, name: str, t: int, gradient: NDArray, exponent: int, rng: Generator
) -> float:
    """Error of ⟨∂L/∂θ_t, v⟩ for a random unit v, in which an error of the gradient shows by about
    ‖error‖/√size; less what rounding of the loss alone may add to a difference, below which this
    oracle is blind.
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
        found = [difference(loss, step)]
        if difference is forward_difference:  # and backward: nearly at a corner, one of them stays on its side
            found.append(difference(loss, -step))
        best = min(best, *(float(abs(one - claim) / (size + blind)) for one in found))
        if best <= ALLOWED["float64"] / 10:
            break
    return best


def _totals(trace: Trace, reference: Reference, findings: Findings) -> None:
    """∂L/∂θ = Σ_t ∂L/∂θ_t: each matrix, and all of them end to end."""
    for names, claim in trace.gradient.parts:
        for block, name in enumerate(names):
            values, exponent = reference.totals[name]
            expected = Stepwise(values.reshape(2, 1, -1), np.array([exponent]))
            own = Scaled(claim.array[..., block, :].reshape(1, -1), np.reshape(claim.exponent, 1))
            findings.add("Σ_t ∂L/∂θ_t, each parameter", of_adjoint(own, expected).largest, part=name)
    values, exponent = whole(reference, trace)
    claim = trace.gradient.scaled
    own = Scaled(claim.array[None], np.reshape(claim.exponent, 1))
    expected = Stepwise(values[:, None], np.array([exponent]))
    findings.add("Σ_t ∂L/∂θ_t, end to end", of_adjoint(own, expected).largest)
