"""The jobs of a sweep in processes of their own, several at once.

Pebble's pool, because of what a killed worker costs: of the launchers and pools that were tried
(``experiments/performance/launchers.md``) it alone loses no other point, ends its workers with the
command, and leaves none behind when the command itself is killed.
"""

import multiprocessing
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator, MutableSequence, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, cast

from gradpath.commands.conclusion import Job
from gradpath.commands.execute import execute_seeds
from gradpath.commands.progress import Share, Whole, label
from gradpath.commands.reasons import LOWER_MEMORY, reason
from gradpath.commands.signals import Terminated, ending, left_to_this_process
from gradpath.commands.signals import check as check_signals
from gradpath.commands.terminal import settle
from gradpath.schema import plugins
from gradpath.tracking.store_uri import StoreError
from gradpath.training import passes

ATTEMPTS = 2
"""Of a job whose process is killed."""
POLL_SECONDS = 0.5
TERM_SECONDS = 15.0
"""That a process has to close its runs once the command ends."""
PRELOADED = ("gradpath.commands.parallel", "gradpath.tracking.preloaded")
"""What the process is born with that the workers are forked from: two seconds that each of them
would take for it.
"""


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


def start_early() -> None:
    """Has the process that workers are forked from import what they need, while the command goes
    on.
    """
    # The tracker of semaphores, a process of Python's own, would speak of those that ended workers
    # have left to it.
    quiet = "ignore::UserWarning:multiprocessing.resource_tracker"
    if quiet not in (filters := os.environ.get("PYTHONWARNINGS", "")):
        os.environ["PYTHONWARNINGS"] = ",".join(filter(None, (filters, quiet)))
    if "forkserver" in multiprocessing.get_all_start_methods():
        from multiprocessing import forkserver

        multiprocessing.get_context("forkserver").set_forkserver_preload([*PRELOADED])
        with left_to_this_process():  # a terminal that is closed sends them to the whole group
            forkserver.ensure_running()


def run(jobs: Sequence[Job], sweep_id: str) -> None:
    """Runs the jobs, and notes with each why it failed. A job whose process is killed is tried once
    more; the others go on. Raises StoreLostError where one has lost the store.
    """
    from pebble import CONSTS, ProcessExpired, ProcessPool

    CONSTS.term_timeout = TERM_SECONDS
    context: Any = multiprocessing.get_context(
        "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    )
    shares = context.RawArray("d", len(jobs))
    count = processes(jobs)
    places, attempts = positions(jobs), Counter[int]()
    pool: Any = ProcessPool(
        count, initializer=_prepare, initargs=(shares, dict(os.environ), os.getcwd()), context=context
    )

    def submit(index: int) -> Any:
        attempts[index] += 1
        shares[index] = 0.0
        return pool.schedule(_work, (index, jobs[index].left, sweep_id, places[index], count))

    display = Whole([len(job.left) for job in jobs], shares)
    with main_hidden():
        try:
            waiting = {submit(index): index for index in range(len(jobs))}
            while waiting:
                ended, _ = wait(waiting, POLL_SECONDS, FIRST_COMPLETED)
                check_signals()
                for future in ended:
                    index = waiting.pop(future)
                    error = future.exception()
                    if isinstance(error, ProcessExpired) and attempts[index] < ATTEMPTS:
                        name = f"{places[index]} {label(jobs[index].left)}"
                        display.line(f"{name}: its process {_death(error)}; it is tried again")
                        waiting[submit(index)] = index
                        continue
                    outcome = _outcome(future, attempts[index])
                    for line in outcome.lines:
                        display.line(line)
                    if outcome.lost:
                        raise StoreLostError(outcome.reason)
                    jobs[index].reason = outcome.reason
                    display.ended(index, failed=bool(outcome.reason))
                display.show(running={index for future, index in waiting.items() if future.running()})
            pool.close()
        except BaseException:
            pool.stop()
            raise
        finally:
            pool.join()
            display.end()


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
    return Outcome(f"its process {_death(error)}, {attempts} times{remedy}")


@contextmanager
def main_hidden() -> Iterator[None]:
    """Keeps a new process from importing the program that has started it, as multiprocessing would:
    a user's script without ``if __name__ == "__main__"`` would run again in each of them.
    """
    main = sys.modules["__main__"]
    names = [name for name in ("__file__", "__spec__") if name in main.__dict__]
    hidden: dict[str, Any] = {name: main.__dict__.pop(name) for name in names}
    main.__dict__["__spec__"] = None
    try:
        yield
    finally:
        main.__dict__.update(hidden)


def positions(jobs: Sequence[Job]) -> list[str]:
    """``[3/12]`` or ``[3-6/12]``: the runs of each job, counted through all of them."""
    starts = [0]
    for job in jobs:
        starts.append(starts[-1] + len(job.left))
    ends = [sorted({first + 1, last}) for first, last in pairwise(starts)]
    return [f"[{'-'.join(map(str, pair))}/{starts[-1]}]" for pair in ends]


_shares: MutableSequence[float] = []
"""In a worker: the part of each job that is done."""


def _prepare(shares: MutableSequence[float], environment: dict[str, str], folder: str) -> None:
    """Makes a new worker a process of the command: its environment and folder, which the process
    that it was forked from may have from an earlier one.
    """
    global _shares
    _shares = shares
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    settle()
    plugins.active()


def _work(index: int, experiments: list[Any], sweep_id: str, position: str, count: int) -> Outcome:
    """What a worker does: trains and records one job."""
    display = Share(_shares, index)
    try:
        execute_seeds(experiments, experiments[0].tracking.sweep_id or sweep_id, position, count, display)
    except BaseException as error:  # the other points still run, whatever a unit raises
        if ended := ending(error):
            # All is closed by now. Pebble would take the exception for the job's result, and have
            # this process run the next job.
            os._exit(128 + (ended.number if isinstance(ended, Terminated) else signal.SIGINT))
        lost = isinstance(error, StoreError)
        return Outcome(str(error) if lost else reason(error), lost, display.lines)
    return Outcome(lines=display.lines)


def _death(error: Any) -> str:
    """How a process ended, in words."""
    try:
        return f"was ended by {signal.Signals(-error.exitcode).name}"
    except (TypeError, ValueError):
        return f"ended with status {error.exitcode}"
