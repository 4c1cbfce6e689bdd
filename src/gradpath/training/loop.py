"""One run: sample, forward, backward, measure, clip, update, as a stream of what happened at each
step.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import repeat
from threading import Lock
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gradpath.core.network import Network
from gradpath.core.tape import Batch
from gradpath.core.trace import Measurement, Trace
from gradpath.engine.workspace import Workspace
from gradpath.instruments import WINDOW, spike
from gradpath.training.checked_reading import checked
from gradpath.training.checked_task import minibatch
from gradpath.training.evaluation import Evaluation, evaluate
from gradpath.training.experiment import Experiment
from gradpath.training.passes import splits_large_passes
from gradpath.training.state import TrainingState

CHUNK_ELEMENTS = 2**20
"""Pre-activations, T·B·n·H of each seed, that are differentiated together: 4 MB in float32.
Measured, 16 LSTMs with H = 64 in one piece took longer than one after another.
"""


@dataclass(frozen=True)
class Step:
    """What happened at one training step; ``step`` counts the updates made before it."""

    step: int
    loss: float
    log10_grad_norm: float
    measurements: dict[str, Measurement]
    evaluation: Evaluation | None
    diverged: bool
    """Loss or gradient is not finite, and this is the run's last step."""
    state: TrainingState | None = None
    """What goes on from here, every ``train.checkpoint_every`` steps."""


def train(experiment: Experiment) -> Iterator[Step]:
    """Trains for ``train.steps`` updates and yields steps 0 … train.steps; the last measures the
    trained network.

    Deterministic: the same experiment gives bit-identical results. Initialisation, data and
    evaluation draw from streams of their own, so that another cell trains on the same data.
    """
    for steps in train_seeds([experiment]):
        yield from steps.values()


def train_seeds(
    experiments: Sequence[Experiment], threads: int = 1, states: Sequence[TrainingState] = ()
) -> Iterator[dict[int, Step]]:
    """Trains experiments that differ in their seed only, side by side as one array axis: at each
    step, index of the experiment → what happened to it. Each gets, bit for bit, what ``train``
    gives it alone; who diverges drops out. Each of the ``threads`` has its share of the seeds; one
    seed alone has two of them, where its passes are cut in two. From ``states``, one an experiment
    and all of the same step, the training goes on.
    """
    if len({replace(experiment, seed=0).config_hash for experiment in experiments}) != 1:
        raise ValueError("experiments that are trained side by side may differ in their seed only")
    first, python_lock, workers = experiments[0], Lock(), min(threads, len(experiments))
    network = _network(first)
    seeds = {index: _Seed(experiment, network) for index, experiment in enumerate(experiments)}
    for index, state in enumerate(states):
        seeds[index].restore(state)
    seed_elements = first.task.timesteps * first.train.batch_size * len(first.cell.blocks) * first.cell.hidden_size
    size = max(1, CHUNK_ELEMENTS // seed_elements)

    def advance(step: int, workspace: Workspace, share: Sequence[int]) -> dict[int, Step]:
        """One training step of one thread's seeds."""
        steps: dict[int, Step] = {}
        with python_lock:
            for start in range(0, len(share), size):
                group = share[start : start + size]
                steps |= zip(group, _advance(step, network, workspace, [seeds[k] for k in group]), strict=True)
        return steps

    with ThreadPoolExecutor(threads) as pool:
        if workers > 1:
            workspaces = [network.workspace(python_lock) for _ in range(workers)]
        else:
            workspaces = [network.workspace(executor=pool if threads > 1 else None)]
        for step in range(states[0].step if states else 0, first.train.steps + 1):
            shares = [share.tolist() for share in np.array_split(list(seeds), workers)]
            parts = (pool.map if workers > 1 else map)(advance, repeat(step), workspaces, shares)
            steps = {index: result for part in parts for index, result in part.items()}
            yield steps
            seeds = {index: seed for index, seed in seeds.items() if not steps[index].diverged}
            if not seeds:
                return


def check_state(experiment: Experiment, state: TrainingState) -> None:
    """Raises an exception where the training cannot go on from a state, which a store has kept."""
    seed = _Seed(experiment, _network(experiment))
    shape, dtype = seed.theta.shape, seed.theta.dtype
    seed.restore(state)
    updated, _ = experiment.optimizer.update(state.theta, np.zeros_like(state.theta), dict(state.optimizer), state.step)
    if not all((theta.shape, theta.dtype) == (shape, dtype) for theta in (state.theta, updated)):
        raise ValueError("holds other parameters, or the state of another optimizer")
    numbers = [*state.norms, *state.largest_read.values(), *state.largest_spike.values()]
    if not {*experiment.instruments} == {*state.largest_read} == {*state.largest_spike} or state.step < 1:
        raise ValueError("holds what the instruments of another training have read")
    if not all(isinstance(number, float) for number in numbers):
        raise ValueError("holds what is no number")
    seed.batch()


class Start(NamedTuple):
    """What a run begins with, bit for bit."""

    network: Network
    theta: NDArray
    """θ (P,) at initialisation."""
    batch: Batch
    """The first training minibatch."""


def start(experiment: Experiment) -> Start:
    """The network, its parameters and its first minibatch, before any training."""
    seed = _Seed(experiment, _network(experiment))
    return Start(_network(experiment), seed.theta, seed.batch())


def _network(experiment: Experiment) -> Network:
    return replace(experiment.network, splits_large_passes=splits_large_passes(experiment.train.threads))


class _Seed:
    """One network in training: its streams, parameters and optimiser state, and what its
    instruments have read.
    """

    def __init__(self, experiment: Experiment, network: Network) -> None:
        init_stream, self._data, eval_stream = (
            np.random.default_rng(child) for child in np.random.SeedSequence(experiment.seed).spawn(3)
        )
        settings = experiment.train
        self.experiment = experiment
        self.theta = experiment.init.draw(init_stream, network, settings.dtype.numpy)
        self._state = experiment.optimizer.start(self.theta)
        self._held_out = minibatch(experiment.task, eval_stream, settings.eval_size).astype(settings.dtype.numpy)
        self._plan = {name: i.schedule.steps(settings.steps) for name, i in experiment.instruments.items()}
        self._have_read: set[str] = set()
        self._largest_read = dict.fromkeys(self._plan, -np.inf)
        self._largest_spike = dict.fromkeys(self._plan, 0.0)
        self._norms: deque[float] = deque(maxlen=WINDOW)

    def restore(self, state: TrainingState) -> None:
        """Goes back, or forward, to where a training was."""
        self.theta, self._state = state.theta.copy(), {name: a.copy() for name, a in state.optimizer.items()}
        self._data.bit_generator.state = state.data
        self._norms.extend(state.norms)
        self._largest_read |= state.largest_read
        self._largest_spike |= state.largest_spike

    def _snapshot(self, step: int) -> TrainingState:
        data = dict(self._data.bit_generator.state)
        spikes = dict(self._largest_spike)
        return TrainingState(step, self.theta, self._state, data, [*self._norms], dict(self._largest_read), spikes)

    def batch(self) -> Batch:
        """The next training minibatch."""
        settings = self.experiment.train
        return minibatch(self.experiment.task, self._data, settings.batch_size).astype(settings.dtype.numpy)

    def advance(self, step: int, network: Network, workspace: Workspace, trace: Trace) -> Step:
        """Clips, measures, evaluates where it is due, and updates unless this was the last step."""
        settings = self.experiment.train
        trained = trace.gradient if settings.readout else network.without_readout(trace)
        update, scale = self.experiment.clip.apply(trained)
        update = update.astype(self.theta.dtype, copy=False)  # the trace may be in a wider type
        trace = replace(trace, clip_scale=scale, trained=trained, applied=update)
        norm, last = trace.gradient.log10_norm, step == settings.steps
        diverged = not (np.isfinite(trace.tape.loss) and norm < np.inf and np.isfinite(update).all())
        risen = spike([*self._norms], norm) if self._norms else 0.0
        self._norms.append(norm)
        measurements = {}
        for name, instrument in self.experiment.instruments.items():
            schedule = instrument.schedule
            record = step > 0 and (
                (schedule.new_max is not None and norm > self._largest_read[name] + np.log10(schedule.new_max))
                or (
                    schedule.new_spike is not None
                    and risen > max(self._largest_spike[name], np.log10(schedule.new_spike))
                )
            )
            if step in self._plan[name] or record or (diverged and schedule.last):
                first = name not in self._have_read
                measurements[name] = checked(name, instrument, instrument.measure(network, trace), trace, first)
                self._have_read.add(name)
                self._largest_read[name] = max(self._largest_read[name], norm)
                self._largest_spike[name] = max(self._largest_spike[name], risen)
        scored = last or (settings.eval_every is not None and step % settings.eval_every == 0)
        evaluation = (
            evaluate(self.experiment, network, self.theta, self._held_out, workspace)
            if scored and not diverged
            else None
        )
        if not (diverged or last):
            self.theta, self._state = self.experiment.optimizer.update(self.theta, update, self._state, step)
        due = settings.checkpoint_every is not None and (step + 1) % settings.checkpoint_every == 0
        state = self._snapshot(step + 1) if due and not (diverged or last) else None
        return Step(step, trace.tape.loss, norm, measurements, evaluation, diverged, state)


def _advance(step: int, network: Network, workspace: Workspace, seeds: Sequence[_Seed]) -> list[Step]:
    """One training step of several seeds. Their traces end with it, so that the next ones lie in
    the same memory. A network that has blown up yields inf and NaN, which is a result and not a
    warning.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        traces = _differentiate(network, workspace, seeds)
        return [seed.advance(step, network, workspace, trace) for seed, trace in zip(seeds, traces, strict=True)]


def _differentiate(network: Network, workspace: Workspace, seeds: Sequence[_Seed]) -> list[Trace]:
    """Forward and backward."""
    thetas = np.stack([seed.theta for seed in seeds])
    layers, tapes = network.forward_seeds(thetas, [seed.batch() for seed in seeds], workspace)
    return network.backward_seeds(thetas, layers, tapes, workspace)
