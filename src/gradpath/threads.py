"""How many threads a training takes: two for several seeds, or where its products are large enough for two of BLAS to
pay, else one.

Measured by ``experiments/performance/threads.py`` on two cores with next to nothing else running (OpenBLAS 0.3.31,
float32, a whole training step of RNN and LSTM, H = 16 … 1024, B = 20 … 256): the time of one thread over that of two,
against the multiply-adds of the product H_{t-1} W_h of one timestep:

    < 2^20  0.93 … 1.02      2^20 … 2^22  1.02 … 1.12      2^22 … 2^24  1.09 … 1.26      > 2^24  1.20 … 1.55

With another process on the same cores the two threads wait for each other, and took up to eighty times as long as one,
at any size. So processes that run at once have to share the cores out.
"""

import os

from threadpoolctl import threadpool_info

from gradpath.experiment import Experiment

WORTH = 2**22
"""Multiply-adds of one product from which two threads are worth it."""
MEASURED = 2
"""More threads than this have not been tried, so none are taken unasked."""


def chosen(experiment: Experiment, jobs: int = 1, seeds: int = 1) -> int:
    """``train.threads``, or where that is null what suits the shape; at most this process's part of the cores where
    ``jobs`` run at once. Of several seeds side by side each thread has its share, which is worth it but in the smallest
    networks, where it costs little, and BLAS has one thread. Several threads of BLAS may change the last bit of a large
    product (seen from H = 300), so whoever wants the same bits from any number of cores sets them to 1.
    """
    worth = seeds > 1 or multiply_adds(experiment) >= WORTH
    wanted = experiment.train.threads or (MEASURED if worth else 1)
    return min(wanted, share(jobs), seeds if seeds > 1 else wanted)


def multiply_adds(experiment: Experiment) -> int:
    """Of H_{t-1} W_h, the largest product of one timestep: B · H · n_h H."""
    cell = experiment.cell
    blocks = cell.reads_h.stop - cell.reads_h.start
    return int(experiment.train.batch_size * cell.hidden_size * blocks * cell.hidden_size)


def share(jobs: int) -> int:
    """Threads for one of ``jobs`` processes: of the cores it may run on, and no more than BLAS has started with, which
    is what OPENBLAS_NUM_THREADS or OMP_NUM_THREADS says; joblib sets them for its workers.
    """
    pools = [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]
    return max(1, min([cores() // jobs, *pools]))


def cores() -> int:
    """The cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
