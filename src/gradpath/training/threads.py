"""How many threads a training takes: two for several seeds, which have a share of them each, and
where its passes are cut in two (:mod:`gradpath.engine.partition`), else one. BLAS has one thread
always.

Two threads of BLAS wait for each other at every product. At the sizes of recurrent networks that
gains little even on idle cores (a training step of B = 128, H = 256 takes 0.8 of the time, where
two threads with a part of the minibatch each take 0.55), and with another process on the same cores
they took up to eighty times as long as one.
"""

import os

from threadpoolctl import threadpool_info

from gradpath.engine.partition import ROWS, partition
from gradpath.training.experiment import Experiment

MOST_THREADS = 2
"""Threads that are taken unasked: more have not been tried."""


def thread_count(experiment: Experiment, jobs: int = 1, seeds: int = 1) -> int:
    """``train.threads``, or where that is null what suits the shape; never more than this process's
    part of the cores where ``jobs`` run at once, nor than there is work for.
    """
    shares = seeds if seeds > 1 else len(partition(experiment.train.batch_size, multiply_adds(experiment), ROWS))
    return min(experiment.train.threads or MOST_THREADS, share(jobs), shares)


def splits_large_passes(experiment: Experiment) -> bool:
    """Are its large passes cut in two? Not with ``train.threads=1`` or on a single core. A run's
    bits depend on this alone, not on who else is running.
    """
    return (experiment.train.threads or cores()) > 1


def multiply_adds(experiment: Experiment) -> int:
    """Of the products of one layer's forward pass, T · B · (H + 1 + I) · n H."""
    cell, (inputs, _) = experiment.cell, experiment.task.sizes
    per_step = experiment.train.batch_size * (cell.hidden_size + 1 + inputs) * len(cell.blocks) * cell.hidden_size
    return int(experiment.task.timesteps * per_step)


def share(jobs: int) -> int:
    """Threads for one of ``jobs`` processes: of the cores it may run on, and no more than BLAS has
    started with, which is what OPENBLAS_NUM_THREADS or OMP_NUM_THREADS says; joblib sets them for
    its workers.
    """
    pools = [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]
    return max(1, min([cores() // jobs, *pools]))


def cores() -> int:
    """The cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
