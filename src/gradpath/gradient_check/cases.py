"""The sizes and types at which a configuration is checked.

*small*: float64, few units, sequences and steps, with a second seed beside the first; the one at
which differences of the loss can be taken, and at which every instrument there is reads. *as
asked*: the layers, H, B and type of the experiment, and in float64 once more, with fewer timesteps
where the whole would take long; whatever depends on the length of a pass, as where it is cut in two
or computed in chunks, is then scaled so that it does what it does at full length. *past the band*:
so many steps that the adjoint is rescaled.
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
"""H at most: beyond, no other layout is used."""
WORK = 2**15
"""T·B·n·H at most of a case as asked, and T at least what the task can do."""
Gains = tuple[tuple[float, float], ...]
RESCALED: dict[str, tuple[tuple[int, ...], Gains]] = {
    "falls": ((40, 120, 320), ((1.0, 0.0), (0.3, -3.0), (0.02, 0.0))),
    "grows": ((120,), ((1.0, 0.0), (2.0, 0.0), (6.0, 0.0), (2.0, 3.0))),
}
"""Lengths, and by what the recurrent weights are multiplied and what is added to the biases, tried
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
"""What depends on the length of a pass."""


# The three that stand in for units derive from one and not from the base, whose own subclasses are
# the units.


@dataclass
class Perturbed(Uniform):
    """An initialisation, moved off the special points (zeros, exact symmetries) at which errors can
    hide.
    """

    init: Init | None = None
    shift: float = 0.0
    recurrent_gain: float = 1.0
    """Multiplies what is recurrent, and with it how fast the adjoint grows or falls."""

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
    """Chunks and parts as they fall in a pass that is so many times as long."""
    saved = [(module, name, getattr(module, name)) for module, name in LENGTH_DEPENDENT]
    try:
        for module, name, value in saved:
            setattr(module, name, max(1, int(value / times)))
        yield
    finally:
        for module, name, value in saved:
            setattr(module, name, value)


def shortened(task: Task, length: int) -> Task:
    """The task at about this length: the next longer one that it can do."""
    for candidate in range(length, max(length, task.length) + 1):
        try:
            return replace(task, length=min(candidate, task.length))
        except SettingError:  # too short for this task
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
    """The configuration as it is, as long as may be, and by how many times that is shorter."""
    cell = replace(experiment.cell, hidden_size=min(WIDEST, experiment.cell.hidden_size))
    per_step = experiment.train.batch_size * len(cell.blocks) * cell.hidden_size * cell.layers
    task = shortened(experiment.task, min(max(WORK // per_step, LENGTHS[0]), experiment.task.length))
    full_length = experiment.task.timesteps * experiment.cell.hidden_size / cell.hidden_size
    case = replace(experiment, cell=cell, task=task, init=Perturbed(init=experiment.init))
    return case, full_length / task.timesteps


def rescaled(experiment: Experiment, dtype: Dtype) -> Iterator[tuple[str, Network, NDArray, Batch]]:
    """A network whose adjoint falls, and one whose adjoint grows, so far that it is rescaled on the
    way; where none is found within the lengths tried, none.
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
        # Losses in the last quarter alone, so that the adjoint is left to itself; and more of them
        # in one sequence, so that the sequences' exponents differ.
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
    """At which sizes it is checked, in a line."""
    reduced, (full, times) = small(experiment), full_size(experiment)
    texts = [
        f"{name} T = {e.task.timesteps}, B = {e.train.batch_size}, H = {e.cell.hidden_size}"
        for name, e in (("small", reduced), ("as asked", full))
    ]
    note = f" (chunks and parts as at {times:.3g} times the length)" if times > 1 else ""
    return "untied differences and a textbook pass; " + "; ".join(texts) + note
