"""The jobs of a sweep in processes of their own, several at once."""

import signal
from collections import Counter
from collections.abc import MutableSequence, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, cast

from gradpath.commands import pool
from gradpath.commands.conclusion import Job
from gradpath.commands.execute import execute_seeds
from gradpath.commands.progress import Share, Whole, label
from gradpath.commands.reasons import LOWER_MEMORY, reason
from gradpath.commands.signals import check as check_signals
from gradpath.commands.signals import ending
from gradpath.tracking.store_uri import StoreError
from gradpath.training import passes

ATTEMPTS = 2
"""Of a job whose process is killed."""
PRELOADED = ("gradpath.commands.parallel", "gradpath.tracking.preloaded")
"""What the process is born with that the workers are forked from."""


class StoreLostError(BaseException):
    """The store is gone, for every point that is left: passes Hydra, which would go on after an
    Exception.
    """


@dataclass
class Outcome:
    """What a worker says of a job: why it failed, if it did, whether it has lost the store, and the
    lines that it would have printed.
    """

    reason: str = ""
    lost: bool = False
    lines: list[str] = field(default_factory=list)


def processes(jobs: Sequence[Job]) -> int:
    """How many at once: ``jobs``, or one a core; no more than there are jobs."""
    return min(jobs[0].experiments[0].jobs or passes.cores(), len(jobs))


def run(jobs: Sequence[Job], sweep_id: str) -> None:
    """Runs the jobs, and notes with each why it failed. A job whose process is killed is tried once
    more; the others go on. Raises StoreLostError where one has lost the store.
    """
    from pebble import ProcessExpired

    shares = pool.context().RawArray("d", len(jobs))
    count = processes(jobs)
    places, attempts = positions(jobs), Counter[int]()
    display = Whole([len(job.left) for job in jobs], shares)
    try:
        with pool.workers(count, _prepare, (shares,)) as workers:

            def submit(index: int) -> Any:
                attempts[index] += 1
                shares[index] = 0.0
                return workers.schedule(_work, (index, jobs[index].left, sweep_id, places[index], count))

            # The longest first, so that at the end no core waits for another's long one.
            waiting = {submit(index): index for index in sorted(range(len(jobs)), key=lambda i: -work(jobs[i]))}
            while waiting:
                ended, _ = wait(waiting, pool.POLL_SECONDS, FIRST_COMPLETED)
                check_signals()
                for future in ended:
                    index = waiting.pop(future)
                    error = future.exception()
                    if isinstance(error, ProcessExpired) and attempts[index] < ATTEMPTS:
                        name = f"{places[index]} {label(jobs[index].left)}"
                        display.line(f"{name}: its process {pool.death(error)}; it is tried again")
                        waiting[submit(index)] = index
                        continue
                    tell(_outcome(future, attempts[index]), jobs, index, display)
                display.show(running={index for future, index in waiting.items() if future.running()})
    finally:
        display.end()


def tell(outcome: Outcome, jobs: Sequence[Job], index: int, display: Whole) -> None:
    """Shows how a job has ended for good, and notes why it failed; raises StoreLostError."""
    for line in outcome.lines:
        display.line(line)
    if outcome.lost:
        raise StoreLostError(outcome.reason)
    jobs[index].reason = outcome.reason
    display.ended(index, failed=bool(outcome.reason))


def failure(error: BaseException, lines: list[str]) -> Outcome:
    """The outcome of a job that an error has ended."""
    lost = isinstance(error, StoreError)
    return Outcome(str(error) if lost else reason(error), lost, lines)


def work(job: Job) -> int:
    """Multiply-adds of a job's forward passes in training, by which jobs are compared."""
    first = job.left[0]
    step = passes.multiply_adds(first.network, first.task.timesteps, first.train.batch_size)
    return step * first.train.steps * len(job.left) * first.network.layers


def _outcome(future: Any, attempts: int) -> Outcome:
    """How a job has ended for good."""
    from pebble import ProcessExpired

    error = future.exception()
    if error is None:
        return cast("Outcome", future.result())
    if not isinstance(error, ProcessExpired):
        return Outcome(reason(error))
    # The kernel says nothing else to a process for which there is no memory.
    remedy = f"; if memory ran out, {LOWER_MEMORY}" if error.exitcode == -signal.SIGKILL else ""
    return Outcome(f"its process {pool.death(error)}, {attempts} times{remedy}")


def positions(jobs: Sequence[Job]) -> list[str]:
    """``[3/12]`` or ``[3-6/12]``: the runs of each job, counted through all of them."""
    starts = [0]
    for job in jobs:
        starts.append(starts[-1] + len(job.left))
    ends = [sorted({first + 1, last}) for first, last in pairwise(starts)]
    return [f"[{'-'.join(map(str, pair))}/{starts[-1]}]" for pair in ends]


_shares: MutableSequence[float] = []
"""In a worker: the part of each job that is done."""


def _prepare(shares: MutableSequence[float]) -> None:
    global _shares
    _shares = shares


def _work(index: int, experiments: list[Any], sweep_id: str, position: str, count: int) -> Outcome:
    """What a worker does: trains and records one job."""
    display = Share(_shares, index)
    try:
        execute_seeds(experiments, experiments[0].tracking.sweep_id or sweep_id, position, count, display)
    except BaseException as error:  # the other points still run, whatever a unit raises
        if ended := ending(error):
            pool.leave(ended)  # all is closed by now
        return failure(error, display.lines)
    return Outcome(lines=display.lines)
