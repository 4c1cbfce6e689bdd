"""How many threads a training takes: two for several seeds, which have a share of them each, and
where its passes are cut in two (:mod:`gradpath.engine.partition`), else one. BLAS has one thread
always.

Two threads of BLAS wait for each other at every product. At the sizes of recurrent networks that
gains little even on idle cores (a training step of B = 128, H = 256 takes 0.8 of the time, where
two threads with a part of the minibatch each take 0.55), and with another process on the same cores
they took up to eighty times as long as one.
"""

from threadpoolctl import threadpool_info

from gradpath.engine.partition import ROWS, partition
from gradpath.training import passes
from gradpath.training.experiment import Experiment

MOST_THREADS = 2
"""Threads that are taken unasked: more have not been tried."""


def thread_count(experiment: Experiment, jobs: int = 1, seeds: int = 1) -> int:
    """``train.threads``, or where that is null what suits the shape; never more than this process's
    part of the cores where ``jobs`` run at once, nor than there is work for.
    """
    size = experiment.train.batch_size
    products = passes.multiply_adds(experiment.network, experiment.task.timesteps, size)
    shares = seeds if seeds > 1 else len(partition(size, products, ROWS))
    return min(experiment.train.threads or MOST_THREADS, share(jobs), shares)


def share(jobs: int) -> int:
    """Threads for one of ``jobs`` processes: of the cores it may run on, and no more than BLAS has
    started with, which is what OPENBLAS_NUM_THREADS or OMP_NUM_THREADS says; joblib sets them for
    its workers.
    """
    pools = [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]
    return max(1, min([passes.cores() // jobs, *pools]))
