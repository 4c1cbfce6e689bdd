"""gradpath's own step, through its public interface: forward and loss, backward, and what is read
of the trace.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import replace
from functools import cache, partial
from time import perf_counter
from typing import Any

import numpy as np

from contest import MIN_ROUNDS
from gradpath.commands import compose
from gradpath.core.network import Network
from gradpath.core.tape import Batch
from gradpath.core.trace import Measurement, Trace
from gradpath.engine.workspace import Workspace
from gradpath.instruments import Instrument
from gradpath.schema.discovery import discover
from gradpath.schema.settings import SettingError
from problem import Answer, Contestant, Problem

SLOW = ("credit", "jacobian_log_singular_values", "lyapunov_spectrum")
"""A single reading takes many steps' time: 128 backward passes, or O(T H³); see ``scale.py``."""
MAX_SECONDS = 5.0
"""Seconds beyond which a step with every other instrument is left out."""

Readings = tuple[Trace, dict[str, Measurement]]


@cache
def default_instruments() -> dict[str, Instrument]:
    """What ``gradpath run`` reads where nothing else is asked for."""
    return compose.experiment([]).instruments


def every_instrument(network: Network) -> dict[str, Instrument]:
    """All that can read this network."""
    instruments = {}
    for name, cls in discover(Instrument).items():
        instrument = cls()
        try:
            instrument.check(network)
        except SettingError:
            continue
        instruments[name] = instrument
    return instruments


def contestants(problem: Problem, executor: Executor | None = None) -> Iterator[Contestant]:
    """The step with no instrument, with ``param_grad_norm``, with the default ones, and with every
    one that applies but the slow ones, unless that takes more than ``MAX_SECONDS``.
    """
    workspace = problem.network.workspace(executor=executor)
    default = default_instruments()
    quick = {name: instrument for name, instrument in every_instrument(problem.network).items() if name not in SLOW}
    yield contestant(problem, workspace, "ours", {})
    yield contestant(problem, workspace, "ours, norms", {"param_grad_norm": default["param_grad_norm"]})
    yield contestant(problem, workspace, "ours, default instruments", default)
    if estimate(problem, quick) < MAX_SECONDS:
        yield replace(contestant(problem, workspace, "ours, every instrument", quick), most=MIN_ROUNDS)


def estimate(problem: Problem, instruments: dict[str, Instrument]) -> float:
    """Seconds of a step, from one over the first twentieth of the sequence; too low where an
    instrument's cost grows faster than T.
    """
    steps = max(2, problem.shape.steps // 20)
    batch = Batch(problem.batch.inputs[:steps], problem.batch.targets[:steps], problem.batch.mask[:steps])
    trace = problem.network.backward(problem.theta, problem.network.forward(problem.theta, batch))
    start = perf_counter()
    _measure(problem.network, instruments, trace)
    return (perf_counter() - start) * problem.shape.steps / steps


def contestant(problem: Problem, workspace: Workspace, name: str, instruments: dict[str, Instrument]) -> Contestant:
    network, theta, batch = problem.network, problem.theta, problem.batch
    stages: dict[str, Callable[[Any], Any]] = {
        "forward": lambda _: network.forward(theta, batch, workspace),
        "backward": lambda tape: network.backward(theta, tape, workspace),
        "instruments": partial(_measure, network, instruments),
    }
    return Contestant(name, "", stages, partial(_read, network))


def _measure(network: Network, instruments: dict[str, Instrument], trace: Trace) -> Readings:
    return trace, {name: instrument.measure(network, trace) for name, instrument in instruments.items()}


def _read(network: Network, result: Readings) -> Answer:
    trace, measured = result
    norms = None
    if (measurement := measured.get("param_grad_norm")) is not None:
        norms = dict(zip(measurement.names, np.power(10, measurement.values.T), strict=True))
    return Answer(trace.tape.loss, network.parameters(trace.gradient.scaled.plain()), norms)
