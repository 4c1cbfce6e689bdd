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
    """Each case's name, before it is computed, and the rows found so far."""
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
    """Two seeds side by side, the first with differences and every instrument."""
    case = cases.small(experiment)
    first, second = watched(replace(case, instruments=_readable_instruments(case)), seeds=2)
    yield compare(first, "small, float64", differences=True)
    plain = {name: reading for name, reading in second.measurements.items() if name in PLAIN}
    yield compare(replace(second, measurements=plain), "small, float64, a second seed")


def full_size(experiment: Experiment, dtype: Dtype) -> Findings:
    """The experiment's own layers, H, B and instruments."""
    case, times = cases.full_size(replace(experiment, train=replace(experiment.train, dtype=dtype)))
    with cases.scaled_chunks(times):
        (watch,) = watched(case, seeds=1)
        return compare(watch, f"as asked, {dtype.name}")


def rescaled(experiment: Experiment, dtype: Dtype) -> Iterator[Findings]:
    """Few units, and so many steps that the adjoint is rescaled."""
    for name, network, theta, batch in cases.rescaled(experiment, dtype):
        yield compare(_pass(network, theta, batch), name)


def check(network: Network, theta: NDArray, batch: Batch, rng: Generator) -> list[Row]:
    """Checks a network at some θ on a minibatch; float64."""
    return merged(unmerged(network, theta, batch, rng))


def unmerged(network: Network, theta: NDArray, batch: Batch, rng: Generator) -> list[Row]:
    """The same, a row for each oracle."""
    rows = compare(_pass(network, theta, batch), "given", differences=True, rng=rng).rows
    check_some_compared(rows)
    return rows


def _pass(network: Network, theta: NDArray, batch: Batch) -> Watch:
    """A forward and a backward pass, and what the plain instruments read of it."""
    with np.errstate(over="ignore", invalid="ignore"):
        tape = network.forward(theta, batch)
        network.backward(theta, network.forward(theta, batch))  # the second pass is checked: it must not add to it
        trace = network.backward(theta, tape)
        instruments = {name: cls() for name, cls in _instruments().items() if name in PLAIN}
        return Watch(network, trace, instruments, measured(instruments, network, trace))


PLAIN = ("param_grad_norm", "state_grad_norm", "grad_norm", "node_grad_norm", "path_grad_norm", "gate_activation")
"""The instruments that read what a pass has found, and compute little."""


def _instruments() -> dict[str, type[Instrument]]:
    instruments: dict[str, type[Instrument]] = discover(Instrument)  # type: ignore[type-abstract]
    return instruments


def _readable_instruments(experiment: Experiment) -> dict[str, Instrument]:
    """All there are that can read the network, those of the experiment as they are set."""
    network = experiment.network
    readable = {}
    for name, cls in _instruments().items():
        try:
            (instrument := cls()).check(network)
        except SettingError:
            continue
        readable[name] = instrument
    return readable | experiment.instruments
