"""One run: sample, forward, backward, measure, clip, update, as a stream of what happened at each step."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from gradpath.experiment import Experiment
from gradpath.network import Network
from gradpath.records import Batch, Measurement, Trace


@dataclass(frozen=True)
class Evaluation:
    """Loss and the task's own score on the evaluation set, which no update ever sees."""

    loss: float
    score: float
    solved: bool


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


def train(experiment: Experiment) -> Iterator[Step]:
    """Trains for ``train.steps`` updates and yields steps 0 … train.steps; the last measures the trained network.

    Deterministic: the same experiment gives bit-identical results. Initialisation, data and evaluation draw from
    streams of their own, so that another cell trains on the same data.
    """
    task, settings = experiment.task, experiment.train
    init_stream, data_stream, eval_stream = (
        np.random.default_rng(child) for child in np.random.SeedSequence(experiment.seed).spawn(3)
    )
    dtype = settings.dtype.numpy
    network = Network(experiment.cell, *task.sizes, task.loss)
    theta = experiment.init.draw(init_stream, network, dtype)
    state = experiment.optimizer.start(theta)
    held_out = task.sample(eval_stream, settings.eval_size).astype(dtype)
    plan = {name: instrument.schedule.steps(settings.steps) for name, instrument in experiment.instruments.items()}
    largest_read = dict.fromkeys(plan, -np.inf)

    for step in range(settings.steps + 1):
        last = step == settings.steps
        trace = _differentiate(network, theta, task.sample(data_stream, settings.batch_size).astype(dtype))
        update, scale = experiment.clip.apply(trace.gradient)
        trace = replace(trace, clip_scale=scale)
        norm = trace.gradient.log10_norm
        diverged = not (np.isfinite(trace.tape.loss) and norm < np.inf and np.isfinite(update).all())
        measurements = {}
        for name, instrument in experiment.instruments.items():
            schedule = instrument.schedule
            record = schedule.new_max is not None and norm > largest_read[name] + np.log10(schedule.new_max)
            if step in plan[name] or record or (diverged and schedule.last):
                measurements[name] = instrument.measure(trace)
                largest_read[name] = max(largest_read[name], norm)
        evaluate = last or (settings.eval_every is not None and step % settings.eval_every == 0)
        evaluation = _evaluate(experiment, network, theta, held_out) if evaluate and not diverged else None
        yield Step(step, trace.tape.loss, norm, measurements, evaluation, diverged)
        if diverged or last:
            return
        theta, state = experiment.optimizer.update(theta, update, state, step)


def _differentiate(network: Network, theta: NDArray, batch: Batch) -> Trace:
    """Forward and backward; a network that has blown up yields inf and NaN, which is a result and not a warning."""
    with np.errstate(over="ignore", invalid="ignore"):
        return network.backward(theta, network.forward(theta, batch))


def _evaluate(experiment: Experiment, network: Network, theta: NDArray, held_out: Batch) -> Evaluation:
    """Scores the evaluation set in minibatches of at most 500, so that memory does not grow with its size."""
    losses, scores, weights = [], [], []
    for start in range(0, held_out.mask.shape[1], 500):
        part = slice(start, start + 500)
        batch = Batch(held_out.inputs[:, part], held_out.targets[:, part], held_out.mask[:, part])
        with np.errstate(over="ignore", invalid="ignore"):
            tape = network.forward(theta, batch)
        losses.append(tape.loss)
        scores.append(experiment.task.score(tape))
        weights.append(int(batch.mask.sum()))
    score = float(np.average(scores, weights=weights))
    return Evaluation(float(np.average(losses, weights=weights)), score, experiment.task.solved(score))
