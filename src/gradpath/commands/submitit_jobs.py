"""``hydra/launcher=submitit``: the jobs of a sweep by submitit, on this machine by its local
executor, or as jobs of Slurm (``submitit_slurm``).

By submitit itself and not by hydra-submitit-launcher, which starts every job of this machine at
once, and leaves them going when the command is ended.
"""

import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, cast

from gradpath.commands import cluster
from gradpath.commands.cluster import Assignment, LostError, work
from gradpath.commands.conclusion import Job
from gradpath.commands.parallel import Outcome, processes
from gradpath.commands.pool import TERM_SECONDS
from gradpath.commands.signals import Terminated, left_to_this_process, stop
from gradpath.schema import locations
from gradpath.schema.settings import ConfigError
from gradpath.schema.text import one_line
from gradpath.training import passes

SLURM_KEYS = ("partition", "qos", "account", "comment", "constraint", "exclude", "mem_per_cpu", "signal_delay_s")
COMMON_KEYS = ("timeout_min", "cpus_per_task", "mem_gb", "name")

PREEMPTION_SECONDS = 30.0
"""That Slurm has between the two signals of a preemption."""


def run(jobs: Sequence[Job], sweep_id: str, settings: Any, slurm: bool) -> None:
    """Runs the jobs, and notes with each why it failed; ``settings`` is ``hydra.launcher``. Raises
    ConfigError where there is no submitit or no Slurm.
    """
    try:
        import submitit
    except ImportError:
        raise ConfigError("hydra/launcher=submitit: needs submitit: pip install 'gradpath[submitit]'") from None
    for key, value in settings.items():
        if isinstance(value, str) and not value.isprintable():  # a line of its own in a script
            raise ConfigError(f"hydra.launcher.{key}={value!r}: must be one line of text")
    folder = settings.submitit_folder or locations.home() / "mlruns" / "submitit" / "%j"
    if not slurm:
        executor = submitit.AutoExecutor(folder, "local")
        executor.update_parameters(timeout_min=settings.timeout_min)
        count = processes(jobs)
        cluster.run(jobs, sweep_id, Jobs(executor, count), max(1, passes.cores() // count))
        return
    cluster.note_of_store(jobs, "jobs on other machines of Slurm")
    try:
        executor = submitit.AutoExecutor(folder, "slurm", slurm_max_num_timeout=settings.max_num_timeout)
    except RuntimeError as error:
        raise ConfigError(f"hydra/launcher=submitit_slurm: {one_line(str(error))}") from None
    common = {key: settings[key] for key in COMMON_KEYS if settings[key] is not None}
    specific = {f"slurm_{key}": settings[key] for key in SLURM_KEYS if settings[key] is not None}
    # Since Slurm 22.05 srun does not take it from the job.
    specific["slurm_srun_args"] = [f"--cpus-per-task={settings.cpus_per_task}"]
    executor.update_parameters(**common, **specific)
    cluster.run(jobs, sweep_id, Jobs(executor, settings.array_parallelism), settings.cpus_per_task)


class Point:
    """What submitit calls in a job, and has run again after a preemption."""

    def __call__(self, assignment: Assignment) -> Outcome:
        number = getattr(signal, f"SIG{os.environ.get('SUBMITIT_PREEMPT_SIGNAL', 'USR2')}")
        requeue: Any = signal.signal(number, stop)
        try:
            return work(assignment)
        except Terminated as error:  # the runs are closed by now
            if error.number == number or (error.number == signal.SIGTERM and _preempted()):
                requeue(number, None)  # submitit's, which leaves by SystemExit
            raise
        finally:
            signal.signal(number, requeue)

    def checkpoint(self, assignment: Assignment) -> Any:
        """What is run when the job is again in the queue: the run itself is in its store."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, assignment)


def _preempted() -> bool:
    """Does the signal of a preemption follow? Slurm sends SIGTERM before it, and to a job that is
    cancelled too, which it kills after a while.
    """
    if os.environ.get("SUBMITIT_EXECUTOR") != "slurm":
        return False
    try:
        time.sleep(PREEMPTION_SECONDS)
    except Terminated:
        return True
    return False


class Jobs:
    """Runs assignments as jobs of submitit."""

    def __init__(self, executor: Any, slots: int) -> None:
        self._executor, self.slots = executor, slots
        self._local = executor.cluster == "local"

    def submit(self, assignment: Assignment) -> Any:
        with left_to_this_process(), _deaf_to_ctrl_c():
            return self._executor.submit(Point(), assignment)

    def ended(self, submitted: Sequence[Any], seconds: float) -> list[Any]:
        deadline = time.monotonic() + seconds
        while not (ended := [job for job in submitted if job.done()]) and time.monotonic() < deadline:
            time.sleep(0.05)
        return ended

    def outcome(self, ended: Any) -> Outcome:
        from submitit.core.utils import FailedJobError, UncompletedJobError

        try:
            return cast("Outcome", ended.result())
        except FailedJobError as error:
            return Outcome(one_line(str(error).strip().rpartition("\n")[2]))
        except UncompletedJobError:
            state = str(ended.state)
            word = f"ended without a word (job {ended.job_id}, {state}; {ended.paths.stderr})"
            raise LostError(word, counted=state != "PREEMPTED") from None

    def running(self, submitted: Sequence[Any]) -> Sequence[Any]:
        return submitted if self._local else [job for job in submitted if job.state == "RUNNING"]

    def stop(self, submitted: Sequence[Any]) -> None:
        """Each has SIGTERM, and time to close its runs. Slurm kills what is left; of the local ones
        submitit's own ``cancel`` would leave them a second.
        """
        for job in submitted:
            with suppress(Exception):
                os.kill(int(job.job_id), signal.SIGTERM) if self._local else job.cancel()
        if self._local and self.ended_all(submitted):
            return
        for job in submitted if self._local else ():
            with suppress(Exception):
                job.cancel()

    def ended_all(self, submitted: Sequence[Any]) -> bool:
        """Have all ended within the time that they have for it?"""
        deadline = time.monotonic() + TERM_SECONDS
        while not (done := all(job.done() for job in submitted)) and time.monotonic() < deadline:
            time.sleep(0.1)
        return done


@contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """A process that is started within the context does not hear what a terminal sends to the whole
    group; this one ends it.
    """
    try:
        previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
