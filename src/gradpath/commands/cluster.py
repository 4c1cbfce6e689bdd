"""The jobs of a sweep on other machines: what is sent to them, and how their ends are told."""

import os
import pickle
import secrets
import sys
from collections import Counter, deque
from collections.abc import Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Protocol

from gradpath.commands.conclusion import Job
from gradpath.commands.execute import execute_seeds
from gradpath.commands.parallel import ATTEMPTS, Outcome, failure, positions, tell
from gradpath.commands.pool import POLL_SECONDS
from gradpath.commands.progress import Share, Whole, label
from gradpath.commands.signals import check as check_signals
from gradpath.commands.signals import ending
from gradpath.commands.terminal import settle
from gradpath.schema import plugins
from gradpath.tracking import outcomes, store, store_uri
from gradpath.tracking.provenance import source_tags
from gradpath.training import passes
from gradpath.training.experiment import Experiment


@dataclass(frozen=True)
class Assignment:
    """A job as it is sent to another process, which may be another machine's."""

    experiments: bytes
    """Pickled: the plugins that define their units must be there first."""
    plugins: str
    code: Mapping[str, str]
    sweep_id: str
    position: str
    cpus: int
    launch: str


class LostError(Exception):
    """The process of a job is no more, and nothing is known of the job; the message says how it
    ended. ``counted``: is it one of the attempts at the job?
    """

    def __init__(self, death: str, counted: bool = True) -> None:
        super().__init__(death)
        self.counted = counted


class Executor(Protocol):
    """What runs assignments; ``slots`` of them at once."""

    slots: int

    def submit(self, assignment: Assignment) -> Hashable:
        """Has an assignment run; what it is known by from now on."""

    def ended(self, submitted: Sequence[Any], seconds: float) -> list[Any]:
        """Those that have ended, after at most so many seconds."""

    def outcome(self, ended: Any) -> Outcome:
        """How an assignment has ended. Raises LostError."""

    def running(self, submitted: Sequence[Any]) -> Sequence[Any]:
        """Those that have begun."""

    def stop(self, submitted: Sequence[Any]) -> None:
        """Ends those that are left, once their runs are closed."""


def run(jobs: Sequence[Job], sweep_id: str, executor: Executor, cpus: int) -> None:
    """Runs the jobs, and notes with each why it failed. A job whose process is lost is tried once
    more; the others go on. Raises StoreLostError where one has lost the store. ``cpus``: of a job.
    """
    places, attempts = positions(jobs), Counter[int]()
    launches = [secrets.token_hex(8) for _ in jobs]
    assignments = [
        Assignment(
            pickle.dumps([_for_elsewhere(e) for e in job.left]),
            os.environ.get(plugins.VARIABLE, ""),
            source_tags(),
            sweep_id,
            place,
            cpus,
            launch,
        )
        for job, place, launch in zip(jobs, places, launches, strict=True)
    ]
    display = Whole([len(job.left) for job in jobs], [0.0] * len(jobs))
    queue, submitted = deque(range(len(jobs))), dict[Any, int]()
    try:
        while queue or submitted:
            while queue and len(submitted) < executor.slots:
                submitted[executor.submit(assignments[queue[0]])] = queue[0]
                queue.popleft()
            for handle in executor.ended([*submitted], POLL_SECONDS):
                index = submitted.pop(handle)
                try:
                    outcome = executor.outcome(handle)
                except LostError as lost:
                    attempts[index] += lost.counted
                    outcomes.close_left(jobs[index].left, launches[index])
                    if attempts[index] < ATTEMPTS:
                        display.line(
                            f"{places[index]} {label(jobs[index].left)}: its process {lost}; it is tried again"
                        )
                        queue.append(index)
                        continue
                    outcome = Outcome(f"its process {lost}, {attempts[index]} times")
                tell(outcome, jobs, index, display)
            check_signals()
            display.show(running={submitted[handle] for handle in executor.running([*submitted])})
    except BaseException:
        executor.stop([*submitted])
        for index in submitted.values():
            with suppress(Exception), store.patience(0):
                outcomes.close_left(jobs[index].left, launches[index])
        raise
    finally:
        display.end()


def _for_elsewhere(experiment: Experiment) -> Experiment:
    """The same run where there are other cores, another folder and another environment."""
    settings, tracking = experiment.train, experiment.tracking
    threads = settings.threads or (2 if passes.splits_large_passes(None) else 1)
    uri = store_uri.tracking_uri(tracking.uri)
    return replace(experiment, train=replace(settings, threads=threads), tracking=replace(tracking, uri=uri))


def note_of_store(jobs: Sequence[Job], machines: str) -> None:
    """Says where a store is a file that ``machines`` may not reach."""
    uri = store_uri.tracking_uri(jobs[0].experiments[0].tracking.uri)
    if store_uri.sqlite_file(uri) is not None:
        print(
            f"note: {store_uri.named(uri)} is a file, which {machines} cannot share unless they have this disk; "
            "mlflow server makes a store that they can: tracking.uri=http://HOST:5000",
            file=sys.stderr,
        )


def work(assignment: Assignment) -> Outcome:
    """What the other process does: trains and records one job. What is to end the process it
    raises, once the runs are closed.
    """
    settle()
    display = Share([0.0], 0)
    try:
        if assignment.plugins:
            os.environ[plugins.VARIABLE] = assignment.plugins
        plugins.active()
        if (code := source_tags()) != assignment.code:
            differing = " and ".join(key for key in code if code[key] != assignment.code[key])
            return Outcome(f"the machine it came to has another version of gradpath, a plugin or NumPy ({differing})")
        experiments = pickle.loads(assignment.experiments)
        outcomes.close_left(experiments, assignment.launch)
        sweep_id = experiments[0].tracking.sweep_id or assignment.sweep_id
        at_once = max(1, passes.cores() // assignment.cpus)
        tags = {outcomes.LAUNCH: assignment.launch}
        execute_seeds(experiments, sweep_id, assignment.position, at_once, display, tags)
    except BaseException as error:  # the other points still run, whatever a unit raises
        if ended := ending(error):
            raise ended from None
        return failure(error, display.lines)
    return Outcome(lines=display.lines)
