"""The sizes and types at which a configuration is checked.

*small*: float64, with few units, sequences and steps, and a second seed beside the first. At this
size differences of the loss can be taken, and every instrument reads. *as asked*: the layers, H, B
and type of the experiment, and the same in float64. Where the whole pass would take long, it has
fewer timesteps; the limits that depend on the length of a pass, such as the size of a chunk, are
then scaled so that the pass is divided as it is at full length. *past the band*: so many steps that
the adjoint is rescaled.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator
from numpy.typing import DTypeLike, NDArray

from gradpath.core import backward, jacobians, weight_gradients
from gradpath.core.cell import Cell
from gradpath.core.network import Network
from gradpath.core.tape import Batch
from gradpath.engine import partition
from gradpath.inits import Init
from gradpath.inits.uniform import Uniform
from gradpath.instruments import credit
from gradpath.schema.settings import SettingError
from gradpath.tasks import Task
from gradpath.training.checked_task import minibatch
from gradpath.training.experiment import Dtype, Experiment

HIDDEN, SEQUENCES, LENGTHS = 4, 3, range(5, 60)
WIDEST = 512
"""Largest H of a case: no larger H uses another memory layout."""
WORK = 2**15
"""Largest T·B·n·H of a case *as asked*; T is not reduced below what the task allows."""
Gains = tuple[tuple[float, float], ...]
RESCALED: dict[str, tuple[tuple[int, ...], Gains]] = {
    "falls": ((40, 120, 320), ((1.0, 0.0), (0.3, -3.0), (0.02, 0.0))),
    "grows": ((120,), ((1.0, 0.0), (2.0, 0.0), (6.0, 0.0), (2.0, 3.0))),
}
"""Lengths, and pairs of a gain of the recurrent weights and an offset of the biases; they are tried
one after the other until the adjoint leaves its band.
"""
LENGTH_DEPENDENT = (
    (partition, "MIN_MULTIPLY_ADDS"),
    (partition, "CHUNK_ELEMENTS"),
    (backward, "CHUNK_ELEMENTS"),
    (weight_gradients, "CHUNK_ELEMENTS"),
    (credit, "CHUNK_ELEMENTS"),
    (jacobians, "CHUNK_ELEMENTS"),
)
"""Constants that depend on the length of a pass."""


# The classes below replace units. They derive from a concrete unit and not from the base, whose
# direct subclasses are the units.


@dataclass
class Perturbed(Uniform):
    """An initialisation that is moved off the special points (zeros, exact symmetries) at which
    errors can hide.
    """

    init: Init | None = None
    shift: float = 0.0
    recurrent_gain: float = 1.0
    """Factor of the recurrent weights, which sets how fast the adjoint grows or falls."""

    def draw(self, rng: Generator, network: Network, dtype: DTypeLike) -> NDArray:
        assert self.init is not None
        theta = self.init.draw(rng, network, np.float64)
        theta += rng.uniform(-1, 1, network.size) / np.sqrt(network.cell.hidden_size)
        parameters = network.parameters(theta)
        for layer in range(network.layers):
            for block in network.cell.blocks.values():
                parameters[network.prefix(layer) + block.b][:] += self.shift
                if block.h:
                    parameters[network.prefix(layer) + block.h][:] *= self.recurrent_gain
        return theta.astype(dtype)


@contextmanager
def scaled_chunks(times: float) -> Iterator[None]:
    """Scales the limits of chunks and parts to those of a pass that is ``times`` as long."""
    saved = [(module, name, getattr(module, name)) for module, name in LENGTH_DEPENDENT]
    try:
        for module, name, value in saved:
            setattr(module, name, max(1, int(value / times)))
        yield
    finally:
        for module, name, value in saved:
            setattr(module, name, value)


def shortened(task: Task, length: int) -> Task:
    """The task at about this length, or at the next longer one that the task allows."""
    for candidate in range(length, max(length, task.length) + 1):
        try:
            return replace(task, length=min(candidate, task.length))
        except SettingError:  # the length is too short for this task
            continue
    return task


def small(experiment: Experiment) -> Experiment:
    """The configuration at a size at which differences can be taken."""
    cell = replace(experiment.cell, hidden_size=min(HIDDEN, experiment.cell.hidden_size))
    settings = replace(experiment.train, batch_size=SEQUENCES, dtype=Dtype.float64)
    return replace(
        experiment,
        cell=cell,
        task=shortened(experiment.task, LENGTHS[0]),
        train=settings,
        init=Perturbed(init=experiment.init),
    )


def full_size(experiment: Experiment) -> tuple[Experiment, float]:
    """The configuration at its own size, with as many timesteps as ``WORK`` allows, and the factor
    by which it is shortened.
    """
    cell = replace(experiment.cell, hidden_size=min(WIDEST, experiment.cell.hidden_size))
    per_step = experiment.train.batch_size * len(cell.blocks) * cell.hidden_size * cell.layers
    task = shortened(experiment.task, min(max(WORK // per_step, LENGTHS[0]), experiment.task.length))
    full_length = experiment.task.timesteps * experiment.cell.hidden_size / cell.hidden_size
    case = replace(experiment, cell=cell, task=task, init=Perturbed(init=experiment.init))
    return case, full_length / task.timesteps


def rescaled(experiment: Experiment, dtype: Dtype) -> Iterator[tuple[str, Network, NDArray, Batch]]:
    """A network whose adjoint falls, and one whose adjoint grows, so far that it is rescaled on the
    way. A network that none of the lengths tried produces is left out.
    """
    cell = replace(experiment.cell, hidden_size=min(HIDDEN, experiment.cell.hidden_size))
    for kind, (lengths, gains) in RESCALED.items():
        for length in lengths:
            case = _rescaled_pass(experiment, cell, kind, gains, length, dtype)
            if case is not None:
                yield f"adjoint {kind}, T = {len(case[2].mask)}, {dtype.name}", *case
                break


def _rescaled_pass(
    experiment: Experiment, cell: Cell, kind: str, gains: Gains, length: int, dtype: Dtype
) -> tuple[Network, NDArray, Batch] | None:
    task = shortened(replace(experiment.task, length=max(length, experiment.task.length)), length)
    for gain, shift in gains:
        rng = np.random.default_rng(experiment.seed)
        network = Network(cell, *task.sizes, task.loss, cell.layers, cell.initial_state)
        init = Perturbed(init=experiment.init, recurrent_gain=gain, shift=shift)
        theta = init.draw(rng, network, dtype.numpy)
        batch = minibatch(task, rng, SEQUENCES)
        # The losses are in the last quarter alone, so that no loss interferes with the adjoint in
        # the rest. One sequence has more losses, so that the exponents of the sequences differ.
        late = len(batch.mask) * 3 // 4
        mask = batch.mask & (np.arange(len(batch.mask)) >= late)[:, None]
        mask[late:, 0] |= rng.random(len(mask) - late) < 0.3
        mask[-1] = True
        batch = Batch(batch.inputs, batch.targets, mask).astype(dtype.numpy)
        with np.errstate(over="ignore", invalid="ignore"):
            trace = network.backward(theta, network.forward(theta, batch))
        change = trace.deltas[-1].exponent[len(mask) // 4] - trace.deltas[-1].exponent[-1]
        moved = (change < 0).all() if kind == "falls" else (change > 0).all()
        if moved and np.isfinite(trace.gradient.scaled.array).all() and np.isfinite(trace.tape.loss):
            return network, theta, batch
    return None


def sizes(experiment: Experiment) -> str:
    """The sizes at which the experiment is checked, in one line."""
    reduced, (full, times) = small(experiment), full_size(experiment)
    texts = [
        f"{name} T = {e.task.timesteps}, B = {e.train.batch_size}, H = {e.cell.hidden_size}"
        for name, e in (("small", reduced), ("as asked", full))
    ]
    note = f" (chunks and parts as at {times:.3g} times the length)" if times > 1 else ""
    return "untied differences and a textbook pass; " + "; ".join(texts) + note
