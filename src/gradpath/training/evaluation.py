"""The score of a network on sequences that no update sees."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradpath.core.network import Network
from gradpath.core.tape import Batch
from gradpath.engine.workspace import Workspace
from gradpath.training.checked_task import scored
from gradpath.training.experiment import Experiment
from gradpath.training.passes import evaluated_at_once


@dataclass(frozen=True)
class Evaluation:
    """Loss and the task's own score on the evaluation set, which no update ever sees."""

    loss: float
    score: float
    solved: bool


def evaluate(
    experiment: Experiment, network: Network, theta: NDArray, held_out: Batch, workspace: Workspace
) -> Evaluation:
    """Scores the evaluation set, a minibatch after the other."""
    losses, scores, weights = [], [], []
    length, size = held_out.mask.shape
    chunk = evaluated_at_once(network, length)
    for start in range(0, size, chunk):
        part = slice(start, start + chunk)
        batch = Batch(held_out.inputs[:, part], held_out.targets[:, part], held_out.mask[:, part])
        tape = network.forward(theta, batch, workspace)
        losses.append(tape.loss)
        scores.append(scored(experiment.task, tape))
        weights.append(int(batch.mask.sum()))
        del tape  # the next one takes its memory
    score = float(np.average(scores, weights=weights))
    return Evaluation(float(np.average(losses, weights=weights)), score, experiment.task.solved(score))
