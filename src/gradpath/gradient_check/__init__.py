"""``gradpath check``: compares every number that an instrument stores or an optimiser receives with
references that use no BPTT of the package.

*Untied differences*: perturb θ at step t only, along a random direction v, and compare the central
difference of the loss with ⟨∂L/∂θ_t, v⟩. This is the definition of ∂L/∂θ_t; a wrong element
anywhere shows, since v has no zero element.

*The textbook*: a second backward pass (:mod:`gradpath.gradient_check.textbook`). Its local
derivatives come from ``cell.step`` alone, and it is right to all digits even where the gradient has
vanished and differences of the loss show only rounding. The textbook gives every adjoint, every
∂L/∂θ_t and their sum. From these follow the readings that each instrument must have recorded
(:mod:`gradpath.gradient_check.recorded`), the gradients that clipping and the optimiser must have
received, and the declarations that a cell may make (:mod:`gradpath.gradient_check.declared`).
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from gradpath.core.network import Network
from gradpath.core.tape import Batch
from gradpath.gradient_check import cases
from gradpath.gradient_check.comparison import compare
from gradpath.gradient_check.findings import Findings, Row, merged, place, table
from gradpath.gradient_check.nonfinite import check_some_compared
from gradpath.gradient_check.watching import Watch, measured, watched
from gradpath.instruments import Instrument
from gradpath.schema.discovery import discover
from gradpath.schema.settings import SettingError
from gradpath.training.experiment import Dtype, Experiment

__all__ = ["Row", "cases", "check", "every_case", "merged", "place", "table", "unmerged"]


def every_case(experiment: Experiment) -> Iterator[tuple[str, list[Row]]]:
    """Each case's name, before the case is computed, and the rows of the cases before it."""
    types = [experiment.train.dtype] + [Dtype.float64] * (experiment.train.dtype is Dtype.float32)
    rows: list[Row] = []
    yield "small", rows
    for findings in small(experiment):
        rows += findings.rows
    for dtype in types:
        yield f"as asked, {dtype.name}", rows
        rows += full_size(experiment, dtype).rows
        yield f"past the band, {dtype.name}", rows
        for findings in rescaled(experiment, dtype):
            rows += findings.rows
    check_some_compared(rows)
    yield "", rows


def small(experiment: Experiment) -> Iterator[Findings]:
    """The small case with two seeds side by side, the first with differences and every
    instrument.
    """
    case = cases.small(experiment)
    first, second = watched(replace(case, instruments=_readable_instruments(case)), seeds=2)
    yield compare(first, "small, float64", differences=True)
    plain = {name: reading for name, reading in second.measurements.items() if name in PLAIN}
    yield compare(replace(second, measurements=plain), "small, float64, a second seed")


def full_size(experiment: Experiment, dtype: Dtype) -> Findings:
    """The case with the experiment's own layers, H, B and instruments."""
    case, times = cases.full_size(replace(experiment, train=replace(experiment.train, dtype=dtype)))
    with cases.scaled_chunks(times):
        (watch,) = watched(case, seeds=1)
        return compare(watch, f"as asked, {dtype.name}")


def rescaled(experiment: Experiment, dtype: Dtype) -> Iterator[Findings]:
    """The cases with few units and so many steps that the adjoint is rescaled."""
    for name, network, theta, batch in cases.rescaled(experiment, dtype):
        yield compare(_pass(network, theta, batch), name)


def check(network: Network, theta: NDArray, batch: Batch, rng: Generator) -> list[Row]:
    """Checks a network at given parameters on a minibatch, in float64."""
    return merged(unmerged(network, theta, batch, rng))


def unmerged(network: Network, theta: NDArray, batch: Batch, rng: Generator) -> list[Row]:
    """The rows of ``check``, one for each reference instead of one for each quantity."""
    rows = compare(_pass(network, theta, batch), "given", differences=True, rng=rng).rows
    check_some_compared(rows)
    return rows


def _pass(network: Network, theta: NDArray, batch: Batch) -> Watch:
    """A forward and a backward pass, and the readings of the ``PLAIN`` instruments."""
    with np.errstate(over="ignore", invalid="ignore"):
        tape = network.forward(theta, batch)
        network.backward(theta, network.forward(theta, batch))  # the second pass must not add to the first
        trace = network.backward(theta, tape)
        instruments = {name: cls() for name, cls in _instruments().items() if name in PLAIN}
        return Watch(network, trace, instruments, measured(instruments, network, trace))


PLAIN = ("param_grad_norm", "state_grad_norm", "grad_norm", "node_grad_norm", "path_grad_norm", "gate_activation")
"""The instruments that read the results of a pass and compute little themselves."""


def _instruments() -> dict[str, type[Instrument]]:
    instruments: dict[str, type[Instrument]] = discover(Instrument)  # type: ignore[type-abstract]
    return instruments


def _readable_instruments(experiment: Experiment) -> dict[str, Instrument]:
    """All instruments that can read the network; those of the experiment have its settings."""
    network = experiment.network
    readable = {}
    for name, cls in _instruments().items():
        try:
            (instrument := cls()).check(network)
        except SettingError:
            continue
        readable[name] = instrument
    return readable | experiment.instruments
